"""From rendered prompts to tokens: ids, spans in tokens, positions, answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iitkit.causal import Text
from iitkit.errors import IITKitError
from iitkit.positions import Position, Span, listed, resolve, span_name


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt.

    Args:
        text: prefix and prompt.
        ids: its tokens.
        spans: slot name → first token and one behind the last.
    """

    text: str
    ids: list[int]
    spans: dict[str, Span]


def tokenise(tokenizer: Any, texts: Sequence[Text], prefix: str = "") -> list[Prompt]:
    """Tokenise prompts and find their spans by character offsets.

    Args:
        tokenizer: a fast tokenizer.
        texts: rendered prompts.
        prefix: text before every prompt, e.g. ``"<|endoftext|>"``.

    Raises:
        IITKitError: a slow tokenizer, or a span without a token of its own.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise IITKitError(f"{type(tokenizer).__name__} gives no character offsets: load the model's fast tokenizer")
    whole = [prefix + text.text for text in texts]
    encoded = tokenizer(whole, return_offsets_mapping=True, padding=False, truncation=False)
    prompts = []
    for text, full, ids, offsets in zip(texts, whole, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        spans = {}
        for name, (start, stop) in text.spans.items():
            inside = [
                i
                for i, (left, right) in enumerate(offsets)
                if left < stop + len(prefix) and right > start + len(prefix) and right > left
            ]
            if not inside:
                raise IITKitError(f"span {name!r} of {full!r} has no token: the slot is empty")
            spans[name] = (inside[0], inside[-1] + 1)
        prompts.append(Prompt(full, list(ids), spans))
    return prompts


def find_positions(tokenizer: Any, prompt: Prompt, text: Text, position: Position, placement: str) -> list[int]:
    """Return the tokens of a position, after a check that a named span's tokens say what the span says.

    Args:
        tokenizer: the tokenizer.
        prompt: the tokenised prompt.
        text: the rendered prompt.
        position: what the user wrote.
        placement: whose position it is, for messages.

    Raises:
        IITKitError: tokens that decode to other text than their span, or an index outside the prompt.
    """
    for item in listed(position):
        name = span_name(item)
        if name is not None:
            start, stop = prompt.spans[name]
            said = tokenizer.decode(prompt.ids[start:stop])
            left, right = text.spans[name]
            if said.strip() != text.text[left:right].strip():
                raise IITKitError(
                    f"alignment.{placement}: the tokens of span {name!r} decode to {said!r}, not to "
                    f"{text.text[left:right]!r}, in {prompt.text!r}: the tokenizer joins the span to its neighbours; "
                    "put a space or punctuation around the slot"
                )
    try:
        return resolve(position, len(prompt.ids), prompt.spans)
    except IITKitError as error:
        raise IITKitError(f"alignment.{placement}: {error}, in {prompt.text!r}") from error


class Answers:
    """Answers as tokens that follow a prompt; tokenised with it, because a tokenizer may treat a start differently.

    Args:
        tokenizer: a fast tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known: dict[tuple[str, str], tuple[int, ...]] = {}
        self._told_apart: set[tuple[tuple[int, ...], ...]] = set()

    def tokens(self, prompt: Prompt, answer: str) -> tuple[int, ...]:
        """Return an answer's tokens behind a prompt.

        Raises:
            IITKitError: an empty answer, or one that merges with the prompt's end.
        """
        key = (prompt.text.rpartition(" ")[2], answer)  # tokenizers do not look beyond a word
        if key not in self._known:
            joint = self.tokenizer(prompt.text + answer)["input_ids"]
            n = len(prompt.ids)
            if len(joint) <= n or joint[:n] != prompt.ids:
                raise IITKitError(
                    f"label {answer!r} does not stand as tokens of its own behind {prompt.text!r}: "
                    "begin it with a space, and end the prompt without one"
                )
            self._known[key] = tuple(joint[n:])
        return self._known[key]

    def candidates(self, prompt: Prompt, answers: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens of answers that compete.

        Raises:
            IITKitError: two answers with equal tokens, or one that begins with all of another.
        """
        found = [self.tokens(prompt, answer) for answer in answers]
        if tuple(found) not in self._told_apart:
            for i, one in enumerate(found):
                for j, other in enumerate(found):
                    if i != j and other[: len(one)] == one:
                        how = (
                            "have the same tokens"
                            if one == other
                            else "are told apart by no token: one begins the other"
                        )
                        raise IITKitError(
                            f"candidates {answers[i]!r} and {answers[j]!r} {how} ({list(one)}, {list(other)}): "
                            "choose answers that differ before the shorter one ends"
                        )
            self._told_apart.add(tuple(found))
        return found
