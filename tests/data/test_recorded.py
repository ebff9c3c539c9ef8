"""Pairs from a user's own files: every cell by hand, every mistake with its file, line and word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iitkit.data.dividing import groups_of
from iitkit.data.pairs import Pairs
from iitkit.data.recorded import Recorded
from iitkit.data.rows import read_rows
from iitkit.data.tables import Table, columns_of, read_table
from iitkit.errors import IITKitError

Rows = list[dict[str, Any]]

CATS: Rows = [
    {
        "base": "The cat sees a dog and",
        "source": "The cats see a dog and",
        "label": " they",
        "base_label": " it",
        "positions": {"noun": "cat"},
    },
    {
        "base": "The owls sleep and",
        "source": "The cat sees a dog and",
        "label": " it",
        "base_label": " they",
        "positions": {},
    },
]


def jsonl(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def plain(i: int, **more: Any) -> dict[str, Any]:
    """A pair that shares no prompt with the others."""
    return {"base": f"base {i} is", "source": f"source {i} is", "label": " a", "base_label": " b", **more}


def folder(path: Path, **splits: Rows) -> Path:
    """A folder of one file a split; what is not given has one pair of its own."""
    defaults = {"train": [plain(900)], "validation": [plain(901)], "test": [plain(902)]}
    for split, rows in {**defaults, **splits}.items():
        jsonl(path / f"{split}.jsonl", rows)
    return path


def read(path: Path, rows: Rows, **options: Any) -> Recorded:
    """The rows as the training split, beside others."""
    return Recorded(folder(path, train=rows, **options.pop("splits", {})), **options)


def told(data: Recorded, pairs: Pairs, split: str = "train") -> list[tuple[Any, ...]]:
    """Base, sources, label and base label of each pair as text, and whether it is flipped."""
    texts = [text.text for text in data.prompts(split)[0]]
    return [
        (
            texts[pairs.base[i]],
            tuple(texts[k] for k in pairs.sources[i]),
            pairs.candidates[i][pairs.label[i]],
            pairs.candidates[i][pairs.base_label[i]] if pairs.base_label[i] >= 0 else None,
            bool(pairs.flipped[i]),
        )
        for i in range(len(pairs))
    ]


# --- what is read ---


def test_a_file_by_hand(tmp_path: Path) -> None:
    rows = [
        {"base": "the cat is", "source": "the owls are", "label": " two", "base_label": " one"},
        {"base": "the owls are", "source": "the dogs are", "label": " two", "base_label": " two"},
        {"base": "the cat is", "source": "the dogs are", "label": " many", "base_label": " one"},
    ]
    data = read(tmp_path, rows)
    texts, templates, setting = data.prompts("train")
    assert [text.text for text in texts] == ["the cat is", "the owls are", "the dogs are"]
    assert [text.spans for text in texts] == [{}, {}, {}]
    assert templates.tolist() == [0, 0, 0]
    assert setting == {}
    assert data.spans == []
    assert data.truths("train") == [" one", " two", ""]  # nobody says what the dogs alone are
    assert data.splits() == ["train", "validation", "test"]
    assert data.variables() is None
    assert data.base_labels_known is True
    assert data.inputs("train") is None
    pairs = data.pairs("train", 0, ["number"])
    assert pairs.base.tolist() == [0, 1, 0]
    assert pairs.sources.tolist() == [[1], [2], [2]]
    assert pairs.variables.tolist() == [[0], [0], [0]]
    assert pairs.flipped.tolist() == [True, False, True]
    # all answers of the data compete, those of the other splits too, in the order in which they first stand
    assert pairs.candidates == [[" two", " one", " many", " a", " b"]] * 3
    assert pairs.label == [0, 0, 2]
    assert pairs.base_label == [1, 0, 1]
    assert pairs.other is None
    assert told(data, pairs)[2] == ("the cat is", ("the dogs are",), " many", " one", True)


def test_own_candidates(tmp_path: Path) -> None:
    rows = [plain(0, candidates=[" b", " a"]), plain(1, candidates=[" c", " a", " b"], label=" c")]
    splits = {s: [plain(9, candidates=[" a", " b"])] for s in ("validation", "test")}
    data = read(tmp_path, rows, splits=splits)
    pairs = data.pairs("train", 0, ["x"])
    assert pairs.candidates == [[" b", " a"], [" c", " a", " b"]]
    assert (pairs.label, pairs.base_label) == ([1, 0], [0, 2])


def test_what_competes_behind_each_prompt(tmp_path: Path) -> None:
    """A base's answers are its own pair's, whichever pair it stood in first; a source's own answer joins them."""
    one = {"base": "p", "source": "q", "label": " a", "candidates": [" a", " b"], "source_label": " x"}
    two = {"base": "q", "source": "r", "label": " c", "candidates": [" c", " x"], "source_label": " y"}
    splits = {s: [{**one, "base": s, "source": f"{s} s"}] for s in ("validation", "test")}
    data = read(tmp_path, [one, two], splits=splits)
    assert [text.text for text in data.prompts("train")[0]] == ["p", "q", "r"]
    assert data.truths("train") == ["", " x", " y"]
    assert data.competing("train", np.array([2, 0, 1])) == [[" c", " x", " y"], [" a", " b"], [" c", " x"]]
    assert data.pairs("train", 0, ["v"]).candidates == [[" a", " b"], [" c", " x"]]


def test_unknown_base_labels(tmp_path: Path) -> None:
    rows = [{"base": f"p {i}", "source": f"q {i}", "label": [" a", " b"][i % 2]} for i in range(10)]
    data = Recorded(jsonl(tmp_path / "pairs.jsonl", rows))
    assert data.base_labels_known is False
    pairs = data.pairs("train", 0, ["x"])
    assert pairs.base_label == [-1] * 6
    assert pairs.flipped.tolist() == [False] * 6
    assert set(data.truths("train")) == {""}
    # a file that says what is flipped is believed
    flips = [{**row, "flipped": i < 5} for i, row in enumerate(rows)]
    data = Recorded(jsonl(tmp_path / "flips.jsonl", flips))
    found = {row[0]: row[4] for split in data.splits() for row in told_of(data, split)}
    assert found == {f"p {i}": i < 5 for i in range(10)}


