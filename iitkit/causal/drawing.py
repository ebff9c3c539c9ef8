"""A causal model to look at: as text, as a mermaid flowchart, and as a plot in layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from iitkit.causal.expressions import Expression
from iitkit.causal.layers import lanes, layout
from iitkit.causal.operations import short
from iitkit.causal.tabled import Condition
from iitkit.causal.variables import Domain, Mechanism
from iitkit.errors import IITKitError, choices

if TYPE_CHECKING:
    from iitkit.causal.model import CausalModel

WIDEST = 24
"""Most lines side by side in the text's graph; a model with more is listed with its parents only."""

PAD = 0.4
"""Room around a label, in heights of its letters."""

FILLS = {"input": "#dbeafe", "computed": "#fef3c7", "output": "#dcfce7"}
LINES = {"input": "#2563eb", "computed": "#b45309", "output": "#15803d"}
SHAPES = {"input": ('(["', '"])'), "computed": ('["', '"]'), "output": ('{{"', '"}}')}


def kind_of(model: CausalModel, name: str) -> str:
    """Return what a variable is drawn as: input, computed or output."""
    return "input" if name in model.exogenous else "output" if name == model.output else "computed"


# --- text ---


def as_text(model: CausalModel) -> str:
    """Return the model as text: prompts with spans, the graph beside the variables, what each is and how computed.

    Args:
        model: the model.
    """
    parents = model.parents
    graph = lanes(parents)
    if max(map(len, graph)) > 2 * WIDEST:
        graph = [""] * len(graph)
    columns = [
        (f"{'*' if name == model.output else ' '} {name}", line) for name, line in zip(parents, graph, strict=True)
    ]
    rows = [
        [*start, _parents(model, name), _values(model, name), _how(model, name)]
        for start, name in zip(columns, parents, strict=True)
    ]
    lines = [*_prompts(model), "variables (* is the output)", *_aligned(rows)]
    if model.constraints:
        lines.append("constraints")
        lines += _aligned(
            [[f"  {name}", f"← {', '.join(c.parents)}", _computation(c)] for name, c in model.constraints.items()]
        )
    compete = " and ".join(model.candidates)
    lines.append(
        f"candidates: the values of {compete} in the base" if compete else f"candidates: every value of {model.output}"
    )
    if model.surface:
        texts = [f"{short(value)} is {' or '.join(map(short, forms))}" for (_, value), forms in model.surface.items()]
        lines.append(f"answers as text: {choices(texts, 6)}")
    return "\n".join(lines)


def _prompts(model: CausalModel) -> list[str]:
    if model.encoding is None:
        spans = f"spans: {choices(model.slots, 20)}"
        return [
            "prompts",
            *(f"  {i}  {template.template}" for i, template in enumerate(model.templates)),
            f"     {spans}",
        ]
    spans = ", ".join(f"{slot} {start}:{stop}" for slot, (start, stop) in model.encoding.spans.items())
    kind = f"inputs: {type(model.encoding).__name__} of {choices(model.slots, 20)}"
    return [f"{kind}; spans: {spans}" if spans else kind]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width] for row in rows)
    return ["  ".join(row).rstrip() for row in cells]


def _parents(model: CausalModel, name: str) -> str:
    return "" if name in model.exogenous else f"← {', '.join(model.mechanisms[name].parents)}"


def _values(model: CausalModel, name: str) -> str:
    domain = model.domains[name]
    if not domain.complete:
        return "open" if name in model.open else "found as it runs"
    return f"{len(domain)} {'value' if len(domain) == 1 else 'values'}: {_listed(domain, 40)}"


def _listed(domain: Domain, room: int) -> str:
    """The first values that fit."""
    shown = [short(value) for value in domain.values]
    n = next((n for n in range(len(shown), 0, -1) if n <= 12 and len(", ".join(shown[:n])) <= room), 0)
    return ", ".join([*shown[:n], *(["…"] if n < len(shown) else [])])


