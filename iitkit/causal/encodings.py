"""Inputs that are no text: sequences of integers, vectors and images, each from the values of some variables."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from iitkit.causal.template import Template
from iitkit.errors import IITKitError, choices, did_you_mean

Columns = Mapping[str, Sequence[Hashable]]
"""Slot → its values, n each."""


class Encoding(Protocol):
    """How the values of some variables become a network's input."""

    @property
    def slots(self) -> list[str]:
        """The variables that are read, each a span of the input."""

    @property
    def spans(self) -> dict[str, tuple[int, int]]:
        """Slot → first place and one behind the last in a row; empty where an input has no places."""

    def bind(self, domains: Mapping[str, Sequence[Hashable]], answers: Sequence[Hashable]) -> None:
        """Learn the slots' domains and the output's values; called when the causal model is compiled."""

    def encode(self, columns: Columns) -> npt.NDArray[Any]:
        """Return the inputs, [n, …]."""

    def label(self, value: Hashable) -> int:
        """Return the network's class (or symbol) for an output's value."""


class _Classes:
    """Labels are the output's values, numbered in the order of its domain."""

    def __init__(self) -> None:
        self._classes: dict[tuple[type, Hashable], int] = {}

    def bind(self, domains: Mapping[str, Sequence[Hashable]], answers: Sequence[Hashable]) -> None:
        """See :class:`Encoding`."""
        self._classes = {(type(value), value): i for i, value in enumerate(answers)}

    def label(self, value: Hashable) -> int:
        """See :class:`Encoding`."""
        if (type(value), value) not in self._classes:
            raise IITKitError(f"output has no value {value!r}: its values are {choices(v for _, v in self._classes)}")
        return self._classes[type(value), value]


class Symbols:
    """Sequences of integers: the pieces of a template between blanks, literals and slots, are one symbol each.

    >>> sums = Symbols("{a} + {b} =")
    >>> sums.bind({"a": [0, 1], "b": [0, 1]}, answers=[0, 1, 2])
    >>> sums.vocabulary
    ['+', '=', 0, 1, 2]
    >>> sums.encode({"a": [0, 1], "b": [1, 1]}).tolist()
    [[2, 0, 3, 1], [3, 0, 3, 1]]

    Args:
        template: literals and slots with blanks between them.
        vocabulary: symbols in the order of their ids; the literals, then the slots' values, then the output's, each
            in the order in which they first stand, unless said.

    Raises:
        IITKitError: a slot that touches other text, a symbol that stands twice.
    """

    def __init__(self, template: str, vocabulary: Sequence[Hashable] | None = None) -> None:
        slots = Template(template).slots
        self.template, self.pieces = template, template.split()
        for slot in slots:
            if f"{{{slot}}}" not in self.pieces:
                raise IITKitError(f"symbols {template!r}: slot {slot!r} touches other text: put blanks around it")
        self._slots = [piece[1:-1] if piece[1:-1] in slots and piece[0] == "{" else None for piece in self.pieces]
        self.declared = vocabulary is not None
        self.vocabulary: list[Hashable] = list(vocabulary or ())
        self._ids: dict[tuple[type, Hashable], int] = {}
        for symbol in self.vocabulary:
            self._add(symbol, new=True)

    def _add(self, symbol: Hashable, new: bool = False) -> None:
        key = (type(symbol), symbol)
        if key in self._ids and new:
            raise IITKitError(f"symbols {self.template!r}: {symbol!r} stands twice in the vocabulary")
        if key not in self._ids:
            self._ids[key] = len(self._ids)
            if not new:
                self.vocabulary.append(symbol)

    @property
    def slots(self) -> list[str]:
        """See :class:`Encoding`."""
        return [slot for slot in self._slots if slot is not None]

    @property
    def spans(self) -> dict[str, tuple[int, int]]:
        """Slot → its place and the next."""
        return {slot: (i, i + 1) for i, slot in enumerate(self._slots) if slot is not None}

    def bind(self, domains: Mapping[str, Sequence[Hashable]], answers: Sequence[Hashable]) -> None:
        """See :class:`Encoding`."""
        literals = [piece for piece, slot in zip(self.pieces, self._slots, strict=True) if slot is None]
        for symbol in [*literals, *(value for slot in self.slots for value in domains[slot]), *answers]:
            if self.declared:
                self.label(symbol)
            else:
                self._add(symbol)

    def label(self, value: Hashable) -> int:
        """Return a symbol's id."""
        found = self._ids.get((type(value), value))
        if found is None:
            hint = did_you_mean(value, self.vocabulary)
            raise IITKitError(
                f"symbols {self.template!r}: {value!r} is not in the vocabulary {choices(self.vocabulary)}.{hint}"
            )
        return found

    def encode(self, columns: Columns) -> npt.NDArray[np.int64]:
        """Return the ids, [n, pieces]."""
        n = len(next(iter(columns.values())))
        rows = np.empty((n, len(self.pieces)), dtype=np.int64)
        for i, (piece, slot) in enumerate(zip(self.pieces, self._slots, strict=True)):
            rows[:, i] = self.label(piece) if slot is None else [self.label(value) for value in columns[slot]]
        return rows


