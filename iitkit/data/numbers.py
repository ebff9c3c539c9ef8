"""Recorded inputs that are no text: lists of numbers, carried as JSON, which is as exact and as quick to compare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from iitkit.causal import Text
from iitkit.data.cells import Cells

_ANSWERS = ("label", "base_label", "source_label", "other_label")
_LISTS = ("source_labels", "candidates")


def are_numbers(cells: Cells) -> bool:
    """Return whether a table's bases are lists of numbers."""
    return isinstance(next(cell for cell in cells.columns["base"] if cell is not None), list)


def spelled(cells: Cells) -> Cells:
    """Return the columns with lists of numbers as JSON, and answers, which are classes or symbols, as digits.

    Raises:
        IITKitError: anything but lists of numbers of one shape, or an answer that is no integer.
    """
    columns = dict(cells.columns)
    shape = np.shape(next(cell for cell in columns["base"] if cell is not None))

    def spell(name: str, row: int, value: Any) -> str:
        try:
            array = np.asarray(value)
        except ValueError:
            array = np.asarray(None)
        if not isinstance(value, list) or array.dtype.kind not in "if" or not np.isfinite(array).all():
            raise cells.wrong(name, row, "a list of numbers, as the first base is")
        if array.shape != shape or not array.size:
            raise cells.wrong(name, row, f"numbers of shape {list(shape)}, as the first base has")
        return json.dumps(value)

    for name in ("base", "source"):
        if name in columns:
            columns[name] = [spell(name, row, cell) for row, cell in enumerate(columns[name])]
    if "sources" in columns:
        columns["sources"] = [
            [spell("sources", row, value) for value in cell] if isinstance(cell, list) else cell
            for row, cell in enumerate(columns["sources"])
        ]
    for name in _ANSWERS:
        if name in columns:
            columns[name] = [str(cell) for cell in cells.every(name, _is_class, "the integer of a class or symbol")]
    for name in _LISTS:
        if name in columns:
            found = cells.lists(name, _is_class, "integers, of classes or symbols")
            columns[name] = [[str(item) for item in items] for items in found]
    return replace(cells, columns=columns)


def _is_class(value: Any) -> bool:
    return type(value) is int and value >= 0


def places(text: str) -> int:
    """Return how many places a list of numbers has that was spelled as JSON."""
    return len(json.loads(text))


def arrays(texts: Sequence[Text]) -> npt.NDArray[Any]:
    """Return spelled inputs as they were: one row of integers each as int64, everything else as float32."""
    found = np.asarray([json.loads(text.text) for text in texts])
    return found.astype(np.int64 if found.ndim == 2 and found.dtype.kind == "i" else np.float32)
