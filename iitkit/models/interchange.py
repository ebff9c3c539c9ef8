"""The functions for a plain model and what a tokenizer returns: ``collect`` and ``interchange``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError, choices
from iitkit.interventions import Intervention
from iitkit.models.anatomy import locate
from iitkit.models.columns import check_all, columns_of, given_tokens, of_given
from iitkit.models.editing import Stopped, Visit, stopping, visiting
from iitkit.models.location import Location
from iitkit.models.sites import Site
from iitkit.models.sources import Inputs, by_placement
from iitkit.positions import Position, resolve

Alignment = Mapping[str, tuple[Site, Intervention]]
"""Placement name → (site, intervention)."""


@torch.no_grad()
def collect(model: nn.Module, inputs: Inputs, sites: Mapping[str, Site]) -> dict[str, Tensor]:
    """Return the activations at sites. The run stops at the deepest of them.

    Args:
        model: any network; its parameters and hooks are left alone.
        inputs: what a tokenizer returns, [batch, sequence], or a tensor for a plain module.
        sites: name → site.

    Returns:
        Name → activation, [batch, positions, width] (of one head, or of what has no heads) or
        [batch, positions, heads, width] (of several heads), in the network's dtype. Of ``attention_weight`` the width
        is the number of keys.

    Raises:
        IITKitError: a site or a position that the network or the text does not have.
    """
    found: dict[str, Tensor] = {}
    _read(model, inputs, sites, found)
    return {name: found[name] for name in sites}


def interchange(
    model: nn.Module,
    base: Inputs,
    source: Inputs | Mapping[str, Inputs] | None,
    alignment: Alignment,
    *,
    strength: float = 1.0,
    source_positions: Mapping[str, Position | Tensor] | None = None,
) -> Any:
    """Run the base with activations edited by interventions that take the source's.

    Args:
        model: any network; its parameters and hooks are left alone.
        base: the inputs that are run.
        source: the inputs that activations are taken from; None if no intervention needs one. Where placements take
            theirs from different sources: placement name → inputs.
        alignment: name → (site, intervention). Several at one site apply in the order given.
        strength: ``h + strength · (edit(h) − h)``; 0 installs nothing.
        source_positions: name → position in the source, where that is another than the site's position in the base.

    Returns:
        What the model itself returns for ``base``.

    Raises:
        IITKitError: a site, position or source that does not fit.
    """
    if strength == 0 or not alignment:
        return _run(model, base)
    elsewhere = _elsewhere(source_positions, alignment)
    sources = by_placement(source, base, list(alignment), _needing(alignment))
    features: dict[str, Tensor] = {}
    for given, names in sources:
        sites = {name: _source_site(alignment[name][0], elsewhere.get(name)) for name in names}
        features |= collect(model, given, sites)
        for name in names:
            if name not in elsewhere:
                check_all(alignment[name][0], base, given, name)
    with visiting(_edits(model, base, alignment, features, strength)):
        return _run(model, base)


def interchange_stages(
    model: nn.Module,
    stages: Sequence[tuple[Inputs, Alignment]],
    *,
    strength: float = 1.0,
    source_positions: Mapping[str, Position | Tensor] | None = None,
) -> Any:
    """Run inputs one after the other, each with edits that take their activations from the edited run before it.

    Gradients flow through the edits of every stage; the first run has none.

    Args:
        model: any network; its parameters and hooks are left alone.
        stages: inputs and alignment of each run; the first run has an empty alignment, the last is the base.
        strength: as for :func:`interchange`.
        source_positions: placement name → position in the stage before its own, where that is another than the site's.

    Returns:
        What the model itself returns for the last inputs.

    Raises:
        IITKitError: no stage, edits in the first one, or a site or position that does not fit.
    """
    if not stages or stages[0][1]:
        given = f"the first has {choices(stages[0][1])}" if stages else "there are none"
        raise IITKitError(
            f"stages: {given}: expected (inputs, alignment) of each run, the first one's empty as no run precedes it"
        )
    elsewhere = _elsewhere(source_positions, {name: None for _, alignment in stages for name in alignment})
    if strength == 0:
        return _run(model, stages[-1][0])
    features: dict[str, Tensor] = {}
    for (inputs, alignment), (following, takers) in pairwise(stages):
        for name in _needing(takers):
            if name not in elsewhere:
                check_all(takers[name][0], following, inputs, name)
        sites = {name: _source_site(takers[name][0], elsewhere.get(name)) for name in _needing(takers)}
        edits, features = _edits(model, inputs, alignment, features, strength), {}
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(edits)):
            _read(model, inputs, sites, features, edits)
    base, alignment = stages[-1]
    with visiting(_edits(model, base, alignment, features, strength)):
        return _run(model, base)


def _needing(alignment: Alignment) -> list[str]:
    return [name for name, (_, intervention) in alignment.items() if intervention.needs_source]


def _elsewhere(
    source_positions: Mapping[str, Position | Tensor] | None, alignment: Mapping[str, Any]
) -> dict[str, Position | Tensor]:
    elsewhere = dict(source_positions or {})
    if unknown := [name for name in elsewhere if name not in alignment]:
        raise IITKitError(
            f"source_positions names {unknown[0]!r}, which the alignment does not place: it has {choices(alignment)}"
        )
    return elsewhere


def _source_site(site: Site, position: Position | Tensor | None) -> Site:
    return site if position is None else replace(site, position=position)


def _read(
    model: nn.Module,
    inputs: Inputs,
    sites: Mapping[str, Site],
    found: dict[str, Tensor],
    edits: Sequence[tuple[Location, Visit]] = (),
) -> None:
    """Put the activations at sites into ``found``, after the edits; the run stops at the deepest of them."""
    visits = list(edits)
    for name, site in sites.items():
        location = locate(model, site, name)
        columns = columns_of(site, inputs, name)
        visits.append((location, _reading(name, site, location, columns, given_tokens(inputs), found, len(sites))))
    if sites:
        with visiting(visits), stopping():
            _run(model, inputs)
    if missing := set(sites) - set(found):
        raise IITKitError(f"the network never ran {choices(sorted(str(sites[name]) for name in missing))}")


def _reading(
    name: str,
    site: Site,
    location: Location,
    columns: Tensor | None,
    tokens: tuple[int, int] | None,
    found: dict[str, Tensor],
    wanted: int,
) -> Visit:
    def visit(hidden: Tensor, inputs: Tensor | None) -> None:
        # a copy: what follows may change its input in place
        found[name] = _gather(hidden, _at(hidden, columns, tokens, site, location, name)).clone()
        if len(found) == wanted:
            raise Stopped

    return visit


def _edits(
    model: nn.Module, inputs: Inputs, alignment: Alignment, features: Mapping[str, Tensor], strength: float
) -> list[tuple[Location, Visit]]:
    visits: list[tuple[Location, Visit]] = []
    for name, (site, intervention) in alignment.items():
        if intervention.blocks is not None and (site.variable or name) not in intervention.blocks:
            raise IITKitError(
                f"{name}: the intervention has a block for each of {choices(intervention.blocks)}: "
                "name the placement after one of them, or say Site(variable=…)"
            )
        location, columns = locate(model, site, name), columns_of(site, inputs, name)
        edit = _editing(name, site, location, intervention, columns, given_tokens(inputs), features.get(name), strength)
        visits.append((location, edit))
    return visits


def _editing(
    name: str,
    site: Site,
    location: Location,
    intervention: Intervention,
    columns: Tensor | None,
    tokens: tuple[int, int] | None,
    source: Tensor | None,
    strength: float,
) -> Visit:
    block = (site.variable or name) if intervention.blocks is not None else None

    def visit(hidden: Tensor, inputs: Tensor | None) -> Tensor:
        where = _at(hidden, columns, tokens, site, location, name)
        before = _gather(hidden, where)
        if source is not None and source.shape != before.shape:
            raise IITKitError(
                f"{name}: the source's activation is {tuple(source.shape)}, the base's {tuple(before.shape)}: "
                "give as many rows and positions in both"
            )
        taken = None if source is None else source.to(before.device)
        entering = _entering(inputs, where, before, site, name) if intervention.needs_input else None
        edited: Tensor
        if site.joint:
            flat = [None if x is None else x.flatten(1) for x in (before, taken, entering)]
            _check_joint(flat[0], before, site, intervention, name)
            edited = intervention(flat[0], flat[1], strength=strength, inputs=flat[2], block=block).view_as(before)
        else:
            edited = intervention(before, taken, strength=strength, inputs=entering, block=block)
        if hidden.dim() == 2:
            return edited[:, 0]
        if where is None:
            return edited
        return hidden.index_put((_rows(hidden), where), edited)

    return visit


def _entering(inputs: Tensor | None, where: Tensor | None, before: Tensor, site: Site, name: str) -> Tensor:
    """Return the module's own input at the positions, [batch, positions, (heads,) input width]."""
    if inputs is None:
        raise IITKitError(
            f"{name}: the intervention reads the module's input, and {site} has none: place it at a module's output"
        )
    found = _gather(inputs, where)
    # every head sees the same input
    return found if found.dim() == before.dim() else found[:, :, None].expand(*before.shape[:3], -1)


