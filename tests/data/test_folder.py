"""Datasets as folders: the very same pairs when they are read back, for text and numbers, in both formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import iitkit.tasks
from iitkit.causal import CausalModel, Setting, Text, sample_inputs
from iitkit.causal.encodings import Images, Symbols, Vectors
from iitkit.causal.variables import Codes
from iitkit.data.folder import Card, hypothesis, rows_of, write_dataset
from iitkit.data.pairs import Design, Pairs, make_pairs
from iitkit.data.prompts import Arrays, symbols
from iitkit.data.recorded import Recorded
from iitkit.data.tables import read_table
from iitkit.errors import IITKitError
from iitkit.tasks import IndirectObject

FORMATS: list[Any] = ["jsonl", "parquet"]


@dataclass
class Prompts:
    """A pool, as far as it is written."""

    setting: Setting
    templates: Codes
    texts: Sequence[Text] = ()
    prompts: Any = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.templates)


def sums() -> CausalModel:
    """Whether a + b is even; the variables are numbers."""
    model = CausalModel("{a} plus {b} is", output="answer")
    model.variables(a=[1, 2, 3], b=[4, 5, 6])

    @model.mechanism
    def total(a: int, b: int) -> int:
        return a + b

    @model.mechanism
    def answer(total: int) -> str:
        return " even" if total % 2 == 0 else " odd"

    return model.compile()


def pool_of(model: CausalModel, n: int = 40, seed: int = 0) -> Prompts:
    setting, templates = sample_inputs(model, n, np.random.default_rng(seed), list(range(len(model.templates))), {})
    return Prompts(setting, templates, model.render(setting, templates))


def truths_of(model: CausalModel, pool: Prompts) -> list[str]:
    return model.answers(pool.setting, model.output)


Told = dict[str, Any]


def told(texts: Sequence[Text], templates: Codes, pairs: Pairs, variables: Sequence[str]) -> list[Told]:
    """Everything that a pair says, without numbers of rows."""

    def prompt(row: int) -> tuple[str, dict[str, tuple[int, int]], int]:
        return texts[row].text, texts[row].spans, int(templates[row])

    return [
        {
            "base": prompt(pairs.base[i]),
            "sources": [prompt(row) for row in pairs.sources[i].tolist()],
            "variables": [variables[v] for v in pairs.variables[i].tolist()],
            "flipped": bool(pairs.flipped[i]),
            "candidates": pairs.candidates[i],
            "label": pairs.candidates[i][pairs.label[i]],
            "base_label": pairs.candidates[i][pairs.base_label[i]],
            "other": None if pairs.other is None else variables[int(pairs.other[i])],
            "other_label": None if pairs.other_label is None else pairs.other_label[i],
        }
        for i in range(len(pairs))
    ]


# --- the very same pairs ---

IOI = ["io_position", "io_name"]
DESIGNS: dict[str, tuple[Callable[[], CausalModel], Design]] = {
    "text": (lambda: IndirectObject().model, Design(IOI, 0.5)),
    "two sources": (lambda: IndirectObject().model, Design(IOI, None, together=2)),
    "one source, two variables": (lambda: IndirectObject().model, Design(IOI, None, together=2, one_source=True)),
    "stages": (lambda: IndirectObject().model, Design(IOI, None, stages=[["io_position"], ["io_name"]])),
    "isolate": (lambda: IndirectObject().model, Design(IOI, 0.5, isolate=True)),
    "numbers in a text": (sums, Design(["a", "total"], 0.5)),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", DESIGNS)
def test_read_back_as_it_was(tmp_path: Path, name: str, format: Any) -> None:
    make, design = DESIGNS[name]
    model = make()
    expected, splits, truths = {}, {}, {}
    for number, split in enumerate(["train", "validation", "test", "test_templates"]):
        pool = pool_of(model, seed=number)
        pairs = make_pairs(model, pool, design, 30 + number, np.random.default_rng(number))
        said = truths_of(model, pool)
        splits[split] = rows_of(pool, pairs, design.variables, model, said)
        expected[split] = told(pool.texts, pool.templates, pairs, design.variables)
        truths[split] = {text.text: truth for text, truth in zip(pool.texts, said, strict=True)}
    folder = write_dataset(tmp_path / "d", splits, Card(hypothesis=hypothesis(model)), format)
    data = Recorded(folder)
    assert data.splits() == list(expected)
    assert data.base_labels_known is True
    assert set(data.variables() or []) == set(design.variables)
    for split in expected:
        texts, templates, _ = data.prompts(split)
        pairs = data.pairs(split, 0, design.variables)
        assert told(texts, templates, pairs, design.variables) == expected[split]
        assert len({(t.text, tuple(t.spans.items())) for t in texts}) == len(texts)
        assert data.truths(split) == [truths[split][text.text] for text in texts]


TASKS = [name for name in iitkit.tasks.__all__ if name not in ("Task", "Hypothesis", "words")]


@pytest.mark.parametrize("name", TASKS)
def test_every_task(tmp_path: Path, name: str) -> None:
    """Base, sources, label and base label of each pair, and the card, for any task."""
    task = getattr(iitkit.tasks, name)()
    model: CausalModel = task.model
    text = model.encoding is None
    setting, templates = sample_inputs(model, 30, np.random.default_rng(0), task.templates(False), {})
    if text:
        pool = Prompts(setting, templates, model.render(setting, templates))
        base = [prompt.text for prompt in pool.texts]
    else:
        inputs, spans = model.features(setting), model.encoding.spans if model.encoding else {}
        whole = inputs.ndim == 2 and inputs.dtype.kind == "i"
        pool = Prompts(setting, templates, [], symbols(inputs, spans) if whole else Arrays(inputs))
    variables = list(model.mechanisms)[:1]
    pairs = make_pairs(model, pool, Design(variables, None), 25, np.random.default_rng(0))
    found = rows_of(pool, pairs, variables, model, truths_of(model, pool))
    data = Recorded(write_dataset(tmp_path / "d", dict.fromkeys(("train", "validation", "test"), found)))
    read = data.pairs("test", 0, variables)
    assert read.flipped.tolist() == pairs.flipped.tolist()
    if text:
        texts = [prompt.text for prompt in data.prompts("test")[0]]
        assert [texts[row] for row in read.base] == [base[row] for row in pairs.base]
        assert [texts[row] for row in read.source] == [base[row] for row in pairs.source]
        for one, other in ((read.label, pairs.label), (read.base_label, pairs.base_label)):
            answers = [row[k] for row, k in zip(read.candidates, one, strict=True)]
            assert answers == [row[k] for row, k in zip(pairs.candidates, other, strict=True)]
    else:
        again = data.inputs("test")
        assert again is not None
        assert (again[read.base] == inputs[pairs.base]).all()
        assert (again[read.source] == inputs[pairs.source]).all()


def test_a_row_by_hand() -> None:
    model = sums()
    setting = model.run({"a": [1, 2], "b": [4, 4]})
    pool = Prompts(setting, np.zeros(2, dtype=np.int64), model.render(setting, np.zeros(2, dtype=np.int64)))
    pairs = Pairs(
        base=np.array([0]),
        sources=np.array([[1]]),
        variables=np.array([[1]]),
        flipped=np.array([True]),
        candidates=[[" even", " odd"]],
        label=[0],
        base_label=[1],
    )
    assert rows_of(pool, pairs, ["b", "a"], model, [" odd", " even"]) == [
        {
            "base": "1 plus 4 is",
            "source": "2 plus 4 is",
            "label": " even",
            "base_label": " odd",
            "flipped": True,
            "source_label": " even",
            "candidates": [" even", " odd"],
            "variable": "a",
            "template": 0,
            "source_template": 0,
            "base_positions": {"a": [0, 1], "b": [7, 8]},
            "source_positions": {"a": [0, 1], "b": [7, 8]},
            "base_values": {"a": 1, "b": 4, "total": 5, "answer": " odd"},
            "source_values": {"a": 2, "b": 4, "total": 6, "answer": " even"},
        }
    ]
    row = rows_of(pool, pairs, ["b", "a"])[0]
    assert not {"base_values", "source_label"} & set(row)


def test_several_sources_by_hand() -> None:
    texts = [Text("p", {}), Text("q", {}), Text("r", {})]
    pool = Prompts({}, np.array([2, 0, 1]), texts)
    pairs = Pairs(
        base=np.array([0]),
        sources=np.array([[1, 2]]),
        variables=np.array([[1, 0]]),
        flipped=np.array([False]),
        candidates=[[" x", " y"]],
        label=[0],
        base_label=[-1],  # nobody has asked the base model
        other=np.array([0]),
        other_label=[" y"],
    )
    assert rows_of(pool, pairs, ["v", "w"], truths=["", " a", " b"]) == [
        {
            "base": "p",
            "sources": ["q", "r"],
            "label": " x",
            "source_labels": [" a", " b"],
            "candidates": [" x", " y"],
            "variables": ["w", "v"],
            "other_variable": "v",
            "other_label": " y",
            "template": 2,
            "source_templates": [0, 1],
            "base_positions": {},
            "source_positions": [{}, {}],
        }
    ]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["symbols", "vectors", "images"])
def test_inputs_that_are_no_text(tmp_path: Path, kind: str, format: Any) -> None:
    """Labels become classes or symbols, as the network gives them; inputs are the same bit for bit."""
    values: list[Any] = [(0.1, -1.5), (2.0, 1 / 3)] if kind == "vectors" else [0, 1]
    encoding = {
        "symbols": Symbols("{a} {b} ="),
        "vectors": Vectors("a", "b"),
        "images": Images((1, 1, 2), lambda a, b: np.array([[[a + 0.1, b / 3]]])),
    }[kind]
    model = CausalModel(encoding, output="same")
    model.variables(a=values, b=values)

    @model.mechanism(domain=[False, True])
    def same(a: Any, b: Any) -> bool:
        return bool(a == b)

    model.compile()
    setting, templates = sample_inputs(model, 4, np.random.default_rng(0), [0], {})
    inputs = model.features(setting)
    spans = encoding.spans if kind == "symbols" else {}
    pool = Prompts(setting, templates, [], symbols(inputs, spans) if kind == "symbols" else Arrays(inputs))
    pairs = make_pairs(model, pool, Design(["a"], 0.5), 12, np.random.default_rng(0))
    rows = rows_of(pool, pairs, ["a"], model, truths_of(model, pool))
    folder = write_dataset(tmp_path / "d", dict.fromkeys(("train", "validation", "test"), rows), format=format)
    data = Recorded(folder)
    found = data.inputs("train")
    assert found is not None
    assert found.dtype == inputs.dtype
    read = data.pairs("train", 0, ["a"])
    assert (found[read.base] == inputs[pairs.base]).all()
    assert (found[read.sources] == inputs[pairs.sources]).all()
    assert read.flipped.tolist() == pairs.flipped.tolist()
    for i in range(len(pairs)):
        for one, other in ((read.label[i], pairs.label[i]), (read.base_label[i], pairs.base_label[i])):
            answer = {"False": False, "True": True}[pairs.candidates[i][other]]
            assert int(read.candidates[i][one]) == encoding.label(answer)
    assert data.spans == (["a", "b"] if kind == "symbols" else [])
    if kind == "symbols":
        assert data.places("train")["b"].tolist() == [[1, 2]] * len(found)


# --- the folder ---

ROW = {"base": "the cat is", "source": "the dogs are", "label": " a", "base_label": " b", "candidates": [" a", " b"]}


def rows(n: int, start: int = 0, **more: Any) -> list[dict[str, Any]]:
    return [{**ROW, "base": f"cat {i} is", "source": f"dog {i} is", **more} for i in range(start, start + n)]


SPLITS = {"train": rows(6), "validation": rows(2, 10), "test": rows(3, 20), "test_templates": rows(1, 30)}


@pytest.mark.parametrize("format", FORMATS)
def test_the_hubs_own_reader_reads_it(tmp_path: Path, format: Any) -> None:
    from datasets import load_dataset

    model = sums()
    pool = pool_of(model, 9)
    pairs = make_pairs(model, pool, Design(["a"], None), 12, np.random.default_rng(0))
    found = rows_of(pool, pairs, ["a"], model)
    folder = write_dataset(tmp_path / "sums", {"train": found, "test_templates": found[:5]}, format=format)
    read = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {split: len(part) for split, part in read.items()} == {"train": 12, "test_templates": 5}
    assert [dict(row) for row in read["train"]] == found


def test_the_card(tmp_path: Path) -> None:
    card = Card(
        title="Sums: even & odd",
        description="Small sums.",
        license="cc0-1.0",
        language="no",
        hypothesis=hypothesis(sums()),
        seed=7,
        settings={"task": "Sums", "flipped": 0.5},
        repo_id="user/sums",
    )
    folder = write_dataset(tmp_path / "sums", {**SPLITS, "train": [*rows(6), {**ROW, "label": " b"}]}, card)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "test.jsonl", "test_templates.jsonl", "train.jsonl", "validation.jsonl",
    ]  # fmt: skip
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "cc0-1.0",
        "language": ["no"],
        "pretty_name": "Sums: even & odd",
        "size_categories": ["n<1K"],
        "tags": ["iitkit", "counterfactual"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}.jsonl"} for split in SPLITS],
            }
        ],
    }
    for line in (
        "# Sums: even & odd",
        "Small sums.",
        "| `train` | 7 | 86% |",
        "| `test_templates` | 1 | 100% |",
        'pairs = load_dataset("user/sums", split="train")',
        '    dataset: {path: "user/sums"}',
        "| `base_label` | the answer on the base without it |",
        "| `a` | drawn | 1, 2, 3 |",
        "| `total` | `a`, `b` | 5, 6, 7, 8, 9 |",
        "| `answer` (the answer) | `total` | ' odd', ' even' |",
        "0. `{a} plus {b} is`",
        "| seed | `7` |",
        "| flipped | `0.5` |",
    ):
        assert line in body.splitlines(), line
    assert "| iitkit | `" in body
    assert "| numpy | `" in body


def test_the_card_has_the_models_graph() -> None:
    class Drawn(CausalModel):
        def mermaid(self) -> str:
            return "graph TD\n  a --> total\n"

    model = Drawn("{a} is", output="b")
    model.variables(a=[1, 2])

    @model.mechanism
    def b(a: int) -> str:
        return f" {a}"

    assert hypothesis(model.compile()).endswith("```mermaid\ngraph TD\n  a --> total\n```")


@pytest.mark.parametrize(
    ("n", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (9_999, "1K<n<10K"), (10_000, "10K<n<100K")]
)
def test_size_categories(tmp_path: Path, n: int, size: str) -> None:
    folder = write_dataset(tmp_path / "d", {"train": rows(n)})
    assert f"- {size}\n" in (folder / "README.md").read_text(encoding="utf-8")


def test_unknown_base_labels_are_said_to_be(tmp_path: Path) -> None:
    folder = write_dataset(
        tmp_path / "d", {"train": [{k: v for k, v in row.items() if k != "base_label"} for row in rows(4)]}
    )
    assert "| `train` | 4 | unknown |" in (folder / "README.md").read_text(encoding="utf-8")
    assert Recorded(folder).base_labels_known is False


def test_columns_are_taken_too_and_own_ones_kept(tmp_path: Path) -> None:
    columns = {key: [row[key] for row in rows(5)] for key in ROW} | {"id": list(range(5))}
    folder = write_dataset(tmp_path / "d", {"train": columns})
    table = read_table(folder / "train.jsonl", "train.jsonl")
    assert list(table.columns) == ["base", "source", "label", "base_label", "candidates", "id"]
    assert table.columns["id"] == [0, 1, 2, 3, 4]
    assert "| `id` |  |" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("format", FORMATS)
def test_values_of_mixed_types(tmp_path: Path, format: Any) -> None:
    """Neither format can say "a number or a text": such a variable's values are JSON, the others stay as they are."""
    values = [{"x": 1, "y": [1, 2]}, {"x": " one", "y": [3]}, {"x": True, "y": []}]
    train = [{**row, "base_values": value} for row, value in zip(rows(3), values, strict=True)]
    folder = write_dataset(tmp_path / "d", {"train": train}, format=format)
    found = read_table(folder / f"train.{format}", "train").columns["base_values"]
    assert [json.loads(row["x"]) for row in found] == [1, " one", True]
    assert [json.loads(row["y"]) if isinstance(row["y"], str) else row["y"] for row in found] == [[1, 2], [3], []]


