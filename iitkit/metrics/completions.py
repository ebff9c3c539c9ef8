"""How well a network says what it should, token by token and as a whole."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from iitkit.batch import IGNORED


class CompletionScores(Metric):
    """Loss, accuracy and exact matches of completions under teacher forcing.

    ``loss`` is the mean cross-entropy of all tokens, in nats; ``token_accuracy`` the share of tokens that are the most
    probable; ``exact`` the share of completions all of whose tokens are: those that greedy decoding writes as they are.
    """

    full_state_update = False
    loss: Tensor
    tokens: Tensor
    right: Tensor
    exact: Tensor
    n: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss", "tokens", "right", "exact", "n"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            logits: [B, T, vocabulary].
            labels: [B, T], ``IGNORED`` behind the last.
        """
        real = labels != IGNORED
        right = (logits.argmax(-1) == labels) & real
        self.loss += F.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        ).double()
        self.tokens += real.sum()
        self.right += right.sum()
        self.exact += (right | ~real).all(1).sum()
        self.n += len(labels)

    def compute(self) -> dict[str, Tensor]:
        """Return loss, token_accuracy, exact and n."""
        return {
            "loss": self.loss / self.tokens,
            "token_accuracy": self.right / self.tokens,
            "exact": self.exact / self.n,
            "n": self.n,
        }
