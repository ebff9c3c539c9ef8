"""Named axes of a grid: what may be their names and labels, and how a label is found."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iitkit.errors import IITKitError, choices, did_you_mean

Label = str | int | float | bool
Pick = int | list[int]

CELLS = ("component", "layer", "head", "sender", "receiver", "query", "key", "position")
"""Axes along which cells lie. What lies along any other axis (metric, example, row …) is measured in every cell."""
ORDER = (*CELLS, "metric", "example", "row")
TAKEN = ("value", "failed")
"""Columns of the long form, so no names of axes."""


def check_names(dims: tuple[Any, ...], shape: tuple[int, ...], coords: Mapping[str, Any]) -> None:
    """Refuse axes without a name of their own, and labels of axes that are not there."""
    if len(dims) != len(shape):
        raise IITKitError(f"values of shape {shape} have {len(shape)} axes, but {len(dims)} are named: {choices(dims)}")
    for place, dim in enumerate(dims):
        if not isinstance(dim, str) or not dim.isidentifier() or dim in TAKEN:
            raise IITKitError(
                f"{dim!r} is no name of an axis; expected a word such as layer, and none of {choices(TAKEN)}"
            )
        if dim in dims[:place]:
            raise IITKitError(f"two axes are named {dim!r}")
        if not shape[place]:
            raise IITKitError(f"axis {dim!r} is empty")
    for dim in coords:
        if dim not in dims:
            raise IITKitError(
                f"labels for {dim!r}, which is no axis; they are {choices(dims)}.{did_you_mean(dim, dims)}"
            )


def checked_labels(dim: str, given: Any, size: int) -> list[Label]:
    """Return an axis's labels as Python's own text and numbers."""
    labels = [label.item() if isinstance(label, np.generic) else label for label in given]
    if len(labels) != size:
        raise IITKitError(f"axis {dim!r} has {size} places but {len(labels)} labels")
    seen: set[Any] = set()
    for label in labels:
        if not isinstance(label, str | int | float | bool) or (isinstance(label, float) and not math.isfinite(label)):
            raise IITKitError(f"{label!r} is no label of {dim}; expected text or a finite number")
        if isinstance(label, str) and not _is_text(label):
            raise IITKitError(f"{label!r} is no label of {dim}: it has half a character (a lone surrogate)")
        if label in seen:
            raise IITKitError(f"axis {dim!r} has the label {label!r} twice")
        seen.add(label)
    return labels


def _is_text(label: str) -> bool:
    try:
        label.encode()
    except UnicodeEncodeError:
        return False
    return True


def frozen(numbers: Any, name: str) -> np.ndarray:
    """Return a float64 copy that cannot be written to."""
    try:
        own = np.array(numbers, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise IITKitError(f"{name}: expected an array of numbers ({error})") from error
    own.flags.writeable = False
    return own


def spread(
    failed: Mapping[tuple[int, ...], str], dims: tuple[str, ...], values: np.ndarray
) -> dict[tuple[int, ...], str]:
    """Return a line for every value that failed; an index of the first axes alone stands for all below it."""
    full: dict[tuple[int, ...], str] = {}
    for index, line in failed.items():
        cell = tuple(int(at) for at in index)
        if len(cell) > values.ndim or not all(0 <= at < size for at, size in zip(cell, values.shape, strict=False)):
            raise IITKitError(f"failed: no cell has index {cell}; the axes are {named_sizes(dims, values.shape)}")
        if not np.isnan(values[cell]).all():
            raise IITKitError(f"failed: the cell at {cell} has a value; expected NaN where a cell failed")
        text = " ".join(str(line).split())
        for below in itertools.product(*map(range, values.shape[len(cell) :])):
            full[cell + below] = text
    return dict(sorted(full.items()))


def place_of(dim: str, labels: Sequence[Label], wanted: Any) -> int:
    """Return the place of a label: itself, or the only one that starts with a given whole number."""
    if isinstance(wanted, np.generic):
        wanted = wanted.item()
    for place, label in enumerate(labels):
        if label == wanted and isinstance(label, bool) == isinstance(wanted, bool):
            return place
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        starts = [place for place, label in enumerate(labels) if str(label).split(" ", 1)[0] == str(wanted)]
        if len(starts) == 1:
            return starts[0]
    alike = [label for label in labels if str(label) == str(wanted)]
    hint = f" Did you mean {alike[0]!r}?" if alike else did_you_mean(wanted, labels)
    if isinstance(wanted, int) and wanted < 0:
        hint = f" To count from the end: isel({dim}={wanted})."
    raise IITKitError(f"{dim} has no label {wanted!r}; it has {few(labels)}.{hint}")


def is_many(wanted: Any) -> bool:
    """Whether several are asked for: a list, tuple, range or array with an axis."""
    return isinstance(wanted, list | tuple | range) or (isinstance(wanted, np.ndarray) and wanted.ndim > 0)


def plain(value: Any, name: str) -> Any:
    """Return a value as JSON would give it back: lists for tuples, Python's numbers for numpy's.

    Raises:
        IITKitError: something in it is neither a number, text, truth value, None, list nor dict with text keys.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise IITKitError(f"{name} has the key {key!r}; expected text")
        return {key: plain(part, f"{name}[{key!r}]") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part, f"{name}[{place}]") for place, part in enumerate(value)]
    raise IITKitError(f"{name} is a {type(value).__name__}; expected plain values (numbers, text, lists, dicts)")


def few(labels: Sequence[Label], limit: int = 6) -> str:
    """Return the first labels and the last.

    >>> few(range(30), limit=4)
    '0, 1, 2, … 29'
    """
    names = [str(label) for label in labels]
    return ", ".join(names) if len(names) <= limit else f"{', '.join(names[: limit - 1])}, … {names[-1]}"


def named_sizes(dims: Sequence[str], sizes: Sequence[int]) -> str:
    """Return names and sizes of axes.

    >>> named_sizes(("layer", "position"), (30, 9))
    'layer 30 × position 9'
    """
    return " × ".join(f"{dim} {size}" for dim, size in zip(dims, sizes, strict=True))


def span_of(numbers: np.ndarray) -> str:
    """Return the only value, or the lowest and the highest.

    >>> span_of(np.array([2.0, np.nan, -0.5]))
    '-0.5 … 2'
    """
    known = numbers[~np.isnan(numbers)]
    if not known.size:
        return "missing"
    low, high = float(known.min()), float(known.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} … {high:.4g}"
