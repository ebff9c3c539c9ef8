"""References for grids: one unpadded prompt at a time, hooks placed by hand on the families' own modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any, Literal

import torch
from byhand import PadSide, cast, prompts, tokens
from families import VOCABULARY, build
from torch import Tensor, nn
from transformers import PreTrainedModel

from iitkit.models.grids import Engine, Rows, Run

Place = tuple[nn.Module, Literal["input", "output"]]
Edit = Callable[[Tensor], Tensor]

BLOCKS = {
    "gpt2": "transformer.h",
    "gptj": "transformer.h",
    "gpt_neo": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
}
"""Where a family's blocks are, by reading its modeling file; the others have them in ``model.layers``."""

ATTENTION = {
    "gpt2": "attn.c_proj",
    "gptj": "attn.out_proj",
    "gpt_neo": "attn.attention.out_proj",
    "gpt_neox": "attention.dense",
    "opt": "self_attn.out_proj",
}
"""The projection that the heads' results enter side by side and the attention's output leaves; else ``o_proj``."""

MLP = {
    "gpt2": "mlp.c_proj",
    "gptj": "mlp.fc_out",
    "gpt_neo": "mlp.c_proj",
    "gpt_neox": "mlp.dense_4h_to_h",
    "opt": "fc2",
}
"""The projection that the MLP's output leaves; else ``down_proj``."""

EMBEDDINGS = {"gpt2": "transformer.wte", "gpt_neox": "gpt_neox.embed_in"}


def place(model: PreTrainedModel, family: str, layer: int, component: str) -> Place:
    """A component's module and side."""
    blocks: Any = model.get_submodule(BLOCKS.get(family, "model.layers"))
    block = blocks[layer]
    attention = block.get_submodule(ATTENTION.get(family, "self_attn.o_proj"))
    found: dict[str, Place] = {
        "block_input": (block, "input"),
        "block_output": (block, "output"),
        "attention_output": (attention, "output"),
        "attention_value_output": (attention, "input"),
        "mlp_output": (block.get_submodule(MLP.get(family, "mlp.down_proj")), "output"),
    }
    return found[component]


def embedding(model: PreTrainedModel, family: str) -> Place:
    """The token embedding."""
    return model.get_submodule(EMBEDDINGS.get(family, "model.embed_tokens")), "output"


def run(model: nn.Module, ids: Sequence[int], edits: Sequence[tuple[Place, Edit]] = ()) -> Tensor:
    """Logits [S, V] of one prompt; each edit gets a place's activation [S, width] and returns another."""
    with ExitStack() as stack, torch.no_grad():
        for (module, side), edit in edits:

            def after(_: nn.Module, __: Any, output: Any, edit: Edit = edit) -> Any:
                hidden = output[0] if isinstance(output, tuple) else output
                new = edit(hidden.reshape(-1, hidden.shape[-1])).reshape(hidden.shape)
                return (new, *output[1:]) if isinstance(output, tuple) else new

            def before(_: nn.Module, args: tuple[Any, ...], edit: Edit = edit) -> Any:
                return (edit(args[0].reshape(-1, args[0].shape[-1])).reshape(args[0].shape), *args[1:])

            hooked = (
                module.register_forward_hook(after) if side == "output" else module.register_forward_pre_hook(before)
            )
            stack.callback(hooked.remove)
        logits: Tensor = model(torch.tensor([list(ids)])).logits[0]
    return logits


def read(model: nn.Module, ids: Sequence[int], at: Place, edits: Sequence[tuple[Place, Edit]] = ()) -> Tensor:
    """What a place holds [S, width], in a run with edits."""
    seen: list[Tensor] = []

    def look(hidden: Tensor) -> Tensor:
        seen.append(hidden.clone())
        return hidden

    run(model, ids, [*edits, (at, look)])
    return seen[-1]


def put(step: int, value: Tensor, entries: slice = slice(None)) -> Edit:
    """The edit that puts a vector at one token, perhaps into some entries only."""

    def edit(hidden: Tensor) -> Tensor:
        new = hidden.clone()
        new[step, entries] = value
        return new

    return edit


@cache
def network(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A tiny random network, shared between tests."""
    return cast(build(family), dtype)


class Pair:
    """Ragged bases and sources of a family, some of them alike in their first tokens, in two runs of an engine."""

    LENGTHS = (9, 5, 7, 8)
    SHARED = (3, 0, 5, 1)

    def __init__(self, family: str, side: PadSide, dtype: torch.dtype = torch.float32, **engine: Any) -> None:
        self.family, self.model = family, network(family, dtype)
        self.bases = prompts(self.LENGTHS, seed=1, vocabulary=VOCABULARY)
        sources = prompts(self.LENGTHS, seed=2, vocabulary=VOCABULARY)
        together = zip(self.bases, sources, self.SHARED, strict=True)
        # the token at which they part is another one
        self.sources = [[*b[:n], (b[n] + 1) % VOCABULARY or 1, *s[n + 1 :]] for b, s, n in together]
        self.engine = Engine(self.model, **engine)
        self.base = self.engine.run(Rows(tokens(self.bases, side)))
        self.source = self.engine.run(Rows(tokens(self.sources, side)))

    def place(self, layer: int, component: str) -> Place:
        """A component's place in this family."""
        return place(self.model, self.family, layer, component)

    def last(self, edits: Callable[[int], Sequence[tuple[Place, Edit]]]) -> Tensor:
        """Last-token logits [B, V] by hand; ``edits`` gives those of a row."""
        return torch.stack([run(self.model, ids, edits(row))[-1] for row, ids in enumerate(self.bases)])

    def swapped(self, step: int, at: Place, entries: slice = slice(None)) -> Callable[[int], list[tuple[Place, Edit]]]:
        """A row's edit that puts the source's activation at one token; none where the row is shorter."""

        def edits(row: int) -> list[tuple[Place, Edit]]:
            if step >= len(self.bases[row]):
                return []
            source = read(self.model, self.sources[row], at)
            return [(at, put(step, source[step, entries], entries))]

        return edits

    def columns(self, step: int) -> Tensor:
        """Columns [B, 1] of a token counted from the first, −1 where a row is shorter."""
        return at(self.base, step)


def at(base: Run, step: int) -> Tensor:
    """Columns [B, 1] of a token counted from the first, −1 where a row is shorter."""
    return torch.where(step < base.lengths, base.starts + step, -1)[:, None]


def everything(logits: Tensor) -> Tensor:
    """The reducer that keeps all."""
    return logits
