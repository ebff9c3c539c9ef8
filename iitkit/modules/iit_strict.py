"""Strict sites: what stands outside the alignment is taken from the source, and the answer must stay the base's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from iitkit.batch import Batch, Runnable, Tokens, Values
from iitkit.errors import IITKitError
from iitkit.interventions import Intervention, Vanilla
from iitkit.models.anatomy import Location, components, layers, locate
from iitkit.models.runs import PlainRunner, label_logits
from iitkit.models.sites import Placement, Site

Strict = Literal["beside", "parts"]

PARTS = ("head_attention_value_output", "mlp_output")
"""Components that a network's parts are: they add to the residual stream side by side."""


@dataclass(frozen=True)
class StrictSite:
    """A place outside the alignment.

    Args:
        name: what metrics call it.
        location: where it is.
        aligned: placements (numbers in the alignment's order) at the same place, whose parts stay the base's.
        every: whether all positions are swapped at once; else one of each row.
    """

    name: str
    location: Location
    aligned: tuple[int, ...]
    every: bool


def strict_sites(
    model: nn.Module, alignment: Mapping[str, Placement], locations: Mapping[str, Location], how: Strict
) -> list[StrictSite]:
    """Return every place outside an alignment.

    Args:
        model: the network.
        alignment: the placements.
        locations: where they are.
        how: ``beside``: the aligned sites themselves, at all positions and heads, without the aligned parts; ``parts``:
            the attention heads and MLPs of all layers that no placement names.

    Raises:
        IITKitError: ``parts`` beside an alignment that places variables in none.
    """
    if how == "beside":
        found: dict[tuple[object, ...], Site] = {}
        members: dict[tuple[object, ...], list[int]] = {}
        for p, placement in enumerate(alignment.values()):
            key = (placement.layer, placement.component, placement.module, placement.side)
            found.setdefault(key, replace(placement.site, head=None, joint=False))
            members.setdefault(key, []).append(p)
        return [_beside(model, site, tuple(members[key])) for key, site in found.items()]
    if not any(placement.component in (*PARTS, "mlp_hidden", "mlp_activation") for placement in alignment.values()):
        raise IITKitError(
            "model.strict: parts are heads and MLPs, and the alignment places no variable in one: choose beside, or "
            f"place the variables at {' or '.join(PARTS)}"
        )
    taken = {id(location.module) for location in locations.values()}
    sites = []
    for layer in range(len(layers(model))):
        has = components(model, layer)
        for component in PARTS:
            if component not in has:
                continue
            whole = has[component]
            heads = range(whole.heads) if component.startswith("head_") else [None]
            for head in heads:
                if not _used(alignment, layer, component, head) and not (head is None and id(whole.module) in taken):
                    at = locate(model, Site(layer=layer, component=component, head=head))
                    sites.append(StrictSite(_key(at.label), at, (), every=True))
    return sites


def _used(alignment: Mapping[str, Placement], layer: int, component: str, head: int | None) -> bool:
    inner = {"mlp_hidden": "mlp_output", "mlp_activation": "mlp_output"}
    for placement in alignment.values():
        named = placement.head if isinstance(placement.head, list) else [placement.head]
        same = inner.get(placement.component, placement.component) == component
        if placement.layer == layer and same and (head is None or None in named or head in named):
            return True
    return False


def _beside(model: nn.Module, site: Site, aligned: tuple[int, ...]) -> StrictSite:
    location = locate(model, site)
    return StrictSite(_key(location.label), location, aligned, every=False)


def _key(label: str) -> str:
    return label.replace(" ", "_").replace("/", "_")


def all_aligned(site: StrictSite, edits: Sequence[Intervention], locations: Sequence[Location]) -> bool:
    """Return whether at one position nothing of the site stands outside the alignment."""
    for p in site.aligned:
        size, width = edits[p].effective_size(), locations[p].width
        whole = isinstance(edits[p], Vanilla) and size is None
        if (whole or (size is not None and size == width)) and locations[p].heads == site.location.heads:
            return True
    return False


def mixed(numbers: Tensor, step: int) -> Tensor:
    """Return a pseudo-random non-negative integer for each number, others in every step, the same in any process."""
    x = numbers.long() * 0x5851F42D4C957F2D + ((step + 1) * 0x14057B7EF767814F) % 2**62
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x & 0x7FFFFFFF


def columns_at(batch: Batch, site: StrictSite, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the columns of a strict site in the base and in the first source, [B, n], and which of them exist.

    Columns are counted from the end, so that base and source need not be equally long.
    """
    base, source, rows = batch.base, batch.sources[0], batch.rows
    given: Tokens | Values = base
    if isinstance(given, Values):
        column = torch.zeros_like(rows)[:, None]
        return column, column, torch.ones_like(column, dtype=torch.bool)
    length = torch.minimum(base.mask.sum(1), source.mask.sum(1))
    if site.every:
        back = torch.arange(int(length.max()), device=rows.device)[None].expand(len(rows), -1)
        there = back < length[:, None]
    else:
        back = (mixed(rows, step) % length)[:, None]
        there = torch.ones_like(back, dtype=torch.bool)
    return (base.last[:, None] - back).clamp(min=0), (source.last[:, None] - back).clamp(min=0), there


def strict_logits(
    model: nn.Module,
    site: StrictSite,
    batch: Batch,
    locations: Sequence[Location],
    edits: Sequence[Intervention],
    labels: Tensor,
    step: int,
    gradients: bool,
) -> Tensor:
    """Run the base with a strict site taken from the first source, [B, T, vocabulary].

    The whole site is swapped first; then the parts that the alignment names are put back to what they are in the base.

    Args:
        model: the network.
        site: the site.
        batch: the pairs.
        locations: where the alignment's placements are.
        edits: their interventions.
        labels: what the logits are wanted for, [B, T].
        step: number of the step, for the positions that are drawn.
        gradients: whether they flow through the source's run.
    """
    into, out_of, there = columns_at(batch, site, step)
    own = list(site.aligned)
    n = max(into.shape[1], batch.base_positions.shape[2])

    def stacked(first: Tensor, others: Tensor) -> Tensor:
        parts = [first[:, None], *(others[:, p, None] for p in own)]
        return torch.cat([torch.nn.functional.pad(part, (0, n - part.shape[2])) for part in parts], 1)

    of = torch.tensor([0, *[1] * len(own)], device=batch.rows.device).expand(len(batch), -1)
    swap = Runnable(
        base=batch.base,
        sources=(batch.sources[0], batch.base),
        active=torch.ones_like(of, dtype=torch.bool),
        source_of=of,
        base_positions=stacked(into, batch.base_positions),
        source_positions=stacked(out_of, batch.base_positions),
        position_mask=stacked(there, batch.position_mask),
        labels=labels,
    )
    runner = PlainRunner(model, [site.location, *(locations[p] for p in own)], gradients)
    return label_logits(runner.prepare(swap), [Vanilla(), *(edits[p] for p in own)], labels)
