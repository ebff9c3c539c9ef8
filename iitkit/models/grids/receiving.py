"""What cells make of components inside the network, before these are held or edited themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from iitkit.models.editing import Stopped, Visit, stopping, visiting
from iitkit.models.grids.job import Job
from iitkit.models.grids.network import Item
from iitkit.models.grids.planning import batches
from iitkit.models.grids.sweep import Sweep
from iitkit.models.grids.table import Units
from iitkit.models.location import Location
from iitkit.models.runs import call


class Received:
    """Components as cells make them.

    Args:
        cells: how many.
        rows: rows of the base, B.
        columns: columns of the base, S.
    """

    def __init__(self, cells: int, rows: int, columns: int) -> None:
        self.shape = (cells, rows, columns)
        self.values: dict[Item, Tensor] = {}
        self.known: dict[Item, Tensor] = {}
        """Where a cell may have changed a component, [cells, B, S], on the CPU."""

    def put(self, item: Item, units: Units, columns: Tensor, there: Tensor, made: Tensor) -> None:
        """Note activations [n, W, (heads,) width] of ``n`` units at columns [n, W], where these are ``there``."""
        if item not in self.values:
            self.values[item] = made.new_zeros(*self.shape, *made.shape[2:])
            self.known[item] = torch.zeros(self.shape, dtype=torch.bool)
        unit, step = there.nonzero(as_tuple=True)
        where = (units.cell[unit], units.row[unit], columns[unit, step])
        self.known[item][where] = True
        device = made.device
        index = tuple(x.to(device) for x in where)
        self.values[item][index] = made[unit.to(device), step.to(device)]

    def at(self, item: Item, cell: int, columns: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return columns [B, n] of a cell, −1 where it changes nothing, and what is there, [B, n, (heads,) width]."""
        if item not in self.values:
            return torch.full_like(columns, -1), None
        rows, among = torch.arange(len(columns))[:, None], columns.clamp(min=0)
        known = self.known[item][cell][rows, among] & (columns >= 0)
        device = self.values[item].device
        return columns.where(known, -1), self.values[item][cell][rows.to(device), among.to(device)]


@torch.no_grad()
def receive(job: Job, items: Sequence[Item]) -> Received:
    """Return what the cells of a job make of components.

    Args:
        job: the cells.
        items: the components.
    """
    engine, base, way = job.engine, job.base, job.way()
    found = Received(len(job.cells), len(base.rows), base.rows.tokens.ids.shape[1])
    cells = torch.arange(len(job.cells))
    swept = way.name == "tokens" and all(edit.join is not None for cell in job.cells for edit in cell)
    swept = swept and all(layer is not None and engine.network.location(layer, c).replays for layer, c in items)
    if not swept:
        _hooked(job, items, cells, found)
        return found
    table = job.table(way.causal, False)
    units = table.units(cells)
    for batch in batches(units, engine.limits(way.growing)):
        some = units.take(batch)
        sweep = Sweep(base, some, prefix=True, watched=items)
        sweep.run(table)
        steps = torch.arange(sweep.width)
        there = steps < (some.total - some.before)[:, None]
        for item, made in sweep.seen.items():
            n = len(made)
            found.put(item, some.take(torch.arange(n)), sweep.columns[:n].cpu(), there[:n], made)
    return found


def _hooked(job: Job, items: Sequence[Item], cells: Tensor, found: Received) -> None:
    """Find out by whole runs with hooks, all columns of them."""
    base, network = job.base, job.base.network
    table = job.table(False, True)
    units, seen = table.units(cells), dict[Item, Tensor]()

    def taking(item: Item) -> Visit:
        def visit(hidden: Tensor, inputs: Tensor | None) -> None:
            seen[item] = hidden.clone()
            if len(seen) == len(set(items)):
                raise Stopped

        return visit

    if not len(units):
        return
    rows = base.rows.take(units.row.to(network.device))
    # what is looked at comes before what is held there
    visits: list[tuple[Location, Visit]] = [(network.location(*item), taking(item)) for item in dict.fromkeys(items)]
    visits += [(location, visit) for _, location, visit in table.visits(units, "base")]
    with visiting([*network.embedded(rows.embeddings), *visits]), stopping():
        call(network.model, rows.tokens)
    columns = torch.arange(rows.tokens.ids.shape[1]).expand(len(units), -1)
    for item, made in seen.items():
        found.put(item, units, columns, rows.tokens.mask.bool().cpu(), made)
