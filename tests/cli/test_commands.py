"""The commands on a small run: what they write, that they repeat, and that they agree with one another."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from running import Ran, files, iitkit, metrics, said, same_weights, weights, write_config
from safetensors.torch import load_file

from iitkit import load
from iitkit.metrics import wilson
from iitkit.tasks import words

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("test", "test_templates", "train", "validation")
ADVERTS = ("💡", "litlogger", "LitLogger", "in eval mode at the start", "LeafSpec", "Lightning AI", "Seed set")


@dataclass(frozen=True)
class Fitted:
    config: Path
    root: Path
    ran: Ran


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, shallow_gpt2: str) -> Fitted:
    """A real fit of two epochs."""
    config = write_config(tmp_path_factory.mktemp("commands"), shallow_gpt2)
    return Fitted(config, config.parent / "run", iitkit("fit", "--config", config))


def test_what_a_run_leaves(fitted: Fitted) -> None:
    assert fitted.ran.code == 0, fitted.ran.err
    left = [name for name in files(fitted.root) if not name.startswith("tensorboard")]
    assert left == [
        "artifact/README.md",
        "artifact/config.json",
        "artifact/interventions.safetensors",
        "artifact/metrics.json",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "config.yaml",
        "data_report.txt",
        "metrics.csv",
        "metrics.json",
    ]
    assert (fitted.root / "data_report.txt").read_text(encoding="utf-8").strip() in fitted.ran.out


def test_metrics(fitted: Fitted) -> None:
    found = metrics(fitted.root)
    sizes = {"test": 20, "test_templates": 8, "train": 24, "validation": 24}  # of train as many as of validation
    assert len(found) == len(SPLITS) * (11 + 10 + 10) + 1  # accuracy, rates, counts and intervals, of three rows
    for split in SPLITS:
        for control, draws in (("", 1), ("full_vector", 1), ("random_subspace", 5)):
            group = split if not control else control if split == "test" else f"{control}/{split}"
            n, flipped, kept = (found[f"{group}/{key}"] for key in ("n", "n_flipped", "n_kept"))
            assert n == draws * sizes[split] == flipped + kept
            assert flipped == n / 2 or split == "train"  # the first 24 of 48 pairs need not be half flipped
            right = [found[f"{group}/iia_flipped"] * flipped, found[f"{group}/iia_kept"] * kept]
            assert all(abs(count - round(count)) < 1e-4 for count in right)
            assert found[f"{group}/iia"] == pytest.approx(sum(right) / n, abs=1e-6)
            for rate, count in (("iia", n), ("iia_flipped", flipped), ("iia_kept", kept)):
                value = found[f"{group}/{rate}"]
                bounds = [round(bound, 4) for bound in wilson(round(value * count), count)]
                assert found[f"{group}/{rate}_ci95"] == pytest.approx(bounds, abs=1.1e-4)
                assert bounds[0] <= value <= bounds[1]
            assert 0 <= found[f"{group}/top1"] <= 1
        assert 0 < found[f"{split}/task_accuracy"] < 1
    assert 0.5 <= found["test/label_chance"] < 0.6


def test_trained_numbers_differ_from_the_controls(fitted: Fitted) -> None:
    """Layer 3's last position decides the answer: a full swap gives the source's own answer."""
    found = metrics(fitted.root)
    groups = ("test", "full_vector", "random_subspace")
    assert len({(found[f"{group}/iia_flipped"], found[f"{group}/iia_kept"]) for group in groups}) == 3


def test_table(fitted: Fitted) -> None:
    found, out = metrics(fitted.root), fitted.ran.out
    assert "gender = gender at layer 3 block_output, position last" in out
    for label, group in (
        ("trained, test", "test"),
        ("trained, validation", "validation"),
        ("full vector, test", "full_vector"),
        ("random subspaces, test_templates", "random_subspace/test_templates"),
    ):
        row = next(line for line in out.splitlines() if line.startswith(f"{label}  "))
        printed = re.findall(r"([\d.]+) \[([\d.]+), ([\d.]+)\] (\d+)", row)
        assert len(printed) == 3
        for (value, low, high, n), rate, count in zip(
            printed, ("iia", "iia_flipped", "iia_kept"), ("n", "n_flipped", "n_kept"), strict=True
        ):
            assert float(value) == pytest.approx(found[f"{group}/{rate}"], abs=5.1e-4)
            assert [float(low), float(high)] == pytest.approx(found[f"{group}/{rate}_ci95"], abs=6e-4)
            assert int(n) == found[f"{group}/{count}"]
    assert f"label chance {found['test/label_chance']:.3f}" in out


def test_no_advertisements(fitted: Fitted) -> None:
    assert [word for word in ADVERTS if word in fitted.ran.out + fitted.ran.err] == []


def test_checkpoints_hold_ours_and_nothing_of_the_base(fitted: Fitted) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        file = fitted.root / "checkpoints" / name
        assert file.stat().st_size < 100_000
        assert list(weights(file)) == ["interventions.gender.space.free"]
        assert weights(file)["interventions.gender.space.free"].shape == (32, 2)
    last = torch.load(fitted.root / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (1, 12)


def test_best_is_the_epoch_with_the_highest_flipped_iia(fitted: Fitted) -> None:
    with (fitted.root / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["val/iia_flipped"]]
    values = [float(row["val/iia_flipped"]) for row in rows]
    assert len(values) == 2
    best = torch.load(fitted.root / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == values.index(max(values))
    states = list(best["callbacks"].values())
    monitors = [state["best_model_score"] for state in states if state.get("monitor") == "val/iia_flipped"]
    assert [float(score) for score in monitors] == [pytest.approx(max(values[: best["epoch"] + 1]))]
    assert any("Patient" in key for key in best["callbacks"])
    # what the test measured is the best epoch, not the last
    assert metrics(fitted.root)["validation/iia_flipped"] == pytest.approx(max(values), abs=1e-6)


def test_artifact(fitted: Fitted, shallow_gpt2: str) -> None:
    config = json.loads((fitted.root / "artifact" / "config.json").read_text(encoding="utf-8"))
    values, answers, largest = (config["placements"]["gender"].pop(key) for key in ("values", "answers", "largest"))
    assert ([entry["value"] for entry in values], answers, largest > 0) == (["female", "male"], [" she", " he"], True)
    assert config["placements"] == {
        "gender": {
            "layer": 3,
            "component": "block_output",
            "position": "last",
            "variable": "gender",
            "width": 32,
            "input_width": 32,
            "intervention": {"name": "LowRankSubspace", "rank": 2},
        }
    }
    base = config["base"]
    assert (base["id"], base["architecture"], base["width"], base["layers"]) == (shallow_gpt2, "GPT2LMHeadModel", 32, 4)
    assert re.fullmatch(r"sha256:[0-9a-f]{16}", base["revision"])
    assert re.fullmatch(r"sha256:[0-9a-f]{32}", base["weights"])
    assert list(config["tokenizer"]) == ["vocabulary", "chat_template"]
    assert config["versions"]["torch"] == torch.__version__
    assert (config["task"], config["variables"]) == ("PronounGender", {"gender": ["female", "male"]})
    found = metrics(fitted.root)
    assert load(fitted.root).metrics == {key: found[key] for key in found if not key.endswith("_ci95")}
    tensors = load_file(fitted.root / "artifact" / "interventions.safetensors")
    assert list(tensors) == ["gender.space.basis", "gender.values"]
    basis = tensors["gender.space.basis"]
    free = weights(fitted.root / "checkpoints" / "best.ckpt")["interventions.gender.space.free"]
    assert (basis.T @ basis - torch.eye(2)).abs().max() <= 1e-5
    assert (basis @ (basis.T @ free) - free).abs().max() <= 1e-5 * free.abs().max()  # spans what was trained


def test_same_seed_same_numbers(fitted: Fitted, tmp_path: Path) -> None:
    again = iitkit("fit", "--config", fitted.config, f"--trainer.default_root_dir={tmp_path}")
    assert again.code == 0
    assert (tmp_path / "metrics.json").read_bytes() == (fitted.root / "metrics.json").read_bytes()
    for name in ("best.ckpt", "last.ckpt"):
        assert same_weights(tmp_path / "checkpoints" / name, fitted.root / "checkpoints" / name)


def test_another_seed_gives_others(fitted: Fitted, tmp_path: Path) -> None:
    other = iitkit("fit", "--config", fitted.config, f"--trainer.default_root_dir={tmp_path}", "--seed_everything=1")
    assert other.code == 0
    assert metrics(tmp_path) != metrics(fitted.root)
    assert not same_weights(tmp_path / "checkpoints" / "last.ckpt", fitted.root / "checkpoints" / "last.ckpt")
    assert (tmp_path / "data_report.txt").read_text() != (fitted.root / "data_report.txt").read_text()


def test_a_saved_config_runs_again(fitted: Fitted, tmp_path: Path) -> None:
    saved = tmp_path / "saved.yaml"
    shutil.copy(fitted.root / "config.yaml", saved)
    again = iitkit("fit", "--config", saved, f"--trainer.default_root_dir={tmp_path / 'run'}")
    assert again.code == 0
    assert (tmp_path / "run" / "metrics.json").read_bytes() == (fitted.root / "metrics.json").read_bytes()


@pytest.fixture
def copied(fitted: Fitted, tmp_path: Path) -> Path:
    """The run, copied: a command in it changes no other test's."""
    root = tmp_path / "run"
    shutil.copytree(fitted.root, root)
    return root


