"""The rows of the contract: every named intervention, and every space, mask and edit; how tests build and run them.

A new intervention is one row of ``NAMED``, a new space, mask or edit one row of its table.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from iitkit.interventions import Intervention, SiteInfo

D = 11
HEADS = 4  # no divisor of the width
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Spec = dict[str, Any]

SPACES: dict[str, tuple[Spec, set[str]]] = {
    "Identity": ({"name": "Identity"}, set()),
    "Rotation": ({"name": "Rotation"}, {"free"}),
    "LowRankRotation": ({"name": "LowRankRotation", "rank": 4}, {"free"}),
    "frozen": ({"name": "LowRankRotation", "rank": 4, "frozen": True}, set()),
    "FreeProjection": ({"name": "FreeProjection", "rank": 4}, {"weight"}),
    "PCA": ({"name": "PCA", "rank": 4}, set()),
    "PCA standardised": ({"name": "PCA", "rank": D, "standardise": True}, set()),
    "SAE relu": ({"name": "SAE", "file": "relu"}, set()),
    "SAE jumprelu": ({"name": "SAE", "file": "jumprelu"}, set()),
    "SAE topk": ({"name": "SAE", "file": "topk"}, set()),
}
"""name: its spec and what trains in it."""
MASKS: dict[str, tuple[Spec, set[str]]] = {
    "All": ({"name": "All"}, set()),
    "Indices": ({"name": "Indices", "indices": [3, 0]}, set()),
    "Blocks": ({"name": "Blocks", "blocks": {"a": 2, "b": [1]}}, set()),
    "Boundary": ({"name": "Boundary", "temperature": 1.5}, {"share"}),
    "Sigmoid": ({"name": "Sigmoid"}, {"gates"}),
    "HardConcrete": ({"name": "HardConcrete"}, {"gates"}),
}
EDITS: dict[str, tuple[Spec, set[str]]] = {
    "Swap": ({"name": "Swap"}, set()),
    "Add a vector": ({"name": "Add"}, {"vector"}),
    "Add the source": ({"name": "Add", "take": "source"}, set()),
    "Subtract a vector": ({"name": "Subtract"}, {"vector"}),
    "Subtract the source": ({"name": "Subtract", "take": "source"}, set()),
    "Scale": ({"name": "Scale", "factor": 3.0}, set()),
    "Zero": ({"name": "Zero"}, set()),
    "Constant": ({"name": "Constant", "value": 0.7}, set()),
    "Mean": ({"name": "Mean"}, set()),
    "Resample": ({"name": "Resample", "samples": 5}, set()),
    "Noise": ({"name": "Noise", "sigma": 2.0}, set()),
    "Noise of data": ({"name": "Noise", "times_std": 3.0}, set()),
    "Collect": ({"name": "Collect"}, set()),
    "Skip": ({"name": "Skip"}, set()),
    "Affine": ({"name": "Affine", "activation": "tanh"}, {"weight", "bias"}),
    "Affine constant": ({"name": "Affine", "constant": True, "add": True}, {"bias"}),
    "LowRankUpdate": ({"name": "LowRankUpdate", "rank": 2}, {"A", "B"}),
    "LowRankUpdate dropout": ({"name": "LowRankUpdate", "rank": 2, "dropout": 0.4}, {"A", "B"}),
}
NAMED: dict[str, tuple[Spec, set[str]]] = {
    "Vanilla": ({}, set()),
    "Vanilla features": ({"features": [0, 4]}, set()),
    "RotatedSubspace": ({"coordinates": 3}, {"space.free"}),
    "RotatedSubspace blocks": ({"coordinates": {"a": 2, "b": [9, 4]}}, {"space.free"}),
    "RotatedSubspace frozen": ({"coordinates": [1, 5], "frozen": True}, set()),
    "LowRankSubspace": ({"rank": 1}, {"space.free"}),
    "LowRankSubspace rank 5": ({"rank": 5}, {"space.free"}),
    "LowRankSubspace rank = width": ({"rank": D}, {"space.free"}),
    "LowRankSubspace frozen": ({"rank": 3, "frozen": True}, set()),
    "BoundlessSubspace frozen": ({"temperature": 1.5, "share": 0.3, "frozen": True}, {"mask.share"}),
    "BoundlessSubspace": ({"temperature": 1.5}, {"space.free", "mask.share"}),
    "MaskedNeurons": ({}, {"mask.gates"}),
    "MaskedNeurons hard concrete": ({"gate": "hard_concrete", "temperature": 0.5}, {"mask.gates"}),
    "MaskedNeurons zero": ({"edit": "zero"}, {"mask.gates"}),
    "MaskedNeurons mean": ({"edit": "mean"}, {"mask.gates"}),
    "MaskedNeurons resample": ({"edit": "resample"}, {"mask.gates"}),
    "MaskedSubspace": ({}, {"space.free", "mask.gates"}),
    "MaskedSubspace rank 4": ({"rank": 4, "gate": "hard_concrete"}, {"space.free", "mask.gates"}),
    "MaskedSubspace frozen": ({"rank": 4, "frozen": True, "edit": "mean"}, {"mask.gates"}),
    "PCASubspace": ({"rank": 4}, set()),
    "PCASubspace some": ({"rank": 6, "standardise": True, "components": [5, 1]}, set()),
    "SAEFeatures": ({"file": "relu"}, set()),
    "SAEFeatures some": ({"file": "jumprelu", "features": [6, 2], "edit": "zero"}, set()),
    "SAEFeatures gated": ({"file": "topk", "gate": "sigmoid"}, {"mask.gates"}),
    "Addition": ({}, {"edit.vector"}),
    "Addition source": ({"take": "source", "features": 4}, set()),
    "Subtraction": ({}, set()),
    "Subtraction vector": ({"take": "vector"}, {"edit.vector"}),
    "Zero": ({"features": 3}, set()),
    "Mean": ({}, set()),
    "Scale": ({"factor": -1.0}, set()),
    "Constant": ({"value": [0.5 * i for i in range(D)]}, set()),
    "Resample": ({"samples": 4, "seed": 3}, set()),
    "Noise": ({"sigma": 0.5}, set()),
    "Noise of data": ({"times_std": 3.0}, set()),
    "Collect": ({"features": [2]}, set()),
    "Skip": ({}, set()),
    "LoRA": ({}, {"edit.A", "edit.B"}),
    "LoRA dropout": ({"rank": 2, "alpha": 16.0, "dropout": 0.3}, {"edit.A", "edit.B"}),
    "LoReFT": ({}, {"space.free", "edit.weight", "edit.bias"}),
    "LoReFT gelu": ({"rank": 2, "activation": "gelu"}, {"space.free", "edit.weight", "edit.bias"}),
    "NoReFT": ({}, {"space.weight", "edit.weight", "edit.bias"}),
    "ConsReFT": ({}, {"space.free", "edit.bias"}),
    "LoBiReFT": ({"rank": 1}, {"space.free", "edit.bias"}),
    "DiReFT": ({}, {"space.free", "edit.weight", "edit.bias"}),
    "NoDiReFT": ({"activation": "sigmoid"}, {"space.weight", "edit.weight", "edit.bias"}),
    "Composed": ({}, set()),
}
"""name of the class (and what is special): its options and what trains in it."""


def spec_of(row: str) -> Spec:
    """A row's spec; ``space | mask | edit`` is a row of each table."""
    if "|" not in row:
        return {"name": row.split(" ")[0], **NAMED[row][0]}
    space, mask, edit = row.split(" | ")
    return {"name": "Composed", "space": SPACES[space][0], "mask": MASKS[mask][0], "edit": EDITS[edit][0]}


