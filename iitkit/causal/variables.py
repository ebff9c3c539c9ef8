"""Variables of a causal model: exogenous ones with finite domains, and those computed by mechanisms."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from iitkit.errors import IITKitError

Codes = npt.NDArray[np.int64]
"""Integer codes of a variable's values, one a row."""

TABULATED = 100_000
"""Mechanisms with at most this many combinations of parents' values are tabulated when the model is made."""


class Domain:
    """The values that a variable takes, in order; a value's code is its index."""

    def __init__(self, name: str, values: Sequence[Hashable] = ()) -> None:
        self.name = name
        self.values: list[Hashable] = []
        self.codes: dict[tuple[type, Hashable], int] = {}
        self.complete = True
        """False where values come to light only as a mechanism runs."""
        self.labels = False
        """Whether the values are answers, which must be strings."""
        for value in values:
            if self.find(value) is not None:
                raise IITKitError(f"variable {name!r}: value {value!r} stands twice in its domain")
            self.add(value)

    def __len__(self) -> int:
        return len(self.values)

    def find(self, value: Hashable) -> int | None:
        """Return the code of a value, or None. ``True`` and ``1`` are different values."""
        try:
            return self.codes.get((type(value), value))
        except TypeError as error:
            raise IITKitError(
                f"variable {self.name!r}: value {value!r} is not hashable, so it cannot be one"
            ) from error

    def add(self, value: Hashable) -> int:
        """Return the code of a value, adding it if it is new."""
        code = self.find(value)
        if code is None:
            if self.labels and not isinstance(value, str):
                raise IITKitError(
                    f"label {value!r} of variable {self.name!r} is a {type(value).__name__}, expected a string: "
                    "quote it (YAML reads a bare yes, no, on or 012 as a boolean or a number)"
                )
            code = len(self.values)
            self.values.append(value)
            self.codes[type(value), value] = code
        return code


class Mechanism:
    """A variable computed from its parents, compiled to a lookup table.

    Args:
        name: the variable.
        function: the computation; its argument names are the parents.

    Raises:
        IITKitError: a function without named arguments.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function
        parameters = inspect.signature(function).parameters.values()
        if not parameters or any(p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters):
            raise IITKitError(f"mechanism {name!r}: its arguments must be named after its parents, one or more")
        self.parents = [p.name for p in parameters]
        self.domain = Domain(name)
        self.table: Codes | None = None
        self._known: dict[tuple[int, ...], int] = {}

    def compile(self, domains: Mapping[str, Domain]) -> None:
        """Tabulate the mechanism if its parents' combinations are few; a large one is run where it is needed."""
        sizes = [len(domains[parent]) for parent in self.parents]
        if math.prod(sizes) > TABULATED or not all(domains[parent].complete for parent in self.parents):
            self.domain.complete = False
            return
        codes = [self._value(values) for values in itertools.product(*(domains[p].values for p in self.parents))]
        self.table = np.asarray(codes, dtype=np.int64).reshape(sizes)

    def run(self, parents: Sequence[Codes], domains: Mapping[str, Domain]) -> Codes:
        """Return the variable's codes for its parents' codes, each [n]."""
        if self.table is not None:
            found: Codes = self.table[tuple(parents)]
            return found
        unique, inverse = np.unique(np.stack(parents, 1), axis=0, return_inverse=True)
        codes = []
        for row in unique.tolist():
            key = tuple(row)
            if key not in self._known:
                values = [domains[parent].values[code] for parent, code in zip(self.parents, key, strict=True)]
                self._known[key] = self._value(values)
            codes.append(self._known[key])
        return np.asarray(codes, dtype=np.int64)[inverse.reshape(-1)]

    def _value(self, values: Sequence[Hashable]) -> int:
        arguments = dict(zip(self.parents, values, strict=True))
        try:
            value = self.function(**arguments)
        except Exception as error:
            raise IITKitError(
                f"mechanism {self.name!r} failed on {arguments}: {type(error).__name__}: {error}"
            ) from error
        if value is None:
            raise IITKitError(f"mechanism {self.name!r} returned None on {arguments}: every variable needs a value")
        return self.domain.add(value)
