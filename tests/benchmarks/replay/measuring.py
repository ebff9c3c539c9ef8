"""One cell, measured: a fresh process for each mode, the same logits first, then steps in alternation."""

from __future__ import annotations

import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networks
from cells import Cell, plan
from safetensors.torch import load_file
from wire import Worker

HERE = Path(__file__).resolve().parent
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_ENVIRONMENT = {**_ONE_THREAD, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
SHORTEST = 0.5
"""Seconds that a measurement takes at least: of quick steps it takes several."""


@dataclass(frozen=True)
class Setting:
    """How all cells are measured.

    Args:
        folder: scratch folder with the networks' weights.
        peer: Python of the peer's environment; None for no peer.
        repeats: measurements of each mode.
        device: ``cpu`` or ``cuda``.
        dtype: of the network.
    """

    folder: Path
    peer: Path | None
    repeats: int
    device: str
    dtype: str

    @property
    def tolerance(self) -> float:
        """Most that logits may differ, of the largest."""
        return 1e-4 if self.dtype == "float32" else 5e-2


@dataclass
class Measured:
    """What a cell gave; seconds per step and MB by mode (``plain``, ``replay``, ``pyvene``).

    ``cpu`` is the process's own time: it tells a slow step from a busy machine.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)
    fill: dict[str, Any] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    profiles: dict[str, dict[str, float]] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)

    def median(self, mode: str) -> float:
        return statistics.median(self.seconds[mode])


def measure(cell: Cell, setting: Setting) -> Measured:
    """Measure a cell.

    Raises:
        WorkerError: a worker failed.
        RuntimeError: logits differ between the modes.
    """
    found = Measured()
    with ExitStack() as stack:
        workers = {mode: _start(mode, setting) for mode in ("plain", "replay")}
        if setting.peer is not None:
            workers["pyvene"] = _start("pyvene", setting)
        for worker in workers.values():
            stack.callback(worker.close)
        _load(workers, cell, setting, found)
        given = {"cell": cell.plain(), "plan": plan(cell, networks.shape_of(cell.model).vocabulary)}
        for mode, worker in workers.items():
            answer = worker.ask("cell", **given)
            if mode == "replay":
                found.fill = answer
        _compare(workers, cell, setting, found)
        _steps(workers, setting, found)
        for mode, worker in workers.items():
            answer = worker.ask("end")
            found.memory[mode]["peak_mb"] = answer["peak_mb"]
            if "profile" in answer:
                found.profiles[mode] = answer["profile"]
    return found


def _start(mode: str, setting: Setting) -> Worker:
    own = mode != "pyvene"
    python = sys.executable if own else str(setting.peer)
    script = [str(HERE / "worker.py"), mode] if own else [str(HERE / "peer.py")]
    return Worker(mode, [python, *script, str(setting.folder)], setting.folder / f"{mode}.log", _ENVIRONMENT)


def _load(workers: dict[str, Worker], cell: Cell, setting: Setting, found: Measured) -> None:
    where = {"device": setting.device, "dtype": setting.dtype}
    for mode, worker in workers.items():
        worker.send("load", name=cell.model, **({} if mode == "pyvene" else where))
    for mode, worker in workers.items():
        answer = worker.receive()
        found.memory[mode] = {"loaded_mb": answer.pop("now_mb")}
        del answer["peak_mb"]
        found.versions[mode] = answer


def _compare(workers: dict[str, Worker], cell: Cell, setting: Setting, found: Measured) -> None:
    """Compare the first batch's logits, unedited and, where masks have one formula, with the same basis swapped."""
    logits = {}
    for mode, worker in workers.items():
        name = f"logits-{mode}.safetensors"
        worker.ask("logits", name=name, **({"like": "logits-plain.safetensors"} if mode == "pyvene" else {}))
        logits[mode] = load_file(setting.folder / name)
    edited, unedited = logits["plain"]["edited"], logits["plain"]["plain"]
    found.differences["the edit's own effect"] = float((edited - unedited).abs().max() / unedited.abs().max())
    for mode in list(workers)[1:]:
        for what in ("plain", "edited"):
            if what == "edited" and mode == "pyvene" and cell.kind == "boundless":
                continue  # its mask has another formula
            expected = logits["plain"][what]
            off = float((logits[mode][what] - expected).abs().max() / expected.abs().max())
            found.differences[f"{mode}, {'unedited' if what == 'plain' else what}"] = off
            if not off <= setting.tolerance:
                raise RuntimeError(f"{what} logits of {mode} differ from the plain run's by {off:.2g} of the largest")


def _steps(workers: dict[str, Worker], setting: Setting, found: Measured) -> None:
    several = {}
    for mode, worker in workers.items():
        took = min(worker.ask("step", first=i, steps=1)["seconds"] for i in range(1 if mode == "pyvene" else 2))
        several[mode] = max(1, round(SHORTEST / took))
        found.seconds[mode], found.cpu[mode] = [], []
    for i in range(setting.repeats):
        for mode, worker in workers.items():
            answer = worker.ask("step", first=2 + i * several[mode], steps=several[mode])
            if not abs(answer["loss"]) < 1e4:
                raise RuntimeError(f"the loss of {mode} is {answer['loss']}")
            found.seconds[mode].append(answer["seconds"])
            found.cpu[mode].append(answer["cpu"])