def trains(row: str) -> set[str]:
    if "|" not in row:
        return NAMED[row][1]
    tables = zip(("space", "mask", "edit"), (SPACES, MASKS, EDITS), row.split(" | "), strict=True)
    return {f"{part}.{name}" for part, table, key in tables for name in table[key][1]}


GROUPS: dict[str, list[str]] = {
    **{row: [row] for row in NAMED},
    **{f"{s} | {m}": [f"{s} | {m} | {e}" for e in EDITS] for s, m in itertools.product(SPACES, MASKS)},
}
"""A named row alone, or a space and a mask with all edits."""


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


FILES: dict[str, str] = {}
"""Kind of a sparse autoencoder: its file."""


def placed(value: Any) -> Any:
    """A spec with the files' paths."""
    if isinstance(value, dict):
        return {key: FILES[x] if key == "file" else placed(x) for key, x in value.items()}
    return value


def build(row: str, seed: int = 5, site: SiteInfo | None = None) -> Intervention:
    generator = torch.Generator().manual_seed(seed)
    site = site or SiteInfo(D, input_width=D, heads=HEADS)
    return Intervention.from_spec(placed(spec_of(row)), replace(site, generator=generator))


def fit(made: Intervention) -> Intervention:
    passes = 0
    while made.unfitted:
        for part in (3 * normal(80, D, seed=21) + 5).split(7):  # type: ignore[no-untyped-call]
            made.observe(part)
        made.finish()
        passes += 1
        assert passes < 3
    return made


def make(row: str, seed: int = 5) -> Intervention:
    """Fitted, and moved away from the start, where many gradients are 0."""
    made = fit(build(row, seed))
    with torch.no_grad():
        for i, (name, parameter) in enumerate(made.named_parameters()):
            if name != "mask.share":
                step = normal(*parameter.shape, seed=30 + i + seed)
                parameter.add_(0.4 * step.sign() + 0.1 * step)
    return made


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Base, source and module input."""
    base, source, inputs = (3 * normal(*shape, D, seed=seed, dtype=torch.float64) + 5 for seed in (1, 2, 3))
    return base.to(dtype), source.to(dtype), inputs.to(dtype)


def run(made: Intervention, given: tuple[Tensor, Tensor, Tensor], strength: float = 1.0) -> Tensor:
    base, source, inputs = given
    found: Tensor = made(
        base,
        source if made.needs_source else None,
        strength,
        inputs=inputs if made.needs_input else None,
        block=made.blocks[-1] if made.blocks else None,
    )
    return found


def far(found: Tensor, expected: Tensor) -> float:
    """max |difference| over max |expected|, or over 1 where little is left: the inputs are of that size or more."""
    assert found.shape == expected.shape
    with torch.no_grad():
        return float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1.0))


def same(found: Tensor, expected: Tensor) -> bool:
    return found.dtype == expected.dtype and torch.equal(found, expected)


def by_index(row: str) -> bool:
    """Whether what a row of a batch gets depends on its index."""
    return "Noise" in row or "resample" in row.lower()
