"""Prompts of a measurement, as files hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iitkit.analysis.facts import Fact
from iitkit.cli.inputs import FACT, PAIR, facts_of, pairs_of, rows_of
from iitkit.errors import IITKitError

ROWS: list[dict[str, Any]] = [
    {"prompt": "Mary walked home", "subject": "Mary"},
    {"prompt": "the end\u2028of a line, Zo\u00eb\u0085 and \U0001f600", "subject": "Zo\u00eb"},
]
FACTS = [Fact(**row) for row in ROWS]


def lines(rows: list[dict[str, Any]], end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "marked"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n \n\n"], ids=["lf", "crlf", "blank lines"])
def test_jsonl_as_editors_write_it(tmp_path: Path, mark: str, end: str) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_bytes((mark + lines(ROWS, end)).encode())
    assert facts_of(rows_of(str(file), FACT)) == FACTS


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_a_mark_at_the_start_of_other_files(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"facts.{ending}"
    file.write_bytes(("\ufeff" + json.dumps(ROWS[:1])).encode())
    assert facts_of(rows_of(str(file), FACT)) == FACTS[:1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (lines(ROWS[:1]) + "\n{prompt: Mary}\n", "prompts: {} line 3 is no JSON: Expecting property name"),
        (lines(ROWS[:1]) + "3\n", "{} line 2: 3: expected a mapping with "),
        (
            '{"prompt": "half \\ud83d", "subject": "half"}\n',
            "{} line 1: prompt is 'half \\ud83d': it has half a character",
        ),
        ("\n\n", "prompts: there is none: expected a list of mappings"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(IITKitError) as raised:
        facts_of(rows_of(str(file), FACT))
    assert str(raised.value).startswith(says.format(file))
    assert "\n" not in str(raised.value)


def test_a_template_says_where_the_subject_stands() -> None:
    row = {"template": "In Rome, {} is a city like", "prompt": "In Rome, Rome is a city like", "subject": "Rome"}
    assert facts_of(rows_of([row], FACT)) == [Fact("In Rome, Rome is a city like", (9, 13))]
    with pytest.raises(IITKitError, match=r"prompts\[0\]: prompt 'Rome is' is not the template's 'In Rome, Rome is a"):
        facts_of(rows_of([{**row, "prompt": "Rome is"}], FACT))


@pytest.mark.parametrize(("spans", "says"), [({"name": 3}, "'name': 3"), ({1: "Mary"}, "1: 'Mary'")])
def test_a_span_that_is_no_text(spans: Any, says: str) -> None:
    with pytest.raises(IITKitError, match=rf"prompts\[0\]: spans has {says}: expected a substring, or \[start, stop\]"):
        pairs_of(rows_of([{"clean": "Mary", "corrupt": "John", "spans": spans}], PAIR))
