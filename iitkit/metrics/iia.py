"""Interchange intervention accuracy, on all pairs and on those whose label the interchange flips or keeps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def wilson(right: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson score interval of a rate (95 % unless ``z`` says otherwise); (nan, nan) for n = 0.

    Wilson, 1927, https://doi.org/10.2307/2276774.

    >>> tuple(round(bound, 4) for bound in wilson(9, 10))
    (0.5958, 0.9821)
    """
    if n == 0:
        return math.nan, math.nan
    rate, z2 = right / n, z * z
    middle = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


class IIA(Metric):
    """How often network and causal model agree under the same interchange.

    The prediction is the argmax over the row's candidates; vocabulary top-1 agreement is counted beside it.

    >>> metric = IIA()
    >>> metric.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), torch.tensor([True, False, True]))
    >>> {key: round(float(value), 2) for key, value in metric.compute().items()}  # doctest: +NORMALIZE_WHITESPACE
    {'iia': 0.67, 'iia_flipped': 0.5, 'iia_kept': 1.0, 'n': 3.0, 'n_flipped': 2.0, 'n_kept': 1.0, 'top1': 0.0}
    """

    full_state_update = False
    higher_is_better = True
    right: Tensor
    count: Tensor
    top: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, size in (("right", 2), ("count", 2), ("top", 1)):
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, label: Tensor, flipped: Tensor, top1: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            predicted: index of the winning candidate, [B].
            label: index of the counterfactual label, [B].
            flipped: whether the interchange changes the label, [B].
            top1: whether every label token is the vocabulary's argmax, [B].
        """
        right = predicted == label
        for i, group in enumerate((flipped, ~flipped)):
            self.right[i] += (right & group).sum()
            self.count[i] += group.sum()
        if top1 is not None:
            self.top += top1.sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the rates (nan where there is no pair) and the counts."""
        all_right, n = self.right.sum(), self.count.sum()
        return {
            "iia": all_right / n,
            "iia_flipped": self.right[0] / self.count[0],
            "iia_kept": self.right[1] / self.count[1],
            "n": n,
            "n_flipped": self.count[0],
            "n_kept": self.count[1],
            "top1": self.top[0] / n,
        }


def label_chance(candidates: list[list[str]], label: list[int]) -> float:
    """Return how often a guess is right that knows how frequent each label is among the row's candidates.

    A row's chance is its label's frequency over that of all its candidates; .5 for two balanced answers.

    >>> label_chance([["yes", "no"]] * 4, [0, 0, 0, 1])
    0.625
    """
    counts: dict[str, int] = {}
    for row, index in zip(candidates, label, strict=True):
        counts[row[index]] = counts.get(row[index], 0) + 1
    shares = [
        counts[row[index]] / sum(counts.get(answer, 0) for answer in row)
        for row, index in zip(candidates, label, strict=True)
    ]
    return sum(shares) / len(shares)
