"""``iitkit fit | validate | test | predict`` on LightningCLI."""

from __future__ import annotations

import csv
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
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException

import iitkit.tasks  # noqa: F401 - makes the tasks known by their short names
from iitkit.cli.callbacks import DataReport, Interrupted, PredictionWriter, Report
from iitkit.cli.completions import CompletionReport, CompletionWriter
from iitkit.cli.files import config_names
from iitkit.cli.keeping import Kept, Patient
from iitkit.cli.networks import NetworkWriter, check_not_its_own
from iitkit.cli.parser import Parser, buried
from iitkit.data import CompletionDataModule, CounterfactualDataModule
from iitkit.data.base import PromptDataModule
from iitkit.errors import IITKitError, choices
from iitkit.models.load_errors import causes, first_line
from iitkit.modules import DAS, IIT, InterventionModule, ReFT
from iitkit.modules.frozen import check_precision

ALLOWED = ["iitkit", "torch.optim", "lightning.pytorch"]
"""Packages whose classes a config may name; ``--allow`` adds others."""


class Training(LightningCLI):
    """The commands that run a Trainer."""

    def __init__(self, command: str, arguments: Sequence[str]) -> None:
        self.command = command
        super().__init__(
            InterventionModule,
            PromptDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfigCallback if command == "fit" else None,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_class=Parser,
            parser_kwargs={"prog": "iitkit"},
            args=[command, *arguments],
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the one command that was given: a parser for each other would double the time to start."""
        return {self.command: LightningCLI.subcommands()[self.command]}

    def _parse_ckpt_path(self) -> None:
        """Do not let a checkpoint's hyper-parameters silently win over the config."""

    def before_instantiate_classes(self) -> None:
        """Refuse a checkpoint that cannot be read, before a base model is loaded."""
        config = self.config[self.command]
        for key in ("model", "data"):
            if config.get(key) is None:
                raise IITKitError(f"no {key}: give --config NAME.yaml, e.g. {choices(config_names())}")
        check_precision(config.get("trainer.precision"))
        path = config.get("ckpt_path")
        root = config.get("trainer.default_root_dir") or "runs/iitkit"
        if path in ("last", "best"):
            path = config["ckpt_path"] = str(Path(root) / "checkpoints" / f"{path}.ckpt")
        self.resumed_at = None if path is None else check_checkpoint(path)
        config["weights_only"] = True  # Lightning's default would run code from the file
        if self.command == "test":
            config["verbose"] = False  # our table says it

    def instantiate_classes(self) -> None:
        """Let what our classes say of their arguments through: jsonargparse wraps it in a report of its own."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            for link in causes(error):
                if isinstance(link, IITKitError):
                    raise IITKitError(str(link)) from error
            if said := buried(str(error)):
                raise IITKitError(said) from error
            raise

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Give the trainer our loggers and callbacks where the user names none of the kind."""
        for module, data, what in (
            (ReFT, CompletionDataModule, "completions"),
            (DAS, CounterfactualDataModule, "pairs"),
            (IIT, CounterfactualDataModule, "pairs"),
        ):
            if isinstance(self.model, module) and not isinstance(self.datamodule, data):
                raise IITKitError(f"{module.__name__} is trained on {what}: choose data {data.__name__}")
        config = self.config_init[self.command]["trainer"]
        root = config.get("default_root_dir") or "runs/iitkit"
        if self.command == "fit":
            check_not_its_own(root, self.model)
        given = config.get("callbacks")
        callbacks = [] if given is None else given if isinstance(given, list) else [given]
        fast = bool(config.get("fast_dev_run"))
        own = own_callbacks(root, callbacks, self.model)
        kwargs = {"default_root_dir": root, "callbacks": [*callbacks, *own], **kwargs}
        if config.get("logger") is None:
            kwargs["logger"] = own_loggers(root, self.resumed_at) if self.command == "fit" and not fast else False
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError) as error:
            raise IITKitError(f"trainer: {first_line(error)}") from error

    def after_fit(self) -> None:
        """Test the best checkpoint and release it as the artifact."""
        best = None
        for callback in self.trainer.checkpoint_callbacks:
            best = best or getattr(callback, "best_model_path", None) or None
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Report | NetworkWriter | CompletionReport):
                callback.release = True
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False, weights_only=True)


def own_callbacks(root: str, given: Sequence[Callback], module: InterventionModule) -> list[Callback]:
    """Return our callbacks, without those of a kind that the user gave."""
    own: list[Callback] = [DataReport(), NetworkWriter(), Report(), Interrupted(), PredictionWriter()]
    if isinstance(module, ReFT):
        own = [CompletionReport(), Interrupted(), CompletionWriter()]
    folder = Path(root) / "checkpoints"
    best = Kept(folder, filename="best", monitor=module.monitor, mode=module.best, enable_version_counter=False)
    # Lightning's save_last=True only copies the best; and last.ckpt must hold what best and EarlyStopping know
    last = Kept(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    own += [best, last, Patient(module.monitor, mode=module.best, patience=module.patience, check_finite=False)]
    kinds = tuple(type(callback) for callback in given)
    return [callback for callback in own if not isinstance(callback, kinds)]


class RunLog(CSVLogger):
    """``metrics.csv`` in the run's folder; a resumed run keeps the rows up to the step that it goes on from.

    Args:
        root: the run's folder.
        resumed_at: that step, None for a new run.
    """

    def __init__(self, root: str, resumed_at: int | None = None) -> None:
        super().__init__(root, name="", version="")
        self.resumed_at = resumed_at

    @property
    def experiment(self) -> Any:
        """The writer; made when it is first needed, which deletes the file of an earlier run."""
        file, kept = Path(self.root_dir) / "metrics.csv", []
        if self._experiment is None and self.resumed_at is not None and file.is_file():
            with file.open(encoding="utf-8", newline="") as stream:
                rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(stream)]
            kept = [row for row in rows if int(row["step"]) < self.resumed_at]
        writer = super().experiment
        if kept and not writer.metrics:
            writer.metrics = kept
        return writer


