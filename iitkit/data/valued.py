"""Placements of one value of their variable: which pairs they edit."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from iitkit.causal.variables import Codes, key_of
from iitkit.data.pool import Pool
from iitkit.data.recorded import Recorded
from iitkit.errors import IITKitError, choices, did_you_mean

if TYPE_CHECKING:
    from iitkit.data.datamodule import CounterfactualDataModule


@dataclass(frozen=True)
class Target:
    """The pairs that a placement edits: those whose source gives its variable one value.

    Args:
        codes: the variable's code in each prompt of the pool, [N].
        wanted: the code of that value.
    """

    codes: Codes
    wanted: int


def targets(data: CounterfactualDataModule, alignment: Mapping[str, Any]) -> dict[str, list[Target | None]]:
    """Return, for each split, every placement's pairs; None for a placement that edits all pairs of its variable.

    Args:
        data: the data, whose pools are made.
        alignment: placement name → placement; its ``value`` is the one that the source must have.

    Raises:
        IITKitError: a value that the variable does not have, or that no placement is for; values that nobody says; a
            value among stages.
    """
    given = {name: v for name, placement in alignment.items() if (v := getattr(placement, "value", None)) is not None}
    if not given:
        return {}
    if data.stage:
        raise IITKitError(f"alignment.{next(iter(given))}: value and model.stages do not go together: leave one out")
    of_placement = {name: alignment[name].variable or name for name in alignment}
    found: dict[str, list[Target | None]] = {split: [] for split in data.pools}
    known = {of_placement[name]: _known(data, of_placement[name], name) for name in given}
    for name, variable in of_placement.items():
        if name not in given:
            for of_split in found.values():
                of_split.append(None)
            continue
        names, codes = known[variable]
        wanted = _index(names, given[name])
        if wanted is None:
            raise IITKitError(
                f"alignment.{name}: value {given[name]!r}: {variable!r} has no such value."
                f"{did_you_mean(given[name], names)} It has {choices(map(repr, names))}"
            )
        for split, of_split in found.items():
            of_split.append(Target(codes[split], wanted))
    for variable, (names, codes) in known.items():
        placed = [name for name in of_placement if of_placement[name] == variable]
        if not all(name in given for name in placed):
            continue  # a placement of all values
        taken = {_index(names, given[name]) for name in placed}
        seen = np.unique(np.concatenate(list(codes.values()))).tolist()
        if missing := [names[code] for code in seen if code not in taken]:
            raise IITKitError(
                f"alignment: {variable!r} takes the value {missing[0]!r} too, and {choices(placed)} are of others: "
                "place one for each value, or one without value that edits them all"
            )
    return found


def _index(names: Sequence[Hashable], value: Any) -> int | None:
    """Return the index of a value, or of the only one whose text is this."""
    keys = [key_of(name) for name in names]
    if key_of(value) in keys:
        return keys.index(key_of(value))
    alike = [i for i, name in enumerate(names) if isinstance(value, str) and str(name) == value]
    return alike[0] if len(alike) == 1 else None


def _known(data: CounterfactualDataModule, variable: str, placement: str) -> tuple[list[Any], dict[str, Codes]]:
    """Return a variable's values and its code in each prompt of every split's pool."""
    if data.task is not None:
        model = data.task.model
        if variable in model.open:
            raise IITKitError(f"alignment.{placement}: value: {variable!r} has an open domain, so no value of its own")
        return list(model.domains[variable].values), {s: pool.setting[variable] for s, pool in data.pools.items()}
    from iitkit.data.known import said_values

    assert isinstance(data.source, Recorded)
    of_text = said_values(data.source, variable)
    names = list({key_of(value): value for value in of_text.values()}.values())
    keys = [key_of(name) for name in names]

    def codes(pool: Pool) -> Codes:
        for text in pool.texts:
            if text.text not in of_text:
                raise IITKitError(
                    f"alignment.{placement}: value: the dataset does not say what {variable!r} is in {text.text!r}: "
                    "add columns base_values and source_values"
                )
        return np.asarray([keys.index(key_of(of_text[text.text])) for text in pool.texts], dtype=np.int64)

    return names, {split: codes(pool) for split, pool in data.pools.items()}
