"""The functions for a plain model and what a tokenizer returns: ``collect`` and ``interchange``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError, choices
from iitkit.interventions import Intervention
from iitkit.models.anatomy import Location, locate
from iitkit.models.editing import Stopped, Visit, stopping, visiting
from iitkit.models.sites import Site
from iitkit.positions import resolve

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
            found[name] = _gather(hidden, columns[name])
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
) -> Any:
    """Run the base with activations edited by interventions that take the source's.

    Args:
        model: any network; its parameters and hooks are left alone.
        base: the inputs that are run.
        source: the inputs that activations are taken from; None if no intervention needs one.
        alignment: name → (site, intervention). Several at one site apply in the order given.
        strength: ``h + strength · (edit(h) − h)``; 0 installs nothing.

    Returns:
        What the model itself returns for ``base``.

    Raises:
        IITKitError: a site, position or source that does not fit.
    """
    if strength == 0 or not alignment:
        return _run(model, base)
    sites = {name: site for name, (site, _) in alignment.items()}
    needing = {name: sites[name] for name, (_, intervention) in alignment.items() if intervention.needs_source}
    if needing and source is None:
        raise IITKitError(f"{choices(needing)}: the intervention takes activations from a source: give one")
    features = collect(model, source, needing) if source is not None else {}
    visits: list[tuple[Location, Visit]] = []
    for name, (site, intervention) in alignment.items():
        columns = _columns(site, base, name)
        visits.append((locate(model, site, name), _editing(name, intervention, columns, features.get(name), strength)))
    with visiting(visits):
        return _run(model, base)


def _editing(
    name: str, intervention: Intervention, columns: Tensor | None, source: Tensor | None, strength: float
) -> Visit:
    def visit(hidden: Tensor) -> Tensor:
        before = _gather(hidden, columns)
        if source is not None and source.shape != before.shape:
            raise IITKitError(
                f"{name}: the source's activation is {tuple(source.shape)}, the base's {tuple(before.shape)}: "
                "give as many rows and positions in both"
            )
        edited = intervention(before, source, strength=strength)
        if hidden.dim() == 2:
            return edited[:, 0]
        if columns is None:
            return edited
        rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
        return hidden.index_put((rows, columns.to(hidden.device)), edited)

    return visit


def _gather(hidden: Tensor, columns: Tensor | None) -> Tensor:
    if hidden.dim() == 2:  # a plain module without a sequence: one position
        return hidden[:, None]
    if columns is None:
        return hidden
    rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
    return hidden[rows, columns.to(hidden.device)]


def _columns(site: Site, inputs: Inputs, name: str) -> Tensor | None:
    """Columns of a site's positions, [batch, k]; None for all, or where there is no sequence."""
    if isinstance(site.position, Tensor):
        if site.position.dim() != 2 or site.position.is_floating_point():
            raise IITKitError(
                f"{name}: position of shape {tuple(site.position.shape)} ({site.position.dtype}): "
                "expected integers of shape [batch, k]"
            )
        return site.position
    ids = inputs["input_ids"] if isinstance(inputs, Mapping) and "input_ids" in inputs else None
    if ids is None or site.position == "all":
        return None
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    mask = torch.ones_like(ids) if mask is None else mask
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


def _run(model: nn.Module, inputs: Inputs) -> Any:
    if not isinstance(inputs, Mapping):
        return model(inputs)
    arguments = dict(inputs)
    mask = arguments.get("attention_mask")
    # transformers leaves position ids at 0, 1, … under left padding; without it they are the model's own
    if isinstance(mask, Tensor) and mask.dim() == 2 and "position_ids" not in arguments and not bool(mask[:, 0].all()):
        if "position_ids" in inspect.signature(model.forward).parameters:
            arguments["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
    return model(**arguments)
