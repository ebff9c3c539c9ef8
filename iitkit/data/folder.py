"""Datasets as folders that the Hub understands: a README with ``configs:`` and one file a split."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from iitkit.data.card import TAGS, Card, hypothesis, readme
from iitkit.data.cells import COLUMNS
from iitkit.data.export import rows_of
from iitkit.data.rows import read_rows
from iitkit.data.source import SPLITS
from iitkit.data.tables import README, Table, columns_of, front_matter
from iitkit.errors import IITKitError, choices, did_you_mean

__all__ = ["Card", "hypothesis", "rows_of", "write_dataset"]

Format = Literal["jsonl", "parquet"]
Rows = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]
"""Rows, or columns of equal length."""

_OURS = {README, ".cache", *(f"{split}.{suffix}" for split in SPLITS for suffix in ("jsonl", "parquet"))}


def write_dataset(
    folder: str | os.PathLike[str],
    splits: Mapping[str, Rows],
    card: Card | None = None,
    format: Format = "jsonl",
) -> Path:
    """Write a dataset's folder: under another name first, so that there is never half of one.

    Args:
        folder: the folder; a dataset that iitkit wrote there is replaced.
        splits: train, validation, test or test_templates → rows or columns, see :data:`iitkit.data.cells.COLUMNS`.
        card: what its README says.
        format: of its files.

    Returns:
        The folder.

    Raises:
        IITKitError: rows that cannot be read back, a folder that holds anything else, or one that cannot be written.
    """
    target = Path(folder).expanduser().resolve()
    if format not in ("jsonl", "parquet"):
        raise IITKitError(f"format {format!r}: expected jsonl or parquet")
    if not splits:
        raise IITKitError(f"{target}: no split to write: expected one or more of {choices(SPLITS)}")
    for split in splits:
        if split not in SPLITS:
            hint = did_you_mean(split, SPLITS)
            raise IITKitError(f"split {split!r}:{hint} expected one of {choices(SPLITS)}")
    columns = {split: _columns(split, splits[split]) for split in SPLITS if split in splits}
    _check_ours(target)
    files = {split: f"{split}.{format}" for split in columns}
    text = readme(card or Card(), files, columns, target.name)
    scratch: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        for split, file in files.items():
            (_write_jsonl if format == "jsonl" else _write_parquet)(scratch / file, columns[split])
        (scratch / README).write_text(text, encoding="utf-8")
        scratch.chmod(0o755)
        if target.exists():
            old = scratch.with_name(scratch.name + "-old")
            target.rename(old)
            try:
                scratch.rename(target)
            except BaseException:
                old.rename(target)
                raise
            shutil.rmtree(old)
        else:
            scratch.rename(target)
    except OSError as error:
        raise IITKitError(f"cannot write the dataset {target}: {error.strerror or error}") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def _check_ours(target: Path) -> None:
    """Check that nothing is lost when a folder is replaced."""
    if not target.exists():
        return
    if not target.is_dir():
        raise IITKitError(f"{target} is a file: expected a folder's name")
    there = sorted(path.name for path in target.iterdir())
    if not there:
        return
    foreign = [name for name in there if name not in _OURS]
    tags = front_matter(target / README).get("tags") if README in there else None
    if foreign or not isinstance(tags, list) or TAGS[0] not in tags:
        what = f"holds {foreign[0]}" if foreign else "was not written by iitkit"
        raise IITKitError(f"{target} {what}, so it is not replaced: give another folder, or move that away")


def _columns(split: str, rows: Rows) -> dict[str, list[Any]]:
    """Return a split's columns in the usual order, checked as when they are read, mappings of one type a name."""
    given = {name: list(cells) for name, cells in rows.items()} if isinstance(rows, Mapping) else columns_of(rows)
    lengths = {name: len(cells) for name, cells in given.items()}
    n = max(lengths.values(), default=0)
    if not n:
        raise IITKitError(f"split {split!r} has no rows")
    if short := [name for name, length in lengths.items() if length != n]:
        raise IITKitError(f"split {split!r}: column {short[0]!r} has {lengths[short[0]]} rows, others {n}")
    order = [name for name in COLUMNS if name in given] + [name for name in given if name not in COLUMNS]
    # neither format can say "a mapping of nothing"
    columns = {name: given[name] for name in order if any(_something(cell) for cell in given[name])}
    read_rows(Table(f"split {split!r}", columns, range(1, n + 1), "row"), {})
    return {name: _uniform(cells) if name.endswith("_values") else cells for name, cells in columns.items()}


def _something(cell: Any) -> bool:
    return any(map(_something, cell)) if isinstance(cell, list) and cell else cell is not None and cell != {}


def _uniform(cells: list[Any]) -> list[Any]:
    """Return mappings in which a name's values are of one type: as JSON text where they were not."""
    kinds: dict[str, set[str]] = {}
    for cell in cells:
        for one in cell if isinstance(cell, list) else [cell]:
            for name, value in one.items():
                kinds.setdefault(name, set()).add(_kind(value))
    mixed = {name for name, found in kinds.items() if len(found) > 1}
    if not mixed:
        return cells

    def told(one: Mapping[str, Any]) -> dict[str, Any]:
        return {name: json.dumps(value) if name in mixed else value for name, value in one.items()}

    return [[told(one) for one in cell] if isinstance(cell, list) else told(cell) for cell in cells]


def _kind(value: Any) -> str:
    return f"[{'|'.join(sorted({_kind(part) for part in value}))}]" if isinstance(value, list) else type(value).__name__


def _write_jsonl(file: Path, columns: Mapping[str, list[Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="\n") as text:
        for number, cells in enumerate(zip(*columns.values(), strict=True), 1):
            row = dict(zip(columns, cells, strict=True))
            try:
                text.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            except (TypeError, ValueError) as error:
                raise IITKitError(f"{file.name} row {number} cannot be written as JSON: {error}") from error


def _write_parquet(file: Path, columns: Mapping[str, list[Any]]) -> None:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    arrays = {}
    for name, cells in columns.items():
        try:
            arrays[name] = pyarrow.array(cells)
        except (pyarrow.ArrowException, UnicodeError) as error:
            reason = str(error).splitlines()[0]
            raise IITKitError(f"{file.name}: column {name!r} cannot be written as parquet: {reason}") from error
    parquet.write_table(pyarrow.table(arrays), file)
