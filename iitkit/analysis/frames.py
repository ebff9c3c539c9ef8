"""From a table of cells to a grid with named axes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iitkit import __version__
from iitkit.analysis.grid import Grid
from iitkit.errors import IITKitError, choices
from iitkit.models.anatomy import layers as layers_of
from iitkit.models.grids import Engine


@dataclass(frozen=True)
class Axis:
    """An axis along which cells lie.

    Args:
        name: of the grid's axis.
        labels: of its places.
        single: whether it was given as one thing and not as a list, so that the grid has no such axis.
    """

    name: str
    labels: list[Any]
    single: bool = False


class Frame:
    """Axes of cells and what is measured in each.

    Args:
        axes: the axes of cells, the last one changing fastest.
        metrics: names of what is measured.
        metric_alone: whether there is no axis for it.
        examples: names of the examples; None for no such axis, of one.
    """

    def __init__(
        self, axes: Sequence[Axis], metrics: Sequence[str], metric_alone: bool, examples: Sequence[str] | None
    ) -> None:
        self.axes, self.metrics, self.metric_alone, self.examples = list(axes), list(metrics), metric_alone, examples

    @property
    def places(self) -> Iterable[tuple[Any, ...]]:
        """The cells in their order, as labels of all axes."""
        return itertools.product(*(axis.labels for axis in self.axes))

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return int(np.prod([len(axis.labels) for axis in self.axes]))

    def grid(
        self,
        values: Tensor,
        references: Mapping[str, Tensor],
        failed: Mapping[int, str],
        about: Mapping[str, Any],
    ) -> Grid:
        """Return the grid of values [cells, examples, metrics]; references are [examples, metrics].

        Args:
            values: what was measured.
            references: the runs that it is compared with.
            failed: number of a cell → why it failed.
            about: what was measured.
        """
        shape = [len(axis.labels) for axis in self.axes]
        kept = [axis for axis in self.axes if not axis.single]
        wide = values.double().cpu().numpy().reshape(*[len(axis.labels) for axis in kept], *values.shape[1:])
        dims = [axis.name for axis in kept]
        coords: dict[str, list[Any]] = {axis.name: axis.labels for axis in kept}
        if not self.metric_alone:
            dims.append("metric")
            coords["metric"] = self.metrics
        if self.examples is not None:
            dims.append("example")
            coords["example"] = list(self.examples)
        lost = {}
        for number, line in failed.items():
            where = np.unravel_index(number, shape)
            lost[tuple(int(at) for at, axis in zip(where, self.axes, strict=True) if not axis.single)] = line
        told = {**about, **({"metric": self.metrics[0]} if self.metric_alone else {})}
        told |= {axis.name: axis.labels[0] for axis in self.axes if axis.single}
        held = {name: self.ordered(x.double().cpu().numpy()) for name, x in references.items()}
        return Grid(self.ordered(wide), tuple(dims), coords, held, lost, told)

    def ordered(self, values: np.ndarray) -> np.ndarray:
        """Return [*, examples, metrics] as [*, (metrics), (examples)]."""
        turned = np.moveaxis(values, -1, -2)
        if self.examples is None:
            turned = turned[..., 0]
        if self.metric_alone:
            turned = turned[..., 0] if self.examples is None else turned[..., 0, :]
        return turned


def listed(given: Any) -> tuple[list[Any], bool]:
    """Return what was given as a list, and whether it was a single thing."""
    if isinstance(given, str | int) or not isinstance(given, Sequence | range):
        return [given], True
    return list(given), False


def several(given: Any, name: str) -> tuple[list[Any], bool]:
    """Return as :func:`listed` does.

    Raises:
        IITKitError: none, or one twice.
    """
    found, alone = listed(given)
    if not found:
        raise IITKitError(f"{name}: expected one or several")
    if twice := [one for place, one in enumerate(found) if one in found[:place]]:
        raise IITKitError(f"{name}: {twice[0]!r} is named twice")
    return found, alone


def engine_of(model: nn.Module, engine: Engine | None) -> Engine:
    """Return an engine, a new one unless one is given.

    Raises:
        IITKitError: one of another network.
    """
    if engine is not None and engine.model is not model:
        raise IITKitError("engine: it runs another network: make it of this one, Engine(model), or leave it out")
    return Engine(model) if engine is None else engine


def checked_layers(model: nn.Module, layers: Sequence[int] | int | None) -> list[int]:
    """Return layers as a list; all of them unless said.

    Raises:
        IITKitError: none, one that is not there or is named twice.
    """
    count = len(layers_of(model))
    wanted = list(range(count)) if layers is None else listed(layers)[0]
    wanted = [layer + count if isinstance(layer, int) and -count <= layer < 0 else layer for layer in wanted]
    wrong = [layer for layer in wanted if isinstance(layer, bool) or not isinstance(layer, int) or layer >= count]
    if wrong or not wanted or min(wanted) < 0:
        raise IITKitError(f"layers {choices(wanted) or 'none'}: {type(model).__name__} has layers 0 to {count - 1}")
    if len(set(wanted)) < len(wanted):
        raise IITKitError(f"layers {choices(wanted)}: one is named twice")
    return wanted


def checked_window(window: Any) -> None:
    """Check a number of layers.

    Raises:
        IITKitError: what is none.
    """
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise IITKitError(f"window {window}: expected a number of layers, 1 or more")


def window_of(layer: int, window: int, count: int) -> list[int]:
    """Return the layers of a window about a layer, clipped: of 10 layers l − 5 … l + 4.

    >>> window_of(2, 10, 30), window_of(12, 5, 30)
    ([0, 1, 2, 3, 4, 5, 6], [10, 11, 12, 13, 14])
    """
    return list(range(max(0, layer - window // 2), min(count, layer - (-window // 2))))


def lost(failed: Mapping[int, str], of: int) -> dict[str, Any]:
    """Return what ``about`` says of ``everything`` and ``nothing``, the two behind ``of`` cells, where they fail."""
    found = {name: failed[of + at] for at, name in enumerate(("everything", "nothing")) if of + at in failed}
    return {"failed_references": found} if found else {}


def all_lost(grids: Iterable[Grid]) -> dict[str, Any]:
    """Return what ``about`` says of references that failed in any of several grids."""
    found = {name: line for grid in grids for name, line in grid.about.get("failed_references", {}).items()}
    return {"failed_references": found} if found else {}


def told(model: nn.Module, **more: Any) -> dict[str, Any]:
    """Return what every grid says of itself: the model, versions, and what else is given."""
    name = getattr(model, "name_or_path", "") or type(model).__name__
    revision = getattr(getattr(model, "config", None), "_commit_hash", None)
    known = {"model": str(name), "dtype": str(next(model.parameters()).dtype).removeprefix("torch.")}
    if revision:
        known["revision"] = str(revision)
    versions = {"iitkit": __version__, "torch": torch.__version__, "transformers": _version("transformers")}
    return {**more, **known, "versions": versions}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
