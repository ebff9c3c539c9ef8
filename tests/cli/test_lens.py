"""``iitkit lens``, through the command line on a tiny network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from running import files, iitkit, said, write_config
from tiny import tiny_model, tiny_tokenizer

import iitkit as library
from iitkit import Grid, lens
from iitkit.analysis.prompts import Prompt
from iitkit.tasks import PronounGender

ROWS = [
    {"prompt": "Yesterday, Mary walked home because", "answer": "she", "wrong": "he", "spans": {"name": "Mary"}},
    {"prompt": "Mary was sick", "answer": "she", "wrong": "he", "spans": {"name": "Mary"}},
]


def write(folder: Path, network: str, **changes: Any) -> Path:
    config = {"base": network, "prompts": ROWS, "default_root_dir": str(folder / "run"), **changes}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}), encoding="utf-8")
    return file


def test_several_prompts(shallow_gpt2: str, tmp_path: Path) -> None:
    ran = iitkit("lens", "--config", write(tmp_path, shallow_gpt2, positions=["name", "last"]))
    assert ran.code == 0, ran.err
    grid = Grid.load(tmp_path / "run" / "lens")
    texts = [Prompt(row["prompt"], row["spans"]) for row in ROWS]  # type: ignore[arg-type]
    own = lens(tiny_model("gpt2"), tiny_tokenizer(), texts, "she", "he", positions=["name", "last"])
    assert np.allclose(grid.values, own.values, atol=1e-5)
    assert "logit_difference: clean" in ran.out
    kinds = ("html", "json", "parquet", "png", "txt")
    assert files(tmp_path / "run") == ["config.yaml", *(f"lens.{kind}" for kind in kinds)]


def test_one_prompt_and_its_words(shallow_gpt2: str, tmp_path: Path) -> None:
    ran = iitkit("lens", "--config", write(tmp_path, shallow_gpt2, prompts=ROWS[:1]))
    assert ran.code == 0, ran.err
    grid = Grid.load(tmp_path / "run" / "lens")
    assert grid.dims == ("layer", "position")
    lines = ran.out.splitlines()
    start = lines.index("likeliest tokens, plain")
    assert len(lines[start + 2 : start + 6]) == 4
    for layer, line in enumerate(lines[start + 2 : start + 6]):
        assert line.split()[0] == str(layer)
        assert all(repr(token) in line for token in grid.about["tokens"]["plain"][layer])


def test_under_a_trained_intervention(shallow_gpt2: str, tmp_path: Path) -> None:
    assert iitkit("fit", "--config", write_config(tmp_path / "fit", shallow_gpt2), "--trainer.max_epochs", 1).code == 0
    fitted = tmp_path / "fit" / "run"
    rows = [{**row, "source": row["prompt"].replace("Mary", "John")} for row in ROWS]  # type: ignore[attr-defined]
    ran = iitkit("lens", "--config", write(tmp_path, shallow_gpt2, prompts=rows, interventions=str(fitted)))
    assert ran.code == 0, ran.err
    grid = Grid.load(tmp_path / "run" / "lens")
    assert grid.coords["run"] == ["plain", "intervened"]
    own = lens(
        tiny_model("gpt2"),
        tiny_tokenizer(),
        [row["prompt"] for row in rows],
        "she",
        "he",
        interventions=library.load(fitted),
        sources=[row["source"] for row in rows],
    )
    assert np.allclose(grid.values, own.values, atol=1e-5, equal_nan=True)
    drawn = [file for file in files(tmp_path / "run") if file.endswith(".png")]
    assert drawn == ["lens_intervened.png", "lens_plain.png"]
    assert "logit_difference, intervened" in ran.out


def test_prompts_of_a_task(shallow_gpt2: str, tmp_path: Path) -> None:
    task = {"class_path": "PronounGender"}
    config = write(tmp_path, shallow_gpt2, prompts=None, task=task, most=5, positions=["name", "last"], seed=3)
    ran = iitkit("lens", "--config", config, "--prefix", "<|endoftext|>")
    assert ran.code == 0, ran.err
    grid = Grid.load(tmp_path / "run" / "lens")
    assert grid.shape == (4, 2, 5)
    data = library.CounterfactualDataModule(
        PronounGender(), library.Sizes(train=32, validation=32, test=32, test_templates=32), seed=3
    )
    texts, truths = data.source.prompts("test")[0][:5], data.source.truths("test")[:5]
    prompts = [Prompt(text.text, text.spans) for text in texts]
    own = lens(
        tiny_model("gpt2"), tiny_tokenizer(), prompts, truths, prefix="<|endoftext|>", positions=["name", "last"]
    )
    assert set(truths) == {" he", " she"}
    assert np.allclose(grid.values, own.values, rtol=1e-5)
    assert grid.about["answers"] == truths


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompts": None}, "inputs: expected one of prompts, task, data; given none of them"),
        ({"most": 3}, "most: is of a task or data: leave it out"),
        (
            {"prompts": None, "task": {"class_path": "PronounGender"}, "split": "tset"},
            "split 'tset': Did you mean 'test'? expected one of",
        ),
        ({"prompts": [{"promt": "Mary"}]}, "prompts[0]: no key 'promt'. Did you mean 'prompt'?"),
        ({"prompts": [ROWS[0], {"prompt": "Mary"}]}, "prompts[1]: wrong is missing, which other prompts have"),
        ({"prompts": [{"prompt": "Mary", "source": "John"}]}, "source: only interventions take anything from one"),
        ({"strength": 2.0}, "strength: only interventions read it: give interventions, or leave it out"),
        ({"metrics": "logit_diference"}, "no metric 'logit_diference'. Did you mean 'logit_difference'?"),
        ({"positions": ["nam"]}, "site: position 'nam' is no span of the prompt. Did you mean 'name'?"),
    ],
)
def test_mistakes(changes: dict[str, Any], says: str, shallow_gpt2: str, tmp_path: Path) -> None:
    ran = iitkit("lens", "--config", write(tmp_path, shallow_gpt2, **changes))
    assert said(ran).startswith(f"iitkit: {says}")
    assert files(tmp_path) == ["config.yaml"]
