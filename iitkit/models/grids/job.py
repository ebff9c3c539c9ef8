"""The cells of a grid, resolved: how they are run, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from iitkit.models.editing import Visit
from iitkit.models.grids.found import Cost
from iitkit.models.grids.network import Item
from iitkit.models.grids.planning import batches, steps
from iitkit.models.grids.resolve import Edit
from iitkit.models.grids.run import Run
from iitkit.models.grids.table import Table, Units
from iitkit.models.grids.ways import Way
from iitkit.models.location import Location

if TYPE_CHECKING:
    from iitkit.models.grids.engine import Engine


class Job:
    """Cells that are resolved; the way they are run is chosen when they are.

    Args:
        engine: runs them.
        base: the run that is edited.
        cells: each cell's edits.
    """

    def __init__(self, engine: Engine, base: Run, cells: Sequence[Sequence[Edit]]) -> None:
        self.engine, self.base, self.cells = engine, base, cells
        self._tables: dict[tuple[bool, bool], Table] = {}

    def prefetch(self) -> None:
        """Let each source keep what is taken from it, in one run each."""
        wanted: dict[int, tuple[Run, list[Item]]] = {}
        for edit in (edit for cell in self.cells for edit in cell):
            if (source := edit.patch.source) is not None:
                wanted.setdefault(id(source), (source, []))[1].append(edit.item)
        for source, items in wanted.values():
            with suppress(Exception):  # what is wrong with one of them is said by its cells
                source.keep(items)

    def way(self) -> Way:
        """Return the way that holds, found out on some of the cells where it is not known yet."""
        self.prefetch()
        ways = self.engine.ways
        while True:
            way = ways.now(self.base)
            if way.name == "plain":
                return way
            table = self.table(way.causal, False)
            swept, _, filled = self.split(way)
            if not ways.check(self.base, table, self.table(False, True), table.units(swept)):
                continue
            # cells that are filled in as nothing that is read sees their edit are not compared
            if not (len(filled) and way.causal and ways.looks_ahead(self.base)):
                return way

    def table(self, causal: bool, whole: bool) -> Table:
        """Return the entries of all cells."""
        key = (causal, whole)
        if key not in self._tables:
            self._tables[key] = Table(self.base, self.cells, len(self.engine.network), causal, whole)
        return self._tables[key]

    def visits(self) -> list[tuple[Location, Visit]]:
        """Return what edits all of the base's rows, of the first cell."""
        self.prefetch()
        table = Table(self.base, self.cells[:1], len(self.engine.network), causal=False, whole=True)
        rows = torch.arange(len(self.base.rows))
        none = torch.zeros_like(rows)
        return [(location, visit) for _, location, visit in table.visits(Units(none, rows, none, none, none), "base")]

    def split(self, way: Way) -> tuple[Tensor, Tensor, Tensor]:
        """Return the cells that are swept, those that are run plainly, and those that change nothing."""
        filled = self.table(way.causal, True).filled()
        swept = torch.tensor([all(edit.join is not None for edit in cell) for cell in self.cells], dtype=torch.bool)
        swept &= torch.tensor(way.name != "plain")
        if way.name != "plain":  # an edit of the last layer may reach nothing that is read
            filled = filled | (swept & self.table(way.causal, False).filled())
        runs = ~filled
        return (swept & runs).nonzero()[:, 0], (~swept & runs).nonzero()[:, 0], filled.nonzero()[:, 0]

    def cost(self) -> Cost:
        """Estimate."""
        engine, base = self.engine, self.base
        way = engine.ways.now(base)
        swept, plainly, filled = self.split(way)
        limits = engine.limits(way.growing)
        tokens, work = 0, 0.0
        units = self.table(way.causal, False).units(swept)
        memory = 0.0
        for batch in batches(units, limits):
            some = units.take(batch)
            ran, passes = steps(some, limits)
            tokens, work = tokens + ran, work + limits.work(ran, passes, len(some) * base.rows.reading.shape[1])
            width = int((some.total - some.before).max())
            before = int(some.before.max())
            memory = max(memory, len(some) * (width * limits.token + (width + before) * limits.past))
        s, layers = base.rows.tokens.ids.shape[1], limits.layers
        each = s * layers * len(base.rows)
        ran = len(plainly) * each
        work += limits.work(ran, layers * len(plainly), len(plainly) * base.rows.reading.numel())
        return Cost(
            cells=len(self.cells),
            filled=len(filled),
            steps=tokens + ran,
            plain=len(self.cells) * each,
            seconds=work / engine.speed,
            memory=int(min(memory, limits.memory) + self.logits_at_once() * base.reading[0].nbytes * 3),
            mode=way.name,
        )

    def logits_at_once(self) -> int:
        """Return of how many rows logits may exist at a time, with what a reducer makes of them."""
        each = self.base.reading[0].nbytes * 4
        return max(len(self.base.rows), int(min(self.engine.memory / 4, 2**28) // each))
