"""Spaces: the coordinates in which an activation is edited."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from iitkit.interventions.charts import Chart, LinearChart
from iitkit.interventions.checks import whole
from iitkit.interventions.draws import uniform
from iitkit.interventions.orthonormal import orthonormal
from iitkit.interventions.parts import Part
from iitkit.interventions.site import SiteInfo

__all__ = ["FreeProjection", "Identity", "Space", "orthonormal"]


class Space(Part):
    """Coordinates of an activation, perhaps with parameters that train.

    Args:
        width: size d of the activation; None where any will do.
        size: number of coordinates k; None where it is the activation's size, whatever that is.
        options: what the subclass was built from.
    """

    kind = "space"
    affine: bool = True
    """Whether the coordinates are an affine map of the activation, so that those of a mean are the mean of those."""

    def __init__(self, width: int | None, size: int | None, **options: Any) -> None:
        super().__init__(**options)
        self.width, self.size = width, size

    def chart(self) -> Chart:
        """Return the map as it is now; see :meth:`now`."""
        raise NotImplementedError  # abstract

    def now(self) -> Chart:
        """Return the map, computed once inside ``held()``."""
        return self.once("chart", self.chart)

    def observe(self, activations: Tensor) -> None:
        """See activations [n, d] of the data that an unfitted space is fitted to."""


class Identity(Space):
    """The activation's own coordinates.

    Args:
        site: the site's sizes; without them it takes any width.
    """

    def __init__(self, site: SiteInfo | None = None) -> None:
        width = None if site is None else site.width
        super().__init__(width, width)

    def chart(self) -> Chart:
        """Return the identity."""
        return Chart()


class FreeProjection(Space):
    """Coordinates ``W h`` along the rows of a free matrix W [r, d], decoded by Wᵀ: nothing keeps it orthonormal.

    Wu et al., 2024, https://arxiv.org/abs/2404.03592 (NoReFT). As W Wᵀ ≠ I, a swap here does not set the coordinates.

    Args:
        site: the site's sizes.
        rank: number of rows r, 1 ≤ r ≤ d.

    Raises:
        IITKitError: rank outside 1…width.
    """

    def __init__(self, site: SiteInfo, rank: int = 4) -> None:
        whole("rank", rank, 1, site.width, "the site's width")
        super().__init__(site.width, rank, rank=rank)
        # as torch's linear layers begin
        self.weight = nn.Parameter(uniform((rank, site.width), site.width**-0.5, site.generator))

    def chart(self) -> Chart:
        """Return the linear map along the rows of W."""
        return LinearChart(self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)).T)
