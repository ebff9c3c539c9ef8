"""What plots and pages have in common: units, the middle of a colour scale, palettes, what is drawn against what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iitkit.analysis.axes import CELLS
from iitkit.analysis.grid import Grid
from iitkit.errors import IITKitError, choices, did_you_mean

UNITS = {
    "recovered": "fraction recovered",
    "attribution": "first-order estimate",
    "effect": "change in probability",
    "logit_difference": "logits",
    "log_probability": "nats",
    "probability": "probability",
    "kl": "nats",
    "rank": "rank",
    "top1": "share",
    "iia": "share",
}
"""Part of a metric's name → unit of its values; the first that fits counts."""
FROM_ZERO = ("recovered", "attribution", "effect")
"""Metrics that are 0 where nothing happens; the others are looked at from the run into which is patched."""
BASELINES = ("nothing", "corrupt")

Colour = tuple[int, int, int]
PALETTES: dict[str, list[Colour]] = {
    "light": [(5, 48, 97), (67, 147, 195), (247, 247, 247), (214, 96, 77), (103, 0, 31)],
    "dark": [(158, 202, 255), (40, 104, 170), (26, 29, 35), (176, 84, 40), (255, 200, 140)],
}
"""Lowest, …, middle, …, highest, a fourth of the scale apart; blue against red, which nearly everyone tells apart."""
INK: dict[str, dict[str, str]] = {
    "light": {"paper": "#ffffff", "ink": "#1b1f24", "soft": "#667080", "line": "#d0d5dc", "gap": "#e9ecf0"},
    "dark": {"paper": "#0f1216", "ink": "#e6e9ee", "soft": "#98a2b0", "line": "#363d47", "gap": "#2a2f37"},
}
LINES = {
    "light": ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#4b3fa0"],
    "dark": ["#56b4e9", "#ff9a4d", "#35d0a5", "#e79ac6", "#f0d264", "#a79bff"],
}


def theme_of(theme: str, options: Sequence[str] = ("light", "dark")) -> str:
    """Return a theme's name if there is one."""
    if theme not in options:
        raise IITKitError(f"theme {theme!r} is not one of {choices(options)}.{did_you_mean(theme, options)}")
    return theme


def metric_of(grid: Grid) -> str:
    """Return the metric of a grid that has one: along its axis, selected, or named in ``about``; else ``value``."""
    if "metric" in grid.dims:
        return str(grid.coords["metric"][0]) if len(grid.coords["metric"]) == 1 else "value"
    selected = grid.about.get("selected", {})
    return str(selected.get("metric", grid.about.get("metric", "value")))


def unit_of(metric: str, grid: Grid) -> str:
    """Return the unit of a metric's values: from ``about["units"]``, else by its name, else empty.

    >>> unit_of("logit_difference", Grid(np.zeros(1), ("layer",)))
    'logits'
    """
    told = grid.about.get("units", {})
    if isinstance(told, dict) and metric in told:
        return str(told[metric])
    return next((unit for part, unit in UNITS.items() if part in metric), "")


def baseline_of(metric: str, grid: Grid) -> str | None:
    """Return the reference in the middle of a metric's colour scale, None where 0 is."""
    if grid.about.get("statistic") or any(part in metric for part in FROM_ZERO):
        return None
    return next((name for name in BASELINES if name in grid.references), None)


def half_range(values: np.ndarray, centre: float, also: Sequence[float] = ()) -> float:
    """Return how far a scale reaches on both sides of its middle: to the value furthest from it; 1 where all are it."""
    given = np.concatenate([np.ravel(values), np.asarray(also, dtype=np.float64)])
    known = given[np.isfinite(given)]
    far = float(np.abs(known - centre).max()) if known.size else 0.0
    return far or 1.0


def across(grid: Grid, x: str | None = None, y: str | None = None) -> tuple[str, str]:
    """Return the axes that a heat map's columns and rows lie along.

    Unless given: layers from bottom to top; positions from left to right, else heads, else what there is.

    Raises:
        IITKitError: an axis is not there, both are the same, or there are not two.
    """
    for given in (x, y):
        if given is not None:
            grid.labels(given)  # an error that names it
    if x is not None and x == y:
        raise IITKitError(f"rows and columns are both {x!r}; expected two axes")
    free = [dim for dim in grid.dims if dim in CELLS and (grid.sizes[dim] > 1 or dim in ("layer", "position"))]
    free += [dim for dim in grid.dims if dim not in free]
    if y is None:
        y = next((dim for dim in ("layer", "query", "sender", *free) if dim in free and dim != x), None)
    if x is None:
        x = next((dim for dim in ("position", "head", "key", "receiver", *free) if dim in free and dim != y), None)
    if x is None or y is None:
        raise IITKitError(f"a heat map needs two axes; the grid has {choices(grid.dims)}")
    return x, y


@dataclass(frozen=True)
class Summary:
    """A grid averaged over what is no place in the network, e.g. draws and examples."""

    mean: Grid
    stderr: Grid | None
    n: Grid | None
    over: str
    """The axis whose labels are the sample: n and the standard error are over it. Empty where nothing was averaged."""


def summarise(grid: Grid, keep: Sequence[str] = ()) -> Summary:
    """Average over every axis along which neither cells nor metrics lie; the standard error is over the first of them.

    Draws of one example are no sample of examples, so the others are averaged first.
    """
    inner = [dim for dim in grid.dims if dim not in (*CELLS, "metric", *keep)]
    if not inner or len(inner) == len(grid.dims):
        return Summary(grid, None, None, "")
    for dim in reversed(inner[1:]):
        grid = grid.mean(dim)
    return Summary(grid.mean(inner[0]), grid.stderr(inner[0]), grid.n(inner[0]), inner[0])


def told(grid: Grid) -> str:
    """Return a title: what was measured and in which model, as far as ``about`` says so."""
    model = str(grid.about.get("model", ""))
    parts = [str(grid.about.get("title", "") or grid.about.get("kind", "")), model.rstrip("/").rpartition("/")[2]]
    return " · ".join(part for part in parts if part)


def sample(summary: Summary) -> str:
    """Return over what the values are averaged, e.g. ``mean of 20 examples``."""
    averaged = summary.mean.about.get("averaged", {})
    names = [f"{n} {dim}{'s' if n != 1 and not dim.endswith('s') else ''}" for dim, n in averaged.items()]
    return f"mean of {' × '.join(names)}" if names else ""
