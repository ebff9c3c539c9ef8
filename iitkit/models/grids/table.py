"""All entries of all cells in one flat table: which cells change anything, and where each begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from iitkit.errors import IITKitError
from iitkit.interventions import Intervention
from iitkit.models.editing import Visit
from iitkit.models.grids.resolve import Edit
from iitkit.models.location import Location
from iitkit.models.runs import Selection, editing

if TYPE_CHECKING:
    from iitkit.models.grids.run import Run


@dataclass(frozen=True)
class Units:
    """What is run: one row of the base in one cell each. U of them.

    Args:
        cell: number of the cell, [U].
        row: row of the base, [U].
        before: number of the row's tokens left of the first edited one, [U].
        total: number of the row's tokens that must be known, [U].
        join: the layer that is run first, [U].
    """

    cell: Tensor
    row: Tensor
    before: Tensor
    total: Tensor
    join: Tensor

    def __len__(self) -> int:
        return len(self.cell)

    def take(self, which: Tensor) -> Units:
        """Return some of them."""
        return Units(*(x[which] for x in (self.cell, self.row, self.before, self.total, self.join)))


class Table:
    """The entries of the cells' edits.

    Args:
        base: the run that is edited.
        cells: each cell's edits.
        layers: number of layers.
        causal: whether a token sees no later one, so that what stands left of an edit is as it was.
        whole: whether all layers are run.
    """

    def __init__(
        self, base: Run, cells: Sequence[Sequence[Edit]], layers: int, causal: bool, whole: bool = False
    ) -> None:
        self.base, self.layers, self.causal = base, layers, causal
        self.edits = [edit for cell in cells for edit in cell]
        counts = torch.tensor([len(edit.entries) for edit in self.edits], dtype=torch.long)
        of_cell = torch.tensor([number for number, cell in enumerate(cells) for _ in cell], dtype=torch.long)
        self.edit = torch.arange(len(self.edits)).repeat_interleave(counts)
        self.entry = _joined([torch.arange(len(edit.entries)) for edit in self.edits])
        self.row = _joined([edit.entries.rows for edit in self.edits])
        self.column = _joined([edit.entries.columns for edit in self.edits])
        self.step = self.column - base.starts[self.row]
        joins = [0 if whole or edit.join is None else edit.join for edit in self.edits]
        self.join = torch.tensor(joins, dtype=torch.long)[self.edit]
        self.unit = of_cell[self.edit] * len(base.rows) + self.row
        self._settle(len(cells))
        self.group = torch.tensor(_numbered([_kind(edit) for edit in self.edits]), dtype=torch.long)[self.edit]

    def _settle(self, cells: int) -> None:
        """Find what each row of each cell must run, and drop entries that stand where nothing has changed."""
        b, far = len(self.base.rows), torch.iinfo(torch.long).max
        last = self.base.rows.reading.cpu().amax(1) + 1 - self.base.starts
        total = last if self.causal else self.base.lengths
        same, idle = self._same(), self._idle(last)
        live = ~same & ~idle

        def least(values: Tensor) -> Tensor:
            found = torch.full((cells * b,), far)
            return found.scatter_reduce(0, self.unit[live], values[live], "amin")

        before, join = least(self.step), least(self.join)
        self.runs = before < far
        self.before = before if self.causal else torch.zeros_like(before)
        self.first = join
        self.total = total.repeat(cells)
        # what equals the base's own left of, or below, the first change is as it was
        self.kept = (
            self.runs[self.unit] & ~idle & (self.step >= self.before[self.unit]) & (self.join >= join[self.unit])
        )

    def _same(self) -> Tensor:
        """Return which entries put there what is there in the unedited run."""
        found = torch.zeros(len(self.unit), dtype=torch.bool)
        known: dict[Any, Tensor] = {}
        start = 0
        for edit in self.edits:
            entries, stop = edit.entries, start + len(edit.entries)
            if edit.swaps:
                key = (id(entries), id(edit.patch.source), edit.patch.joint)
                if key not in known:
                    known[key] = self._same_of(edit)
                found[start:stop] = known[key]
            start = stop
        return found

    def _same_of(self, edit: Edit) -> Tensor:
        entries, source = edit.entries, edit.patch.source
        assert source is not None
        assert entries.source_rows is not None
        assert entries.source_columns is not None
        beside = torch.zeros(len(self.base.rows), dtype=torch.long)
        beside[entries.rows] = entries.source_rows
        shared = self.base.shared(source, beside)
        if not self.causal:
            whole = (shared == self.base.lengths) & (shared == source.lengths[beside])
            shared = shared.where(whole, 0)
        step = entries.columns - self.base.starts[entries.rows]
        theirs = entries.source_columns - source.starts[entries.source_rows]
        return _together(edit, (step == theirs) & (step < shared[entries.rows]))

    def _idle(self, last: Tensor) -> Tensor:
        """Return which entries cannot reach a column that is read."""
        if not self.causal:
            return torch.zeros(len(self.unit), dtype=torch.bool)
        found = self.step >= last[self.row]
        ends = torch.tensor([_ends(edit, self.layers) for edit in self.edits], dtype=torch.bool)
        unread = (self.column[:, None] != self.base.rows.reading.cpu()[self.row]).all(1)
        found |= ends[self.edit] & unread if len(self.edits) else False
        start = 0
        for edit in self.edits:
            stop = start + len(edit.entries)
            if edit.patch.joint:
                found[start:stop] = _together(edit, found[start:stop])
            start = stop
        return found

    # --- what is run ---

    def filled(self) -> Tensor:
        """Return which cells cannot change anything, [cells]."""
        return ~self.runs.view(-1, len(self.base.rows)).any(1)

    def units(self, cells: Tensor) -> Units:
        """Return what must be run of some cells."""
        b = len(self.base.rows)
        numbers = (cells[:, None] * b + torch.arange(b)).flatten()
        numbers = numbers[self.runs[numbers]]
        return Units(numbers // b, numbers % b, self.before[numbers], self.total[numbers], self.first[numbers])

    def visits(self, units: Units, columns: str) -> list[tuple[Edit, Location, Visit]]:
        """Return what edits a batch of units, in the order in which it acts at one place.

        Args:
            units: the batch's rows.
            columns: ``base`` where columns are those of the base's tokens, ``run`` where they count from the first
                edited token.
        """
        number = units.cell * len(self.base.rows) + units.row
        place = torch.full((len(self.runs),), -1)
        place[number] = torch.arange(len(units))
        which = (self.kept & (place[self.unit] >= 0)).nonzero()[:, 0]
        which = which[self.group[which].argsort(stable=True)]
        at = place[self.unit[which]]
        column = self.column[which] if columns == "base" else self.step[which] - units.before[at]
        _, sizes = torch.unique_consecutive(self.group[which], return_counts=True)
        parts = torch.split(torch.arange(len(which)), sizes.tolist())
        found = [self._visit(which[part], at[part], column[part]) for part in parts]
        return sorted(found, key=lambda each: each[0].turn)

    def _visit(self, which: Tensor, at: Tensor, column: Tensor) -> tuple[Edit, Location, Visit]:
        """Return one group's visit: entries ``which`` of the table, in rows ``at`` of the batch."""
        device = self.base.network.device
        edits, counts = torch.unique_consecutive(self.edit[which], return_counts=True)
        parts = list(zip(edits.tolist(), torch.split(self.entry[which], counts.tolist()), strict=True))
        edit = self.edits[parts[0][0]]
        at, column = at.to(device), column.to(device)
        intervention = edit.patch.intervention
        if intervention is None:
            location = self.base.network.location(*edit.item)
            return edit, location, _checked(location, at, column, self._put(parts, at, column))
        features = torch.empty(0, device=device)
        if intervention.needs_source:
            features = torch.cat([self.edits[e].values(entries) for e, entries in parts]).to(device)
        order = (at.sort(stable=True)).indices  # a row's entries stay together
        selection = Selection(at[order], column[order], column[order], column[order])
        location = edit.location
        if edit.patch.joint:
            joined = int(torch.bincount(at).max()) if len(at) else 0
            location = replace(location, joined=joined)
        location = replace(location, variable=edit.patch.variable)
        features = features[order] if intervention.needs_source else features
        visit = editing(location, selection, intervention, features, edit.patch.strength)
        return edit, location, _checked(location, at, column, visit)

    def _put(self, parts: Sequence[tuple[int, Tensor]], at: Tensor, column: Tensor) -> Visit:
        units: list[Tensor] = []
        columns: list[Tensor] = []
        heads: list[Tensor] = []
        values: list[Tensor] = []
        start = 0
        for number, entries in parts:
            edit, stop = self.edits[number], start + len(entries)
            given, which = edit.values(entries), edit.heads()
            rows, places = at[start:stop], column[start:stop]
            if which is not None:
                count = len(which)
                heads.append(torch.tensor(which, device=at.device).repeat(len(entries)))
                rows, places = rows.repeat_interleave(count), places.repeat_interleave(count)
                if isinstance(edit.patch.head, int):
                    given = given[:, None]
                given = given.expand(-1, count, *given.shape[2:]).flatten(0, 1)
            units.append(rows)
            columns.append(places)
            values.append(given)
            start = stop
        where = (torch.cat(units), torch.cat(columns), *([torch.cat(heads)] if heads else []))

        def visit(hidden: Tensor, inputs: Tensor | None) -> Tensor:
            unit = hidden.shape[len(where) :]
            put = torch.cat([value.to(hidden).expand(-1, *unit) for value in values])
            return hidden.index_put(where, put)

        return visit


