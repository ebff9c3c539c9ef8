"""Masks that are learned, from the command line: schedules, sizes in the report, the checkpoint that is kept."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from running import iitkit, metrics, said, write_config

import iitkit as package

BOUNDLESS = (
    "--model.alignment.gender.intervention=BoundlessSubspace",
    "--model.penalty=0.5",
    "--model.mask_lr=0.05",
)
SCHEDULE = ("--model.temperature.start=20", "--model.temperature.end=0.1")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, shallow_gpt2: str) -> Path:
    return write_config(tmp_path_factory.mktemp("masks"), shallow_gpt2)


def test_only_a_hardened_mask_is_kept_as_the_best(config: Path, tmp_path: Path) -> None:
    root = f"--trainer.default_root_dir={tmp_path}"
    ran = iitkit(
        "fit",
        "--config",
        config,
        root,
        *BOUNDLESS,
        *SCHEDULE,
        "--model.optimizer.init_args.lr=0",
        "--seed_everything=3",
    )
    assert ran.code == 0, ran.err
    size = metrics(tmp_path)["test/size/gender"]
    assert f"size of the hardened mask: gender {size:.0f} of 32" in ran.out
    assert size < 16  # the penalty has made it smaller than half
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as stream:
        flipped = [float(row["val/iia_flipped"]) for row in csv.DictReader(stream) if row["val/iia_flipped"]]
    assert flipped[0] >= flipped[1], flipped  # the first epoch was no worse, and its temperature still 9.3
    kept = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert kept["global_step"] == 12
    found = package.load(tmp_path).interventions["gender"]
    assert found.effective_size() == size
    # without a schedule any epoch may be the best
    plain = tmp_path / "plain"
    assert iitkit("fit", "--config", config, f"--trainer.default_root_dir={plain}", *BOUNDLESS).code == 0
    assert (plain / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model.temperature.start=20", "--model.temperature.end=-1"],
            "model.temperature goes from 20.0 to -1.0: expected above 0",
        ),
        (["--model.temperature.strt=20"], "Schedule has no key 'strt'. Did you mean 'start'?"),
        (["--model.alignment.gender.intervention.temperature=0"], "temperature 0"),
        (["--model.alignment.gender.intervention.tempreature=1"], "Did you mean 'temperature'"),
    ],
)
def test_errors(config: Path, tmp_path: Path, options: list[str], message: str) -> None:
    ran = iitkit("fit", "--config", config, f"--trainer.default_root_dir={tmp_path}", *BOUNDLESS, *options)
    assert message in said(ran)


def test_a_penalty_that_nothing_reads(config: Path, tmp_path: Path) -> None:
    ran = iitkit("fit", "--config", config, f"--trainer.default_root_dir={tmp_path}", "--model.penalty=0.5")
    assert "model.penalty is of masks that are learned, and LowRankSubspace(rank=2) has none" in said(ran)


def test_controls_keep_the_ablations_and_draw_each_blocks_own_size(config: Path, tmp_path: Path) -> None:
    alignment = {
        "gender": {
            "layer": 1,
            "position": "last",
            "intervention": {"class_path": "RotatedSubspace", "init_args": {"coordinates": {"gender": 2, "other": 9}}},
        },
        "off": {"layer": 2, "position": "last", "variable": "gender", "intervention": "Mean"},
    }
    root = f"--trainer.default_root_dir={tmp_path}"
    ran = iitkit("fit", "--config", config, root, f"--model.alignment={json.dumps(alignment)}")
    assert ran.code == 0, ran.err
    found = metrics(tmp_path)
    assert found["random_subspace/n"] == 5 * found["test/n"]
    # the full swap below stands under the same ablation above
    plain = tmp_path / "plain"
    only = json.dumps({"gender": alignment["gender"]})
    assert (
        iitkit("fit", "--config", config, f"--trainer.default_root_dir={plain}", f"--model.alignment={only}").code == 0
    )
    keys = [key for key in found if key.startswith("full_vector/")]
    assert len(keys) > 12
    assert {key: found[key] for key in keys} != {key: metrics(plain)[key] for key in keys}
    alone = {"off": {"layer": 1, "position": "last", "variable": "gender", "intervention": "Zero"}}
    ran = iitkit("test", "--config", config, root, f"--model.alignment={json.dumps(alone)}")
    assert ran.code == 0, ran.err
    assert "full vector" not in ran.out  # nothing takes from a source: there is nothing to compare
    assert "trained, test" in ran.out
