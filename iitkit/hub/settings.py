"""What steering sets: variables' values, rows' own values and vectors, as the features that placements take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.hub.artifact import Artifact
from iitkit.hub.values import Value, Values

Setting = Value | Tensor | Sequence[Value | None]
"""A value, one value for each row of the batch (None leaves a row alone), or a vector [width] or [rows, width]."""


@dataclass(frozen=True)
class Taken:
    """What one placement takes.

    Args:
        features: [examples, 1, (heads,) size]; None for an edit that takes none.
        coordinates: the features are coordinates in the intervention's space, not activations.
        active: which examples are edited, [examples]; None for all.
    """

    features: Tensor | None
    coordinates: bool = False
    active: Tensor | None = None


def taken(artifact: Artifact, settings: Mapping[str, Setting]) -> dict[str, Taken]:
    """Return what the placements take that settings are about, in the artifact's order.

    A setting is of a placement, or of a variable and then of all its placements.

    Args:
        artifact: the trained interventions, with the values that training saw.
        settings: variable or placement → what it is set to.

    Raises:
        IITKitError: a variable or value that the artifact does not have, or a vector of another size.
    """
    if not isinstance(settings, Mapping):
        raise IITKitError(f"settings {settings!r}: expected a mapping of variables to values, {{variable: value}}")
    placements = artifact.config["placements"]
    variables = {where["variable"] for where in placements.values()}
    for key in settings:
        if key not in placements and key not in variables:
            known = [*dict.fromkeys([*sorted(variables), *placements])]
            raise IITKitError(
                f"the artifact has no variable {key!r}.{did_you_mean(key, known)} It has {choices(known)}"
            )
    found: dict[str, Taken] = {}
    for name, where in placements.items():
        given = settings.get(name, settings.get(where["variable"]))
        if given is not None:
            found[name] = _taken(artifact, name, given)
    return found


def _taken(artifact: Artifact, name: str, given: Setting) -> Taken:
    where, intervention = artifact.config["placements"][name], artifact.interventions[name]
    own = where.get("value")
    if own is not None:  # trained for one value of the variable: the other values are other placements'
        known = [
            (w["value"], w.get("answer"))
            for w in artifact.config["placements"].values()
            if "value" in w and w["variable"] == where["variable"]
        ]
        return Taken(None, active=_rows(given, own, known, where["variable"]))
    if not intervention.needs_source:
        raise IITKitError(
            f"{name}: {type(intervention).__name__} takes nothing that could be set: it always makes the edit that was "
            "trained. Leave the setting out"
        )
    if isinstance(given, Tensor):
        return Taken(_vector(given, where, name))
    values = artifact.values.get(name)
    if values is None:
        raise IITKitError(
            f"{name}: the artifact stores no values of {where['variable']!r}: give source='…', a text that has the "
            "value, or a vector"
        )
    if not _listed(given):
        return Taken(values.features[None, [index_of(values, given, where)]], coordinates=True)
    assert isinstance(given, Sequence)
    rows = [None if value is None else index_of(values, value, where) for value in given]
    features = values.features[[0 if row is None else row for row in rows]][:, None]
    active = torch.tensor([row is not None for row in rows])
    return Taken(features, coordinates=True, active=None if bool(active.all()) else active)


def _listed(given: object) -> bool:
    if isinstance(given, Sequence) and not isinstance(given, str):
        if not given:
            raise IITKitError("settings: an empty list given: expected one value for each row of the batch")
        return True
    return False


def index_of(values: Values, given: Any, where: Mapping[str, Any]) -> int:
    """Return which of a variable's values is meant: the value itself, its text, or the answer that it leads to.

    A number may be written in any way (``2``, ``2.0``), and true and false without capitals.

    Raises:
        IITKitError: none of them, or several.
    """
    answers: Sequence[str | None] = where.get("answers") or [None] * len(values.names)
    return _which(given, values.names, answers, where["variable"])


def _which(given: Any, names: Sequence[Value], answers: Sequence[str | None], variable: str) -> int:
    for i, name in enumerate(names):
        if type(name) is type(given) and name == given:
            return i
    text = str(given).strip()
    said = [str(name).strip() for name in names]
    for texts in (said, [None if a is None else a.strip() for a in answers]):
        if texts.count(text) == 1:
            return texts.index(text)
    alike = [_number(name) for name in names]
    if (number := _number(text if isinstance(given, str) else given)) is not None and alike.count(number) == 1:
        return alike.index(number)
    shown = [
        f"{name!r}" + ("" if answer is None else f" ({answer.strip()})")
        for name, answer in zip(names, answers, strict=True)
    ]
    raise IITKitError(
        f"variable {variable!r} has no value {given!r}.{did_you_mean(given, said)} It has {choices(shown)}"
    )


def _number(value: Any) -> float | str | None:
    """Return what a value is as a number, as true or as false, however it is written; None where it is none of them."""
    if isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false")):
        return str(value).lower()
    if not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _rows(given: Setting, own: Value, known: Sequence[tuple[Value, str | None]], variable: str) -> Tensor:
    """Return in which rows the setting is the value that a placement was trained for."""
    if isinstance(given, Tensor):
        raise IITKitError(f"{variable}: its edits were trained for a value each and take no vector: give a value")
    names, answers = zip(*{(type(value), value): (value, answer) for value, answer in known}.values(), strict=True)
    each: Sequence[Any] = given if _listed(given) else [given]  # type: ignore[assignment]
    meant = [None if value is None else names[_which(value, names, answers, variable)] for value in each]
    return torch.tensor([type(value) is type(own) and value == own for value in meant])


def _vector(given: Tensor, where: Mapping[str, Any], name: str) -> Tensor:
    """Return a vector, or one for each row, as source activations [rows, 1, (heads,) width]."""
    heads, width = 1 if where.get("joint") else where.get("heads", 1), where["width"]
    own = (heads, width) if heads > 1 else (width,)
    fits = given.dim() in (len(own), len(own) + 1) and tuple(given.shape[-len(own) :]) == own
    if not fits or where.get("joint") or not given.is_floating_point():
        rows = "" if where.get("joint") else f" or [rows, {', '.join(map(str, own))}]"
        expected = "a value or a source" if where.get("joint") else f"a vector of shape {list(own)}{rows}"
        raise IITKitError(f"{name}: a vector of shape {list(given.shape)} given, expected {expected}")
    if not bool(torch.isfinite(given).all()):
        raise IITKitError(f"{name}: a vector that is not finite was given: it would make everything NaN")
    return given.detach().clone().reshape(-1, 1, *own)
