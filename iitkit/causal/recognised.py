"""Short expressions that equal a table in every entry: what a large mechanism is written as."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iitkit.causal.expressions import DEEPEST, LONGEST_TEXT
from iitkit.causal.plain import freeze
from iitkit.causal.variables import Codes, Domain
from iitkit.errors import IITKitError

BRANCHES = 6
"""Most values of a variable that an expression tells apart."""

_SIGNS: dict[str, Callable[[Codes, Codes], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

BRANCHINGS = 3
"""Most variables that it tells apart, one within the other."""


@dataclass(frozen=True)
class _Part:
    """A table, or a part of one in which some parents are fixed."""

    codes: Codes
    """Codes of the results, one axis for each parent that is left."""
    parents: Sequence[Domain]
    results: Domain


def recognised(codes: Codes, parents: Sequence[Domain], results: Domain) -> str | None:
    """Return an expression that equals a table in every entry, or None where no simple one is found.

    Tried are a constant, a parent's value (as it is, as text, as text behind a blank), how two parents
    compare, and choices between these by the values of parents that have few.

    Args:
        codes: codes of the results by the parents' codes, one axis for each parent.
        parents: their domains, named after them.
        results: the domain of the results.
    """
    part = _Part(codes, parents, results)
    text = None if _constant(part) is not None else _found(part, BRANCHINGS)  # an expression must have parents
    return text if text is not None and len(text) <= LONGEST_TEXT and text.count(" else ") < DEEPEST // 2 else None


def _found(part: _Part, branchings: int) -> str | None:
    for guess in (_constant, _copy, _comparison):
        text = guess(part)
        if text is not None:
            return text
    options = list(_choices(part, branchings - 1)) if branchings else []
    return min(options, key=len) if options else None


def _constant(part: _Part) -> str | None:
    first = part.codes.flat[0]
    value = part.results.values[int(first)]
    return repr(value) if _plain(value) and (part.codes == first).all() else None


def _plain(value: Hashable) -> bool:
    """Whether an expression can hold a value as it is written."""
    try:
        return type(value) in (str, int, float, bool) and freeze(value, "") == value
    except IITKitError:
        return False


def _along(part: _Part, axis: int, result: Callable[[Any], Hashable]) -> bool:
    """Whether every entry is what ``result`` makes of one parent's value."""
    wanted = [part.results.find(result(value)) for value in part.parents[axis].values]
    if None in wanted:
        return False
    shape = [-1 if i == axis else 1 for i in range(part.codes.ndim)]
    return bool((part.codes == np.asarray(wanted).reshape(shape)).all())


def _copy(part: _Part) -> str | None:
    for axis, parent in enumerate(part.parents):
        if _along(part, axis, lambda value: value):
            return parent.name
        if all(_plain(value) for value in parent.values):
            if _along(part, axis, str):
                return f"str({parent.name})"
            if _along(part, axis, lambda value: f" {value}"):
                return f"f' {{{parent.name}}}'"
    return None


def _comparison(part: _Part) -> str | None:
    if any(type(value) is not bool for value in part.results.values):
        return None
    truths = np.asarray(part.results.values)[part.codes]
    for j, right in enumerate(part.parents):
        for i, left in enumerate(part.parents[:j]):
            numbers, ordered = _numbered([*left.values, *right.values])
            shapes = [[-1 if axis == at else 1 for axis in range(len(part.parents))] for at in (i, j)]
            a, b = numbers[: len(left)].reshape(shapes[0]), numbers[len(left) :].reshape(shapes[1])
            for sign, compare in _SIGNS.items():
                if (ordered or sign in ("==", "!=")) and bool((truths == compare(a, b)).all()):
                    return f"{left.name} {sign} {right.name}"
    return None


def _numbered(values: Sequence[Hashable]) -> tuple[Codes, bool]:
    """Return numbers that compare as values do, and whether they do so beyond being equal."""
    kinds = {type(value) for value in values}
    ordered = kinds == {str} or kinds <= {int, float, bool}
    known = dict.fromkeys(values)
    places = {value: i for i, value in enumerate(sorted(known) if ordered else known)}  # type: ignore[type-var]
    return np.asarray([places[value] for value in values], dtype=np.int64), ordered


def _choices(part: _Part, branchings: int) -> Iterator[str]:
    for axis, parent in enumerate(part.parents):
        values = parent.values
        distinct = len(set(values)) == len(values) and all(_plain(value) for value in values)
        if not 2 <= len(values) <= BRANCHES or not distinct:
            continue
        others = [other for i, other in enumerate(part.parents) if i != axis]
        cases: dict[str, list[Hashable]] = {}
        for i, value in enumerate(values):
            text = _found(_Part(np.take(part.codes, i, axis), others, part.results), branchings) if others else None
            text = _constant(_Part(np.take(part.codes, i, axis)[None], [], part.results)) if text is None else text
            if text is None:
                break
            cases.setdefault(text, []).append(value)
        else:
            yield _conditional(parent.name, cases)


def _conditional(name: str, cases: dict[str, list[Hashable]]) -> str:
    *tested, (last, _) = sorted(cases.items(), key=lambda case: len(case[1]))
    if [*cases.values()] in ([[False], [True]], [[True], [False]]):
        truth, falsity = (next(text for text, of in cases.items() if of == [flag]) for flag in (True, False))
        return f"{_inner(truth)} if {name} else {falsity}"
    tests = (
        f"{_inner(text)} if {name} {f'== {of[0]!r}' if len(of) == 1 else f'in {tuple(of)!r}'} else "
        for text, of in tested
    )
    return "".join(tests) + last


def _inner(text: str) -> str:
    return f"({text})" if " if " in text else text
