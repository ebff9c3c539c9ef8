"""The command line, run in this process, and what helps to look at its runs."""

from __future__ import annotations

import io
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from iitkit.cli import main

SIZES = {"train": 48, "validation": 24, "test": 20, "test_templates": 8}
LISTENED = ("lightning.pytorch", "lightning.fabric", "lightning")


@dataclass(frozen=True)
class Ran:
    """What a command answered."""

    code: int
    out: str
    err: str


def iitkit(*arguments: object) -> Ran:
    """Run ``iitkit ARGUMENTS`` in this process; what would reach stdout and stderr is returned."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), _logs_to(err), mock.patch.dict(os.environ):
        try:
            code: Any = main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = exit_.code or 0
    return Ran(code, out.getvalue(), err.getvalue())


@contextmanager
def _logs_to(stream: io.StringIO) -> Iterator[None]:
    """Lightning's handlers hold the stderr of the moment it was imported: hand them this one."""
    handlers = [h for name in LISTENED for h in logging.getLogger(name).handlers if type(h) is logging.StreamHandler]
    before = [handler.setStream(stream) for handler in handlers]
    try:
        yield
    finally:
        for handler, old in zip(handlers, before, strict=True):
            if old is not None:
                handler.setStream(old)


def small(base: str, root: Path, **sizes: int) -> list[str]:
    """Options that make one of iitkit's configs a run of seconds on a tiny base."""
    numbers = {**SIZES, **sizes}
    return [
        f"--model.base={base}",
        f"--trainer.default_root_dir={root}",
        *(f"--data.sizes.{split}={n}" for split, n in numbers.items()),
    ]


CONFIG = """\
seed_everything: 0
model:
  class_path: DAS
  init_args:
    base: {base}
    alignment:
      gender: {{layer: 3, position: last, intervention: {{rank: 2}}}}
    optimizer: {{class_path: Adam, init_args: {{lr: 0.05}}}}
data:
  class_path: CounterfactualDataModule
  init_args:
    task: {{class_path: PronounGender}}
    sizes: {{train: 48, validation: 24, test: 20, test_templates: 8}}
    batch_size: 8
    eval_batch_size: 8
trainer: {{max_epochs: 2, default_root_dir: {root}, num_sanity_val_steps: 0}}
"""
"""A short run on a base of 4 layers: 6 steps and 3 validation batches an epoch, 2 epochs."""


def write_config(folder: Path, base: str, root: Path | None = None) -> Path:
    """Write :data:`CONFIG` for a base; the run's folder is ``run`` beside it unless given."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "small.yaml"
    file.write_text(CONFIG.format(base=base, root=root or folder / "run"), encoding="utf-8")
    return file


def weights(checkpoint: Path) -> dict[str, Tensor]:
    """The interventions' state in a checkpoint."""
    state: dict[str, Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return state


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold bit-identical interventions."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def metrics(root: Path) -> dict[str, Any]:
    """A run's metrics.json."""
    found: dict[str, Any] = json.loads((root / "metrics.json").read_text(encoding="utf-8"))
    return found


def files(root: Path) -> list[str]:
    """Every file below a folder."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def wait_for(file: Path, lines: int, seconds: float = 60.0) -> bool:
    """Wait until a file has that many lines."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if file.is_file() and len(file.read_text(encoding="utf-8").splitlines()) >= lines:
            return True
        time.sleep(0.02)
    return False


def said(ran: Ran) -> str:
    """The one complaint of a command that failed by bad input: code 2, a line or two, no traceback."""
    assert ran.code == 2, (ran.code, ran.out, ran.err)
    lines = ran.err.strip().splitlines()
    assert 1 <= len(lines) <= 2, ran.err
    assert lines[0].startswith("iitkit: "), ran.err
    assert "Traceback" not in ran.err + ran.out
    assert max(len(line) for line in lines) <= 600, ran.err
    return ran.err.strip()


def options(arguments: Sequence[str], **more: object) -> list[str]:
    """Arguments and further ``--key=value``, a double underscore standing for a dot."""
    return [*arguments, *(f"--{key.replace('__', '.')}={value}" for key, value in more.items())]
