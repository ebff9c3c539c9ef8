"""Examples to patch from a task's or a dataset's counterfactual pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from iitkit.analysis.examples import Asked, Chunk, Examples, of_text, of_tokens
from iitkit.analysis.frames import listed
from iitkit.analysis.metrics import Answers
from iitkit.analysis.prompts import distinct
from iitkit.batch import IGNORED, Batch, Tokens
from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.models.runs import PlainPrepared, PlainRunner, candidate_scores
from iitkit.positions import Position

RATES = ["iia", "iia_flipped", "iia_kept"]
"""What is measured of pairs unless said."""


class Data(Protocol):
    """A source of pairs: :class:`iitkit.CounterfactualDataModule`."""

    @property
    def splits(self) -> list[str]:
        """The splits there are."""

    def bind(self, subject: Any) -> None:
        """Make the pairs for variables and positions."""

    def every_pair(self, split: str) -> Iterable[Batch]:
        """Return a split's pairs in batches."""


@dataclass(frozen=True)
class _Place:
    """A placement, as the data ask of one."""

    variable: str
    position: Position


class _Subject:
    """What pairs are made for: one variable at several positions."""

    stages: Sequence[Sequence[str]] = ()
    isolates = False

    def __init__(self, model: nn.Module, tokenizer: Any, alignment: Mapping[str, _Place]) -> None:
        self.model, self.tokenizer, self.alignment = model, tokenizer, alignment

    def answer(self, tokens: Tokens, candidates: Tensor) -> Tensor:
        """Return which candidate [B, C, T] the network itself answers, [B]."""
        device = next(self.model.parameters()).device
        prepared = PlainPrepared(PlainRunner(self.model, []), tokens.to(device), [], [])
        return candidate_scores(prepared, None, candidates.to(device)).argmax(1)


def examples_of(
    model: nn.Module, base: Any, source: Any, asked: Asked, of: tuple[str | None, str, int | None]
) -> Examples:
    """Return examples from what :func:`patch` takes.

    Args:
        model: the network.
        base: the bases, or pairs with all they need.
        source: the sources.
        asked: what is asked about them.
        of: variable, split and number of pairs, of a data module.

    Raises:
        IITKitError: see :func:`patch`.
    """
    if isinstance(base, Batch) or hasattr(base, "every_pair"):
        own = {"source": source, "answers": asked.answers, "wrong": asked.wrong, "prefix": asked.prefix or None}
        for name, given in own.items():
            if given is not None:
                raise IITKitError(f"{name}: pairs of a task or a dataset bring theirs along: leave it out")
        if isinstance(base, Batch):
            _unread(of, "a batch of pairs has none")
            names: Any = asked.positions
            return of_batch(base, names, asked.batch_size)
        data: Data = base
        return of_data(model, data, asked.tokenizer, of[0], asked.positions, of[1], of[2], asked.batch_size)
    _unread(of, "is of a task or a dataset")
    if source is None:
        raise IITKitError("no source: give what activations are taken from, as the base")
    if isinstance(base, Mapping) != isinstance(source, Mapping):
        raise IITKitError("base and source: expected both as text or both as what a tokenizer returns")
    return of_tokens(base, source, asked) if isinstance(base, Mapping) else of_text(base, source, asked)


def _unread(of: tuple[str | None, str, int | None], why: str) -> None:
    for name, given, default in zip(("variable", "split", "pairs"), of, (None, "test", None), strict=True):
        if given != default:
            raise IITKitError(f"{name}: {why}: leave it out")


