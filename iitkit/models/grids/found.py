"""What a grid gives: parts as they are done, the whole table, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from iitkit.errors import IITKitError

Reduce = Callable[[Tensor], Tensor]
"""Makes of logits [n, B, (T,) vocabulary] of some cells what is kept of them, [n, …]; looks at each by itself."""


@dataclass(frozen=True)
class Part:
    """Some cells that are done.

    Args:
        cells: their numbers.
        values: logits [n, B, (T,) vocabulary], or what the reducer made of them; of cells that failed nothing.
        failed: number → what went wrong, in one line; these are not in ``cells``.
        filled: whether they were filled in from the unedited run, as they cannot change anything.
    """

    cells: Sequence[int]
    values: Tensor
    failed: Mapping[int, str] = field(default_factory=dict)
    filled: bool = False

    def numbered(self, numbers: Sequence[int]) -> Part:
        """Return it with other numbers of the cells: ``numbers[i]`` for i."""
        failed = {numbers[i]: why for i, why in self.failed.items()}
        return Part([numbers[i] for i in self.cells], self.values, failed, self.filled)


@dataclass(frozen=True)
class Progress:
    """How far a grid is.

    Args:
        done: cells that are done, failed ones too.
        cells: all cells.
        share: share of the work that is done, 0 to 1.
        left: seconds left, from the speed so far; None before anything was run.
    """

    done: int
    cells: int
    share: float
    left: float | None


@dataclass(frozen=True)
class Cost:
    """What a grid takes, known before it is run.

    Args:
        cells: all cells.
        filled: how many of them cannot change anything.
        steps: tokens × layers that are run, padding included.
        plain: tokens × layers of one hooked forward per cell.
        seconds: about how long, from the speed of what this engine ran so far.
        memory: about how many bytes at most, beside the network and what runs keep.
        mode: how it is run: ``tokens``, ``layers`` or ``plain``.
    """

    cells: int
    filled: int
    steps: int
    plain: int
    seconds: float
    memory: int
    mode: str


def total(costs: Sequence[Cost]) -> Cost:
    """Return what several grids take, one after the other."""
    first = costs[0]
    return Cost(
        cells=sum(cost.cells for cost in costs),
        filled=sum(cost.filled for cost in costs),
        steps=sum(cost.steps for cost in costs),
        plain=sum(cost.plain for cost in costs),
        seconds=sum(cost.seconds for cost in costs),
        memory=max(cost.memory for cost in costs),
        mode=first.mode,
    )


@dataclass
class Found:
    """The table of a grid.

    Args:
        values: what the reducer made of each cell's logits, [cells, …]; NaN where a cell failed or was not reached.
        base: the same of the unedited run, […].
        failed: number of a failed cell → what went wrong, in one line.
        done: which cells were reached, [cells]; failed ones count.
        filled: which cells were filled in without running, [cells].
        interrupted: whether Ctrl-C ended it early.
    """

    values: Tensor
    base: Tensor
    failed: dict[int, str]
    done: Tensor
    filled: Tensor
    interrupted: bool = False

    @staticmethod
    def empty(cells: int, base: Tensor) -> Found:
        """Return a table of cells that are not reached yet."""
        wide = base if base.is_floating_point() else base.double()
        values = wide.new_full((cells, *base.shape), torch.nan)
        return Found(values, base, {}, torch.zeros(cells, dtype=torch.bool), torch.zeros(cells, dtype=torch.bool))

    def add(self, part: Part) -> None:
        """Enter a part."""
        if len(part.cells):
            which = torch.tensor(list(part.cells))
            self.values[which] = part.values.to(self.values)
            self.done[which], self.filled[which] = True, part.filled
        for number, why in part.failed.items():
            self.failed[number], self.done[number] = why, True


def first_line(error: Exception) -> str:
    """Say what went wrong in one line."""
    said = str(error).strip().splitlines()
    return said[0] if said and isinstance(error, IITKitError) else ": ".join([type(error).__name__, *said[:1]])
