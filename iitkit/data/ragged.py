"""Rows of different lengths as two flat arrays: what a hundred thousand prompts are kept in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from iitkit.causal.variables import Codes

Padding = Literal["left", "right"]
Integers = npt.NDArray[np.integer[Any]]


class Ragged:
    """Rows of integers; reads like a list of lists.

    >>> rows = Ragged.of([[7, 8], [], [9]])
    >>> rows[0], rows[-1], len(rows)
    ([7, 8], [9], 3)
    >>> rows.padded([2, 0], fill=0, side="left")[0].tolist()
    [[0, 9], [7, 8]]

    Args:
        flat: all rows, one behind the other.
        starts: where each row begins, and the end, [rows + 1].
    """

    def __init__(self, flat: Integers, starts: Codes) -> None:
        self.flat, self.starts = flat, starts

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        """Return lists as ragged rows."""
        flat = np.fromiter((item for row in rows for item in row), np.int32)
        return cls(flat, ends_of(np.fromiter((len(row) for row in rows), np.int64, len(rows))))

    @classmethod
    def between(cls, lo: Codes, hi: Codes) -> Ragged:
        """Return the integers of ranges, several to a row: from ``lo`` up to and without ``hi``, [rows, R] each."""
        counts = (hi - lo).clip(min=0).astype(np.int64)
        flat = np.repeat(lo, counts.ravel()) if counts.size else np.zeros(0, np.int64)
        flat = flat + steps(counts.ravel())
        return cls(flat.astype(np.int32), ends_of(counts.sum(1)))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> list[int]:
        start, stop = self._bounds(row)
        found: list[int] = self.flat[start:stop].tolist()
        return found

    def __iter__(self) -> Iterator[list[int]]:
        return (self[row] for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ragged):
            return np.array_equal(self.starts, other.starts) and np.array_equal(self.flat, other.flat)
        return NotImplemented if not isinstance(other, Sequence) else list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def _bounds(self, row: int) -> tuple[int, int]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        return int(self.starts[row]), int(self.starts[row + 1])

    @property
    def lengths(self) -> Codes:
        """Length of each row, [rows]."""
        return np.diff(self.starts)

    def taken(self, rows: Codes) -> Ragged:
        """Return the given rows."""
        flat, starts = gathered(self.flat, self.starts, rows)
        return Ragged(flat, starts)

    def padded(
        self, rows: Sequence[int] | Codes, fill: int, side: Padding = "right"
    ) -> tuple[Codes, npt.NDArray[np.bool_]]:
        """Return rows as one array, [len(rows), longest of them], and which of its places are real."""
        chosen = np.asarray(rows, dtype=np.int64)
        begins, lengths = self.starts[chosen], self.starts[chosen + 1] - self.starts[chosen]
        width = int(lengths.max(initial=0))
        columns = np.arange(width)[None] - (width - lengths[:, None] if side == "left" else 0)
        real = (columns >= 0) & (columns < lengths[:, None])
        if not len(self.flat):
            return np.full(real.shape, fill, dtype=np.int64), real
        found = self.flat[np.where(real, begins[:, None] + columns, 0)]
        return np.where(real, found, fill).astype(np.int64), real


class Strings:
    """Many texts as the bytes of all of them; reads like a list.

    >>> texts = Strings.of(["a", "", "é"])
    >>> texts[2], len(texts), list(texts.taken([2, 0]))
    ('é', 3, ['é', 'a'])

    Args:
        flat: UTF-8, one text behind the other.
        starts: where each begins, and the end, [texts + 1].
    """

    def __init__(self, flat: npt.NDArray[np.uint8], starts: Codes) -> None:
        self.flat, self.starts = flat, starts

    @classmethod
    def of(cls, texts: Sequence[str]) -> Strings:
        """Return texts as bytes."""
        encoded = [text.encode() for text in texts]
        flat = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        return cls(flat, ends_of(np.fromiter(map(len, encoded), np.int64, len(encoded))))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> str:
        if not -len(self) <= row < len(self):
            raise IndexError(f"text {row} of {len(self)}")
        row %= len(self)
        return self.flat[self.starts[row] : self.starts[row + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    def taken(self, rows: Sequence[int] | Codes) -> Strings:
        """Return the given texts."""
        flat, starts = gathered(self.flat, self.starts, np.asarray(rows, dtype=np.int64))
        return Strings(flat, starts)


def ends_of(lengths: Codes) -> Codes:
    """Return where rows of these lengths begin, and the end, [rows + 1]."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def steps(lengths: Codes) -> Codes:
    """Return 0, 1, … for every row of the given length, one row behind the other."""
    starts = ends_of(lengths)
    return np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)


def gathered(flat: npt.NDArray[Any], starts: Codes, rows: Codes) -> tuple[npt.NDArray[Any], Codes]:
    """Return the given rows of a flat array, one behind the other, and their starts."""
    begins, lengths = starts[rows], starts[rows + 1] - starts[rows]
    return flat[np.repeat(begins, lengths) + steps(lengths)], ends_of(lengths)
