"""Lines: a grid over one axis, a line for each component, a panel for each metric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from iitkit.analysis import canvas, looks
from iitkit.analysis.grid import Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES: list[Any] = ["--", ":", "-.", (0, (1, 3)), (0, (5, 1)), (0, (8, 3))]


def draw(
    grid: Grid,
    errors: Grid | None,
    x: str,
    theme: str,
    heading: tuple[str, str],
    size: tuple[float, float] | None,
) -> Figure:
    """Draw lines along ``x``, with a band of a standard error on both sides, and the references across them."""
    from matplotlib.figure import Figure

    panels = "metric" if grid.sizes.get("metric", 1) > 1 and x != "metric" else None
    parts = _parts(grid, panels)
    bands = [None] * len(parts) if errors is None else _parts(errors, panels)
    wide = min(max(0.22 * len(grid.coords[x]), 3.5), 12.0)
    made = size or (wide + 1.2, 2.6 * len(parts) + 0.8)
    figure = Figure(figsize=made, layout="constrained")
    for axis, part, band in zip(figure.subplots(len(parts), squeeze=False).ravel(), parts, bands, strict=True):
        _panel(axis, part, band, x, theme, made[0] - 1.0)
    notes = ["band: ± 1 standard error" if errors is not None else "", "hatched: failed" if grid.failed else ""]
    canvas.head(figure, heading[0], canvas.under(grid, heading[1], *notes))
    return canvas.shown(figure)


def _panel(axis: Axes, grid: Grid, errors: Grid | None, x: str, theme: str, inches: float) -> None:
    kind = next((dim for dim in grid.dims if dim != x), None)
    labels = grid.coords[x]
    numbers = all(isinstance(label, int | float) and not isinstance(label, bool) for label in labels)
    at = np.asarray(labels if numbers else range(len(labels)), dtype=np.float64)
    lines = _parts(grid, kind)
    bands = [None] * len(lines) if errors is None else _parts(errors, kind)
    for place, (line, band) in enumerate(zip(lines, bands, strict=True)):
        colour = looks.LINES[theme][place % len(looks.LINES[theme])]
        name = f"_line {place}" if kind is None else canvas.short(grid.coords[kind][place], 40)
        axis.plot(at, line.values, color=colour, marker="o", markersize=3, linewidth=1.4, label=name)
        if band is not None:
            error = np.nan_to_num(band.values, nan=0.0)
            low, high = line.values - error, line.values + error
            axis.fill_between(at, low, high, color=colour, alpha=0.22, linewidth=0)
    half = float(np.diff(np.sort(at)).min()) / 2 if len(at) > 1 else 0.5
    for place in sorted({index[grid.dims.index(x)] for index in grid.failed}):
        ends = (at[place] - half, at[place] + half)
        axis.axvspan(*ends, facecolor="none", edgecolor=looks.INK[theme]["soft"], hatch="/////", linewidth=0)
    for place, (name, number) in enumerate(canvas.against(grid).items()):
        style = STYLES[place % len(STYLES)]
        axis.axhline(number, color=looks.INK[theme]["soft"], linewidth=1, linestyle=style, label=name)
    axis.set_xlim(at.min() - half, at.max() + half)
    if numbers:
        from matplotlib.ticker import MaxNLocator

        axis.xaxis.set_major_locator(MaxNLocator(integer=all(isinstance(label, int) for label in labels)))
    else:
        canvas.ticks(axis, "x", labels, inches)
    axis.set_xlabel(x)
    axis.set_ylabel(canvas.named(grid), parse_math=False)
    if kind is not None or canvas.against(grid):
        legend = axis.legend(frameon=False, fontsize=7)
        for text in legend.get_texts():
            text.set_parse_math(False)


def _parts(grid: Grid, dim: str | None) -> list[Grid]:
    return [grid] if dim is None else [grid.isel(**{dim: at}) for at in range(grid.sizes[dim])]
