"""What is measured: the cells, the prompts and pairs of each, and what each must reach."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

BATCH, PROMPTS, BATCHES = 16, 64, 8
"""Pairs in a batch, unique prompts, and different batches that the steps go through in turn."""

LAYERS = {"gpt2": (6,), "smollm2": (3, 12, 24)}
MIDDLE = {("gpt2", 6), ("smollm2", 12)}
POSITIONS = ("last", "middle", "third")
KINDS = ("rank16", "rank1", "full", "boundless")


@dataclass(frozen=True)
class Cell:
    """One site of one network, with prompts of one length and one intervention.

    Args:
        model: key of :data:`networks.NETWORKS`.
        layer: the site is this block's output.
        at: ``last`` token, ``middle`` (n // 2) or the end of the first ``third`` (n // 3) of the prompt.
        tokens: length n of every prompt.
        kind: ``rank16``, ``rank1``, ``full`` (d×d rotation, all coordinates swapped) or ``boundless``.
    """

    model: str
    layer: int
    at: str
    tokens: int
    kind: str = "rank16"

    @property
    def name(self) -> str:
        return f"{self.model} layer {self.layer} {self.at} {self.tokens} {self.kind}"

    @property
    def position(self) -> int:
        return {"last": self.tokens - 1, "middle": self.tokens // 2, "third": self.tokens // 3}[self.at]

    @property
    def rank(self) -> int | None:
        """The subspace's dimension; None for a whole rotation."""
        return int(self.kind.removeprefix("rank")) if self.kind.startswith("rank") else None

    def bounds(self) -> dict[str, float]:
        """What must be reached: least ratios to the peer and to the plain run, most fill time per plain forward."""
        found = {"fill": 1.10}
        mid = (self.model, self.layer) in MIDDLE
        if self.at == "last" and mid:
            found["plain"] = 6.0
            if self.kind in ("rank1", "rank16"):
                found["peer"] = 40.0 if self.tokens >= 96 else 12.0
            elif self.kind == "full":
                found["peer"] = 12.0
        elif self.at == "middle" and self.layer >= 6:
            found["peer"] = 4.0
        elif self.at in ("middle", "third") and self.layer < 6:
            found["peer"] = 2.5
        return found

    def plain(self) -> dict[str, Any]:
        """As plain values, for a worker."""
        return {**asdict(self), "position": self.position, "rank": self.rank}


def default_cells() -> list[Cell]:
    """The table of a run without options."""
    found = [Cell(m, layer, at, 24) for m in LAYERS for layer in LAYERS[m] for at in POSITIONS]
    found += [Cell("gpt2", 6, "last", 24, kind) for kind in KINDS[1:]]
    found += [Cell("smollm2", 12, "last", 24, "full")]
    found += [Cell("gpt2", 6, "last", 96), Cell("gpt2", 6, "middle", 96)]
    return [*found, Cell("smollm2", 12, "last", 96), Cell("smollm2", 3, "third", 96)]


def quick_cells() -> list[Cell]:
    """A handful, one of each sort."""
    return [
        Cell("gpt2", 6, "last", 24),
        Cell("gpt2", 6, "middle", 24),
        Cell("gpt2", 6, "last", 24, "full"),
        Cell("smollm2", 3, "third", 24),
        Cell("smollm2", 12, "last", 24),
    ]


def all_cells() -> list[Cell]:
    """Every combination that the models, sites, lengths and interventions make."""
    return [
        Cell(m, layer, at, tokens, kind)
        for tokens, kind in product((24, 96), KINDS)
        for m in LAYERS
        for layer, at in product(LAYERS[m], POSITIONS)
    ]


def gpu_cells() -> list[Cell]:
    """The table on a GPU, in bf16."""
    sites = [("gpt2", 6), ("llama1b", 8)]
    found = [Cell(m, layer, at, tokens) for m, layer in sites for tokens in (24, 96) for at in POSITIONS]
    return found + [Cell(m, layer, "last", 24, kind) for m, layer in sites for kind in KINDS[1:]]


def plan(cell: Cell, vocabulary: int) -> dict[str, Any]:
    """The prompts and the batches of a cell, the same in every process.

    Prompts are random, behind token 0, which SmolLM2 needs at the start. The first two batches hold each of the pool's
    prompts once, the others are random pairs of them. ``fresh`` prompts are outside the pool: they warm up what is
    filled later with the pool.
    """
    draw = random.Random(f"{cell.model} {cell.tokens}")

    def prompts(count: int) -> list[list[int]]:
        return [[0, *(draw.randrange(3, vocabulary) for _ in range(cell.tokens - 1))] for _ in range(count)]

    def batches() -> Iterator[dict[str, list[int]]]:
        once = draw.sample(range(PROMPTS), PROMPTS)
        for i in range(BATCHES):
            rows = once[2 * BATCH * i : 2 * BATCH * (i + 1)] or draw.sample(range(PROMPTS), 2 * BATCH)
            labels = [draw.randrange(3, vocabulary) for _ in range(BATCH)]
            yield {"base": rows[:BATCH], "source": rows[BATCH:], "labels": labels}

    fresh = {"base": [PROMPTS, PROMPTS + 1], "source": [PROMPTS + 2, PROMPTS + 3], "labels": [3, 4]}
    return {"pool": prompts(PROMPTS + 4), "batches": list(batches()), "fresh": fresh, "unique": PROMPTS}
