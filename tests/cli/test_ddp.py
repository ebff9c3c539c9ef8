"""Two processes get the numbers of one: the same pairs in every step, one gradient, one fit to data, one report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import metrics, weights, write_config

MASKED = (
    "--model.alignment.gender.intervention=MaskedSubspace",
    "--model.alignment.gender.intervention.rank=6",
    "--model.alignment.gender.intervention.gate=hard_concrete",
    "--model.alignment.gender.intervention.edit=mean",
    "--model.penalty=0.01",
)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), MASKED], ids=["low rank", "gates on means"])
def test_two_processes_are_one(options: tuple[str, ...], shallow_gpt2: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, shallow_gpt2)
    for processes in (1, 2):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "iitkit", "fit", "--config", str(config), *options),
                *(f"--trainer.default_root_dir={tmp_path / str(processes)}", f"--trainer.devices={processes}"),
                *("--trainer.accelerator=cpu", f"--data.batch_size={8 // processes}"),
                *("--data.eval_batch_size=8", "--trainer.enable_progress_bar=false"),
            ],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("IIA, 95 %") == 1  # one of them reports
    one, two = (metrics(tmp_path / str(processes)) for processes in (1, 2))
    assert one.keys() == two.keys()
    assert {key: two[key] for key in one} == {key: pytest.approx(one[key], abs=1e-6) for key in one}
    ours, theirs = (weights(tmp_path / str(processes) / "checkpoints" / "last.ckpt") for processes in (1, 2))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert (value.double() - theirs[key].double()).abs().max() <= 1e-4 * (1 + value.double().abs().max()), key
    start = weights(tmp_path / "1" / "checkpoints" / "best.ckpt")
    assert all(torch.isfinite(value).all() for value in start.values() if value.is_floating_point())
