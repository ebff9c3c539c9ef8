"""Grids as pictures: heat maps and lines, in matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iitkit.analysis import canvas, curves, heatmaps, looks
from iitkit.analysis.axes import few
from iitkit.analysis.grid import Grid
from iitkit.errors import IITKitError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(
    grid: Grid,
    *,
    x: str | None = None,
    y: str | None = None,
    panels: str | None = None,
    stderr: Grid | None = None,
    centre: float | str | None = None,
    limits: tuple[float, float] | str = "all",
    theme: str = "light",
    title: str | None = None,
    size: tuple[float, float] | None = None,
) -> Figure:
    """Draw a grid: a heat map, a panel for each component or other third axis, or lines where one axis is left.

    Examples and draws are averaged (`looks.summarise`). Failed cells are hatched, missing ones grey.

    Args:
        grid: of any axes; those with one label are named in the title.
        x: axis of the columns, or of the lines; position, else head, unless given.
        y: axis of the rows; layer unless given. Given alone it asks for a heat map.
        panels: axis of the panels: the one that is left, unless given.
        stderr: standard errors over the same axes, for bands about lines; those of the examples where there are any.
        centre: middle of the colours, a number or a reference's name; unless given 0 or the run into which was patched,
            as suits the metric.
        limits: ``all``: colours reach the value or reference that is furthest from the middle; ``values``: no
            references; or two numbers.
        theme: ``light`` or ``dark``.
        title: unless given, what ``about`` says.
        size: width and height in inches.

    Raises:
        IITKitError: matplotlib is missing, an axis is not there, or too many are left.
    """
    canvas.require()
    looks.theme_of(theme)
    chosen = [dim for dim in (x, y, panels) if dim is not None]
    for dim in chosen:
        grid.labels(dim)
    summary = looks.summarise(grid, chosen)
    mean = canvas.squeezed(summary.mean, chosen)
    live = [dim for dim in mean.dims if mean.sizes[dim] > 1]
    along = [dim for dim in live if dim not in ("component", "metric")] or live[-1:]
    heading = (looks.told(grid) if title is None else title, looks.sample(summary))
    with canvas.styled(theme):
        if y is None and len(along) == 1 and x in (None, *along):
            errors = _errors(mean, summary.stderr if stderr is None else stderr, chosen)
            return curves.draw(mean, errors, x or along[0], theme, heading, size)
        return heatmaps.draw(mean, (x, y, panels), centre, limits, theme, heading, size)


def save_png(figure: Figure, path: str | Path, dpi: int = 150) -> Path:
    """Write a figure as PNG: the file is there whole or not at all."""
    from iitkit.analysis.stored import write_whole

    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=dpi)
    return write_whole(Path(path).expanduser(), lambda temporary: temporary.write_bytes(held.getvalue()))


def _errors(mean: Grid, stderr: Grid | None, keep: Sequence[str]) -> Grid | None:
    if stderr is None:
        return None
    errors = canvas.squeezed(stderr, keep)
    if errors.dims != mean.dims:
        raise IITKitError(f"stderr is over ({', '.join(errors.dims)}); expected the values' ({', '.join(mean.dims)})")
    for dim, labels in errors.coords.items():
        if labels != mean.coords[dim]:
            raise IITKitError(f"stderr has other labels along {dim}: {few(labels)} | {few(mean.coords[dim])}")
    return errors
