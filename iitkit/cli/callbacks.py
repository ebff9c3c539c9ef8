"""Callbacks that join modules, data and hub: the data report, controls, the report, the artifact, predictions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import BasePredictionWriter, Callback

from iitkit.analysis.controls import random_subspaces
from iitkit.analysis.table import format_table, with_intervals
from iitkit.cli.releasing import release
from iitkit.data import CounterfactualDataModule
from iitkit.data.pairs import Pairs
from iitkit.data.pool import Pool
from iitkit.data.report import data_report
from iitkit.interventions import Intervention, Vanilla
from iitkit.metrics import label_chance
from iitkit.models.location import Location
from iitkit.models.runs import grouped
from iitkit.models.sites import Placement
from iitkit.modules import InterventionModule

JUDGED = 100
"""Prompts of each split that the data report runs the base model on."""

GRADIENTS = "iitkit_gradients"
"""Key of a checkpoint."""

COVARIANCE = 128
"""Training pairs whose sources' activations give the random subspaces their covariance."""


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def parts(trainer: pl.Trainer) -> tuple[InterventionModule, CounterfactualDataModule]:
    """Return the trainer's module and data module."""
    module, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(module, InterventionModule)
    assert isinstance(data, CounterfactualDataModule)
    return module, data


def judged(
    data: CounterfactualDataModule, module: InterventionModule, most: int | None, splits: Sequence[str]
) -> dict[str, npt.NDArray[np.bool_]]:
    """Return on which of each split's first prompts the base model is right, where the data say what is right."""
    known = [split for split in splits if all(data.source.truths(split))]
    return {split: data.judgements(data.pools[split], split, module, most) for split in known}


class DataReport(Callback):
    """Prints and saves the data report before training."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run the base model on some prompts of train and validation, and report."""
        if not trainer.is_global_zero:
            return
        module, data = parts(trainer)
        most = data.batch_size if trainer.fast_dev_run else JUDGED  # type: ignore[attr-defined]
        text = data_report(data, judged(data, module, most, ("train", "validation")))
        print(text, flush=True)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_text(Path(trainer.default_root_dir) / "data_report.txt", text + "\n")


