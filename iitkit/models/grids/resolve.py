"""From what a user writes to what is run: each cell's edits, entry by entry, checked against network and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from iitkit.errors import IITKitError, choices
from iitkit.interventions import Intervention
from iitkit.interventions.edits import Swap
from iitkit.models.grids.cells import Cell, Patch
from iitkit.models.grids.network import RESIDUAL, Item, Network
from iitkit.models.location import Location

if TYPE_CHECKING:
    from iitkit.models.grids.run import Run

LOCAL = ("attention_output", "attention_value_output", "query_output", "mlp_", "router_")
"""Beginnings of components (after ``head_``) of which a position reaches no other position in its own layer."""


@dataclass(frozen=True, eq=False)
class _Entries:
    """The M places that a patch edits, row by row; on the CPU.

    Args:
        rows: rows of the base, [M].
        columns: columns of the base, [M].
        slots: which of the patch's columns each entry is, [M].
        shape: rows and columns of the patch, B and n.
        source_rows: rows of the source, [M]; None without a source.
        source_columns: columns of the source, [M]; None without a source.
    """

    rows: Tensor
    columns: Tensor
    slots: Tensor
    shape: tuple[int, int]
    source_rows: Tensor | None
    source_columns: Tensor | None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Edit:
    """One patch of a cell in one layer.

    Args:
        item: layer and component.
        patch: what was written; its head and what is put there.
        turn: the patch's place in its cell.
        location: where it is.
        entries: the places.
        join: the layer that is run first, the number of layers for none; None where the whole network must be run.
    """

    item: Item
    patch: Patch
    turn: int
    location: Location
    entries: _Entries
    join: int | None

    @property
    def residual(self) -> bool:
        """Whether what is edited enters the layer that is run first."""
        return self.item[1] in RESIDUAL and self.join is not None and not self.reads_input

    @property
    def reads_input(self) -> bool:
        """Whether an intervention reads its module's input."""
        return self.patch.intervention is not None and self.patch.intervention.needs_input

    @property
    def local(self) -> bool:
        """Whether a position reaches no other position in the layer of the edit."""
        return self.item[1].removeprefix("head_").startswith(LOCAL)

    @property
    def swaps(self) -> bool:
        """Whether the same activation in base and source changes nothing."""
        edit = self.patch.intervention
        return self.patch.source is not None and (edit is None or isinstance(edit.edit, Swap))

    def heads(self) -> list[int] | None:
        """Return the heads that are edited, of a component that has them."""
        if self.location.view is None or not self.item[1].startswith(("head_", "attention_weight")):
            return None
        head = self.patch.head
        return list(range(self.location.heads)) if head is None else [head] if isinstance(head, int) else list(head)

    def values(self, which: Tensor) -> Tensor:
        """Return what stands in the place of entries, [m, (heads,) width] or what broadcasts to it; by index [m]."""
        patch, entries = self.patch, self.entries
        if patch.source is not None:
            assert entries.source_rows is not None
            assert entries.source_columns is not None
            whole = patch.source.whole(self.item)
            found: Tensor = whole[entries.source_rows[which], entries.source_columns[which]]
            return found if patch.head is None else found[:, patch.head]
        given = patch.values
        assert given is not None
        if isinstance(given, Mapping):
            given = given[self.item[0]]  # type: ignore[index]
        found = torch.as_tensor(given)
        unit = 3 + int(self.location.view is not None and self.location.view.parted)
        found = found.reshape(*[1] * (unit - found.dim()), *found.shape)
        spread = found.expand(*entries.shape, *found.shape[2:])
        return spread[entries.rows[which], entries.slots[which]]


def _key(columns: Any) -> Any:
    """Return what stands for columns as a user gives them, while these live."""
    return columns if isinstance(columns, int | None) else ("at", id(columns))


