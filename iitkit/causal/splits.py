"""Splits: which words, value combinations and templates each of train, validation and test may use; and an audit."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

from iitkit.causal.inputs import Where
from iitkit.causal.model import CausalModel, Setting
from iitkit.causal.variables import Codes, Domain
from iitkit.errors import IITKitError, choices

SPLITS = ("train", "validation", "test")
TEMPLATE = "template"
"""In ``split_by``: the templates are divided."""

LISTED = 1_000_000
"""Combinations up to so many are divided exactly, more of them by a hash."""

By = Sequence[str | Sequence[str]]
"""What splits are disjoint in: variables' words, combinations of several variables' values, ``template``."""


@dataclass(frozen=True)
class Share:
    """What one split may use.

    Args:
        among: variable → the codes it may take; others take any.
        where: says which inputs have a combination of this split; None where no combinations are divided.
        templates: indices of the templates.
    """

    among: dict[str, Codes] = field(default_factory=dict)
    where: Where | None = None
    templates: list[int] = field(default_factory=list)


def check_split_by(model: CausalModel, by: By, where: str) -> None:
    """Check the names in ``split_by``.

    Raises:
        IITKitError: one that is no variable, or words of a variable that is computed or open.
    """
    for item in by:
        if item == TEMPLATE and TEMPLATE not in model.domains:
            continue
        for name in [item] if isinstance(item, str) else item:
            model.check_variable(name, where)
        if isinstance(item, str) and item not in model.exogenous:
            raise IITKitError(
                f"{where}: {item!r} is computed, so its values cannot be dealt out: name exogenous variables, or "
                f"write [{item}] to divide the inputs by the values it has"
            )
        if isinstance(item, str) and item in model.open:
            raise IITKitError(f"{where}: {item!r} is open: its values are new in every split as it is")
        if not isinstance(item, str) and not item:
            raise IITKitError(f"{where}: an empty combination: name its variables")


def divide(
    model: CausalModel,
    by: By,
    generator: np.random.Generator,
    shares: Sequence[float] = (0.6, 0.2, 0.2),
    templates: Sequence[int] = (0,),
) -> dict[str, Share]:
    """Divide words, combinations and templates among train, validation and test.

    Args:
        model: the causal model.
        by: what to divide.
        generator: shuffles.
        shares: of train, validation and test; their sum is 1.
        templates: the templates that there are for these splits.

    Raises:
        IITKitError: too few words, combinations or templates for some split.
    """
    model.compile()
    words = [item for item in by if isinstance(item, str) and not _is_template(model, item)]
    among = divide_words(model, words, generator, shares)
    tests: dict[str, list[Where]] = {split: [] for split in SPLITS}
    for item in by:
        if not isinstance(item, str):
            for split, where in _divide_combinations(model, tuple(item), generator, shares).items():
                tests[split].append(where)
    of_split = {split: list(templates) for split in SPLITS}
    if any(isinstance(item, str) and _is_template(model, item) for item in by):
        parts = _parts(len(templates), generator, shares)
        of_split = {split: sorted(templates[i] for i in part) for split, part in zip(SPLITS, parts, strict=True)}
        if empty := [split for split in SPLITS if not of_split[split]]:
            raise IITKitError(
                f"split_by: [template]: of {len(templates)} templates none is left for the {empty[0]} split"
            )
    return {split: Share(among[split], _all(tests[split]), of_split[split]) for split in SPLITS}


def _is_template(model: CausalModel, item: str) -> bool:
    return item == TEMPLATE and item not in model.domains


def _parts(n: int, generator: np.random.Generator, shares: Sequence[float]) -> list[list[int]]:
    """Divide 0 … n − 1 at random."""
    order = generator.permutation(n)
    bounds = np.round(np.cumsum([0.0, *shares]) * n).astype(int)
    return [order[start:stop].tolist() for start, stop in pairwise(bounds)]


def divide_words(
    model: CausalModel, names: Sequence[str], generator: np.random.Generator, shares: Sequence[float]
) -> dict[str, dict[str, Codes]]:
    """Divide the words of some variables among the splits; a word that several use goes to one split for all.

    Every split keeps the proportions of what the model computes from such a word alone (a name's gender, say).

    Returns:
        Split → variable → codes it may take.

    Raises:
        IITKitError: too few words for some split.
    """
    groups: dict[tuple[Hashable, ...], list[Hashable]] = {}
    grouped: set[Hashable] = set()
    for name in names:
        for value, stratum in _strata(model, name):
            members = groups.setdefault(stratum, [])
            if value not in grouped:
                members.append(value)
                grouped.add(value)
    where: dict[Hashable, str] = {}
    for members in groups.values():
        for split, part in zip(SPLITS, _parts(len(members), generator, shares), strict=True):
            where.update({members[i]: split for i in part})
    found: dict[str, dict[str, Codes]] = {split: {} for split in SPLITS}
    for name in names:
        values = model.exogenous[name].values
        for split in SPLITS:
            codes = [i for i, value in enumerate(values) if where[value] == split]
            if not codes:
                raise IITKitError(
                    f"no word of {name!r} ({len(values)} words) is left for the {split} split: enlarge the word list"
                )
            found[split][name] = np.asarray(codes, dtype=np.int64)
    return found


def _strata(model: CausalModel, name: str) -> list[tuple[Hashable, tuple[Hashable, ...]]]:
    """Each word of a variable with the values of what is computed from it alone, where few words differ in it."""
    domain = model.exogenous[name]
    alone = [
        m
        for m in model.mechanisms.values()
        if m.parents == [name] and m.table is not None and (m.table >= 0).all() and len(m.domain) * 4 <= len(domain)
    ]
    return [
        (value, (name, *(m.domain.values[int(m.table[i])] for m in alone if m.table is not None)))
        for i, value in enumerate(domain.values)
    ]


def _divide_combinations(
    model: CausalModel, names: tuple[str, ...], generator: np.random.Generator, shares: Sequence[float]
) -> dict[str, Where]:
    """Divide the combinations of some variables' values, computed ones too."""
    sizes = [len(model.domains[name]) for name in names]
    listed = all(model.domains[name].complete for name in names) and math.prod(sizes) <= LISTED
    table: npt.NDArray[np.int8] | None = None
    if listed:
        n = math.prod(sizes)
        table = np.zeros(n, dtype=np.int8)
        for number, part in enumerate(_parts(n, generator, shares)):
            table[part] = number
            if not part:
                raise IITKitError(
                    f"no combination of {choices(names)} ({n} combinations) is left for the {SPLITS[number]} split: "
                    "divide by more variables, or enlarge the word lists"
                )
    salt = np.uint64(generator.integers(2**63))
    bounds = np.cumsum(shares)[:-1]

    def number_of(setting: Setting) -> npt.NDArray[np.int8]:
        if table is not None:
            flat = np.ravel_multi_index([setting[name] for name in names], sizes)
            found: npt.NDArray[np.int8] = table[flat]
            return found
        mixed = np.full(len(setting[names[0]]), salt, dtype=np.uint64)
        for name in names:
            # a code says in which order values were met, and that depends on the splits asked for before
            domain = model.domains[name]
            mixed = _mix(
                mixed ^ (setting[name].astype(np.uint64) if domain.complete else _hashed(domain, setting[name]))
            )
        return np.searchsorted(bounds, mixed / np.float64(2**64), side="right").astype(np.int8)

    def where(number: int) -> Where:
        return lambda setting: number_of(setting) == number

    return {split: where(number) for number, split in enumerate(SPLITS)}


def _hashed(domain: Domain, codes: Codes) -> npt.NDArray[np.uint64]:
    """Return numbers that are equal where values are, the same in every process."""
    met, of = np.unique(codes, return_inverse=True)
    texts = [repr(domain.values[code]).encode() for code in met.tolist()]
    numbers = [int.from_bytes(blake2b(text, digest_size=8).digest(), "big") for text in texts]
    return np.asarray(numbers, dtype=np.uint64)[of.reshape(-1)]


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scramble numbers (splitmix64), the same in every process."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _all(tests: Sequence[Where]) -> Where | None:
    if not tests:
        return None
    return lambda setting: np.asarray(np.all([test(setting) for test in tests], axis=0))


def audit(
    model: CausalModel,
    by: By,
    splits: Mapping[str, tuple[Setting, Codes]],
    held_out: Mapping[str, str] | None = None,
) -> list[str]:
    """Compare what splits hold, and say in lines what they share.

    Args:
        model: the causal model.
        by: what the splits are disjoint in.
        splits: split → every variable's codes and the template of each prompt.
        held_out: split → the one whose words and combinations it uses, in templates of its own.

    Raises:
        IITKitError: splits that share what they are divided by.
    """
    held: dict[str, dict[str, set[Hashable]]] = {"prompts": {}}
    for split, (setting, templates) in splits.items():
        held["prompts"][split] = _rows(setting, [*model.slots], templates)
        words = [item for item in by if isinstance(item, str) and not _is_template(model, item)]
        if words:  # a word counts wherever it stands
            used: set[Hashable] = set()
            for name in words:
                used |= {model.domains[name].values[code] for code in np.unique(setting[name]).tolist()}
            held.setdefault(f"words of {', '.join(words)}", {})[split] = used
        for item in by:
            if not isinstance(item, str):
                held.setdefault(f"combinations of {' × '.join(item)}", {})[split] = _rows(setting, list(item))
            elif _is_template(model, item):
                held.setdefault("templates", {})[split] = set(templates.tolist())
    apart, shared = [], []
    for what, of_split in held.items():
        clashes = [
            f"{one} and {other} share {common} of {min(len(of_split[one]), len(of_split[other]))} {what}"
            for one, other in combinations(splits, 2)
            if (common := len(of_split[one] & of_split[other]))
            and (what in ("prompts", "templates") or (held_out or {}).get(other) != one)
        ]
        if clashes and what != "prompts":
            raise IITKitError(f"split_by: {clashes[0]}: a mechanism that is not pure, or a fault of iitkit's")
        shared += clashes
        apart += [] if clashes else [what]
    lines = [f"no {'; no '.join(apart)} in two splits"] if apart else []
    return lines + [f"{clash}: divide them with split_by" for clash in shared]


def _rows(setting: Setting, names: Sequence[str], templates: Codes | None = None) -> set[Hashable]:
    columns = [*(setting[name] for name in names), *([] if templates is None else [templates])]
    return set(map(tuple, np.unique(np.stack(columns, 1), axis=0).tolist()))
