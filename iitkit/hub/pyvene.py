"""pyvene's saved folders: ``config.json`` with ``intkey_….bin`` (or ``.safetensors``) for each intervention."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.hub.foreign import read_json, read_tensors
from iitkit.hub.pyvene_types import TYPES, Boundary, Saved
from iitkit.interventions import Intervention, SiteInfo, Vanilla
from iitkit.models.placing import place, site_info
from iitkit.models.sites import Head, Placement, Site
from iitkit.positions import Position, count

FIELDS = (
    *("layer", "component", "unit", "max_number_of_units", "low_rank_dimension", "intervention_type", "intervention"),
    *("subspace_partition", "group_key", "intervention_link_key", "moe_key", "source_representation"),
    *("hidden_source_representation", "latent_dim"),
)
"""What a representation holds, in the order in which it is saved."""
SOFT = ("Boundless", "SigmoidMask")
"""What the classes with soft masks are called."""
UNITS = ("pos", "h", "h.pos")
_TYPE = re.compile(r"<class '(pyvene(?:\.\w+)*)\.(\w+)'>")


def is_pyvene(config: Mapping[str, Any]) -> bool:
    """Return whether a config is pyvene's."""
    return "representations" in config and "intervention_types" in config


def from_pyvene(
    folder: Path,
    model: nn.Module,
    *,
    trust: bool = False,
    position: Position | None = None,
    head: Head = None,
    boundary: Boundary = "soft",
) -> dict[str, tuple[Site, Intervention]]:
    """Return a folder's interventions at their sites; see :func:`iitkit.convert`.

    Raises:
        IITKitError: a config that is not understood, a class, unit or mode that has no counterpart, or state that does
            not fit the model.
    """
    config = read_json(folder / "config.json")
    rows, types = config.get("representations"), config.get("intervention_types")
    if not isinstance(rows, list) or not isinstance(types, list) or not rows or len(rows) != len(types):
        raise IITKitError(f"{folder}: config.json has no representations with as many intervention_types")
    if config.get("mode", "parallel") != "parallel":
        raise IITKitError(
            f"{folder}: mode {config['mode']!r}, where one run feeds the next: convert it by hand to stages "
            "(iitkit.interchange_stages)"
        )
    dimensions = _column(config, "intervention_dimensions", len(rows), int, folder)
    constants = _column(config, "intervention_constant_sources", len(rows), bool, folder)
    found: dict[str, tuple[Site, Intervention]] = {}
    links: dict[str, Intervention] = {}
    seen: dict[str, int] = {}
    for i, (row, kind) in enumerate(zip(rows, types, strict=True)):
        fields, who = _fields(row, i), f"{folder}: representations[{i}]"
        key = _key(fields, seen, who)
        build = _builder(kind, who)
        constant = constants[i] is True and not any(word in str(kind) for word in ("Zero", "Collect", "Skip"))
        site = _site(fields, position, head, constant, who)
        name = _named(fields, found)
        link = fields["intervention_link_key"]
        if link is not None and str(link) in links:
            found[name] = (site, links[str(link)])
            continue
        stem = folder / f"intkey_{key}"
        there = any((folder / f"intkey_{key}{ending}").is_file() for ending in (".bin", ".safetensors"))
        needed = constant or "Rotated" in str(kind) or "Mask" in str(kind)
        tensors = read_tensors(stem, trust) if there or needed else {}
        info = _info(model, site, name)
        sizes = {size: tensors.pop(size, None) for size in ("embed_dim", "interchange_dim")}
        dimension = dimensions[i]
        dimension = info.width if dimension is None else dimension
        saved = Saved(f"{folder.name}: {key}", info, dimension, tensors, boundary)
        made = build(saved)
        for (size, held), own in zip(sizes.items(), (info.width, dimension), strict=True):
            if held is not None and held.flatten().tolist() != [own]:
                raise IITKitError(
                    f"{saved.who}: {size} {held.flatten().tolist()[:4]}: expected {own}, as the rest says"
                )
        if tensors:
            raise IITKitError(f"{saved.who}: tensors that nothing reads: {choices(sorted(tensors))}")
        if link is not None:
            links[str(link)] = made
        found[name] = (site, made)
    if head is not None and all(site.head is None for site, _ in found.values()):
        raise IITKitError(f"head {head!r}: {folder} has no component parted into heads: leave it out")
    if boundary != "soft" and not any(word in str(kind) for kind in types for word in SOFT):
        raise IITKitError(f"boundary {boundary!r}: {folder} has no soft mask: leave it out")
    return found


