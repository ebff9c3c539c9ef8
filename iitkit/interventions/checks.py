"""Checks of options: each returns the value as it is used, or says what was given and what was expected."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from iitkit.errors import IITKitError, choices, did_you_mean


def whole(name: str, value: Any, low: int, high: int | None = None, of: str = "") -> int:
    """Return an integer in ``low``…``high``; ``of`` says what the upper end is.

    >>> whole("rank", 9, 1, 8, "the site's width")
    Traceback (most recent call last):
        ...
    iitkit.errors.IITKitError: rank 9: expected 1 to the site's width 8
    """
    if type(value) is not int or value < low or (high is not None and value > high):
        upper = "or more" if high is None else f"to {of} {high}" if of else f"to {high}"
        raise IITKitError(f"{name} {value!r}: expected {low} {upper}")
    return value


def number(name: str, value: Any, above: float = -math.inf, below: float = math.inf) -> float:
    """Return a finite number strictly between two others."""
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fine or not above < value < below:
        ends = [f" above {above:g}"] * (above > -math.inf) + [f" below {below:g}"] * (below < math.inf)
        raise IITKitError(f"{name} {value!r}: expected a number{' and'.join(ends)}")
    return float(value)


def one_of(name: str, value: Any, options: Iterable[str]) -> str:
    """Return one of the options."""
    known = list(options)
    if value not in known:
        raise IITKitError(f"{name} {value!r}: expected one of {choices(known)}.{did_you_mean(value, known)}")
    return str(value)


def coordinates(name: str, value: Any, size: int) -> list[int]:
    """Return different coordinates of ``size``: the first k for an integer k, else the list itself."""
    if type(value) is int:
        return list(range(whole(name, value, 1, size, "the number of coordinates")))
    if not isinstance(value, list | tuple) or not all(type(index) is int for index in value):
        raise IITKitError(f"{name} {value!r}: expected a number of coordinates or a list of their indices")
    for index in value:
        if not 0 <= index < size:
            raise IITKitError(f"{name}: coordinate {index}: expected 0 to {size - 1}")
    if len(set(value)) < len(value):
        twice = next(index for index in value if list(value).count(index) > 1)
        raise IITKitError(f"{name}: coordinate {twice} is given twice")
    return list(value)
