"""``iitkit vector``: texts from lists and files, the artifact, the trial, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from running import files, iitkit

import iitkit as package
from iitkit.cli.texts import texts_of

POSITIVE, NEGATIVE = ["When Mary was happy", "Today she is"], ["Mary stayed", "On Monday, John was late"]
SAID = (f"--positive={json.dumps(POSITIVE)}", f"--negative={json.dumps(NEGATIVE)}")


def test_vector_is_tried_and_kept(shallow_gpt2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--layers=[1,2]", "--keep=2", '--prompts=["The", "When Mary"]', "--good=[happy]", "--bad=[late]")
    ran = iitkit("vector", "--base", shallow_gpt2, *SAID, *options, "--strengths=[-1,2]", "--tokens=3")
    assert ran.code == 0, ran.err
    written = [file for file in files(Path("runs/vector")) if not file.startswith("artifact/")]
    assert written == ["config.yaml", "effects.jsonl", "vector.txt"]
    model, tokenizer = package.load_base(shallow_gpt2)
    expected = package.vector(model, tokenizer, POSITIVE, NEGATIVE, layers=2)
    found = package.load("runs/vector")
    assert list(found.interventions) == ["layer_2"]
    kept = found.interventions["layer_2"].state_dict()["edit.vector"]
    assert torch.equal(kept, expected.vectors["layer_2"])
    assert found.config["made"]["positive"] == 2
    effects = [json.loads(line) for line in Path("runs/vector/effects.jsonl").read_text().splitlines()]
    kinds = [("vector", -1.0), ("random", -1.0), ("vector", 2.0), ("random", 2.0)]
    assert [(e["name"], e["kind"], e["strength"]) for e in effects] == [
        ("none", "none", 0.0),
        *((name, *kind) for name in ("layer_1", "layer_2") for kind in kinds),
    ]
    said = [line for line in ran.out.splitlines() if line]
    assert [line for line in Path("runs/vector/vector.txt").read_text().splitlines() if line] == said[:-1]
    assert said[-1] == "artifact: runs/vector/artifact"
    assert "mean_difference of 2 positive and 2 negative prompts, read at last" in ran.out


def test_without_prompts_nothing_is_tried(shallow_gpt2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = iitkit("vector", "--base", shallow_gpt2, *SAID, "--method=pca", "--default_root_dir=out")
    assert ran.code == 0, ran.err
    assert "effects.jsonl" not in files(Path("out"))
    assert list(package.load("out").interventions) == [f"layer_{i}" for i in range(4)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--good=[happy]",), "good: only prompts are judged by it: give prompts, or leave it out"),
        (("--tokens=3",), "tokens: only prompts are judged by it"),
        (("--penalty=1",), "penalty: only the probe has one, the method is 'mean_difference'"),
        (("--strengths=[1]",), "strengths: only prompts are judged by it"),
        (("--prompts=[The]", "--good=[happy]"), "bad is missing: prompts are judged by good and bad words"),
        (("--layers=[1,2]", "--keep=3"), "keep 3: expected one of the layers [1, 2]"),
        (("--method=mean",), "method: given 'mean', expected 'mean_difference' or 'pca' or 'probe'"),
        (("--layers=[9]",), "has layers 0 to 3"),
        (("--positive=nowhere.txt",), "positive: no file 'nowhere.txt': give a .txt, .jsonl, .json or .yaml file"),
        (("--penalty=0", "--method=probe"), "penalty 0.0: expected a number above 0"),
    ],
)
def test_refused(options: tuple[str, ...], said: str, shallow_gpt2: str, tmp_path: Path) -> None:
    ran = iitkit("vector", "--base", shallow_gpt2, *SAID, *options, f"--default_root_dir={tmp_path / 'out'}")
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) <= 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "one\n\n two\n"),
        ("a.jsonl", '{"text": "one"}\n" two"\n'),
        ("a.json", '["one", {"prompt": " two"}]'),
        ("a.yaml", "- one\n- text: ' two'\n"),
    ],
)
def test_texts_of_files(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert texts_of("positive", str(tmp_path / name)) == ["one", " two"]


def test_texts_of_our_own_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(texts_of("prompts", "reviews/neutral.jsonl")) == 8
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews" / "neutral.jsonl").write_text('"mine"\n')
    assert texts_of("prompts", "reviews/neutral.jsonl") == ["mine"]
    with pytest.raises(package.IITKitError, match="no file"):
        texts_of("prompts", "../datasets/reviews/neutral.jsonl")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", "{", "a.jsonl cannot be read"),
        ("a.jsonl", '{"txt": "one"}', r"a.jsonl line 1: \{'txt': 'one'\}: expected a text under text"),
        ("a.yaml", "- no", r"a.yaml\[0\]: False: expected text, in quotes"),
        ("a.yaml", "text: one", "holds a dict: expected a list of texts"),
        ("a.txt", "\n\n", "positive: there is no text"),
        ("a.json", '["one", "  "]', r"a.json\[1\]: '  ': expected text"),
    ],
)
def test_texts_that_are_none(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(package.IITKitError, match=said):
        texts_of("positive", str(tmp_path / name))
