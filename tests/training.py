"""Short fits of DAS on tiny bases, in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from running import SIZES

from iitkit.batch import Batch
from iitkit.data import CounterfactualDataModule, Sizes
from iitkit.modules import DAS
from iitkit.tasks import PronounGender, Task


def adam(lr: float = 0.05) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


def pairs(task: Task | None = None, **options: Any) -> CounterfactualDataModule:
    sizes = Sizes(**{**SIZES, **options.pop("sizes", {})})
    return CounterfactualDataModule(task or PronounGender(), sizes, **{"batch_size": 8, "seed": 0, **options})


def fitted(module: DAS, data: CounterfactualDataModule, *callbacks: Callback, epochs: int = 1, **options: Any) -> DAS:
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        num_sanity_val_steps=0,
        **{
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        },
    )
    trainer.fit(module, datamodule=data)
    return module


def bound(module: DAS, data: CounterfactualDataModule) -> DAS:
    module.configure_model()
    data.bind(module)
    return module


def batch_of(data: CounterfactualDataModule) -> Batch:
    return next(iter(data.train_dataloader()))


class Losses(Callback):
    """Keeps every step's loss."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.values.append(float(outputs["loss"]))
