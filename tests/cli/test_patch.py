"""``iitkit patch``, through the command line on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from running import files, iitkit, said, write_config
from tiny import tiny_model, tiny_tokenizer

from iitkit import CounterfactualDataModule, Grid, Site, Sizes, attribute, patch, patch_paths
from iitkit.analysis.prompts import Prompt
from iitkit.models.grids import Engine
from iitkit.tasks import IndirectObject

PREFIX = "<|endoftext|>"
CLEAN = ["Yesterday, Mary walked home because", "Today, Sarah was happy because"]
CORRUPT = ["Yesterday, John walked home because", "Today, Tom was happy because"]
NAMES = [("Mary", "John"), ("Sarah", "Tom")]
ROWS = [
    {
        "clean": clean,
        "corrupt": corrupt,
        "answer": "she",
        "wrong": "he",
        "clean_spans": {"name": of_clean},
        "corrupt_spans": {"name": of_corrupt},
        "spans": {"end": "because"},
    }
    for clean, corrupt, (of_clean, of_corrupt) in zip(CLEAN, CORRUPT, NAMES, strict=True)
]


def write(folder: Path, network: str, **changes: Any) -> Path:
    config = {
        "base": network,
        "prefix": PREFIX,
        "prompts": ROWS,
        "default_root_dir": str(folder / "run"),
        **changes,
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}), encoding="utf-8")
    return file


def prompts(texts: list[str], which: int) -> list[Prompt]:
    return [Prompt(t, {"end": "because", "name": names[which]}) for t, names in zip(texts, NAMES, strict=True)]


def test_both_directions(shallow_gpt2: str, tmp_path: Path) -> None:
    positions = ["name", "end"]
    ran = iitkit("patch", "--config", write(tmp_path, shallow_gpt2, direction="both", positions=positions))
    assert ran.code == 0, ran.err
    grid = Grid.load(tmp_path / "run" / "patch")
    assert set(grid.dims) == {"layer", "position", "example", "direction"}
    assert grid.coords["direction"] == ["denoising", "noising"]
    clean, corrupt = prompts(CLEAN, 0), prompts(CORRUPT, 1)
    options: dict[str, Any] = {
        "tokenizer": tiny_tokenizer(),
        "prefix": PREFIX,
        "positions": positions,
        "answers": "she",
        "wrong": "he",
    }
    for direction, base, source in (("denoising", corrupt, clean), ("noising", clean, corrupt)):
        own = patch(tiny_model("gpt2"), base, source, direction=direction, **options)  # type: ignore[arg-type]
        found = grid.sel(direction=direction)
        assert own.about["metric"] == found.about["metric"] == "recovered_logit_difference"
        assert np.allclose(found.values, own.values, atol=1e-5)
        for name, numbers in own.references.items():
            assert np.allclose(found.references[name], numbers, atol=1e-5), name
    ends = [grid.sel(direction="noising").references[name].tolist() for name in ("nothing", "corrupt", "clean")]
    assert ends[0] == pytest.approx([1, 1], abs=1e-5)
    assert ends[1] == pytest.approx([0, 0], abs=1e-5)
    assert ends[2] == pytest.approx([1, 1], abs=1e-5)
    assert "recovered_logit_difference, denoising: clean 1.000" in ran.out
    assert "recovered_logit_difference, noising: clean 1.000" in ran.out
    drawn = [file for file in files(tmp_path / "run") if file.endswith((".png", ".html"))]
    assert drawn == [f"patch_{x}.{kind}" for x in ("denoising", "noising") for kind in ("html", "png")]
    again = iitkit("patch", "--config", tmp_path / "run" / "config.yaml")
    assert again.code == 0
    assert Grid.load(tmp_path / "run" / "patch").equals(grid)


def test_pairs_of_a_task(shallow_gpt2: str, tmp_path: Path) -> None:
    task = {
        "prompts": None,
        "task": {"class_path": "IndirectObject"},
        "variable": "io_position",
        "positions": ["subject", "last"],
        "pairs": 6,
        "seed": 4,
        "components": ["block_output", "attention_output"],
    }
    ran = iitkit("patch", "--config", write(tmp_path, shallow_gpt2, **task))
    assert ran.code == 0, ran.err
    grid = Grid.load(tmp_path / "run" / "patch")
    assert grid.shape == (2, 4, 2, 3, 6)
    data = CounterfactualDataModule(
        IndirectObject(), Sizes(train=32, validation=32, test=32, test_templates=32), prefix=PREFIX, seed=4
    )
    own = patch(
        tiny_model("gpt2"),
        data,
        tokenizer=tiny_tokenizer(),
        variable="io_position",
        positions=["subject", "last"],
        pairs=6,
        components=["block_output", "attention_output"],
    )
    assert np.array_equal(grid.values, own.values, equal_nan=True)
    assert "iia_flipped" in ran.out
    assert grid.about["variable"] == "io_position"
    assert {"attention_output", "block_output"} <= set(ran.out.split())


def test_the_data_of_a_fit(shallow_gpt2: str, tmp_path: Path) -> None:
    data = {
        "class_path": "CounterfactualDataModule",
        "init_args": {
            "task": {"class_path": "PronounGender"},
            "prefix": PREFIX,
            "sizes": {"train": 8, "validation": 8, "test": 8, "test_templates": 8},
        },
    }
    config = write(
        tmp_path, shallow_gpt2, prompts=None, prefix=None, data=data, variable="gender", positions="name", split="train"
    )
    ran = iitkit("patch", "--config", config, "--layers", "[1, 2]")
    assert ran.code == 0, ran.err
    grid = Grid.load(tmp_path / "run" / "patch")
    assert grid.sizes == {"layer": 2, "metric": 3, "example": 8}
    assert grid.about["position"] == "name"
    ran = iitkit("patch", "--config", config, "--prefix", PREFIX)
    assert said(ran) == "iitkit: prefix: the data have their own (data.init_args.prefix): leave it out"


def test_attribution_and_paths(shallow_gpt2: str, tmp_path: Path) -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    clean, corrupt = prompts(CLEAN, 0), prompts(CORRUPT, 1)
    options: dict[str, Any] = {"tokenizer": tokenizer, "prefix": PREFIX, "answers": "she", "wrong": "he"}
    config = write(tmp_path, shallow_gpt2, positions=["name", "end"])
    ran = iitkit("patch", "--config", config, "--method", "attribution", "--exact", 3)
    assert ran.code == 0, ran.err
    grid = Grid.load(tmp_path / "run" / "patch")
    own = attribute(model, corrupt, clean, positions=["name", "end"], exact=3, **options)
    assert np.allclose(grid.values, own.values, atol=1e-5, equal_nan=True)
    correlation = own.about["correlation"]
    assert f"attribution against patching, 3 of 8 cells: correlation {correlation:.3f}" in ran.out
    receivers = json.dumps([{"layer": 2, "head": 1}, {"layer": 3, "component": "mlp_input"}])
    ran = iitkit(
        *("patch", "--config", config, "--method", "path", "--components", "head_attention_value_output"),
        *("--heads", "all", "--receivers", receivers, "--default_root_dir", tmp_path / "paths"),
    )
    assert ran.code == 0, ran.err
    grid = Grid.load(tmp_path / "paths" / "patch")
    sites = [Site(2, "head_query_output", head=1), Site(3, "mlp_input")]
    own = patch_paths(model, corrupt, clean, positions=["name", "end"], receivers=sites, **options)
    assert grid.dims == ("layer", "head", "position", "example")
    assert np.allclose(grid.values, own.values, atol=1e-5)
    assert ran.out.startswith("2 examples: 32 cells each")
    assert grid.about["receiver"] == "layer 2 head_query_output head 1, layer 3 mlp_input"


def test_trained_interventions(shallow_gpt2: str, tmp_path: Path) -> None:
    fitted = iitkit("fit", "--config", write_config(tmp_path / "fit", shallow_gpt2), "--trainer.max_epochs", 1)
    assert fitted.code == 0, fitted.err
    config = write(
        tmp_path, shallow_gpt2, positions=["name", "last"], interventions=str(tmp_path / "fit" / "run"), metrics="rank"
    )
    ran = iitkit("patch", "--config", config)
    assert ran.code == 0, ran.err
    grid = Grid.load(tmp_path / "run" / "patch")
    assert grid.coords["component"] == ["block_output", "block_output: gender"]
    assert not np.array_equal(grid.values[0], grid.values[1])


def test_a_failed_cell_fails_the_exit_code(shallow_gpt2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Engine.table

    def failing(self: Engine, *args: Any, **kwargs: Any) -> Any:
        found = run(self, *args, **kwargs)
        found.failed[3] = "RuntimeError: no memory"
        found.values[3] = torch.nan
        return found

    monkeypatch.setattr(Engine, "table", failing)
    ran = iitkit("patch", "--config", write(tmp_path, shallow_gpt2, positions=["name", "end"]))
    assert ran.code == 1
    assert "iitkit: 2 values failed:" in ran.err
    assert "layer 1, position end, example Yesterday, John walked home because: RuntimeError: no memory" in ran.err


def test_pictures_of_more_axes_than_one_shows(shallow_gpt2: str, tmp_path: Path) -> None:
    components = ["head_query_output", "head_attention_value_output"]
    config = write(tmp_path, shallow_gpt2, components=components, heads="all", positions=["name", "end"])
    ran = iitkit("patch", "--config", config)
    assert (ran.code, ran.err) == (0, "")
    names = sorted(f"patch_{component}.png" for component in components)
    assert [file for file in files(tmp_path / "run") if file.endswith((".png", ".html"))] == ["patch.html", *names]
    again = iitkit("plot", tmp_path / "run", "--out", tmp_path / "again" / "grid")
    assert again.code == 0, again.err
    assert len(files(tmp_path / "again")) == 3
    receivers = json.dumps([{"layer": 2, "head": 1}])
    ran = iitkit(
        *("patch", "--config", config, "--method", "path", "--receivers", receivers),
        *("--metrics", "[rank, probability]", "--default_root_dir", tmp_path / "paths"),
    )
    assert (ran.code, ran.err) == (0, "")
    assert len([file for file in files(tmp_path / "paths") if file.endswith(".png")]) == 2


@pytest.mark.parametrize("direction", ["noising", "both"])
def test_references_that_fail_fail_the_exit_code(
    direction: str, shallow_gpt2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Engine.table

    def failing(self: Engine, base: Any, cells: Any, *args: Any, **kwargs: Any) -> Any:
        found = run(self, base, cells, *args, **kwargs)
        found.failed[len(cells) - 2] = "RuntimeError: no memory"
        found.values[len(cells) - 2] = torch.nan
        return found

    config = write(tmp_path, shallow_gpt2, positions=["name", "end"], direction=direction)
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "table", failing)
        ran = iitkit("patch", "--config", config)
    assert ran.code == 1
    assert ran.err.strip() == "iitkit: reference everything failed: RuntimeError: no memory"
    grid = Grid.load(tmp_path / "run" / "patch")
    assert not grid.failed
    assert np.isnan(grid.references["everything"]).all()
    assert iitkit("patch", "--config", config).code == 0  # what failed was not kept as done


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_ctrl_c_ends_both_directions(
    stop: int, shallow_gpt2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path, shallow_gpt2, direction="both", positions=["name", "end"], batch_size=1)
    calls: list[int] = []
    run = Engine.table

    def interrupted(self: Engine, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == stop:  # two examples in one direction, then in the other
            raise KeyboardInterrupt
        return run(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "table", interrupted)
        ran = iitkit("patch", "--config", config)
    assert ran.code == 130
    assert len(calls) == stop
    if stop == 1:
        assert ran.err.strip() == "iitkit: interrupted"
    else:
        assert ran.err.strip() == ("iitkit: interrupted; what is done is kept, and the same command goes on from there")
        grid = Grid.load(tmp_path / "run" / "patch")
        assert grid.about["interrupted"] is True
        assert grid.sizes["example"] == {2: 1, 3: 2, 4: 1}[stop]
        assert grid.coords["direction"] == ["denoising", "noising"][: {2: 1, 3: 1, 4: 2}[stop]]
    ran = iitkit("patch", "--config", config)
    assert ran.code == 0, ran.err
    again = Grid.load(tmp_path / "run" / "patch")
    fresh = iitkit("patch", "--config", config, "--default_root_dir", tmp_path / "fresh")
    assert fresh.code == 0
    assert np.allclose(again.values, Grid.load(tmp_path / "fresh" / "patch").values, atol=1e-6)


def test_a_folder_that_cannot_be_made(shallow_gpt2: str, tmp_path: Path) -> None:
    config = write(tmp_path, shallow_gpt2, default_root_dir=str(tmp_path / "config.yaml" / "run"))
    for command in ("patch", "trace", "lens"):
        root = f"--default_root_dir={tmp_path / 'config.yaml' / 'run'}"
        prompts = json.dumps([{"prompt": "Mary was", "subject": "Mary"} if command == "trace" else {"prompt": "Mary"}])
        own = ["--config", config] if command == "patch" else [f"--base={shallow_gpt2}", f"--prompts={prompts}", root]
        expected = f"iitkit: default_root_dir: {tmp_path / 'config.yaml'} is a file: give another folder"
        assert said(iitkit(command, *own)) == expected


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompts": None}, "inputs: expected one of prompts, task, data; given none of them"),
        ({"prompts": [{"clean": "Mary", "corupt": "John"}]}, "prompts[0]: no key 'corupt'. Did you mean 'corrupt'?"),
        ({"prompts": [{"clean": "Mary"}]}, "prompts[0]: corrupt is missing: expected text"),
        ({"prompts": [{"clean": "Mary", "corrupt": "John", "spans": 3}]}, "prompts[0]: spans is 3: expected a mapping"),
        (
            {"prompts": [{"clean": "Mary was", "corrupt": "John and Mary"}]},
            f"the base {PREFIX + 'John and Mary'!r} has 6 tokens, its source 4: name the positions",
        ),
        ({"prompts": [ROWS[0], {**ROWS[1], "answer": None}]}, f"answers: {PREFIX + CLEAN[1]!r} has none, which other"),
        (
            {"prompts": [{**ROWS[0], "corrupt": CLEAN[0], "spans": {}, "clean_spans": {}, "corrupt_spans": {}}]},
            "metric 'recovered_logit_difference': base and source of "
            f"{CLEAN[0]!r} are the same prompt, so there is nothing to recover",
        ),
        ({"positions": ["nam"]}, "site: position 'nam' is no span of the prompt. Did you mean 'name'?"),
        ({"split": "train"}, "split: is of a task or data: leave it out"),
        ({"seed": 3}, "seed: is of a task or data: leave it out"),
        ({"components": []}, "components: expected one or several"),
        ({"variable": "gender"}, "variable: is of a task or data: leave it out"),
        ({"hold": ["mlp_output"]}, "hold: method patch does not read it: leave it out"),
        ({"method": "attribution", "window": 3}, "window: method attribution does not read it: leave it out"),
        ({"method": "attribution", "metrics": ["rank", "top1"]}, "metrics: attribution is of one metric, given 2"),
        ({"method": "attribution", "metrics": "rank"}, "metric 'rank' has no gradient."),
        ({"method": "pathing"}, "method: given 'pathing', expected 'patch' or 'attribution' or 'path'"),
        ({"metrics": "iia"}, "metric 'iia' needs candidates and their counterfactual label"),
        ({"components": "blok_output"}, "patch: component 'blok_output' is unknown. Did you mean 'block_output'?"),
        ({"interventions": "nowhere"}, "nowhere is no artifact: it has no config.json"),
        (
            {"prompts": None, "task": {"class_path": "IndirectObjet"}},
            "task: no class 'IndirectObjet'. Did you mean 'IndirectObject'?",
        ),
        (
            {"prompts": None, "task": {"class_path": "IndirectObject"}, "positions": ["last"]},
            "pairs of a task or a dataset need the variable that is interchanged",
        ),
        (
            {
                "prompts": None,
                "task": {"class_path": "IndirectObject"},
                "positions": ["last"],
                "variable": "io_positon",
            },
            "alignment.last: variable",
        ),
        (
            {"prompts": None, "task": {"class_path": "IndirectObject"}, "direction": "both"},
            "direction: both is of clean and corrupt prompts",
        ),
    ],
)
def test_mistakes(changes: dict[str, Any], says: str, shallow_gpt2: str, tmp_path: Path) -> None:
    ran = iitkit("patch", "--config", write(tmp_path, shallow_gpt2, **changes))
    assert said(ran).startswith(f"iitkit: {says}")
    assert files(tmp_path) == ["config.yaml"]
