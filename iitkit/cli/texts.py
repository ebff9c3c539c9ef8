"""Texts of a config: a list, or a .txt, .jsonl, .json or .yaml file of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from iitkit.errors import IITKitError

KEYS = ("text", "prompt")
"""Where an entry is a mapping, the keys that may hold its text."""


def texts_of(name: str, given: str | Sequence[Any]) -> list[str]:
    """Return texts.

    Args:
        name: the key, for messages.
        given: texts, or a file: .txt (one a line), .jsonl, .json or .yaml (texts, or mappings with ``text``). A file
            that is not there is looked for among iitkit's own datasets, e.g. ``reviews/positive.jsonl``.

    Raises:
        IITKitError: no text, a file that is not there or cannot be read, or an entry that is no text.
    """
    entries = _file(name, given) if isinstance(given, str) else [(f"{name}[{i}]", row) for i, row in enumerate(given)]
    if not entries:
        raise IITKitError(f"{name}: there is no text: expected a list of them, or a file")
    return [_text(at, row) for at, row in entries]


def _text(at: str, row: Any) -> str:
    found = next((row[key] for key in KEYS if key in row), None) if isinstance(row, dict) else row
    if not isinstance(found, str) or not found.strip():
        hint = f": expected text, in quotes '{row}'" if isinstance(row, bool | int | float) else ": expected text"
        raise IITKitError(f"{at}: {row!r}{hint if not isinstance(row, dict) else f': expected a text under {KEYS[0]}'}")
    return found


def _file(name: str, given: str) -> list[tuple[str, Any]]:
    path = _found(name, given)
    try:
        text = path.read_text(encoding="utf-8")
        lines = [(f"{given} line {number}", line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        if path.suffix == ".txt":
            return list(lines)
        if path.suffix == ".jsonl":
            return [(at, json.loads(line)) for at, line in lines]
        held = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, OSError) as error:
        raise IITKitError(f"{name}: {given} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(held, list):
        raise IITKitError(f"{name}: {given} holds a {type(held).__name__}: expected a list of texts")
    return [(f"{given}[{i}]", row) for i, row in enumerate(held)]


def _found(name: str, given: str) -> Path:
    path = Path(given).expanduser()
    if path.is_file():
        return path
    package = Path(__file__).resolve().parents[1]
    own = [root / path for root in (package / "_share" / "datasets", package.parent / "datasets")]
    there = next((file for file in own if not path.is_absolute() and ".." not in path.parts and file.is_file()), None)
    if there is None:
        raise IITKitError(
            f"{name}: no file {given!r}: give a .txt, .jsonl, .json or .yaml file, or the texts in a list"
        )
    return there
