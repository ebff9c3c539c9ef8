"""The callback that saves the network that a run has trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from iitkit.errors import IITKitError
from iitkit.models.loading import base_identity
from iitkit.models.scratch_saving import save_network
from iitkit.modules import IIT
from iitkit.modules.iit_lora import merged_state

FOLDER = "network"
"""Of a run's folder, the one of the network that it trained."""


def check_not_its_own(root: str, module: pl.LightningModule) -> None:
    """Refuse to train the network of the run's own folder: the one would be written over the other.

    Args:
        root: the run's folder.
        module: what is to be trained.

    Raises:
        IITKitError: saying so.
    """
    if not isinstance(module, IIT) or module.training_of == "interventions" or not isinstance(module.base, str):
        return
    folder = Path(root) / FOLDER
    if Path(module.base).expanduser().resolve() == folder.resolve():
        raise IITKitError(
            f"model.base: the run writes its network to {folder}, over its own base: set another "
            "trainer.default_root_dir"
        )


class NetworkWriter(Callback):
    """Writes ``network`` into the run's folder after ``fit``: the base that was trained, as of the best checkpoint."""

    def __init__(self) -> None:
        self.release = False
        """Whether the network under test is fit's result."""

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it; what is written of the run after this names it as its base."""
        fast = trainer.fast_dev_run  # type: ignore[attr-defined]
        if not isinstance(pl_module, IIT) or not self.release or fast or not trainer.is_global_zero:
            return
        if pl_module.training_of == "interventions":
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        encoding = None if data.task is None else data.task.model.encoding
        folder = Path(trainer.default_root_dir) / FOLDER
        symbols = getattr(encoding, "vocabulary", ())
        save_network(pl_module.base_model, folder, data.tokenizer, symbols, merged_state(pl_module.base_model))
        pl_module.identity = base_identity(str(folder), pl_module.base_model)
        print(f"network: {folder}", flush=True)
