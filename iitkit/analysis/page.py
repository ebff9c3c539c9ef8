"""A grid as one interactive HTML file: no network, no library, readable by keyboard, in light and dark."""

from __future__ import annotations

import base64
import hashlib
import html as markup
import json
import math
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from iitkit.analysis import looks
from iitkit.analysis.axes import CELLS
from iitkit.analysis.grid import Grid
from iitkit.analysis.stored import write_whole
from iitkit.errors import IITKitError

MOST = 400_000
"""Values that a page holds one by one (about 8 bytes each); of more only the means over examples are kept."""
THEMES = ("auto", "light", "dark")


def page(
    grid: Grid,
    path: str | Path,
    *,
    stderr: Grid | None = None,
    n: Grid | None = None,
    title: str | None = None,
    theme: str = "auto",
) -> Path:
    """Write the page; it is there whole or not at all.

    Args:
        grid: with at least one axis of cells (layer, position, head …). Metrics, components and examples are chosen in
            the page, which averages over examples and draws as `looks.summarise` does.
        path: of the file, e.g. ``grid.html``.
        stderr: standard errors of a grid that is averaged already, over the same axes.
        n: how many values each of its means is of.
        title: unless given, what ``about`` says.
        theme: ``auto`` (the reader's), ``light`` or ``dark``; the page has a switch.

    Returns:
        ``path``.
    """
    text = as_html(grid, stderr=stderr, n=n, title=title, theme=theme)
    return write_whole(Path(path).expanduser(), lambda temporary: temporary.write_text(text, "utf-8"))


def as_html(
    grid: Grid, *, stderr: Grid | None = None, n: Grid | None = None, title: str | None = None, theme: str = "auto"
) -> str:
    """Return the page's text (see `page`).

    The data lie in it as JSON in which no ``<``, ``>`` or ``&`` stands, and the page's script shows them as text, never
    as markup; a policy in the page lets only that script run and nothing be loaded.
    """
    looks.theme_of(theme, THEMES)
    held = resources.files("iitkit.analysis")
    script, style = (held.joinpath(name).read_text("utf-8") for name in ("page.js", "page.css"))
    parts = {
        "title": markup.escape(title if title is not None else looks.told(grid) or "Grid"),
        "theme": theme,
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "data": _json(content(grid, stderr, n)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], held.joinpath("page.html").read_text("utf-8"))


def content(grid: Grid, stderr: Grid | None = None, n: Grid | None = None) -> dict[str, Any]:
    """Return what a page holds: axes, values (six digits), failures, references, metrics, colours."""
    cells = [dim for dim in grid.dims if dim in CELLS]
    if not cells:
        raise IITKitError(f"a page needs an axis of cells, e.g. layer or position; the grid has {', '.join(grid.dims)}")
    for name, other in (("stderr", stderr), ("n", n)):
        if other is not None and (other.dims, other.coords) != (grid.dims, grid.coords):
            raise IITKitError(f"{name} is over other axes or labels than the values; expected ({', '.join(grid.dims)})")
    over, told = "", looks.sample(looks.Summary(grid, None, None, ""))
    if grid.values.size > MOST and stderr is None:
        summary = looks.summarise(grid)
        grid, stderr, n, over, told = summary.mean, summary.stderr, summary.n, summary.over, looks.sample(summary)
    averaged = grid.about.get("averaged", {})
    if not over and len(averaged) == 1:
        (over,) = averaged
    if len(cells) > 1:
        x, y = looks.across(Grid(np.zeros([grid.sizes[dim] for dim in cells]), tuple(cells)))
    else:
        x, y = (cells[0], "") if cells[0] in ("position", "head", "key") else ("", cells[0])
    dims = [
        {"name": dim, "labels": [_label(one) for one in grid.coords[dim]], "cell": dim in CELLS} for dim in grid.dims
    ]
    reasons = sorted(set(grid.failed.values()))
    about = grid.about
    return {
        "dims": [*dims, *([] if len(cells) > 1 else [{"name": "", "labels": [""], "cell": True}])],
        "x": x,
        "y": y,
        "values": _numbers(grid.values),
        "summary": None
        if stderr is None and n is None
        else {
            "stderr": None if stderr is None else _numbers(stderr.values),
            "n": None if n is None else [int(count) for count in np.nan_to_num(n.values).ravel()],
            "of": averaged.get(over, 0),
            "over": over or ", ".join(averaged) or "sample",
        },
        "failed": [
            [int(np.ravel_multi_index(index, grid.shape)), reasons.index(line)] for index, line in grid.failed.items()
        ],
        "lines": reasons,
        "references": {name: _numbers(numbers) for name, numbers in grid.references.items()},
        "metrics": [_metric(name, grid) for name in _metrics(grid)],
        "selected": {dim: str(one) for dim, one in about.get("selected", {}).items() if dim != "metric"},
        "told": told,
        "about": about,
        "palettes": looks.PALETTES,
        "inks": looks.INK,
    }


def _metrics(grid: Grid) -> list[str]:
    return [str(one) for one in grid.coords["metric"]] if "metric" in grid.dims else [looks.metric_of(grid)]


def _metric(name: str, grid: Grid) -> dict[str, Any]:
    title = name.replace("_", " ")
    if statistic := grid.about.get("statistic"):
        title = f"{statistic} of {title}"
    return {"name": name, "title": title, "unit": looks.unit_of(name, grid), "baseline": looks.baseline_of(name, grid)}


def _label(label: Any) -> Any:
    return str(label) if isinstance(label, bool) else label


def _numbers(numbers: np.ndarray) -> list[Any]:
    """Six digits; null for NaN; infinities as JavaScript's Number() reads them."""
    return [
        float(f"{number:.6g}")
        if math.isfinite(number)
        else None
        if math.isnan(number)
        else f"{'-' if number < 0 else ''}Infinity"
        for number in numbers.ravel().tolist()
    ]


def _plain_json(value: Any) -> Any:
    """What was measured may hold numbers that JSON has not: as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain_json(part) for key, part in value.items()}
    return [_plain_json(part) for part in value] if isinstance(value, list) else value


def _json(held: dict[str, Any]) -> str:
    text = json.dumps(_plain_json(held), allow_nan=False, separators=(",", ":"))  # ASCII: also U+2028 is spelled out
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
