"""Loaders: batches of an epoch's pairs, and the state with which an interrupted epoch goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from iitkit.batch import IGNORED, Batch, Tokens
from iitkit.data.pairs import Pairs
from iitkit.data.pool import Pool
from iitkit.data.tokens import Answers
from iitkit.errors import IITKitError

Padding = Literal["left", "right"]


def pad(rows: Sequence[Sequence[int]], fill: int, side: Padding = "right") -> Tensor:
    """Return ragged rows as one tensor, [len(rows), longest]."""
    width = max((len(row) for row in rows), default=0)
    gap = [[fill] * (width - len(row)) for row in rows]
    full = [[*g, *row] if side == "left" else [*row, *g] for g, row in zip(gap, rows, strict=True)]
    return torch.tensor(full, dtype=torch.long).reshape(len(rows), width)


class Collator:
    """Makes batches of pairs.

    Args:
        pool: the prompts.
        answers: tokenises the candidates.
        placements: for each placement the index of its variable.
        pad_id: token that fills the gaps.
        side: where the gaps are.
        stage: for each placement its stage, where there are several.
    """

    def __init__(
        self,
        pool: Pool,
        answers: Answers,
        placements: Sequence[int],
        pad_id: int,
        side: Padding,
        stage: Sequence[int] = (),
    ) -> None:
        self.pool, self.answers, self.placements, self.pad_id, self.side = pool, answers, placements, pad_id, side
        self.stage = tuple(stage)

    def tokens(self, rows: Sequence[int]) -> Tokens:
        """Return prompts of the pool, padded."""
        ids = [self.pool.prompts[i].ids for i in rows]
        mask = pad([[1] * len(row) for row in ids], 0, self.side)
        numbers = torch.tensor([self.pool.first + i for i in rows], dtype=torch.long)
        return Tokens(pad(ids, self.pad_id, self.side), mask, numbers)

    def candidates(self, rows: Sequence[int], answers: Sequence[Sequence[str]]) -> Tensor:
        """Return the competing answers of prompts of the pool, [B, C, T]."""
        found = [self.answers.candidates(self.pool.prompts[i], row) for i, row in zip(rows, answers, strict=True)]
        c = max(len(row) for row in found)
        t = max(len(answer) for row in found for answer in row)
        flat = [[*answer, *[IGNORED] * (t - len(answer))] for row in found for answer in [*row, *[()] * (c - len(row))]]
        return torch.tensor(flat, dtype=torch.long).reshape(len(rows), c, t)

    def positions(self, rows: Sequence[int], tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Return the columns of every placement's site, [B, P, n], and which exist."""
        starts = (tokens.last + 1 - tokens.mask.sum(1)).tolist()  # columns of padding on the left
        found = [
            [start + column for column in positions[i]]
            for i, start in zip(rows, starts, strict=True)
            for positions in self.pool.positions
        ]
        shape = (len(rows), len(self.pool.positions), -1)
        there = pad([[1] * len(columns) for columns in found], 0).bool()
        return pad(found, 0).reshape(shape), there.reshape(shape)

    def _check_lengths(self, into: Sequence[Sequence[int]], from_: Sequence[Sequence[int]]) -> None:
        for p, positions in enumerate(self.pool.positions):
            for base, source in zip(into[p], from_[p], strict=True):
                if len(positions[base]) != len(positions[source]):
                    raise IITKitError(
                        f"a site has {len(positions[base])} tokens in {self.pool.prompts[base].text!r} and "
                        f"{len(positions[source])} in {self.pool.prompts[source].text!r}: a swap needs as many in "
                        "both; name one token (a span's last is its plain name, its first is name.first)"
                    )

    def __call__(self, pairs: Pairs, chosen: Sequence[int]) -> Batch:
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
            active, source_of = taken.any(2), taken.long().argmax(2)
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
        self._check_lengths(runs[into, of_row].T.tolist(), runs[source_of, of_row].T.tolist())
        candidates = self.candidates(bases, [pairs.candidates[i] for i in chosen])
        label = torch.tensor([pairs.label[i] for i in chosen])
        labels = candidates[torch.arange(len(chosen)), label]
        labels = labels[:, : int((labels != IGNORED).sum(1).max())]
        isolated: dict[str, Tensor] = {}
        if pairs.other is not None and pairs.other_label is not None:
            answers = [
                self.answers.tokens(self.pool.prompts[b], pairs.other_label[i])
                for b, i in zip(bases, chosen, strict=True)
            ]
            isolated["isolate_labels"] = pad(answers, IGNORED)
            isolated["isolate_active"] = torch.from_numpy(pairs.other[chosen])[:, None] == placed[None]
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
        )


class PairLoader:
    """Batches of one fixed set of pairs; with several processes each takes every ``world``-th row.

    Args:
        pairs: epoch → its pairs.
        collate: makes a batch.
        batch_size: rows of a batch.
        length: number of pairs.
        rank: this process.
        world: number of processes.
    """

    def __init__(
        self,
        pairs: Callable[[int], Pairs],
        collate: Collator,
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

    def __iter__(self) -> Iterator[Batch]:
        self.next = 0
        yield from self._rest()

    def _rest(self) -> Iterator[Batch]:
        pairs = self.pairs(self.epoch)
        while self.next < len(self):
            start = self.next * self.batch_size
            self.next += 1
            yield self.collate(pairs, self.rows[start : start + self.batch_size])


class TrainLoader(PairLoader):
    """Other pairs each epoch, and a state: a run that stopped within an epoch goes on with the right batches."""

    _begun = False
    _resumed = False

    def __iter__(self) -> Iterator[Batch]:
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