def told_of(data: Recorded, split: str) -> list[tuple[Any, ...]]:
    return told(data, data.pairs(split, 0, ["x"]), split)


def test_several_sources(tmp_path: Path) -> None:
    row = {"base": "p", "sources": ["q", "r"], "label": " a", "base_label": " b", "variables": ["left", "right"]}
    other = {**row, "sources": ["r", "q"], "variables": ["right", "left"]}
    splits = {s: [row] for s in ("validation", "test")}
    data = read(tmp_path, [row, other], splits=splits)
    pairs = data.pairs("train", 0, ["right", "left"])
    assert pairs.sources.tolist() == [[1, 2], [2, 1]]
    assert pairs.variables.tolist() == [[1, 0], [0, 1]]
    assert data.variables() == ["left", "right"]
    assert data.sources == 2


def test_several_variables_of_one_source(tmp_path: Path) -> None:
    """A pair of fewer variables than another names its first again, which changes nothing."""
    rows = [plain(0, variables=["a", "b"]), plain(1, variables=["b"])]
    data = read(tmp_path, rows, splits={s: [plain(8, variables=["a", "b"])] for s in ("validation", "test")})
    assert data.pairs("train", 0, ["b", "a"]).variables.tolist() == [[1, 0], [0, 0]]
    assert data.pairs("train", 0, ["b"]).variables.tolist() == [[0]]  # the other pair needs a too


def test_no_variable_is_all_of_them(tmp_path: Path) -> None:
    data = read(tmp_path, [plain(0), plain(1)])
    assert data.pairs("train", 0, ["a", "b", "c"]).variables.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_only_pairs_of_what_is_placed(tmp_path: Path) -> None:
    rows = [plain(i, variable="number" if i % 3 else "gender") for i in range(9)]
    data = read(tmp_path, rows, splits={s: [plain(20, variable="number")] for s in ("validation", "test")})
    assert [data.size("train", [v]) for v in ("number", "gender")] == [6, 3]
    pairs = data.pairs("train", 0, ["gender"])
    assert [text for text, *_ in told(data, pairs)] == ["base 0 is", "base 3 is", "base 6 is"]
    assert data.pairs("train", 0, ["gender", "number"]).variables[:, 0].tolist() == [0, 1, 1] * 3
    with pytest.raises(IITKitError, match="no validation pair is of gender alone: place more variables"):
        data.pairs("validation", 0, ["gender"])
    with pytest.raises(IITKitError, match=r"no pairs of variable 'nunber'. Did you mean 'number'\? It has gender, num"):
        data.pairs("train", 0, ["nunber"])


def test_another_variable_to_isolate(tmp_path: Path) -> None:
    row = plain(0, variable="a", other_variable="b", other_label=" b")
    data = read(tmp_path, [row], splits={s: [row] for s in ("validation", "test")})
    pairs = data.pairs("train", 0, ["b", "a"])
    assert pairs.other is not None
    assert (pairs.other.tolist(), pairs.other_label) == ([0], [" b"])
    assert data.pairs("train", 0, ["a"]).other is None  # b is not placed


def test_what_a_module_asks_for(tmp_path: Path) -> None:
    row = {"base": "p", "sources": ["q", "r"], "label": " a", "base_label": " b", "variables": ["v", "v"]}
    staged = read(tmp_path / "a", [row], splits={s: [row] for s in ("validation", "test")})
    staged.check(2, isolates=False)
    assert staged.pairs("train", 0, ["v"]).variables.tolist() == [[0, 0]]
    with pytest.raises(IITKitError, match=r"train.jsonl line 1: a variable takes its value from two sources: expected"):
        staged.check(0, isolates=False)
    with pytest.raises(IITKitError, match=r"model.stages: 3 stages: the pairs of .* have 2 sources"):
        staged.check(3, isolates=False)
    with pytest.raises(IITKitError, match="has no columns other_variable and other_label, which isolating needs"):
        staged.check(2, isolates=True)
    row = plain(0, variable="a", other_variable="b", other_label=" b")
    apart = read(tmp_path / "b", [row], splits={s: [row] for s in ("validation", "test")})
    apart.check(0, isolates=True)
    apart.check(0, isolates=False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(["one", "two", "one"], [0, 1, 0]), ([4, 0, 4], [4, 0, 4])],
)
def test_templates(tmp_path: Path, given: list[Any], expected: list[int]) -> None:
    """Names are numbered as they first stand; numbers are kept. A source has its base's unless the file says more."""
    rows = [plain(i, template=template) for i, template in enumerate(given)]
    rest = {s: [plain(9, template=given[0])] for s in ("validation", "test")}
    data = read(tmp_path, rows, splits=rest)
    assert data.prompts("train")[1].tolist() == [t for t in expected for _ in range(2)]
    rows = [{**row, "source_template": given[1]} for row in rows]
    rest = {s: [{**row, "source_template": given[1]} for row in of_split] for s, of_split in rest.items()}
    data = read(tmp_path / "more", rows, splits=rest)
    assert data.prompts("train")[1].tolist() == [t for t in expected for t in (t, expected[1])]


# --- spans ---


def spans_of(tmp_path: Path, row: dict[str, Any]) -> list[dict[str, tuple[int, int]]]:
    data = read(tmp_path, [row], splits={s: [row] for s in ("validation", "test")})
    return [text.spans for text in data.prompts("train")[0]]


def test_spans_by_hand(tmp_path: Path) -> None:
    base, source = "The cat near the dogs", "The owls near the dogs"
    answer = {"base": base, "source": source, "label": " a", "base_label": " b"}
    expected = [{"noun": (4, 7), "other": (17, 21)}, {"noun": (4, 8), "other": (18, 22)}]
    given = [
        {"base_positions": {"noun": "cat", "other": "dogs"}, "source_positions": {"noun": "owls", "other": "dogs"}},
        {"base_positions": {"noun": [4, 7], "other": [17, 21]}, "source_positions": {"noun": [4, 8], "other": "dogs"}},
        {"positions": {"other": "dogs"}, "base_positions": {"noun": "cat"}, "source_positions": {"noun": [4, 8]}},
        {
            "base_positions": {"noun": "cat", "other": "dogs"},
            "source_positions": [{"noun": "owls", "other": "dogs"}],
        },
    ]
    for i, positions in enumerate(given):
        assert spans_of(tmp_path / str(i), {**answer, **positions}) == expected
    assert base[4:7] == "cat"
    assert source[18:22] == "dogs"


