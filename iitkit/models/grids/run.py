"""One run and what it made, kept for the cells that start from it or take their values from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from iitkit.errors import IITKitError
from iitkit.models.grids.network import RESIDUAL, Item, Made, Network
from iitkit.models.grids.rows import Rows
from iitkit.models.sites import Head

if TYPE_CHECKING:
    from iitkit.models.grids.engine import Engine
    from iitkit.models.grids.job import Job


class Run:
    """A run; made by :meth:`iitkit.models.grids.engine.Engine.run`, or ``edited``.

    Args:
        engine: whose network was run.
        rows: what was run.
        keep: (layer, component) pairs to keep beside the residual stream, all heads of them.
        start: whether cells will start from it: keeps the residual stream, keys and values of all layers.
        edits: what edits it, where it is an edited run.
    """

    def __init__(
        self, engine: Engine, rows: Rows, keep: Iterable[Item] = (), start: bool = True, edits: Job | None = None
    ) -> None:
        self.engine, self.rows, self.edits = engine, rows, edits
        self.starts, self.lengths = rows.starts.cpu(), (rows.stops - rows.starts).cpu()
        """Column of each row's first token, and the number of its tokens, [B], on the CPU."""
        made = self._run(_items(keep), start)
        assert made.logits is not None
        self.reading, self._logits = made.logits, made.logits[:, 0] if rows.alone else made.logits
        self.entries, self.keys, self.values = made.entries, made.keys, made.values
        self._items = made.items

    @property
    def network(self) -> Network:
        """The network that was run."""
        return self.engine.network

    @property
    def logits(self) -> Tensor:
        """Logits at the columns that are read, [B, (T,) vocabulary]."""
        return self._logits

    def at(self, layer: int | None, component: str = "block_output", head: Head = None) -> Tensor:
        """Return activations at all columns, [B, S, (heads,) width]; what was not kept is computed by another run.

        What stands at padding means nothing.

        Raises:
            IITKitError: a layer, component or head that is not there.
        """
        whole = self.whole((layer, component))
        if head is None:
            return whole
        self.network.location(layer, component, head)  # whether there is such a head
        found: Tensor = whole[:, :, head]
        return found

    def whole(self, item: Item) -> Tensor:
        """Return a component's activations, all heads of it."""
        if (kept := self._kept(item)) is None:
            self.keep([item])
            kept = self._kept(item)
        assert kept is not None
        return kept

    def keep(self, items: Iterable[Item]) -> None:
        """Compute what of these is not kept yet, in one run."""
        missing = [item for item in _items(items) if self._kept(item) is None]
        if missing:
            self._items |= self._run(missing, start=False, logits=False).items

    def _kept(self, item: Item) -> Tensor | None:
        layer, component = item
        if layer is not None and component in RESIDUAL and self.entries:
            self.network.location(layer, component)  # whether there is such a layer
            return self.entries[layer + int(component == "block_output")]
        return self._items.get(item)

    def _run(self, items: Sequence[Item], start: bool, logits: bool = True) -> Made:
        visits = [] if self.edits is None else self.edits.visits()
        return self.network.run(self.rows, items, start, logits, visits)

    def restart(self) -> None:
        """Keep the residual stream, keys and values, where that was left out."""
        if not self.entries:
            made = self._run((), start=True, logits=False)
            self.entries, self.keys, self.values = made.entries, made.keys, made.values

    def shared(self, other: Run, rows: Tensor) -> Tensor:
        """Return how many tokens each row has in common with another run's row from the first on, [B].

        Args:
            other: another run.
            rows: which of its rows stands beside each of ours, [B].
        """
        if other is self:
            same = rows == torch.arange(len(self.rows))
            if bool(same.all()):
                return self.lengths
        if self.edits is not None or other.edits is not None:
            return torch.zeros_like(self.lengths)
        ours, theirs = _compact(self), _compact(other)
        width = min(ours[0].shape[1], theirs[0].shape[1])
        equal = ours[0][:, :width] == theirs[0][rows, :width]
        if ours[1] is not None or theirs[1] is not None:
            a, b = (_embedded(run, each[1]) for run, each in ((self, ours), (other, theirs)))
            equal &= (a[:, :width] == b[rows, :width]).all(-1)
        most = torch.minimum(self.lengths, other.lengths[rows])
        return torch.minimum(equal.long().cumprod(1).sum(1), most)


def _items(items: Iterable[Item]) -> list[Item]:
    found = list(dict.fromkeys(items))
    for item in found:
        if not isinstance(item, tuple) or len(item) != 2:
            raise IITKitError(f"keep {item!r}: expected (layer, component), e.g. (3, 'mlp_output')")
    return found


def _compact(run: Run) -> tuple[Tensor, Tensor | None]:
    """Return ids [B, longest] and given embeddings without what pads them on the left; on the CPU."""
    ids = run.rows.tokens.ids.cpu()
    columns = (run.starts[:, None] + torch.arange(int(run.lengths.max()))).clamp(max=ids.shape[1] - 1)
    given = run.rows.embeddings
    rows = torch.arange(len(ids))[:, None]
    return ids.gather(1, columns), None if given is None else given.cpu()[rows, columns]


def _embedded(run: Run, given: Tensor | None) -> Tensor:
    """Return a run's embeddings without what pads them on the left; its network's own where none were given."""
    if given is not None:
        return given
    ids = run.rows.tokens.ids
    columns = (run.starts[:, None] + torch.arange(int(run.lengths.max()))).clamp(max=ids.shape[1] - 1)
    return run.whole((None, "embeddings")).cpu()[torch.arange(len(ids))[:, None], columns]