def test_parquet_has_columns_of_their_types(tmp_path: Path) -> None:
    train = rows(3, base_positions={"w": [0, 3]}, source_positions={"w": [0, 3]}, flipped=True, template=0)
    folder = write_dataset(tmp_path / "d", {"train": train}, format="parquet")
    kinds = {field.name: str(field.type) for field in pq.read_schema(folder / "train.parquet")}
    assert kinds["label"] == "string"
    assert kinds["flipped"] == "bool"
    assert kinds["template"] == "int64"
    assert kinds["candidates"].startswith("list<")
    assert kinds["base_positions"].startswith("struct<w: list<")


# --- written whole or not at all ---


def test_ours_is_replaced(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", SPLITS)
    folder = write_dataset(tmp_path / "d", {"train": rows(4)}, format="parquet")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "train.parquet"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]  # nothing left over
    (tmp_path / "empty").mkdir()
    write_dataset(tmp_path / "empty", SPLITS)
    assert Recorded(tmp_path / "empty").size("train", ["x"]) == 6


@pytest.mark.parametrize("there", ["notes.txt", "README.md", "train.jsonl", "sub/train.jsonl"])
def test_anything_else_is_not(tmp_path: Path, there: str) -> None:
    file = tmp_path / "d" / there
    file.parent.mkdir(parents=True)
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(
        IITKitError, match=r"d (holds|was not written by iitkit).*, so it is not replaced: give another"
    ):
        write_dataset(tmp_path / "d", SPLITS)
    assert file.read_text(encoding="utf-8") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_note_beside_our_files_is_kept(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", SPLITS)
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(IITKitError, match=r"holds notes.txt, so it is not replaced: give another folder, or move that"):
        write_dataset(folder, SPLITS)
    with pytest.raises(IITKitError, match="is a file: expected a folder's name"):
        write_dataset(folder / "notes.txt", SPLITS)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("before", [False, True])
def test_an_interrupted_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, before: bool
) -> None:
    if before:
        write_dataset(tmp_path / "d", {"train": rows(3)})
    seen: list[Path] = []
    write = Path.write_text

    def fail(self: Path, *args: Any, **more: Any) -> int:
        if self.name == "README.md":
            seen.append(self)
            raise error
        return write(self, *args, **more)

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else IITKitError) as raised:
        write_dataset(tmp_path / "d", SPLITS)
    assert len(seen) == 1
    if error is not KeyboardInterrupt:
        assert str(raised.value) == f"cannot write the dataset {tmp_path / 'd'}: No space left on device"
    assert [path.name for path in tmp_path.iterdir()] == (["d"] if before else [])
    if before:
        assert Recorded(tmp_path / "d").size("train", ["x"]) == 1


