"""A worker that runs iitkit's steps, plain or with replay: ``worker.py plain|replay FOLDER``."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import networks
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from wire import Answer, memory, reset_peak, serve

from iitkit.batch import Batch, Tokens
from iitkit.interventions import BoundlessSubspace, Intervention, LowRankSubspace, RotatedSubspace, SiteInfo
from iitkit.models.anatomy import locate
from iitkit.models.replay import Keeping, Replay, make_runner
from iitkit.models.runs import PlainPrepared, PlainRunner, Prepared, Runner, label_logits
from iitkit.models.sites import Site
from iitkit.modules.base import label_loss

FILLS = 3
FRESH = count()
"""Names of stores that nobody else has."""


class Bench:
    """One network and one cell, as the bench asks for them.

    Args:
        mode: ``plain`` or ``replay``.
        folder: holds the networks' weights; logits are written there.
    """

    def __init__(self, mode: str, folder: Path) -> None:
        self.mode, self.folder = mode, folder
        self.model: nn.Module
        self.device = torch.device("cpu")
        self.runner: Runner | None = None

    def load(self, name: str, device: str = "cpu", dtype: str = "float32", threads: int = 1) -> Answer:
        """Load a network."""
        torch.set_num_threads(threads)
        self.name, self.device = name, torch.device(device)
        model: Any = networks.read(name, self.folder, device)
        self.model = model.to(self.device, getattr(torch, dtype))
        return {"torch": torch.__version__, **memory()}

    def cell(self, cell: dict[str, Any], plan: dict[str, Any]) -> Answer:
        """Take up a cell: its batches, its intervention, its runner; with replay, fill the store and time that."""
        at, width = cell["position"], networks.shape_of(self.name).width
        self.plan = plan
        self.batches = [self._batch(rows, at) for rows in plan["batches"]]
        self.location = locate(self.model, Site(cell["layer"], "block_output"))
        self.edit = intervention(cell["kind"], cell["rank"], width).to(self.device)
        self.optimizer = torch.optim.Adam([p for p in self.edit.parameters() if p.requires_grad], lr=1e-3)
        if self.mode == "plain":
            self._reset_peak()
            self.runner = make_runner(self.model, [self.location], "off")
            return {}
        fills, forwards, first = [], [], self._batch(plan["fresh"], at)
        times = FILLS if cell["tokens"] < 96 else FILLS - 1
        for i in range(times):
            forwards.append(self._forward(plan["unique"]))
            if isinstance(self.runner, Replay):
                self.runner.store.clear()  # one store at a time
            self.runner = None
            if i == times - 1:
                self._reset_peak()
            fills.append(self._fill(first))
        ratios = [fill / forward for fill, forward in zip(fills, forwards, strict=True)]
        return {"fill": fills, "forward": forwards, "fill_ratios": ratios, "fill_ratio": statistics.median(ratios)}

    def logits(self, name: str) -> Answer:
        """Write the logits of the first batch, unedited and edited, and the basis of the edit."""
        batch = self.batches[0]
        prepared = self.runner.prepare(batch)
        with torch.no_grad():
            found = {
                "plain": prepared.logits(None, batch.labels[:, :0])[:, 0],
                "edited": label_logits(prepared, [self.edit], batch.labels)[:, 0],
                "basis": self.edit.rotation.detach(),
            }
        save_file({key: value.float().cpu().contiguous() for key, value in found.items()}, self.folder / name)
        return {}

    def step(self, first: int, steps: int) -> Answer:
        """Train on ``steps`` batches from the ``first`` on; seconds per step, by the clock and of the CPU."""
        loss = torch.zeros(())

        def run() -> None:
            nonlocal loss
            for i in range(first, first + steps):
                loss = self._step(self.batches[i % len(self.batches)])

        cpu = time.process_time()
        seconds = self._timed(run) / steps
        return {"seconds": seconds, "cpu": (time.process_time() - cpu) / steps, "loss": float(loss)}

    def end(self) -> Answer:
        """What the cell took at its peak, and where the time of a step goes."""
        taken = memory()
        if self.device.type == "cuda":
            taken["peak_mb"] = torch.cuda.max_memory_allocated(self.device) / 1e6
        return {**taken, "profile": self._profile()}

    # --- parts ---

    def _batch(self, rows: dict[str, list[int]], position: int) -> Batch:
        pool = torch.tensor(self.plan["pool"])

        def tokens(numbers: list[int]) -> Tokens:
            chosen = torch.tensor(numbers)
            return Tokens(pool[chosen], torch.ones_like(pool[chosen]), chosen)

        n = len(rows["base"])
        labels, nought = torch.tensor(rows["labels"])[:, None], torch.zeros(n, dtype=torch.long)
        return Batch(
            base=tokens(rows["base"]),
            sources=(tokens(rows["source"]),),
            active=torch.ones(n, 1, dtype=torch.bool),
            source_of=torch.zeros(n, 1, dtype=torch.long),
            base_positions=torch.full((n, 1, 1), position),
            source_positions=torch.full((n, 1, 1), position),
            position_mask=torch.ones(n, 1, 1, dtype=torch.bool),
            labels=labels,
            candidates=labels[:, None],
            label=nought,
            base_label=nought,
            flipped=torch.zeros(n, dtype=torch.bool),
            variable=nought,
            rows=torch.arange(n),
        ).to(self.device)

    def _step(self, batch: Batch) -> Tensor:
        prepared = self._prepared(batch)
        with self.edit.held():
            loss = label_loss(label_logits(prepared, [self.edit], batch.labels), batch.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _profile(self, steps: int = 8) -> dict[str, float]:
        """Seconds of a step's parts, medians; ``edit`` is the intervention alone, forward and backward, within them."""
        parts: dict[str, list[float]] = {}

        def timed(name: str, run: Callable[[], Any]) -> Any:
            found: list[Any] = []
            parts.setdefault(name, []).append(self._timed(lambda: found.append(run())))
            return found[0]

        width = networks.shape_of(self.name).width
        at, gradient = torch.randn(2, 2, len(self.batches[0]), width, device=self.device).unbind(0)
        for batch in self.batches[:steps]:
            prepared = timed("prepare", lambda batch=batch: self._prepared(batch))
            with self.edit.held():
                logits = timed("forward", lambda p=prepared, b=batch: label_logits(p, [self.edit], b.labels))
                loss = label_loss(logits, batch.labels)
            self.optimizer.zero_grad()
            timed("backward", loss.backward)
            timed("optimizer", self.optimizer.step)
            timed("edit", lambda: self.edit(*at).backward(gradient[0]))
        return {name: statistics.median(seconds) for name, seconds in parts.items()}

    def _prepared(self, batch: Batch) -> Prepared:
        prepared: Prepared = self.runner.prepare(batch)
        if self.mode == "replay" and isinstance(prepared, PlainPrepared):
            raise RuntimeError("replay is off here")
        return prepared

    def _forward(self, unique: int) -> float:
        """Seconds of one plain forward pass over the unique prompts, with the LM head at their last tokens."""
        runner = PlainRunner(self.model, [])
        ids = torch.tensor(self.plan["pool"][:unique], device=self.device)
        size = len(self.batches[0])

        def run() -> None:
            with torch.no_grad():
                for part in ids.split(size):
                    PlainPrepared(runner, Tokens(part, torch.ones_like(part)), [], []).logits(None, part[:, :0])

        return self._timed(run)

    def _fill(self, first: Batch) -> float:
        """Seconds to fill an empty store with what every prompt needs as a base and as a source.

        A batch of other prompts goes before: it carries what a runner does once, its comparison with the plain run.
        """
        self.runner = make_runner(self.model, [self.location], "auto", Keeping(folder=f"{self.folder}/{next(FRESH)}"))
        self._prepared(first)
        ids = torch.tensor(self.plan["pool"][: self.plan["unique"]], device=self.device)
        there = torch.ones(len(ids), 1, 1, dtype=torch.bool)
        position = int(first.base_positions[0, 0, 0])
        prompts = (Tokens(ids, torch.ones_like(ids)), torch.full((len(ids), 1, 1), position), there)
        runner = self.runner
        assert isinstance(runner, Replay)
        return self._timed(lambda: runner.fill([prompts]))

    def _timed(self, run: Callable[[], None]) -> float:
        """Seconds by the clock; on a GPU by its events."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        start_event.record()
        run()
        end_event.record()
        torch.cuda.synchronize(self.device)
        return start_event.elapsed_time(end_event) / 1e3

    def _reset_peak(self) -> None:
        reset_peak()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)


def intervention(kind: str, rank: int | None, width: int) -> Any:
    """The intervention of a cell, the same in both modes."""
    site = SiteInfo(width, generator=torch.Generator().manual_seed(0))
    made: Intervention
    if rank is not None:
        made = LowRankSubspace(site, rank=rank)
    elif kind == "full":
        made = RotatedSubspace(site, coordinates=width)
    else:
        made = BoundlessSubspace(site)
    return made


if __name__ == "__main__":
    bench = Bench(sys.argv[1], Path(sys.argv[2]))
    serve({"load": bench.load, "cell": bench.cell, "logits": bench.logits, "step": bench.step, "end": bench.end})
