"""Fits of the benchmark: networks trained by interchanges, and DAS on them; each from a seed, in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from iitkit.analysis.controls import random_subspaces
from iitkit.cli.callbacks import COVARIANCE
from iitkit.data import CounterfactualDataModule, Sizes
from iitkit.interventions import Intervention
from iitkit.models.runs import grouped
from iitkit.models.scratch import Network
from iitkit.models.scratch_saving import save_network
from iitkit.modules import DAS, IIT, InterventionModule
from iitkit.tasks import Task


@dataclass(frozen=True)
class Setting:
    """A task, a network, and where variables are planted.

    Args:
        task: the task.
        base: the network.
        sizes: pairs of train, validation and test.
        batch: pairs of a batch.
        epochs: most of the IIT's.
        lr: of the IIT.
        das_sizes: pairs for DAS.
        das_epochs: of DAS.
        flipped: share of flipped pairs.
        decay: weight decay of the IIT.
        shares: of the splits.
        tell_apart: rivals that the pairs of DAS and of tests without training are told apart from.
    """

    task: Task
    base: Network
    sizes: tuple[int, int, int]
    batch: int
    epochs: int
    lr: float = 1e-3
    das_sizes: tuple[int, int, int] = (4000, 500, 2000)
    das_epochs: int = 4
    flipped: float | None = 0.5
    decay: float = 0.0
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2)
    tell_apart: tuple[str, ...] = ()

    def data(self, seed: int, das: bool = False) -> CounterfactualDataModule:
        """Pairs of a seed."""
        train, validation, test = self.das_sizes if das else self.sizes
        return CounterfactualDataModule(
            self.task,
            Sizes(train=train, validation=validation, test=test),
            batch_size=self.batch,
            eval_batch_size=1000,
            flipped=self.flipped,
            shares=self.shares,
            seed=seed,
            tell_apart=self.tell_apart if das else (),
        )


def trainer(folder: Path, epochs: int, monitor: str) -> pl.Trainer:
    """A quiet trainer that keeps the best checkpoint, and stops at (almost) no mistake."""
    kept = ModelCheckpoint(folder, filename="best", monitor=monitor, mode="max", enable_version_counter=False)
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[kept, EarlyStopping(monitor, mode="max", patience=epochs, stopping_threshold=0.9985)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def fitted(module: InterventionModule, data: CounterfactualDataModule, folder: Path, epochs: int) -> dict[str, float]:
    """Fit a module, test its best checkpoint; metrics and the fit's CPU ``seconds``."""
    run = trainer(folder, epochs, module.monitor)
    start = time.process_time()
    run.fit(module, datamodule=data)
    seconds = time.process_time() - start
    run.test(module, datamodule=data, ckpt_path=str(folder / "best.ckpt"), verbose=False, weights_only=True)
    return {**{key: float(value) for key, value in run.callback_metrics.items()}, "seconds": seconds}


def plant(
    setting: Setting, alignment: Mapping[str, Any], seed: int, folder: Path, **options: Any
) -> tuple[str, dict[str, float]]:
    """Train a network by interchanges (or, with ``w_iit=0``, on its behaviour) and save it."""
    seed_everything(seed)

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=setting.lr, weight_decay=setting.decay)

    module = IIT(setting.base, alignment, optimizer, **options)
    measured = fitted(module, setting.data(seed), folder, setting.epochs)
    return str(save_network(module.base_model, folder / "network")), measured


def measure(
    setting: Setting, base: str | Network, alignment: Mapping[str, Any], seed: int, folder: Path
) -> dict[str, float]:
    """Test an alignment of interventions that train nothing."""
    seed_everything(seed)
    module = IIT(base, alignment)
    run = trainer(folder, 1, module.monitor)
    run.test(module, datamodule=setting.data(seed, das=bool(setting.tell_apart)), verbose=False)
    return {key: float(value) for key, value in run.callback_metrics.items()}


def search(
    setting: Setting,
    base: str | Network,
    alignment: Mapping[str, Any],
    seed: int,
    folder: Path,
    draws: int = 0,
    uniform: bool = False,
) -> tuple[DAS, dict[str, float]]:
    """Run DAS; with ``draws``, test also as many random subspaces of the same rank."""
    seed_everything(seed)
    module = DAS(base, alignment, lambda parameters: torch.optim.Adam(parameters, lr=1e-2))
    data = setting.data(seed, das=True)
    if draws:
        module.controls = {}
        module.configure_model()
        data.bind(module)
        module.controls["random_subspace"] = _random(module, data, draws, uniform)
    return module, fitted(module, data, folder, setting.das_epochs)


def _random(module: DAS, data: CounterfactualDataModule, draws: int, uniform: bool) -> list[list[Intervention]]:
    """Random subspaces of the ranks that a module trains, of the activations' covariance or (uniform) of none."""
    generator = torch.Generator().manual_seed(data.seed)
    found: list[list[Intervention]] = [[] for _ in range(draws)]
    batches = [batch for batch, _ in zip(data.every_pair("train"), range(-(-COVARIANCE // 1000)), strict=False)]
    for p, location in enumerate(module.locations.values()):
        kept = [grouped(location, module.runner.prepare(batch).features[p]) for batch in batches]
        rank = round(module.edits[p].effective_size() or 0)
        seen = torch.cat(kept)
        if uniform:
            seen = torch.randn(4 * seen.shape[1], seen.shape[1], generator=generator)
        for edits, drawn in zip(found, random_subspaces(seen, rank, draws, generator), strict=True):
            edits.append(drawn)
    return found


def seed_everything(seed: int) -> None:
    """Set the run's seed, as ``iitkit fit`` does."""
    pl.seed_everything(seed, verbose=False)
    os.environ["PL_GLOBAL_SEED"] = str(seed)
