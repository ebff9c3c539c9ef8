"""Mechanisms whose variables are named by a task's options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any


def mechanism_of(name: str, parents: Sequence[str], compute: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that a causal model takes for the mechanism of ``name``.

    >>> both = mechanism_of("ab", ["a", "b"], lambda *values: all(values))
    >>> both.__name__, str(inspect.signature(both)), both(b=True, a=False)
    ('ab', '(*, a, b)', False)

    Args:
        name: the variable.
        parents: its parents' names.
        compute: takes the parents' values in that order.
    """

    def function(**values: Any) -> Any:
        return compute(*(values[parent] for parent in parents))

    untyped: Any = function
    function.__name__ = name
    untyped.__signature__ = inspect.Signature(
        [inspect.Parameter(parent, inspect.Parameter.KEYWORD_ONLY) for parent in parents]
    )
    return function
