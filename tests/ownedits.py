"""An intervention of a user's own package; iitkit knows nothing of it."""

from __future__ import annotations

from torch import Tensor

from iitkit.interventions import Intervention, SiteInfo
from iitkit.interventions.charts import Chart
from iitkit.interventions.edits import Swap
from iitkit.interventions.masks import All
from iitkit.interventions.rotations import LowRankRotation


class Partway(Intervention):
    """``b + share · (s − b) R Rᵀ``: a swap that goes part of the way.

    Args:
        site: the site's sizes.
        rank: dimension of the subspace.
        share: how far it goes.
    """

    def __init__(self, site: SiteInfo, rank: int = 1, share: float = 0.5) -> None:
        super().__init__(LowRankRotation(site, rank), All(rank), Swap(rank), rank=rank)
        self.share = share  # an option may also be kept under its own name

    def forward(
        self,
        base: Tensor,
        source: Tensor | None = None,
        strength: float = 1.0,
        *,
        inputs: Tensor | None = None,
        block: str | None = None,
    ) -> Tensor:
        """Swap at the share of the strength."""
        return super().forward(base, source, self.share * strength)


class Halfway(Swap):
    """Half of the way to the source."""

    def delta(self, chart: Chart, base: Tensor, source: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Return half of what a swap would."""
        return 0.5 * super().delta(chart, base, source, inputs)
