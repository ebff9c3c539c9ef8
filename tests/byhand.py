"""References written from the families' own module code: hooks placed by hand, one unpadded prompt at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from iitkit.batch import IGNORED, Batch, Tokens

COMPONENTS = ("block_input", "block_output", "attention_input", "attention_output", "mlp_input", "mlp_output")
DTYPES = {torch.float32: 1e-5, torch.float64: 1e-10}
Edit = Callable[[Tensor], Tensor]
PadSide = Literal["left", "right"]


def module_of(model: PreTrainedModel, family: str, layer: int, component: str) -> nn.Module:
    """The module whose *output* is the component, by reading modeling_gpt2.py, modeling_llama.py, modeling_gptj.py."""
    root: Any = model
    if family == "llama":
        blocks, start = root.model.layers, root.model.embed_tokens
        inside = {
            "attention_input": "input_layernorm",
            "attention_output": "self_attn.o_proj",
            "mlp_input": "post_attention_layernorm",
            "mlp_output": "mlp.down_proj",
        }
    else:
        blocks, start = root.transformer.h, root.transformer.drop
        inside = {
            "attention_input": "ln_1",
            "attention_output": "attn.c_proj" if family == "gpt2" else "attn.out_proj",
            "mlp_input": "ln_2",
            "mlp_output": "mlp.c_proj" if family == "gpt2" else "mlp.fc_out",
        }
    if component == "block_input":
        found: nn.Module = start if layer == 0 else blocks[layer - 1]
    elif component == "block_output":
        found = blocks[layer]
    else:
        found = blocks[layer].get_submodule(inside[component])
    return found


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model in another dtype (changed in place, as torch does)."""
    untyped: Any = model
    found: PreTrainedModel = untyped.to(dtype)
    return found


def head_of(model: PreTrainedModel) -> nn.Module:
    """The LM head."""
    untyped: Any = model
    found: nn.Module = untyped.lm_head
    return found


def logits_of(
    model: nn.Module, ids: Sequence[int], edits: Sequence[tuple[nn.Module, Sequence[int], Edit]] = ()
) -> Tensor:
    """Logits [S, V] of one unpadded prompt; an edit replaces a module's output at some positions."""
    with ExitStack() as stack:
        for module, positions, edit in edits:

            def hook(
                _: nn.Module, __: Any, output: Any, positions: Sequence[int] = positions, edit: Edit = edit
            ) -> Any:
                hidden = output[0] if isinstance(output, tuple) else output
                rows = [edit(hidden[0, i]) if i in positions else hidden[0, i] for i in range(hidden.shape[1])]
                new = torch.stack(rows)[None]
                return (new, *output[1:]) if isinstance(output, tuple) else new

            stack.callback(module.register_forward_hook(hook).remove)
        logits: Tensor = model(torch.tensor([list(ids)])).logits[0]
        return logits


@torch.no_grad()
def activation(model: nn.Module, ids: Sequence[int], module: nn.Module) -> Tensor:
    """Output [S, d] of a module for one unpadded prompt."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output)[0].clone())

    handle = module.register_forward_hook(hook)
    try:
        model(torch.tensor([list(ids)]))
    finally:
        handle.remove()
    return seen[-1]


def prompts(lengths: Sequence[int], seed: int = 0, vocabulary: int = 1000) -> list[list[int]]:
    """Random prompts of these lengths, never token 0 (it pads)."""
    draw = random.Random(seed)
    return [[draw.randrange(1, vocabulary) for _ in range(n)] for n in lengths]


def padded(rows: Sequence[Sequence[int]], side: PadSide, extra: int = 0, fill: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask of ragged rows, padded on one side to the longest and ``extra`` more."""
    width = max(len(row) for row in rows) + extra
    ids, mask = torch.full((len(rows), width), fill), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        ids[i, start : start + len(row)] = torch.tensor(list(row))
        mask[i, start : start + len(row)] = 1
    return ids, mask


def tokens(rows: Sequence[Sequence[int]], side: PadSide, numbers: Sequence[int] | None = None) -> Tokens:
    """Ragged rows as padded tokens; ``numbers`` are their prompts'."""
    ids, mask = padded(rows, side)
    return Tokens(ids, mask, None if numbers is None else torch.tensor(list(numbers)))


