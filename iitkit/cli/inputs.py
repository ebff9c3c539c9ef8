"""Prompts of a measurement: a list in the config, or a YAML, JSON or jsonl file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from iitkit.analysis.facts import Fact
from iitkit.analysis.prompts import Prompt
from iitkit.errors import IITKitError, choices, did_you_mean

FACT = {"prompt", "subject", "answer", "attribute", "corrupt", "wrong", "template"}
PAIR = {"clean", "corrupt", "answer", "wrong", "spans", "clean_spans", "corrupt_spans"}
LENS = {"prompt", "answer", "wrong", "source", "spans", "source_spans"}
IGNORED = {"known_id", "relation_id", "prediction"}
"""Keys of ROME's own file of facts that nothing needs."""


@dataclass(frozen=True)
class Row:
    """One entry.

    Args:
        values: its keys.
        at: where it stands, for messages.
    """

    values: dict[str, Any]
    at: str

    def text(self, key: str, required: bool = False) -> str | None:
        """Return a text.

        Raises:
            IITKitError: no text, or none where one is needed.
        """
        value = self.values.get(key)
        if value is None and not required:
            return None
        if not isinstance(value, str) or not value:
            given = "is missing" if value is None else f"is {value!r}"
            raise IITKitError(f"{self.at}: {key} {given}: expected text" + _quoted(value))
        if any("\ud800" <= sign <= "\udfff" for sign in value):
            raise IITKitError(f"{self.at}: {key} is {value!r}: it has half a character (a lone surrogate)")
        return value

    def span(self, key: str) -> str | tuple[int, int]:
        """Return a substring, or offsets."""
        value = self.values.get(key)
        if isinstance(value, list) and len(value) == 2:
            return (value[0], value[1])
        found = self.text(key, required=True)
        assert found is not None
        return found

    def spans(self, *keys: str) -> dict[str, str | tuple[int, int]]:
        """Return the spans that several keys hold together."""
        found: dict[str, str | tuple[int, int]] = {}
        for key in keys:
            given = self.values.get(key) or {}
            if not isinstance(given, dict):
                raise IITKitError(f"{self.at}: {key} is {given!r}: expected a mapping of names to substrings")
            for name, x in given.items():
                if not isinstance(name, str) or not isinstance(x, str | list):
                    raise IITKitError(f"{self.at}: {key} has {name!r}: {x!r}: expected a substring, or [start, stop]")
                found[name] = tuple(x) if isinstance(x, list) else x
        return found


def rows_of(given: str | Sequence[Any], known: set[str]) -> list[Row]:
    """Return the entries of a list or a file.

    Args:
        given: a list of mappings, or a file.
        known: the keys that an entry may have.

    Raises:
        IITKitError: a file that is not there or cannot be read, an entry that is no mapping, an unknown key.
    """
    found = _file(given) if isinstance(given, str) else [(f"prompts[{i}]", row) for i, row in enumerate(given)]
    if not found:
        raise IITKitError("prompts: there is none: expected a list of mappings, or a file of them")
    rows = []
    for at, values in found:
        if not isinstance(values, dict):
            raise IITKitError(f"{at}: {values!r}: expected a mapping with {choices(sorted(known))}")
        for key in values:
            if key not in known and key not in IGNORED:
                raise IITKitError(f"{at}: no key {key!r}.{did_you_mean(key, known)} It has: {choices(sorted(known))}")
        rows.append(Row(values, at))
    return rows


def facts_of(rows: Sequence[Row]) -> list[Fact]:
    """Return facts to trace."""
    facts = []
    for row in rows:
        subject, template = row.span("subject"), row.text("template")
        prompt = row.text("prompt", required=template is None)
        if template is not None:  # says where the subject stands, also where its text stands twice
            if template.count("{}") != 1 or not isinstance(subject, str):
                raise IITKitError(f"{row.at}: template {template!r}: expected one {{}} for the subject, given as text")
            start, filled = template.index("{}"), template.replace("{}", subject)
            if prompt not in (None, filled):
                raise IITKitError(f"{row.at}: prompt {prompt!r} is not the template's {filled!r}: give one of the two")
            prompt, subject = filled, (start, start + len(subject))
        assert prompt is not None
        answer = row.text("answer") or row.text("attribute")
        facts.append(Fact(prompt, subject, answer, row.text("corrupt"), row.text("wrong")))
    return facts


def pairs_of(rows: Sequence[Row]) -> list[tuple[Prompt, Prompt]]:
    """Return pairs of a clean and a corrupt prompt."""
    pairs = []
    for row in rows:
        both = []
        for name, answer in (("clean", "answer"), ("corrupt", "wrong")):
            text = row.text(name, required=True)
            assert text is not None
            both.append(Prompt(text, row.spans("spans", f"{name}_spans"), row.text(answer)))
        pairs.append((both[0], both[1]))
    return pairs


def _file(name: str) -> list[tuple[str, Any]]:
    path = Path(name).expanduser()
    if not path.is_file():
        raise IITKitError(f"prompts: no file {name!r}: give a .yaml, .json or .jsonl file, or the list itself")
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
        if path.suffix == ".jsonl":
            # only line feeds end a line: texts may hold other separators
            lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
            return [(f"{name} line {number}", _line(name, number, line)) for number, line in lines]
        held = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except IITKitError:
        raise
    except (ValueError, yaml.YAMLError, OSError) as error:
        raise IITKitError(f"prompts: {name} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(held, list):
        raise IITKitError(f"prompts: {name} holds a {type(held).__name__}: expected a list of mappings")
    return [(f"{name}[{i}]", row) for i, row in enumerate(held)]


def _line(name: str, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise IITKitError(f"prompts: {name} line {number} is no JSON: {error.msg}, column {error.colno}") from error


def _quoted(value: Any) -> str:
    """YAML makes numbers and truth values of some words."""
    return "" if value is None or isinstance(value, str) else f", in quotes: '{value}'"
