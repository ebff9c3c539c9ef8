"""Loaders: batches of an epoch's pairs, and the state with which an interrupted epoch goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iitkit.batch import IGNORED, Batch, Tokens, Values
from iitkit.data.answers import Choice, Labels
from iitkit.data.pairs import Pairs
from iitkit.data.pool import Pool
from iitkit.data.ragged import Padding as Padding
from iitkit.data.ragged import Ragged
from iitkit.data.valued import Target
from iitkit.errors import IITKitError

Rows = Sequence[int]


class Collator:
    """Makes batches of pairs.

    Args:
        pool: the prompts.
        answers: turns the candidates into tokens or classes.
        placements: for each placement the index of its variable.
        pad_id: token that fills the gaps.
        side: where the gaps are.
        stage: for each placement its stage, where there are several.
        targets: for each placement the pairs that it edits, None for all of its variable; empty for all.
    """

    def __init__(
        self,
        pool: Pool,
        answers: Labels,
        placements: Sequence[int],
        pad_id: int,
        side: Padding,
        stage: Sequence[int] = (),
        targets: Sequence[Target | None] = (),
    ) -> None:
        self.pool, self.answers, self.placements, self.pad_id, self.side = pool, answers, placements, pad_id, side
        self.stage, self.targets = tuple(stage), list(targets)

    def tokens(self, rows: Rows) -> Any:
        """Return prompts of the pool: padded :class:`Tokens`, or :class:`Values` where they are no tokens."""
        return self.pool.prompts.batch(rows, self.pool.first, self.pad_id, self.side)

    def candidates(self, rows: Rows, answers: Sequence[Sequence[Any]]) -> Tensor:
        """Return the competing answers of prompts of the pool, [B, C, T]."""
        return _candidates(self.answers.choices(self.pool.prompts, rows, answers))[0]

    def competing(self, rows: Rows, answers: Sequence[Sequence[Any]]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return candidates as :meth:`candidates`, and what maps the best of them, [B], to the answer that it is."""
        found, of = _candidates(self.answers.choices(self.pool.prompts, rows, answers))
        return found, lambda best: best if of is None else of.gather(1, best[:, None])[:, 0]

    def positions(self, rows: Rows, tokens: Tokens | Values) -> tuple[Tensor, Tensor]:
        """Return the columns of every placement's site, [B, P, n], and which exist."""
        padded = [positions.padded(rows, 0) for positions in self.pool.positions]
        n = max((real.shape[1] for _, real in padded), default=0)
        columns = np.zeros((len(rows), len(padded), n), dtype=np.int64)
        there = np.zeros(columns.shape, dtype=bool)
        for p, (found, real) in enumerate(padded):
            columns[:, p, : real.shape[1]], there[:, p, : real.shape[1]] = found, real
        found_at, real_at = torch.from_numpy(columns), torch.from_numpy(there)
        if isinstance(tokens, Tokens):  # columns of padding on the left
            found_at = (found_at + (tokens.last + 1 - tokens.mask.sum(1))[:, None, None]).where(real_at, 0)
        return found_at, real_at

    def _check_lengths(self, into: Tensor, from_: Tensor) -> None:
        """Compare how many tokens each placement has in the runs that it edits and reads, [B, P] each."""
        for p, positions in enumerate(self.pool.positions):
            bases, sources = into[:, p].numpy(), from_[:, p].numpy()
            there, here = positions.lengths[bases], positions.lengths[sources]
            for i in (there != here).nonzero()[0].tolist():
                raise IITKitError(
                    f"a site has {there[i]} tokens in {self.pool.prompts[int(bases[i])].text!r} and "
                    f"{here[i]} in {self.pool.prompts[int(sources[i])].text!r}: a swap needs as many in "
                    "both; name one token (a span's last is its plain name, its first is name.first)"
                )

    def _values(self, drawn: Tensor, source_of: Tensor) -> Tensor:
        """Return where a placement's source has the value that the placement is for, [B, P]; drawn: rows, [K, B]."""
        found = torch.ones_like(source_of, dtype=torch.bool)
        of_row = torch.arange(len(source_of))
        for p, target in enumerate(self.targets):
            if target is not None:
                found[:, p] = torch.from_numpy(target.codes)[drawn[source_of[:, p], of_row]] == target.wanted
        return found

    def __call__(self, pairs: Pairs, chosen: Rows) -> Batch[Any]:
        """Return the batch of the given pairs."""
        bases, drawn = pairs.base[chosen].tolist(), pairs.sources[chosen].T.tolist()
        base, sources = self.tokens(bases), tuple(self.tokens(rows) for rows in drawn)
        variables = torch.from_numpy(pairs.variables[chosen]).long()  # [B, K]
        placed = torch.tensor(self.placements)
        if self.stage:
            source_of = torch.tensor(self.stage)[None].repeat(len(bases), 1)
            active = torch.ones_like(source_of, dtype=torch.bool)
        else:
            taken = variables[:, None] == placed[None, :, None]  # [B, P, K]
            # of several variables from one source, all take their values from source 0
            active, source_of = taken.any(2), taken.long().argmax(2).clamp(max=len(drawn) - 1)
        values = self._values(torch.tensor(drawn), source_of)
        active = active & values
        at = [self.positions(rows, tokens) for rows, tokens in zip([*drawn, bases], [*sources, base], strict=True)]
        n = max(columns.shape[2] for columns, _ in at)
        columns, there = (
            torch.stack([torch.nn.functional.pad(x, (0, n - x.shape[2])) for x in part])
            for part in zip(*at, strict=True)
        )  # [K + 1, B, P, n]
        # the run that a placement edits: the base, or of an earlier stage the next source
        into = source_of + 1 if self.stage else torch.full_like(source_of, len(drawn))
        of_row, of_placement = torch.arange(len(bases))[:, None], torch.arange(len(self.placements))[None]
        runs = torch.tensor([*drawn, bases])  # [K + 1, B]
        self._check_lengths(runs[into, of_row], runs[source_of, of_row])
        found = self.answers.choices(self.pool.prompts, bases, [pairs.candidates[i] for i in chosen])
        candidates, answer_of = _candidates(found)
        label = torch.tensor([pairs.label[i] for i in chosen])
        first = torch.tensor([int(choice.first[i]) for choice, i in zip(found, label.tolist(), strict=True)])
        labels = candidates[torch.arange(len(chosen)), first]
        labels = labels[:, : int((labels != IGNORED).sum(1).max())]
        isolated: dict[str, Tensor] = {}
        if pairs.other is not None and pairs.other_label is not None:
            apart = self.answers.choices(self.pool.prompts, bases, [[pairs.other_label[i]] for i in chosen])
            rows, _ = Ragged.of([choice.tokens[0] for choice in apart]).padded(range(len(apart)), IGNORED)
            isolated["isolate_labels"] = torch.from_numpy(rows)
            others = torch.from_numpy(pairs.other[chosen])[:, None] == placed[None]
            isolated["isolate_active"] = others & self._values(torch.tensor(drawn), torch.zeros_like(source_of))
        return Batch(
            base=base,
            sources=sources,
            active=active,
            source_of=source_of,
            base_positions=columns[into, of_row, of_placement],
            source_positions=columns[source_of, of_row, of_placement],
            position_mask=there[into, of_row, of_placement],
            labels=labels,
            candidates=candidates,
            label=label,
            base_label=torch.tensor([pairs.base_label[i] for i in chosen]),
            flipped=torch.from_numpy(pairs.flipped[chosen]),
            variable=variables[:, 0],
            rows=torch.tensor(list(chosen)),
            stage=self.stage,
            isolate_active=isolated.get("isolate_active"),
            isolate_labels=isolated.get("isolate_labels"),
            answer_of=answer_of,
        )


