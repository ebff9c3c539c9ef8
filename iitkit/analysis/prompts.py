"""Prompts as a measurement takes them: text with named spans and answers, and what a tokenizer makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from iitkit.batch import Tokens
from iitkit.errors import IITKitError
from iitkit.positions import Position, Span, resolve


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Args:
        text: what the network reads, without the prefix.
        spans: name → substring, which stands there once, or its first character and the one behind its last.
        answer: what should follow; a space is put before it unless it or the prompt has one there.
    """

    text: str
    spans: Mapping[str, str | tuple[int, int]] = field(default_factory=dict)
    answer: str | None = None


@dataclass(frozen=True)
class Encoded:
    """A tokenised prompt.

    Args:
        text: the prompt, with its prefix.
        ids: its tokens.
        spans: name → first token and one behind the last.
        tokens: what each token says.
    """

    text: str
    ids: list[int]
    spans: dict[str, Span]
    tokens: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> list[str]:
        """Each token's index and text, e.g. ``4 ' France'``."""
        return [f"{i} {said!r}" for i, said in enumerate(self.tokens)]

    def at(self, position: Position) -> list[int]:
        """Return the indices of a position.

        Raises:
            IITKitError: see :func:`iitkit.positions.resolve`.
        """
        try:
            return resolve(position, len(self.ids), self.spans or None)
        except IITKitError as error:
            raise IITKitError(f"{error}, in {short(self.text)}") from error


def encode(tokenizer: Any, prompt: Prompt, prefix: str = "", special_tokens: bool = True) -> Encoded:
    """Tokenise a prompt and find its spans.

    Args:
        tokenizer: a fast tokenizer, which adds what it adds by itself.
        prompt: the prompt.
        prefix: text before it, e.g. <|endoftext|>.
        special_tokens: whether the tokenizer adds what it adds by itself; a chat template writes these tokens.

    Raises:
        IITKitError: a span that is not there, stands twice or shares a token with what stands beside it, a prompt
            without a token, a slow tokenizer or one that closes each text.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise IITKitError(f"{type(tokenizer).__name__} gives no character offsets: load the model's fast tokenizer")
    text = prefix + prompt.text
    found = tokenizer(text, return_offsets_mapping=True, add_special_tokens=special_tokens)
    ids, offsets = list(found["input_ids"]), list(found["offset_mapping"])
    if not ids:
        raise IITKitError(f"prompt {short(text)} has no token")
    # what it adds has no characters, as a space may have none where offsets are trimmed
    if offsets[-1][0] == offsets[-1][1] and ids[-1] in tokenizer.all_special_ids and len(ids) > 1:
        raise IITKitError(
            f"the tokenizer puts {said(tokenizer, ids[-1:])[0]!r} behind {short(text)}, and nothing follows a "
            "text that is closed: let it add none (e.g. tokenizer.add_eos_token = False)"
        )
    spans = {}
    for name, given in prompt.spans.items():
        start, stop = _characters(prompt.text, name, given)
        start, stop = start + len(prefix), stop + len(prefix)
        inside = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start and b > a]
        if not inside:
            raise IITKitError(f"{name} {text[start:stop]!r} of {short(text)} has no token")
        spans[name] = (inside[0], inside[-1] + 1)
        _check_span(tokenizer, name, ids[slice(*spans[name])], text[start:stop], text)
    return Encoded(text, ids, spans, said(tokenizer, ids))


def said(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return what each token says by itself."""
    found: list[str] = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    return found


def answer_token(tokenizer: Any, text: str, answer: str) -> int:
    """Return an answer's first token behind a text: tokenised with it, as tokenizers may treat a start differently.

    Raises:
        IITKitError: an answer without a token, one that merges with the text's end, or whose first token is its blank.
    """
    before, whole = tokenizer([text, text + spaced(text, answer)])["input_ids"]
    if not answer or len(whole) <= len(before) or whole[: len(before)] != before:
        raise IITKitError(
            f"answer {answer!r} does not stand as tokens of its own behind {short(text)}: end the prompt without a "
            "space, and begin the answer with one"
        )
    first = int(whole[len(before)])
    if answer.strip() and not said(tokenizer, [first])[0].strip():
        raise IITKitError(
            f"answer {answer!r}: behind {short(text)} its first token is the blank alone, which says nothing of it: "
            "end the prompt with the blank"
        )
    return first


def spaced(prompt: str, answer: str) -> str:
    """Return an answer with the space before it that a prompt and a word need; scripts without spaces get none.

    >>> spaced("The capital of France is", "Paris"), spaced("2 + 3 =", " 5"), spaced("Wait", ".")
    (' Paris', ' 5', '.')
    """
    word = answer[:1].isalnum() and answer[0] < "\u0e00"  # Thai, Chinese, Japanese … come later
    return f" {answer}" if word and not prompt[-1:].isspace() else answer


def padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | None = None) -> Tokens:
    """Return ragged rows as tokens, padded on the right."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(list(row))
        mask[i, : len(row)] = 1
    return Tokens(ids.to(device), mask.to(device))


def pad_of(tokenizer: Any) -> int:
    """Return the token that fills gaps; what it says is never looked at."""
    return int(getattr(tokenizer, "pad_token_id", None) or 0)


def columns(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return ragged lists of indices as [B, n], −1 behind a row's last."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows])


def short(text: str, most: int = 80) -> str:
    """Return a text in quotes, cut where it is long."""
    return repr(text if len(text) <= most else f"{text[: most - 1]}…")


def distinct(labels: Sequence[str]) -> list[str]:
    """Return labels with a number behind those that were there before."""
    found: list[str] = []
    taken, given = set[str](), set(labels)
    for label in labels:
        name, number = label, 1
        while name in taken or (number > 1 and name in given):
            number += 1
            name = f"{label} ({number})"
        found.append(name)
        taken.add(name)
    return found


def _check_span(tokenizer: Any, name: str, ids: Sequence[int], span: str, text: str) -> None:
    """Check that a span's tokens say what it says, and no more."""
    word, (found,) = span.strip(), _decoded(tokenizer, [ids])
    unknown = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids
    if found == word:
        return
    # of Mary a tokenizer without capitals says mary
    if not unknown and _decoded(tokenizer, [tokenizer(word, add_special_tokens=False)["input_ids"]]) == [found]:
        return
    why = "the tokenizer does not know it" if unknown else "give all of the word that it is part of"
    raise IITKitError(f"{name}: the tokens of {word!r} in {short(text)} say {found!r}: {why}")


def _decoded(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    found: list[str] = tokenizer.batch_decode(list(rows), clean_up_tokenization_spaces=False)
    return [text.strip() for text in found]


def _characters(text: str, name: str, given: str | tuple[int, int]) -> tuple[int, int]:
    if isinstance(given, str):
        start = text.find(given) if given else -1
        if start < 0:
            raise IITKitError(f"{name} {given!r} is not in the prompt {short(text)}: give a substring of it")
        if text.find(given, start + 1) >= 0:
            raise IITKitError(
                f"{name} {given!r} stands twice in the prompt {short(text)}: give its first character and the one "
                "behind its last, [start, stop]"
            )
        return start, start + len(given)
    place = list(given)
    if len(place) != 2 or not all(type(at) is int for at in place) or not 0 <= place[0] < place[1] <= len(text):
        raise IITKitError(
            f"{name} {given!r}: expected a substring, or [start, stop] within the {len(text)} characters of "
            f"{short(text)}"
        )
    return place[0], place[1]
