"""What the commands print of a grid: its references, a table of means, the cells that stand out."""

from __future__ import annotations

from typing import Any

import numpy as np

from iitkit.analysis.axes import CELLS
from iitkit.analysis.grid import Grid

MOST = 16
"""Columns of a table, at most."""


def described(grid: Grid, title: str = "") -> str:
    """Return the text of a measurement: of every metric its references and top cells, of the first one a table as well.

    Args:
        grid: with or without examples.
        title: its first line; kind and model unless said.
    """
    lines = [title or f"{grid.about.get('kind', 'grid')} · {grid.about.get('model', '')}"]
    for number, (metric, of_metric) in enumerate(_parts(grid, "metric")):
        name = metric or str(grid.about.get("metric", "value"))
        for run, part in _runs(of_metric):
            said = f"{name}, {run}" if run else name
            lines += ["", f"{said}: {', '.join(_references(part))}" if part.references else said]
            for component, each in _parts(part, "component"):
                lines += _described(each, component, table=not number)
    if grid.failed:
        lines += ["", *(f"failed: {line}" for line in failures(grid))]
    return "\n".join(lines)


def failures(grid: Grid, most: int = 5) -> list[str]:
    """Return a line for each of the first failed cells, and how many more there are."""
    lines = []
    for index, line in list(grid.failed.items())[:most]:
        at = ", ".join(f"{dim} {grid.coords[dim][i]}" for dim, i in zip(grid.dims, index, strict=True))
        lines.append(f"{at}: {line}")
    return [*lines, f"… and {len(grid.failed) - most} more"] if len(grid.failed) > most else lines


def _parts(grid: Grid, dim: str) -> list[tuple[str, Grid]]:
    if dim not in grid.dims:
        return [("", grid)]
    return [(str(label), grid.sel(**{dim: label})) for label in grid.coords[dim]]


def _runs(grid: Grid) -> list[tuple[str, Grid]]:
    """Return what is no sample of examples one by one: directions, runs."""
    other = next((dim for dim in grid.dims if dim not in (*CELLS, "metric", "example")), None)
    return [("", grid)] if other is None else _parts(grid, other)


def _references(grid: Grid) -> list[str]:
    found = []
    for name, numbers in grid.references.items():
        flat = numbers.ravel()
        known = flat[~np.isnan(flat)]
        if not len(known):
            continue
        error = f" ± {known.std(ddof=1) / np.sqrt(len(known)):.3f}" if len(known) > 1 else ""
        found.append(f"{name} {known.mean():.3f}{error}")
    return found


def _described(grid: Grid, component: str, table: bool) -> list[str]:
    mean, error, n = _averaged(grid)
    lines = [] if not component else ["", component]
    if isinstance(mean, float):
        return [*lines, f"  {mean:.3f}"]
    rows, columns = _axes(mean)
    if table and rows is not None and columns is not None and mean.sizes[columns] <= MOST and len(mean.dims) == 2:
        lines += _table(mean, rows, columns)
    start = "nothing" in mean.references and not np.isnan(mean.references["nothing"]).any()
    if best := mean.best(5, by="nothing" if start else "magnitude"):
        said = "furthest from the unedited run:" if start else "furthest from 0:"
        lines += [said, *(f"  {_cell(cell, error, n)}" for cell in best)]
    return lines


def _averaged(grid: Grid) -> tuple[Any, Any, Any]:
    """Return mean, standard error and n over the axes along which no cells lie."""
    error = n = None
    for dim in [dim for dim in grid.dims if dim not in CELLS]:
        if dim == "example":
            error, n, grid = grid.stderr(dim), grid.n(dim), grid.mean(dim)
        elif grid.sizes[dim] == 1:
            grid = grid.isel(**{dim: 0})
            error, n = (None if x is None else x.isel(**{dim: 0}) for x in (error, n))
    return grid, error, n


def _cell(cell: Any, error: Any, n: Any) -> str:
    more = ""
    if error is not None and not isinstance(error, float):
        spread = error.values[cell.index]
        count = int(n.values[cell.index])
        more = f" (n {count})" if np.isnan(spread) else f" ± {spread:.3f} (n {count})"
    where = ", ".join(f"{dim} {label}" for dim, label in cell.at.items())
    return f"{cell.value:+.3f}{more} at {where}"


def _axes(grid: Grid) -> tuple[str | None, str | None]:
    rows = "layer" if "layer" in grid.dims else None
    columns = next((dim for dim in grid.dims if dim != rows), None)
    return rows, columns


def _table(grid: Grid, rows: str, columns: str) -> list[str]:
    heads = [str(label) for label in grid.coords[columns]]
    widths = [max(7, len(head)) for head in heads]
    turned = np.moveaxis(grid.values, grid.dims.index(rows), 0)
    lines = [f"{rows:>6} " + " ".join(head.rjust(width) for head, width in zip(heads, widths, strict=True))]
    for label, values in zip(grid.coords[rows], turned, strict=True):
        cells = ("–" if np.isnan(value) else f"{value:+.3f}" for value in values)
        lines.append(f"{label!s:>6} " + " ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True)))
    return lines
