"""Where the families' components are, written down from transformers' ``modeling_*.py`` and tapped by plain hooks.

Independent of :mod:`iitkit.models.anatomy`: a tap names modules of the family by path, often other ones than ours (the
norm before the attention instead of the attention's input), and how to take the component from what they pass on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Read = Callable[[Tensor], Tensor]
Write = Callable[[Tensor, Tensor], Tensor]


def _whole(tensor: Tensor) -> Tensor:
    return tensor


def _all_of_it(tensor: Tensor, new: Tensor) -> Tensor:
    return new


@dataclass(frozen=True)
class Tap:
    """Modules (paths; ``{i}`` is the layer, ``{h}`` the one below) whose input or output holds a component.

    ``read`` takes the component from the tensor [B, S, ·], ``write`` puts one back.
    """

    paths: tuple[str, ...]
    side: Literal["in", "out"]
    read: Read = _whole
    write: Write = _all_of_it


def into(*paths: str) -> Tap:
    """A component that is the input of modules."""
    return Tap(paths, "in")


def out(*paths: str) -> Tap:
    """A component that is the output of a module."""
    return Tap(paths, "out")


def third(path: str, which: int, sizes: list[int]) -> Tap:
    """One of three parts of these sizes, side by side (GPT-2's ``split``, Phi-3's slices)."""

    def read(tensor: Tensor) -> Tensor:
        found: Tensor = torch.split(tensor, sizes, dim=2)[which]
        return found

    def write(tensor: Tensor, new: Tensor) -> Tensor:
        parts: list[Tensor] = list(torch.split(tensor, sizes, dim=2))
        parts[which] = new
        return torch.cat(parts, 2)

    return Tap((path,), "out", read, write)


def interleaved(path: str, which: int, heads: int) -> Tap:
    """GPT-NeoX: view [B, S, heads, 3 · size], chunk in three."""

    def read(tensor: Tensor) -> Tensor:
        chunks = tensor.view(*tensor.shape[:2], heads, -1).chunk(3, dim=-1)
        return chunks[which].reshape(*tensor.shape[:2], -1)

    def write(tensor: Tensor, new: Tensor) -> Tensor:
        chunks = list(tensor.view(*tensor.shape[:2], heads, -1).chunk(3, dim=-1))
        chunks[which] = new.view_as(chunks[which])
        return torch.cat(chunks, -1).view_as(tensor)

    return Tap((path,), "out", read, write)


def _gpt(attention: str, out_projection: str, mlp: str, down: str) -> dict[str, Tap]:
    return {
        "attention_output": out(f"{attention}.{out_projection}"),
        "attention_value_output": into(f"{attention}.{out_projection}"),
        "mlp_activation": out(f"{mlp}.act"),
        "mlp_hidden": into(f"{mlp}.{down}"),
        "mlp_output": out(f"{mlp}.{down}"),
    }


def _separate(attention: str) -> dict[str, Tap]:
    return {f"{name}_output": out(f"{attention}.{name[0]}_proj") for name in ("query", "key", "value")}


_H = "transformer.h.{i}"
_GPT = {"embeddings": out("transformer.wte"), "final_norm": out("transformer.ln_f")}
_GPT |= {"block_input": out("transformer.h.{h}"), "block_output": out(_H)}
_NORMS = {"attention_input": out(f"{_H}.ln_1"), "mlp_input": out(f"{_H}.ln_2")}

_L = "model.layers.{i}"
_ATTENTION = {
    "embeddings": out("model.embed_tokens"),
    "final_norm": out("model.norm"),
    "block_input": out("model.layers.{h}"),
    "block_output": out(_L),
    "attention_input": out(f"{_L}.input_layernorm"),
    "attention_output": out(f"{_L}.self_attn.o_proj"),
    "attention_value_output": into(f"{_L}.self_attn.o_proj"),
    **_separate(f"{_L}.self_attn"),
    "mlp_input": out(f"{_L}.post_attention_layernorm"),
}
_LLAMA = {
    **_ATTENTION,
    "mlp_activation": out(f"{_L}.mlp.act_fn"),
    "mlp_hidden": into(f"{_L}.mlp.down_proj"),
    "mlp_output": out(f"{_L}.mlp.down_proj"),
}
_GEMMA2 = {**_LLAMA, "mlp_input": out(f"{_L}.pre_feedforward_layernorm")}
_OPT = "model.decoder.layers.{i}"

TAPS: dict[str, dict[str, Tap]] = {
    "gpt2": {
        **_GPT,
        **_NORMS,
        **_gpt(f"{_H}.attn", "c_proj", f"{_H}.mlp", "c_proj"),
        **{
            f"{name}_output": third(f"{_H}.attn.c_attn", j, [16, 16, 16])
            for j, name in enumerate(("query", "key", "value"))
        },
    },
    "gpt_neo": {
        **_GPT,
        **_NORMS,
        **_gpt(f"{_H}.attn.attention", "out_proj", f"{_H}.mlp", "c_proj"),
        **_separate(f"{_H}.attn.attention"),
    },
    "gpt_neox": {
        "embeddings": out("gpt_neox.embed_in"),
        "final_norm": out("gpt_neox.final_layer_norm"),
        "block_input": out("gpt_neox.layers.{h}"),
        "block_output": out("gpt_neox.layers.{i}"),
        "attention_input": out("gpt_neox.layers.{i}.input_layernorm"),
        "mlp_input": out("gpt_neox.layers.{i}.post_attention_layernorm"),
        **_gpt("gpt_neox.layers.{i}.attention", "dense", "gpt_neox.layers.{i}.mlp", "dense_4h_to_h"),
        **{
            f"{name}_output": interleaved("gpt_neox.layers.{i}.attention.query_key_value", j, 4)
            for j, name in enumerate(("query", "key", "value"))
        },
    },
    "gptj": {  # one norm feeds attention and MLP, so their inputs are tapped at their projections
        **_GPT,
        "attention_input": into(f"{_H}.attn.q_proj", f"{_H}.attn.k_proj", f"{_H}.attn.v_proj"),
        "mlp_input": into(f"{_H}.mlp.fc_in"),
        **_gpt(f"{_H}.attn", "out_proj", f"{_H}.mlp", "fc_out"),
        **_separate(f"{_H}.attn"),
    },
    "opt": {  # the MLP stands in the block and sees [batch · sequence, width]
        "embeddings": out("model.decoder.embed_tokens"),
        "final_norm": out("model.decoder.final_layer_norm"),
        "block_input": out("model.decoder.layers.{h}"),
        "block_output": out(_OPT),
        "attention_input": out(f"{_OPT}.self_attn_layer_norm"),
        "attention_output": out(f"{_OPT}.self_attn.out_proj"),
        "attention_value_output": into(f"{_OPT}.self_attn.out_proj"),
        **_separate(f"{_OPT}.self_attn"),
        "mlp_input": out(f"{_OPT}.final_layer_norm"),
        "mlp_activation": out(f"{_OPT}.activation_fn"),
        "mlp_hidden": into(f"{_OPT}.fc2"),
        "mlp_output": out(f"{_OPT}.fc2"),
    },
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "olmo"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA2),
    "phi3": {
        **_LLAMA,
        **{
            f"{name}_output": third(f"{_L}.self_attn.qkv_proj", j, [16, 8, 8])
            for j, name in enumerate(("query", "key", "value"))
        },
        "mlp_activation": out(f"{_L}.mlp.activation_fn"),
    },
    "olmo2": {  # norms come after attention and MLP only
        **_LLAMA,
        "attention_input": into(*(f"{_L}.self_attn.{p}_proj" for p in "qkv")),
        "mlp_input": into(f"{_L}.mlp.gate_proj", f"{_L}.mlp.up_proj"),
    },
    "mixtral": {**_ATTENTION, "mlp_output": out(f"{_L}.mlp.experts"), "router_input": into(f"{_L}.mlp.gate")},
    "gpt_oss": {**_ATTENTION, "mlp_output": out(f"{_L}.mlp.experts"), "router_input": into(f"{_L}.mlp.router")},
}
"""Family → component → tap. The heads' components are these, parted by hand; see the tests for the rest."""

