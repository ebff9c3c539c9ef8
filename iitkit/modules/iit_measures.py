"""What interchange intervention training measures: each combination of variables, the behaviour, strict sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from iitkit.batch import IGNORED, Batch, Tokens, Values
from iitkit.metrics import IIA
from iitkit.models.sites import Placement

RATES = ("iia", "iia_flipped", "iia_kept")


SITES_A_ROW = 8
"""Strict sites that a row of validation or test measures; the next row takes the next ones."""


def combinations_of(
    alignment: Mapping[str, Placement], variables: Sequence[str], together: int
) -> dict[str, list[int]]:
    """Return the variables that a row may intervene on at once: their names joined by ``+`` → their placements."""
    of = [placement.variable or name for name, placement in alignment.items()]
    chosen = combinations(variables, together)
    return {"+".join(names): [p for p, variable in enumerate(of) if variable in names] for names in chosen}


def count_rows(metric: IIA, batch: Batch, placements: Sequence[int], logits: Tensor, scores: Tensor) -> None:
    """Count the rows of a batch that intervene on these placements and no others.

    Args:
        metric: counts.
        batch: the pairs.
        placements: numbers in the alignment's order.
        logits: at the label's positions under the interchange, [B, T, vocabulary].
        scores: of the candidates, [B, C].
    """
    wanted = torch.zeros_like(batch.active)
    wanted[:, list(placements)] = True
    rows = (batch.active == wanted).all(1)
    said = batch.winners(scores.masked_fill(batch.candidates[:, :, 0] == IGNORED, -torch.inf))
    top1 = ((logits.argmax(-1) == batch.labels) | (batch.labels == IGNORED)).all(1)
    metric.update(said[rows], batch.label[rows], batch.flipped[rows], top1[rows])


def rows_of_sites(sites: int, rows: Tensor) -> list[Tensor]:
    """Return which entries of a batch measure each strict site: a row's are its own, in whatever batch it stands.

    Args:
        sites: how many there are.
        rows: the batch's rows, [B].
    """
    several = min(SITES_A_ROW, sites)
    own = (rows[:, None] * several + torch.arange(several, device=rows.device)) % max(sites, 1)
    return [(own == site).any(1).nonzero()[:, 0] for site in range(sites)]


def taken(batch: Batch, entries: Tensor) -> Batch:
    """Return some entries of a batch."""

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[entries]
        if isinstance(value, Tokens | Values):
            return replace(value, **{field.name: of(getattr(value, field.name)) for field in fields(value)})
        return tuple(map(of, value)) if isinstance(value, tuple) else value

    return replace(batch, **{field.name: of(getattr(batch, field.name)) for field in fields(batch)})


def says(logits: Tensor, batch: Batch, labels: Tensor) -> Tensor:
    """Return whether logits [B, T, vocabulary] answer with the base's own label, [B].

    Among the candidates where each is one token; else each token must be the vocabulary's best.
    """
    if batch.candidates.shape[2] > 1:
        return ((logits.argmax(-1) == labels) | (labels == IGNORED)).all(1)
    first = batch.candidates[:, :, 0]
    scores = logits[:, 0].gather(1, first.clamp(min=0)).masked_fill(first == IGNORED, -torch.inf)
    return batch.winners(scores) == batch.base_label


def results(found: Mapping[str, Mapping[str, Tensor]], split: str) -> dict[str, float]:
    """Return metrics by name: ``split/task_accuracy``, ``split/variable/iia…``, ``split/strict/site/accuracy``.

    Args:
        found: ``split/task``, ``split/variable`` and ``split/strict/site`` → what their counts come to.
        split: the split.
    """
    named: dict[str, float] = {}
    for key, values in found.items():
        name = key.removeprefix(f"{split}/")
        if name == "task":
            named[f"{split}/task_accuracy"] = float(values["iia"])
        elif name.startswith("strict/"):
            if values["n"] > 0:  # fewer rows than it takes to measure all
                named[f"{key}/accuracy"] = float(values["iia"])
        else:
            named |= {f"{key}/{rate}": float(values[rate]) for rate in RATES}
    return named


def worst(found: Mapping[str, Mapping[str, Tensor]], split: str, terms: Sequence[str]) -> float:
    """Return the least of what is trained for; what no pair was measured for does not count."""
    read = {key: value for key, value in results(found, split).items() if "iit" in terms or not key.endswith(RATES)}
    return min((value for value in read.values() if value == value), default=0.0)


def base_labels(batch: Batch) -> Tensor:
    """Return the tokens of the base's own label (its first form), [B, T], ``IGNORED`` behind the last."""
    if batch.answer_of is None:
        first = batch.base_label
    else:
        first = (batch.answer_of == batch.base_label[:, None]).long().argmax(1)
    found = batch.candidates[torch.arange(len(batch), device=first.device), first]
    return found[:, : int((found != IGNORED).sum(1).max())]
