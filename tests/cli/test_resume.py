"""A run that was stopped ends, once resumed, where an uninterrupted one ends."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import Ran, files, iitkit, metrics, same_weights, wait_for, write_config

ROOT = Path(__file__).resolve().parents[2]
BATCHES = 6  # of an epoch; there are two, and three batches of validation behind each


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, shallow_gpt2: str) -> Path:
    return write_config(tmp_path_factory.mktemp("resume"), shallow_gpt2)


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """An uninterrupted run."""
    ran = iitkit("fit", "--config", config)
    assert ran.code == 0, ran.err
    return config.parent / "run"


def stopped(config: Path, root: Path, moment: str, count: int, how: str) -> Ran:
    """Start the run and stop it at a moment."""
    stop = "--trainer.callbacks"
    return iitkit(
        *("fit", "--config", config, f"--trainer.default_root_dir={root}", "--allow", "stopping"),
        *(f"{stop}+=stopping.StopAt", f"{stop}.init_args.moment={moment}"),
        *(f"{stop}.init_args.count={count}", f"{stop}.init_args.how={how}"),
    )


def resume(config: Path, root: Path) -> Ran:
    return iitkit("fit", "--config", config, f"--trainer.default_root_dir={root}", "--ckpt_path", "last")


def assert_same_end(root: Path, whole: Path) -> None:
    assert (root / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    for name in ("best.ckpt", "last.ckpt"):
        assert same_weights(root / "checkpoints" / name, whole / "checkpoints" / name), name
    ours, theirs = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (root, whole))
    assert ours["global_step"] == theirs["global_step"] == 2 * BATCHES
    for a, b in zip(ours["optimizer_states"], theirs["optimizer_states"], strict=True):
        assert torch.equal(a["state"][0]["exp_avg_sq"], b["state"][0]["exp_avg_sq"])
    for name in ("config.json", "interventions.safetensors"):
        assert (root / "artifact" / name).read_bytes() == (whole / "artifact" / name).read_bytes()


def test_the_whole_run_moves_every_step(whole: Path) -> None:
    """Else equal ends would say nothing: the last weights are not those of the best epoch nor of the start."""
    last = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (1, 2 * BATCHES)
    assert not same_weights(whole / "checkpoints" / "last.ckpt", whole / "checkpoints" / "best.ckpt")


@pytest.mark.parametrize(
    ("moment", "count", "how", "step"),
    [
        ("batch", 3, "SIGTERM", 3),  # in the first epoch
        ("batch", 8, "SIGINT", 8),  # in the second
        ("validation", 2, "SIGTERM", 6),  # within the first validation
        ("validation", 6, "SIGTERM", 12),  # at the end of the last
    ],
)
def test_stopped_by_a_signal(
    config: Path, whole: Path, tmp_path: Path, moment: str, count: int, how: str, step: int
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    ran = stopped(config, tmp_path, moment, count, how)
    assert ran.code == {"SIGTERM": 143, "SIGINT": 130}[how]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert f"stopped after step {step}; resume with --ckpt_path {tmp_path}" in " ".join(ran.out.split())
    assert "Traceback" not in ran.err + ran.out
    assert not any(name in files(tmp_path) for name in ("metrics.json", "artifact/config.json"))
    again = resume(config, tmp_path)
    assert again.code == 0, again.err
    assert_same_end(tmp_path, whole)


@pytest.mark.parametrize(("moment", "count", "step"), [("step", 9, 6), ("batch", 9, 6), ("validation", 5, 12)])
def test_stopped_by_an_error(config: Path, whole: Path, tmp_path: Path, moment: str, count: int, step: int) -> None:
    """Within a step, what the epoch before left stays; elsewhere the step that is done is kept."""
    with pytest.raises(RuntimeError, match=r"^boom$"):
        stopped(config, tmp_path, moment, count, "boom")
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step
    assert resume(config, tmp_path).code == 0
    assert_same_end(tmp_path, whole)


def test_stopped_while_testing(config: Path, whole: Path, tmp_path: Path) -> None:
    assert stopped(config, tmp_path, "test", 2, "SIGTERM").code == 143
    assert not (tmp_path / "metrics.json").exists()
    assert resume(config, tmp_path).code == 0
    assert_same_end(tmp_path, whole)


def test_a_resumed_run_keeps_the_log(config: Path, whole: Path, tmp_path: Path) -> None:
    def validated(root: Path) -> list[tuple[str, str, str]]:
        with (root / "metrics.csv").open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        return [(row["epoch"], row["step"], row["val/loss"]) for row in rows if row["val/loss"]]

    stopped(config, tmp_path, "batch", 9, "SIGTERM")
    assert len(validated(tmp_path)) == 1
    resume(config, tmp_path)
    assert validated(tmp_path) == validated(whole)
    assert len(validated(tmp_path)) == 2


def test_a_run_that_was_moved(config: Path, whole: Path, tmp_path: Path) -> None:
    """The best checkpoint and its score are found where the run is now."""
    stopped(config, tmp_path / "old", "batch", 9, "SIGTERM")
    (tmp_path / "old").rename(tmp_path / "new")
    assert resume(config, tmp_path / "new").code == 0
    assert not (tmp_path / "old").exists()
    assert_same_end(tmp_path / "new", whole)


def test_early_stopping_survives_a_stop(config: Path, tmp_path: Path) -> None:
    """The count of epochs without a gain goes on: .0 is learnt, so no epoch gains and the fourth is the last."""
    still = ["--model.optimizer.lr=0", "--trainer.max_epochs=9"]
    run = ["fit", "--config", config, f"--trainer.default_root_dir={tmp_path}", *still]
    stop = "--trainer.callbacks"
    ran = iitkit(*run, "--allow=stopping", f"{stop}+=stopping.StopAt", f"{stop}.init_args.count={2 * BATCHES + 2}")
    assert ran.code == 143
    assert iitkit(*run, "--ckpt_path=last").code == 0
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4 * BATCHES  # the first epoch and a patience of three
    assert metrics(tmp_path)["test/n"] == 20


def test_killed_process(config: Path, whole: Path, tmp_path: Path) -> None:
    """SIGTERM to a process of its own, in the middle of its second epoch."""
    progress = tmp_path / "progress"
    command = [
        *(sys.executable, "-m", "iitkit", "fit", "--config", str(config), f"--trainer.default_root_dir={tmp_path}"),
        *(
            "--allow",
            "stopping",
            "--trainer.callbacks+=stopping.Slow",
            f"--trainer.callbacks.init_args.file={progress}",
        ),
    ]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert wait_for(progress, BATCHES + 2)
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    # of all that the stack says there, this is what a user of a real process gets to see
    said = [line for line in err.splitlines() if "Received SIGTERM" not in line]
    assert [line for line in said if not line.startswith("iitkit: replay: ")] == []
    assert "stopped after step" in out
    step = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert BATCHES < step < 2 * BATCHES
    assert resume(config, tmp_path).code == 0
    assert_same_end(tmp_path, whole)
