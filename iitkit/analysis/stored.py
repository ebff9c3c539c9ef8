"""A grid's two files: Parquet for the values in long form, JSON for all else."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from iitkit.analysis.axes import Label
from iitkit.analysis.grid import Grid
from iitkit.errors import IITKitError

FORMAT = 1
SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def save(grid: Grid, path: str | Path) -> Path:
    """Write ``<path>.parquet`` and ``<path>.json``, each whole or not at all; the second names the first's digest.

    The Parquet file has a row for every value: a column of labels for every axis, and ``value``. The JSON holds axes,
    labels, references, failures and what was measured.

    Returns:
        ``path``, without either file's ending.
    """
    stem = _stem(path)
    table = _table(grid)
    stem.parent.mkdir(parents=True, exist_ok=True)
    values, rest = _file(stem, ".parquet"), _file(stem, ".json")
    with_values = _temporary(values)
    with_rest = _temporary(rest)
    try:
        _arrow().parquet.write_table(table, with_values, compression="zstd")
        described = {
            "iitkit_grid": FORMAT,
            "parquet_sha256": _digest(with_values),
            "dims": list(grid.dims),
            "coords": grid.coords,
            "references": {
                name: {"shape": list(numbers.shape), "values": numbers.ravel().tolist()}
                for name, numbers in grid.references.items()
            },
            "failed": [[list(index), line] for index, line in grid.failed.items()],
            "about": grid.about,
        }
        with_rest.write_text(
            json.dumps(_tagged(described), allow_nan=False, ensure_ascii=False, indent=1) + "\n", "utf-8"
        )
        with_values.replace(values)
        with_rest.replace(rest)
    finally:
        with_values.unlink(missing_ok=True)
        with_rest.unlink(missing_ok=True)
    return stem


def load(path: str | Path) -> Grid:
    """Read what `save` wrote: the same grid to the last bit.

    Raises:
        IITKitError: a file is missing, damaged, of another format, or the two are not of one grid.
    """
    stem = _stem(path)
    values, rest = _file(stem, ".parquet"), _file(stem, ".json")
    for file in (rest, values):
        if not file.is_file():
            raise IITKitError(f"no grid at {stem}: {file.name} is missing; expected {rest.name} and {values.name}")
    try:
        described = json.loads(rest.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise IITKitError(f"{rest} is damaged or no grid's file ({error})") from error
    if not isinstance(described, dict) or "iitkit_grid" not in described:
        raise IITKitError(f"{rest} is no grid's file; expected what Grid.save wrote")
    if described["iitkit_grid"] != FORMAT:
        raise IITKitError(f"{rest} is of format {described['iitkit_grid']!r}; this iitkit reads {FORMAT}: update it")
    if described.get("parquet_sha256") != _digest(values):
        raise IITKitError(f"{values} is damaged or was not written with {rest.name}; save the grid again")
    arrow = _arrow()
    try:
        held = _untagged(described)
        dims = tuple(held["dims"])
        shape = [len(held["coords"][dim]) for dim in dims]
        column = arrow.parquet.read_table(values, columns=["value"])["value"].to_numpy()
        references = {
            name: np.array(ref["values"], dtype=np.float64).reshape(ref["shape"])
            for name, ref in held["references"].items()
        }
        failed = {tuple(index): line for index, line in held["failed"]}
        return Grid(column.reshape(shape), dims, held["coords"], references, failed, held["about"])
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:  # also what the grid itself refuses
        raise IITKitError(f"{rest} is damaged: {type(error).__name__}: {error}") from error


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Have a file written under another name, then give it its own: it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _table(grid: Grid) -> Any:
    arrow = _arrow()
    places = np.indices(grid.shape).reshape(len(grid.dims), -1)
    columns = {
        dim: _column(arrow, labels, place) for (dim, labels), place in zip(grid.coords.items(), places, strict=True)
    }
    return arrow.table({**columns, "value": arrow.array(grid.values.ravel())})


def _column(arrow: Any, labels: list[Label], place: np.ndarray) -> Any:
    """Whole numbers and numbers as they are; text, truth values and mixtures as text, each kept once."""
    kinds = {type(label) for label in labels}
    if kinds == {int} or kinds == {float}:
        return arrow.array([labels[at] for at in place])
    return arrow.DictionaryArray.from_arrays(
        arrow.array(place, arrow.int32()), arrow.array([str(label) for label in labels])
    )


def _arrow() -> Any:
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise IITKitError("a grid's files need pyarrow: pip install datasets (or pyarrow)") from error
    return pyarrow


def _tagged(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as ``{"number": "NaN"}``."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, dict):
        return {key: _tagged(part) for key, part in value.items()}
    return [_tagged(part) for part in value] if isinstance(value, list) else value


def _untagged(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"number"} and isinstance(value["number"], str) and value["number"] in SPECIAL:
            return SPECIAL[value["number"]]
        return {key: _untagged(part) for key, part in value.items()}
    return [_untagged(part) for part in value] if isinstance(value, list) else value


def _stem(path: str | Path) -> Path:
    path = Path(path).expanduser()
    return path.with_name(path.name.removesuffix(".json").removesuffix(".parquet"))


def _file(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
