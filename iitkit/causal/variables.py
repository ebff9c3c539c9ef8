"""Variables of a causal model: exogenous ones with their domains, and those computed by mechanisms."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iitkit.errors import IITKitError, choices

Codes = npt.NDArray[np.int64]
"""Integer codes of a variable's values, one a row."""

TABULATED = 100_000
"""Mechanisms with at most this many combinations of parents' values are tabulated when the model is made."""

DENSE = 4_000_000
"""Those with at most this many have a table that is filled where it is needed, vectorised ones at once (32 MB)."""

_EMPTY = -1


def plain(value: Any) -> Any:
    """Return a value as Python has it: numpy's numbers, truths and strings are the same values as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is tuple and any(isinstance(part, np.generic | tuple) for part in value):
        return tuple(map(plain, value))
    return value


def key_of(value: Hashable) -> tuple[Any, ...]:
    """Return what is equal where two values are one: ``True``, ``1`` and ``1.0`` are three, in tuples too."""
    if type(value) is not tuple:
        return type(value), value
    return tuple, value, *(key_of(part) if type(part) is tuple else type(part) for part in value)


@dataclass(frozen=True)
class Open:
    """An open domain: values that are drawn, not listed.

    Args:
        draw: ``draw(generator, n)`` returns ``n`` values, all hashable (a vector is a tuple of numbers).
    """

    draw: Callable[[np.random.Generator, int], Sequence[Hashable]]


class Domain:
    """The values that a variable takes, in order; a value's code is its index.

    Args:
        name: the variable.
        values: the values, each once.
        declared: whether no other values are allowed.
    """

    def __init__(self, name: str, values: Sequence[Hashable] = (), declared: bool = False) -> None:
        self.name = name
        self.values: list[Hashable] = []
        self.codes: dict[tuple[Any, ...], int] = {}
        self.complete = True
        """False where values come to light only as a mechanism runs, or as they are drawn."""
        self.labels = False
        """Whether the values are answers, which must be strings."""
        self.declared = False
        self._array: npt.NDArray[Any] | None = None
        for value in values:
            if self.find(value) is not None:
                raise IITKitError(f"variable {name!r}: value {value!r} stands twice in its domain")
            self.add(value)
        self.declared = declared

    def __len__(self) -> int:
        return len(self.values)

    def find(self, value: Hashable) -> int | None:
        """Return the code of a value, or None. ``True`` and ``1`` are different values."""
        return self._find(plain(value))

    def _find(self, value: Hashable) -> int | None:
        """:meth:`find`, of a plain value."""
        try:
            return self.codes.get(key_of(value))
        except TypeError as error:
            raise IITKitError(
                f"variable {self.name!r}: value {value!r} is not hashable, so it cannot be one"
            ) from error

    def add(self, value: Hashable) -> int:
        """Return the code of a value, adding it if it is new.

        Raises:
            IITKitError: None, a value outside a declared domain, a label that is no string.
        """
        value = plain(value)
        code = self._find(value)
        if code is None:
            if value is None:
                raise IITKitError(f"variable {self.name!r} has the value None: every variable needs a value")
            if value != value or (type(value) is tuple and any(part != part for part in value)):
                raise IITKitError(f"variable {self.name!r} has the value NaN, which equals nothing: give a number")
            if self.declared:
                raise IITKitError(
                    f"variable {self.name!r} got {value!r} ({type(value).__name__}), which is outside its declared "
                    f"domain {choices(map(repr, self.values))}"
                )
            if self.labels:
                self.check_label(value)
            code = len(self.values)
            self.values.append(value)
            self.codes[key_of(value)] = code
        return code

    def check_label(self, value: Hashable) -> None:
        """Check that an answer is a string.

        Raises:
            IITKitError: it is none.
        """
        if not isinstance(value, str):
            raise IITKitError(
                f"label {value!r} of variable {self.name!r} is a {type(value).__name__}, expected a string: "
                "quote it (YAML reads a bare yes, no, on or 012 as a boolean or a number), or say its text with surface"
            )

    def array(self) -> npt.NDArray[Any]:
        """Return the values as an array: of numbers, booleans or strings where all are of that one type."""
        if self._array is None or len(self._array) != len(self.values):
            kinds = {type(value) for value in self.values}
            self._array = np.asarray(self.values) if len(kinds) == 1 and kinds <= {int, float, bool, str} else None
            # numpy rounds integers beyond 63 bits, and cuts NUL characters off the ends of strings
            rounded = self._array is not None and kinds == {int} and self._array.dtype.kind == "f"
            if (
                self._array is None
                or rounded
                or (kinds == {str} and any(str(value).endswith("\0") for value in self.values))
            ):
                self._array = np.empty(len(self.values), dtype=object)
                self._array[:] = self.values
        return self._array


class Mechanism:
    """A variable computed from its parents, compiled to a lookup table.

    Args:
        name: the variable.
        function: the computation; its argument names are the parents.
        domain: the values it may take, in order; those that it takes unless said.
        vectorised: whether the function takes arrays of the parents' values, [n] each, and returns n values.
        kind: what messages call it: mechanism or constraint.

    Raises:
        IITKitError: a function without named arguments, an empty domain.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        domain: Sequence[Hashable] | None = None,
        vectorised: bool = False,
        kind: str = "mechanism",
    ) -> None:
        self.name, self.function, self.vectorised, self.kind = name, function, vectorised, kind
        parameters = inspect.signature(function).parameters.values()
        if not parameters or any(p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters):
            raise IITKitError(f"{kind} {name!r}: its arguments must be named after its parents, one or more")
        self.parents = [p.name for p in parameters]
        if domain is not None and not list(domain):
            raise IITKitError(f"variable {name!r} has an empty domain")
        self.domain = Domain(name, list(domain or ()), declared=domain is not None)
        self.table: Codes | None = None
        """Codes by the parents' codes, one axis for each parent; −1 where it has not been run yet."""
        self._known: dict[tuple[int, ...], int] = {}

    def compile(self, domains: Mapping[str, Domain]) -> None:
        """Tabulate the mechanism if its parents' combinations are few; a large one is run where it is needed."""
        sizes = [len(domains[parent]) for parent in self.parents]
        known, n = all(domains[parent].complete for parent in self.parents), math.prod(sizes)
        if known and n <= DENSE:
            self.table = np.full(sizes, _EMPTY, dtype=np.int64)
            if n <= TABULATED or self.vectorised:
                self._fill(np.arange(n), domains)
                return
        self.domain.complete = self.domain.declared

    def run(self, parents: Sequence[Codes], domains: Mapping[str, Domain]) -> Codes:
        """Return the variable's codes for its parents' codes, each [n]."""
        if self.table is not None:
            flat = _flat(parents, self.table.shape)
            found: Codes = self.table.reshape(-1)[flat]
            if (found == _EMPTY).any():
                self._fill(np.unique(flat[found == _EMPTY]), domains)
                found = self.table.reshape(-1)[flat]
            return found
        sizes = [len(domains[parent]) for parent in self.parents]
        if math.prod(sizes) < 2**62:  # unique numbers are found many times faster than unique rows
            keys, inverse = np.unique(_flat(parents, sizes), return_inverse=True)
            unique = np.stack(np.unravel_index(keys, sizes), 1) if len(keys) else np.zeros((0, len(sizes)), np.int64)
        else:
            unique, inverse = np.unique(np.stack(parents, 1), axis=0, return_inverse=True)
        rows = [tuple(row) for row in unique.tolist()]
        fresh = [row for row in rows if row not in self._known]
        if fresh:
            columns = np.asarray(fresh, dtype=np.int64).T
            self._known.update(zip(fresh, self._evaluate(list(columns), domains), strict=True))
        return np.asarray([self._known[row] for row in rows], dtype=np.int64)[inverse.reshape(-1)]

    def _fill(self, flat: Codes, domains: Mapping[str, Domain]) -> None:
        """Run the mechanism for entries of the table, given as flat indices."""
        assert self.table is not None
        columns = np.unravel_index(flat, self.table.shape)
        self.table.reshape(-1)[flat] = self._evaluate(columns, domains)

    def _evaluate(self, parents: Sequence[Codes], domains: Mapping[str, Domain]) -> list[int]:
        """Return the codes of what the function says for rows of the parents' codes."""
        if self.vectorised:
            return self._vector(parents, domains)
        columns = [
            [domains[p].values[c] for c in codes.tolist()] for p, codes in zip(self.parents, parents, strict=True)
        ]
        return [self._value(values) for values in zip(*columns, strict=True)]

    def _value(self, values: Sequence[Hashable]) -> int:
        arguments = dict(zip(self.parents, values, strict=True))
        try:
            value = self.function(**arguments)
        except Exception as error:
            raise IITKitError(
                f"{self.kind} {self.name!r} failed on {arguments}: {type(error).__name__}: {error}"
            ) from error
        return self._add(value, arguments)

    def _add(self, value: Any, arguments: Mapping[str, Any]) -> int:
        if value is None:
            raise IITKitError(f"{self.kind} {self.name!r} returned None on {arguments}: every variable needs a value")
        if self.domain.declared and self.domain.find(value) is None:
            raise IITKitError(
                f"{self.kind} {self.name!r} returned {value!r} ({type(value).__name__}) on {arguments}: outside its "
                f"declared domain {choices(map(repr, self.domain.values))}"
            )
        return self.domain.add(value)

    def _vector(self, parents: Sequence[Codes], domains: Mapping[str, Domain]) -> list[int]:
        arguments = {p: domains[p].array()[codes] for p, codes in zip(self.parents, parents, strict=True)}
        n = len(parents[0])
        try:
            result = self.function(**arguments)
        except Exception as error:
            raise IITKitError(
                f"{self.kind} {self.name!r} (vectorised) failed on {n} rows: {type(error).__name__}: {error}"
            ) from error
        if isinstance(result, np.ndarray) and result.ndim != 1:
            raise IITKitError(
                f"{self.kind} {self.name!r} (vectorised) returned an array of shape {list(result.shape)}, expected "
                f"[{n}]: values that are vectors are a list of tuples"
            )
        values = result.tolist() if isinstance(result, np.ndarray) else list(result) if _is_list(result) else None
        if values is None or len(values) != n:
            given = f"{len(values)} values" if values is not None else f"a {type(result).__name__}"
            raise IITKitError(
                f"{self.kind} {self.name!r} (vectorised) returned {given} for {n} rows: expected one a row"
            )
        if isinstance(result, np.ndarray) and result.dtype.kind in "biufU":
            # each value once, in the order in which it first stands
            _, first, inverse = np.unique(result, return_index=True, return_inverse=True)
            order = np.argsort(first)
            codes = np.empty(len(first), dtype=np.int64)
            for k in order.tolist():
                i = int(first[k])
                codes[k] = self._add(values[i], self._where(parents, domains, i))
            found: list[int] = codes[inverse.reshape(-1)].tolist()
            return found
        return [self._add(value, self._where(parents, domains, i)) for i, value in enumerate(values)]

    def _where(self, parents: Sequence[Codes], domains: Mapping[str, Domain], i: int) -> dict[str, Hashable]:
        """Return the parents' values in a row, for messages."""
        return {p: domains[p].values[codes[i]] for p, codes in zip(self.parents, parents, strict=True)}


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _flat(parents: Sequence[Codes], sizes: Sequence[int]) -> Codes:
    """Return rows of codes as one number each, the last parent's code counting fastest."""
    flat = parents[0]
    for codes, size in zip(parents[1:], sizes[1:], strict=True):
        flat = flat * size + codes
    return flat
