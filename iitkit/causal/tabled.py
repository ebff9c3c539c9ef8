"""Mechanisms written as tables: each combination of the parents' values with its value."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from iitkit.causal.expressions import Expression
from iitkit.causal.operations import short
from iitkit.causal.plain import freeze
from iitkit.errors import IITKitError, choices, did_you_mean

Key = tuple[tuple[type, Hashable], ...]
"""A combination of the parents' values, each with its type: ``True`` is not 1."""

MOST_ENTRIES = 250_000
QUOTE = "quote it (YAML reads a bare yes, no, on or 012 as a boolean or a number)"


class Table:
    """A computation that is written out, entry by entry.

    >>> Table("plural", ["noun"], {"dog": "dogs", "ox": "oxen"})(noun="ox")
    'oxen'

    Args:
        name: what it computes, for messages and for the graph.
        parents: the variables that it is of.
        table: value of the first parent → value of the second → … → the result; or rows of the parents' values and
            the result behind them, for values that YAML does not tell apart as keys.
        what: how messages call it.

    Raises:
        IITKitError: parents that are not named, a level that is missing, an entry that stands twice, no entry.
    """

    def __init__(
        self,
        name: str,
        parents: Sequence[str],
        table: Mapping[Any, Any] | Sequence[Sequence[Any]],
        what: str = "mechanism",
    ) -> None:
        self.__name__, self.parents, self._where = name, list(parents), f"{what} {name!r}"
        if len(set(self.parents)) < len(self.parents):
            raise IITKitError(f"{self._where}: `of` has {choices(self.parents)}: name each parent once")
        self.entries: dict[Key, Hashable] = {}
        if isinstance(table, Mapping):
            self._read(table, ())
        else:
            self._read_rows(table)
        if not self.entries:
            raise IITKitError(f"{self._where}: its table has no entry")
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self.__signature__ = inspect.Signature([inspect.Parameter(parent, kind) for parent in self.parents])

    def __call__(self, /, *values: Hashable, **named: Hashable) -> Any:
        """Return the entry of the parents' values.

        Raises:
            ValueError: there is none.
        """
        given = values or [named[parent] for parent in self.parents]
        key = tuple([(type(value), value) for value in given])
        if key not in self.entries:
            raise ValueError(self._missing(key))
        return self.entries[key]

    def values_of(self, parent: str) -> list[tuple[type, Hashable]]:
        """Return the typed values that a parent has in the table, each once."""
        axis = self.parents.index(parent)
        return list(dict.fromkeys(key[axis] for key in self.entries))

    def unused(self, parent: str, domain: Sequence[Hashable]) -> str:
        """Say which entries are of no value of a parent's domain; an empty text if there are none."""
        known = {(type(value), value) for value in domain}
        stray = [value for value in self.values_of(parent) if value not in known]
        if not stray:
            return ""
        kind, value = stray[0]
        hint = did_you_mean(value, domain)
        if (kind is bool) != any(type(other) is bool for other in domain):
            hint = f" What is text: {QUOTE}."
        return (
            f"{self._where}: its table has an entry for {parent} = {short(value)}, which {parent!r} never is.{hint} "
            f"Its values are {choices(map(short, domain), 8)}"
        )

    def _missing(self, key: Key) -> str:
        for axis, parent in enumerate(self.parents):
            known = self.values_of(parent)
            if key[axis] not in known:
                kind, value = key[axis]
                hint = did_you_mean(value, [other for _, other in known])
                if (kind is bool) != any(other is bool for other, _ in known):
                    hint = f" What is text: {QUOTE}."
                return (
                    f"its table has no entry for {parent} = {short(value)}.{hint} "
                    f"It has {choices((short(other) for _, other in known), 8)}"
                )
        return f"its table has no entry for {choices(short(value) for _, value in key)} together"

    def _read(self, level: Mapping[Any, Any], above: Key) -> None:
        for key, below in level.items():
            at = (*above, (type(value := freeze(key, f"{self._where}: key")), value))
            parents = ", ".join(f"{p} = {short(v)}" for p, (_, v) in zip(self.parents, at, strict=False))
            if len(at) < len(self.parents):
                if not isinstance(below, Mapping):
                    raise IITKitError(
                        f"{self._where}: its table has {short(below)} for {parents}: expected a table of "
                        f"{self.parents[len(at)]!r} there"
                    )
                self._read(below, at)
            elif isinstance(below, Mapping):
                raise IITKitError(
                    f"{self._where}: its table has a table for {parents}: expected a value, as `of` names "
                    f"{choices(self.parents)}"
                )
            else:
                self._enter(at, freeze(below, f"{self._where}: {parents}"))

    def _read_rows(self, rows: Sequence[Sequence[Any]]) -> None:
        n = len(self.parents)
        for row in rows:
            if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != n + 1:
                raise IITKitError(
                    f"{self._where}: row {short(row)}: expected {n + 1} items, the values of {choices(self.parents)} "
                    "and the result"
                )
            values = [freeze(value, f"{self._where}: row {short(row)}") for value in row]
            key = tuple([(type(value), value) for value in values[:n]])
            if key in self.entries:
                raise IITKitError(f"{self._where}: two rows are for {choices(map(short, values[:n]))}: keep one")
            self._enter(key, values[n])

    def _enter(self, key: Key, result: Hashable) -> None:
        if len(self.entries) >= MOST_ENTRIES:
            raise IITKitError(f"{self._where}: its table has more than {MOST_ENTRIES} entries: write an expression")
        self.entries[key] = result


class Condition:
    """A constraint's computation, whose results must be true or false.

    Args:
        function: the computation.
    """

    def __init__(self, function: Expression | Table) -> None:
        self.function, self.parents = function, function.parents
        self.__name__, self.__signature__ = function.__name__, function.__signature__

    def __call__(self, /, *values: Hashable, **named: Hashable) -> bool:
        """Return whether the parents' values satisfy it.

        Raises:
            ValueError: the result is neither true nor false.
        """
        found = self.function(*values, **named)
        if type(found) is not bool:
            raise ValueError(f"a constraint is true or false, this is {short(found)}")
        return found