@dataclass
class Pairs:
    """Pairs of prompts, with positions counted among each prompt's own tokens.

    ``base_at[row][placement]`` and ``source_at[row][placement]`` are lists of positions, ``active[row][placement]``
    says whether the row intervenes there.
    """

    bases: list[list[int]]
    sources: list[list[int]]
    base_at: list[list[list[int]]]
    source_at: list[list[list[int]]]
    active: list[list[bool]] | None = None

    def batch(
        self,
        side: PadSide,
        numbers: tuple[Sequence[int], Sequence[int]] | None = None,
        candidates: Tensor | None = None,
    ) -> Batch:
        """The typed batch; ``numbers`` are the prompts' places in the pool, of bases and sources."""
        base = tokens(self.bases, side, None if numbers is None else numbers[0])
        source = tokens(self.sources, side, None if numbers is None else numbers[1])
        rows, placements = len(self.bases), len(self.base_at[0])
        n = max(len(at) for row in self.base_at for at in row)
        base_positions = torch.zeros(rows, placements, n, dtype=torch.long)
        source_positions, there = base_positions.clone(), torch.zeros(rows, placements, n, dtype=torch.bool)
        for i in range(rows):
            for p in range(placements):
                for j, (b, s) in enumerate(zip(self.base_at[i][p], self.source_at[i][p], strict=True)):
                    left = side == "left"
                    base_positions[i, p, j] = b + (base.ids.shape[1] - len(self.bases[i]) if left else 0)
                    source_positions[i, p, j] = s + (source.ids.shape[1] - len(self.sources[i]) if left else 0)
                    there[i, p, j] = True
        active = torch.ones(rows, placements, dtype=torch.bool) if self.active is None else torch.tensor(self.active)
        candidates = torch.tensor([[[5], [6]]]).repeat(rows, 1, 1) if candidates is None else candidates
        nought = torch.zeros(rows, dtype=torch.long)
        return Batch(
            base=base,
            sources=(source,),
            active=active,
            source_of=torch.zeros(rows, placements, dtype=torch.long),
            base_positions=base_positions,
            source_positions=source_positions,
            position_mask=there,
            labels=candidates[:, 0],
            candidates=candidates,
            label=nought,
            base_label=nought,
            flipped=torch.zeros(rows, dtype=torch.bool),
            variable=nought,
            rows=torch.arange(rows),
        )

    def edits(
        self, model: nn.Module, row: int, modules: Sequence[nn.Module], rotations: Sequence[Tensor | None]
    ) -> list[tuple[nn.Module, Sequence[int], Edit]]:
        """The edits of one row by hand: a swap in the columns of R, or of the whole vector where R is None."""
        found: list[tuple[nn.Module, Sequence[int], Edit]] = []
        for p, (module, rotation) in enumerate(zip(modules, rotations, strict=True)):
            if self.active is not None and not self.active[row][p]:
                continue
            source = activation(model, self.sources[row], module)
            for b, s in zip(self.base_at[row][p], self.source_at[row][p], strict=True):
                found.append((module, [b], swap(source[s], rotation)))
        return found

    def logits(
        self, model: nn.Module, modules: Sequence[nn.Module], rotations: Sequence[Tensor | None] | None
    ) -> Tensor:
        """Last-token logits [B, V] by hand, row after row; ``rotations=None`` leaves the base unedited."""
        rows = []
        for i, base in enumerate(self.bases):
            edits = [] if rotations is None else self.edits(model, i, modules, rotations)
            rows.append(logits_of(model, base, edits)[-1])
        return torch.stack(rows)


def swap(source: Tensor, rotation: Tensor | None) -> Edit:
    """``b + R Rᵀ (s − b)`` for one vector, or ``s``."""
    if rotation is None:
        return lambda base: source
    return lambda base: base + rotation @ (rotation.T @ (source - base))


def relative(found: Tensor, expected: Tensor) -> float:
    """max |difference| over max |expected|; infinite where the shapes differ."""
    if found.shape != expected.shape or not torch.isfinite(found).all():
        return float("inf")
    with torch.no_grad():
        return float((found - expected).abs().max() / expected.abs().max())


def hooks_of(model: nn.Module) -> dict[str, tuple[list[Any], list[Any], Any]]:
    """Every module's forward hooks, pre-hooks and replaced ``forward``."""
    return {
        name: (
            list(module._forward_hooks.items()),
            list(module._forward_pre_hooks.items()),
            module.__dict__.get("forward"),
        )
        for name, module in model.named_modules()
    }


def ignored(rows: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Candidates [B, C, T] of ragged token lists, ``IGNORED`` behind the last token and for missing candidates."""
    c, t = max(len(row) for row in rows), max(len(answer) for row in rows for answer in row)
    found = torch.full((len(rows), c, t), IGNORED)
    for i, row in enumerate(rows):
        for j, answer in enumerate(row):
            found[i, j, : len(answer)] = torch.tensor(list(answer))
    return found


def gram_schmidt(free: Tensor) -> Tensor:
    """The orthonormal basis of the columns of ``free``, each along what is new in its column; differentiable, fp64."""
    columns: list[Tensor] = []
    for column in free.double().unbind(1):
        for _ in range(2):  # twice is enough for full rank in fp64
            for other in columns:
                column = column - other * (other @ column)
        columns.append(column / column.norm())
    return torch.stack(columns, 1).to(free.dtype)
