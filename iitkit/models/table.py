"""A network's components as a table."""

from __future__ import annotations

from torch import nn

from iitkit.models.anatomy import COMPONENTS, components, layers, why_not
from iitkit.models.families import hidden_size, sizes
from iitkit.models.location import Location
from iitkit.models.sites import OUTSIDE
from iitkit.models.views import Entries

Row = tuple[str, ...]


def summary(model: nn.Module) -> str:
    """Return one line on a network: class, layers, width."""
    return f"{type(model).__name__}: layers 0 to {len(layers(model)) - 1}, hidden size {hidden_size(model)}"


def rows(model: nn.Module) -> list[Row]:
    """Return component, layers, module, side, width and heads of everything that a network has.

    Layers that are alike share a row. A part of a fused projection says which entries.
    """
    paths = {module: path for path, module in model.named_modules()}
    found: dict[tuple[str, Row], list[int]] = {}
    outside = components(model, None)
    for layer in range(len(layers(model))):
        for component, location in components(model, layer).items():
            row = _row(location, paths[location.module], layer)
            found.setdefault((component, row), []).append(layer)
    inside = {(component, row): _ranges(there) for (component, row), there in found.items()}
    table = []
    for component in COMPONENTS:
        if component in outside:
            module, *rest = _row(outside[component], paths[outside[component].module], None)
            table.append((component, "", module, *rest))
        table += [(component, there, *row) for (other, row), there in inside.items() if other == component]
    return table


def without(model: nn.Module, table: list[Row]) -> list[str]:
    """Return a line for each reason why a network lacks components that are not in its ``table``, naming them."""
    there = {row[0] for row in table}
    fullest = max(range(len(layers(model))), key=lambda layer: len(components(model, layer)))
    reasons: dict[str, list[str]] = {}
    for component in COMPONENTS:
        if component not in there:
            reason = why_not(model, None if component in OUTSIDE else fullest, component)
            reasons.setdefault(str(reason), []).append(component)
    return [f"no {', '.join(lacking)}: {reason}" for reason, lacking in reasons.items()]


def _row(location: Location, path: str, layer: int | None) -> Row:
    parts = path.split(".") if path else ["(the network)"]
    if layer is not None and str(layer) in parts:
        parts[parts.index(str(layer))] = "{layer}"
    side = location.inside.called if location.inside is not None else location.side
    if isinstance(location.view, Entries) and len(location.view.index) < (sizes(location.module)[1] or 0):
        side += f" [{location.view.index[0]}…]"  # a part of a fused projection
    width = "keys" if location.eager is not None else str(location.width or "?")
    heads = str(location.heads) if location.view is not None and location.view.parted else ""
    return ".".join(parts), side, width, heads


def _ranges(numbers: list[int]) -> str:
    """Return ``0–3, 5`` for 0, 1, 2, 3, 5."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in found)