def _checked(location: Location, at: Tensor, column: Tensor, visit: Visit) -> Visit:
    """Return the visit of an activation that has rows and positions where entries are."""
    rows, columns = int(at.max()) + 1, int(column.max()) + 1
    dims = 3 + int(location.view is not None and location.view.parted)

    def checked(hidden: Tensor, inputs: Tensor | None) -> Tensor | None:
        if hidden.dim() != dims or hidden.shape[0] < rows or hidden.shape[1] < columns:
            raise IITKitError(
                f"{location.label}: the activation is {tuple(hidden.shape)}: expected [batch, sequence, "
                f"{'heads, ' * (dims - 3)}width] of {rows} × {columns} or more"
            )
        return visit(hidden, inputs)

    return checked


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.zeros(0, dtype=torch.long)


def _together(edit: Edit, found: Tensor) -> Tensor:
    """Return an answer for each entry; of positions that are one vector all have the answer that holds for all."""
    if not edit.patch.joint:
        return found
    every = torch.ones(edit.entries.shape[0], dtype=torch.long)
    every = every.scatter_reduce(0, edit.entries.rows, found.long(), "amin")
    return every.bool()[edit.entries.rows]


def _ends(edit: Edit, layers: int) -> bool:
    """Return whether an edit reaches only its own position's logits: it stands behind the last attention."""
    if edit.join is None:
        return False
    return edit.join == layers or (edit.item[0] == layers - 1 and edit.local)


def _kind(edit: Edit) -> Any:
    """Return what edits must have in common to be one visit."""
    patch: Any = edit.patch
    edits: Intervention | None = patch.intervention
    if edits is None:
        return (edit.item, edit.turn)
    head = tuple(patch.head) if isinstance(patch.head, list) else patch.head
    return (edit.item, edit.turn, head, id(edits), patch.strength, patch.joint, patch.variable)


def _numbered(kinds: Sequence[Any]) -> list[int]:
    known: dict[Any, int] = {}
    return [known.setdefault(kind, len(known)) for kind in kinds]
