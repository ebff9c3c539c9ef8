"""The engine: runs rows, and the cells of a grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError
from iitkit.models.grids.cells import Cell
from iitkit.models.grids.found import Cost, Found, Part, Progress, Reduce
from iitkit.models.grids.job import Job
from iitkit.models.grids.network import Item, Network
from iitkit.models.grids.paths import Paths, Receiver
from iitkit.models.grids.planning import MOST, PASS, Limits
from iitkit.models.grids.resolve import Resolver
from iitkit.models.grids.rows import Rows
from iitkit.models.grids.run import Run
from iitkit.models.grids.slopes import slopes
from iitkit.models.grids.ways import Ways
from iitkit.models.grids.work import Work
from iitkit.models.replay.store import free_bytes
from iitkit.models.sites import OUTSIDE


class Engine:
    """Runs rows of a frozen network, and cells that edit them.

    Whether only the layers behind an edit and the positions from it on need be run is found out by comparing the first
    cells with plain hooked runs; an engine finds it out once for its network.

    Args:
        model: a causal language model in eval mode; its parameters and hooks are left alone.
        mode: ``auto`` for the fastest way that holds, ``plain`` for hooked runs of the whole network.
        memory: bytes that a grid may use beside the network and the runs; unless said a quarter of the free memory,
            2 GiB at most on a CPU.

    Raises:
        IITKitError: a network without a list of blocks, or in training mode.
    """

    def __init__(self, model: nn.Module, mode: Literal["auto", "plain"] = "auto", memory: float | None = None) -> None:
        if mode not in ("auto", "plain"):
            raise IITKitError(f"mode {mode!r}: expected 'auto' or 'plain'")
        if model.training:
            raise IITKitError(f"{type(model).__name__} is in training mode: call model.eval() first")
        self.model, self.network = model, Network(model)
        self.ways = Ways(self.network, mode == "plain")
        self._memory = memory
        self._done, self._spent = 0.0, 0.0

    def run(self, rows: Rows, keep: Iterable[Item | str] = (), start: bool = True) -> Run:
        """Run rows unedited.

        Args:
            rows: what to run.
            keep: (layer, component) pairs to keep beside the block outputs, all heads of them, or components, which are
                meant in all layers; what is missed later is computed by another run.
            start: whether cells will start from it, so that the residual stream, keys and values are kept.

        Raises:
            IITKitError: a layer or component that is not there.
        """
        begun = time.perf_counter()
        run = Run(self, rows.to(self.network.device), self.items(keep), start)
        layers, tokens = len(self.network), rows.tokens.ids.numel()
        kind = self.network.device.type
        self.note(layers * (tokens + PASS.get(kind, PASS["cuda"])), time.perf_counter() - begun)
        return run

    def results(
        self,
        base: Run,
        cells: Sequence[Cell],
        reduce: Reduce | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[Part]:
        """Return the cells' logits at the columns that ``base`` reads, or what a reducer keeps, as they are done.

        Each cell comes once, in no order. No more logits exist at a time than the memory allows.

        Args:
            base: the run that is edited.
            cells: its edits.
            reduce: gets logits of some cells; None hands over the logits.
            progress: is told how far it is after each part.

        Raises:
            IITKitError: before anything is run: a layer, component, head or column that is not there, a source whose
                rows or positions do not fit. What goes wrong later marks its cells as failed.
        """
        return Work(self.job(base, cells), reduce or (lambda logits: logits), progress).parts()

    def table(
        self,
        base: Run,
        cells: Sequence[Cell],
        reduce: Reduce,
        progress: Callable[[Progress], None] | None = None,
    ) -> Found:
        """Return what a reducer keeps of every cell; see :meth:`results`. Ctrl-C keeps what is done."""
        with torch.no_grad():
            found = Found.empty(len(cells), reduce(base.logits[None])[0].cpu())
        parts = self.results(base, cells, reduce, progress)
        try:
            for part in parts:
                found.add(part)
        except KeyboardInterrupt:
            found.interrupted = True
        return found

    def paths(
        self,
        base: Run,
        senders: Sequence[Cell],
        receivers: Sequence[Receiver],
        reduce: Reduce,
        hold: Sequence[str] = ("attention", "mlp"),
        progress: Callable[[Progress], None] | None = None,
    ) -> Found:
        """Return what a reducer keeps of each sender's direct effect: path patching.

        The sender is changed and what stands behind it is held at what it is in the base, so that its change reaches
        the receivers along the residual stream only; then the base is run with what that makes of the receivers.

        Args:
            base: the run that is edited.
            senders: cells; what comes after a sender in its own layer is held as well.
            receivers: what is then patched, all of them at once; none for the direct effect on the logits.
            reduce: gets logits.
            hold: what is held: ``attention``, ``mlp`` or both. With ``attention`` alone, paths lead through MLPs too.
            progress: is told how far it is.

        Raises:
            IITKitError: a sender or receiver that is not there, or a sender whose change is held.
        """
        return Paths(self, base, receivers, hold).table(senders, reduce, progress)

    def edited(self, base: Run, cell: Cell, keep: Iterable[Item | str] = ()) -> Run:
        """Run rows with one cell's edits; what the run makes and keeps is what it is under them.

        Such a run serves as a source, and for what is looked at in it; cells cannot start from it.
        """
        return Run(self, base.rows, self.items(keep), start=False, edits=self.job(base, [cell]))

    def slopes(self, rows: Rows, items: Iterable[Item | str], metric: Callable[[Tensor], Tensor]) -> dict[Item, Tensor]:
        """Return the gradient of a metric with respect to components, in one forward and one backward.

        Args:
            rows: what is run, unedited.
            items: (layer, component) pairs, or components, which are meant in all layers.
            metric: makes of logits [B, (T,) vocabulary] one number, or one for each row.

        Returns:
            (layer, component) → [B, S, (heads,) width]; 0 where a position reaches nothing that is read.
        """
        return slopes(self.network, rows.to(self.network.device), self.items(items), metric)

    def lens(self, hidden: Tensor) -> Tensor:
        """Return what final norm and head make of residual streams, [n, T, width] → [n, T, vocabulary]."""
        self.network.look()
        return self.network.tail(hidden)

    def items(self, given: Iterable[Item | str]) -> list[Item]:
        """Return (layer, component) pairs; a component alone is meant in all layers."""
        found: list[Item] = []
        for item in given:
            if isinstance(item, str) and item not in OUTSIDE:
                found += [(layer, item) for layer in range(len(self.network))]
            else:
                found.append((None, item) if isinstance(item, str) else item)
        return found

    def cost(self, base: Run, cells: Sequence[Cell]) -> Cost:
        """Estimate what cells take, without running any."""
        return self.job(base, cells).cost()

    def job(self, base: Run, cells: Sequence[Cell]) -> Job:
        """Resolve cells, with all checks."""
        if base.edits is not None:
            raise IITKitError("the base is an edited run: cells start from unedited ones")
        if base.engine is not self:
            raise IITKitError("the base was run by another engine: run it with this one")
        resolver = Resolver(self.network, base)
        return Job(self, base, [resolver.cell(number, cell) for number, cell in enumerate(cells)])

    # --- what it costs ---

    def limits(self, growing: bool) -> Limits:
        """Return what bounds a batch."""
        network = self.network
        kind = network.device.type
        parameter = next(network.model.parameters())
        block = sum(p.numel() for p in network.blocks[0].parameters())
        head = network.head_size()
        wide = network.width * parameter.element_size()
        return Limits(
            layers=len(network),
            most=MOST.get(kind, MOST["cuda"]),
            overhead=PASS.get(kind, PASS["cuda"]),
            memory=self.memory / 2,
            token=block / network.width * parameter.element_size() + 8 * wide,
            past=6 * wide,
            head=head / max(block, 1),
            growing=growing,
        )

    @property
    def memory(self) -> float:
        """Bytes that a grid may use."""
        if self._memory is not None:
            return self._memory
        device = self.network.device
        free = free_bytes(device) / 4
        return free if device.type == "cuda" else min(free, 2.0**31)

    def note(self, work: float, seconds: float) -> None:
        """Note how long something took, for estimates; what is quicker than before counts at once."""
        self._done, self._spent = self._done + work, self._spent + seconds

    @property
    def speed(self) -> float:
        """Tokens × layers a second, so far."""
        return self._done / self._spent if self._spent else 1.0
