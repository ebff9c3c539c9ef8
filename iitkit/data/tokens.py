"""From rendered prompts to tokens: ids, spans in tokens, positions."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np

from iitkit.causal import Text
from iitkit.causal.variables import Codes
from iitkit.data.prompts import Prompts
from iitkit.data.ragged import Integers, Ragged, Strings, ends_of, steps
from iitkit.data.wording import Worded, Wording
from iitkit.errors import IITKitError
from iitkit.positions import Position, listed, span_name

CHUNK = 4096
"""Prompts that are given to the tokenizer at once: their offsets are the most that is held as Python objects."""


def tokenise(tokenizer: Any, texts: Sequence[Text], wording: Wording | None = None) -> Prompts:
    """Tokenise prompts and find their spans by character offsets.

    Args:
        tokenizer: a fast tokenizer.
        texts: rendered prompts.
        wording: what stands around each; nothing unless said.

    Raises:
        IITKitError: a slow tokenizer, a prompt without a token, a span without one of its own, a span that would be
            cut, a chat that cannot be written.
    """
    check_fast(tokenizer)
    wording = wording or Wording()
    worded = wording.apply(tokenizer, [text.text for text in texts])
    slots, characters = character_spans(texts)
    parts, spans, lengths = [], [], []
    with _uncollected():
        for start in range(0, len(texts), CHUNK):
            chunk = slice(start, start + CHUNK)
            encoded = tokenizer(
                worded.texts[chunk],
                add_special_tokens=wording.adds_special_tokens,
                return_offsets_mapping=True,
                return_attention_mask=False,
                return_token_type_ids=False,
                padding=False,
                truncation=False,
            )
            rows = encoded["input_ids"]
            n = np.fromiter(map(len, rows), np.int64, len(rows))
            total = int(n.sum())
            ids: Integers = np.fromiter(chain.from_iterable(rows), np.int32, total)
            flat = chain.from_iterable(chain.from_iterable(encoded["offset_mapping"]))
            offsets = np.fromiter(flat, np.int32, 2 * total).reshape(total, 2)
            if not n.all():
                raise IITKitError(f"prompt {worded.texts[start + int(n.argmin())]!r} has no token")
            found = _token_spans(offsets, n, characters[chunk], slots, worded, start)
            if wording.max_tokens is not None and n.max() > wording.max_tokens:
                ids, n = _cut(ids, offsets, n, found, slots, worded, start, wording.max_tokens)
            parts.append(ids)
            spans.append(found)
            lengths.append(n)
    if not parts:
        return Prompts(Ragged.of([]), slots, np.zeros((0, len(slots), 2), np.int32), Strings.of([]))
    ragged = Ragged(np.concatenate(parts), ends_of(np.concatenate(lengths)))
    return Prompts(ragged, slots, np.concatenate(spans), Strings.of(worded.texts))


def check_fast(tokenizer: Any) -> None:
    """Refuse a tokenizer that gives no character offsets.

    Raises:
        IITKitError: a slow tokenizer.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise IITKitError(f"{type(tokenizer).__name__} gives no character offsets: load the model's fast tokenizer")


def character_spans(texts: Sequence[Text]) -> tuple[list[str], Integers]:
    """Return the names of all spans and their characters in each prompt, [N, slots, 2]; −1 where it has none."""
    slots = list(dict.fromkeys(chain.from_iterable(text.spans for text in texts)))
    spans = np.full((len(texts), len(slots), 2), -1, dtype=np.int32)
    for j, slot in enumerate(slots):
        spans[:, j] = np.asarray([text.spans.get(slot, (-1, -1)) for text in texts], np.int32).reshape(-1, 2)
    return slots, spans


