"""``iitkit data``: the report without a network, with one, saved pairs that train like the task they are of."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from running import files, iitkit, small

from iitkit.causal import CausalModel
from iitkit.data.recorded import Recorded

CONFIG = """\
seed_everything: 0
model:
  class_path: DAS
  init_args:
    base: {base}
    alignment:
      number: {{layer: 2, position: subject, intervention: {{rank: 2}}}}
    optimizer: {{class_path: Adam, init_args: {{lr: 0.05}}}}
data:
  class_path: CounterfactualDataModule
  init_args:
    {source}
    batch_size: 8
trainer: {{max_epochs: 1, default_root_dir: {root}, enable_progress_bar: false, accelerator: cpu}}
"""
SIZES = "sizes: {train: 24, validation: 12, test: 12, test_templates: 8}"


def config(folder: Path, base: str, source: str, name: str = "run") -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(CONFIG.format(base=base, source=source, root=folder / name), encoding="utf-8")
    return file


@pytest.fixture
def agreement(tiny_gpt2: str, tmp_path: Path) -> Path:
    return config(tmp_path, tiny_gpt2, f"task: {{class_path: Agreement}}\n    {SIZES}")


def without_a_network(*arguments: object) -> Any:
    """Run the command where no network can be loaded."""
    with mock.patch("iitkit.models.scratch.load_network", side_effect=AssertionError("a network was loaded")):
        return iitkit(*arguments)


def test_report_without_a_network(agreement: Path, tmp_path: Path) -> None:
    ran = without_a_network("data", "--config", agreement)
    assert ran.code == 0, ran.err
    assert "hypothesis: subject ← noun, plural" in ran.out
    assert "  train              24 pairs of    24 prompts,  50% flipped\n" in ran.out
    assert "splits: no prompts; no words of noun, attractor_noun in two splits" in ran.out
    assert "number of the source: " in ran.out
    assert 'warning: on all 24 pairs number predicts what "copy the source\'s output" predicts' in ran.out
    assert "base model right" not in ran.out
    assert "number: base token ' " in ran.out
    assert files(tmp_path / "run") == ["data_report.json", "data_report.txt"]
    assert (tmp_path / "run/data_report.txt").read_text(encoding="utf-8") in ran.out
    found = json.loads((tmp_path / "run/data_report.json").read_text(encoding="utf-8"))
    assert found["splits"]["test"] == {"pairs": 12, "prompts": 12, "flipped": 0.5}
    assert found["disagreement"]["hypotheses"] == ["number", "copy the source's output", "no change"]
    assert found["disagreement"]["matrix"] == [[0, 0, 0.5], [0, 0, 0.5], [0.5, 0.5, 0]]


@pytest.mark.parametrize("flag", [["--with-model"], ["--with_model=true"], ["--with-model", "true"]])
def test_report_with_the_network(agreement: Path, tmp_path: Path, flag: list[str]) -> None:
    ran = iitkit("data", "--config", agreement, *flag, "--most", "10")
    assert ran.code == 0, ran.err
    found = json.loads((tmp_path / "run/data_report.json").read_text(encoding="utf-8"))
    for split, of_split in found["splits"].items():
        n = min(10, of_split["prompts"])
        assert sum(group["n"] for group in of_split["accuracy_by"]["plural"].values()) == n, split
        total = sum(group["accuracy"] * group["n"] for group in of_split["accuracy_by"]["verb"].values())
        assert total / n == pytest.approx(of_split["accuracy"])
        assert f"base model right on {of_split['accuracy']:.1%} of prompts" in ran.out
    assert "train, right by template: " in ran.out


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_saved_pairs_train_like_their_task(agreement: Path, tiny_gpt2: str, tmp_path: Path, form: str) -> None:
    ran = without_a_network("data", "--config", agreement, "--save", tmp_path / "pairs", "--format", form)
    assert ran.code == 0, ran.err
    assert files(tmp_path / "pairs") == sorted(
        ["README.md", *(f"{split}.{form}" for split in ("train", "validation", "test", "test_templates"))]
    )
    readme = (tmp_path / "pairs" / "README.md").read_text(encoding="utf-8")
    assert "```mermaid" in readme
    (written,) = [b for b in re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL) if "mechanisms:" in b]
    model = CausalModel.from_dict(yaml.safe_load(written))
    assert model.values(model.run({n: [d.values[0]] for n, d in model.exogenous.items()}), "verb") == [" is"]
    read = Recorded(str(tmp_path / "pairs"))
    assert [read.size(split, ["number"]) for split in read.splits()] == [24, 12, 12, 8]
    recorded = config(tmp_path, tiny_gpt2, f"dataset: {{path: {tmp_path / 'pairs'}}}", "recorded")
    measured = []
    for file, root in ((agreement, tmp_path / "run"), (recorded, tmp_path / "recorded")):
        ran = iitkit("fit", "--config", file)
        assert ran.code == 0, ran.err
        measured.append(json.loads((root / "metrics.json").read_text(encoding="utf-8")))
    task, own = measured
    # the first epoch's pairs are the same, in the same order: so is the fit
    for key, value in task.items():
        if isinstance(value, float | int):
            assert own[key] == pytest.approx(value, abs=1e-4), key
    ran = iitkit("data", "--config", recorded)
    assert ran.code == 0, ran.err
    assert "24 pairs of    24 prompts,  50% flipped" in ran.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "csv"], "--format 'csv': expected jsonl or parquet"),
        (["--most", "5"], "--most 5: expected 1 or more, and --with_model true that reads it"),
        (["--private", "true"], "--private is of a dataset that is pushed: give --push user/name"),
        (["--data.task=Agreemnt"], "data.task: no class 'Agreemnt'. Did you mean 'Agreement'?"),
        (
            ["--model.alignment.number.position=subjct"],
            "position 'subjct' is no span of the prompt. Did you mean 'subject'",
        ),
        (["--data.flipped=2"], "data.flipped: 2.0: expected a share from 0 to 1, or null"),
        (["--sve", "x"], "Did you mean 'save'?"),
        (["--data.balance=[outputs]"], "data.balance"),
    ],
)
def test_wrong_options(agreement: Path, tmp_path: Path, options: list[str], message: str) -> None:
    ran = without_a_network("data", "--config", agreement, *options)
    assert ran.code == 2
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) <= 2
    assert files(tmp_path / "run") == []


def test_nothing_is_written_over(agreement: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    ran = without_a_network("data", "--config", agreement, "--save", tmp_path / "mine")
    assert ran.code == 2
    assert "thesis.tex" in ran.err
    assert files(tmp_path / "mine") == ["thesis.tex"]


def test_a_config_of_iitkits_own(tiny_gpt2: str, tmp_path: Path) -> None:
    ran = without_a_network("data", "--config", "das_smollm2_ioi.yaml", *small(tiny_gpt2, tmp_path / "ioi"))
    assert ran.code == 0, ran.err
    assert "io_position" in ran.out


def test_a_config_that_fit_resumes_by(agreement: Path) -> None:
    agreement.write_text(agreement.read_text(encoding="utf-8") + "ckpt_path: last\n", encoding="utf-8")
    ran = without_a_network("data", "--config", agreement)
    assert ran.code == 0, ran.err  # the data are the same, resumed or not


def test_help_says_what_there_is() -> None:
    ran = iitkit("data", "--help")
    assert ran.code == 0
    for option in ("--with_model", "--save", "--push", "--format"):
        assert option in ran.out
    ran = iitkit("data")
    assert ran.code == 2
    assert "data, model are missing" in ran.err


SCRIPT = """
import os, sys

import loopback

with loopback.hub() as hub:
    os.environ.update(loopback.environment(hub.url, sys.argv[2]))
    from iitkit.cli import main

    code = main(["data", "--config", sys.argv[1], "--push", "user/pairs", "--private", "true"])
    repo = hub.repos["datasets", "user/pairs"]
    print(code, repo.private, sorted(repo.files("main")))
    from iitkit.data.recorded import Recorded

    read = Recorded("user/pairs")
    print([read.size(split, ["number"]) for split in ("train", "validation", "test", "test_templates")])
"""


def test_pairs_are_pushed_and_read_from_the_hub(agreement: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(agreement), str(tmp_path / "hf")],
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *_, pushed, listed, sizes = done.stdout.strip().splitlines()
    assert pushed.startswith("pushed: user/pairs at ")
    splits = ("test", "test_templates", "train", "validation")
    assert listed == f"0 True {sorted(['.gitattributes', 'README.md', *(f'{split}.jsonl' for split in splits)])}"
    assert sizes == "[24, 12, 12, 8]"