HEADS = {
    **dict.fromkeys(("gpt2", "gpt_neo", "gpt_neox", "gptj", "opt"), (4, 4, 4)),
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "phi3", "olmo", "olmo2"), (4, 2, 4)),
    **dict.fromkeys(("qwen3", "gemma2", "gemma3_text", "gpt_oss"), (4, 2, 6)),
    "gemma": (4, 1, 6),
}
"""Family → query heads, key-value heads, size of a head."""


def _shaped(tensor: Tensor, shape: tuple[int, int]) -> Tensor:
    return tensor.view(*shape, -1)  # also of [batch · sequence, width]


@contextmanager
def hooked(
    model: nn.Module, tap: Tap, layer: int, shape: tuple[int, int], change: Callable[[Tensor], Any]
) -> Iterator[None]:
    """Hand the tapped component [B, S, W] to ``change``; what it returns, if anything, takes its place."""

    def through(tensor: Tensor) -> Tensor | None:
        whole = _shaped(tensor, shape)
        new = change(tap.read(whole))
        return None if new is None else tap.write(whole, new).view_as(tensor)

    def before(_: nn.Module, args: tuple[Tensor, ...]) -> Any:
        new = through(args[0])
        return None if new is None else (new, *args[1:])

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        new = through(output[0] if isinstance(output, tuple) else output)
        return None if new is None else (new, *output[1:]) if isinstance(output, tuple) else new

    with ExitStack() as stack:
        for path in tap.paths:
            module = model.get_submodule(path.format(i=layer, h=layer - 1))
            entering = tap.side == "in"
            handle = module.register_forward_pre_hook(before) if entering else module.register_forward_hook(after)
            stack.callback(handle.remove)
        yield


@torch.no_grad()
def values(model: nn.Module, taps: Mapping[str, Tap], layer: int, ids: Tensor) -> dict[str, Tensor]:
    """Every tapped component [B, S, W] of one run."""
    found: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> None:
        found[name] = tensor.clone()

    with ExitStack() as stack:
        for name, tap in taps.items():
            stack.enter_context(hooked(model, tap, layer, (ids.shape[0], ids.shape[1]), partial(keep, name)))
        model(ids)
    return found


@torch.no_grad()
def swapped(model: nn.Module, tap: Tap, layer: int, ids: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits of a run in which ``change`` replaces the tapped component."""
    with hooked(model, tap, layer, (ids.shape[0], ids.shape[1]), change):
        logits: Tensor = model(ids).logits
    return logits


def route(family: str, logits: Tensor, chosen: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """What the router returns for these logits [·, experts]: ``MixtralTopKRouter`` and ``GptOssTopKRouter``."""
    if family == "mixtral":  # softmax, then the best, made to sum to one
        top, indices = torch.topk(F.softmax(logits.float(), dim=-1), chosen, dim=-1)
        return logits, top / top.sum(dim=-1, keepdim=True), indices
    top, indices = torch.topk(logits, chosen, dim=-1)  # the best, then softmax
    return logits, F.softmax(top, dim=1), indices