def _how(model: CausalModel, name: str) -> str:
    return "input" if name in model.exogenous else _computation(model.mechanisms[name])


def _computation(mechanism: Mechanism) -> str:
    """How a mechanism is computed: its expression, or the size of its table."""
    function = mechanism.function.function if isinstance(mechanism.function, Condition) else mechanism.function
    if isinstance(function, Expression):
        return f"= {' '.join(function.text.split())}"
    if mechanism.table is not None and bool((mechanism.table >= 0).all()):
        return f"table of {mechanism.table.size} entries" if mechanism.table.size > 1 else "table of 1 entry"
    return "function of arrays" if mechanism.vectorised else "function"


# --- mermaid ---


def as_mermaid(model: CausalModel) -> str:
    """Return the graph as a mermaid flowchart, which GitHub and the Hub draw in Markdown.

    Inputs are rounded, the output is a hexagon.

    Args:
        model: the model.
    """
    ids = {name: f"v{i}" for i, name in enumerate(model.parents)}
    lines = ["flowchart LR"]
    for name, node in ids.items():
        start, end = SHAPES[kind_of(model, name)]
        label = "<br/>".join(_escaped(line) for line in (name, _brief(model, name)) if line)
        lines.append(f"    {node}{start}{label}{end}")
    lines += [f"    {ids[parent]} --> {ids[name]}" for name, of in model.parents.items() for parent in of]
    for kind, fill in FILLS.items():
        if of_kind := [node for name, node in ids.items() if kind_of(model, name) == kind]:
            lines.append(f"    classDef {kind} fill:{fill},stroke:{LINES[kind]},color:#111")
            lines.append(f"    class {','.join(of_kind)} {kind}")
    return "\n".join(lines)


def _brief(model: CausalModel, name: str) -> str:
    """A variable's values where they are few and short, else their number, if it is known."""
    domain = model.domains[name]
    if not domain.complete:
        return "open" if name in model.open else ""
    listed = _listed(domain, 24)
    return f"{len(domain)} values" if listed.endswith("…") else listed


def _escaped(text: str) -> str:
    """Text as a mermaid label in double quotes holds it: what has a meaning to it, or to HTML, by its number."""
    return "".join(c if c.isalnum() or c in " _.,'+-=:/…" else f"#{ord(c)};" for c in text)


# --- plot ---


