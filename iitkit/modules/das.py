"""Distributed alignment search."""

from __future__ import annotations

from torch import Tensor

from iitkit.batch import Batch
from iitkit.models.runs import Prepared, label_logits
from iitkit.modules.base import InterventionModule, label_loss


class DAS(InterventionModule):
    """Distributed alignment search: learns where, and along which directions, a variable lives.

    The interventions are trained by cross-entropy so that the network under an interchange says what the causal model
    says under the same interchange. Geiger et al., 2023, https://arxiv.org/abs/2303.02536.

    The arguments are those of :class:`~iitkit.modules.base.InterventionModule`.
    """

    def loss(self, batch: Batch, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the counterfactual label over the whole vocabulary."""
        logits = label_logits(prepared, self.edits, batch.labels)
        return label_loss(logits, batch.labels), logits
