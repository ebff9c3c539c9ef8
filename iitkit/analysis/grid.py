"""A grid of measurements: values with named axes, the runs they are compared with, the cells that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iitkit.analysis.axes import (
    CELLS,
    Label,
    Pick,
    check_names,
    checked_labels,
    few,
    frozen,
    is_many,
    named_sizes,
    place_of,
    plain,
    span_of,
    spread,
)
from iitkit.errors import IITKitError, choices, did_you_mean

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Grid:
    """Measurements over layers, positions, components, heads …, with named axes.

    >>> grid = Grid(np.array([[0.5, 2.0]]), ("layer", "position"), {"layer": [3], "position": ["0 'The'", "1 ' cat'"]})
    >>> grid.sel(layer=3, position="1 ' cat'")
    2.0

    Args:
        values: float64, one axis for each name in ``dims``; NaN where a cell failed or was not run.
        dims: names of the axes, e.g. component, layer, head, position, metric, example, row.
        coords: the labels along every axis (text or numbers); numbered if left out.
        references: what the values are compared with (clean, corrupt, everything, nothing …), over the axes along
            which no cells lie, in the order of ``dims``, e.g. [metric, example].
        failed: index of a failed cell → why, in a line. A shorter index is that of every value below it.
        about: what was measured (kind, model, prompts, seed …): plain values only.

    Raises:
        IITKitError: shapes, labels or names do not fit each other.
    """

    values: np.ndarray
    dims: tuple[str, ...]
    coords: dict[str, list[Any]] = field(default_factory=dict)
    references: dict[str, np.ndarray] = field(default_factory=dict)
    failed: dict[tuple[int, ...], str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values, dims = frozen(self.values, "the values"), tuple(self.dims)
        check_names(dims, values.shape, self.coords)
        coords = {
            dim: checked_labels(dim, self.coords.get(dim, range(size)), size)
            for dim, size in zip(dims, values.shape, strict=True)
        }
        left = tuple(size for dim, size in zip(dims, values.shape, strict=True) if dim not in CELLS)
        references = {str(name): frozen(numbers, f"reference {name!r}") for name, numbers in self.references.items()}
        for name, numbers in references.items():
            if numbers.shape != left:
                names = ", ".join(dim for dim in dims if dim not in CELLS) or "no axis"
                raise IITKitError(f"reference {name!r} has shape {numbers.shape}; expected {left}, over {names}")
        if not isinstance(self.about, Mapping):
            raise IITKitError(f"about is a {type(self.about).__name__}; expected a dict of what was measured")
        about = plain(self.about, "about")
        made = {
            "values": values, "dims": dims, "coords": coords, "references": references, "about": about,
            "failed": spread(self.failed, dims, values),
        }  # fmt: skip
        for name, value in made.items():
            object.__setattr__(self, name, value)

    # What it looks like

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes, in the order of ``dims``."""
        return tuple(self.values.shape)

    @property
    def sizes(self) -> dict[str, int]:
        """Size of every axis by its name."""
        return dict(zip(self.dims, self.values.shape, strict=True))

    def __repr__(self) -> str:
        width = max(map(len, (*self.dims, *self.references, "highest")))
        lines = ["Grid " + (named_sizes(self.dims, self.shape) or "of one value")]
        lines += [f"  {dim:<{width}}  {few(labels)}" for dim, labels in self.coords.items()]
        known = int(np.count_nonzero(~np.isnan(self.values)))
        for name, by in (("highest", "largest"), ("lowest", "smallest")):
            lines += [f"  {name:<{width}}  {cell}" for cell in self.best(1, by=by)]
        lines += [f"  {name:<{width}}  {span_of(numbers)}" for name, numbers in self.references.items()]
        if known < self.values.size:
            gaps = f"{self.values.size - known:,} of {self.values.size:,} values missing, {len(self.failed):,} failed"
            lines.append(f"  {'gaps':<{width}}  {gaps}")
        told = [f"{name} {value}" for name, value in self.about.items() if isinstance(value, str | int | float)]
        return "\n".join([*lines, *([f"  {'about':<{width}}  {', '.join(told)}"] if told else [])])

    # Parts of it

    def sel(self, **labels: Any) -> Grid | Any:
        """Return what lies at the given labels; a list of labels keeps the axis.

        A whole number also finds the one label that starts with it: ``position=4`` is ``"4 ' France'"``.

        Returns:
            A grid, or a float where no axis is left.

        Raises:
            IITKitError: no such axis or label; for counting from the end there is ``isel(layer=-1)``.
        """
        return self._take({dim: self._find(dim, wanted) for dim, wanted in labels.items()})

    def isel(self, **indices: Any) -> Grid | Any:
        """Return what lies at the given indices (negative: from the end); a list or slice keeps the axis."""
        picks: dict[str, Pick] = {}
        for dim, wanted in indices.items():
            size = len(self.labels(dim))
            many = isinstance(wanted, slice) or is_many(wanted)
            found = list(range(size)[wanted]) if isinstance(wanted, slice) else [*wanted] if many else [wanted]
            for index in found:
                if isinstance(index, bool) or not isinstance(index, int | np.integer) or not -size <= index < size:
                    raise IITKitError(f"{dim} has {size} labels: no index {index!r}")
            places = [int(index) % size for index in found]
            picks[dim] = places if many else places[0]
        return self._take(picks)

    def labels(self, dim: str) -> list[Any]:
        """Return the labels along an axis."""
        if dim not in self.dims:
            raise IITKitError(
                f"the grid has no axis {dim!r}; it has {choices(self.dims)}.{did_you_mean(dim, self.dims)}"
            )
        return self.coords[dim]

    def best(self, n: int = 10, by: str = "largest") -> list[Cell]:
        """Return the top values with their labels, best first; missing ones are left out.

        Args:
            n: how many.
            by: ``largest``, ``smallest``, ``magnitude`` (largest without its sign), or a reference's name: furthest
                from it.
        """
        ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "largest": lambda values: values,
            "smallest": lambda values: -values,
            "magnitude": np.abs,
        }
        if by not in ways and by not in self.references:
            options = [*ways, *self.references]
            raise IITKitError(f"by={by!r} is not one of {choices(options)}.{did_you_mean(by, options)}")
        score = ways[by](self.values) if by in ways else np.abs(self.values - self.reference(by))
        flat = np.where(np.isnan(score), -np.inf, score).ravel()
        order = [at for at in np.argsort(-flat, kind="stable")[: max(n, 0)] if not np.isnan(self.values.flat[at])]
        cells = [tuple(int(index) for index in np.unravel_index(at, self.shape)) for at in order]
        return [Cell(float(self.values[cell]), self._at(cell), cell) for cell in cells]

    def reference(self, name: str) -> np.ndarray:
        """Return a reference with an axis of size 1 for every axis of cells, so that it meets the values."""
        if name not in self.references:
            hint = did_you_mean(name, self.references)
            raise IITKitError(f"the grid has no reference {name!r}; it has {choices(self.references) or 'none'}.{hint}")
        return self.references[name].reshape([1 if dim in CELLS else size for dim, size in self.sizes.items()])

    # Over an axis

    def mean(self, dim: str) -> Grid | Any:
        """Average over an axis, leaving out missing values; missing where all are. A float where no axis is left."""
        return self._reduce(dim, _mean, "mean")

    def stderr(self, dim: str) -> Grid | Any:
        """Return the standard error of the mean over an axis (ddof 1), of the values that are there; NaN below two."""
        return self._reduce(dim, _stderr, "standard error")

    def n(self, dim: str) -> Grid | Any:
        """Count the values along an axis that are there."""
        return self._reduce(dim, _count, "n")

    # Several of them

    @staticmethod
    def join(grids: Iterable[Grid], dim: str, labels: Sequence[Label] | None = None) -> Grid:
        """Put grids side by side along an axis they have, or stack them along a new one.

        Args:
            grids: they must agree in every other axis and its labels.
            dim: the axis, e.g. example.
            labels: labels along a new axis; numbered if left out.
        """
        from iitkit.analysis.joining import join

        return join(list(grids), dim, labels)

    def equals(self, other: object) -> bool:
        """Whether all that the two hold is the same, to the last bit; NaN equals NaN."""
        if not isinstance(other, Grid) or self.dims != other.dims or self.references.keys() != other.references.keys():
            return False
        if (self.coords, self.failed, self.about) != (other.coords, other.failed, other.about):
            return False
        pairs = [(self.values, other.values)]
        pairs += [(numbers, other.references[name]) for name, numbers in self.references.items()]
        return all(np.array_equal(mine, yours, equal_nan=True) for mine, yours in pairs)

    def __sub__(self, other: Grid | float) -> Grid:
        return self._with(other, np.subtract, "difference")

    def __add__(self, other: Grid | float) -> Grid:
        return self._with(other, np.add, "sum")

    def __mul__(self, other: float) -> Grid:
        return self._with(float(other), np.multiply, "product")

    def __truediv__(self, other: float) -> Grid:
        return self._with(float(other), np.divide, "quotient")

    # Out of Python

    def to_frame(self) -> pd.DataFrame:
        """Return the long form: a row for every value, its labels, ``value`` and ``failed`` (why, or empty)."""
        try:
            import pandas as pd
        except ImportError as error:
            raise IITKitError("to_frame() needs pandas: pip install datasets (or pandas)") from error
        places = np.indices(self.shape).reshape(len(self.dims), -1)
        columns: dict[str, Any] = {
            dim: [labels[at] for at in place] for (dim, labels), place in zip(self.coords.items(), places, strict=True)
        }
        why = np.full(self.shape, "", dtype=object)
        for index, line in self.failed.items():
            why[index] = line
        return pd.DataFrame({**columns, "value": self.values.ravel(), "failed": why.ravel()})

    def save(self, path: str | Path) -> Path:
        """Write ``<path>.parquet`` (the values in long form) and ``<path>.json`` (all else); returns ``path``."""
        from iitkit.analysis.stored import save

        return save(self, path)

    @staticmethod
    def load(path: str | Path) -> Grid:
        """Read a grid that ``save`` wrote, exactly; either file's name will do.

        Raises:
            IITKitError: a file is missing, damaged, or not a grid's.
        """
        from iitkit.analysis.stored import load

        return load(path)

    def plot(self, **options: Any) -> Figure:
        """Draw a heat map, or lines where one axis is left: see `iitkit.analysis.plots.plot` for the options."""
        from iitkit.analysis.plots import plot

        return plot(self, **options)

    def save_png(self, path: str | Path, **options: Any) -> Path:
        """Draw it into a PNG file, which is there whole or not at all. Options are those of ``plot``."""
        from iitkit.analysis.plots import plot, save_png

        return save_png(plot(self, **options), path)

    def page(self, path: str | Path, **options: Any) -> Path:
        """Write an interactive page, one HTML file that needs no network: options of `iitkit.analysis.page.page`."""
        from iitkit.analysis.page import page

        return page(self, path, **options)

    # Inside

    def _at(self, cell: tuple[int, ...]) -> dict[str, Any]:
        return {dim: self.coords[dim][index] for dim, index in zip(self.dims, cell, strict=True)}

    def _find(self, dim: str, wanted: Any) -> Pick:
        labels = self.labels(dim)
        if isinstance(wanted, slice):
            raise IITKitError(f"{dim}={wanted}: give a list of labels, or use isel({dim}=…) for slices")
        return [place_of(dim, labels, one) for one in wanted] if is_many(wanted) else place_of(dim, labels, wanted)

    def _take(self, picks: Mapping[str, Pick]) -> Grid | Any:
        values, references = self.values, dict(self.references)
        outer = [dim for dim in self.dims if dim not in CELLS]
        for dim in reversed(self.dims):  # from the last axis on, so that a dropped one moves none before it
            if dim in picks:
                values = np.take(values, picks[dim], axis=self.dims.index(dim))
                if dim in outer:
                    references = {
                        name: np.take(ref, picks[dim], axis=outer.index(dim)) for name, ref in references.items()
                    }
        dropped = {dim: self.coords[dim][pick] for dim, pick in picks.items() if isinstance(pick, int)}
        dims = tuple(dim for dim in self.dims if dim not in dropped)
        if not dims:
            return float(values)
        kept = [picks.get(dim, list(range(size))) for dim, size in self.sizes.items()]
        moved = [dict(zip(pick, range(len(pick)), strict=True)) if isinstance(pick, list) else pick for pick in kept]
        failed = {}
        for index, line in self.failed.items():
            there = list(zip(index, moved, strict=True))
            if all(at in move if isinstance(move, dict) else at == move for at, move in there):
                failed[tuple(move[at] for at, move in there if isinstance(move, dict))] = line
        coords = {dim: self.coords[dim] for dim in dims}
        coords |= {dim: [coords[dim][at] for at in pick] for dim, pick in picks.items() if isinstance(pick, list)}
        about = self.about if not dropped else {**self.about, "selected": {**self.about.get("selected", {}), **dropped}}
        return Grid(values, dims, coords, references, failed, about)

    def _reduce(self, dim: str, how: Callable[[np.ndarray, int], np.ndarray], name: str) -> Grid | Any:
        n = len(self.labels(dim))
        axis = self.dims.index(dim)
        values = how(self.values, axis)
        dims = tuple(other for other in self.dims if other != dim)
        if not dims:
            return float(values)
        outer = [other for other in self.dims if other not in CELLS]
        references = {
            key: how(numbers, outer.index(dim)) if dim in outer else numbers for key, numbers in self.references.items()
        }
        failed: dict[tuple[int, ...], str] = {}
        for index, line in self.failed.items():
            cell = (*index[:axis], *index[axis + 1 :])
            if np.isnan(values[cell]):
                failed.setdefault(cell, line)
        about = {**self.about, "averaged": {**self.about.get("averaged", {}), dim: n}}
        if name != "mean":
            about["statistic"] = name
        return Grid(values, dims, {other: self.coords[other] for other in dims}, references, failed, about)

    def _with(self, other: Grid | float, operation: Callable[..., Any], name: str) -> Grid:
        from iitkit.analysis.joining import combine

        return combine(self, other if isinstance(other, Grid) else float(other), operation, name)


@dataclass(frozen=True)
class Cell:
    """One value of a grid: where it lies, by labels and by index."""

    value: float
    at: dict[str, Any]
    index: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.value:.4g}" + (
            f" at {', '.join(f'{dim} {label}' for dim, label in self.at.items())}" if self.at else ""
        )


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    n = _count(values, axis)
    with np.errstate(invalid="ignore"):  # infinities of both signs have no mean
        return _divided(np.nansum(values, axis=axis), n)


def _stderr(values: np.ndarray, axis: int) -> np.ndarray:
    n = _count(values, axis)
    with np.errstate(invalid="ignore"):
        from_mean = values - np.expand_dims(_mean(values, axis), axis)
        square = np.where(np.isnan(values), 0.0, from_mean**2).sum(axis=axis)
        return np.asarray(np.sqrt(_divided(_divided(square, n - 1), n)))


def _count(values: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray((~np.isnan(values)).sum(axis=axis), dtype=np.float64)


def _divided(numbers: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Quotients, missing where there is nothing to divide by."""
    return np.asarray(np.divide(numbers, by, out=np.full(np.shape(by), np.nan), where=by > 0))
