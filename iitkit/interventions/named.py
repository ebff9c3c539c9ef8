"""The field's named interventions, each a choice of space, mask and edit."""

from __future__ import annotations

from torch import Tensor

from iitkit.interventions.base import Intervention, SiteInfo
from iitkit.interventions.edits import Swap
from iitkit.interventions.masks import All
from iitkit.interventions.spaces import Identity, LowRankRotation


class Vanilla(Intervention):
    """``b ← s``: the whole activation is taken from the source (activation patching).

    Geiger et al., 2020, https://arxiv.org/abs/2004.14623 (interchange interventions). Trains nothing.

    Args:
        site: the site's sizes; not needed.
    """

    def __init__(self, site: SiteInfo | None = None) -> None:
        super().__init__(Identity(), All(), Swap())

    def forward(self, base: Tensor, source: Tensor | None = None, strength: float = 1.0) -> Tensor:
        """Return the source itself at strength 1: ``b + (s − b)`` would round."""
        edited = super().forward(base, source, strength)
        return source.to(base.dtype) if strength == 1.0 and source is not None else edited


class LowRankSubspace(Intervention):
    """``b + (s − b) R Rᵀ``: the activation's part in a learned subspace is taken from the source (DAS).

    Distributed alignment search, Geiger et al., 2023, https://arxiv.org/abs/2303.02536, with ``rank`` of the rotated
    basis' directions learned and the rest left alone. ``rank`` = width is the full swap.

    Args:
        site: the site's sizes.
        rank: dimension of the subspace, 1 ≤ rank ≤ width.

    Raises:
        IITKitError: rank outside 1…width.
    """

    def __init__(self, site: SiteInfo, rank: int = 1) -> None:
        super().__init__(LowRankRotation(site.width, rank, site.generator), All(), Swap())
        self.rank = rank

    @property
    def rotation(self) -> Tensor:
        """R, [width, rank], orthonormal columns."""
        space = self.space
        assert isinstance(space, LowRankRotation)
        return space.rotation()
