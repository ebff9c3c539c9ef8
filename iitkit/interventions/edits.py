"""Edits: what to do with the coordinates of an activation."""

from __future__ import annotations

from torch import Tensor, nn

from iitkit.interventions.spaces import Chart


class Edit(nn.Module):
    """A change of coordinates."""

    needs_source: bool = False

    def delta(self, chart: Chart, base: Tensor, source: Tensor | None) -> Tensor:
        """Return the change of the base's coordinates, [*, k]."""
        raise NotImplementedError  # abstract


class Swap(Edit):
    """Take the source's coordinates: the interchange intervention."""

    needs_source = True

    def delta(self, chart: Chart, base: Tensor, source: Tensor | None) -> Tensor:
        """Return source − base in the chart's coordinates."""
        assert source is not None
        return chart.difference(source, base)
