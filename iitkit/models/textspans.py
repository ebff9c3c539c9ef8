"""Spans of prompts of which only the tokens are known: where a substring of their text stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from iitkit.errors import IITKitError
from iitkit.positions import Span

Given = str | tuple[int, int]
"""A substring, which stands there once, or its first character and the one behind its last."""

MARGIN = 8
"""Tokens on either side of a span that are looked at one by one: a character has at most four."""


class TextSpans:
    """Finds substrings of prompts among their tokens.

    Args:
        tokenizer: decodes tokens.
        given: name → substring, or offsets in the text as the tokenizer decodes it, special tokens left out; or a list
            of these, one for each prompt, None where a prompt has none.

    Raises:
        IITKitError: lists of different lengths, or anything else than substrings and offsets.
    """

    def __init__(self, tokenizer: Any, given: Mapping[str, Given | Sequence[Given | None]]) -> None:
        if tokenizer is None:
            raise IITKitError("spans are parts of a text, and no tokenizer was given: give the model's")
        if not isinstance(given, Mapping):
            raise IITKitError(f"spans {given!r}: expected a mapping, {{name: {given!r}}}")
        self._tokenizer = tokenizer
        self._given = {name: _each(name, value) for name, value in given.items()}
        lengths = {name: len(each) for name, each in self._given.items() if isinstance(each, list)}
        if len(set(lengths.values())) > 1:
            raise IITKitError(f"spans: {lengths} given: give each span once, or once for each prompt")
        self.examples: int | None = next(iter(lengths.values()), None)
        """How many prompts they are of; None where they are the same in all."""
        self.names = list(self._given)

    def find(self, ids: Sequence[int], example: int = 0) -> dict[str, Span]:
        """Return each span's first token and the one behind its last; those that the prompt does not have are left out.

        Args:
            ids: a prompt's tokens, without padding.
            example: which prompt it is.

        Raises:
            IITKitError: a substring that is not there or stands twice, offsets outside the text.
        """
        text = self._text(ids)
        of_prompt = {name: each[example] if isinstance(each, list) else each for name, each in self._given.items()}
        return {
            name: self._tokens(ids, text, *_characters(text, name, given))
            for name, given in of_prompt.items()
            if given is not None
        }

    def _text(self, ids: Sequence[int]) -> str:
        said: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return said

    def _tokens(self, ids: Sequence[int], text: str, start: int, stop: int) -> Span:
        """Return the tokens that say characters ``start`` to ``stop``."""
        first, last = self._before(ids, start), self._before(ids, stop)
        low, high = max(0, first - MARGIN), min(len(ids), last + MARGIN)
        # ends of tokens at which whole characters end: bytes of one character are tokens that belong together
        ends = [(i, len(said)) for i in range(low, high + 1) if text.startswith(said := self._text(ids[:i]))]
        inside = [(i, j) for (i, a), (j, b) in pairwise(ends) if a < stop and b > start]
        return inside[0][0], inside[-1][1]

    def _before(self, ids: Sequence[int], character: int) -> int:
        """Return about how many tokens say the text before a character."""
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            if len(self._text(ids[:middle])) < character:
                low = middle + 1
            else:
                high = middle
        return low


def _each(name: str, value: Any) -> Given | list[Given | None]:
    if _single(value):
        return value if isinstance(value, str) else (value[0], value[1])
    if isinstance(value, Sequence) and value and all(item is None or _single(item) for item in value):
        return [item if item is None or isinstance(item, str) else (item[0], item[1]) for item in value]
    raise IITKitError(
        f"span {name}: {value!r}: expected a substring of the prompt, (first character, one behind the last), or a "
        "list with one of these (or None) for each prompt"
    )


def _single(value: Any) -> bool:
    pair = isinstance(value, tuple) and len(value) == 2 and all(type(number) is int for number in value)
    return pair or (isinstance(value, str) and bool(value))


def _characters(text: str, name: str, given: Given) -> tuple[int, int]:
    """Return a span's first character and the one behind its last."""
    said = repr(text if len(text) <= 80 else f"{text[:79]}…")
    if not isinstance(given, str):
        if not 0 <= given[0] < given[1] <= len(text):
            raise IITKitError(f"span {name}: characters {given} are not in the {len(text)} of {said}")
        return given
    start = text.find(given)
    if start < 0:
        raise IITKitError(f"span {name}: {given!r} is not in the prompt {said}: name what stands there")
    if text.find(given, start + 1) >= 0:
        raise IITKitError(
            f"span {name}: {given!r} stands more than once in the prompt {said}: give its offsets, e.g. "
            f"{(start, start + len(given))}"
        )
    return start, start + len(given)
