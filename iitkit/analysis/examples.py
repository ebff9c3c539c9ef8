"""Examples to patch: bases and sources with their positions and answers, as text or as what a tokenizer returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iitkit.analysis.frames import listed
from iitkit.analysis.metrics import Answers
from iitkit.analysis.prompts import (
    Encoded,
    Prompt,
    answer_token,
    columns,
    distinct,
    encode,
    pad_of,
    padded,
    said,
    short,
)
from iitkit.batch import Tokens
from iitkit.errors import IITKitError
from iitkit.positions import Position

Text = str | Prompt
Both = tuple[Encoded, Encoded]
"""A base and its source."""
Places = tuple[list[list[int]], list[list[int]]]
"""Indices of every position in a base and in its source."""


@dataclass(frozen=True)
class Chunk:
    """Examples that are run together, B of them.

    Args:
        base: what is run.
        source: what activations are taken from.
        base_at: columns of each position in the base, [B, P, n], −1 for none.
        source_at: the same in the source.
        answers: what metrics compare with.
        names: what the examples are called.
        candidates: answers of several tokens, [B, C, T]; None where one token tells them apart.
    """

    base: Tokens
    source: Tokens
    base_at: Tensor
    source_at: Tensor
    answers: Answers
    names: list[str]
    candidates: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def there(self) -> Tensor:
        """Which positions an example has, [B, P]."""
        return (self.base_at >= 0).any(2)

    @property
    def alike(self) -> list[str]:
        """Names of examples whose base is their source."""
        told = self.plain()
        both = zip(self.names, told["base"], told["source"], strict=True)
        return [name for name, base, source in both if base == source]

    def plain(self) -> dict[str, Any]:
        """Return all that the numbers depend on, as plain values."""
        found: dict[str, Any] = {"names": self.names}
        for name in ("base", "source"):
            tokens: Tokens = getattr(self, name)
            rows = zip(tokens.ids.tolist(), tokens.mask.tolist(), strict=True)
            found[name] = [[i for i, real in zip(ids, mask, strict=True) if real] for ids, mask in rows]
        for name in ("base_at", "source_at", "candidates"):
            value = getattr(self, name)
            found[name] = None if value is None else value.tolist()
        found["answers"] = {key: x.tolist() for key, x in vars(self.answers).items() if isinstance(x, Tensor)}
        return found


@dataclass(frozen=True)
class Examples:
    """Examples in chunks.

    Args:
        chunks: the examples.
        positions: what the positions are called.
        position_alone: whether one position was given, and not a list.
        single: whether a single example was given, and not a list.
        metrics: what is measured unless said; None for the usual one.
        about: what they are, in plain values.
    """

    chunks: list[Chunk]
    positions: list[str]
    position_alone: bool = False
    single: bool = False
    metrics: list[str] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)

    @property
    def names(self) -> list[str]:
        """What the examples are called."""
        return [name for chunk in self.chunks for name in chunk.names]


@dataclass(frozen=True)
class Asked:
    """What is asked about pairs of prompts.

    Args:
        tokenizer: None where inputs are tokens already and answers are too.
        positions: one position or a list of them; None for all tokens, aligned by their index.
        answers: answers of the clean prompts, as text or token ids; one for all or a list.
        wrong: answers of the corrupt ones.
        prefix: text before every prompt.
        batch_size: examples of a chunk.
        clean: which of the two is the clean prompt.
    """

    tokenizer: Any = None
    positions: Position | Sequence[Position] | None = None
    answers: Any = None
    wrong: Any = None
    prefix: str = ""
    batch_size: int = 16
    clean: str = "source"


def of_text(base: Text | Sequence[Text], source: Text | Sequence[Text], asked: Asked) -> Examples:
    """Return examples from prompts.

    Raises:
        IITKitError: lists of different lengths, a source of another length where positions are not named, a position
            that names more tokens in one than in the other.
    """
    if asked.tokenizer is None:
        raise IITKitError("prompts given as text need tokenizer=; without one give what a tokenizer returns")
    single = isinstance(base, str | Prompt)
    pairs = _paired(_prompts(base, "base"), _prompts(source, "source"))
    both = [(encode(asked.tokenizer, b, asked.prefix), encode(asked.tokenizer, s, asked.prefix)) for b, s in pairs]
    turned = [(s, b) for b, s in pairs] if asked.clean == "source" else list(pairs)
    own = ([clean.answer for clean, _ in turned], [corrupt.answer for _, corrupt in turned])
    return _examples(both, asked, own, single)


def of_tokens(base: Mapping[str, Any], source: Mapping[str, Any], asked: Asked) -> Examples:
    """Return examples from what a tokenizer returned, padded on either side.

    Raises:
        IITKitError: as :func:`of_text`, and inputs without token ids.
    """
    pairs = _paired(_spoken(base, "base", asked), _spoken(source, "source", asked))
    none: list[str | None] = [None] * len(pairs)
    return _examples(pairs, asked, (none, none), len(pairs) == 1)


def _examples(
    both: Sequence[Both],
    asked: Asked,
    own: tuple[Sequence[str | None], Sequence[str | None]],
    single: bool,
) -> Examples:
    clean = [pair[1 if asked.clean == "source" else 0].text for pair in both]
    answers = _tokens(asked.answers, own[0], clean, asked.tokenizer, "answers")
    wrong = _tokens(asked.wrong, own[1], clean, asked.tokenizer, "wrong")
    told_apart(clean, answers, wrong, asked.tokenizer)
    labels, alone, placed = _placed(both, asked.positions)
    names = distinct([b.text.removeprefix(asked.prefix) or " ".join(map(str, b.ids)) for b, _ in both])
    pad = 0 if asked.tokenizer is None else pad_of(asked.tokenizer)
    chunks = []
    for start in range(0, len(both), asked.batch_size):
        part = slice(start, start + asked.batch_size)
        given = [None if tokens is None else torch.tensor(tokens[part]) for tokens in (answers, wrong)]
        base, source = (padded([pair[side].ids for pair in both[part]], pad) for side in (0, 1))
        base_at, source_at = (_stacked([places[side] for places in placed[part]]) for side in (0, 1))
        chunks.append(Chunk(base, source, base_at, source_at, Answers(*given), names[part]))
    rows: list[dict[str, Any]] = [{"base": b.text, "source": s.text} for b, s in both]
    for name, tokens in (("answer", answers), ("wrong", wrong)):
        if tokens is not None:
            told = said(asked.tokenizer, tokens) if asked.tokenizer is not None else tokens
            rows = [{**row, name: text} for row, text in zip(rows, told, strict=True)]
    return Examples(chunks, labels, alone, single, about={"prompts": rows})


def _paired(bases: Sequence[Any], sources: Sequence[Any]) -> list[tuple[Any, Any]]:
    if len(bases) != len(sources):
        raise IITKitError(f"{len(bases)} bases and {len(sources)} sources: expected as many of both")
    return list(zip(bases, sources, strict=True))


def _prompts(given: Text | Sequence[Text], name: str) -> list[Prompt]:
    many = [given] if isinstance(given, str | Prompt) else list(given)
    if not many or not all(isinstance(one, str | Prompt) for one in many):
        raise IITKitError(f"{name}: expected a prompt or several, as text or iitkit.Prompt")
    return [Prompt(one) if isinstance(one, str) else one for one in many]


def _spoken(inputs: Mapping[str, Any], name: str, asked: Asked) -> list[Encoded]:
    """Return the rows of a tokenizer's output, without padding."""
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise IITKitError(f'{name}: expected what tokenizer(…, return_tensors="pt") returns, with input_ids [batch, n]')
    mask = inputs.get("attention_mask")
    real = torch.ones_like(ids) if mask is None else mask
    rows = [row[keep.bool()].tolist() for row, keep in zip(ids, real, strict=True)]
    if asked.tokenizer is None:
        return [Encoded("", row, {}, [""] * len(row)) for row in rows]
    texts = asked.tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
    return [Encoded(text, row, {}, said(asked.tokenizer, row)) for row, text in zip(rows, texts, strict=True)]