class Vectors(_Classes):
    """Vectors: the slots' values, tuples of numbers, one behind the other.

    >>> pair = Vectors("w", "x")
    >>> pair.bind({"w": [(1.0, 2.0)], "x": [(3.0,)]}, answers=[False, True])
    >>> pair.encode({"w": [(1.0, 2.0)], "x": [(3.0,)]}).tolist(), pair.spans, pair.label(True)
    ([[1.0, 2.0, 3.0]], {'w': (0, 2), 'x': (2, 3)}, 1)

    Args:
        slots: the variables; a number counts as a vector of width 1.

    Raises:
        IITKitError: no slots, or one twice.
    """

    def __init__(self, *slots: str) -> None:
        super().__init__()
        if not slots or len(set(slots)) < len(slots):
            raise IITKitError(f"vectors of {choices(slots) or 'nothing'}: name one variable or more, each once")
        self._slots = list(slots)
        self._widths: dict[str, int] = {}

    @property
    def slots(self) -> list[str]:
        """See :class:`Encoding`."""
        return list(self._slots)

    @property
    def spans(self) -> dict[str, tuple[int, int]]:
        """Slot → its first feature and one behind the last; known once a value of each slot is."""
        found, start = {}, 0
        for slot in self._slots:
            if slot not in self._widths:
                return {}
            found[slot] = (start, start + self._widths[slot])
            start += self._widths[slot]
        return found

    def bind(self, domains: Mapping[str, Sequence[Hashable]], answers: Sequence[Hashable]) -> None:
        """See :class:`Encoding`."""
        super().bind(domains, answers)
        for slot in self._slots:
            if len(domains[slot]):
                self._block(slot, domains[slot])

    def _block(self, slot: str, values: Sequence[Hashable]) -> npt.NDArray[np.float32]:
        try:
            block = np.asarray(values, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise IITKitError(
                f"vectors: the values of {slot!r} are no vectors of one width ({values[0]!r}, …): give tuples"
            ) from error
        block = block.reshape(len(values), -1)
        if self._widths.setdefault(slot, block.shape[1]) != block.shape[1]:
            raise IITKitError(f"vectors: {slot!r} has width {block.shape[1]}, before {self._widths[slot]}")
        return block

    def encode(self, columns: Columns) -> npt.NDArray[np.float32]:
        """Return the vectors, [n, width]."""
        return np.concatenate([self._block(slot, columns[slot]) for slot in self._slots], axis=1)


class Images(_Classes):
    """Images drawn from the values of some variables.

    >>> dots = Images((1, 2, 2), lambda row, column: np.eye(4)[2 * row + column].reshape(1, 2, 2))
    >>> dots.slots, dots.encode({"row": [1], "column": [0]}).tolist()
    (['row', 'column'], [[[[0.0, 0.0], [1.0, 0.0]]]])

    Args:
        shape: of one image: channels, height, width.
        draw: takes one value of each slot by name, and returns an array of that shape.

    Raises:
        IITKitError: a function without named arguments, or (when it is called) an array of another shape.
    """

    def __init__(self, shape: tuple[int, int, int], draw: Callable[..., Any]) -> None:
        super().__init__()
        self.shape, self.draw = tuple(shape), draw
        self._slots = list(inspect.signature(draw).parameters)
        if not self._slots:
            raise IITKitError("images: the arguments of draw must be named after variables, one or more")

    @property
    def slots(self) -> list[str]:
        """See :class:`Encoding`."""
        return list(self._slots)

    @property
    def spans(self) -> dict[str, tuple[int, int]]:
        """An image has no places that a slot could name."""
        return {}

    def encode(self, columns: Columns) -> npt.NDArray[np.float32]:
        """Return the images, [n, channels, height, width]."""
        drawn: dict[tuple[Hashable, ...], npt.NDArray[np.float32]] = {}
        rows = [
            tuple((type(value), value) for value in row)  # True is not 1
            for row in zip(*(columns[slot] for slot in self._slots), strict=True)
        ]
        for row in rows:
            if row not in drawn:
                given = {slot: value for slot, (_, value) in zip(self._slots, row, strict=True)}
                image = np.asarray(self.draw(**given), dtype=np.float32)
                if image.shape != self.shape:
                    raise IITKitError(f"images: draw returned shape {image.shape} for {given}, expected {self.shape}")
                drawn[row] = image
        return np.stack([drawn[row] for row in rows])
