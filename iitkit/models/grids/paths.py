"""Path patching: what a sender does to receivers directly, with everything between them held as it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from iitkit.errors import IITKitError, choices
from iitkit.models.grids.cells import Cell, Patch
from iitkit.models.grids.found import Cost, Found, Progress, Reduce, first_line
from iitkit.models.grids.receiving import Received, receive
from iitkit.models.grids.run import Run
from iitkit.models.sites import Head

if TYPE_CHECKING:
    from iitkit.models.grids.engine import Engine

HELD = {"attention": "attention_value_output", "mlp": "mlp_output"}
"""What may be held → the component that holds it."""

LEAVING = ("block_input", "block_output", "attention_output", "attention_value_output", "mlp_output")
"""Components whose change what is held in their own layer does not undo; the others lie within it."""


@dataclass(frozen=True)
class Receiver:
    """What a path ends in.

    Args:
        layer: index of the block; None for ``final_norm``.
        component: any component: what the sender's change makes of it is put there.
        head: index of a head, or several; all unless said.
        columns: columns of the base's tokens, [n] or [B, n]; all unless said.
    """

    layer: int | None
    component: str
    head: Head = None
    columns: Tensor | int | Sequence[int] | None = None


class Paths:
    """Makes of senders the cells in which the receivers alone have what the sender's change makes of them.

    Args:
        engine: runs it.
        base: the run that is edited.
        receivers: the paths' ends; none for the logits themselves.
        hold: what is held at what it is in the base: ``attention``, ``mlp`` or both. What is not held is computed anew,
            and counts as part of the path.
    """

    def __init__(self, engine: Engine, base: Run, receivers: Sequence[Receiver], hold: Sequence[str]) -> None:
        if unknown := [what for what in hold if what not in HELD]:
            raise IITKitError(f"hold {unknown[0]!r}: expected some of {choices(HELD)}")
        self.engine, self.base, self.receivers, self.hold = engine, base, list(receivers), list(hold)
        steps = torch.arange(base.rows.tokens.ids.shape[1]).expand(len(base.rows), -1)
        everywhere = steps.where(base.rows.tokens.mask.bool().cpu(), -1)
        given = [receiver.columns for receiver in self.receivers]
        self.columns = [everywhere if at is None else base.rows.columns(at).cpu() for at in given]
        for receiver in self.receivers:
            engine.network.location(receiver.layer, receiver.component, receiver.head)

    def held(self, sender: Cell) -> list[Patch]:
        """Return a cell in which a sender is changed and what stands behind it is held.

        In its own layer that is what comes after it: behind an attention's queries the MLP, but not the attention.

        Raises:
            IITKitError: a sender outside the layers, or of several layers whose change what is held would undo.
        """
        patches = [sender] if isinstance(sender, Patch) else list(sender)
        placed: list[tuple[int, str]] = []
        for patch in patches:
            component = patch.component.removeprefix("head_")
            given = [patch.layer] if isinstance(patch.layer, int) else list(patch.layer or ())
            if not given:
                raise IITKitError(f"sender {patch.component}: expected a component of a layer")
            placed += [(layer + int(component == "block_output"), component) for layer in given]
        first = min(layer for layer, _ in placed)
        free = set[str]()
        for layer, component in placed:
            if component not in LEAVING:
                if layer > first:
                    raise IITKitError(
                        f"sender {component}: what it changes in layer {layer} is held, as another is sent from layer "
                        f"{first}: send from {choices(LEAVING)}"
                    )
                free.add("mlp" if component.startswith(("mlp", "router")) else "attention")
        if "mlp" in free:
            free.add("attention")  # comes before, and is as it was
        behind = range(first, len(self.engine.network))
        holds = [
            Patch(layer, HELD[what], source=self.base)
            for layer in behind
            for what in self.hold
            if layer > first or what not in free
        ]
        return [*holds, *patches]

    def cells(self, senders: Sequence[Cell]) -> list[Cell]:
        """Return the receivers' cells, one for each sender."""
        if not self.receivers:
            return [self.held(sender) for sender in senders]
        job = self.engine.job(self.base, [self.held(sender) for sender in senders])
        received = receive(job, [(receiver.layer, receiver.component) for receiver in self.receivers])
        return [self._cell(number, received) for number in range(len(senders))]

    def _cell(self, number: int, received: Received) -> list[Patch]:
        """Return the cell of one sender; a row in which it reaches no receiver is left as it is."""
        patches: list[Patch] = []
        for receiver, columns in zip(self.receivers, self.columns, strict=True):
            at, values = received.at((receiver.layer, receiver.component), number, columns)
            if values is not None and receiver.head is not None:
                values = values[:, :, receiver.head]
            given = 0.0 if values is None else values
            patches.append(Patch(receiver.layer, receiver.component, at, receiver.head, values=given))
        return patches

    def cost(self, senders: Sequence[Cell]) -> Cost:
        """Estimate what senders take: a run in which the rest is held, and where there are receivers another."""
        cost = self.engine.cost(self.base, [self.held(sender) for sender in senders])
        if not self.receivers:
            return cost
        return replace(cost, steps=2 * cost.steps, plain=2 * cost.plain, seconds=2 * cost.seconds)

    def at_once(self) -> int:
        """Return how many senders are run at a time."""
        tokens, engine = self.base.rows.tokens.ids.numel(), self.engine
        limits = engine.limits(False)
        receivers = max(1, len(self.receivers)) * limits.past * tokens
        return max(1, min(limits.units(tokens, 0), int(engine.memory / 4 / receivers)))

    def table(
        self, senders: Sequence[Cell], reduce: Reduce, progress: Callable[[Progress], None] | None = None
    ) -> Found:
        """Return the table of senders; see :meth:`iitkit.models.grids.engine.Engine.paths`."""
        engine, base, begun = self.engine, self.base, time.perf_counter()
        for number, sender in enumerate(senders):
            try:
                self.held(sender)
            except IITKitError as error:
                raise IITKitError(f"sender {number}: {error}") from error
        with torch.no_grad():
            found = Found.empty(len(senders), reduce(base.logits[None])[0].cpu())
        numbers = list(range(len(senders)))
        waiting = [numbers[i : i + self.at_once()] for i in numbers[:: self.at_once()]]
        try:
            while waiting:
                some = waiting.pop(0)
                try:
                    cells = self.cells([senders[number] for number in some])
                except IITKitError:
                    raise
                except Exception as error:
                    if len(some) > 1:
                        half = len(some) // 2
                        waiting[:0] = [some[:half], some[half:]]
                    else:
                        found.failed[some[0]], found.done[some[0]] = first_line(error), True
                    continue
                for part in engine.results(base, cells, reduce):
                    found.add(part.numbered(some))
                if progress is not None:
                    share = float(found.done.float().mean())
                    left = (time.perf_counter() - begun) * (1 - share) / share
                    progress(Progress(int(found.done.sum()), len(senders), share, left))
        except KeyboardInterrupt:
            found.interrupted = True
        return found