def _tokens(given: Any, own: Sequence[str | None], texts: Sequence[str], tokenizer: Any, name: str) -> list[int] | None:
    """Return the first tokens of answers behind texts, given as text or as tokens, or what the prompts bring along."""
    if given is None:
        if all(answer is None for answer in own):
            return None
        if None in own:
            raise IITKitError(f"{name}: {short(texts[own.index(None)])} has none, which other prompts have: give it")
        given = own
    many, alone = listed(given.tolist() if isinstance(given, Tensor | np.ndarray) else given)
    if alone:
        many = many * len(texts)
    if len(many) != len(texts):
        raise IITKitError(f"{name}: given {len(many)}, expected one for each of {len(texts)} examples")
    found = []
    for answer, text in zip(many, texts, strict=True):
        if isinstance(answer, str):
            if tokenizer is None:
                raise IITKitError(f"{name} {answer!r}: answers given as text need tokenizer=; or give token ids")
            found.append(answer_token(tokenizer, text, answer))
        elif isinstance(answer, int | np.integer) and not isinstance(answer, bool) and answer >= 0:
            found.append(int(answer))
        else:
            raise IITKitError(f"{name} {answer!r}: expected text or a token id")
    return found


def told_apart(
    texts: Sequence[str], answers: Sequence[int] | None, wrong: Sequence[int] | None, tokenizer: Any
) -> None:
    """Check that no answer begins as the wrong one does.

    Raises:
        IITKitError: one that does.
    """
    for text, right, other in zip(texts, answers or [], wrong or [], strict=False):
        if right == other:
            first = right if tokenizer is None else said(tokenizer, [right])[0]
            raise IITKitError(
                f"the answer and the wrong answer of {short(text)} begin with the same token, {first!r}, and only "
                "first tokens are compared: give answers that differ there"
            )


