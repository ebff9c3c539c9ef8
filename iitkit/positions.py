"""The names of positions in a sequence: spans, ``last``, ``all``, integers, ``f7+l7`` and lists of these."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from iitkit.errors import IITKitError, choices, did_you_mean

Position = int | str | Sequence[int | str]
"""What a user may write for a position."""

Span = tuple[int, int]
"""First token and one behind the last token of a span, counted among the prompt's real tokens."""

_ENDS = re.compile(r"f(\d+)\+l(\d+)")
_PARTS = ("first", "last", "all")


def span_name(position: int | str) -> str | None:
    """Return the span that a position names (``name`` of ``name.first``); None for ``last``, ``all``, integers, …."""
    if isinstance(position, int) or position in ("last", "all") or _ENDS.fullmatch(position):
        return None
    return position.rpartition(".")[0] if position.rpartition(".")[2] in _PARTS else position


def listed(position: Position) -> list[int | str]:
    """Return a position as a list of single positions.

    Raises:
        IITKitError: for an empty list or anything but integers and strings.
    """
    items = [position] if isinstance(position, int | str) else list(position) if isinstance(position, Sequence) else []
    if not items or any(isinstance(item, bool) or not isinstance(item, int | str) for item in items):
        raise IITKitError(
            f"position {position!r}: expected the name of a span, 'last', 'all', an integer, 'f7+l7' or a list of these"
        )
    return items


def check_spans(position: Position, spans: Sequence[str], where: str) -> None:
    """Check that every span that ``position`` names is one of ``spans``.

    Raises:
        IITKitError: naming the span, the spans there are, and the closest of them.
    """
    for item in listed(position):
        name = span_name(item)
        if name is not None and name not in spans:
            parts = [f"{span}.{part}" for span in spans for part in _PARTS]
            hint = did_you_mean(item, [*spans, *parts, "last", "all"])
            raise IITKitError(
                f"{where}: position {item!r} is no span of the prompt.{hint} "
                f"Expected one of {choices(spans)}, 'last', 'all' or an integer"
            )


def count(position: Position) -> int | None:
    """Return how many tokens a position names in every prompt (that is long enough); None where that varies."""
    counts = []
    for item in listed(position):
        if item == "all" or (isinstance(item, str) and item.endswith(".all")):
            return None
        ends = _ENDS.fullmatch(item) if isinstance(item, str) else None
        counts.append(sum(int(number) for number in ends.groups()) if ends else 1)
    return sum(counts)


def resolve(position: Position, length: int, spans: Mapping[str, Span] | None = None) -> list[int]:
    """Return the indices of a position among a prompt's ``length`` real tokens, in the order written.

    Args:
        position: what the user wrote.
        length: number of real tokens.
        spans: the prompt's spans in tokens; None where the text is free, so that names are an error.

    Raises:
        IITKitError: for an index outside the prompt, a name without a span, or a position without a token (``f0+l0``).
    """
    found: list[int] = []
    for item in listed(position):
        if isinstance(item, int):
            if not -length <= item < length:
                raise IITKitError(f"position {item} is outside a prompt of {length} tokens")
            found.append(item % length)
        elif item == "last":
            found.extend(range(length - 1, length) if length else ())
        elif item == "all":
            found.extend(range(length))
        elif ends := _ENDS.fullmatch(item):
            first, last = (int(number) for number in ends.groups())
            # a prompt shorter than first + last: each token once
            found.extend(sorted({*range(min(first, length)), *range(max(0, length - last), length)}))
        else:
            found.extend(_in_span(item, spans))
    if not found:
        raise IITKitError(f"position {position!r} names no token of a prompt of {length} tokens")
    if len(set(found)) < len(found):
        twice = next(index for index in found if found.count(index) > 1)
        raise IITKitError(
            f"position {position!r} names token {twice} twice in a prompt of {length} tokens: name it once"
        )
    return found


def _in_span(item: str, spans: Mapping[str, Span] | None) -> list[int]:
    if spans is None:
        raise IITKitError(
            f"position {item!r} names a span, and this text has none: give an integer, 'last', 'all', 'f7+l7' "
            "or a tensor of shape [batch, k]"
        )
    check_spans(item, list(spans), "site")
    name = span_name(item)
    assert name is not None
    start, stop = spans[name]
    part = item.rpartition(".")[2] if item != name else "last"
    return {"first": [start], "last": [stop - 1], "all": list(range(start, stop))}[part]