def _column(config: Mapping[str, Any], key: str, rows: int, kind: type, folder: Path) -> list[Any]:
    """Return what a config says of each representation under a key; None where it says nothing."""
    found = config.get(key)
    if found is None or found == []:
        return [None] * rows
    if not isinstance(found, list) or len(found) != rows or any(x is not None and type(x) is not kind for x in found):
        expected = {"int": "whole numbers", "bool": "true or false"}[kind.__name__]
        raise IITKitError(f"{folder}: {key} {str(found)[:60]}: expected {expected}, one for each representation")
    return found


def _fields(row: Any, i: int) -> dict[str, Any]:
    if isinstance(row, list) and 2 <= len(row) <= len(FIELDS):
        return {**dict.fromkeys(FIELDS), **dict(zip(FIELDS, row, strict=False))}
    if isinstance(row, dict) and set(row) <= set(FIELDS):
        return {**dict.fromkeys(FIELDS), **row}
    raise IITKitError(f"representations[{i}] is no representation of pyvene 0.1: expected {choices(FIELDS, 4)}")


def _key(fields: Mapping[str, Any], seen: dict[str, int], who: str) -> str:
    """Return what pyvene calls a representation and its file."""
    layer, component, unit, units = (fields[name] for name in FIELDS[:4])
    unit, units = unit or "pos", 1 if units is None else units
    if not isinstance(component, str) or not re.fullmatch(r"[\w.\[\]]+", component) or unit not in UNITS:
        raise IITKitError(f"{who}: component {component!r}, unit {unit!r}: expected a component and {choices(UNITS)}")
    if type(units) is not int or units < 1 or not (type(layer) is int or "." in component):
        raise IITKitError(f"{who}: layer {layer!r}, max_number_of_units {units!r}: expected whole numbers")
    if fields["moe_key"] is not None or fields["subspace_partition"] is not None:
        what = "moe_key" if fields["moe_key"] is not None else "subspace_partition"
        raise IITKitError(f"{who}: {what} {fields[what]!r} says at each call what is meant, and the folder does not")
    u = unit.replace(".", "_")
    stem = f"comp_{component.replace('.', '_')}" if "." in component else f"layer_{layer}_comp_{component}"
    stem = f"{stem}_unit_{u}_nunit_{units}"
    seen[stem] = seen.get(stem, -1) + 1
    return f"{stem}#{seen[stem]}"


def _builder(kind: Any, who: str) -> Any:
    match = _TYPE.fullmatch(kind) if isinstance(kind, str) else None
    if match is None or match[2] not in TYPES:
        hint = did_you_mean(match[2], TYPES) if match else ""
        raise IITKitError(f"{who}: intervention type {kind!r} has no counterpart.{hint} Known: {choices(TYPES, 20)}")
    return TYPES[match[2]]


def _site(fields: Mapping[str, Any], position: Position | None, head: Head, constant: bool, who: str) -> Site:
    units = fields["max_number_of_units"] or 1
    component = fields["component"]
    everywhere = constant or fields["unit"] == "h"  # the unit of a whole head is all its tokens
    at = position if position is not None else "all" if everywhere else "last"
    if units > 1 and count(at) != units:
        raise IITKitError(
            f"{who}: it edits {units} positions as one vector, and position {at!r} is not as many: say which "
            "as a list (position)"
        )
    joint = units > 1
    plain: int | str | Sequence[int | str] = at
    if "." in component:
        path, _, side = component.replace("[", ".").replace("]", "").rpartition(".")
        if side not in ("input", "output"):
            raise IITKitError(f"{who}: component {component!r}: expected a module's path with .input or .output")
        return Site(position=plain, module=path, side="input" if side == "input" else "output", joint=joint)
    own = head if component.startswith("head_") else None
    return Site(fields["layer"], component, plain, head=own, joint=joint)


def _named(fields: Mapping[str, Any], taken: Mapping[str, Any]) -> str:
    """Return a placement's name, e.g. ``layer_3_block_output``."""
    where = re.sub(r"\W+", "_", str(fields["component"]))
    name = where if "." in fields["component"] else f"layer_{fields['layer']}_{where}"
    return name if name not in taken else f"{name}_{len(taken)}"


def _info(model: nn.Module, site: Site, name: str) -> SiteInfo:
    at = site.position
    assert isinstance(at, int | str | list)
    placement = Placement(
        site.layer, site.component, at, lambda info: Vanilla(), name, site.module, site.side, site.head, site.joint
    )
    return site_info(place(model, {name: placement})[0][name])
