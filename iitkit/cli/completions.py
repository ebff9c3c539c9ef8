"""Callbacks of runs on completions: the report, greedy samples before and after, the artifact, predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BasePredictionWriter, Callback

from iitkit.cli.callbacks import write_text
from iitkit.cli.releasing import release_trained
from iitkit.data import CompletionDataModule
from iitkit.metrics import wilson
from iitkit.modules import ReFT


def parts(trainer: pl.Trainer) -> tuple[ReFT, CompletionDataModule]:
    """Return the trainer's module and data module."""
    module, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(module, ReFT)
    assert isinstance(data, CompletionDataModule)
    return module, data


class CompletionReport(Callback):
    """Prints the data and what the plain model writes before training; in the end the table and what it writes then.

    Writes ``data_report.txt``, ``samples.txt`` and ``metrics.json``, and after ``fit`` the artifact.

    Args:
        samples: number of test prompts behind which both are asked to write.
    """

    def __init__(self, samples: int = 4) -> None:
        self.samples = samples
        self.release = False
        """Whether the interventions under test are fit's result, to be released as the artifact."""
        self._plain: list[str] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report on the data; let the plain model write."""
        if not trainer.is_global_zero:
            return
        module, data = parts(trainer)
        text = f"{data.report()}\ntrainable parameters: {module.trained}"
        print(text, flush=True)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_text(Path(trainer.default_root_dir) / "data_report.txt", text + "\n")
        self._plain = self._written(module, data, edited=False)
        lines = [f"  {prompt!r} → {said!r}" for (prompt, _), said in self._asked(data, self._plain)]
        print("\n".join(["before training the model writes:", *lines]), flush=True)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the table and samples; write them, metrics.json and the artifact."""
        if not trainer.is_global_zero:
            return
        module, data = parts(trainer)
        groups = (*data.tested, *(f"plain/{split}" for split in data.tested))
        measured = {
            key: float(value) for key, value in trainer.callback_metrics.items() if key.rpartition("/")[0] in groups
        }
        plain = self._written(module, data, edited=False) if self._plain is None else self._plain
        trained = self._written(module, data)
        lines = [
            f"{prompt!r}\n    wanted  {wanted!r}\n    plain   {one!r}\n    trained {other!r}"
            for ((prompt, wanted), one), other in zip(self._asked(data, plain), trained, strict=True)
        ]
        samples = "\n".join(["greedy samples, test prompts", *lines])
        print(f"{self.table(measured, data.tested)}\n\n{samples}", flush=True)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        full: dict[str, Any] = {key: round(value, 6) for key, value in measured.items()}  # they were logged in fp32
        full["trainable_parameters"] = module.trained
        for key in [key for key in full if key.endswith("/n")]:
            n, exact = round(full[key]), full[f"{key[:-1]}exact"]
            full[key] = n
            full[f"{key[:-1]}exact_ci95"] = [round(bound, 4) for bound in wilson(exact * n, n)]
        root = Path(trainer.default_root_dir)
        write_text(root / "samples.txt", samples + "\n")
        write_text(root / "metrics.json", json.dumps(full, indent=2, sort_keys=True, allow_nan=False) + "\n")
        print(f"metrics: {root / 'metrics.json'}", flush=True)
        if self.release:
            short = {key: value for key, value in full.items() if not key.endswith("_ci95")}
            print(f"artifact: {release_trained(root / 'artifact', module, data, short)}", flush=True)

    def _rows(self, data: CompletionDataModule) -> range:
        return range(min(self.samples, len(data.told["test"])))

    def _written(self, module: ReFT, data: CompletionDataModule, edited: bool = True) -> list[str]:
        """Return what is written behind the first test prompts."""
        rows = self._rows(data)
        if not rows:
            return []
        batch = data.batch("test", rows).to(module.device)
        most = int(data.told["test"].completions.lengths.max())
        with module.trainer.precision_plugin.forward_context():
            return data.decoded(module.write(batch, most, edited))

    def _asked(self, data: CompletionDataModule, said: list[str]) -> list[tuple[tuple[str, str], str]]:
        return list(zip(data.texts("test", self._rows(data)), said, strict=True))

    @staticmethod
    def table(metrics: Mapping[str, float], splits: list[str]) -> str:
        """Return the table of trained interventions and the plain model on every split."""
        lines = [
            "\nloss (nats a token), tokens right, completions that greedy decoding writes exactly (95 % Wilson)",
            f"{'':<22}{'loss':>8}{'tokens':>8}{'exact':>30}",
        ]
        for split in splits:
            for name, group in (("trained", split), ("plain", f"plain/{split}")):
                loss, right, exact, n = (metrics[f"{group}/{key}"] for key in ("loss", "token_accuracy", "exact", "n"))
                low, high = wilson(exact * n, n)
                cell = f"{exact:.3f} [{low:.3f}, {high:.3f}] {round(n)}"
                lines.append(f"{f'{name}, {split}':<22}{loss:>8.3f}{right:>8.3f}{cell:>30}")
        return "\n".join(lines)


class CompletionWriter(BasePredictionWriter):
    """Writes ``predictions.jsonl``: one test prompt a line, what was wanted and what both models write behind it."""

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def write_on_epoch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, predictions: Any, batch_indices: Any
    ) -> None:
        """Join what was written with the examples."""
        _, data = parts(trainer)
        lines = []
        for batch in predictions:
            rows = batch["rows"].tolist()
            texts = data.texts("test", rows)
            plain, trained = data.decoded(batch["plain"]), data.decoded(batch["trained"])
            for (prompt, wanted), one, other in zip(texts, plain, trained, strict=True):
                line = {"prompt": prompt, "completion": wanted, "plain": one, "trained": other}
                lines.append(json.dumps(line, ensure_ascii=False))
        rank = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = Path(trainer.default_root_dir) / f"predictions{rank}.jsonl"
        write_text(path, "".join(f"{line}\n" for line in lines))
        if trainer.is_global_zero:
            print(f"predictions: {path}", flush=True)
