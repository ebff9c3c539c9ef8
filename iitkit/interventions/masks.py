"""Masks: which coordinates of a space an edit reaches, and how far."""

from __future__ import annotations

from torch import Tensor, nn


class Mask(nn.Module):
    """All coordinates."""

    def forward(self, delta: Tensor) -> Tensor:
        """Return the change ``delta`` [*, k] with every coordinate weighted by the mask."""
        return delta


class All(Mask):
    """All coordinates."""
