"""Texts and chats of a config: a list, or a .txt, .jsonl, .json or .yaml file of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from iitkit.data.examples import ROLES, Turn
from iitkit.data.turns import Telling
from iitkit.errors import IITKitError, choices

KEYS = ("text", "prompt")
"""Where an entry is a mapping, the keys that may hold its text."""
CHAT = "messages"
"""The key that may hold a chat's turns."""
Entry = str | list[Turn]
"""A text, or a chat: turns {role, content}."""


def texts_of(name: str, given: str | Sequence[Any]) -> list[tuple[str, Entry]]:
    """Return texts and chats, each with where it stands.

    Args:
        name: the key, for messages.
        given: texts and chats, or a file: .txt (a text a line), .jsonl, .json or .yaml (texts, chats as lists of turns
            {role, content}, or mappings with ``text`` or ``messages``). A file that is not there is looked for among
            iitkit's own datasets, e.g. ``reviews/positive.jsonl``.

    Raises:
        IITKitError: no text, a file that is not there or cannot be read, or an entry that is neither text nor chat.
    """
    entries = _file(name, given) if isinstance(given, str) else [(f"{name}[{i}]", row) for i, row in enumerate(given)]
    if not entries:
        raise IITKitError(f"{name}: there is no text: expected a list of them, or a file")
    return [(at, _entry(at, row)) for at, row in entries]


def told(tokenizer: Any, entries: Sequence[tuple[str, Entry]], telling: Telling) -> list[str]:
    """Return texts as they are, or in a chat as the user's turn, and chats in the tokenizer's chat template.

    A chat whose last turn is the assistant's ends where its words do; behind another the answer would begin.

    Raises:
        IITKitError: see :meth:`Telling.text`.
    """
    system = [] if telling.system is None else [{"role": "system", "content": telling.system}]
    found = []
    for at, entry in entries:
        if isinstance(entry, str):
            turns = [*system, {"role": "user", "content": entry}]
            found.append(telling.text(tokenizer, turns, at) if telling.chat else entry)
        else:
            found.append(telling.text(tokenizer, entry, at))
    return found


def check_telling(entries: Sequence[tuple[str, Entry]], telling: Telling) -> bool:
    """Return whether entries are told as chats.

    Raises:
        IITKitError: texts among chats that are not to be one, or an option of chats that nothing reads.
    """
    texts, chats = ([at for at, entry in entries if isinstance(entry, kind)] for kind in (str, list))
    if chats and texts and not telling.chat:
        raise IITKitError(
            f"{chats[0]} is a chat and {texts[0]} a text: set chat to true, which makes texts a user's turn, or give "
            "chats alone"
        )
    if telling.chat and not texts:
        raise IITKitError("chat is of texts; messages are chats as they are: leave it out")
    if telling.system is not None and not (telling.chat and texts):
        raise IITKitError(
            "system is of texts that chat makes a user's turn: "
            + ("write it in the messages" if chats else "set chat to true, or leave it out")
        )
    if telling.template is not None and not (telling.chat or chats):
        raise IITKitError("template is of chats: set chat to true, or give messages")
    return telling.chat or bool(chats)


def _entry(at: str, row: Any) -> Entry:
    if isinstance(row, dict) and CHAT in row:
        row = row[CHAT]
        if not isinstance(row, list):
            raise IITKitError(f"{at}: messages {str(row)[:60]!r}: expected a list of turns {{role, content}}")
    if isinstance(row, list):
        return _turns(at, row)
    found = next((row[key] for key in KEYS if key in row), None) if isinstance(row, dict) else row
    if not isinstance(found, str) or not found.strip():
        hint = f": expected text, in quotes '{row}'" if isinstance(row, bool | int | float) else ": expected text"
        raise IITKitError(
            f"{at}: {row!r}{hint if not isinstance(row, dict) else f': expected a text under {KEYS[0]} or {CHAT}'}"
        )
    return found


def _turns(at: str, row: list[Any]) -> list[Turn]:
    for i, turn in enumerate(row):
        fine = isinstance(turn, dict) and set(turn) == {"role", "content"} and turn["role"] in ROLES
        if not fine or not isinstance(turn["content"], str) or not turn["content"].strip():
            raise IITKitError(
                f"{at}: turn {i} of its chat is {str(turn)[:60]}: expected {{role, content}}, a role of "
                f"{choices(ROLES)} and a text"
            )
    if not row:
        raise IITKitError(f"{at}: its chat has no turn: expected {{role, content}}, one or more")
    return row


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