def _placed(
    both: Sequence[Both], positions: Position | Sequence[Position] | None
) -> tuple[list[str], bool, list[Places]]:
    """Return what the positions are called, whether one was given alone, and where they are in each example."""
    if positions is None:
        for b, s in both:
            if len(b) != len(s):
                raise IITKitError(
                    f"the base {short(b.text)} has {len(b)} tokens, its source {len(s)}: name the positions "
                    "(positions), as tokens are aligned by their index only where there are as many"
                )
        most = max(len(b) for b, _ in both)
        by_index = [[[i] if i < len(b) else [] for i in range(most)] for b, _ in both]
        return _by_index([b for b, _ in both], most), False, [(row, row) for row in by_index]
    several, alone = listed(positions)
    if not several:
        raise IITKitError("positions: expected one or several, or none for all tokens by their index")
    placed: list[Places] = []
    for b, s in both:
        places = ([b.at(position) for position in several], [s.at(position) for position in several])
        for position, here, there in zip(several, *places, strict=True):
            if len(here) != len(there):
                raise IITKitError(
                    f"position {position!r} has {len(here)} tokens in {short(b.text)} and {len(there)} in "
                    f"{short(s.text)}: name one of them, e.g. its last"
                )
        placed.append(places)
    return distinct([str(position) for position in several]), alone, placed


def _by_index(bases: Sequence[Encoded], most: int) -> list[str]:
    labels = []
    for i in range(most):
        tokens = {base.tokens[i] for base in bases if i < len(base)}
        (only,) = tokens if len(tokens) == 1 else ("",)
        labels.append(f"{i} {only!r}" if only else str(i))
    return labels


def _stacked(rows: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Return lists of indices of each example and position as [B, P, n], −1 behind the last."""
    flat = columns([at for row in rows for at in row])
    return flat.view(len(rows), -1, flat.shape[1])