def test_spans_of_several_sources(tmp_path: Path) -> None:
    row = {"base": "a b", "sources": ["c d", "e ff"], "label": " x", "base_label": " y", "variables": ["v", "w"]}
    row |= {"base_positions": {"end": "b"}, "source_positions": [{"end": "d"}, {"end": [2, 4]}]}
    assert spans_of(tmp_path, row) == [{"end": (2, 3)}, {"end": (2, 3)}, {"end": (2, 4)}]


def test_one_text_with_other_spans_is_another_prompt(tmp_path: Path) -> None:
    one = {"base": "cat cat", "source": "dog dog", "label": " x", "base_label": " y"}
    first = {**one, "base_positions": {"w": [0, 3]}, "source_positions": {"w": [0, 3]}}
    second = {**one, "base_positions": {"w": [4, 7]}, "source_positions": {"w": [0, 3]}}
    data = read(tmp_path, [first, second, first], splits={s: [first] for s in ("validation", "test")})
    texts = data.prompts("train")[0]
    assert [(t.text, t.spans["w"]) for t in texts] == [("cat cat", (0, 3)), ("dog dog", (0, 3)), ("cat cat", (4, 7))]
    assert data.pairs("train", 0, ["x"]).base.tolist() == [0, 2, 0]


ANSWERS = {"label": " x", "base_label": " y"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"base": "a cat and a cat", "source": "an owl", "base_positions": {"w": "cat"}},
            "train.jsonl line 2: span 'w': 'cat' stands twice in 'a cat and a cat': give offsets [start, stop]",
        ),
        (
            {"base": "aaa", "source": "b", "base_positions": {"w": "aa"}},
            "train.jsonl line 2: span 'w': 'aa' stands twice in 'aaa': give offsets",
        ),
        (
            {"base": "a cat", "source": "an owl", "positions": {"w": "cat"}},
            "train.jsonl line 2: span 'w': 'cat' is not in 'an owl': expected a substring, or give offsets",
        ),
        (
            {"base": "a a", "source": "a", "positions": {"w": "a"}},
            "'a' stands twice in 'a a': give offsets [start, stop], in base_positions and source_positions",
        ),
        (
            {"base": "a cat", "source": "a cat", "positions": {"w": [2, 5]}},
            "span 'w' is [2, 5]: expected a substring of base and source; give offsets in base_positions",
        ),
        (
            {"base": "a cat", "source": "a cat", "base_positions": {"w": "cat"}, "source_positions": {"v": "cat"}},
            "line 2: the source has the spans v, the first base of the file w: expected the same in every prompt",
        ),
        (
            {"base": "a cat", "source": "a cat", "base_positions": {"w": "cat"}},
            "line 2: the source has the spans none, the first base of the file w",
        ),
        (
            {"base": "a cat", "source": "a cat", "positions": {"w": "a c"}, "base_positions": {"w": "cat"}},
            "span 'w' stands in 'positions' too: give it once",
        ),
        (
            {"base": "a cat", "source": "an owl", "base_positions": {"w": [2, 9]}},
            "span 'w': offsets [2, 9] do not lie within the 5 characters of 'a cat'",
        ),
        ({"base": "a cat", "source": "b", "base_positions": {"w": [3, 3]}}, "offsets [3, 3] do not lie within"),
        ({"base": "a cat", "source": "b", "base_positions": {"w": [-3, 3]}}, "offsets [-3, 3] do not lie within"),
        ({"base": "a cat", "source": "b", "base_positions": {"w": [True, 3]}}, "expected a substring or offsets"),
        ({"base": "a cat", "source": "b", "base_positions": {"w": [1, 2, 3]}}, "is [1, 2, 3]: expected a substring"),
        ({"base": "a cat", "source": "b", "base_positions": {"w": ""}}, "span 'w' is '': expected a substring"),
        ({"base": "a cat", "source": "b", "base_positions": {"last": "cat"}}, "may not be called 'last', which names"),
        ({"base": "a cat", "source": "b", "base_positions": {"w.all": "cat"}}, "may not be called 'w.all'"),
        ({"base": "a cat", "source": "b", "base_positions": {"f1+l2": "cat"}}, "may not be called 'f1+l2'"),
        (
            {"base": "a cat", "source": "b", "base_positions": ["cat"]},
            "column 'base_positions' is ['cat'] (list): expected a mapping of names to substrings or [start, stop]",
        ),
        (
            {"base": "a cat", "source": "b", "base_positions": {"w": "cat"}, "source_positions": [{}, {}]},
            "column 'source_positions' is [{}, {}] (list): expected a mapping",
        ),
    ],
)
def test_wrong_spans(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text("\n" + json.dumps({**row, **ANSWERS}) + "\n", encoding="utf-8")
    with pytest.raises(IITKitError) as raised:
        Recorded(file)
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_later_prompt_without_the_spans(tmp_path: Path) -> None:
    with pytest.raises(IITKitError, match="line 2: the base has the spans none, the first base of the file noun"):
        Recorded(jsonl(tmp_path / "p.jsonl", [{**CATS[0], "source": "A cat"}, CATS[1]]))


# --- three formats ---


def as_parquet(path: Path, rows: Rows) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def as_csv(path: Path, rows: Rows) -> Path:
    import csv

    with path.open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow([json.dumps(c) if isinstance(c, list | dict | bool) else c for c in row.values()])
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_all_formats_are_read_alike(tmp_path: Path, suffix: str) -> None:
    rows = [
        {
            "base": f'She said, "no {i}"\nand',
            "sources": [f"ünï {i}", f"\u2028line {i}"],
            "label": " a",
            "base_label": [" a", " b"][i % 2],
            "flipped": bool(i % 2),
            "candidates": [" a", " b", " c"],
            "variables": ["v", "w"],
            "template": "quoted",
            "base_positions": {"number": str(i)},
            "source_positions": [{"number": str(i)}, {"number": [6, 6 + len(str(i))]}],
        }
        for i in range(20)
    ]
    if suffix != "jsonl":  # the types of a column are one there
        for i, row in enumerate(rows):
            row["source_positions"] = [{"number": str(i)}, {"number": str(i)}]
    path = tmp_path / f"pairs.{suffix}"
    {"jsonl": jsonl, "parquet": as_parquet, "csv": as_csv}[suffix](path, rows)
    data = Recorded(path)
    assert data.splits() == ["train", "validation", "test"]
    found = {}
    for split in data.splits():
        texts = {text.text: text for text in data.prompts(split)[0]}
        pairs = data.pairs(split, 0, ["v", "w"])
        for base, sources, label, base_label, flipped in told(data, pairs, split):
            found[base] = (sources, label, base_label, flipped)
            spans = [texts[text].spans["number"] for text in (base, *sources)]
            number = base.split('"no ')[1].split('"')[0]
            assert [t[slice(*span)] for t, span in zip((base, *sources), spans, strict=True)] == [number] * 3
        assert pairs.candidates == [[" a", " b", " c"]] * len(pairs)
        assert pairs.variables.tolist() == [[0, 1]] * len(pairs)
    assert found == {
        row["base"]: (tuple(row["sources"]), " a", row["base_label"], row["base_label"] == " b") for row in rows
    }


def test_utf8_with_a_mark_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    lines = [json.dumps(plain(i)) for i in range(6)]
    (tmp_path / "p.jsonl").write_bytes(("\ufeff" + "\r\n\r\n".join(lines)).encode())
    table = read_table(tmp_path / "p.jsonl", "p.jsonl")
    assert table.columns["base"] == [f"base {i} is" for i in range(6)]
    assert list(table.lines) == [1, 3, 5, 7, 9, 11]
    (tmp_path / "p.csv").write_bytes('\ufeffbase,source,label\r\na,b, x\r\n\r\n"c\nd",e, y\r\nf,g,\r\n'.encode())
    table = read_table(tmp_path / "p.csv", "p.csv")
    assert table.columns == {"base": ["a", "c\nd", "f"], "source": ["b", "e", "g"], "label": [" x", " y", None]}
    assert list(table.lines) == [2, 4, 6]


# --- cells that are wrong ---


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([plain(0), plain(1, label=12)], "p.jsonl line 2: column 'label' is 12 (int): expected text, in quotes"),
        ([plain(0, label=True)], "p.jsonl line 1: column 'label' is True (bool): expected text"),
        ([plain(0), plain(1, label=None)], "p.jsonl line 2: column 'label' is empty: expected text"),
        ([plain(0), plain(1, label="")], "p.jsonl line 2: column 'label' is '' (str): expected text"),
        ([plain(0), plain(1, base=float("nan"))], "p.jsonl line 2: column 'base' is empty: expected text"),
        ([plain(0), plain(1, source=["a", "b"])], "p.jsonl line 2: column 'source' is ['a', 'b'] (list): expected te"),
        ([plain(0), {**plain(1), "base_label": None}], "p.jsonl line 2: column 'base_label' is empty: expected text"),
        ([plain(0, candidates=" a")], "column 'candidates' is ' a' (str): expected a list of texts"),
        ([plain(0, candidates=[" a", 3])], "column 'candidates' is [' a', 3] (list): expected a list of texts"),
        ([plain(0, candidates=[" a"])], "column 'candidates' is [' a'] (list): expected two or more different answers"),
        ([plain(0, candidates=[" a", " a", " b"])], "expected two or more different answers"),
        ([plain(0, candidates=[" a", " c"])], "expected the base_label ' b' among them"),
        ([plain(0, candidates=[" b", " c"])], "expected the label ' a' among them"),
        ([plain(0, flipped=False)], "column 'flipped' is False (bool): expected True: label is ' a', base_label ' b'"),
        ([plain(0, flipped="maybe")], "column 'flipped' is 'maybe' (str): expected true or false"),
        ([plain(0, variable=3)], "column 'variable' is 3 (int): expected text"),
        ([plain(0, variable="a", variables=["a"])], "has columns 'variable' and 'variables': keep one of them"),
        ([plain(0, sources=["q"])], "has columns 'source' and 'sources': keep one of them"),
        ([plain(0, variables=["a", "a"])], "column 'variables' is ['a', 'a'] (list): expected each variable once"),
        ([plain(0, template=1.5)], "column 'template' is 1.5 (float): expected text or an integer"),
        (
            [plain(0, template=1), plain(1, template="x")],
            "line 2: column 'template' is 'x' (str): expected text or",
        ),
        ([plain(0, source_template=1)], "p.jsonl names the sources' templates: expected a column 'template' as well"),
        ([plain(0, other_variable="a")], "expected columns other_variable and other_label, or neither"),
        (
            [{"base": "p", "sources": ["q", "r"], "label": " a"}],
            "p.jsonl has 2 sources a pair and no column 'variables': expected a list of the variables that take",
        ),
        (
            [{"base": "p", "sources": ["q", "r"], "label": " a", "variables": ["v"]}],
            "column 'variables' is ['v'] (list): expected 2, one for each source",
        ),
        (
            [{"base": "p", "sources": ["q", "r"], "label": " a", "variable": "v"}],
            "p.jsonl line 1 has 2 sources and one 'variable': expected a column 'variables' with a list of 2",
        ),
        (
            [
                {"base": "p", "sources": ["q", "r"], "label": " a", "variables": ["v", "w"]},
                {"base": "p", "sources": ["q"], "label": " a", "variables": ["v"]},
            ],
            "p.jsonl line 2 has 1 sources, p.jsonl line 1 has 2: expected equally many",
        ),
        (
            [{"source": "q", "label": " a"}],
            "p.jsonl has no column 'base'. Expected base, source (or sources) and label",
        ),
        (
            [{"bas": "p", "source": "q", "label": " a"}],
            "p.jsonl: unknown column 'bas'. Did you mean 'base'? Rename it,",
        ),
        ([{"base": "p", "label": " a"}], "has no column 'source'. Expected base, source (or sources) and label"),
        (
            [{"base": "p", "source": "q", "labels": " a"}],
            "unknown column 'labels'. Did you mean 'label'? Rename it, or say columns: {label: labels}",
        ),
        ([plain(0, base_postions={"w": "base"})], "unknown column 'base_postions'. Did you mean 'base_positions'?"),
        ([{**plain(0), "base": None}], "p.jsonl: column 'base' is empty in every line: expected text"),
        ([{"base": "p", "source": "q", "label": " a"}] * 2, "has 1 different answers and no column 'candidates'"),
    ],
)
def test_wrong_cells(tmp_path: Path, rows: Rows, message: str) -> None:
    with pytest.raises(IITKitError) as raised:
        Recorded(jsonl(tmp_path / "p.jsonl", [*rows]))
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 350


