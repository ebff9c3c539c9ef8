"""Strict sites: what stands outside the alignment is taken from the source, and the answer must stay the base's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iitkit.batch import Batch, Runnable, Tokens, Values
from iitkit.errors import IITKitError
from iitkit.interventions import Intervention, Vanilla
from iitkit.models.anatomy import Location, components, layers, locate
from iitkit.models.runs import PlainPrepared, PlainRunner, label_logits
from iitkit.models.sites import Placement, Site

Strict = Literal["beside", "parts"]

PARTS = ("head_attention_value_output", "mlp_output")
"""Components that a network's parts are: they add to the residual stream side by side."""

ATTENTION, MLP = ("attention_", "head_"), "mlp_"
"""How the names of components begin that are in heads, and in an MLP."""

OF_ONE_HEAD = ("head_query_output", "head_attention_value_output", "attention_weight")
"""Components whose head is one of the attention's own."""


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
        IITKitError: ``parts`` beside a placement that is in none.
    """
    if how == "beside":
        found: dict[tuple[object, ...], Site] = {}
        members: dict[tuple[object, ...], list[int]] = {}
        for p, placement in enumerate(alignment.values()):
            key = (placement.layer, placement.component, placement.module, placement.side)
            found.setdefault(key, replace(placement.site, head=None, joint=False))
            members.setdefault(key, []).append(p)
        return [_beside(model, site, tuple(members[key])) for key, site in found.items()]
    for name, placement in alignment.items():
        if placement.module is not None or not placement.component.startswith((*ATTENTION, MLP)):
            raise IITKitError(
                f"model.strict: parts are heads and MLPs, and alignment.{name} is in none of them (the parts below "
                f"make what is there): choose beside, or place every variable at {' or '.join(PARTS)}"
            )
    sites = []
    for layer in range(len(layers(model))):
        has = components(model, layer)
        for component in PARTS:
            if component not in has:
                continue
            whole = has[component]
            heads = range(whole.heads) if component.startswith("head_") else [None]
            for head in heads:
                if not _used(alignment, layer, component, head):
                    at = locate(model, Site(layer=layer, component=component, head=head))
                    sites.append(StrictSite(_key(at.label), at, (), every=True))
    return sites


def _used(alignment: Mapping[str, Placement], layer: int, component: str, head: int | None) -> bool:
    """Whether a placement is in a part: in the MLP, or in a head; keys and values may be of several heads."""
    for placement in alignment.values():
        if placement.layer != layer or placement.component.startswith(MLP) != (component == PARTS[1]):
            continue
        named = placement.head if isinstance(placement.head, list) else [placement.head]
        if placement.component not in OF_ONE_HEAD or None in named or head in named:
            return True
    return False


def _beside(model: nn.Module, site: Site, aligned: tuple[int, ...]) -> StrictSite:
    location = locate(model, site)
    return StrictSite(_key(location.label), location, aligned, every=False)


def _key(label: str) -> str:
    return label.replace(" ", "_").replace("/", "_")


def all_aligned(
    site: StrictSite, edits: Sequence[Intervention], locations: Sequence[Location], batch: Batch[Any]
) -> bool:
    """Return whether nothing of the site stands outside the alignment, whose parts are disjoint, in any row."""
    if site.every:
        return False
    aligned, width = 0.0, site.location.width or 0
    for p in site.aligned:
        base = batch.base
        if isinstance(base, Tokens) and bool((batch.position_mask[:, p].sum(1) < base.mask.sum(1)).any()):
            continue
        kept = edits[p].mask.weights(locations[p].variable) if edits[p].blocks is not None else None
        size = edits[p].effective_size() if kept is None else float(kept.sum())
        if size is None:
            size = edits[p].space.size or width
        aligned += size * locations[p].heads if size <= width else 0.0  # more of them are no orthogonal directions
    return aligned >= width * site.location.heads > 0


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
        gradients: whether they flow through the source's run; through the base's they do.
    """
    into, out_of, there = columns_at(batch, site, step)
    own = list(site.aligned)
    at = [locations[p] for p in own]
    swap = _one_source(batch, batch.sources[0], into[:, None], out_of[:, None], there[:, None])
    columns, real = batch.base_positions[:, own], batch.position_mask[:, own]
    keep = _one_source(batch, batch.base, columns, columns, real)
    outside = PlainRunner(model, [site.location], gradients).prepare(swap)
    kept = PlainRunner(model, at, gradients=True).prepare(keep)  # the base's own run, whatever the source's is
    prepared = PlainPrepared(
        PlainRunner(model, [site.location, *at]),
        batch.base,
        [*outside.selections, *kept.selections],
        [*outside.features, *kept.features],
    )
    return label_logits(prepared, [Vanilla(), *(edits[p] for p in own)], labels)


def _one_source(batch: Batch, source: Tokens | Values, into: Tensor, out_of: Tensor, there: Tensor) -> Runnable[Any]:
    """Every row's positions ``into`` [B, P, n] from one source's ``out_of``."""
    active = torch.ones(into.shape[:2], dtype=torch.bool, device=into.device)
    return Runnable(
        base=batch.base,
        sources=(source,),
        active=active,
        source_of=torch.zeros_like(active, dtype=torch.long),
        base_positions=into,
        source_positions=out_of,
        position_mask=there,
        labels=batch.labels,
    )