def test_test_repeats_the_numbers_of_fit(fitted: Fitted, copied: Path) -> None:
    before = {name: (copied / name).read_bytes() for name in files(copied)}
    (copied / "metrics.json").unlink()
    ran = iitkit("test", "--config", fitted.config, f"--trainer.default_root_dir={copied}", "--ckpt_path", "best")
    assert ran.code == 0, ran.err
    assert {name: (copied / name).read_bytes() for name in files(copied)} == before  # also the log and the artifact
    assert ran.out.count("trained, test ") == 1
    assert "DataLoader" not in ran.out  # Lightning's own tables, four times the same, are silenced
    saved = copied / "config.yaml"  # what fit saved serves the other commands too
    last = iitkit("test", "--config", saved, f"--trainer.default_root_dir={copied}", "--ckpt_path", "last")
    assert last.code == 0
    assert metrics(copied) != metrics(fitted.root)  # last is another checkpoint


def test_validate_prints_the_best_number(fitted: Fitted, copied: Path) -> None:
    ran = iitkit("validate", "--config", fitted.config, f"--trainer.default_root_dir={copied}", "--ckpt_path=best")
    assert ran.code == 0, ran.err
    found = re.search(r"val/iia_flipped\s+│\s+([\d.]+)", ran.out)
    assert found is not None
    assert float(found[1]) == pytest.approx(metrics(fitted.root)["validation/iia_flipped"], abs=1e-6)
    assert metrics(copied) == metrics(fitted.root)


