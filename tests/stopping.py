"""Callbacks that stop a run at a chosen moment; the command line is given them by ``--allow stopping``."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.callbacks import Callback

Moment = Literal["step", "batch", "validation", "test"]


class StopAt(Callback):
    """Sends this process a signal, or raises, at one moment of a run.

    Args:
        moment: within a training step, at the end of a training batch, after a validation batch, after a test batch.
        count: of such moments, from 1, counted over all epochs.
        how: SIGTERM, SIGINT, or the error to raise.
    """

    def __init__(self, moment: Moment = "batch", count: int = 1, how: str = "SIGTERM") -> None:
        self.moment, self.count, self.how, self.seen = moment, count, how, 0

    def _reached(self, moment: str) -> None:
        self.seen += moment == self.moment
        if moment == self.moment and self.seen == self.count:
            if self.how.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, self.how))
            else:
                raise RuntimeError(self.how)

    def on_before_optimizer_step(self, *args: Any) -> None:
        self._reached("step")

    def on_train_batch_end(self, *args: Any) -> None:
        self._reached("batch")

    def on_validation_batch_end(self, *args: Any) -> None:
        self._reached("validation")

    def on_test_batch_end(self, *args: Any) -> None:
        self._reached("test")


class Slow(Callback):
    """Takes its time in every batch and says in a file which it is at.

    Args:
        file: gets a line a batch.
        seconds: that a batch takes at least.
    """

    def __init__(self, file: str, seconds: float = 0.1) -> None:
        self.file, self.seconds = Path(file), seconds

    def on_train_batch_end(self, *args: Any) -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write("batch\n")
        time.sleep(self.seconds)
