"""The engine: runs rows, and the cells of a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from torch import nn

from iitkit.models.grids.cells import Cell
from iitkit.models.grids.found import Cost, Found, Part, Progress, Reduce
from iitkit.models.grids.rows import Rows
from iitkit.models.grids.run import Run


class Engine:
    """Runs rows of a frozen network, and cells that edit them.

    Whether only the layers behind an edit and the positions from it on need be run is found out by comparing the first
    cells with plain hooked runs; an engine finds it out once for its network.

    Args:
        model: a causal language model; its parameters and hooks are left alone.
        mode: ``auto`` for the fastest way that holds, ``plain`` for hooked runs of the whole network.
        memory: bytes that a grid may use beside the network; a quarter of the free memory, at most 2 GiB, unless said.
    """

    def __init__(self, model: nn.Module, mode: Literal["auto", "plain"] = "auto", memory: int | None = None) -> None:
        self.model, self.memory = model, memory

    def run(self, rows: Rows, keep: Iterable[tuple[int | None, str]] = ()) -> Run:
        """Run rows unedited.

        Args:
            rows: what to run.
            keep: (layer, component) pairs to keep beside the block outputs, all heads of them; what is missed later is
                computed by another run.
        """
        raise NotImplementedError

    def results(
        self,
        base: Run,
        cells: Sequence[Cell],
        reduce: Reduce | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[Part]:
        """Yield the cells' logits at the columns that ``base`` reads, or what a reducer keeps, as they are done.

        Each cell comes once, in no order. No more logits exist at a time than the memory allows.

        Args:
            base: the run that is edited.
            cells: its edits.
            reduce: gets logits of some cells; None yields the logits.
            progress: is told how far it is after each part.

        Raises:
            IITKitError: before anything is run: a layer, component, head or column that is not there, a source whose
                rows or positions do not fit. What goes wrong later marks its cells as failed.
        """
        raise NotImplementedError

    def table(
        self,
        base: Run,
        cells: Sequence[Cell],
        reduce: Reduce,
        progress: Callable[[Progress], None] | None = None,
    ) -> Found:
        """Return what a reducer keeps of every cell; see :meth:`results`. Ctrl-C keeps what is done."""
        raise NotImplementedError

    def cost(self, base: Run, cells: Sequence[Cell]) -> Cost:
        """Estimate what cells take, without running any."""
        raise NotImplementedError
