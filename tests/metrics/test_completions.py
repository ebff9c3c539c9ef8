"""Scores of completions, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from iitkit.batch import IGNORED
from iitkit.metrics import CompletionScores


def test_scores_by_hand() -> None:
    metric = CompletionScores()
    # three tokens; the logits are log-probabilities: 1/2, 1/4, 1/4 in an order of the row's own
    half, quarter = math.log(0.5), math.log(0.25)
    first, second, third = [half, quarter, quarter], [quarter, half, quarter], [quarter, quarter, half]
    # row 0: both right; row 1: one token, right; row 2: the second is wrong
    logits = torch.tensor([[first, second], [third, first], [second, third]])
    labels = torch.tensor([[0, 1], [2, IGNORED], [1, 0]])
    metric.update(logits, labels)
    metric.update(torch.tensor([[first]]), torch.tensor([[2]]))  # and one that is wrong, in a batch of its own
    found = {key: float(value) for key, value in metric.compute().items()}
    # 4 tokens of probability 1/2, 2 of 1/4: the mean over tokens, not over rows or batches
    assert found["loss"] == pytest.approx((4 * math.log(2) + 2 * math.log(4)) / 6)
    assert found["token_accuracy"] == pytest.approx(4 / 6)
    assert found["exact"] == 2 / 4
    assert found["n"] == 4
    metric.reset()
    metric.update(logits[:1], labels[:1])
    assert float(metric.compute()["exact"]) == 1.0
