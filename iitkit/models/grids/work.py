"""The work of a grid: batch after batch, cells handed over as they are done, failures marked, nothing lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from iitkit.models.grids.found import Part, Progress, Reduce, first_line
from iitkit.models.grids.hooked import hooked
from iitkit.models.grids.job import Job
from iitkit.models.grids.planning import Limits, batches, steps
from iitkit.models.grids.sweep import Sweep
from iitkit.models.grids.table import Table, Units


class Work:
    """Runs the cells of a job.

    Args:
        job: the cells.
        reduce: gets logits [n, B, (T,) vocabulary].
        progress: is told how far it is after each part.
    """

    def __init__(self, job: Job, reduce: Reduce, progress: Callable[[Progress], None] | None) -> None:
        self.job, self.reduce, self.progress = job, reduce, progress
        self.engine, self.base = job.engine, job.base
        self.network = job.engine.network
        self.rows, self.reads = len(job.base.rows), job.base.rows.reading.shape[1]
        self.failed: dict[int, str] = {}
        self.done, self.ran, self.all = 0, 0.0, 0.0
        self.begun = time.perf_counter()

    def parts(self) -> Iterator[Part]:
        """Yield the cells as they are done."""
        way = self.job.way()
        swept, plainly, filled = self.job.split(way)
        limits = self.engine.limits(way.growing)
        each = limits.work(self.base.rows.tokens.ids.numel() * limits.layers, limits.layers, self.rows * self.reads)
        table = self.job.table(way.causal, False)
        bands = [table.units(cells) for cells in _parts(swept, self._at_once())]
        plans = [list(batches(units, limits)) for units in bands]
        self.all = each * len(plainly) + sum(
            self._work(units.take(batch), limits) for units, plan in zip(bands, plans, strict=True) for batch in plan
        )
        yield from self._filled(filled)
        for units, plan in zip(bands, plans, strict=True):
            yield from self._band(table, units, plan, limits)
        yield from self._plainly(self.job.table(way.causal, True), plainly, limits, each)

    def _at_once(self) -> int:
        """Return of how many cells what leaves the last layer may be kept."""
        each = self.rows * self.reads * self.network.width * self.base.reading.element_size()
        return max(1, int(self.engine.memory / 4 / each))

    def _work(self, units: Units, limits: Limits) -> float:
        return limits.work(*steps(units, limits), len(units) * self.reads)

    # --- cells that change nothing ---

    def _filled(self, cells: Tensor) -> Iterator[Part]:
        if not len(cells):
            return
        try:
            with torch.no_grad():
                values = self.reduce(self.base.logits[None])
        except Exception as error:
            yield self._told([], None, dict.fromkeys(cells.tolist(), first_line(error)))
            return
        for some in _parts(cells, self.job.logits_at_once() // self.rows):
            yield self._told(some.tolist(), values.expand(len(some), *values.shape[1:]), {}, filled=True)

    # --- swept ---

    def _band(self, table: Table, units: Units, plan: Sequence[Tensor], limits: Limits) -> Iterator[Part]:
        """Sweep some cells, and hand over each when all of its rows have been through."""
        if not len(units):
            return
        cells, of, left = torch.unique_consecutive(units.cell, return_inverse=True, return_counts=True)
        final = self.base.entries[-1].new_empty(len(cells), self.rows, self.reads, self.network.width)
        ran = torch.zeros(len(cells), self.rows, dtype=torch.bool)
        ran[of, units.row] = True
        for batch in plan:
            begun, failed = time.perf_counter(), dict[int, str]()
            self._sweep(table, units, batch, of, final, failed)
            self.engine.note(limits.work(*steps(units.take(batch), limits), 0), time.perf_counter() - begun)
            left -= torch.bincount(of[batch], minlength=len(cells))
            ready = ((left == 0) & torch.bincount(of[batch], minlength=len(cells)).bool()).nonzero()[:, 0]
            failed = {number: why for number, why in failed.items() if number not in self.failed}
            self.failed |= failed
            ready = ready[torch.tensor([int(cells[i]) not in self.failed for i in ready], dtype=torch.bool)]
            self.ran += self._work(units.take(batch), limits)
            if failed:
                yield self._told([], None, failed)
            for some in _parts(ready, self.job.logits_at_once() // self.rows):
                begun = time.perf_counter()
                logits = self._logits(final[some], ran[some])
                reads = int(ran[some].sum()) * self.reads
                self.engine.note(limits.work(0, 0, reads), time.perf_counter() - begun)
                yield from self._handed(cells[some].tolist(), logits)

    @torch.no_grad()
    def _sweep(
        self, table: Table, units: Units, batch: Tensor, of: Tensor, final: Tensor, failed: dict[int, str]
    ) -> None:
        some = units.take(batch)
        try:
            found = Sweep(self.base, some, table.causal).run(table)
        except Exception as error:
            if len(batch) == 1:
                failed.setdefault(int(some.cell[0]), first_line(error))
                return
            for half in batch.tensor_split(2):
                self._sweep(table, units, half, of, final, failed)
            return
        final[of[batch].to(final.device), some.row.to(final.device)] = found

    @torch.no_grad()
    def _logits(self, final: Tensor, ran: Tensor) -> Tensor:
        """Return logits [n, B, T, vocabulary] of what left the last layer; of rows that were not run the base's."""
        ran = ran.to(final.device)
        if bool(ran.all()):
            logits = self.network.tail(final.flatten(0, 1))
            return logits.reshape(*final.shape[:2], *logits.shape[1:])
        found = self.base.reading.expand(len(final), -1, -1, -1).clone()
        found[ran] = self.network.tail(final[ran])
        return found

    # --- run plainly ---

    @torch.no_grad()
    def _plainly(self, table: Table, cells: Tensor, limits: Limits, each: float) -> Iterator[Part]:
        width = self.base.rows.tokens.ids.shape[1]
        most = min(limits.units(width, 0), self.job.logits_at_once())
        for some in _parts(cells, most // self.rows):
            begun, failed = time.perf_counter(), dict[int, str]()
            found = self._hooked(table, some, most, failed)
            self.failed |= failed
            self.ran += each * len(some)
            self.engine.note(each * len(some), time.perf_counter() - begun)
            if failed:
                yield self._told([], None, failed)
            for numbers, logits in found:
                yield from self._handed(numbers, logits)

    def _hooked(self, table: Table, cells: Tensor, most: int, failed: dict[int, str]) -> list[tuple[list[int], Tensor]]:
        units = table.units(cells)
        try:
            logits = [hooked(self.base, table, units.take(part)) for part in _parts(torch.arange(len(units)), most)]
        except Exception as error:
            if len(cells) == 1:
                failed[int(cells[0])] = first_line(error)
                return []
            return [part for half in cells.tensor_split(2) for part in self._hooked(table, half, most, failed)]
        found = self.base.reading.expand(len(cells), -1, -1, -1).clone()
        place = torch.searchsorted(cells, units.cell)
        found[place.to(found.device), units.row.to(found.device)] = torch.cat(logits)
        return [(cells.tolist(), found)]

    # --- handing over ---

    def _handed(self, cells: list[int], logits: Tensor) -> Iterator[Part]:
        """Reduce logits [n, B, T, vocabulary]; where that fails, cell by cell."""
        alone = self.base.rows.alone
        try:
            with torch.no_grad():
                values = self.reduce(logits[:, :, 0] if alone else logits)
            if len(values) != len(cells):
                raise ValueError(f"the reducer made {tuple(values.shape)} of {len(cells)} cells")
        except Exception as error:
            if len(cells) == 1:
                yield self._told([], None, {cells[0]: first_line(error)})
                return
            for i, cell in enumerate(cells):
                yield from self._handed([cell], logits[i : i + 1])
            return
        yield self._told(cells, values, {})

    def _told(self, cells: list[int], values: Tensor | None, failed: dict[int, str], filled: bool = False) -> Part:
        self.failed |= failed
        self.done += len(cells) + len(failed)
        if self.progress is not None:
            share = min(1.0, self.ran / self.all) if self.all else 1.0
            spent = time.perf_counter() - self.begun
            left = spent * (1 - share) / share if self.ran else (None if self.all else 0.0)
            self.progress(Progress(self.done, len(self.job.cells), share, left))
        return Part(cells, torch.empty(0) if values is None else values, failed, filled)


def _parts(which: Tensor, most: int) -> tuple[Tensor, ...]:
    """Return parts of at most so many, at least one each; none of nothing."""
    found: tuple[Tensor, ...] = torch.split(which, max(1, most))
    return found if len(which) else ()