def of_data(
    model: nn.Module,
    data: Data,
    tokenizer: Any,
    variable: str | None,
    positions: Position | Sequence[Position] | None,
    split: str,
    most: int | None,
    batch_size: int,
) -> Examples:
    """Return examples from a split's pairs.

    Args:
        model: the network.
        data: where the pairs come from.
        tokenizer: the network's.
        variable: the causal variable that is interchanged.
        positions: where, by name.
        split: which split.
        most: how many of its first pairs; all unless said.
        batch_size: pairs of a chunk.

    Raises:
        IITKitError: no variable, no positions, a split that is not there, or what the data refuse.
    """
    if variable is None:
        raise IITKitError("pairs of a task or a dataset need the variable that is interchanged: give variable")
    if positions is None:
        raise IITKitError(
            "pairs of a task or a dataset need named positions, as base and source differ in length: give positions, "
            "e.g. a slot of its prompt or 'last'"
        )
    if most is not None and most < 1:
        raise IITKitError(f"pairs {most}: expected 1 or more")
    if split not in data.splits:
        raise IITKitError(f"no split {split!r}.{did_you_mean(split, data.splits)} Expected {choices(data.splits)}")
    several, alone = listed(positions)
    labels = distinct([str(position) for position in several])
    places = {label: _Place(variable, position) for label, position in zip(labels, several, strict=True)}
    data.bind(_Subject(model, tokenizer, places))
    chunks: list[Chunk] = []
    left = most
    for batch in data.every_pair(split):
        for start in range(0, len(batch), batch_size):
            rows = torch.arange(start, min(start + batch_size, len(batch)))
            rows = rows if left is None else rows[:left]
            if not len(rows):
                break
            left = None if left is None else left - len(rows)
            chunks.append(_chunk(batch, rows))
    about = {"variable": variable, "split": split, "task": str(getattr(getattr(data, "task", None), "name", ""))}
    return Examples(chunks, labels, alone, metrics=list(RATES), about=about)


def of_batch(batch: Batch, positions: Sequence[str] | None, batch_size: int) -> Examples:
    """Return examples from a batch of pairs: a position for each placement.

    Args:
        batch: the pairs, of one source each.
        positions: what the placements are called; numbered unless said.
        batch_size: pairs of a chunk.

    Raises:
        IITKitError: several sources or stages, another number of names.
    """
    if len(batch.sources) != 1 or batch.stage:
        raise IITKitError(f"pairs with {len(batch.sources)} sources or stages cannot be patched: expected one source")
    count = batch.active.shape[1]
    labels = [f"placement {p}" for p in range(count)] if positions is None else list(positions)
    if len(labels) != count:
        raise IITKitError(f"{len(labels)} names of positions: the batch has {count} placements")
    rows = torch.split(torch.arange(len(batch)), batch_size)
    return Examples([_chunk(batch, part) for part in rows], labels, metrics=list(RATES))


def _chunk(batch: Batch, rows: Tensor) -> Chunk:
    there = batch.position_mask[rows] & batch.active[rows][..., None]
    candidates, label = batch.candidates[rows], batch.label[rows]
    answers = Answers(
        answer=batch.labels[rows][:, 0],
        wrong=_first(batch, rows),
        candidates=candidates[:, :, 0].masked_fill(candidates[:, :, 0] == IGNORED, -1),
        label=label,
        answer_of=None if batch.answer_of is None else batch.answer_of[rows],
        flipped=batch.flipped[rows],
    )
    several = candidates.shape[2] > 1 and bool((candidates[:, :, 1:] != IGNORED).any())
    if several:
        answers = replace(answers, answer=None, wrong=None)
    return Chunk(
        _taken(batch.base, rows),
        _taken(batch.sources[0], rows),
        batch.base_positions[rows].where(there, -1),
        batch.source_positions[rows].where(there, -1),
        answers,
        [f"pair {int(i)}" for i in batch.rows[rows]],
        candidates if several else None,
    )


def _first(batch: Batch, rows: Tensor) -> Tensor:
    """Return the first token of each row's label without intervention, [B]."""
    at = batch.base_label[rows]
    if batch.answer_of is not None:  # the first form of the answer
        at = (batch.answer_of[rows] == at[:, None]).long().argmax(1)
    return batch.candidates[rows, at, 0]


def _taken(tokens: Tokens, rows: Tensor) -> Tokens:
    return Tokens(tokens.ids[rows], tokens.mask[rows])