class Interrupted(Callback):
    """Saves ``last.ckpt`` when a run is stopped (SIGTERM, Ctrl-C at a batch's end) or fails, so that it can resume.

    Between two batches that one step accumulates, a checkpoint also holds what they have added up so far.
    """

    def __init__(self) -> None:
        self.within = False
        self._gradients: dict[str, torch.Tensor] = {}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep gradients that are not yet a step."""
        done = trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        if done % trainer.accumulate_grad_batches:
            grads = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
            checkpoint[GRADIENTS] = {name: grad.cpu() for name, grad in grads.items()}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note them."""
        self._gradients = checkpoint.get(GRADIENTS, {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on from them."""
        for name, parameter in pl_module.named_parameters():
            if name in self._gradients:
                parameter.grad = self._gradients[name].to(parameter.device)
        self._gradients = {}

    def on_train_batch_start(self, *args: Any) -> None:
        """Note that a step is under way: its state is no state to resume from."""
        self.within = True

    def on_train_batch_end(self, *args: Any) -> None:
        """Note that the step is done."""
        self.within = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save, unless the run stopped within a step."""
        if trainer.state.fn != "fit" or trainer.fast_dev_run or self.within or not trainer.global_step:  # type: ignore[attr-defined]
            return
        progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
        if trainer.validating:  # its counts are of no use without what it counted: the resumed run begins it anew
            progress.reset()
            progress.is_last_batch = False
            progress.total.ready = progress.total.started = 1  # type: ignore[attr-defined]
        path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        try:
            trainer.save_checkpoint(path)
        except OSError as error:  # what stopped the run is the news
            print(f"{path} could not be written: {error.strerror or error}", flush=True)
            return
        if trainer.is_global_zero:
            print(f"stopped after step {trainer.global_step}; resume with --ckpt_path {path}", flush=True)


class Report(Callback):
    """Measures the controls in ``test``; then prints the table and writes metrics.json (after ``fit`` the artifact).

    Args:
        draws: number of random subspaces.
    """

    def __init__(self, draws: int = 5) -> None:
        self.draws = draws
        self.release = False
        """Whether the interventions under test are fit's result, to be released as the artifact."""

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the controls: the full-vector swap, and random subspaces of the trained ranks.

        What takes nothing from a source (an ablation beside the variable's site) stays as it is in both.
        """
        module, data = parts(trainer)
        swaps = [edit.needs_source for edit in module.edits]
        module.controls = {}
        if not any(swaps):
            return
        full = [Vanilla() if swap else edit for edit, swap in zip(module.edits, swaps, strict=True)]
        module.controls["full_vector"] = [full]
        ranks = [_size(edit, location) for edit, location in zip(module.edits, module.locations.values(), strict=True)]
        if any(swap and not rank for swap, rank in zip(swaps, ranks, strict=True)):
            return
        generator = torch.Generator().manual_seed(data.seed)
        seen: list[list[torch.Tensor]] = [[] for _ in ranks]
        left = data.batch_size if trainer.fast_dev_run else COVARIANCE  # type: ignore[attr-defined]
        for batch in data.every_pair("train"):  # the same in every process
            everywhere = replace(batch.to(module.device), active=torch.ones_like(batch.active, device=module.device))
            together = zip(seen, module.runner.prepare(everywhere).features, module.locations.values(), strict=True)
            for kept, features, location in together:
                kept.append(grouped(location, features))
            left -= len(batch)
            if left <= 0:
                break
        drawn: list[Sequence[Intervention]] = [
            random_subspaces(torch.cat(kept), rank, self.draws, generator) if swap else [edit] * self.draws
            for kept, rank, swap, edit in zip(seen, ranks, swaps, module.edits, strict=True)
        ]
        module.controls["random_subspace"] = [list(edits) for edits in zip(*drawn, strict=True)]

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the table; write metrics.json and the artifact."""
        if not trainer.is_global_zero:
            return
        module, data = parts(trainer)
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if _measured(key, data.tested)}
        pairs = data.pairs("test")
        metrics["test/label_chance"] = label_chance(pairs.candidates, pairs.label)
        print(self.table(metrics, module, data), flush=True)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        full = with_intervals(metrics)
        root = Path(trainer.default_root_dir)
        write_text(root / "metrics.json", json.dumps(full, indent=2, sort_keys=True, allow_nan=False) + "\n")
        print(f"metrics: {root / 'metrics.json'}", flush=True)
        if self.release:
            short = {key: value for key, value in full.items() if not key.endswith("_ci95")}  # rates and counts say it
            print(f"artifact: {release(root / 'artifact', module, data, short)}", flush=True)

    @staticmethod
    def table(metrics: Mapping[str, float], module: InterventionModule, data: CounterfactualDataModule) -> str:
        """Return the table of trained interventions and controls on every split."""
        rows = [
            (f"{label}, {split}", split if control == "" else control if split == "test" else f"{control}/{split}")
            for label, control in (
                ("trained", ""),
                ("full vector", "full_vector"),
                ("random subspaces", "random_subspace"),
            )
            for split in ("train", "validation", "test", "test_templates")
        ]
        rows += [(f"{key.split('/')[1]}, test", key.removesuffix("/iia")) for key in metrics if _of_part(key)]
        sites = "; ".join(
            f"{name} = {_variable(placement)} at {module.locations[name].label}, position {placement.position}: "
            + (f"shared with {placement.shared_with}" if placement.shared_with else module.intervention(name).title)
            for name, placement in module.alignment.items()
        )
        accuracy = ", ".join(
            f"{split} {metrics[f'{split}/task_accuracy']:.3f}"
            for split in data.tested
            if f"{split}/task_accuracy" in metrics
        )
        sizes = ", ".join(
            f"{name} {metrics[f'test/size/{name}']:.0f} of {module.intervention(name).space.size}"
            for name in module.sizes()
            if f"test/size/{name}" in metrics
        )
        strict = ", ".join(
            f"{key.split('/')[2]} {value:.3f}"
            for key, value in metrics.items()
            if key.startswith("test/strict/") and value == value
        )
        return (
            f"\nIIA, 95 % Wilson intervals and counts ({sites})\n{format_table(metrics, rows)}\n"
            f"base model's task accuracy: {accuracy}; label chance {metrics['test/label_chance']:.3f}"
            + (f"\nsize of the hardened mask: {sizes}" if sizes else "")
            + (f"\nanswers kept under strict sites, test: {strict}" if strict else "")
        )


def _variable(placement: Placement) -> str:
    """Return a placement's variable, with the value that it is for."""
    return f"{placement.variable}" + ("" if placement.value is None else f" {placement.value!r}")


def _size(edit: Intervention, location: Location) -> int:
    """Return how many directions a placement swaps, of a shared rotation those of its own block; 0 for all."""
    if edit.blocks is not None:
        weights = edit.mask.weights(location.variable)
        return 0 if weights is None else int(weights.sum())
    return round(edit.effective_size() or 0)


def _of_part(key: str) -> bool:
    """Return whether a metric is the IIA of one variable, or of several together, on test pairs."""
    return key.startswith("test/") and key.endswith("/iia") and key.count("/") == 2


def _measured(key: str, splits: list[str]) -> bool:
    return key.split("/")[0] in {*splits, "full_vector", "random_subspace"} and not key.startswith("train/loss")


def _sources(data: CounterfactualDataModule, pool: Pool, pairs: Pairs, i: int) -> dict[str, Any]:
    """A pair's source and variable, or lists of them where it has several."""
    texts = [pool.prompts[row].text for row in pairs.sources[i].tolist()]
    names = [data.variables[v] for v in pairs.variables[i].tolist()]
    if len(texts) == 1:
        return {"source": texts[0], "variable": names[0]}
    return {"sources": texts, "variables": [list(s) for s in data.design.stages] or names}


class PredictionWriter(BasePredictionWriter):
    """Writes ``predictions.jsonl``: one test pair a line, with prompts, label and prediction."""

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def write_on_epoch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, predictions: Any, batch_indices: Any
    ) -> None:
        """Join the predictions with the pairs they are of."""
        _, data = parts(trainer)
        pairs, pool = data.pairs("test"), data.pools["test"]
        lines = []
        for batch in predictions:
            for row, predicted, scores in zip(batch["rows"], batch["predicted"], batch["scores"], strict=True):
                i = int(row)
                answers = pairs.candidates[i]
                line = {
                    "base": pool.prompts[int(pairs.base[i])].text,
                    **_sources(data, pool, pairs, i),
                    "label": answers[pairs.label[i]],
                    "prediction": answers[int(predicted)],
                    "flipped": bool(pairs.flipped[i]),
                    "log_probabilities": {a: round(float(s), 4) for a, s in zip(answers, scores, strict=False)},
                }
                lines.append(json.dumps(line, ensure_ascii=False))
        rank = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = Path(trainer.default_root_dir) / f"predictions{rank}.jsonl"
        write_text(path, "".join(f"{line}\n" for line in lines))
        if trainer.is_global_zero:
            print(f"predictions: {path}", flush=True)
