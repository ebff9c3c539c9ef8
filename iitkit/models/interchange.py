"""The functions for a plain model and what a tokenizer returns: ``collect`` and ``interchange``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError, choices
from iitkit.interventions import Intervention
from iitkit.models.anatomy import Location, locate
from iitkit.models.editing import Stopped, Visit, stopping, visiting
from iitkit.models.sites import Site
from iitkit.positions import Position, resolve

Inputs = Mapping[str, Any] | Tensor
"""What a tokenizer returns (a mapping of tensors, padded on either side), or a tensor for a plain module."""


@torch.no_grad()
def collect(model: nn.Module, inputs: Inputs, sites: Mapping[str, Site]) -> dict[str, Tensor]:
    """Return the activations at sites. The run stops at the deepest of them.

    Args:
        model: any network; its parameters and hooks are left alone.
        inputs: what a tokenizer returns, [batch, sequence].
        sites: name → site.

    Returns:
        Name → activation, [batch, positions, width], in the network's dtype.

    Raises:
        IITKitError: a site or a position that the network or the text does not have.
    """
    locations = {name: locate(model, site, name) for name, site in sites.items()}
    columns = {name: _columns(site, inputs, name) for name, site in sites.items()}
    found: dict[str, Tensor] = {}

    def reading(name: str) -> Visit:
        def visit(hidden: Tensor) -> None:
            # a copy: what follows may change its input in place
            found[name] = _gather(hidden, _at(hidden, columns[name], sites[name], name)).clone()
            if len(found) == len(sites):
                raise Stopped

        return visit

    if sites:
        with visiting([(location, reading(name)) for name, location in locations.items()]), stopping():
            _run(model, inputs)
    if missing := set(sites) - set(found):
        raise IITKitError(f"the network never ran {choices(sorted(str(sites[name]) for name in missing))}")
    return {name: found[name] for name in sites}


def interchange(
    model: nn.Module,
    base: Inputs,
    source: Inputs | None,
    alignment: Mapping[str, tuple[Site, Intervention]],
    *,
    strength: float = 1.0,
    source_positions: Mapping[str, Position | Tensor] | None = None,
) -> Any:
    """Run the base with activations edited by interventions that take the source's.

    Args:
        model: any network; its parameters and hooks are left alone.
        base: the inputs that are run.
        source: the inputs that activations are taken from; None if no intervention needs one.
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
    elsewhere = dict(source_positions or {})
    if unknown := [name for name in elsewhere if name not in alignment]:
        raise IITKitError(
            f"source_positions names {unknown[0]!r}, which the alignment does not place: it has {choices(alignment)}"
        )
    needing = {
        name: replace(site, position=elsewhere.get(name, site.position))
        for name, (site, intervention) in alignment.items()
        if intervention.needs_source
    }
    if needing and source is None:
        raise IITKitError(f"{choices(needing)}: the intervention takes activations from a source: give one")
    features = collect(model, source, needing) if source is not None else {}
    visits: list[tuple[Location, Visit]] = []
    for name, (site, intervention) in alignment.items():
        columns = _columns(site, base, name)
        if name in features and name not in elsewhere:
            _check_all(site, base, source, name)
        edit = _editing(name, site, intervention, columns, features.get(name), strength)
        visits.append((locate(model, site, name), edit))
    with visiting(visits):
        return _run(model, base)


def _editing(
    name: str,
    site: Site,
    intervention: Intervention,
    columns: Tensor | None,
    source: Tensor | None,
    strength: float,
) -> Visit:
    def visit(hidden: Tensor) -> Tensor:
        where = _at(hidden, columns, site, name)
        before = _gather(hidden, where)
        if source is not None and source.shape != before.shape:
            raise IITKitError(
                f"{name}: the source's activation is {tuple(source.shape)}, the base's {tuple(before.shape)}: "
                "give as many rows and positions in both"
            )
        edited: Tensor = intervention(before, source, strength=strength)
        if hidden.dim() == 2:
            return edited[:, 0]
        if where is None:
            return edited
        return hidden.index_put((_rows(hidden), where), edited)

    return visit


