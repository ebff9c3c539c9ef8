"""What expressions compute with: values of bounded size, and the functions they may call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

LARGEST = 2**63
LONGEST = 10_000
MOST_ITEMS, DEEPEST_ITEMS = 1000, 12
"""Bounds of a value: an integer's size, a text's length, a tuple's items (those within items counted) and its depth.

Variables build on one another, so without them thirty short lines would double a value thirty times over.
"""

NUMBERS = frozenset({int, float, bool})


class FailedError(Exception):
    """An operation that its values do not allow."""

    def __init__(self, column: int, message: str) -> None:
        super().__init__(message if len(message) <= 200 else f"{message[:199]}…")
        self.column = column


def bounded(value: Any, column: int = 0) -> Any:
    """Return a value of the language; one that is too large is a failure."""
    kind = type(value)
    if kind is str and len(value) > LONGEST:
        raise FailedError(column, f"text of {len(value)} characters, {LONGEST} at most")
    if kind is int and not -LARGEST < value < LARGEST:
        raise FailedError(column, "an integer beyond 63 bits")
    if kind is float and not math.isfinite(value):
        raise FailedError(column, f"a number that is {value}")
    if kind is tuple and items(value) > MOST_ITEMS:
        raise FailedError(column, f"a tuple of more than {MOST_ITEMS} items, or more than {DEEPEST_ITEMS} deep")
    return value


def items(value: Sequence[Any], depth: int = 1) -> int:
    """Return the number of items of a tuple or list and of those in it, or some number above the limit."""
    found = len(value) if depth <= DEEPEST_ITEMS else MOST_ITEMS + 1
    for item in value if found <= MOST_ITEMS else ():
        if type(item) in (tuple, list):
            found += items(item, depth + 1)
            if found > MOST_ITEMS:
                break
    return found


def contained(item: Any, container: Any) -> bool:
    """Return whether a text is part of a text, or a value an item of a tuple."""
    if type(container) is str and type(item) is str:
        return item in container
    if type(container) is tuple:
        return item in container
    raise TypeError(f"{short(item)} in {short(container)}: expected a text in a text, or a value in a tuple")


def _total(values: Any) -> Any:
    if type(values) is not tuple or any(type(value) not in NUMBERS for value in values):
        raise TypeError(f"sum() of {short(values)}: expected a tuple of numbers")
    return sum(values)


FUNCTIONS: dict[str, tuple[Callable[..., Any], int]] = {
    "abs": (abs, 1),
    "bool": (bool, 1),
    "float": (float, 1),
    "int": (int, 1),
    "len": (len, 1),
    "max": (max, MOST_ITEMS),
    "min": (min, MOST_ITEMS),
    "sorted": (lambda values: tuple(sorted(values)), 1),
    "str": (str, 1),
    "sum": (_total, 1),
}
"""Name → function and the most values that it takes."""


def short(value: object) -> str:
    """Return a value as messages show it."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"
