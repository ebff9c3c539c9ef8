"""What every picture needs of matplotlib: a theme, fonts for tokens of any script, labels as far as there is room."""

from __future__ import annotations

import functools
import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from iitkit.analysis import looks
from iitkit.analysis.grid import Grid
from iitkit.errors import IITKitError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAMILIES = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Microsoft YaHei", "Arial Unicode MS")
LONGEST = 18  # characters of a label
PITCH = 0.145  # inches from one label to the next


def require() -> None:
    """Refuse in a line where matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise IITKitError("a plot needs matplotlib: pip install 'iitkit[plots]'") from error


@contextmanager
def styled(theme: str) -> Iterator[None]:
    """A theme's colours and fonts, whatever the user's own settings are."""
    import matplotlib

    ink = looks.INK[looks.theme_of(theme)]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.family": list(fonts()[0]),
                "font.size": 8,
                "figure.facecolor": ink["paper"],
                "savefig.facecolor": ink["paper"],
                "axes.facecolor": ink["paper"],
                "axes.edgecolor": ink["line"],
                "axes.labelcolor": ink["ink"],
                "text.color": ink["ink"],
                "xtick.color": ink["line"],
                "ytick.color": ink["line"],
                "xtick.labelcolor": ink["ink"],
                "ytick.labelcolor": ink["ink"],
                "axes.labelsize": 8,
                "xtick.labelsize": 7,
                "ytick.labelsize": 7,
                "hatch.color": ink["soft"],
                "hatch.linewidth": 0.6,
            }
        )
        yield


@functools.cache
def fonts() -> tuple[tuple[str, ...], frozenset[int]]:
    """Return those of the fonts that are installed, and the characters that they have."""
    from matplotlib import font_manager

    installed = {font.name: font.fname for font in font_manager.fontManager.ttflist}
    found = tuple(name for name in FAMILIES if name in installed) or ("sans-serif",)
    held: set[int] = set()
    for name in found:
        held |= set(font_manager.get_font(installed.get(name) or font_manager.findfont(name)).get_charmap())
    return found, frozenset(held)


def short(label: object, longest: int = LONGEST) -> str:
    """Return a label that fits: cut in the middle, and without characters that no font can draw."""
    text = shown_text(str(label))
    if len(text) <= longest:
        return text
    return f"{text[: longest - longest // 3 - 1]}…{text[len(text) - longest // 3 :]}"


def shown_text(text: str) -> str:
    """Return a text with line ends and the like spelled out, and a sign for what no font can draw."""
    held = fonts()[1] | {ord("\N{NO-BREAK SPACE}")}
    spelled = (sign if ord(sign) in held or not sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
    return "".join(sign if sign.isprintable() or sign == "\N{NO-BREAK SPACE}" else repr(sign)[1:-1] for sign in spelled)


def squeezed(grid: Grid, keep: Sequence[str] = ()) -> Grid:
    """Return a grid without the axes that have one label, but those to keep.

    Raises:
        IITKitError: one value would be left.
    """
    lone = [dim for dim, size in grid.sizes.items() if size == 1 and dim not in keep]
    if len(lone) == len(grid.dims):
        raise IITKitError(f"one value is left, {grid.values.item():.4g}: nothing to draw")
    part: Grid = grid.isel(**dict.fromkeys(lone, 0))
    return part


def named(grid: Grid) -> str:
    """Return what an axis or a bar is titled: the metric and its unit."""
    metric = looks.metric_of(grid)
    unit = looks.unit_of(metric, grid)
    name = metric.replace("_", " ")
    if statistic := grid.about.get("statistic"):
        name = f"{statistic} of {name}"
    return name if not unit or unit == name else f"{name} ({unit})"


def against(grid: Grid) -> dict[str, float]:
    """Return a grid's references that are one number each."""
    numbers = {name: float(ref) for name, ref in grid.references.items() if ref.ndim == 0}
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


def under(grid: Grid, *more: str) -> str:
    """Return what stands under the title: what was selected, the references, and more."""
    chosen = [f"{dim} {label}" for dim, label in grid.about.get("selected", {}).items() if dim != "metric"]
    runs = [f"{name} {number:.4g}" for name, number in against(grid).items()]
    return " · ".join(part for part in (*chosen, *more, *runs) if part)


def ticks(axis: Axes, which: str, labels: Sequence[Any], inches: float) -> None:
    """Label an axis as far as there is room, from the first on at equal steps; text along x stands upright."""
    texts = [short(label) for label in labels]
    flat = which == "x" and all(isinstance(label, int) for label in labels)
    need = 0.065 * max(map(len, texts)) + 0.07 if flat else PITCH
    step = max(1, math.ceil(need * len(labels) / max(inches, 0.1)))
    places = list(range(0, len(labels), step))
    chosen = [texts[place] for place in places]
    if which == "y":
        axis.set_yticks(places, chosen, parse_math=False)
    else:
        axis.set_xticks(places, chosen, rotation=0 if flat else 90, parse_math=False)


def head(figure: Figure, title: str, line: str) -> None:
    """Put a title over a figure, broken where it is wider than that."""
    room = max(24, int(figure.get_figwidth() * 13))
    parts = [part.replace(" ", "\N{NO-BREAK SPACE}") if len(part) < 40 else part for part in line.split(" · ")]
    lines = [
        row.removesuffix(" ·")
        for text in (title, " · ".join(parts))
        for row in textwrap.wrap(shown_text(text), room, break_on_hyphens=False)
    ]
    figure.suptitle("\n".join(lines), fontsize=9, parse_math=False)


def shown(figure: Figure) -> Figure:
    """Have notebooks show a figure that pyplot knows nothing of."""

    def as_png() -> bytes:
        held = io.BytesIO()
        figure.savefig(held, format="png", dpi=120)
        return held.getvalue()

    figure._repr_png_ = as_png  # type: ignore[attr-defined]
    return figure
