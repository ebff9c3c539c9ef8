"""Edits that see data first: mean, resample and noise ablation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from iitkit.errors import IITKitError
from iitkit.interventions.charts import Chart
from iitkit.interventions.checks import number, whole
from iitkit.interventions.draws import ROWS, Table, rows
from iitkit.interventions.edits import Edit, sized
from iitkit.interventions.fitted import Fitted, unseen
from iitkit.interventions.site import SiteInfo
from iitkit.interventions.spaces import Space
from iitkit.interventions.statistics import Moments


def _evenly(generator: torch.Generator) -> Tensor:
    return torch.rand(ROWS, generator=generator, dtype=torch.float64)


class Mean(Fitted, Edit):
    """Set the coordinates to their mean over data."""

    result = "mean"

    def __init__(self, size: int | None = None, site: SiteInfo | None = None) -> None:
        super().__init__(sized(size, "Mean"), site)
        self.mean: Tensor
        self._moments, self._affine = Moments(), True

    def bind(self, space: Space) -> None:
        """Keep the activations' mean where that gives the coordinates', through whatever the space has learned."""
        self._affine = space.affine
        length = space.width if space.affine else self.size
        self.register_buffer("mean", unseen(sized(length, "Mean")))

    def observe(self, activations: Tensor, space: Space) -> None:
        """See activations [n, d]; their coordinates, once those are known, where the space is curved."""
        if not self.unfitted or (not self._affine and space.unfitted):
            return
        with torch.no_grad():
            self._moments.update(activations if self._affine else space.now().encode(activations))

    def finish(self) -> None:
        """Take the mean."""
        if self.unfitted:
            self._moments.need(1, "Mean")
            self.fit(self._moments.mean)
            self._moments = Moments()

    def delta(self, chart: Chart, base: Tensor, source: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Return mean − base in the chart's coordinates."""
        mean = self.mean.to(base.dtype)
        return chart.difference(mean, base) if self._affine else mean - chart.encode(base)


class Resample(Fitted, Edit):
    """Take the coordinates of another input of the data, drawn evenly.

    Row i of a batch always takes draw i of the seeded stream, in every call.

    Args:
        size: number of coordinates.
        site: the site's sizes.
        samples: how many activations are kept, a uniform sample of the data.
        seed: of the sample and of the draws.
    """

    result = "kept"

    def __init__(self, size: int | None = None, site: SiteInfo | None = None, samples: int = 64, seed: int = 0) -> None:
        whole("samples", samples, 1)
        super().__init__(sized(size, "Resample"), site, samples=samples, seed=whole("seed", seed, 0))
        self.samples, self.seed, self._count = samples, seed, 0
        self.kept: Tensor
        self._table = Table(seed)
        self._reservoir: Tensor | None = None

    def bind(self, space: Space) -> None:
        """Make room for the activations."""
        width = sized(space.width, "Resample")
        self.register_buffer("kept", unseen(self.samples, width))

    def _draw(self, generator: torch.Generator) -> Tensor:
        return torch.randint(self.samples, (ROWS,), generator=generator)

    def observe(self, activations: Tensor, space: Space) -> None:
        """See activations [n, d]; keep a uniform sample of all (Vitter's algorithm R)."""
        if not self.unfitted:
            return
        if self._reservoir is None:
            self._reservoir = torch.full_like(self.kept, math.nan, dtype=torch.float64)
        order = torch.arange(self._count, self._count + len(activations))
        drawn = (rows(self.seed + 1, self._count, len(order), _evenly) * (order + 1)).long()
        slots = torch.where(order < self.samples, order, drawn)
        for row in (slots < self.samples).nonzero()[:, 0].tolist():
            self._reservoir[slots[row]] = activations[row].detach().to(self._reservoir)
        self._count += len(order)

    def finish(self) -> None:
        """Take the sample."""
        if self.unfitted:
            if self._reservoir is None or self._count < self.samples:
                raise IITKitError(
                    f"Resample keeps {self.samples} activations, {self._count} were observed: "
                    "give more data, or fewer samples"
                )
            self.fit(self._reservoir)
            self._reservoir = None

    def delta(self, chart: Chart, base: Tensor, source: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Return the draws − base in the chart's coordinates."""
        drawn = self._table.first(math.prod(base.shape[:-1]), base.device, self._draw)
        return chart.difference(self.kept[drawn].to(base.dtype).reshape(base.shape), base)


class Noise(Fitted, Edit):
    """Add Gaussian noise to the activation, as far as the coordinates see it.

    Row i of a batch always takes draw i of the seeded stream, in every call. Meng et al., 2022,
    https://arxiv.org/abs/2202.05262 (causal tracing), takes 3 times the standard deviation of all entries of the token
    embeddings.

    Args:
        size: number of coordinates.
        site: the site's sizes.
        sigma: standard deviation; give this or ``times_std``.
        times_std: standard deviation in units of the one of all the data's entries together.
        seed: of the draws.

    Raises:
        IITKitError: both or neither of sigma and times_std, or one below 0.
    """

    result = "std"

    def __init__(
        self,
        size: int | None = None,
        site: SiteInfo | None = None,
        sigma: float | None = None,
        times_std: float | None = None,
        seed: int = 0,
    ) -> None:
        if (sigma is None) == (times_std is None):
            raise IITKitError("Noise: give either sigma, or times_std with data to measure the standard deviation on")
        for name, value in (("sigma", sigma), ("times_std", times_std)):
            if value is not None and number(name, value) < 0:
                raise IITKitError(f"{name} {value}: expected a number of 0 or more")
        super().__init__(size, site, sigma=sigma, times_std=times_std, seed=whole("seed", seed, 0))
        self.sigma, self.times_std, self._moments = sigma, times_std, Moments()
        self.std: Tensor
        self.register_buffer("std", unseen() if sigma is None else None)
        self._table = Table(seed)

    def bind(self, space: Space) -> None:
        """Learn the activation's width."""
        self._width = sized(space.width, "Noise")

    def _draw(self, generator: torch.Generator) -> Tensor:
        return torch.randn(ROWS, self._width, generator=generator, dtype=torch.float32)

    def observe(self, activations: Tensor, space: Space) -> None:
        """See activations [n, d]."""
        if self.unfitted:
            self._moments.update(activations)

    def finish(self) -> None:
        """Take the standard deviation."""
        if self.unfitted:
            self._moments.need(2, "Noise")
            self.fit(self._moments.pooled_std())
            self._moments = Moments()

    def delta(self, chart: Chart, base: Tensor, source: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Return the noise in the chart's coordinates."""
        drawn = (
            self._table.first(math.prod(base.shape[:-1]), base.device, self._draw).to(base.dtype).reshape(base.shape)
        )
        if self.sigma is not None:
            return chart.change(drawn * self.sigma, base)
        assert self.times_std is not None
        return chart.change(drawn * (self.std.to(base.dtype) * self.times_std), base)
