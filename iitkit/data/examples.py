"""Rows of prompts and completions, read from a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iitkit.causal import Text
from iitkit.data.cells import opened, short
from iitkit.data.recorded import found_files
from iitkit.data.tables import Table, read_table
from iitkit.errors import IITKitError, choices, did_you_mean

COLUMNS = ("prompt", "completion", "messages", "positions")
"""What a dataset's columns hold: see :class:`iitkit.data.completions.CompletionDataModule`."""

ROLES = ("system", "user", "assistant")
Turn = dict[str, str]


@dataclass(frozen=True)
class Example:
    """A prompt and what should follow it.

    Args:
        table: the table that it stands in.
        row: its row.
        prompt: the prompt, or the turns of a chat before the last.
        completion: what should follow; of a chat the last turn, an assistant's.
        positions: span → substring of the prompt, or its first character and one behind its last.
    """

    table: Table
    row: int
    prompt: str | tuple[tuple[str, str], ...]
    completion: str
    positions: Mapping[str, Any]

    @property
    def at(self) -> str:
        """Where it stands, for messages."""
        return self.table.at(self.row)

    @property
    def turns(self) -> list[Turn]:
        """The turns of a chat before the last."""
        assert not isinstance(self.prompt, str)
        return [{"role": role, "content": content} for role, content in self.prompt]

    @property
    def base(self) -> Text:
        """The prompt, as what splits must not share."""
        return Text(self.prompt if isinstance(self.prompt, str) else json.dumps(self.prompt), {})

    @property
    def sources(self) -> tuple[Text, ...]:
        """There are none."""
        return ()


def example_tables(path: str, revision: str | None, config: str | None) -> tuple[str, dict[str, list[Table]]]:
    """Return the data's name and the tables of each split.

    Args:
        path: a file, a folder, a Hub dataset, or the name of a data folder of iitkit's own.
        revision: a Hub dataset's branch, tag or commit.
        config: which of the README's ``configs:``.

    Raises:
        IITKitError: nothing of the kind, or files that cannot be read.
    """
    if "/" not in path and not Path(path).expanduser().exists():
        own = own_folders()
        if path not in own:
            raise IITKitError(
                f"data.dataset.path: no such file or folder {path!r}.{did_you_mean(path, own)} Expected one, a Hub "
                f"dataset user/name, or iitkit's own {choices(own)}"
            )
        name, files = path, found_files(str(own[path]), revision, config)[1]
    else:
        name, files = found_files(path, revision, config)
    return name, {split: [read_table(file, called) for file, called in of_split] for split, of_split in files.items()}


def own_folders() -> dict[str, Path]:
    """Return iitkit's own data folders of prompts and completions: in the installed package, or beside it."""
    package = Path(__file__).resolve().parents[1]
    roots = [package / "_share" / "datasets", package.parent / "datasets"]
    root = next((root for root in roots if root.is_dir()), roots[0])
    return {folder.name: folder for folder in sorted(root.glob("*")) if (folder / "train.jsonl").is_file()}


def read_examples(table: Table, columns: Mapping[str, str | None]) -> list[Example]:
    """Return a table's examples.

    Args:
        table: the table.
        columns: known name → the file's name; null leaves a column unread.

    Raises:
        IITKitError: naming file, line and column: what was given and what was expected.
    """
    cells = _known(table, columns)
    where = {name: columns.get(name) or name for name in COLUMNS}

    def wrong(name: str, row: int, expected: str) -> IITKitError:
        value = cells[name][row]
        given = "empty" if value is None or value == "" else f"{short(value)} ({type(value).__name__})"
        return IITKitError(f"{table.at(row)}: column {where[name]!r} is {given}: expected {expected}")

    found = []
    for row in range(len(table)):
        positions = opened(cells["positions"][row]) if "positions" in cells else None
        if positions is not None and not isinstance(positions, dict):
            raise wrong("positions", row, "a mapping of names to substrings of the prompt or [start, stop]")
        spans = {name: place for name, place in (positions or {}).items() if place is not None}
        if "messages" in cells:
            turns = opened(cells["messages"][row])
            if not _are_turns(turns) or turns[-1]["role"] != "assistant":
                raise wrong(
                    "messages", row, "two turns or more, {role: user, content: text}, …, the last an assistant's"
                )
            *before, last = ((turn["role"], turn["content"]) for turn in turns)
            prompt, completion = tuple(before), last[1]
        else:
            for name in ("prompt", "completion"):
                value = cells[name][row]
                if not _is_text(value):
                    raise wrong(name, row, "text" if name == "prompt" else "text; leave the row out if nothing follows")
            prompt, completion = cells["prompt"][row], cells["completion"][row]
        found.append(Example(table, row, prompt, completion, spans))
    return found


def _is_text(value: Any) -> bool:
    """Whether a value is a text that UTF-8 can write: JSON may hold half of a character outside the basic plane."""
    return type(value) is str and value.encode(errors="replace") == value.encode(errors="surrogatepass") != b""


def _are_turns(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 2
        and all(
            isinstance(turn, dict) and turn.get("role") in ROLES and _is_text(turn.get("content")) for turn in value
        )
    )


def _known(table: Table, columns: Mapping[str, str | None]) -> dict[str, list[Any]]:
    """Return the columns under their known names, after a check that one does not miss another."""
    for name in columns:
        if name not in COLUMNS:
            raise IITKitError(
                f"columns: unknown name {name!r}.{did_you_mean(name, COLUMNS)} Expected one of {choices(COLUMNS)}"
            )
    called = {name: columns.get(name, name) for name in COLUMNS}
    for name, given in called.items():
        if name in columns and given is not None and given not in table.columns:
            raise IITKitError(
                f"columns.{name}: {table.name} has no column {given!r}.{did_you_mean(given, table.columns)} "
                f"It has {choices(table.columns)}"
            )
    cells = {name: table.columns[given] for name, given in called.items() if given in table.columns}
    cells = {name: column for name, column in cells.items() if any(cell is not None for cell in column)}
    plain = {"prompt", "completion"} & cells.keys()
    if "messages" in cells and plain:
        raise IITKitError(
            f"{table.name} has columns {called['messages']!r} and {called[min(plain)]!r}: keep one, or leave one "
            f"unread by columns: {{{min(plain)}: null}}"
        )
    if "messages" not in cells and len(plain) < 2:
        missing = next(name for name in ("prompt", "completion") if name not in cells)
        hint = did_you_mean(missing, [given for given in table.columns if given not in called.values()])
        raise IITKitError(
            f"{table.name} has no column {missing!r}.{hint} Expected prompt and completion, or messages (a chat); it "
            f"has {choices(table.columns)}. Call a column of another name by columns: {{{missing}: …}}"
        )
    if "positions" not in cells and "positions" not in columns:
        for name in table.columns:
            if did_you_mean(name, ["positions"]) and name not in called.values():
                raise IITKitError(
                    f"{table.name}: unknown column {name!r}. Did you mean 'positions'? Rename it, or say columns: "
                    f"{{positions: {name}}}, or {{positions: null}} to leave it unread"
                )
    return cells