def test_predict(fitted: Fitted, copied: Path) -> None:
    ran = iitkit("predict", "--config", fitted.config, f"--trainer.default_root_dir={copied}", "--ckpt_path", "best")
    assert ran.code == 0, ran.err
    lines = (copied / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    found = metrics(fitted.root)
    assert len(rows) == found["test/n"] == 20
    genders = {row["name"]: row["gender"] for row in words("names")}
    pronoun = {"female": " she", "male": " he"}

    def gender(prompt: str) -> str:
        (name,) = [word for word in re.findall(r"\w+", prompt) if word in genders]
        return genders[name]

    for row in rows:
        assert row["variable"] == "gender"
        assert row["label"] == pronoun[gender(row["source"])]
        assert row["flipped"] == (gender(row["source"]) != gender(row["base"]))
        scores = row["log_probabilities"]
        assert sorted(scores) == [" he", " she"]
        assert all(score < 0 and math.isfinite(score) for score in scores.values())
        assert scores[row["prediction"]] == max(scores.values())
    right = sum(row["prediction"] == row["label"] for row in rows)
    assert right / 20 == pytest.approx(found["test/iia"], abs=1e-6)
    assert sum(row["flipped"] for row in rows) == found["test/n_flipped"]


def test_untrained_interventions_may_be_tested(fitted: Fitted, tmp_path: Path) -> None:
    """Vanilla trains nothing: ``test`` measures it, and it is the full-vector control; ``fit`` says so."""
    arguments = ["--config", fitted.config, f"--trainer.default_root_dir={tmp_path}"]
    arguments.append("--model.alignment.gender.intervention=Vanilla")
    ran = iitkit("test", *arguments)
    assert ran.code == 0, ran.err
    found = metrics(tmp_path)
    assert found["test/iia"] == found["full_vector/iia"] == metrics(fitted.root)["full_vector/iia"]
    assert "random_subspace/iia" not in found
    assert not (tmp_path / "artifact").exists()
    assert "nothing to train in Vanilla: run `iitkit test` instead" in said(iitkit("fit", *arguments))


# --- configs and the front door ---


def test_print_config_runs_and_dotted_overrides_merge(fitted: Fitted, tmp_path: Path) -> None:
    ran = iitkit(
        *("fit", "--config", fitted.config, "--model.alignment.gender.layer", "2", "--data.sizes.test=12"),
        *("--print_config", f"--trainer.default_root_dir={tmp_path / 'run'}"),
    )
    assert ran.code == 0
    printed = yaml.safe_load(ran.out)
    placement = printed["model"]["init_args"]["alignment"]["gender"]
    assert (placement["layer"], placement["position"]) == (2, "last")
    assert placement["intervention"]["init_args"] == {"rank": 2, "start": None, "frozen": False}
    assert printed["data"]["init_args"]["sizes"] == {"train": 48, "validation": 24, "test": 12, "test_templates": 8}
    assert printed["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.05
    file = tmp_path / "printed.yaml"
    file.write_text(ran.out, encoding="utf-8")
    assert iitkit("fit", "--config", file, "--trainer.max_epochs=1").code == 0
    assert metrics(tmp_path / "run")["test/n"] == 12
    artifact = json.loads((tmp_path / "run" / "artifact" / "config.json").read_text(encoding="utf-8"))
    assert artifact["placements"]["gender"]["layer"] == 2
    assert artifact["placements"]["gender"]["intervention"] == {"name": "LowRankSubspace", "rank": 2}


def test_short_class_names_without_a_config(shallow_gpt2: str, tmp_path: Path) -> None:
    ran = iitkit(
        *("fit", "--model=DAS", f"--model.base={shallow_gpt2}", '--model.alignment={"gender": {"layer": 3}}'),
        *("--data=CounterfactualDataModule", "--data.task=PronounGender", "--trainer.fast_dev_run=true"),
        *("--model.optimizer=SGD", "--model.optimizer.lr=0.1", "--data.batch_size=4"),
        f"--trainer.default_root_dir={tmp_path}",
    )
    assert ran.code == 0, ran.err
    assert "position last: LowRankSubspace(rank=1)" in ran.out
    assert files(tmp_path) == []


def best_of(n: int, *command: str) -> float:
    def once() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, cwd=ROOT, capture_output=True)
        return time.perf_counter() - start

    return min(once() for _ in range(n))


def test_help_and_import_cost_nothing() -> None:
    assert best_of(5, "-m", "iitkit", "--help") < 0.2
    assert best_of(5, "-c", "import iitkit") < 0.1


def test_help_names_commands_and_configs() -> None:
    for arguments in ([], ["--help"], ["help"], ["-h"]):
        ran = iitkit(*arguments)
        assert ran.code == 0
        for word in ("fit", "validate", "test", "predict", *(file.name for file in ROOT.glob("configs/*.yaml"))):
            assert re.search(rf"\b{re.escape(word)}\b", ran.out), word
    assert re.fullmatch(r"iitkit \d+\.\d+\.\d+\n", iitkit("--version").out)


def test_help_of_a_command_lists_its_keys() -> None:
    ran = iitkit("fit", "--help")
    assert ran.code == 0
    for key in ("--model", "--data", "--trainer.max_epochs", "--seed_everything", "--ckpt_path", "--config"):
        assert key in ran.out
