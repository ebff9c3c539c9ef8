"""Workers that speak JSON lines, and what a process measures of itself; standard library only, any Python.

One worker is one process: what it takes at its peak is its own, and a peer runs in an environment of its own.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
_MARK = "\x1e"
"""Begins an answer: libraries print while they are imported."""


class WorkerError(RuntimeError):
    """A worker failed or ended."""


class Worker:
    """The bench's end of a worker.

    Args:
        name: for messages.
        command: what starts it.
        log: file for everything that it prints but answers.
        environment: variables beside the bench's own.
    """

    def __init__(self, name: str, command: list[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name, self.log = name, log
        self._errors = log.open("w")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **environment},
        )

    def send(self, do: str, **values: Any) -> None:
        """Ask for something without waiting."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failure() from error

    def receive(self) -> Answer:
        """Wait for the answer to what was sent.

        Raises:
            WorkerError: the worker raised, or ended.
        """
        assert self._process.stdout is not None
        line = next((line for line in self._process.stdout if line.startswith(_MARK)), None)
        if line is None:
            raise self._failure()
        answer: Answer = json.loads(line.removeprefix(_MARK))
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        return answer

    def ask(self, do: str, **values: Any) -> Answer:
        """Ask for something and wait for the answer."""
        self.send(do, **values)
        return self.receive()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            try:
                self._process.stdin.close()
                self._process.wait(timeout=10)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()
        self._errors.close()

    def _failure(self) -> WorkerError:
        code = self._process.wait()
        return WorkerError(f"{self.name} ended with {code}: …{self.log.read_text()[-2000:]}")


def serve(handlers: Mapping[str, Callable[..., Answer]]) -> None:
    """The worker's end: answer requests until the bench closes the pipe; what else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = handlers[request.pop("do")](**request)
        except Exception:
            answer = {"error": traceback.format_exc(limit=-6)}
        answers.write(_MARK + json.dumps(answer) + "\n")
        answers.flush()


def reset_peak() -> None:
    """Begin to measure the peak anew, where the system can; what was freed goes back to it first."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory() -> dict[str, float]:
    """MB that the process takes now and took at its peak since :func:`reset_peak` (or since its start)."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        now, peak = (int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    except (OSError, KeyError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        now = peak
    return {"now_mb": now / 1e6, "peak_mb": peak / 1e6}
