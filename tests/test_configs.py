"""Every config of iitkit's own runs, by its bare name and from any folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from running import files, iitkit

from iitkit import Grid, load
from iitkit.models.scratch import Network
from iitkit.models.scratch_saving import save_network

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))
FITS = [config.name for config in CONFIGS if "model" in yaml.safe_load(config.read_text(encoding="utf-8"))]
SOURCELESS = ["das_addition_smollm2.yaml"]
"""Fits of pairs that swap nothing, so that there is no random swap to compare with."""
VECTORS = [config.name for config in CONFIGS if config.name.startswith("vector_")]
MEASURES = [config.name for config in CONFIGS if config.name not in (*FITS, *VECTORS)]
"""Their commands are the first word of their names."""


def test_there_are_configs() -> None:
    assert len(FITS) >= 4
    assert {name.split("_")[0] for name in MEASURES} == {"trace", "patch"}


def stand_in(base: Any, tiny_gpt2: str, folder: Path) -> list[str]:
    """A tiny network for a base; one from scratch is as it is said, one that another config trains has its shape."""
    if isinstance(base, dict):
        return []
    if not base.startswith("runs/"):
        return ["--model.base", tiny_gpt2]
    maker = next(config for config in CONFIGS if config.stem == base.split("/")[1])
    made = yaml.safe_load(maker.read_text(encoding="utf-8"))["model"]["init_args"]["base"]
    network = Network.from_spec({"name": made["class_path"], **made["init_args"]}).build(0)
    return ["--model.base", str(save_network(network, folder))]


@pytest.mark.parametrize("name", FITS)
def test_config_runs(
    name: str, tiny_gpt2: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = yaml.safe_load(next(config for config in CONFIGS if config.name == name).read_text(encoding="utf-8"))
    base = stand_in(found["model"]["init_args"]["base"], tiny_gpt2, tmp_path_factory.mktemp("base") / "network")
    ran = iitkit(
        *("fit", "--config", name, *base, "--trainer.fast_dev_run", "true"),
        *("--data.sizes.train=16", "--data.sizes.validation=8", "--data.sizes.test=8"),
        *("--data.sizes.test_templates=8", "--data.batch_size=8", "--data.eval_batch_size=8"),
    )
    assert ran.code == 0, ran.err
    assert "trained, test " in ran.out
    if found["model"]["class_path"] == "ReFT":
        assert "plain, test " in ran.out
        assert "greedy samples, test prompts" in ran.out
    elif name not in SOURCELESS:
        placed = found["model"]["init_args"]["alignment"].values()
        whole = any(placement.get("intervention") == {"class_path": "Vanilla"} for placement in placed)
        assert ("random subspaces, test " in ran.out) is not whole  # a random part of all is no control
    assert files(tmp_path) == []  # a trial run leaves nothing


@pytest.mark.parametrize("name", MEASURES)
def test_config_measures(name: str, shallow_gpt2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command, config = name.split("_")[0], next(config for config in CONFIGS if config.name == name)
    found = yaml.safe_load(config.read_text(encoding="utf-8"))
    options = ["--base", shallow_gpt2]
    if "prompts" in found:  # of a random network's facts none is known: without answers it traces what it says
        rows = [{k: v for k, v in row.items() if command == "patch" or k != "answer"} for row in found["prompts"][:2]]
        (tmp_path / "prompts.yaml").write_text(yaml.safe_dump(rows), encoding="utf-8")
        options += ["--prompts", "prompts.yaml"]
    options += ["--draws", "2"] if command == "trace" else ["--pairs", "4"] if "task" in found else []
    ran = iitkit(command, "--config", name, *options)
    assert ran.code == 0, ran.err
    root = Path("runs") / config.stem
    written = [file for file in files(root) if not file.startswith("examples")]
    kinds = ("html", "json", "parquet", "png", "txt")
    assert written == ["config.yaml", *(f"{command}.{kind}" for kind in kinds)]
    grid = Grid.load(root / command)
    assert not grid.failed
    assert grid.coords["layer"] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", VECTORS)
def test_config_makes_a_vector(name: str, tiny_gpt2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = yaml.safe_load((CONFIGS[0].parent / name).read_text(encoding="utf-8"))
    ran = iitkit("vector", "--config", name, "--base", tiny_gpt2, "--tokens=2", "--good=[happy]", "--bad=[late]")
    assert ran.code == 0, ran.err
    root = Path("runs") / name.removesuffix(".yaml")
    assert [file for file in files(root) if not file.startswith("artifact")] == [
        *("config.yaml", "effects.jsonl", "vector.txt")
    ]
    assert list(load(root).interventions) == [f"layer_{found['keep']}"]
    assert len((root / "effects.jsonl").read_text().splitlines()) == 1 + 2 * len(found["layers"]) * len(
        found["strengths"]
    )


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_config_says_what_it_asks(config: Path) -> None:
    text = config.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert text.splitlines()[0].rstrip().endswith(("?", ".", ")"))
    found = yaml.safe_load(text)
    fits = config.name in FITS
    assert found["seed_everything" if fits else "seed"] == 0
    assert (found["trainer"] if fits else found)["default_root_dir"] == f"runs/{config.stem}"
