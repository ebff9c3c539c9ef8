"""Where the variables of a causal graph stand when it is drawn: in layers, and in lanes beside a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

SWEEPS = 12
"""How often the layers are put in order by their neighbours, from both sides."""

ROOM = 0.6
"""Least distance of an edge that passes a layer to the variables (which are 1 apart) and to other such edges."""

Graph = Mapping[str, Sequence[str]]
"""Variable → its parents, every parent before its children."""

_Slot = tuple[str, int]
"""A variable and a layer: its own, or one behind it that edges from it pass."""


@dataclass(frozen=True)
class Layout:
    """Places of variables and edges.

    Args:
        places: variable → (layer, height); layers count from the causes to the effects, heights downwards from 0.
        paths: (parent, child) → the points that the edge runs through, the two variables' own places included.
    """

    places: dict[str, tuple[int, float]]
    paths: dict[tuple[str, str], list[tuple[int, float]]]


def layers_of(parents: Graph) -> dict[str, int]:
    """Return each variable's layer: the longest path from a variable without parents."""
    found: dict[str, int] = {}
    for name, of in parents.items():
        found[name] = max((found[parent] + 1 for parent in of), default=0)
    return found


def layout(parents: Graph) -> Layout:
    """Return where to draw variables and edges, so that no two variables and no edge and variable overlap.

    Edges over several layers pass those between at places of their own; edges from one variable share these.

    Args:
        parents: the graph.
    """
    layer = layers_of(parents)
    depth = max(layer.values(), default=0) + 1
    reach = dict(layer)  # the last layer that a variable's edges pass
    for name, of in parents.items():
        for parent in of:
            reach[parent] = max(reach[parent], layer[name] - 1)
    slots: list[list[_Slot]] = [[] for _ in range(depth)]
    for name in parents:
        for k in range(layer[name], reach[name] + 1):
            slots[k].append((name, k))
    before: dict[_Slot, list[_Slot]] = {
        (name, k): [(name, k - 1)] if k > layer[name] else [(parent, k - 1) for parent in parents[name]]
        for level in slots
        for name, k in level
    }
    after: dict[_Slot, list[_Slot]] = {slot: [] for slot in before}
    for slot, near in before.items():
        for other in near:
            after[other].append(slot)
    slots = _ordered(slots, before, after)
    heights = _heights(slots, before, after, layer)
    places = {name: (layer[name], heights[name, layer[name]]) for name in parents}
    paths = {
        (parent, name): [
            *((k, heights[parent, k]) for k in range(layer[parent], layer[name])),
            places[name],
        ]
        for name, of in parents.items()
        for parent in of
    }
    return Layout(places, paths)


def _ordered(
    slots: list[list[_Slot]], before: Mapping[_Slot, list[_Slot]], after: Mapping[_Slot, list[_Slot]]
) -> list[list[_Slot]]:
    """Sort each layer by the mean place of its neighbours, from left and right in turn; return the best order."""
    best, fewest = slots, _crossings(slots, before)
    for sweep in range(SWEEPS):
        near, steps = (before, range(1, len(slots))) if sweep % 2 == 0 else (after, range(len(slots) - 2, -1, -1))
        slots = [list(level) for level in slots]
        for k in steps:
            place = {slot: i for level in slots for i, slot in enumerate(level)}
            slots[k].sort(key=lambda slot: _mean([place[other] for other in near[slot]], place[slot]))
        crossings = _crossings(slots, before)
        if crossings < fewest:
            best, fewest = slots, crossings
    return best


def _crossings(slots: Sequence[Sequence[_Slot]], before: Mapping[_Slot, list[_Slot]]) -> int:
    place = {slot: i for level in slots for i, slot in enumerate(level)}
    found = 0
    for level in slots:
        edges = [(place[other], place[slot]) for slot in level for other in before[slot]]
        found += sum((a - c) * (b - d) < 0 for i, (a, b) in enumerate(edges) for c, d in edges[:i])
    return found


def _heights(
    slots: Sequence[Sequence[_Slot]],
    before: Mapping[_Slot, list[_Slot]],
    after: Mapping[_Slot, list[_Slot]],
    layer: Mapping[str, int],
) -> dict[_Slot, float]:
    """Place each layer's slots near their neighbours, in order and with the room that they need."""
    heights: dict[_Slot, float] = {}
    gaps: list[list[float]] = []
    for level in slots:
        real = [layer[name] == k for name, k in level]
        gaps.append([0.0, *(1.0 if a and b else ROOM for a, b in pairwise(real))])
        heights.update(zip(level, _spread([0.0] * len(level), gaps[-1]), strict=True))
    for sweep in range(SWEEPS):
        order = range(len(slots)) if sweep % 2 == 0 else range(len(slots) - 1, -1, -1)
        for k in order:
            wanted = [_mean([heights[other] for other in before[s] + after[s]], heights[s]) for s in slots[k]]
            heights.update(zip(slots[k], _spread(wanted, gaps[k]), strict=True))
    top = min(heights.values(), default=0.0)
    return {slot: round(height - top, 6) for slot, height in heights.items()}


def _spread(wanted: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """Return the heights nearest to those that are wanted (least squares) that keep their order and their gaps."""
    offsets = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    blocks: list[tuple[float, int]] = []  # mean, count: neighbours that want to overtake one another move as one
    for want, offset in zip(wanted, offsets, strict=True):
        mean, count = want - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, n = blocks.pop()
            mean, count = (mean * count + other * n) / (count + n), count + n
        blocks.append((mean, count))
    flat = [mean for mean, count in blocks for _ in range(count)]
    return [mean + offset for mean, offset in zip(flat, offsets, strict=True)]


def _mean(numbers: Sequence[float], otherwise: float) -> float:
    return sum(numbers) / len(numbers) if numbers else otherwise


def lanes(parents: Graph) -> list[str]:
    """Return the graph as lines beside a list of the variables, a row each, all of one width.

    A line starts at a variable (``┐`` or ``┬``) and runs down to those that are computed from it: it joins their rows
    (``┤`` or ``┼``, at the last one ``┘`` or ``┴``) and passes all others (``│``).

    >>> for row in lanes({"noun": [], "plural": [], "subject": ["noun", "plural"], "verb": ["plural"]}):
    ...     print(row.replace(" ", "·"))
    ─┐··
    ─│─┐
    ─┴─┤
    ───┘

    Args:
        parents: the graph.
    """
    order = {name: i for i, name in enumerate(parents)}
    last = {parent: order[name] for name, of in parents.items() for parent in of}  # children stand in order
    lane: dict[str, int] = {}
    busy: list[int] = []  # the last row of each lane
    for name, i in order.items():
        if name in last:
            k = next((k for k, row in enumerate(busy) if row < i), len(busy))
            busy[k : k + 1] = [last[name]]
            lane[name] = k
    rows = []
    for name, i in order.items():
        joined = {lane[parent]: last[parent] > i for parent in parents[name]}
        passing = {k for other, k in lane.items() if order[other] < i < last[other]}
        reach = max([*joined, lane.get(name, -1)], default=-1)
        row = ""
        for k in range(len(busy)):
            more = k < reach
            if k == lane.get(name):
                cell = "┬" if more else "┐"
            elif k in joined:
                cell = ("┼" if more else "┤") if joined[k] else ("┴" if more else "┘")
            else:
                cell = "│" if k in passing else "─" if more else " "
            row += ("─" if k <= reach else " ") + cell
        rows.append(row)
    return rows
