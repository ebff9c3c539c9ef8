"""Artifacts of interventions that no module trained: vectors, converted ones, whatever stands in an alignment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iitkit import __version__
from iitkit.errors import IITKitError
from iitkit.hub.identity import identity
from iitkit.hub.saving import write_artifact
from iitkit.hub.values import Values
from iitkit.interventions import Intervention, SiteInfo
from iitkit.models.fingerprint import tokenizer_digests
from iitkit.models.interchange import Alignment
from iitkit.models.placing import place, site_info
from iitkit.models.sites import Placement, Site


def save(
    folder: str | os.PathLike[str],
    model: nn.Module,
    alignment: Alignment,
    tokenizer: Any = None,
    *,
    base: str | None = None,
    values: Mapping[str, Values] | None = None,
    metrics: Mapping[str, float | None] | None = None,
    task: str | None = None,
    prefix: str = "",
    **more: Any,
) -> Path:
    """Write interventions at sites of a model as an artifact, which :func:`iitkit.load` reads.

    Args:
        folder: the artifact's folder; one that is there is replaced.
        model: the base model, with or without weights.
        alignment: placement name → (site, intervention), as :func:`iitkit.intervening` takes it. A site's position is
            a name or an integer, not a tensor of columns. An intervention at several sites is stored once.
        tokenizer: the model's; another one is warned of later.
        base: what the model was loaded from, where that is not ``model.name_or_path``.
        values: placement name → what its variable's values look like at the site.
        metrics: what was measured, ``group/rate`` → number, e.g. ``test/iia``.
        task: what the interventions are for.
        prefix: text that stood before the prompts they were made from.
        more: further plain values for config.json.

    Returns:
        The folder.

    Raises:
        IITKitError: an empty alignment, a site that the model does not have, an intervention of another width or one
            that must still see data, or a folder that cannot be written.
    """
    if not alignment:
        raise IITKitError("the alignment is empty: there is nothing to save")
    owners: dict[int, str] = {}
    placements = {name: _placement(name, site, edit, owners) for name, (site, edit) in alignment.items()}
    locations, edits = place(model, placements)
    sizes = {name: site_info(location) for name, location in locations.items()}
    for name, edit in edits.items():
        if edit.space.width not in (None, sizes[name].width):
            raise IITKitError(
                f"{name}: the intervention was built for width {edit.space.width}, {locations[name].label} has "
                f"{sizes[name].width}"
            )
    if tokenizer is not None:
        more["tokenizer"] = tokenizer_digests(tokenizer)
    return write_artifact(
        folder,
        edits,
        {name: placement.where() for name, placement in placements.items()},
        identity(model, base),
        sizes,
        values,
        metrics=metrics,
        task=task,
        prefix=prefix,
        versions={"iitkit": __version__, "torch": torch.__version__},
        **more,
    )


def _placement(name: str, site: Site, edit: Intervention, owners: dict[int, str]) -> Placement:
    if isinstance(site.position, Tensor):
        raise IITKitError(f"{name}: a tensor of columns means nothing in other text: name the position, e.g. 'all'")
    owner = owners.setdefault(id(edit), name)
    at = site.position if isinstance(site.position, int | str) else list(site.position)
    return Placement(
        site.layer,
        site.component,
        at,
        _given(edit),
        site.variable or name,
        site.module,
        site.side,
        site.head,
        site.joint,
        None if owner == name else owner,
    )


def _given(edit: Intervention) -> Callable[[SiteInfo], Intervention]:
    return lambda site: edit