def _check_joint(joined: Tensor | None, before: Tensor, site: Site, intervention: Intervention, name: str) -> None:
    width = intervention.space.width
    if joined is not None and width is not None and joined.shape[1] != width:
        each = joined.shape[1] // before.shape[1]
        raise IITKitError(
            f"{name}: the joint intervention was built for {width / each:g} positions of {each}, "
            f"position {site.position!r} has {before.shape[1]}"
        )


def _rows(hidden: Tensor) -> Tensor:
    return torch.arange(hidden.shape[0], device=hidden.device)[:, None]


def _at(
    hidden: Tensor, columns: Tensor | None, tokens: tuple[int, int] | None, site: Site, location: Location, name: str
) -> Tensor | None:
    """Columns of a site in its activation, [batch, k]; None for all of them.

    Where the inputs are no token ids, positions are counted in the activation. One without a sequence, [batch, width],
    has one position.
    """
    rows = hidden.shape[0] if columns is None else columns.shape[0]
    parted = location.view is not None and location.view.parted
    if hidden.dim() not in ((4,) if parted else (2, 3)) or hidden.shape[0] != rows:
        raise IITKitError(
            f"{name}: the activation at {site} is {tuple(hidden.shape)}: "
            f"expected [batch, sequence, width] or [batch, width] with a batch of {rows}"
        )
    if tokens is not None and hidden.dim() > 2 and hidden.shape[1] != tokens[1]:
        raise IITKitError(
            f"{name}: {site} has {hidden.shape[1]} positions, and {tokens[1]} tokens were given: positions cannot be "
            "counted in it (leave logits_to_keep and the like out, or name another site)"
        )
    if columns is not None:
        return columns.to(hidden.device)
    if isinstance(site.position, Tensor) or site.position == "all":
        return None
    try:
        found = resolve(site.position, 1 if hidden.dim() == 2 else hidden.shape[1])
    except IITKitError as error:
        raise IITKitError(f"{name}: {error}") from error
    return torch.tensor(found, device=hidden.device).expand(rows, -1)


def _gather(hidden: Tensor, columns: Tensor | None) -> Tensor:
    if hidden.dim() == 2:
        columns = None
        hidden = hidden.unsqueeze(1)
    if columns is None:
        return hidden
    found: Tensor = hidden[_rows(hidden), columns]
    return found


def _run(model: nn.Module, inputs: Inputs) -> Any:
    if not isinstance(inputs, Mapping):
        return model(inputs)
    arguments = dict(inputs)
    mask = arguments.get("attention_mask")
    # transformers leaves position ids at 0, 1, … under left padding; without it they are the model's own
    given, padded = given_tokens(inputs), isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask[:, 0].all())
    takes = "position_ids" in inspect.signature(model.forward).parameters
    if padded and takes and given is not None and "position_ids" not in arguments:
        assert isinstance(mask, Tensor)
        arguments["position_ids"] = of_given((mask.long().cumsum(1) - 1).clamp(min=0), given[1])
    return model(**arguments)
