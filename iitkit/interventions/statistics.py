"""Statistics of activations that arrive in batches: one pass, in fp64, the same however they are cut."""

from __future__ import annotations

import torch
from torch import Tensor

from iitkit.errors import IITKitError


class Moments:
    """Mean and scatter of rows, merged batch by batch (Chan et al., 1979): a large mean costs no digits.

    Args:
        full: keep the whole scatter matrix [d, d]; otherwise its diagonal [d].
    """

    def __init__(self, full: bool = False) -> None:
        self.full, self.count = full, 0
        self.mean = self.scatter = torch.zeros((), dtype=torch.float64)

    def update(self, rows: Tensor) -> None:
        """See rows [n, d]."""
        if not len(rows):
            return
        wide = rows.detach().double()
        n, mean = len(wide), wide.mean(0)
        centred = wide - mean
        scatter = centred.T @ centred if self.full else centred.square().sum(0)
        if not self.count:
            self.count, self.mean, self.scatter = n, mean, scatter
            return
        total, step = self.count + n, mean - self.mean
        between = torch.outer(step, step) if self.full else step.square()
        self.scatter = self.scatter + scatter + between * (self.count * n / total)
        self.mean = self.mean + step * (n / total)
        self.count = total

    def pooled_std(self) -> Tensor:
        """Return the standard deviation of all entries together, around their common mean, 0-dim."""
        width = len(self.mean)
        spread = self.scatter.sum() + self.count * (self.mean - self.mean.mean()).square().sum()
        return (spread / (self.count * width - 1)).sqrt()

    def need(self, count: int, who: str) -> None:
        """Check that enough rows were seen.

        Raises:
            IITKitError: fewer than ``count``.
        """
        if self.count < count:
            raise IITKitError(f"{who} needs {count} activations or more, {self.count} were observed: give more data")
