"""A table's cells under known column names, checked one by one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iitkit.data.tables import Table
from iitkit.errors import IITKitError, choices, did_you_mean

COLUMNS = {
    "base": "the prompt that is run (text; or a list of numbers: symbols, a vector, an image)",
    "source": "the prompt that activations are taken from",
    "sources": "or several of them",
    "label": "the answer on the base under the interchange",
    "base_label": "the answer on the base without it",
    "source_label": "the answer on the source",
    "source_labels": "or on each source",
    "candidates": "the answers that compete",
    "flipped": "whether label and base_label differ",
    "variable": "the variable that takes its value from the source",
    "variables": "or several: one for each source, or all from the one",
    "other_variable": "a variable to be isolated from it",
    "other_label": "the label under an interchange of that one instead",
    "template": "the base's template",
    "source_template": "the source's template",
    "source_templates": "or each source's",
    "positions": "span → substring of base and source alike",
    "base_positions": "span → substring of the base, or its first character and one behind its last",
    "source_positions": "span → the same of the source, or a list of these for several sources",
    "base_values": "variable → its value in the base",
    "source_values": "variable → its value in the source, or a list of these",
}
"""What a dataset's columns hold."""

UNREAD = ("base_values", "source_values")
"""Columns for people and other programs."""


@dataclass(frozen=True)
class Cells:
    """A table's known columns that hold something, and their checks.

    Args:
        table: the table.
        columns: known name → cells.
        called: known name → the file's name for it.
    """

    table: Table
    columns: Mapping[str, list[Any]]
    called: Mapping[str, str]

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def wrong(self, name: str, row: int, expected: str) -> IITKitError:
        """Return the error about a cell."""
        value = self.columns[name][row]
        given = "empty" if value is None or value != value else f"{short(value)} ({type(value).__name__})"
        return IITKitError(f"{self.table.at(row)}: column {self.called[name]!r} is {given}: expected {expected}")

    def every(self, name: str, fits: Callable[[Any], bool], expected: str) -> list[Any]:
        """Return a column all of whose cells fit."""
        cells = self.columns[name]
        for row, cell in enumerate(cells):
            if not fits(cell):
                raise self.wrong(name, row, expected)
        return cells

    def texts(self, name: str) -> list[str]:
        """Return a column of texts."""
        hint = ", in quotes" if name.endswith("label") else ""
        return self.every(name, is_text, f"text{hint}")

    def lists(self, name: str, of: Callable[[Any], bool], expected: str, lengths: Sequence[int] = ()) -> list[Any]:
        """Return a column of lists, of ``lengths`` where these are given; JSON in text is read."""
        found = []
        for row, cell in enumerate(self.columns[name]):
            value = opened(cell)
            if not isinstance(value, list) or not value or not all(of(item) for item in value):
                raise self.wrong(name, row, f"a list of {expected}")
            if lengths and len(value) != lengths[row]:
                raise self.wrong(name, row, f"{lengths[row]}, one for each source")
            found.append(tuple(value))
        return found

    def each(
        self, one: str, several: str, of: Callable[[Any], bool], expected: str, lengths: Sequence[int] = ()
    ) -> list[Any] | None:
        """Return one item for each source, from the column for one or the column for several; None without both."""
        if one in self and several in self:
            raise IITKitError(
                f"{self.table.name} has columns {self.called[one]!r} and {self.called[several]!r}: keep one of them"
            )
        if several in self:
            return self.lists(several, of, expected, lengths)
        if one not in self:
            return None
        cells = self.every(one, of, expected)
        for row, k in enumerate(lengths):
            if k != 1:
                raise IITKitError(
                    f"{self.table.at(row)} has {k} sources and one {self.called[one]!r}: "
                    f"expected a column {several!r} with a list of {k}"
                )
        return [(cell,) for cell in cells]


def short(value: object) -> str:
    """Return a value as messages show it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def is_text(value: Any) -> bool:
    """Return whether a cell is text."""
    return type(value) is str and value != ""


def is_template(value: Any) -> bool:
    """Return whether a cell names a template."""
    return type(value) is int or is_text(value)


def opened(cell: Any) -> Any:
    """Return a list or mapping, also where it is written as JSON (in .csv there is no other way)."""
    if type(cell) is str and cell[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def known_columns(table: Table, columns: Mapping[str, str | None]) -> Cells:
    """Return the columns that hold something under their known names.

    Args:
        table: the table.
        columns: known name → the file's name; None: not to be read, whatever the file calls so.

    Raises:
        IITKitError: an unknown name, a column that is not there, and one whose name is probably misspelt.
    """
    called = {}
    for name in COLUMNS:
        given = columns.get(name, name)
        if given is None:
            continue
        if given in table.columns:
            called[name] = given
        elif name in columns:
            raise IITKitError(
                f"columns.{name}: {table.name} has no column {given!r}.{did_you_mean(given, table.columns)} "
                f"It has {choices(table.columns)}"
            )
    absent = [name for name in COLUMNS if name not in called and name not in columns and name not in UNREAD]
    for name in table.columns:
        close = difflib.get_close_matches(name, absent, n=1, cutoff=0.8)
        if close and name not in called.values():
            raise IITKitError(
                f"{table.name}: unknown column {name!r}. Did you mean {close[0]!r}? "
                f"Rename it, or say columns: {{{close[0]}: {name}}}, or {{{close[0]}: null}} to leave it unread"
            )
    cells = {name: table.columns[given] for name, given in called.items()}
    there = {name: column for name, column in cells.items() if any(cell is not None for cell in column)}
    for name in ("base", "source", "label"):
        if name in there or (name == "source" and "sources" in there):
            continue
        if name in called:
            raise IITKitError(f"{table.name}: column {called[name]!r} is empty in every {table.unit}: expected text")
        hint = did_you_mean(name, [given for given in table.columns if given not in called.values()])
        raise IITKitError(
            f"{table.name} has no column {name!r}.{hint} Expected base, source (or sources) and label; it has "
            f"{choices(table.columns)}. Call a column of another name by columns: {{{name}: …}}"
        )
    return Cells(table, there, called)
