"""Heat maps: layers over positions (or heads …), a panel for each component."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from iitkit.analysis import canvas, looks
from iitkit.analysis.grid import Grid
from iitkit.errors import IITKitError, choices

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LIMITS = ("all", "values")


@dataclass(frozen=True)
class Scale:
    """Middle and reach of the colours, what part of them a bar shows, and the references by name."""

    centre: float
    half: float
    used: tuple[float, float]
    marks: dict[str, float]


def draw(
    grid: Grid,
    axes: tuple[str | None, str | None, str | None],
    centre: float | str | None,
    limits: tuple[float, float] | str,
    theme: str,
    heading: tuple[str, str],
    size: tuple[float, float] | None,
) -> Figure:
    """Draw a heat map for each label of the panels' axis: the same colours in all, but for metrics."""
    from matplotlib.figure import Figure

    x, y = looks.across(grid, *axes[:2])
    panels = axes[2]
    rest = [dim for dim in grid.dims if dim not in (x, y) and (grid.sizes[dim] > 1 or dim == panels)]
    if panels is None and rest:
        panels = next(dim for dim in ("metric", *rest) if dim in rest)
    over = [dim for dim in rest if dim != panels]
    if over:
        wanted = ", ".join(f"{dim}={grid.coords[dim][0]!r}" for dim in over)
        raise IITKitError(f"rows are {y}, columns {x}, panels {panels}; choose along {choices(over)}: .sel({wanted})")
    parts = [grid] if panels is None else [grid.isel(**{panels: at}) for at in range(grid.sizes[panels])]
    columns = min(len(parts), 2 if len(grid.coords[x]) > 30 or len(parts) == 4 else 3)
    rows = math.ceil(len(parts) / columns)
    flat = all(isinstance(label, int) for label in grid.coords[x])
    margin = 0.45 + (0.1 if flat else 0.06 * max(len(canvas.short(label)) for label in grid.coords[x]))
    made = size or _size(len(grid.coords[x]), len(grid.coords[y]), columns, rows, margin)
    figure = Figure(figsize=made, layout="constrained")
    inside = ((made[0] - 1.6) / columns - 0.6, (made[1] - 0.6) / rows - margin - 0.2)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in places[len(parts) :]:
        spare.set_axis_off()
    own = panels == "metric"  # of another unit: a scale and a bar of its own
    shared = None if own else scale_of(grid, centre, limits)
    for at, (axis, part) in enumerate(zip(places, parts, strict=False)):
        scale = shared or scale_of(part, centre, limits)
        image = _panel(axis, canvas.squeezed(part, (x, y)), x, y, scale, theme, inside)
        if panels is not None and not own:
            label = grid.coords[panels][at]
            name = str(label) if panels == "component" else f"{panels} {label}"
            axis.set_title(canvas.short(name, 40), fontsize=8, parse_math=False)
        if own or at == len(parts) - 1:
            _bar(figure, image, axis if own else list(places), scale, part, theme, inside[1] if own else made[1] - 1.2)
    canvas.head(figure, heading[0], canvas.under(grid, heading[1], *gaps(grid)))
    return canvas.shown(figure)


def scale_of(grid: Grid, centre: float | str | None = None, limits: tuple[float, float] | str = "all") -> Scale:
    """Return the colours' middle and reach (see `iitkit.analysis.plots.plot`)."""
    marks = canvas.against(grid)
    if centre is None:
        middle = marks.get(looks.baseline_of(looks.metric_of(grid), grid) or "", 0.0)
    else:
        middle = float(np.mean(grid.reference(centre))) if isinstance(centre, str) else float(centre)
    if isinstance(limits, str):
        if limits not in LIMITS:
            raise IITKitError(f"limits={limits!r}; expected {choices(LIMITS)} or two numbers")
        also = list(marks.values()) if limits == "all" else []
        half = looks.half_range(grid.values, middle, also)
        known = [*grid.values[np.isfinite(grid.values)], *also, middle]
        low, high = float(min(known)), float(max(known))
        return Scale(middle, half, (low, high) if low < high else (middle - half, middle + half), marks)
    low, high = map(float, limits)
    if not low < high:
        raise IITKitError(f"limits=({low:g}, {high:g}): expected the lower one first")
    return Scale(middle, max(abs(low - middle), abs(high - middle)), (low, high), marks)


def gaps(grid: Grid) -> list[str]:
    """Return what the marks of cells without a value mean, as far as there are any."""
    missing = int(np.isnan(grid.values).sum()) - len(grid.failed)
    return [*(["hatched: failed"] if grid.failed else []), *(["dotted: missing"] if missing else [])]


def _size(across: int, up: int, columns: int, rows: int, margin: float) -> tuple[float, float]:
    """Inches: a third of one for a column, a fifth for a row, within what a page can take."""
    wide = min(max(0.3 * across, 2.2), 15.0 / columns)
    high = min(max(0.2 * up, 1.6), 10.0 if rows == 1 else 5.0)
    return max((wide + 0.6) * columns + 1.6, 5.0), (high + margin + 0.2) * rows + 0.6


def _panel(axis: Axes, grid: Grid, x: str, y: str, scale: Scale, theme: str, inside: tuple[float, float]) -> Any:
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    turned = grid.dims.index(y) > grid.dims.index(x)
    values = grid.values.T if turned else grid.values
    shades = [[part / 255 for part in colour] for colour in looks.PALETTES[theme]]
    axis.set_facecolor(looks.INK[theme]["gap"])
    image = axis.imshow(
        np.ma.masked_where(np.isnan(values), np.nan_to_num(values, nan=0.0, posinf=1e300, neginf=-1e300)),
        cmap=LinearSegmentedColormap.from_list(theme, shades),
        vmin=scale.centre - scale.half,
        vmax=scale.centre + scale.half,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
    )
    failed = {index[::-1] if turned else index for index in grid.failed}
    missing = {(int(row), int(column)) for row, column in np.argwhere(np.isnan(values))} - failed
    for kind, places, hatch in (("failed", failed, "/////"), ("missing", missing, "...")):
        if places:
            boxes = [Rectangle((column - 0.5, row - 0.5), 1, 1) for row, column in sorted(places)]
            ink = looks.INK[theme]["soft"]
            axis.add_collection(
                PatchCollection(boxes, hatch=hatch, facecolor="none", edgecolor=ink, linewidth=0, gid=kind)
            )
    canvas.ticks(axis, "x", grid.coords[x], inside[0])
    canvas.ticks(axis, "y", grid.coords[y], inside[1])
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    return image


def _bar(
    figure: Figure,
    image: Any,
    beside: Axes | Sequence[Axes],
    scale: Scale,
    grid: Grid,
    theme: str,
    high: float,
) -> None:
    bar = figure.colorbar(image, ax=beside, fraction=0.05, pad=0.03, aspect=max(high, 1.0) / 0.16)
    bar.set_label(canvas.named(grid), parse_math=False)
    low, high = scale.used
    bar.ax.set_ylim(low, high)
    together: list[tuple[float, list[str]]] = []
    for name, value in sorted(scale.marks.items(), key=lambda mark: mark[1]):
        if low <= value <= high:
            bar.ax.axhline(value, color=looks.INK[theme]["ink"], linewidth=1)
            if together and value - together[-1][0] < 0.05 * (high - low):
                together[-1][1].append(name)
            else:
                together.append((value, [name]))
    for value, names in together:
        bar.ax.annotate(
            ", ".join(names),
            (0, value),
            xycoords=("axes fraction", "data"),
            xytext=(-3, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=6.5,
            annotation_clip=False,
            parse_math=False,
        )