class Resolver:
    """Resolves the cells of one base.

    Args:
        network: the network.
        base: the run that is edited.
    """

    def __init__(self, network: Network, base: Run) -> None:
        self.network, self.base = network, base
        self._known: dict[Any, _Entries] = {}

    def cell(self, number: int, cell: Cell) -> list[Edit]:
        """Return the edits of a cell.

        Raises:
            IITKitError: naming the cell and what does not fit.
        """
        patches = [cell] if isinstance(cell, Patch) else list(cell)
        try:
            return [edit for turn, patch in enumerate(patches) for edit in self._patch(turn, patch)]
        except IITKitError as error:
            raise IITKitError(f"cell {number}: {error}") from error

    def _patch(self, turn: int, patch: Patch) -> list[Edit]:
        if not isinstance(patch, Patch):
            raise IITKitError(f"{type(patch).__name__}: expected a Patch, or several")
        given = patch.layer
        layers: Sequence[int | None] = list(given) if isinstance(given, Sequence | range) else [given]
        if not layers or len(set(layers)) < len(layers):
            raise IITKitError(f"layers {list(layers)}: expected one or several different ones")
        _check_what(patch, layers)
        entries = self._entries(patch)
        return [self._edit(turn, patch, (layer, patch.component), entries) for layer in layers]

    def _entries(self, patch: Patch) -> _Entries:
        key = (_key(patch.columns), id(patch.source), _key(patch.source_columns))
        if key not in self._known:  # many patches of a grid differ in their layer only
            columns = self._of_base(patch.columns)
            rows, slots = (columns >= 0).nonzero(as_tuple=True)
            among = at = None
            if patch.source is not None:
                of, wanted = self._of_source(patch, columns)
                among, at = of[rows], wanted[rows, slots]
            shape = (columns.shape[0], columns.shape[1])
            self._known[key] = _Entries(rows, columns[rows, slots], slots, shape, among, at)
        return self._known[key]

    def _edit(self, turn: int, patch: Patch, item: Item, entries: _Entries) -> Edit:
        location = self.network.location(*item, patch.head)
        if patch.source is not None and item[1] == "attention_weight":
            _check_keys(self.base, patch.source)
        layer, component = item
        join = location.block if location.replays else None
        reads = patch.intervention is not None and patch.intervention.needs_input
        if join is not None and component == "block_output" and not reads:
            join += 1
        assert join is None or layer is not None
        return Edit(item, patch, turn, location, entries, join)

    def _of_base(self, given: Any) -> Tensor:
        if given is not None:
            return self.base.rows.columns(given).cpu()
        steps = torch.arange(self.base.rows.tokens.ids.shape[1]).expand(len(self.base.rows), -1)
        return steps.where(self.base.rows.tokens.mask.bool().cpu(), -1)

    def _of_source(self, patch: Patch, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return which row of the source stands beside each of the base, [B], and its columns, [B, n]."""
        source = patch.source
        assert source is not None
        count = len(source.rows)
        if count not in (1, len(columns)):
            raise IITKitError(f"the source has {count} rows: expected {len(columns)} as the base has, or one for all")
        rows = torch.arange(len(columns)) if count == len(columns) else torch.zeros(len(columns), dtype=torch.long)
        if patch.source_columns is None:
            at = (columns - self.base.starts[:, None] + source.starts[rows][:, None]).where(columns >= 0, -1)
            beyond = (at >= (source.starts + source.lengths)[rows][:, None]) & (columns >= 0)
            if bool(beyond.any()):
                row, k = beyond.nonzero()[0].tolist()
                index = int(columns[row, k] - self.base.starts[row])
                raise IITKitError(
                    f"token {index} of row {row} has none beside it in the source, which has "
                    f"{int(source.lengths[rows[row]])} tokens: name the columns, or the source's own (source_columns)"
                )
            return rows, at
        at = source.rows.columns(patch.source_columns).cpu()
        at = at[rows] if len(at) != len(rows) else at
        if at.shape != columns.shape or bool(((at < 0) & (columns >= 0)).any()):
            raise IITKitError(
                f"source_columns {tuple(at.shape)} beside columns {tuple(columns.shape)}: expected one for each"
            )
        return rows, at


def _check_what(patch: Patch, layers: Sequence[int | None]) -> None:
    what = {
        "source": patch.source is not None,
        "values": patch.values is not None,
        "intervention": patch.intervention is not None,
    }
    edit: Intervention | None = patch.intervention
    if patch.values is not None and (what["source"] or what["intervention"]):
        raise IITKitError("values beside a source or an intervention: give one of them")
    if not any(what.values()):
        raise IITKitError("the patch puts nothing there: give a source, values or an intervention")
    if edit is not None and edit.needs_source and patch.source is None:
        raise IITKitError(f"{type(edit).__name__} takes activations from a source: give one")
    if edit is not None and edit.blocks is not None and patch.variable not in edit.blocks:
        raise IITKitError(f"variable {patch.variable!r}: {type(edit).__name__} has a block for {choices(edit.blocks)}")
    if isinstance(patch.values, Mapping) and (missing := [layer for layer in layers if layer not in patch.values]):
        raise IITKitError(f"values has nothing for layer {missing[0]}: it has {choices(patch.values)}")


def _check_keys(base: Run, source: Run) -> None:
    ours, theirs = base.rows.tokens.mask, source.rows.tokens.mask
    if ours.shape[1] != theirs.shape[1] or not bool((ours == theirs).all()):
        raise IITKitError(
            "attention_weight: the keys of base and source must be the same columns: give prompts of equal lengths, "
            "padded alike"
        )
