"""Which checkpoints are kept, and when training has gone on long enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint


def settled(pl_module: pl.LightningModule) -> bool:
    """Return whether what was measured is what the schedules lead to."""
    return bool(getattr(pl_module, "settled", True))


def stoppable(pl_module: pl.LightningModule) -> bool:
    """Return whether no schedule is still under way."""
    return bool(getattr(pl_module, "stoppable", True))


class Patient(EarlyStopping):
    """Stops no run whose schedules are still under way."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the metric, once the schedules have come to their end; an epoch may end before any validation."""
        if stoppable(pl_module) and self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the metric, once the schedules have come to their end."""
        if stoppable(pl_module):
            super().on_validation_end(trainer, pl_module)


class Kept(ModelCheckpoint):
    """Keeps checkpoints of masks that have hardened; finds its files also where the run's folder has moved since."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the best, once the schedules have come to their end."""
        if settled(pl_module):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the last in any case, the best once it has been measured and the schedules have come to their end."""
        if self.monitor is None or (settled(pl_module) and self.monitor in trainer.callback_metrics):
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, its files as they are found here."""
        name, score = Path(state_dict["best_model_path"]).name, state_dict["best_model_score"]
        here = Path(self.dirpath or "") / name
        if not name or here.is_file():
            path = str(here) if name else ""
            moved: dict[str, Any] = {"dirpath": self.dirpath, "best_model_path": path, "last_model_path": ""}
            if score is not None:
                moved |= {"best_k_models": {path: score}, "kth_best_model_path": path}
            super().load_state_dict({**state_dict, **moved})
        else:  # another run's folder: its best is known, its files are not touched
            self.best_model_path = state_dict["best_model_path"]
