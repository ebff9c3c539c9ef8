"""From an alignment to locations in a network and interventions built for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.interventions import Intervention, SiteInfo
from iitkit.models.anatomy import Location, locate
from iitkit.models.sites import Placement
from iitkit.positions import count


def place(
    model: nn.Module, alignment: Mapping[str, Placement], generator: torch.Generator | None = None
) -> tuple[dict[str, Location], dict[str, Intervention]]:
    """Find every placement's site in a network and build its intervention.

    Args:
        model: the network.
        alignment: placement name → where it lives.
        generator: draws the starts.

    Returns:
        Every placement's location and intervention; the same object where a placement shares another's.

    Raises:
        IITKitError: a site that the network does not have, or options that do not fit the site.
    """
    locations, sites = {}, {}
    for name, placement in alignment.items():
        locations[name], sites[name] = _seen(model, placement, name, generator)
    interventions: dict[str, Intervention] = {}
    for name, placement in alignment.items():
        if placement.shared_with is None:
            try:
                interventions[name] = placement.build(sites[name])
            except IITKitError as error:
                raise IITKitError(f"alignment.{name}.intervention: {error}") from error
    for name, placement in alignment.items():
        if placement.shared_with is not None:
            owner = placement.shared_with
            if owner not in interventions or alignment[owner].shared_with is not None:
                owners = [other for other, its in alignment.items() if its.shared_with is None]
                raise IITKitError(
                    f"alignment.{name}: shared_with {owner!r} is no placement with an intervention of its own."
                    f"{did_you_mean(owner, owners)} Expected one of {choices(owners)}"
                )
            if sites[owner] != sites[name]:
                raise IITKitError(
                    f"alignment.{name}: it shares the intervention of {owner!r}, whose site has width "
                    f"{sites[owner].width} (input {sites[owner].input_width}, {sites[owner].positions} positions), "
                    f"its own {sites[name].width} ({sites[name].input_width}, {sites[name].positions}): "
                    "share between sites of equal sizes"
                )
            interventions[name] = interventions[owner]
    for name, placement in alignment.items():
        blocks = interventions[name].blocks
        if blocks is not None and placement.variable not in blocks:
            raise IITKitError(
                f"alignment.{name}: variable {placement.variable!r} has no block of its own in the rotation: "
                f"it has {choices(blocks)}"
            )
    # in the alignment's order, in which several at one site apply
    return locations, {name: interventions[name] for name in alignment}


def _seen(
    model: nn.Module, placement: Placement, name: str, generator: torch.Generator | None
) -> tuple[Location, SiteInfo]:
    """Return a placement's location and what its intervention may know of it."""
    location = locate(model, placement.site, f"alignment.{name}")
    if placement.module is None and placement.component == "logits":
        # training and measuring compute them at the labels alone
        raise IITKitError(f"alignment.{name}: a variable cannot be placed in the logits: choose final_norm or a layer")
    if location.width is None:
        raise IITKitError(
            f"alignment.{name}: the width of {location.label} is not known or not fixed: name another component, or a "
            "linear module"
        )
    joined = 0
    if placement.joint:
        found = count(placement.position)
        if found is None:
            raise IITKitError(
                f"alignment.{name}: joint needs a position with a fixed number of tokens, not {placement.position!r}: "
                "name integers, spans' first and last tokens, or 'f2+l2'"
            )
        joined = found
    location = replace(location, joined=joined, variable=placement.variable)
    return location, site_info(location, generator)


def site_info(location: Location, generator: torch.Generator | None = None) -> SiteInfo:
    """Return what an intervention at a location sees: one position (of one head), or all of them joined."""
    assert location.width is not None
    entering = location.input_width
    return SiteInfo(
        width=location.width * (location.heads * location.joined or 1),
        input_width=entering * location.joined if location.joined and entering is not None else entering,
        heads=location.heads,
        positions=max(location.joined, 1),
        generator=generator,
    )
