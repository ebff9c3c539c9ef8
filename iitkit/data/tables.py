"""Tables of text from files: .jsonl, .parquet and .csv, alone or in a folder, with the line of every row."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from iitkit.data.source import SPLITS
from iitkit.errors import IITKitError, choices, did_you_mean

SUFFIXES = (".jsonl", ".parquet", ".csv")
README = "README.md"
ALIASES = {"training": "train", "valid": "validation", "val": "validation", "dev": "validation", "testing": "test"}
"""Other names that files give their splits."""

_NAMES = "|".join(sorted([*SPLITS, *ALIASES], key=len, reverse=True))
_NAMED = re.compile(rf"(?:^|[-._ ])({_NAMES})(?:[-._ ]|$)")
_SHARD = re.compile(r"-\d+-of-\d+(?=\.)")
_FRONT = re.compile(r"\A---\s*\n(.*?\n)---\s*(?:\n|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Table:
    """Named columns of equal length.

    Args:
        name: the file, for messages.
        columns: column name → its cells.
        lines: each row's line in the file (its number, where the file has no lines).
        unit: ``line`` or ``row``.
    """

    name: str
    columns: dict[str, list[Any]]
    lines: Sequence[int]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.lines)

    def at(self, row: int) -> str:
        """Return where a row stands, for messages."""
        return f"{self.name} {self.unit} {self.lines[row]}"


def read_table(file: Path, name: str, unread: Sequence[str] = ()) -> Table:
    """Read a file.

    Args:
        file: the file.
        name: how messages call it.
        unread: columns to leave out.

    Raises:
        IITKitError: a file that is empty, cannot be read, or is not what its suffix says.
    """
    reader = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}.get(file.suffix)
    if reader is None:
        raise IITKitError(f"{name}: a {file.suffix or 'file without suffix'}: expected one of {choices(SUFFIXES)}")
    try:
        table = reader(file, name, unread)
    except UnicodeDecodeError as error:
        raise IITKitError(f"{name} is not text in UTF-8 (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise IITKitError(f"{name} cannot be read: {error.strerror or error}") from error
    if not len(table):
        raise IITKitError(f"{name} is empty: expected one pair a {table.unit}")
    return table


def _jsonl(file: Path, name: str, unread: Sequence[str]) -> Table:
    rows, lines = [], []
    with file.open(encoding="utf-8-sig", newline="\n") as text:  # a text's own U+2028 ends no line
        for number, line in enumerate(text, 1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise IITKitError(f"{name} line {number} is not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise IITKitError(f"{name} line {number} is {_short(row)}: expected one object {{…}} a line")
            for column in unread:
                row.pop(column, None)
            rows.append(row)
            lines.append(number)
    return Table(name, columns_of(rows), lines)


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return rows as columns; None where a row lacks one."""
    names = dict.fromkeys(key for row in rows for key in row)
    return {key: [row.get(key) for row in rows] for key in names}


def _csv(file: Path, name: str, unread: Sequence[str]) -> Table:
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, strict=True)
        rows, lines = [], []
        try:
            header = next(reader, [])
            if twice := [column for column in header if header.count(column) > 1]:
                raise IITKitError(f"{name} line 1: column {twice[0]!r} stands twice")
            before = reader.line_num
            for row in reader:
                if row:
                    if len(row) != len(header):
                        raise IITKitError(
                            f"{name} line {before + 1} has {len(row)} cells, the header {len(header)}: "
                            'put text that holds a comma in "double quotes"'
                        )
                    rows.append(row)
                    lines.append(before + 1)
                before = reader.line_num
        except csv.Error as error:
            raise IITKitError(f"{name} line {reader.line_num} is not valid CSV: {error}") from error
    cells = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in header]
    return Table(
        name,
        {c: [cell or None for cell in column] for c, column in zip(header, cells, strict=True) if c not in unread},
        lines,
    )


def _parquet(file: Path, name: str, unread: Sequence[str]) -> Table:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        with file.open("rb") as data:
            table = parquet.read_table(data)
        columns = {column: table.column(column).to_pylist() for column in table.column_names if column not in unread}
    except (pyarrow.ArrowException, KeyError, ValueError) as error:
        raise IITKitError(f"{name} is not a parquet file that can be read: {str(error).splitlines()[0]}") from error
    return Table(name, columns, range(1, table.num_rows + 1), "row")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


# --- which files hold which split ---


def front_matter(readme: Path) -> dict[str, Any]:
    """Return the YAML between the first two ``---`` of a README; empty where there is none.

    Raises:
        IITKitError: YAML that cannot be read.
    """
    import yaml

    try:
        found = _FRONT.match(readme.read_text(encoding="utf-8-sig").replace("\r\n", "\n"))
        meta = yaml.safe_load(found[1]) if found else {}
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        first = " ".join(str(error).split())
        raise IITKitError(f"{readme.name}: its front matter is not valid YAML: {first[:160]}") from error
    return meta if isinstance(meta, dict) else {}


