"""Edits: what to do with the coordinates of an activation."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError
from iitkit.interventions.charts import Chart
from iitkit.interventions.checks import number, one_of
from iitkit.interventions.parts import Part
from iitkit.interventions.site import SiteInfo
from iitkit.interventions.spaces import Space


class Edit(Part):
    """A change of coordinates. Edits that read no size may be built without one.

    Args:
        size: number of coordinates k; None where any will do.
        site: the site's sizes.
        options: what the subclass was built from.
    """

    kind = "edit"
    needs_source: bool = False
    needs_input: bool = False

    def __init__(self, size: int | None = None, site: SiteInfo | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.size = size
        self.input_width = None if site is None else site.input_width

    def bind(self, space: Space) -> None:
        """Learn in which space it acts; called once, before any data is seen."""

    def observe(self, activations: Tensor, space: Space) -> None:
        """See activations [n, d] of the data that an unfitted edit is fitted to."""

    def delta(self, chart: Chart, base: Tensor, source: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Return the change of the base's coordinates.

        Args:
            chart: the space's map.
            base: [*, d].
            source: [*, d] where the edit needs a source.
            inputs: the module's input, [*, input width], where the edit needs it.

        Returns:
            [*, k], or what broadcasts to it.
        """
        raise NotImplementedError  # abstract


def sized(size: int | None, name: str) -> int:
    """Return the number of coordinates for an edit that cannot do without."""
    if size is None:
        raise IITKitError(f"{name} needs the number of coordinates: build it for a site")
    return size


class Swap(Edit):
    """Take the source's coordinates: the interchange intervention."""

    needs_source = True

    def __init__(self, size: int | None = None, site: SiteInfo | None = None) -> None:
        super().__init__(size, site)

    def delta(self, chart: Chart, base: Tensor, source: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Return source − base in the chart's coordinates."""
        assert source is not None
        return chart.difference(source, base)


class _Signed(Edit):
    """Adds the source's coordinates or a trained vector, times ``sign``."""

    sign = 1.0

    def __init__(
        self, size: int | None = None, site: SiteInfo | None = None, take: Literal["vector", "source"] = "vector"
    ) -> None:
        super().__init__(size, site, take=one_of("take", take, ("vector", "source")))
        self.needs_source = take == "source"
        self.vector: nn.Parameter | None = None
        if take == "vector":
            self.vector = nn.Parameter(torch.zeros(sized(size, type(self).__name__), dtype=torch.float32))

    def delta(self, chart: Chart, base: Tensor, source: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Return ± the source's coordinates or the vector."""
        if self.vector is not None:
            return self.sign * self.vector.to(base.dtype).expand(*base.shape[:-1], -1)
        assert source is not None
        return self.sign * chart.encode(source)


class Add(_Signed):
    """Add the source's coordinates, or a vector that is trained from 0.

    Args:
        size: number of coordinates.
        site: the site's sizes.
        take: ``vector`` or ``source``.
    """


class Subtract(_Signed):
    """Subtract the source's coordinates, or a vector that is trained from 0.

    Args:
        size: number of coordinates.
        site: the site's sizes.
        take: ``vector`` or ``source``.
    """

    sign = -1.0


class Scale(Edit):
    """Multiply the coordinates.

    Args:
        size: number of coordinates.
        site: the site's sizes.
        factor: what with; 0 is zero ablation, 1 changes nothing.
    """

    def __init__(self, size: int | None = None, site: SiteInfo | None = None, factor: float = 2.0) -> None:
        super().__init__(size, site, factor=number("factor", factor))
        self.factor = float(factor)

    def delta(self, chart: Chart, base: Tensor, source: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Return (factor − 1) times the base's coordinates."""
        return (self.factor - 1.0) * chart.encode(base)


class Zero(Edit):
    """Set the coordinates to 0."""

    def __init__(self, size: int | None = None, site: SiteInfo | None = None) -> None:
        super().__init__(size, site)

    def delta(self, chart: Chart, base: Tensor, source: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Return − the base's coordinates."""
        return -chart.encode(base)


class Constant(Edit):
    """Set the coordinates to constants.

    Args:
        size: number of coordinates.
        site: the site's sizes.
        value: one for all, or a list with one for each.

    Raises:
        IITKitError: a list of another length.
    """

    def __init__(self, size: int | None = None, site: SiteInfo | None = None, value: float | list[float] = 0.0) -> None:
        super().__init__(size, site, value=value)
        values = [number("value", v) for v in value] if isinstance(value, list) else number("value", value)
        if isinstance(values, list) and len(values) != sized(size, "Constant"):
            raise IITKitError(f"value has {len(values)} numbers: expected one for each of {size} coordinates")
        self._exact = torch.tensor(values, dtype=torch.float64)  # no buffer: it stays as exact as written

    def delta(self, chart: Chart, base: Tensor, source: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Return the constants − the base's coordinates."""
        return self._exact.to(base) - chart.encode(base)


class Collect(Edit):
    """Change nothing; keep the coordinates that the last forward pass saw.

    ``collected`` is [*, k], with gradients where they are computed, and None before the first pass. No copy has it.
    """

    def __init__(self, size: int | None = None, site: SiteInfo | None = None) -> None:
        super().__init__(size, site)
        self.collected: Tensor | None = None

    def delta(self, chart: Chart, base: Tensor, source: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Return no change."""
        self.collected = chart.encode(base)
        return torch.zeros_like(self.collected)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "collected": None}


class Skip(Edit):
    """Replace a module's output by its input, as if the module were not there.

    Raises:
        IITKitError: a site whose module's input has another width.
    """

    needs_input = True

    def __init__(self, size: int | None = None, site: SiteInfo | None = None) -> None:
        super().__init__(size, site)
        if site is not None and site.stored is not None:  # it was checked when it was made
            self.input_width = site.width
        elif site is not None and site.input_width != site.width:
            entering = "no known input" if site.input_width is None else f"an input of width {site.input_width}"
            raise IITKitError(f"the site has width {site.width} and {entering}: Skip needs both alike")

    def delta(self, chart: Chart, base: Tensor, source: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Return input − output in the chart's coordinates."""
        assert inputs is not None
        return chart.difference(inputs, base)
