"""``iitkit fit | validate | test | predict`` on completions: printed, written, resumed, and said of mistakes."""

from __future__ import annotations

import csv
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from ourtokenizers import chatting
from running import files, iitkit, metrics, said, same_weights, weights
from tiny import tiny_model

import iitkit as library
from iitkit.models.generation import intervening

CONFIG = """\
seed_everything: 0
model:
  class_path: ReFT
  init_args:
    base: {base}
    where: all
    alignment:
      tone: {{layer: 1, position: f7+l7, intervention: {{class_path: LoReFT, init_args: {{rank: 2}}}}}}
      end: {{layer: 2, component: mlp_output, intervention: {{class_path: LoRA, init_args: {{rank: 1}}}}}}
    optimizer: {{class_path: Adam, init_args: {{lr: 0.05}}}}
data:
  class_path: CompletionDataModule
  init_args:
    dataset: {{path: {data}}}
    batch_size: 2
trainer: {{max_epochs: 2, default_root_dir: {root}, num_sanity_val_steps: 0, accumulate_grad_batches: 2}}
"""
SAID = [" Mary", " is happy because", " she was late", " sick", " walked home"]
TRAINED = 2 * 32 * 2 + 2 + 2 * 32  # R, W and c of LoReFT; A and B of LoRA


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, shallow_gpt2: str) -> Path:
    folder = tmp_path_factory.mktemp("reft")
    (folder / "data").mkdir()
    for split, n in (("train", 10), ("validation", 4), ("test", 5)):
        lines = [
            json.dumps({"prompt": f"{split} {'The dog ' * (i + 1)}went", "completion": SAID[i % 5]}) for i in range(n)
        ]
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    file = folder / "reft.yaml"
    file.write_text(CONFIG.format(base=shallow_gpt2, data=folder / "data", root=folder / "run"), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def whole(config: Path) -> tuple[Path, str, str]:
    """An uninterrupted run: its folder, and what it printed."""
    with mock.patch.object(logging.getLogger("iitkit"), "handlers", []):  # one of an earlier test has its own stderr
        ran = iitkit("fit", "--config", config)
    assert ran.code == 0, ran.err
    return config.parent / "run", ran.out, ran.err


def test_fit_writes_and_prints_what_it_found(whole: tuple[Path, str, str]) -> None:
    root, out, err = whole
    written = [file for file in files(root) if not file.startswith("tensorboard")]
    assert [f for f in written if not f.startswith(("artifact", "checkpoints"))] == [
        "config.yaml", "data_report.txt", "metrics.csv", "metrics.json", "samples.txt",
    ]  # fmt: skip
    assert {"artifact/config.json", "artifact/interventions.safetensors", "checkpoints/best.ckpt"} <= set(written)
    assert f"{TRAINED} trainable parameters" in err
    found = metrics(root)
    assert found["trainable_parameters"] == TRAINED
    assert found["test/exact"] in [n / 5 for n in range(6)]  # a rate, not its nearest fp32
    for split, n in (("train", 4), ("validation", 4), ("test", 5)):
        for group in (split, f"plain/{split}"):
            assert found[f"{group}/n"] == n
            assert found[f"{group}/loss"] > 0
            assert 0 <= found[f"{group}/exact_ci95"][0] <= found[f"{group}/exact"] <= found[f"{group}/exact_ci95"][1]
    assert found["train/loss"] < found["plain/train/loss"]
    with (root / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        logged = [float(row["val/loss"]) for row in csv.DictReader(stream) if row["val/loss"]]
    assert len(logged) == 2  # each epoch's is of its own weights; the best are tested
    assert min(logged) == pytest.approx(found["validation/loss"], rel=1e-5)
    assert logged[1] < logged[0]
    for split in ("test", "train", "validation"):
        for name, group in (("trained", split), ("plain", f"plain/{split}")):
            (line,) = [line for line in out.splitlines() if line.startswith(f"{name}, {split} ")]
            assert f"{found[f'{group}/loss']:.3f}" in line
    report = (root / "data_report.txt").read_text(encoding="utf-8")
    assert "train: 10 examples; prompts of " in report
    assert f"trainable parameters: {TRAINED}" in report
    assert "  end edits 'went', each generated token" in report.replace("' went'", "'went'")
    assert "before training the model writes:" in out
    samples = (root / "samples.txt").read_text(encoding="utf-8")
    assert samples in out
    assert samples.count("\n    wanted  ") == samples.count("\n    plain   ") == samples.count("\n    trained ") == 4
    assert "\n    wanted  ' Mary'\n" in samples


def test_the_reloaded_artifact_writes_the_same(whole: tuple[Path, str, str], config: Path, shallow_gpt2: str) -> None:
    root, _, _ = whole
    ran = iitkit("predict", "--config", config, "--ckpt_path", "best")
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in (root / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["completion"] for line in lines] == SAID
    assert any(line["plain"] != line["trained"] for line in lines)
    samples = (root / "samples.txt").read_text(encoding="utf-8")  # behind the first test prompts
    assert samples.splitlines()[1:] == [
        part
        for line in lines[:4]
        for part in (
            *(repr(line["prompt"]), f"    wanted  {line['completion']!r}"),
            *(f"    plain   {line['plain']!r}", f"    trained {line['trained']!r}"),
        )
    ]
    model, tokenizer = library.load_base(shallow_gpt2)
    artifact = library.load(root)
    assert artifact.config["where"] == "all"
    assert artifact.metrics["trainable_parameters"] == TRAINED
    most = max(len(tokenizer(text)["input_ids"]) for text in SAID) + 1
    for line in lines:
        inputs: Any = tokenizer(line["prompt"], return_tensors="pt")
        for key, placed in (("trained", artifact.alignment()), ("plain", {})):
            with torch.no_grad(), intervening(model, placed, where=artifact.config["where"]):
                tokens = model.generate(**inputs, max_new_tokens=most, do_sample=False, pad_token_id=0)
            text = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            assert text == line[key]


def test_what_was_trained_on_chats_is_steered_in_chats(tmp_path: Path) -> None:
    """With the prefix and the system turn that it was trained with, unless it is told that there is no chat."""
    tokenizer = chatting()
    tiny_model("llama").save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "test"):
        rows = [{"prompt": f"{split} {word} went", "completion": f"is {word}"} for word in ("Mary", "John", "Tom")]
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = yaml.safe_load(CONFIG.format(base=tmp_path / "base", data=tmp_path / "data", root=tmp_path / "run"))
    config["data"]["init_args"] |= {"chat": True, "system": "The park", "prefix": "<|endoftext|>"}
    (tmp_path / "chat.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert (ran := iitkit("fit", "--config", tmp_path / "chat.yaml")).code == 0, ran.err
    assert (ran := iitkit("predict", "--config", tmp_path / "chat.yaml", "--ckpt_path", "best")).code == 0, ran.err
    line = json.loads((tmp_path / "run" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert line["prompt"].startswith("<|endoftext|><|system|>\nThe park\n<|user|>\ntest Mary went\n")
    most = len(tokenizer("is Mary\n")["input_ids"]) + 1
    options = ("steer", tmp_path / "run", "test Mary went", "--new_tokens", most, "--base", tmp_path / "base")
    ran = iitkit(*options)
    assert ran.code == 0, ran.err
    assert ran.out == f"test Mary went\n{line['trained']}\n"
    assert iitkit(*options, "--chat").out == ran.out
    assert iitkit(*options, "--chat=false").out != ran.out
    assert "leave it out, or set chat to false" in said(iitkit(*options, "--prefix", "x"))


def test_test_and_validate_measure_the_checkpoint(whole: tuple[Path, str, str], config: Path, tmp_path: Path) -> None:
    root, _, _ = whole
    best = root / "checkpoints" / "best.ckpt"
    ran = iitkit("test", "--config", config, "--ckpt_path", best, f"--trainer.default_root_dir={tmp_path}")
    assert ran.code == 0, ran.err
    found, expected = metrics(tmp_path), metrics(root)
    for key, value in expected.items():  # what is kept is kept in another order, which rounds otherwise
        assert found[key] == pytest.approx(value, rel=1e-5), key
    assert files(tmp_path) == ["metrics.json", "samples.txt"]
    assert (tmp_path / "samples.txt").read_bytes() == (root / "samples.txt").read_bytes()
    ran = iitkit("validate", "--config", config, "--ckpt_path", best)
    assert ran.code == 0, ran.err
    (line,) = [line for line in ran.out.splitlines() if "val/loss" in line]
    assert float(line.strip("│ ").split()[-1]) == pytest.approx(metrics(root)["validation/loss"], rel=1e-5)


def test_a_resumed_run_ends_as_an_uninterrupted_one(whole: tuple[Path, str, str], config: Path, tmp_path: Path) -> None:
    root, _, _ = whole
    options = [f"--trainer.default_root_dir={tmp_path}"]
    assert iitkit("fit", "--config", config, *options, "--trainer.max_epochs", "1").code == 0
    first = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert first["global_step"] == 3  # 5 batches, two to a step
    ran = iitkit("fit", "--config", config, *options, "--ckpt_path", "last")
    assert ran.code == 0, ran.err
    for name in ("best.ckpt", "last.ckpt"):
        assert same_weights(tmp_path / "checkpoints" / name, root / "checkpoints" / name)
    assert metrics(tmp_path) == metrics(root)
    assert (tmp_path / "artifact" / "interventions.safetensors").read_bytes() == (
        root / "artifact" / "interventions.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("count", [2, 3, 6])  # after a step; between the batches of one, twice
def test_a_run_stopped_within_an_epoch_goes_on_with_its_batches(
    whole: tuple[Path, str, str], config: Path, tmp_path: Path, count: int
) -> None:
    root, _, _ = whole
    options = [f"--trainer.default_root_dir={tmp_path}", "--allow", "stopping"]
    stop = "--trainer.callbacks"
    ran = iitkit(
        *("fit", "--config", config, *options, f"{stop}+=stopping.StopAt", f"{stop}.init_args.moment=batch"),
        *(f"{stop}.init_args.count={count}", f"{stop}.init_args.how=SIGTERM"),
    )
    assert ran.code == 143, ran.err
    ran = iitkit("fit", "--config", config, *options, "--ckpt_path", "last")
    assert ran.code == 0, ran.err
    assert same_weights(tmp_path / "checkpoints" / "last.ckpt", root / "checkpoints" / "last.ckpt")


def test_a_resumed_run_may_end_before_it_has_validated(config: Path, tmp_path: Path) -> None:
    """Of 5 batches an epoch, stopped after 6; the last step is taken at the 7th, before the epoch's validation."""
    stop, steps = "--trainer.callbacks", "--trainer.max_steps=4"
    assert iitkit("fit", "--config", config, steps, f"--trainer.default_root_dir={tmp_path / 'whole'}").code == 0
    root = f"--trainer.default_root_dir={tmp_path / 'stopped'}"
    ran = iitkit(
        *("fit", "--config", config, steps, root, "--allow", "stopping", f"{stop}+=stopping.StopAt"),
        *(f"{stop}.init_args.moment=batch", f"{stop}.init_args.count=6", f"{stop}.init_args.how=SIGTERM"),
    )
    assert ran.code == 143, ran.err
    ran = iitkit("fit", "--config", config, steps, root, "--ckpt_path", "last")
    assert ran.code == 0, ran.err
    ours, theirs = (tmp_path / name / "checkpoints" / "last.ckpt" for name in ("stopped", "whole"))
    assert torch.load(ours, weights_only=True)["global_step"] == 4
    assert same_weights(ours, theirs)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


def test_a_run_without_validation_tests_its_last_weights(config: Path, tmp_path: Path) -> None:
    ran = iitkit("fit", "--config", config, f"--trainer.default_root_dir={tmp_path}", "--trainer.limit_val_batches=0")
    assert ran.code == 0, ran.err
    assert [file for file in files(tmp_path) if file.startswith("checkpoints")] == ["checkpoints/last.ckpt"]
    assert metrics(tmp_path)["test/n"] == 5


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(config: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "iitkit", "fit", "--config", str(config), "--trainer.accelerator=cpu"),
                *(f"--trainer.default_root_dir={tmp_path / str(processes)}", f"--trainer.devices={processes}"),
                *(f"--data.batch_size={4 // processes}", "--trainer.enable_progress_bar=false"),
            ],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("greedy samples, test prompts") == 1  # one of them reports
    one, two = (metrics(tmp_path / str(processes)) for processes in (1, 2))
    for key, value in one.items():
        assert two[key] == pytest.approx(value, rel=1e-4), key
    ours, theirs = (weights(tmp_path / str(processes) / "checkpoints" / "last.ckpt") for processes in (1, 2))
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert (tensor.double() - theirs[key].double()).abs().max() <= 1e-4 * (1 + tensor.double().abs().max()), key


def test_data_reports_without_training(whole: tuple[Path, str, str], config: Path, tmp_path: Path) -> None:
    root, _, _ = whole
    ran = iitkit("data", "--config", config, f"--trainer.default_root_dir={tmp_path}")
    assert ran.code == 0, ran.err
    assert files(tmp_path) == ["data_report.txt"]
    report = (tmp_path / "data_report.txt").read_text(encoding="utf-8")
    assert report in ran.out
    assert (root / "data_report.txt").read_text(encoding="utf-8").startswith(report)
    assert "--save is of pairs" in said(iitkit("data", "--config", config, "--save", tmp_path / "pairs"))


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--model.where=behind", "model.where: given 'behind', expected 'prompt' or 'generated' or 'all'"),
        ("--data.paddign=left", "data: CompletionDataModule has no key 'paddign'. Did you mean 'padding'?"),
        ("--data.dataset.path=tagz", "no such file or folder 'tagz'. Did you mean 'tags'?"),
        ("--data.chat=true", "the tokenizer has no chat template"),
        ("--data.sizes.train=11", "data.sizes.train: 11 examples"),
        ("--model.alignment.tone.position=place", "alignment.tone: position 'place' is no span of the prompt"),
        ("--model.alignment.tone.intervention=Vanilla", "alignment.tone.intervention: Vanilla takes a source"),
        ("--data.max_tokens=2 --data.prefix=abcdefghij", "data.max_tokens: 2"),
    ],
)
def test_mistakes_are_answered_in_a_line(config: Path, option: str, expected: str) -> None:
    assert expected in said(iitkit("fit", "--config", config, *option.split()))


def test_a_module_and_data_that_do_not_go_together_are_refused(config: Path, tmp_path: Path) -> None:
    found = yaml.safe_load(config.read_text(encoding="utf-8"))
    place = {"it": {"layer": 1, "intervention": {"class_path": "Vanilla"}}}
    das = {"class_path": "DAS", "init_args": {"base": found["model"]["init_args"]["base"], "alignment": place}}
    pairs = {"class_path": "CounterfactualDataModule", "init_args": {"task": {"class_path": "PronounGender"}}}
    for changes, why in (
        ({"model": das}, "DAS is trained on pairs: choose data CounterfactualDataModule"),
        ({"data": pairs}, "ReFT is trained on completions: choose data CompletionDataModule"),
    ):
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({**found, **changes}), encoding="utf-8")
        assert why in said(iitkit("fit", "--config", tmp_path / "wrong.yaml"))
