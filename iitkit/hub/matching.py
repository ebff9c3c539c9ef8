"""How well a network fits an artifact: exactly, by architecture, or by width alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from iitkit.errors import IITKitError, choices
from iitkit.hub.identity import name_of, shape
from iitkit.hub.schema import TOKENIZER
from iitkit.models.fingerprint import tokenizer_digests, weights_digest

Match = Literal["exact", "architecture", "width"]
LEVELS: tuple[Match, ...] = ("exact", "architecture", "width")


def check_match(base: Mapping[str, Any], model: nn.Module, match: str = "architecture") -> Match:
    """Return how well a network fits what an artifact says of its base model.

    Args:
        base: what the artifact says.
        model: the network.
        match: the least that will do.

    Returns:
        ``exact``: the very weights, whatever way they were loaded. ``architecture``: the same class, width and number
        of layers, with other weights (warned). ``width``: no more than the width (warned).

    Raises:
        IITKitError: a network that fits less well than it must.
    """
    if match not in LEVELS:
        raise IITKitError(f"match: {match!r}: expected one of {choices(LEVELS)}")
    given = shape(model)
    differs = [
        f"{key} {given[key]}, not {base[key]}" for key in ("architecture", "width", "layers") if given[key] != base[key]
    ]
    weights = None if differs else weights_digest(model)
    if weights is not None and weights == base["weights"]:
        return "exact"
    if differs:
        found: Match | None = None if given["width"] is None or given["width"] != base["width"] else "width"
    else:
        found = "architecture"
        differs = ["other weights" if weights is not None else "weights that are not all in memory to be compared"]
    trained = f"the artifact was trained on {name_of(base)}, this model has {choices(differs)}"
    if found is None or LEVELS.index(found) > LEVELS.index(match):
        todo = "Load that base"
        if found is not None:
            todo += f", or say match={found!r} if you want to try it here"
        raise IITKitError(f"{trained}. {todo}")
    meant = "" if found == "width" else "; what it does here may be another thing"
    warnings.warn(f"{trained}{meant}", stacklevel=3)
    return found


def check_tokenizer(recorded: Mapping[str, Any], tokenizer: Any) -> None:
    """Warn of a tokenizer or a chat template that is not what the artifact was trained with."""
    given = tokenizer_digests(tokenizer)
    for key, what in zip(TOKENIZER, ("tokenizer", "chat template"), strict=True):
        if key in recorded and recorded[key] != given[key]:
            warnings.warn(
                f"the {what} is not the one that the artifact was trained with: positions and answers may be others",
                stacklevel=3,
            )
