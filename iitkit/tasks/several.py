"""Variables of which there are several (``object_1``, ``object_2``, …): their names, draws in which all differ."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np


def numbered(name: str, n: int) -> list[str]:
    """Return the names of ``n`` variables.

    >>> numbered("object", 3)
    ['object_1', 'object_2', 'object_3']
    """
    return [f"{name}_{i}" for i in range(1, n + 1)]


def all_differ(*values: Hashable) -> bool:
    """Return whether no value stands twice."""
    return len(set(values)) == len(values)


def draw_different(
    generator: np.random.Generator, n: int, among: Mapping[str, Sequence[Any]], names: Sequence[str]
) -> dict[str, list[Any]]:
    """Draw values of variables with one domain so that in each of ``n`` rows all differ.

    Args:
        generator: draws them.
        n: number of rows.
        among: variable → the values it may take, the same for each of ``names``.
        names: the variables.
    """
    values = among[names[0]]
    order = generator.random((n, len(values))).argsort(1)
    return {name: [values[i] for i in order[:, k].tolist()] for k, name in enumerate(names)}
