"""Spans of recorded prompts: substrings or offsets, found and checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iitkit.data.cells import Cells, opened, short
from iitkit.data.numbers import places
from iitkit.errors import IITKitError, choices
from iitkit.positions import span_name


def find_spans(
    cells: Cells, base: list[str], sources: list[Any], numbers: bool = False
) -> list[list[dict[str, tuple[int, int]]]]:
    """Return the spans of each row's base and sources.

    Args:
        cells: the table.
        base: the bases.
        sources: each row's sources.
        numbers: whether these are lists of numbers, so that offsets count places, and there are no substrings.

    Raises:
        IITKitError: a substring that stands twice or not at all, offsets outside the text, a prompt with other spans.
    """
    if not {"positions", "base_positions", "source_positions"} & set(cells.columns):
        return [[{}] * (1 + len(texts)) for texts in sources]
    n = len(base)
    both = _mappings(cells, "positions") if "positions" in cells else [[{}]] * n
    of_base = _mappings(cells, "base_positions") if "base_positions" in cells else [[{}]] * n
    of_sources: list[list[dict[str, Any]]] = [[{}] * len(texts) for texts in sources]
    if "source_positions" in cells:
        of_sources = _mappings(cells, "source_positions", [len(texts) for texts in sources])
    found = []
    names: dict[str, None] = {}
    for row in range(n):
        at, rows = cells.table.at(row), []
        for k, (text, own) in enumerate(
            zip([base[row], *sources[row]], [*of_base[row], *of_sources[row]], strict=True)
        ):
            spans = {}
            for name, value in both[row][0].items():
                spans[name] = _located(text, name, value, at, False, numbers)
            for name, value in own.items():
                if name in spans:
                    raise IITKitError(f"{at}: span {name!r} stands in 'positions' too: give it once")
                if type(value) is list and len(value) == 2 and not numbers:  # the usual case, of which there are many
                    start, stop = value
                    if type(start) is int and type(stop) is int and 0 <= start < stop <= len(text):
                        spans[name] = (start, stop)
                        continue
                spans[name] = _located(text, name, value, at, True, numbers)
            if spans.keys() != names.keys():
                if not row and not k:
                    names = dict.fromkeys(spans)
                    for name in names:
                        _check_name(name, at)
                else:
                    what = "the base" if not k else "the source" if len(sources[row]) == 1 else f"source {k}"
                    raise IITKitError(
                        f"{at}: {what} has the spans {choices(spans) or 'none'}, the first base of the file "
                        f"{choices(names) or 'none'}: expected the same in every prompt"
                    )
            rows.append(spans)
        found.append(rows)
    return found


def _mappings(cells: Cells, name: str, lengths: Sequence[int] | None = None) -> list[list[dict[str, Any]]]:
    """Return a column of mappings, or of lists of ``lengths`` mappings; a null within stands for nothing."""
    found = []
    for row, cell in enumerate(cells.columns[name]):
        value = opened(cell)
        several = value if lengths is not None and isinstance(value, list) else [value]
        wanted = 1 if lengths is None else lengths[row]
        if len(several) != wanted or not all(isinstance(one, dict) for one in several):
            how = "a mapping of names to substrings or [start, stop]"
            raise cells.wrong(name, row, how if wanted == 1 else f"a list of {wanted}, one for each source, each {how}")
        if any(None in one.values() for one in several):
            several = [{key: place for key, place in one.items() if place is not None} for one in several]
        found.append(several)
    return found


def _check_name(name: str, at: str) -> None:
    if not name or name in ("first", "last", "all") or "." in name or span_name(name) is None:
        raise IITKitError(f"{at}: a span may not be called {name!r}, which names another position: rename it")


def _located(text: str, name: str, value: Any, at: str, offsets: bool, numbers: bool) -> tuple[int, int]:
    """Return the first character of a span and the one behind its last."""
    if type(value) is str and value and not numbers:
        start = text.find(value)
        if start < 0:
            raise IITKitError(
                f"{at}: span {name!r}: {value!r} is not in {short(text)}: expected a substring, or give offsets"
            )
        if text.find(value, start + 1) >= 0:
            raise IITKitError(
                f"{at}: span {name!r}: {value!r} stands twice in {short(text)}: give offsets [start, stop]"
                + ("" if offsets else ", in base_positions and source_positions")
            )
        return start, start + len(value)
    if not offsets:
        raise IITKitError(
            f"{at}: span {name!r} is {value!r}: expected a substring of base and source; give offsets in "
            "base_positions and source_positions"
        )
    if not isinstance(value, list) or len(value) != 2 or any(type(place) is not int for place in value):
        raise IITKitError(f"{at}: span {name!r} is {value!r}: expected a substring or offsets [start, stop]")
    start, stop = value
    length = places(text) if numbers else len(text)
    if not 0 <= start < stop <= length:
        what = "places" if numbers else "characters"
        raise IITKitError(
            f"{at}: span {name!r}: offsets {value} do not lie within the {length} {what} of {short(text)}"
        )
    return start, stop
