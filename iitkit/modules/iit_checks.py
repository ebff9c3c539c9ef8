"""What interchange intervention training cannot be right with, found before it starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from iitkit.batch import Batch
from iitkit.errors import IITKitError, choices
from iitkit.interventions import Intervention
from iitkit.interventions.masks import Indices
from iitkit.interventions.spaces import Identity
from iitkit.models.anatomy import Location
from iitkit.models.sites import Placement

log = logging.getLogger("iitkit")

SWAPS = "Vanilla, LowRankSubspace, RotatedSubspace, …"


def check_terms(train: str, terms: Sequence[str], alternating: bool) -> None:
    """Refuse terms of the loss that nothing which trains is in.

    Raises:
        IITKitError: saying which weight to set.
    """
    interchanges = [name for name in terms if name in ("iit", "strict")]
    if train != "base" and not interchanges:
        raise IITKitError(
            f"model.train: {train}: interventions train by interchanges: set w_iit or w_strict above 0, or train: base"
        )
    if train == "interventions" and "kl" in terms:
        raise IITKitError("model.w_kl is of a base that trains: set model.train to base or both, or w_kl to 0")
    if train == "interventions" and "behaviour" in terms and alternating:
        raise IITKitError(
            "model.alternating: in the behaviour's steps nothing would train, as the base stays as it is: set "
            "w_behaviour to 0"
        )


def check_same(given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Compare what trained of a base with what is to train.

    Args:
        given: a checkpoint's arguments.
        own: this module's.

    Raises:
        IITKitError: naming the option that differs.
    """
    for key in ("train", "parameters", "lora"):
        if given.get(key) != own.get(key):
            raise IITKitError(
                f"the checkpoint was trained with model.{key} {given.get(key)}, not {own.get(key)}: give that, or fit "
                "anew"
            )


def check_swaps(alignment: Mapping[str, Placement], edits: Sequence[Intervention]) -> None:
    """Refuse interventions that take nothing from a source.

    Raises:
        IITKitError: naming the placement.
    """
    for name, edit in zip(alignment, edits, strict=True):
        if not edit.needs_source:
            raise IITKitError(
                f"alignment.{name}: {edit.title} takes nothing from a source, and IIT trains by interchanges: choose "
                f"{SWAPS}"
            )


def drops(module: nn.Module) -> bool:
    """Return whether a module drops something in train mode: a dropout, or what does it by a function."""
    if isinstance(module, _DropoutNd):
        return module.p > 0
    rates = (getattr(module, name, None) for name in ("dropout", "attention_dropout", "dropout_p"))
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def moving_parts(model: nn.Module) -> tuple[list[str], list[str]]:
    """Return a network's dropout layers that drop something, and its batch norms, by name."""
    dropout = [name for name, m in model.named_modules() if drops(m)]
    norms = [name for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    return dropout, norms


def tell_moving_parts(model: nn.Module) -> None:
    """Say what stays off, or as it is, while a base trains by interchanges.

    Raises:
        IITKitError: a batch norm that keeps no running statistics: it mixes rows in eval mode too.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and not module.track_running_stats:
            raise IITKitError(
                f"the base's {name} ({type(module).__name__}) keeps no running statistics, so that each row depends on "
                "the others of its batch: set its track_running_stats to true and train these first"
            )
    dropout, norms = moving_parts(model)
    if dropout:
        log.warning(
            "dropout of the base (%s) stays off: under it base and source would be run by different networks; to train "
            "with dropout, fit the behaviour elsewhere first",
            choices(dropout, 2),
        )
    if norms:
        log.warning(
            "batch norms of the base (%s) use their running statistics, which stay as they are: a norm of the batch "
            "would carry the source's rows into the base's; train these elsewhere first",
            choices(norms, 2),
        )


def check_still(model: nn.Module) -> None:
    """Refuse a base in train mode during an interchange.

    Raises:
        IITKitError: dropout or batch norm in train mode.
    """
    for name, module in model.named_modules():
        if module.training and (drops(module) or isinstance(module, _BatchNorm)):
            raise IITKitError(
                f"the base's {name} ({type(module).__name__}) is in train mode during an interchange, so that base and "
                "source are not run by the same network: call base_model.eval(), or the module's own train()"
            )


def check_apart(
    alignment: Mapping[str, Placement], locations: Sequence[Location], edits: Sequence[Intervention], batch: Batch
) -> None:
    """Refuse two variables at one site whose parts are not disjoint.

    Raises:
        IITKitError: naming both placements.
    """
    names = list(alignment)
    for q, second in enumerate(names):
        for p, first in enumerate(names[:q]):
            same = alignment[first].variable == alignment[second].variable
            if (
                same
                or not _one_place(alignment[first], alignment[second], locations[p], locations[q])
                or _disjoint(locations, edits, p, q)
            ):
                continue
            here, there = batch.base_positions[:, p, :, None], batch.base_positions[:, q, None]
            both = batch.position_mask[:, p, :, None] & batch.position_mask[:, q, None]
            if bool(((here == there) & both).any()):
                raise IITKitError(
                    f"alignment.{second}: it has the site of {first!r} ({locations[p].label}, position "
                    f"{alignment[second].position}), and the two have no parts of their own: give both a block of one "
                    f"rotation ({first}: RotatedSubspace with coordinates: {{{alignment[first].variable}: 8, "
                    f"{alignment[second].variable}: 8}}, {second}: shared_with: {first}), or Vanilla with different "
                    "features"
                )


def _one_place(first: Placement, second: Placement, one: Location, other: Location) -> bool:
    """Return whether two placements are at one activation; what leaves a layer is what enters the next."""
    if (one.module, one.side, one.inside) == (other.module, other.side, other.inside):
        return True
    between = [
        placement.layer + (placement.component == "block_output")
        for placement in (first, second)
        if placement.module is None and placement.layer is not None and placement.component.startswith("block_")
    ]
    return len(between) == 2 and between[0] == between[1]


def _disjoint(locations: Sequence[Location], edits: Sequence[Intervention], p: int, q: int) -> bool:
    """Return whether two placements at one place can share no entry of the activation, at whatever positions."""
    one, other = locations[p], locations[q]
    if edits[p] is edits[q] and edits[p].blocks is not None:
        return True
    indices: Any = (getattr(one.view, "index", None), getattr(other.view, "index", None))
    if None not in indices and not set(indices[0]) & set(indices[1]):
        return True  # heads, or parts of a fused projection
    plain = all(isinstance(edit.space, Identity) and isinstance(edit.mask, Indices) for edit in (edits[p], edits[q]))
    if plain:
        kept = [edit.mask.weights() for edit in (edits[p], edits[q])]
        assert kept[0] is not None
        assert kept[1] is not None
        return kept[0].shape == kept[1].shape and not bool(torch.logical_and(kept[0], kept[1]).any())
    return False


def tell_unplaced(mechanisms: Sequence[str], output: str, placed: Sequence[str]) -> None:
    """Warn that strict sites ask for no effect of what holds a variable that has no site."""
    left = [name for name in mechanisms if name != output and name not in placed]
    if left:
        log.warning(
            "w_strict: %s %s no site, and the loss asks that nothing outside the alignment matters: place %s too, or "
            "set w_strict to 0",
            choices(left),
            "has" if len(left) == 1 else "have",
            "it" if len(left) == 1 else "them",
        )