def test_a_failed_rename_brings_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "d", {"train": rows(3)})
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if Path(target).name == "d" and not self.name.endswith("-old"):
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(IITKitError, match=r"cannot write the dataset .*: Permission denied"):
        write_dataset(tmp_path / "d", SPLITS)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert len((tmp_path / "d" / "train.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_written_for_all_to_read(tmp_path: Path) -> None:
    mode = write_dataset(tmp_path / "new" / "d", SPLITS).stat().st_mode
    assert mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "no split to write: expected one or more of train, validation, test, test_templates"),
        ({"trian": rows(2)}, "split 'trian': Did you mean 'train'? expected one of train, validation"),
        ({"train": []}, "split 'train' has no rows"),
        ({"train": {}}, "split 'train' has no rows"),
        (
            {"train": {"base": ["a"], "source": ["b", "c"], "label": [" x", " y"]}},
            "split 'train': column 'base' has 1 rows",
        ),
        ({"train": rows(2), "test": [{"base": "a", "label": " x"}]}, "split 'test' has no column 'source'."),
        ({"train": [*rows(2), {**ROW, "label": 3}]}, "split 'train' row 3: column 'label' is 3 (int): expected text"),
        ({"train": rows(1, base_positions={"w": "owl"})}, "split 'train' row 1: span 'w': 'owl' is not in 'cat 0 is'"),
        ({"train": rows(1, id={1, 2})}, "train.jsonl row 1 cannot be written as JSON: Object of type set is not"),
        ({"train": rows(1, score=float("nan"))}, "train.jsonl row 1 cannot be written as JSON: Out of range float"),
        ({"train": [{**ROW, "base": "\ud800"}]}, "train.jsonl row 1 cannot be written as JSON: 'utf-8' codec can't"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, splits: Any, message: str) -> None:
    with pytest.raises(IITKitError) as raised:
        write_dataset(tmp_path / "d", splits)
    assert message in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_parquet_that_cannot_be_written(tmp_path: Path) -> None:
    train = [{**rows(1)[0], "id": 1}, {**rows(1, 1)[0], "id": "two"}]
    with pytest.raises(
        IITKitError, match=r"train.parquet: column 'id' cannot be written as parquet: Could not convert"
    ):
        write_dataset(tmp_path / "d", {"train": train}, format="parquet")
    with pytest.raises(IITKitError, match="format 'csv': expected jsonl or parquet"):
        write_dataset(tmp_path / "d", {"train": train}, format="csv")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
