"""Charts: a space's map at one moment, computed once and used for every row of a step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


class Chart:
    """The identity: the activation's own coordinates."""

    def encode(self, x: Tensor) -> Tensor:
        """Return the coordinates of ``x``: [*, d] → [*, k]."""
        return x

    def decode(self, delta: Tensor) -> Tensor:
        """Return the change of the activation for a change of its coordinates: [*, k] → [*, d]."""
        return delta

    def difference(self, source: Tensor, base: Tensor) -> Tensor:
        """Return ``encode(source) − encode(base)``."""
        return self.encode(source) - self.encode(base)

    def change(self, step: Tensor, base: Tensor) -> Tensor:
        """Return ``encode(base + step) − encode(base)``."""
        return step


@dataclass(frozen=True)
class LinearChart(Chart):
    """Coordinates along the columns of a matrix: ``((x − mean) / scale) M``, decoded by ``(δ Mᵀ) · scale``.

    Args:
        matrix: M, [d, k].
        mean: origin, [d]; None is 0.
        scale: unit of each of the activation's entries, [d]; None is 1.
    """

    matrix: Tensor
    mean: Tensor | None = None
    scale: Tensor | None = None

    def encode(self, x: Tensor) -> Tensor:
        """Return ``((x − mean) / scale) M``."""
        return self.change(x if self.mean is None else x - self.mean.to(x.dtype), x)

    def decode(self, delta: Tensor) -> Tensor:
        """Return ``(delta Mᵀ) · scale``."""
        step = delta @ self.matrix.to(delta.dtype).T
        return step if self.scale is None else step * self.scale.to(step.dtype)

    def difference(self, source: Tensor, base: Tensor) -> Tensor:
        """Return ``((source − base) / scale) M``: subtracting first rounds less where both share a large part."""
        return self.change(source - base, base)

    def change(self, step: Tensor, base: Tensor) -> Tensor:
        """Return ``(step / scale) M``."""
        scaled = step if self.scale is None else step / self.scale.to(step.dtype)
        return scaled @ self.matrix.to(step.dtype)


@dataclass(frozen=True)
class Known(Chart):
    """Another chart, for a source of which only the coordinates are known: they stand in its place.

    Args:
        chart: the space's map.
        given: the source's coordinates, [*, k].
    """

    chart: Chart
    given: Tensor

    def encode(self, x: Tensor) -> Tensor:
        """Return the coordinates of ``x``; the source's are given."""
        return x if x is self.given else self.chart.encode(x)

    def decode(self, delta: Tensor) -> Tensor:
        """Return the change of the activation, as the other chart does."""
        return self.chart.decode(delta)

    def change(self, step: Tensor, base: Tensor) -> Tensor:
        """Return the change of the coordinates, as the other chart does."""
        return self.chart.change(step, base)
