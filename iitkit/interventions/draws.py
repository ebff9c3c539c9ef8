"""Random numbers that never touch the global generator: the same in every process, and again after a resume."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ROWS = 64
"""Rows of a table that are drawn together: whatever is asked for, row i is the same."""

_64 = 2**64 - 1


def seeded(*numbers: int) -> torch.Generator:
    """Return a generator on the CPU whose seed mixes all the numbers (splitmix64)."""
    state = 0
    for value in numbers:
        state = (state + value + 0x9E3779B97F4A7C15) & _64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _64
        state ^= state >> 31
    return torch.Generator().manual_seed(state >> 1)


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator | None) -> Tensor:
    """Return numbers drawn evenly from [−bound, bound)."""
    return (torch.rand(shape, generator=generator, dtype=torch.float32) * 2 - 1) * bound


def first_step(generator: torch.Generator | None) -> Tensor:
    """Return where a counter of draws begins: apart for each of those that one generator starts, 0 without one."""
    if generator is None:
        return torch.zeros((), dtype=torch.int64)
    return torch.randint(2**40, (), generator=generator)


def rows(seed: int, start: int, count: int, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
    """Return rows ``start`` … ``start + count`` of a seeded stream, of which ``draw`` draws :data:`ROWS` at a time."""
    first, last = start // ROWS, -(-(start + count) // ROWS)
    blocks = torch.cat([draw(seeded(seed, block)) for block in range(first, max(last, first + 1))])
    return blocks[start - first * ROWS :][:count]


class Table:
    """The first rows of a seeded stream, as many as are asked for, kept for the next call.

    Args:
        seed: of the stream.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._rows: Tensor | None = None

    def first(self, count: int, device: torch.device, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Return the first ``count`` rows on a device; ``draw`` is the same in every call."""
        have = 0 if self._rows is None else len(self._rows)
        if self._rows is None or have < count or self._rows.device != device:
            with torch.inference_mode(False):  # what is kept must serve outside inference mode too
                wanted = max(count, 2 * have) if have < count else have
                self._rows = rows(self.seed, 0, wanted, draw).to(device)
        return self._rows[:count]