def _rows(hidden: Tensor) -> Tensor:
    return torch.arange(hidden.shape[0], device=hidden.device)[:, None]


def _at(hidden: Tensor, columns: Tensor | None, site: Site, name: str) -> Tensor | None:
    """Columns of a site in its activation, [batch, k]; None for all of them.

    Where the inputs are no token ids, positions are counted in the activation. One without a sequence, [batch, width],
    has one position.
    """
    rows = hidden.shape[0] if columns is None else columns.shape[0]
    if hidden.dim() not in (2, 3) or hidden.shape[0] != rows:
        raise IITKitError(
            f"{name}: the activation at {site} is {tuple(hidden.shape)}: "
            f"expected [batch, sequence, width] or [batch, width] with a batch of {rows}"
        )
    if columns is not None:
        return columns.to(hidden.device)
    if isinstance(site.position, Tensor) or site.position == "all":
        return None
    try:
        found = resolve(site.position, hidden.shape[1] if hidden.dim() == 3 else 1)
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


def _mask(inputs: Inputs) -> Tensor | None:
    """1 at real tokens, [batch, sequence]; None where the inputs are no token ids."""
    if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
        return None
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    return torch.ones_like(ids) if mask is None else mask


def _check_all(site: Site, base: Inputs, source: Inputs | None, name: str) -> None:
    """Check that ``all`` pairs each token of the base with one of the source."""
    if source is None or isinstance(site.position, Tensor) or site.position != "all":
        return
    ours, theirs = _mask(base), _mask(source)
    if ours is not None and theirs is not None and not torch.equal(ours.bool(), theirs.to(ours.device).bool()):
        raise IITKitError(
            f"{name}: position 'all' needs prompts of equal lengths in base and source, padded alike: "
            "their attention masks differ"
        )


def _columns(site: Site, inputs: Inputs, name: str) -> Tensor | None:
    """Columns of a site's positions among the tokens, [batch, k]; None for all, or where the inputs are no tokens."""
    mask = _mask(inputs)
    if isinstance(site.position, Tensor):
        return _checked(site.position, mask, name)
    if mask is None or site.position == "all":
        return None
    rows = []
    for row in mask:
        real = row.nonzero()[:, 0]
        try:
            rows.append(real[resolve(site.position, len(real))])
        except IITKitError as error:
            raise IITKitError(f"{name}: {error}") from error
    if len({len(row) for row in rows}) > 1:
        raise IITKitError(f"{name}: position {site.position!r} has another number of tokens in different rows")
    return torch.stack(rows)


def _checked(position: Tensor, mask: Tensor | None, name: str) -> Tensor:
    wrong = position.is_floating_point() or position.is_complex() or position.dtype == torch.bool
    if position.dim() != 2 or wrong or (mask is not None and position.shape[0] != mask.shape[0]):
        rows = "batch" if mask is None else f"batch = {mask.shape[0]}"
        raise IITKitError(
            f"{name}: position of shape {tuple(position.shape)} ({position.dtype}): "
            f"expected integers of shape [{rows}, k]"
        )
    if position.numel() and int(position.min()) < 0:
        raise IITKitError(
            f"{name}: a tensor of positions names columns of the input, from 0: {int(position.min())} is none"
        )
    if mask is not None:
        inside = position < mask.shape[1]
        real = mask.to(position.device).gather(1, position.long().clamp(max=mask.shape[1] - 1)).bool() & inside
        if not real.all():
            row, k = (~real).nonzero()[0].tolist()
            raise IITKitError(f"{name}: column {int(position[row, k])} of row {row} is padding or outside the input")
    return position


def _run(model: nn.Module, inputs: Inputs) -> Any:
    if not isinstance(inputs, Mapping):
        return model(inputs)
    arguments = dict(inputs)
    mask = arguments.get("attention_mask")
    # transformers leaves position ids at 0, 1, … under left padding; without it they are the model's own
    padded = isinstance(mask, Tensor) and mask.dim() == 2 and not bool(mask[:, 0].all())
    takes = "position_ids" in inspect.signature(model.forward).parameters
    if padded and takes and "position_ids" not in arguments:
        assert isinstance(mask, Tensor)
        arguments["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
    return model(**arguments)
