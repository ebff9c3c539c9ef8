"""Several grids as one: joined, stacked, subtracted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from iitkit.analysis.axes import CELLS, ORDER, Label, few
from iitkit.analysis.grid import Grid
from iitkit.errors import IITKitError


def join(grids: Sequence[Grid], dim: str, labels: Sequence[Label] | None = None) -> Grid:
    """Put grids side by side along an axis that they have, or stack them along a new one.

    References along an axis of cells must be the same (1e-5 relative): the grids share their runs. Along any other they
    are joined as the values are; those that not every grid has are left out. ``about`` keeps what all say alike and
    lists the rest under ``joined``.

    Raises:
        IITKitError: no grids, other axes or labels, other references, labels twice.
    """
    if not grids:
        raise IITKitError("nothing to join: expected at least one grid")
    first = grids[0]
    new = dim not in first.dims
    for grid in grids[1:]:
        if grid.dims != first.dims:
            raise IITKitError(f"grids over ({', '.join(first.dims)}) and ({', '.join(grid.dims)}) cannot be joined")
        for other, mine in first.coords.items():
            if other != dim and mine != grid.coords[other]:
                raise IITKitError(
                    f"grids with other labels along {other} cannot be joined along {dim}: "
                    f"{few(mine)} | {few(grid.coords[other])}. Select what they share, or average first."
                )
    if labels is not None and not new:
        raise IITKitError(f"the grids have labels along {dim} already: labels= is for a new axis")
    axis = first.dims.index(dim) if not new else _place(first.dims, dim)
    dims = first.dims if not new else (*first.dims[:axis], dim, *first.dims[axis:])
    if new and labels is None:
        labels = range(len(grids))
    together = [label for grid in grids for label in grid.coords[dim]] if labels is None else list(labels)
    parts = [np.expand_dims(grid.values, axis) if new else grid.values for grid in grids]

    failed: dict[tuple[int, ...], str] = {}
    start = 0
    for grid, part in zip(grids, parts, strict=True):
        for index, line in grid.failed.items():
            at = start + (0 if new else index[axis])
            failed[(*index[:axis], at, *index[axis if new else axis + 1 :])] = line
        start += part.shape[axis]

    outer = [other for other in dims if other not in CELLS]
    names = [name for name in first.references if all(name in grid.references for grid in grids)]
    references = {}
    for name in names:
        each = [grid.references[name] for grid in grids]
        if dim not in CELLS:
            place = outer.index(dim)
            references[name] = np.stack(each, place) if new else np.concatenate(each, place)
            continue
        for numbers in each[1:]:
            if not np.allclose(each[0], numbers, rtol=1e-5, atol=1e-8, equal_nan=True):
                raise IITKitError(
                    f"the grids' {name!r} runs differ: no joining along {dim}. Stack them along a new axis."
                )
        references[name] = each[0]
    coords = {other: first.coords[other] if other != dim else together for other in dims}
    return Grid(np.concatenate(parts, axis), dims, coords, references, failed, _about(grids, "joined"))


def combine(mine: Grid, other: Grid | float, operation: Callable[..., Any], name: str) -> Grid:
    """Apply an operation to the values and references of two equal grids, or of a grid and a number.

    Args:
        mine: the left one.
        other: the right one, over the same axes and labels, or a number.
        operation: of numpy, e.g. ``np.subtract``.
        name: what it makes, which ``about`` tells with what the two grids do not have in common.

    Raises:
        IITKitError: other axes or labels.
    """
    with np.errstate(invalid="ignore", divide="ignore"):  # infinities, and division by 0, give what IEEE says
        if not isinstance(other, Grid):
            about = {**mine.about, name: other}
            references = {key: operation(numbers, other) for key, numbers in mine.references.items()}
            return replace(mine, values=operation(mine.values, other), references=references, about=about)
        if mine.dims != other.dims:
            raise IITKitError(f"no {name} of grids over ({', '.join(mine.dims)}) and ({', '.join(other.dims)})")
        for dim, labels in mine.coords.items():
            if labels != other.coords[dim]:
                raise IITKitError(
                    f"no {name} of grids with other labels along {dim}: {few(labels)} | {few(other.coords[dim])}"
                )
        shared = [key for key in mine.references if key in other.references]
        return Grid(
            operation(mine.values, other.values),
            mine.dims,
            mine.coords,
            {key: operation(mine.references[key], other.references[key]) for key in shared},
            {**other.failed, **mine.failed},
            _about([mine, other], name),
        )


def _place(dims: tuple[str, ...], new: str) -> int:
    """Where a new axis goes: before the first that comes later in the usual order, else last."""
    if new not in ORDER:
        return len(dims)
    later = [place for place, dim in enumerate(dims) if dim in ORDER and ORDER.index(dim) > ORDER.index(new)]
    return later[0] if later else len(dims)


def _about(grids: Sequence[Grid], name: str) -> dict[str, Any]:
    first = grids[0].about
    common = {key: value for key, value in first.items() if all(grid.about.get(key) == value for grid in grids)}
    rest = [{key: value for key, value in grid.about.items() if key not in common} for grid in grids]
    return {**common, name: rest} if any(rest) else common