def test_one_prompt_with_two_answers(tmp_path: Path) -> None:
    with pytest.raises(IITKitError) as raised:
        read(tmp_path, [plain(0), plain(1), {**plain(0), "base_label": " c"}])
    assert str(raised.value) == (
        "train.jsonl line 3: 'base 0 is' is answered ' c' without intervention, at train.jsonl line 1 ' b': expected "
        "one answer"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b"", "p.jsonl is empty: expected one pair a line"),
        ("p.jsonl", b"\n  \n", "p.jsonl is empty"),
        ("p.csv", b"base,source,label\n", "p.csv is empty"),
        ("p.csv", b"", "p.csv is empty"),
        ("p.jsonl", b'{"base": "a"}\n{"base": \n', "p.jsonl line 2 is not valid JSON: Expecting value"),
        ("p.jsonl", b'["a", "b"]\n', "p.jsonl line 1 is ['a', 'b']: expected one object {…} a line"),
        ("p.jsonl", b'{"base": "\xff"}\n', "p.jsonl is not text in UTF-8"),
        ("p.csv", b"base,source,base\na,b,c\n", "p.csv line 1: column 'base' stands twice"),
        ("p.csv", b"base,source,label\na,b,c\na,b,c,d\n", "p.csv line 3 has 4 cells, the header 3: put text that"),
        ("p.csv", b'base,source,label\n"a"b,b,c\n', "p.csv line 2 is not valid CSV"),
        ("p.csv", b"base,source,label\na,,c\n", "p.csv: column 'source' is empty in every line"),
        ("p.csv", b"base,source,label\na,b,c\na,,c\n", "p.csv line 3: column 'source' is empty: expected text"),
        ("p.parquet", b"PAR1", "p.parquet is not a parquet file that can be read"),
        ("p.json", b"[]", "p.json: a .json: expected one of .jsonl, .parquet, .csv"),
        ("pairs", b"[]", "pairs: a file without suffix: expected one of .jsonl, .parquet, .csv"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(IITKitError) as raised:
        Recorded(tmp_path / name)
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_parquet_rows_are_numbered(tmp_path: Path) -> None:
    as_parquet(tmp_path / "p.parquet", [plain(0), plain(1, label=None)])
    with pytest.raises(IITKitError, match=r"p.parquet row 2: column 'label' is empty: expected text"):
        Recorded(tmp_path / "p.parquet")
    as_parquet(tmp_path / "none.parquet", [plain(0)])
    pq.write_table(pq.read_table(tmp_path / "none.parquet").slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(IITKitError, match=r"none.parquet is empty: expected one pair a row"):
        Recorded(tmp_path / "none.parquet")


def test_more_than_a_thousand_answers(tmp_path: Path) -> None:
    rows = [plain(i, label=f" {i}") for i in range(1000)]
    with pytest.raises(IITKitError, match="has 1001 different answers and no column 'candidates': expected 2 to 1000"):
        Recorded(jsonl(tmp_path / "p.jsonl", rows))
    data = Recorded(jsonl(tmp_path / "q.jsonl", rows[:999]))
    pairs = data.pairs("train", 0, ["x"])
    assert len(pairs.candidates[0]) == 1000
    assert pairs.candidates[0] is pairs.candidates[-1]  # one list for all


# --- columns of other names ---


def test_columns_by_other_names(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {i}", "cf": f"q {i}", "answer": " a", "old": " b", "position": 7, "id": i} for i in range(9)]
    columns = {"base": "prompt", "source": "cf", "label": "answer", "base_label": "old", "positions": None}
    data = Recorded(jsonl(tmp_path / "p.jsonl", rows), columns=columns)
    assert data.prompts("test")[0][0].text[:2] == "p "
    assert data.truths("test")[0] == " b"
    unread = {key: value for key, value in columns.items() if key != "positions"}
    with pytest.raises(IITKitError) as raised:
        Recorded(tmp_path / "p.jsonl", columns=unread)
    assert str(raised.value) == (
        "p.jsonl: unknown column 'position'. Did you mean 'positions'? Rename it, or say columns: "
        "{positions: position}, or {positions: null} to leave it unread"
    )
    with pytest.raises(IITKitError, match=r"columns: unknown name 'bsae'. Did you mean 'base'\? Expected one of base"):
        Recorded(tmp_path / "p.jsonl", columns={"bsae": "prompt"})
    with pytest.raises(
        IITKitError, match=r"columns.base: p.jsonl has no column 'promt'. Did you mean 'prompt'\? It has"
    ):
        Recorded(tmp_path / "p.jsonl", columns={"base": "promt"})


def test_errors_call_a_column_as_the_file_does(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "source": "q", "label": " a"}, {"prompt": 3, "source": "q", "label": " a"}]
    with pytest.raises(IITKitError, match=r"p.jsonl line 2: column 'prompt' is 3 \(int\)"):
        Recorded(jsonl(tmp_path / "p.jsonl", rows), columns={"base": "prompt"})


# --- files and splits ---


def sizes(data: Recorded) -> dict[str, int]:
    return {split: data.size(split, ["x"]) for split in data.splits()}


def test_folders_by_name(tmp_path: Path) -> None:
    rows = [plain(i) for i in range(12)]
    jsonl(tmp_path / "data" / "train-00000-of-00002.jsonl", rows[:3])
    jsonl(tmp_path / "data" / "train-00001-of-00002.jsonl", rows[3:5])
    jsonl(tmp_path / "dev.jsonl", rows[5:7])
    jsonl(tmp_path / "my_test.jsonl", rows[7:11])
    jsonl(tmp_path / "test_templates.jsonl", rows[11:])
    (tmp_path / "notes.txt").write_text("mine")
    jsonl(tmp_path / ".hidden" / "train.jsonl", rows)
    data = Recorded(tmp_path)
    assert sizes(data) == {"train": 5, "validation": 2, "test": 4, "test_templates": 1}
    assert [base for base, *_ in told_of(data, "train")] == [f"base {i} is" for i in range(5)]
    assert data.name == str(tmp_path)


def test_folders_by_readme(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\nconfigs:\n- config_name: one\n  default: true\n  data_files:\n"
        "  - {split: train, path: [a/*.jsonl]}\n  - {split: validation, path: x.jsonl}\n"
        "  - {split: test, path: 'b/**/*.jsonl'}\n"
        "- config_name: two\n  data_dir: a\n  data_files: q*.jsonl\n---\n# Cats\n",
        encoding="utf-8",
    )
    rows = [plain(i) for i in range(20)]
    jsonl(tmp_path / "a" / "q.jsonl", rows[:5])
    jsonl(tmp_path / "a" / "r.jsonl", rows[5:7])
    jsonl(tmp_path / "a" / "deeper" / "q.jsonl", rows[7:8])
    jsonl(tmp_path / "x.jsonl", rows[8:11])
    jsonl(tmp_path / "b" / "c" / "y.jsonl", rows[11:12])
    jsonl(tmp_path / "b" / "y.jsonl", rows[12:14])
    assert sizes(Recorded(tmp_path)) == {"train": 7, "validation": 3, "test": 3}
    assert sizes(Recorded(tmp_path, config="two")) == {"train": 3, "validation": 1, "test": 1}
    with pytest.raises(IITKitError, match=r"has no config 'tow'. Did you mean 'two'\? Expected one of one, two"):
        Recorded(tmp_path, config="tow")


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ("configs: [{config_name: a, data_files: [{split: trian, path: p.jsonl}]}]", "unknown split 'trian'. Did you"),
        ("configs: [{config_name: a, data_files: nothing.jsonl}]", "names 'nothing.jsonl' for split 'train', and no"),
        ("configs: [{config_name: a, data_files: ../p.jsonl}]", "'../p.jsonl': expected a path within the dataset"),
        ("configs: [{config_name: a, data_files: 'hf://x/p.jsonl'}]", "expected a path within the dataset"),
        ("configs: [{config_name: a, data_files: 3}]", "data_files: expected entries with split and path"),
        ("configs: [", "README.md: its front matter is not valid YAML"),
        (
            "configs: [{config_name: a, data_files: p.jsonl}, {config_name: b, data_files: p.jsonl}]",
            "has several configs (a, b): say which, config: a",
        ),
    ],
)
def test_wrong_readmes(tmp_path: Path, meta: str, message: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{meta}\n---\n", encoding="utf-8")
    jsonl(tmp_path / "p.jsonl", [plain(i) for i in range(9)])
    with pytest.raises(IITKitError) as raised:
        Recorded(tmp_path)
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(IITKitError, match=r"has no data file: expected train, validation and test as one of .jsonl"):
        Recorded(tmp_path)
    jsonl(tmp_path / "trian.jsonl", [plain(0)])
    jsonl(tmp_path / "test.jsonl", [plain(1)])
    with pytest.raises(IITKitError, match=r"trian.jsonl names no split. Did you mean 'train'\? Expected one of train"):
        Recorded(tmp_path)
    (tmp_path / "trian.jsonl").unlink()
    jsonl(tmp_path / "validation.jsonl", [plain(2)])
    with pytest.raises(IITKitError, match="has the splits validation, test and no train: name one of its files train"):
        Recorded(tmp_path)
    jsonl(tmp_path / "train.jsonl", [plain(0)])
    as_parquet(tmp_path / "train.parquet", [plain(0)])
    with pytest.raises(IITKitError, match=r"split 'train' is there in two formats \(.*\): keep one"):
        Recorded(tmp_path)
    (tmp_path / "train.parquet").unlink()
    jsonl(tmp_path / "test.jsonl", [{k: v for k, v in plain(1).items() if k != "base_label"}])
    with pytest.raises(
        IITKitError, match=r"test.jsonl and train.jsonl differ in a base_label \(no, yes\): expected the"
    ):
        Recorded(tmp_path)
    jsonl(tmp_path / "test.jsonl", [plain(1, positions={"w": "is"})])
    with pytest.raises(IITKitError, match=r"test.jsonl and train.jsonl differ in spans \(w, none\)"):
        Recorded(tmp_path)
    with pytest.raises(IITKitError, match=r"has no config 'one': its README declares none. Leave config out"):
        Recorded(tmp_path, config="one")


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(IITKitError, match=r"'p.jsonl': no such file or folder. Expected a .jsonl, .parquet, .csv file"):
        Recorded("p.jsonl")
    with pytest.raises(IITKitError, match=r"'data/p.jsonl': no such file or folder"):  # not user data's repo p.jsonl
        Recorded("data/p.jsonl")
    with pytest.raises(IITKitError, match=r"'': no such file or folder"):  # not the folder that one is in
        Recorded("")
    with pytest.raises(IITKitError, match=r"'squad': no such file or folder.* or a Hub dataset user/name"):
        Recorded("squad")
    file = jsonl(tmp_path / "p.jsonl", [plain(i) for i in range(9)])
    with pytest.raises(IITKitError, match=r"revision 'v1': .* is on this machine; revisions are for Hub datasets"):
        Recorded(file, revision="v1")
    with pytest.raises(IITKitError, match=r"config 'a': .*p.jsonl is one file; configs are for folders with a README"):
        Recorded(file, config="a")
    with pytest.raises(
        IITKitError, match=r"has no split 'tests'. Did you mean 'test'\? It has train, validation, test"
    ):
        Recorded(file).prompts("tests")


def test_shared_prompts_are_counted(tmp_path: Path) -> None:
    data = read(tmp_path, [plain(0), plain(1)], splits={"test": [plain(1), {**plain(2), "source": "base 0 is"}]})
    assert data.shared_prompts() == {("train", "test"): 3}


# --- dividing ---


def test_one_file_is_divided(tmp_path: Path) -> None:
    data = Recorded(jsonl(tmp_path / "p.jsonl", [plain(i) for i in range(100)]))
    assert sizes(data) == {"train": 60, "validation": 20, "test": 20}
    assert data.shared_prompts() == {}
    bases = {split: [base for base, *_ in told_of(data, split)] for split in data.splits()}
    assert sorted(base for of_split in bases.values() for base in of_split) == sorted(
        f"base {i} is" for i in range(100)
    )
    numbers = [int(base.split()[1]) for base in bases["test"]]
    assert numbers == sorted(numbers)  # a split keeps the file's order
    assert max(np.diff(numbers)) > 2  # and is drawn from all of it
    assert min(numbers) < 30 < 70 < max(numbers)


def test_the_seed_chooses_the_division(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "p.jsonl", [plain(i) for i in range(50)])

    def tested(seed: int) -> list[str]:
        return [base for base, *_ in told_of(Recorded(file, seed=seed), "test")]

    assert tested(0) == tested(0)
    assert tested(0) != tested(1)


def test_missing_splits_are_taken_from_train(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", [plain(i) for i in range(80)])
    jsonl(tmp_path / "test.jsonl", [plain(i) for i in range(80, 90)])
    assert sizes(Recorded(tmp_path)) == {"train": 60, "validation": 20, "test": 10}
    jsonl(tmp_path / "test.jsonl", [plain(0)])  # a test that shares a prompt with train says so
    found = Recorded(tmp_path).shared_prompts()
    assert sum(found.values()) == 2
    assert set(found) < {("train", "test"), ("validation", "test")}


def test_groups_by_hand() -> None:
    """0–2 share prompts in a chain, 3 and 5 share a source, 4 is alone."""
    pairs = [("a", "b"), ("c", "d"), ("d", "a"), ("e", "f"), ("g", "h"), ("i", "f")]
    rows = [{"base": base, "source": source, "label": " x"} for base, source in pairs]
    table = Table("t", columns_of(rows), range(1, 7))
    assert groups_of(read_rows(table, {})).tolist() == [0, 0, 0, 1, 2, 1]


def test_no_prompt_is_in_two_splits(tmp_path: Path) -> None:
    """Each of 30 prompts is a base three times and a source three times, in groups of three."""
    rows = [
        {**plain(0), "base": f"p {3 * g + a}", "source": f"p {3 * g + b}"}
        for g in range(10)
        for a in range(3)
        for b in range(3)
    ]
    data = Recorded(jsonl(tmp_path / "p.jsonl", rows))
    assert sizes(data) == {"train": 54, "validation": 18, "test": 18}
    assert data.shared_prompts() == {}
    seen = [{t.text for t in data.prompts(split)[0]} for split in data.splits()]
    assert [len(texts) for texts in seen] == [18, 6, 6]


def test_groups_of_unequal_size(tmp_path: Path) -> None:
    """A group of half the pairs can only be train's; the rest is shared out as well as it goes."""
    rows = [{**plain(i), "base": "the hub"} for i in range(10)] + [plain(i) for i in range(10, 20)]
    data = Recorded(jsonl(tmp_path / "p.jsonl", rows))
    assert sizes(data) == {"train": 12, "validation": 4, "test": 4}
    assert "the hub" in {t.text for t in data.prompts("train")[0]}


@pytest.mark.parametrize("n", [3, 4, 5])
def test_few_pairs(tmp_path: Path, n: int) -> None:
    found = sizes(Recorded(jsonl(tmp_path / "p.jsonl", [plain(i) for i in range(n)])))
    assert found == {"train": n - 2, "validation": 1, "test": 1}


def test_impossible_divisions(tmp_path: Path) -> None:
    linked = [{**plain(i), "source": "the hub"} for i in range(20)]
    with pytest.raises(IITKitError) as raised:
        Recorded(jsonl(tmp_path / "p.jsonl", linked))
    assert str(raised.value).endswith(
        "p.jsonl: 20 of 20 pairs are linked by shared prompts, so they cannot be divided into train, validation, test "
        "without a prompt in two: give files named by split"
    )
    with pytest.raises(IITKitError, match="18 of 20 pairs are linked"):
        Recorded(jsonl(tmp_path / "p.jsonl", [*linked[:18], plain(30), plain(31)]))
    with pytest.raises(IITKitError, match="1 of 2 pairs are linked"):
        Recorded(jsonl(tmp_path / "p.jsonl", [plain(0), plain(1)]))


def test_the_same_in_any_process(tmp_path: Path) -> None:
    """Neither the division nor an epoch's order hangs on PYTHONHASHSEED."""
    file = jsonl(tmp_path / "p.jsonl", [plain(i, variable=["a", "b"][i % 2], template=f"t{i % 5}") for i in range(60)])
    code = (
        "import sys, types, iitkit; room = types.ModuleType('iitkit.data'); "  # without Lightning, which takes seconds
        "room.__path__ = [iitkit.__path__[0] + '/data']; sys.modules['iitkit.data'] = room; "
        "from iitkit.data.recorded import Recorded; d = Recorded(sys.argv[1], seed=3); "
        "p = d.pairs('train', 2, ['b', 'a'], 20); "
        "print([t.text for t in d.prompts('train')[0]], d.prompts('train')[1].tolist(), p.base.tolist(), p.candidates)"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code, str(file)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1
    assert "base" in said.pop()


# --- epochs ---


def test_epochs(tmp_path: Path) -> None:
    data = read(tmp_path, [plain(i) for i in range(30)])

    def bases(epoch: int, n: int | None = None) -> list[int]:
        return [int(base.split()[1]) for base, *_ in told(data, data.pairs("train", epoch, ["x"], n))]

    assert bases(0) == list(range(30))  # the file's order
    assert bases(1) != bases(2)
    assert bases(1) != list(range(30))
    assert sorted(bases(1)) == sorted(bases(2)) == list(range(30))
    assert bases(1) == bases(1)
    # fewer: each at most once, others each epoch, all of them in the end
    assert bases(0, 10) == sorted(set(bases(0, 10)))
    assert len(set(bases(1, 10))) == 10
    assert sorted(bases(1, 10)) != sorted(bases(2, 10))
    assert {base for epoch in range(30) for base in bases(epoch, 10)} == set(range(30))
    with pytest.raises(IITKitError, match=r"31 train pairs: .* has 30 of x; no pair is used twice. Lower the size"):
        bases(0, 31)
    with pytest.raises(IITKitError, match="0 train pairs"):
        bases(0, 0)


# --- inputs that are no text ---


def test_symbols(tmp_path: Path) -> None:
    rows = [
        {"base": [3, 0, i], "source": [4, 0, i], "label": 1, "base_label": i % 2, "base_positions": {"a": [0, 1]}}
        | {"source_positions": {"a": [0, 2]}}
        for i in range(5)
    ]
    data = read(tmp_path, rows, splits=dict.fromkeys(("validation", "test"), rows[:1]))
    inputs = data.inputs("train")
    assert inputs is not None
    assert inputs.dtype == np.int64
    assert inputs.tolist() == [[k, 0, i] for i in range(5) for k in (3, 4)]
    assert {name: at.tolist() for name, at in data.places("train").items()} == {"a": [[0, 1], [0, 2]] * 5}
    pairs = data.pairs("train", 0, ["v"])
    assert pairs.candidates[0] == ["1", "0"]
    assert (pairs.label, pairs.base_label) == ([0] * 5, [1, 0, 1, 0, 1])
    assert pairs.flipped.tolist() == [True, False, True, False, True]


def test_images(tmp_path: Path) -> None:
    image = [[[0.5, 1], [0, 0.1]]]
    rows = [{"base": image, "source": [[[float(i), 0], [0, 0]]], "label": 2, "candidates": [0, 1, 2]} for i in range(3)]
    data = read(tmp_path, rows, splits=dict.fromkeys(("validation", "test"), rows[:1]))
    inputs = data.inputs("train")
    assert inputs is not None
    assert (inputs.dtype, inputs.shape) == (np.float32, (4, 1, 2, 2))
    assert inputs[0].tolist() == np.asarray(image, dtype=np.float32).tolist()
    assert inputs[1:, 0, 0, 0].tolist() == [0, 1, 2]
    assert data.pairs("train", 0, ["v"]).candidates[0] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"base": [1, 2, 3]}, "line 2: column 'base' is [1, 2, 3] (list): expected numbers of shape [2], as the first"),
        ({"base": "text"}, "line 2: column 'base' is 'text' (str): expected a list of numbers, as the first base is"),
        ({"source": [1, "b"]}, "line 2: column 'source' is [1, 'b'] (list): expected a list of numbers"),
        ({"source": [1, [2]]}, "expected a list of numbers"),
        ({"source": [True, False]}, "expected a list of numbers"),
        ({"source": [1.0, float("inf")]}, "expected a list of numbers"),
        ({"label": " a"}, "line 2: column 'label' is ' a' (str): expected the integer of a class or symbol"),
        ({"label": -1}, "column 'label' is -1 (int): expected the integer of a class or symbol"),
        ({"base_positions": {"w": [1, 3]}}, "offsets [1, 3] do not lie within the 2 places of '[1, 2]'"),
    ],
)
def test_wrong_numbers(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    fine = {"base": [1, 2], "source": [3, 4], "label": 0, "base_positions": {"w": [0, 1]}}
    fine |= {"source_positions": {"w": [0, 1]}}
    with pytest.raises(IITKitError) as raised:
        Recorded(jsonl(tmp_path / "p.jsonl", [fine, {**fine, **row}]))
    assert message in str(raised.value)


def test_text_and_numbers_do_not_mix(tmp_path: Path) -> None:
    numbers = {"base": [1, 2], "source": [3, 4], "label": 0, "base_label": 1}
    with pytest.raises(IITKitError, match=r"differ in kind of prompt \(text, numbers of shape \[2\]\)"):
        read(tmp_path, [numbers])
    longer = {**numbers, "base": [1, 2, 3], "source": [1, 2, 3]}
    with pytest.raises(
        IITKitError, match=r"differ in kind of prompt \(numbers of shape \[3\], numbers of shape \[2\]\)"
    ):
        read(tmp_path / "b", [numbers], splits={"validation": [longer], "test": [numbers]})


# --- speed ---


@pytest.mark.slow
def test_a_hundred_thousand_rows(tmp_path: Path) -> None:
    """Measured at under 4 s alone on a core of 2025; the limit is for machines that do other things besides."""
    import time

    rows = [
        {
            "base": f"The number {i:06d} makes",
            "source": f"The number {(7 * i) % 100_000 + 200_000:06d} makes",
            "label": " odd" if i % 2 else " even",
            "base_label": " odd",
            "candidates": [" odd", " even"],
            "variable": "parity",
            "base_positions": {"number": [11, 17]},
            "source_positions": {"number": [11, 17]},
        }
        for i in range(100_000)
    ]
    file = jsonl(tmp_path / "p.jsonl", rows)
    start = time.process_time()
    data = Recorded(file)
    took = time.process_time() - start
    assert sizes_of(data, "parity") == {"train": 60_000, "validation": 20_000, "test": 20_000}
    assert took < 10


def sizes_of(data: Recorded, variable: str) -> dict[str, int]:
    return {split: data.size(split, [variable]) for split in data.splits()}
