"""Principal components of the activations themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from iitkit.interventions.charts import LinearChart
from iitkit.interventions.checks import whole
from iitkit.interventions.fitted import Fitted, unseen
from iitkit.interventions.orthonormal import check_orthonormal
from iitkit.interventions.site import SiteInfo
from iitkit.interventions.spaces import Space
from iitkit.interventions.statistics import Moments


class PCA(Fitted, Space):
    """Coordinates along the directions of largest variance, around the mean: ``z = ((x − μ) / σ) R``.

    Fitted by one pass over activations, in fp64. Each direction's sign makes its largest entry positive. Nothing
    trains.

    Args:
        site: the site's sizes.
        rank: number of components, 1 ≤ rank ≤ width.
        standardise: divide each entry of the activation by its standard deviation σ first; otherwise σ = 1. An entry
            that never varies keeps σ = 1.

    Raises:
        IITKitError: rank outside 1…width.
    """

    result = "basis"

    def __init__(self, site: SiteInfo, rank: int = 8, standardise: bool = False) -> None:
        whole("rank", rank, 1, site.width, "the site's width")
        super().__init__(site.width, rank, rank=rank, standardise=standardise)
        self.rank, self.standardise = rank, standardise
        self.basis: Tensor
        self.mean: Tensor
        self.scale: Tensor | None
        self.explained: Tensor
        self.register_buffer("basis", unseen(site.width, rank))
        self.register_buffer("mean", unseen(site.width))
        self.register_buffer("scale", unseen(site.width) if standardise else None)
        self.register_buffer("explained", unseen(rank))
        self._moments = Moments(full=True)

    def observe(self, activations: Tensor) -> None:
        """See activations [n, d]."""
        if self.unfitted:
            self._moments.update(activations)

    def finish(self) -> None:
        """Take the components.

        Raises:
            IITKitError: as few activations as components, or fewer.
        """
        if not self.unfitted:
            return
        seen = self._moments
        seen.need(self.rank + 1, f"PCA of rank {self.rank}")
        covariance = seen.scatter / (seen.count - 1)
        if not bool(torch.isfinite(covariance).all()):  # eigh would say something else
            self.fit(torch.full_like(self.basis, torch.nan))
        if self.scale is not None:
            spread = covariance.diagonal().sqrt()
            scale = torch.where(spread > 0, spread, 1.0)
            covariance = covariance / torch.outer(scale, scale)
            self.scale = scale.to(self.scale)
        variances, directions = torch.linalg.eigh(covariance)
        directions = directions.flip(1)[:, : self.rank]
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        self.mean = seen.mean.to(self.mean)
        total = variances.sum().clamp(min=torch.finfo(variances.dtype).tiny)  # of data that never vary
        self.explained = (variances.flip(0)[: self.rank] / total).clamp(min=0).to(self.explained)
        self.fit((directions * largest.sign()).contiguous())
        self._moments = Moments(full=True)

    def freeze(self, tensors: dict[str, Tensor] | None = None) -> None:
        """Check the ``basis`` of ``tensors``; nothing trains that would be dropped.

        Raises:
            IITKitError: a basis of another shape, or one whose columns are not orthonormal.
        """
        if tensors is not None:
            check_orthonormal(tensors["basis"], (self.mean.shape[0], self.rank))

    def chart(self) -> LinearChart:
        """Return the affine map."""
        return LinearChart(self.basis, self.mean, self.scale)