def _candidates(choices: Sequence[Choice]) -> tuple[Tensor, Tensor | None]:
    """Return the rows' candidates, [B, C, T], and which answer each is a form of; None where each is its own."""
    shapes = {choice.ids.shape for choice in choices}
    if len(shapes) == 1:
        candidates = np.stack([choice.ids for choice in choices])
    else:
        c, t = (max(sizes) for sizes in zip(*shapes, strict=True))
        candidates = np.full((len(choices), c, t), IGNORED, dtype=np.int64)
        for row, choice in zip(candidates, choices, strict=True):
            row[: choice.ids.shape[0], : choice.ids.shape[1]] = choice.ids
    if not any(choice.formed for choice in choices):
        return torch.from_numpy(candidates), None
    of = np.full(candidates.shape[:2], -1, dtype=np.int64)
    for row, choice in zip(of, choices, strict=True):
        row[: len(choice.answer_of)] = choice.answer_of
    return torch.from_numpy(candidates), torch.from_numpy(of)


class PairLoader:
    """Batches of one fixed set of pairs (or examples); with several processes each takes every ``world``-th row.

    Args:
        pairs: epoch → its pairs.
        collate: makes a batch of some rows of them.
        batch_size: rows of a batch.
        length: number of pairs.
        rank: this process.
        world: number of processes.
    """

    def __init__(
        self,
        pairs: Callable[[int], Any],
        collate: Callable[[Any, Rows], Any],
        batch_size: int,
        length: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.pairs, self.collate, self.batch_size = pairs, collate, batch_size
        self.rows = list(range(rank, length, world))
        self.epoch, self.next = 0, 0

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        self.next = 0
        yield from self._rest()

    def _rest(self) -> Iterator[Any]:
        pairs = self.pairs(self.epoch)
        while self.next < len(self):
            start = self.next * self.batch_size
            self.next += 1
            yield self.collate(pairs, self.rows[start : start + self.batch_size])


class TrainLoader(PairLoader):
    """Other pairs each epoch, and a state: a run that stopped within an epoch goes on with the right batches."""

    _begun = False
    _resumed = False

    def __iter__(self) -> Iterator[Any]:
        if self._resumed and self.next < len(self):
            self._resumed = False  # go on where the checkpoint was written
        else:
            self.epoch += int(self._begun or self._resumed)
            self.next, self._resumed = 0, False
        self._begun = True
        yield from self._rest()

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the next batch."""
        return {"epoch": self.epoch, "next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.epoch, self.next, self._resumed = int(state["epoch"]), int(state["next"]), True
