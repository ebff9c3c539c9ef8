"""``iitkit fit | validate | test | predict`` on LightningCLI."""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger

import iitkit.tasks  # noqa: F401 - makes the tasks known by their short names
from iitkit.cli.callbacks import DataReport, Interrupted, PredictionWriter, Report
from iitkit.cli.files import config_names
from iitkit.cli.parser import Parser
from iitkit.data import CounterfactualDataModule
from iitkit.errors import IITKitError, choices
from iitkit.modules import InterventionModule

ALLOWED = ["iitkit", "torch.optim", "lightning.pytorch"]
"""Packages whose classes a config may name; ``--allow`` adds others."""


class Training(LightningCLI):
    """The commands that run a Trainer."""

    def __init__(self, command: str, arguments: Sequence[str]) -> None:
        self.command = command
        super().__init__(
            InterventionModule,
            CounterfactualDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_class=Parser,
            parser_kwargs={"prog": "iitkit"},
            args=[command, *arguments],
        )

    def _parse_ckpt_path(self) -> None:
        """Do not let a checkpoint's hyper-parameters silently win over the config."""

    def before_instantiate_classes(self) -> None:
        """Refuse a checkpoint that cannot be read, before a base model is loaded."""
        config = self.config[self.command]
        for key in ("model", "data"):
            if config.get(key) is None:
                raise IITKitError(f"no {key}: give --config NAME.yaml, e.g. {choices(config_names())}")
        path = config.get("ckpt_path")
        root = config.get("trainer.default_root_dir") or "runs/iitkit"
        if path in ("last", "best"):
            path = config["ckpt_path"] = str(Path(root) / "checkpoints" / f"{path}.ckpt")
        if path is not None:
            check_checkpoint(path)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Give the trainer our loggers and callbacks where the user names none of the kind."""
        config = self.config_init[self.command]["trainer"]
        root = config.get("default_root_dir") or "runs/iitkit"
        given = config.get("callbacks")
        callbacks = [] if given is None else given if isinstance(given, list) else [given]
        fast = bool(config.get("fast_dev_run"))
        kwargs = {"default_root_dir": root, "callbacks": [*callbacks, *own_callbacks(root, callbacks, fast)], **kwargs}
        if config.get("logger") is None and not fast:
            kwargs["logger"] = own_loggers(root)
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Test the best checkpoint and release it as the artifact."""
        best = None
        for callback in self.trainer.checkpoint_callbacks:
            best = best or getattr(callback, "best_model_path", None) or None
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Report):
                callback.release = True
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False)


def own_callbacks(root: str, given: Sequence[Callback], fast: bool) -> list[Callback]:
    """Return our callbacks, without those of a kind that the user gave."""
    own: list[Callback] = [DataReport(), Report(), Interrupted(), PredictionWriter()]
    if not fast:
        own.append(
            ModelCheckpoint(
                dirpath=Path(root) / "checkpoints",
                filename="best",
                monitor="val/iia_flipped",
                mode="max",
                save_last=True,
                enable_version_counter=False,
            )
        )
        own.append(EarlyStopping("val/iia_flipped", mode="max", patience=3, check_finite=False))
    kinds = tuple(type(callback) for callback in given)
    return [callback for callback in own if not isinstance(callback, kinds)]


def own_loggers(root: str) -> list[Logger]:
    """Return a CSV logger (``metrics.csv`` in the run's folder), and a TensorBoard one where that is installed."""
    loggers: list[Logger] = [CSVLogger(root, name="", version="")]
    if any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
        from lightning.pytorch.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(root, name="", version="tensorboard"))
    return loggers


def check_checkpoint(path: str) -> None:
    """Check that a checkpoint is there and can be read without running code from it.

    Raises:
        IITKitError: a file that is missing, truncated or no checkpoint.
    """
    if not Path(path).is_file():
        raise IITKitError(f"no checkpoint {path}: give a .ckpt file that `iitkit fit` wrote, 'best' or 'last'")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise IITKitError(f"checkpoint {path} cannot be read (truncated or no checkpoint): {reason}") from error
    if not isinstance(found, dict) or "iitkit" not in found:
        raise IITKitError(f"{path} is no checkpoint of iitkit's: give one that `iitkit fit` wrote")


def quieten() -> None:
    """Silence the stack's advertisements and the notes that tell a user of iitkit nothing."""

    def useful(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not any(
            noise in text for noise in ("💡", "litlogger", "LitLogger", "litmodels", "ENV_VAR", "Lightning AI")
        )

    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(useful)
    for message in (
        r".*in eval mode at the start of training.*",
        r".*LeafSpec.*",
        r".*does not have many workers.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*Experiment logs directory .* exists and is not empty.*",
        r".*logging interval .*",
        r".*srun.*",
        r".*args parameter is intended to run from within Python.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def stop_at_batch_end(signum: int, frame: FrameType | None) -> None:
    """Answer the first Ctrl-C like SIGTERM: finish the batch, save, stop; the second stops at once."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if callable(signal.getsignal(signal.SIGTERM)):  # Lightning listens: a loop is running
        print("\nstopping after this batch; Ctrl-C again stops at once", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        raise KeyboardInterrupt


def run(command: str, arguments: Sequence[str]) -> None:
    """Run one of the commands.

    Args:
        command: fit, validate, test or predict.
        arguments: what follows it.
    """
    rest, allowed = [], list(ALLOWED)
    pending = iter(arguments)
    for argument in pending:
        if argument == "--allow":
            allowed.append(next(pending, ""))
        elif argument.startswith("--allow="):
            allowed.append(argument.removeprefix("--allow="))
        else:
            rest.append(argument)
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[name for name in allowed if name])
    logging.getLogger("iitkit").setLevel(logging.INFO)
    if not logging.getLogger("iitkit").handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("iitkit: %(message)s"))
        logging.getLogger("iitkit").addHandler(handler)
    quieten()
    before = signal.signal(signal.SIGINT, stop_at_batch_end)
    try:
        Training(command, rest)
    finally:
        signal.signal(signal.SIGINT, before)
