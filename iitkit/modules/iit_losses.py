"""What interchange intervention training minimises: means over rows, so that two halves of a batch weigh alike."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from iitkit.batch import IGNORED, Batch, Tokens, Values
from iitkit.models.runs import call


def row_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Full-vocabulary cross-entropy of labels: the mean over rows, of each the mean over its label's tokens.

    Args:
        logits: at the labels' positions, [B, T, vocabulary].
        labels: [B, T], ``IGNORED`` behind the last token.
    """
    if labels.shape[1] == 1:
        return F.cross_entropy(logits[:, 0].float(), labels[:, 0], ignore_index=IGNORED)
    each = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return (each.view(labels.shape).sum(1) / (labels != IGNORED).sum(1)).mean()


def whole_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return a network's logits on the base at every position, [B, S, vocabulary]; S is 1 where there is none."""
    found = call(model, batch.base)
    logits: Tensor = getattr(found, "logits", found)
    return logits if logits.dim() == 3 else logits[:, None]


def divergence(original: Tensor, logits: Tensor, batch: Batch) -> Tensor:
    """Return KL(original ‖ now) in nats: the mean over rows, of each the mean over the base's real tokens.

    Args:
        original: logits of the original network, [B, S, vocabulary].
        logits: of the network as it is now, [B, S, vocabulary].
        batch: the pairs.
    """
    before, now = original.float().log_softmax(-1), logits.float().log_softmax(-1)
    each = F.kl_div(now, before, log_target=True, reduction="none").sum(-1)
    base: Tokens | Values = batch.base
    if isinstance(base, Values):
        return each.mean()
    real = base.mask.bool()
    return (each.where(real, each.new_zeros(())).sum(1) / real.sum(1)).mean()
