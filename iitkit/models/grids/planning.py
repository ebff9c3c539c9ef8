"""Which units are run together: alike in how many tokens they run, so that little is padded, and many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iitkit.models.grids.table import Units

PASS = {"cpu": 24, "cuda": 2048}
"""What one pass through a layer costs beside its tokens, in tokens: reading the weights, and the calls."""

MOST = {"cpu": 1024, "cuda": 65536}
"""Tokens that are run at once: on a CPU more are no quicker, and less is lost when the user interrupts."""


@dataclass(frozen=True)
class Limits:
    """What bounds a batch, and what it costs.

    Args:
        layers: number of layers.
        most: tokens at most (one unit may have more).
        overhead: what a pass through a layer costs beside its tokens, in tokens.
        memory: bytes at most.
        token: bytes of a token that is run.
        past: bytes of a token before it.
        head: what the head costs for one token, in tokens × layers.
        growing: whether units of later layers may join a batch on its way.
    """

    layers: int
    most: int
    overhead: int
    memory: float
    token: float
    past: float
    head: float
    growing: bool

    def units(self, width: int, before: int) -> int:
        """Return how many units of so many tokens may be run at once."""
        room = self.memory / (width * self.token + (width + before) * self.past)
        return max(1, min(self.most // width, int(room)))

    def work(self, tokens: int, passes: int, reads: int) -> float:
        """Return what a batch costs, in tokens × layers."""
        return tokens + self.overhead * passes + self.head * reads


def batches(units: Units, limits: Limits) -> Iterator[Tensor]:
    """Yield units that are run together, by index, those that join at lower layers first."""
    width = units.total - units.before
    for low, high in _grouped(width, units.join, limits):
        group = ((width >= low) & (width <= high)).nonzero()[:, 0]
        # a cell's rows stay together, so that it is done early
        group = group[units.cell[group].argsort(stable=True)]
        group = group[units.join[group].argsort(stable=True)]
        count = limits.units(high, int(units.before[group].max()))
        if limits.growing:
            yield from torch.split(group, _even(len(group), count))
        else:
            _, sizes = torch.unique_consecutive(units.join[group], return_counts=True)
            for part in torch.split(group, sizes.tolist()):
                yield from torch.split(part, _even(len(part), count))


def steps(units: Units, limits: Limits) -> tuple[int, int]:
    """Return what a batch runs: tokens × layers, padding included, and passes through a layer."""
    width = int((units.total - units.before).max())
    return width * int((limits.layers - units.join).sum()), limits.layers - int(units.join.min())


def _even(n: int, most: int) -> list[int]:
    """Return sizes of parts that hold ``most`` at most, as alike as can be."""
    parts = -(-n // most)
    return [n * (i + 1) // parts - n * i // parts for i in range(parts)]


def _grouped(width: Tensor, join: Tensor, limits: Limits) -> list[tuple[int, int]]:
    """Return ranges of widths whose units run together: the least work, what is padded and the passes included."""
    if not len(width):
        return []
    layers = limits.layers
    widths, of = torch.unique(width, return_inverse=True)
    n = len(widths)
    work: Sequence[int] = torch.zeros(n, dtype=torch.long).scatter_add(0, of, layers - join).tolist()
    first: Sequence[int] = torch.full((n,), layers).scatter_reduce(0, of, join, "amin").tolist()
    sizes: Sequence[int] = widths.tolist()
    best = [(0, 0)]  # of the first i widths: cost, and where the last group begins
    for stop in range(1, n + 1):
        found: tuple[int, int] | None = None
        tokens, lowest = 0, layers
        for start in range(stop - 1, max(-1, stop - 65), -1):  # groups of more widths hardly pay
            tokens, lowest = tokens + work[start], min(lowest, first[start])
            cost = best[start][0] + tokens * sizes[stop - 1] + limits.overhead * (layers - lowest)
            if found is None or cost < found[0]:
                found = (cost, start)
        assert found is not None
        best.append(found)
    groups, stop = [], n
    while stop:
        start = best[stop][1]
        groups.append((sizes[start], sizes[stop - 1]))
        stop = start
    return groups