@contextmanager
def _uncollected() -> Iterator[None]:
    """Spare the garbage collector the millions of offsets that live for one chunk: a third of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _token_spans(
    offsets: Integers, lengths: Codes, characters: Integers, slots: Sequence[str], worded: Worded, start: int
) -> Integers:
    """First token and one behind the last that share a character with each span, [n, slots, 2]."""
    starts, column = ends_of(lengths)[:-1], steps(lengths)
    left, right = offsets.T
    found = np.empty((len(lengths), len(slots), 2), dtype=np.int32)
    for j, slot in enumerate(slots):
        lo, hi = (np.repeat(bound + len(worded.before), lengths) for bound in characters[:, j].T)
        inside = (left < hi) & (right > lo) & (right > left)
        found[:, j, 0] = np.minimum.reduceat(np.where(inside, column, len(column)), starts)
        found[:, j, 1] = np.maximum.reduceat(np.where(inside, column, -1), starts) + 1
        there = characters[:, j, 0] >= 0
        for row in (there & (found[:, j, 1] == 0)).nonzero()[0].tolist():
            raise IITKitError(f"span {slot!r} of {worded.texts[start + row]!r} has no token: the slot is empty")
        found[~there, j] = -1
    return found


def _cut(
    ids: Integers,
    offsets: Integers,
    lengths: Codes,
    spans: Integers,
    slots: Sequence[str],
    worded: Worded,
    start: int,
    most: int,
) -> tuple[Integers, Codes]:
    """Return ids and lengths without the tokens that are too many, and move the spans."""
    starts, column = ends_of(lengths)[:-1], steps(lengths)
    left, right = offsets.T
    # what stays: tokens that the tokenizer adds in front, and those of the text that is kept
    first = np.minimum.reduceat(np.where((left < worded.kept) | (right <= left), len(column), column), starts)
    texts = worded.texts[start : start + len(lengths)]
    ends = np.fromiter(map(len, texts), np.int64, len(lengths)) - len(worded.after)
    stop = np.maximum.reduceat(np.where((left < np.repeat(ends, lengths)) & (right > left), column, -1), starts)
    extra = (lengths - most).clip(min=0)
    until = first + extra  # tokens from `first` up to here go
    too_many = (extra > 0) & (until > stop)
    for row in too_many.nonzero()[0].tolist():
        raise IITKitError(
            f"data.max_tokens: {most}: no token of the prompt itself would be left of {texts[row]!r}, which has "
            f"{lengths[row]} tokens: allow more"
        )
    lo, hi = spans[:, :, 0], spans[:, :, 1]
    lost = (lo < until[:, None]) & (hi > first[:, None]) & (lo >= 0) & (extra > 0)[:, None]
    for row, j in zip(*(found.tolist() for found in lost.nonzero()), strict=True):
        raise IITKitError(
            f"data.max_tokens: {most}: span {slots[j]!r} would be cut from {texts[row]!r}, which has {lengths[row]} "
            f"tokens: allow {lengths[row] - max(0, int(lo[row, j] - first[row]))}"
        )
    spans -= np.where((lo >= until[:, None]) & (lo >= 0), extra[:, None], 0)[:, :, None].astype(spans.dtype)
    here = np.repeat(extra > 0, lengths) & (column >= np.repeat(first, lengths)) & (column < np.repeat(until, lengths))
    return ids[~here], lengths - extra


def find_positions(
    tokenizer: Any, prompts: Prompts, texts: Sequence[Text], positions: Mapping[str, Position]
) -> list[Ragged]:
    """Return each placement's tokens in every prompt, after a check that a named span's tokens say what the span says.

    Args:
        tokenizer: the tokenizer.
        prompts: the tokenised prompts.
        texts: the rendered prompts.
        positions: placement → what the user wrote.

    Raises:
        IITKitError: tokens that decode to other text than their span, or an index outside a prompt.
    """
    found, checked = [], set()
    for placement, position in positions.items():
        found.append(prompts.find(position, f"alignment.{placement}"))
        for name in dict.fromkeys(span_name(item) for item in listed(position)):
            if name is not None and name not in checked:
                checked.add(name)
                _check_span(tokenizer, prompts, texts, name, f"alignment.{placement}")
    return found


def _check_span(tokenizer: Any, prompts: Prompts, texts: Sequence[Text], name: str, where: str) -> None:
    lo, hi = prompts.spans[:, prompts.slots.index(name)].astype(np.int64).T
    rows = Ragged.between(lo[:, None], hi[:, None])
    # places of the tokens within all ids, then the tokens themselves
    at = rows.flat + np.repeat(prompts.ids.starts[:-1], rows.lengths)
    padded, _ = Ragged(prompts.ids.flat[at], rows.starts).padded(range(len(rows)), -1)
    words = [text.text[slice(*text.spans[name])].strip() for text in texts]
    # bytes are made and compared far faster than lists of numbers
    keys = padded.astype(np.int32).view(f"V{4 * padded.shape[1]}").ravel().tolist()
    distinct: dict[tuple[bytes, str], int] = {}
    for row, key in enumerate(zip(keys, words, strict=True)):
        distinct.setdefault(key, row)
    tokens = [[token for token in np.frombuffer(ids, np.int32).tolist() if token >= 0] for ids, _ in distinct]
    for ids, said, ((_, word), row) in zip(tokens, decoded(tokenizer, tokens), distinct.items(), strict=True):
        if said.strip() == word or (not _unknown(tokenizer, ids) and said.strip() == _alone(tokenizer, word)):
            continue
        reason = (
            "the tokenizer does not know it"
            if _unknown(tokenizer, ids)
            else "the tokenizer joins the span to its neighbours; put a space or punctuation around the slot"
        )
        raise IITKitError(
            f"{where}: the tokens of span {name!r} decode to {said!r}, not to {word!r}, in {prompts.texts[row]!r}: "
            f"{reason}"
        )


def decoded(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    """Return what each row of tokens says."""
    said: list[str] = tokenizer.batch_decode(list(rows)) if rows else []
    return said


def _unknown(tokenizer: Any, ids: Sequence[int]) -> bool:
    return tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids


def _alone(tokenizer: Any, word: str) -> str:
    """What a word's own tokens say: a tokenizer without capitals says ``mary`` of ``Mary``."""
    return decoded(tokenizer, [tokenizer(word, add_special_tokens=False)["input_ids"]])[0].strip()