def declared(meta: Mapping[str, Any], config: str | None, where: str) -> list[tuple[str, list[str]]]:
    """Return the split and the patterns of files that a README declares; empty where it declares none.

    Args:
        meta: the README's front matter.
        config: which of its ``configs:``; None takes the default one, or the only one.
        where: the folder or repo, for messages.

    Raises:
        IITKitError: an unknown config, or none chosen of several.
    """
    configs = [
        c for c in meta.get("configs") or [] if isinstance(c, dict) and c.get("config_name") and "data_files" in c
    ]
    by_name = {str(c["config_name"]): c for c in configs}
    if not by_name:
        if config is not None:
            raise IITKitError(f"{where} has no config {config!r}: its README declares none. Leave config out")
        return []
    if config is None:
        defaults = [n for n, c in by_name.items() if c.get("default") is True or n == "default" or len(by_name) == 1]
        if not defaults:
            raise IITKitError(
                f"{where} has several configs ({choices(by_name)}): say which, config: {next(iter(by_name))}"
            )
        config = defaults[0]
    elif config not in by_name:
        hint = did_you_mean(config, by_name)
        raise IITKitError(f"{where} has no config {config!r}.{hint} Expected one of {choices(by_name)}")
    return list(_data_files(by_name[config], f"{where}: config {config!r}"))


def _data_files(config: Mapping[str, Any], where: str) -> Iterator[tuple[str, list[str]]]:
    files, folder = config["data_files"], str(config.get("data_dir") or "")
    if isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()]
    elif isinstance(files, str) or (isinstance(files, list) and all(isinstance(path, str) for path in files)):
        files = [{"split": "train", "path": files}]
    entries = files if isinstance(files, list) else [files]
    for entry in entries:
        entry = entry if isinstance(entry, dict) else {}
        paths = entry.get("path")
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise IITKitError(f"{where}: data_files: expected entries with split and path")
        if foreign := [path for path in paths if "://" in path or path.startswith("/") or ".." in path.split("/")]:
            raise IITKitError(f"{where}: data_files: {foreign[0]!r}: expected a path within the dataset")
        yield str(entry.get("split", "train")), [str(PurePosixPath(folder, path)) for path in paths]


def _visible(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def data_files(folder: Path) -> list[str]:
    """Return the .jsonl, .parquet and .csv files in a folder and its folders, but for hidden ones."""
    return [name for name in _visible(folder) if PurePosixPath(name).suffix in SUFFIXES]


def find_files(folder: Path, config: str | None, where: str) -> dict[str, list[Path]]:
    """Return the files of each split in a folder: as its README's ``configs:`` say, or as the files' names do.

    Args:
        folder: the folder.
        config: which of its ``configs:``.
        where: the folder or repo, for messages.

    Returns:
        Split → files, in order; the only file of a folder is ``train``, whatever its name.

    Raises:
        IITKitError: no file, an unknown split, one split in two formats.
    """
    readme, there = folder / README, _visible(folder)
    if {"dataset_dict.json", "dataset_info.json"} & set(there):
        raise IITKitError(f"{where} was written by save_to_disk: write it with to_json or to_parquet instead")
    found: dict[str, list[str]] = {}
    for split, patterns in declared(front_matter(readme) if readme.is_file() else {}, config, where):
        for pattern in patterns:
            matching = [name for name in there if _matches(pattern, name)]
            if not matching:
                raise IITKitError(
                    f"{where}: its README names {pattern!r} for split {split!r}, and no file is called so"
                )
            found.setdefault(_split(split, where), []).extend(matching)
    if not found:
        found = _by_name(data_files(folder), where)
    for split, names in found.items():
        kinds = {PurePosixPath(name).suffix: name for name in reversed(names)}
        if len(kinds) > 1:
            raise IITKitError(f"{where}: split {split!r} is there in two formats ({choices(kinds.values())}): keep one")
    return {split: [folder / name for name in dict.fromkeys(found[split])] for split in SPLITS if split in found}


def _by_name(names: Sequence[str], where: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    unnamed = []
    for name in names:
        parts = [PurePosixPath(name).stem, *reversed(PurePosixPath(name).parts[:-1])]
        hits = [hit for part in parts if (hit := _NAMED.search(part.lower()))]
        if hits:
            found.setdefault(_split(hits[0][1], where), []).append(name)
        else:
            unnamed.append(name)
    if not names:
        raise IITKitError(
            f"{where} has no data file: expected train, validation and test as one of {choices(SUFFIXES)}"
        )
    if unnamed and (found or len({_SHARD.sub("", name) for name in unnamed}) > 1):  # shards of one file are one file
        hint = did_you_mean(PurePosixPath(unnamed[0]).stem, SPLITS)
        raise IITKitError(f"{where}: {unnamed[0]} names no split.{hint} Expected one of {choices(SPLITS)} in its name")
    return found or {"train": unnamed}


def _split(name: str, where: str) -> str:
    split = ALIASES.get(name, name)
    if split not in SPLITS:
        raise IITKitError(
            f"{where}: unknown split {name!r}.{did_you_mean(name, SPLITS)} Expected one of {choices(SPLITS)}"
        )
    return split


def _matches(pattern: str, name: str) -> bool:
    """Whether a path fits a pattern in which ``*`` stays within a folder and ``**/`` does not."""
    pieces = re.split(r"(\*\*/|\*|\?)", pattern)
    signs = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return re.fullmatch("".join(signs.get(piece, re.escape(piece)) for piece in pieces), name) is not None