def plot(model: CausalModel, ax: Any = None) -> Any:
    """Draw the graph in layers, causes left of their effects, with matplotlib.

    Args:
        model: the model.
        ax: axes to draw on; a new figure of the graph's size unless given.

    Returns:
        The axes.

    Raises:
        IITKitError: matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
        from matplotlib.patches import FancyArrowPatch, Patch
        from matplotlib.path import Path
    except ImportError as error:
        raise IITKitError("a plot needs matplotlib: pip install 'iitkit[plots]'") from error
    placed = layout(model.parents)
    labels = {name: f"{name}\n{_brief(model, name)}".strip() for name in placed.places}
    across = max(x for x, _ in placed.places.values()) + 1
    points = [point for path in placed.paths.values() for point in path]
    down = max(y for _, y in [*placed.places.values(), *points]) + 1
    if ax is None:
        widest = max(len(line) for label in labels.values() for line in label.split("\n"))
        _, ax = plt.subplots(figsize=(across * (0.09 * widest + 1.1), down * 0.75 + 0.5))
    ax.set(xlim=(-0.5, across - 0.5), ylim=(down - 0.5, -0.5))
    ax.set_axis_off()
    ink = _ink(ax)
    texts = {}
    for name, (x, y) in placed.places.items():
        kind = kind_of(model, name)
        style: dict[str, Any] = {"boxstyle": f"round,pad={PAD}", "facecolor": FILLS[kind], "edgecolor": LINES[kind]}
        style["linewidth"] = 2.5 if kind == "output" else 1.2
        texts[name] = ax.text(
            *(x, y, labels[name]),
            ha="center",
            va="center",
            fontsize=9,
            color="#111",
            parse_math=False,
            bbox=style,
            zorder=3,
        )
    _fit(ax, texts)
    sides = {name: _sides(ax, text) for name, text in texts.items()}
    halves = [
        max((right - left) / 2 for name, (left, right) in sides.items() if placed.places[name][0] == k)
        for k in range(across)
    ]
    for (parent, child), path in placed.paths.items():
        stops, codes = _curve(path, sides[parent][1], sides[child][0], halves)
        line = Path(stops, [Path.MOVETO, *({"line": Path.LINETO, "curve": Path.CURVE4}[code] for code in codes)])
        arrow = FancyArrowPatch(path=line, arrowstyle="-|>", mutation_scale=10, color=ink, linewidth=1, zorder=2)
        arrow.set_gid(f"{parent}→{child}")
        ax.add_patch(arrow)
    kinds = dict.fromkeys(kind_of(model, name) for name in placed.places)
    handles = [Patch(facecolor=FILLS[kind], edgecolor=LINES[kind], label=kind) for kind in kinds]
    ax.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.02),
        ncols=3,
        frameon=False,
        labelcolor=ink,
        fontsize=8,
    )
    return ax


def _ink(ax: Any) -> Any:
    """A colour that is read on the figure's background, light or dark."""
    import matplotlib
    from matplotlib.colors import to_rgba

    red, green, blue, alpha = to_rgba(ax.figure.figure.get_facecolor())
    if alpha < 0.5:  # what is behind it is not known
        return matplotlib.rcParams["text.color"]
    return "#222222" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#dddddd"


def _box(ax: Any, text: Any) -> tuple[float, float, float, float]:
    """Left, lower, right and upper end of the box around a label, in pixels."""
    extent, pad = text.get_window_extent(), PAD * text.get_fontsize() * ax.figure.figure.dpi / 72
    return extent.x0 - pad, extent.y0 - pad, extent.x1 + pad, extent.y1 + pad


def _sides(ax: Any, text: Any) -> tuple[float, float]:
    """The left and right end of the box around a label, in the axes' units."""
    left, lower, right, _ = _box(ax, text)
    ends = ax.transData.inverted().transform([(left, lower), (right, lower)])
    return float(ends[0][0]), float(ends[1][0])


def _curve(
    path: Sequence[tuple[int, float]], start: float, end: float, halves: Sequence[float]
) -> tuple[list[tuple[float, float]], list[str]]:
    """An edge's points and what leads to each: level beside the boxes of a layer, curved from layer to layer."""
    at, codes = [(start, path[0][1])], []
    for (k, y0), (_, y1) in pairwise(path):
        right, left = k + halves[k], k + 1 - halves[k + 1]
        middle = (right + left) / 2
        at += [(right, y0), (middle, y0), (middle, y1), (left, y1)]
        codes += ["line", "curve", "curve", "curve"]
    if at[-1][0] < end - 1e-6:
        at, codes = [*at, (end, path[-1][1])], [*codes, "line"]
    return at, codes


def _fit(ax: Any, texts: Mapping[str, Any]) -> None:
    """Make the labels small enough for the axes, so that no two overlap; very small ones are of the names alone."""
    (x0, y0), (x1, y1) = ax.transData.transform([(0, 0), (1, 1)])
    for least in (0.6, 0.0):
        boxes = [_box(ax, text) for text in texts.values()]
        widest = max(right - left for left, _, right, _ in boxes)
        tallest = max(upper - lower for _, lower, _, upper in boxes)
        scale = min(1.0, 0.75 * abs(x1 - x0) / widest, 0.85 * abs(y1 - y0) / tallest)
        if scale >= least:
            break
        for name, text in texts.items():
            text.set_text(name)
    for text in texts.values():
        text.set_fontsize(text.get_fontsize() * scale)