def own_loggers(root: str, resumed_at: int | None = None) -> list[Logger]:
    """Return a CSV logger, and a TensorBoard one where that is installed."""
    loggers: list[Logger] = [RunLog(root, resumed_at)]
    if any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
        from lightning.pytorch.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(root, name="", version="tensorboard"))
    return loggers


def check_checkpoint(path: str) -> int:
    """Check that a checkpoint is there and can be read without running code from it.

    Returns:
        The step that it was written after.

    Raises:
        IITKitError: a file that is missing, truncated or no checkpoint.
    """
    if not Path(path).is_file():
        raise IITKitError(f"no checkpoint {path}: give a .ckpt file that `iitkit fit` wrote, 'best' or 'last'")
    try:
        with warnings.catch_warnings(action="ignore"):  # the error says it all
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise IITKitError(f"checkpoint {path} cannot be read (truncated or no checkpoint): {reason}") from error
    if not isinstance(found, dict) or "iitkit" not in found:
        raise IITKitError(f"{path} is no checkpoint of iitkit's: give one that `iitkit fit` wrote")
    return int(found.get("global_step", 0))


NOISE = (
    *("💡", "litlogger", "LitLogger", "litmodels", "ENV_VAR", "Lightning AI"),
    *("Seed set to", "GPU available: False", "TPU available"),
    *("`weights_only` was not set", "Restoring states", "Loaded model weights"),
)
"""What marks a log line that tells a user of iitkit nothing."""


def quieten() -> None:
    """Silence the stack's advertisements and the notes that tell a user of iitkit nothing."""

    def useful(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not any(noise in text for noise in NOISE)

    for name in (
        "fabric.utilities.rank_zero",
        "fabric.utilities.seed",
        "pytorch.trainer.connectors.checkpoint_connector",
        "pytorch.utilities.rank_zero",
    ):
        logging.getLogger(f"lightning.{name}").addFilter(useful)
    for message in (
        r".*in eval mode at the start of training.*",
        r".*LeafSpec.*",
        r".*does not have many workers.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*Experiment logs directory .* exists and is not empty.*",
        r".*logging interval .*",
        r".*Couldn't infer the batch indices.*",
        r".*srun.*",
        r".*args parameter is intended to run from within Python.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of calls that are Lightning's, not ours


class CtrlC:
    """Answers the first Ctrl-C like SIGTERM: finish the batch, save, stop; the second stops at once."""

    def __init__(self) -> None:
        self.pressed = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Handle SIGINT."""
        running = callable(signal.getsignal(signal.SIGTERM))  # Lightning listens: a loop is running
        if self.pressed or not running:
            raise KeyboardInterrupt
        self.pressed = True
        print("\nstopping after this batch; Ctrl-C again stops at once", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)


def prepared(arguments: Sequence[str]) -> list[str]:
    """Allow the packages that ``--allow`` names, and quieten the stack; return the other arguments.

    Raises:
        IITKitError: a name that no package can have.
    """
    rest, allowed = [], list(ALLOWED)
    pending = iter(arguments)
    for argument in pending:
        name, given, value = argument.partition("=")
        if name != "--allow":
            rest.append(argument)
            continue
        allowed.append(value if given else next(pending, ""))
        if not allowed[-1].isidentifier() and not allowed[-1].replace(".", "_").isidentifier():
            raise IITKitError(f"--allow {allowed[-1]!r}: expected the name of a package, e.g. --allow mypackage")
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=allowed)
    logging.getLogger("iitkit").setLevel(logging.INFO)
    if not logging.getLogger("iitkit").handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("iitkit: %(message)s"))
        logging.getLogger("iitkit").addHandler(handler)
    quieten()
    return rest


def run(command: str, arguments: Sequence[str]) -> None:
    """Run one of the commands.

    Args:
        command: fit, validate, test or predict.
        arguments: what follows it.
    """
    rest = prepared(arguments)
    ctrl_c = CtrlC()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, ctrl_c)
    try:
        Training(command, rest)
    except SystemExit as stop:  # Lightning's exit codes are 0 after SIGTERM and 1 after Ctrl-C
        if ctrl_c.pressed or isinstance(stop, SIGTERMException):
            sys.exit(130 if ctrl_c.pressed else 143)
        raise
    finally:
        for number, action in before.items():
            signal.signal(number, action)
