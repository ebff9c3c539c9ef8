"""A network as grids see it: its blocks, its components, and one unedited run that hands over what it makes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from iitkit.batch import Tokens
from iitkit.errors import IITKitError
from iitkit.models.anatomy import locate
from iitkit.models.editing import Visit, stopping, visiting
from iitkit.models.families import hidden_size
from iitkit.models.grids.rows import Rows
from iitkit.models.location import Location
from iitkit.models.replay.capturing import Seeing
from iitkit.models.replay.prepared import passing
from iitkit.models.replay.runner import stacks_of
from iitkit.models.runs import call, head_at
from iitkit.models.sites import OUTSIDE, Head, Site

log = logging.getLogger("iitkit")

Item = tuple[int | None, str]
"""A layer (None outside the layers) and a component; of a component with heads, all of them."""

RESIDUAL = ("block_input", "block_output")


@dataclass(frozen=True)
class Made:
    """What an unedited run made.

    Args:
        logits: at the columns that are read, [B, T, vocabulary]; None where the run ended before the head.
        entries: the residual stream that enters each layer, and at last what leaves the last one, [B, S, width] each;
            empty where it was not asked for, or is of another shape.
        keys: of each layer, [B, heads, S, size]; empty where the network keeps none.
        values: as ``keys``.
        items: the components that were asked for, [B, S, …] each.
    """

    logits: Tensor | None
    entries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    items: dict[Item, Tensor]


class Network:
    """A causal language model.

    Args:
        model: the network.

    Raises:
        IITKitError: a network without a list of blocks.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        stacks = stacks_of(model)
        self.blocks = [block for stack in stacks for block in stack]
        self.single = len(stacks) == 1
        self.outputs: int | None = None
        """Length of the tuple that a block returns, None for a bare tensor; known after a run."""
        self._looked, self._caches = False, True
        self._locations: dict[tuple[int | None, str, Any], Location] = {}

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    def location(self, layer: int | None, component: str, head: Head = None) -> Location:
        """Find a component; several patches at one place share one location.

        Raises:
            IITKitError: a layer, component or head that is not there.
        """
        key = (layer, component, tuple(head) if isinstance(head, list) else head)
        if key not in self._locations:
            if component == "logits":
                raise IITKitError("logits are what a grid gives: name another component")
            self._locations[key] = locate(self.model, Site(layer, component, head=head), "patch")
        return self._locations[key]

    @cached_property
    def width(self) -> int:
        """Width of the residual stream."""
        found = hidden_size(self.model) or self.location(0, "block_output").width
        assert found is not None
        return found

    def head_size(self) -> int:
        """Return how many weights the LM head has."""
        untyped: Any = self.model
        return sum(parameter.numel() for parameter in untyped.get_output_embeddings().parameters())

    @torch.no_grad()
    def run(
        self,
        rows: Rows,
        items: Sequence[Item],
        start: bool,
        logits: bool = True,
        edits: Sequence[tuple[Location, Visit]] = (),
    ) -> Made:
        """Run rows.

        Args:
            rows: what to run.
            items: components to hand over.
            start: whether to hand over the residual stream, keys and values.
            logits: whether to go on to the head.
            edits: edits of the run; what is handed over is as they leave it.
        """
        if start and self._caches:
            try:
                return self._run(rows, items, logits, edits, start, caching=True)
            except IITKitError:
                raise
            except Exception as error:  # e.g. a recurrent layer that wants a cache of its own kind
                made = self._run(rows, items, logits, edits, start, caching=False)
                log.info("grids: no keys and values: %s: %s", type(error).__name__, error)
                self._caches = False
                return made
        return self._run(rows, items, logits, edits, start, caching=False)

    def _run(
        self,
        rows: Rows,
        items: Sequence[Item],
        logits: bool,
        edits: Sequence[tuple[Location, Visit]],
        start: bool,
        caching: bool,
    ) -> Made:
        made: dict[Item, Tensor] = {}
        entries: dict[int, Tensor] = {}
        keys: dict[int, Tensor] = {}
        values: dict[int, Tensor] = {}

        def see(layer: int, k: Tensor, v: Tensor) -> None:
            keys[layer], values[layer] = k, v

        with ExitStack() as stack:
            visits = [(self.location(*item), _keeping(made, item)) for item in dict.fromkeys(items)]
            stack.enter_context(visiting([*self.embedded(rows.embeddings), *edits, *visits]))
            if start:
                stack.enter_context(visiting(self._residual(entries)))
            stack.callback(self.blocks[-1].register_forward_hook(self._look).remove)
            stack.enter_context(head_at(self.model, rows.reading if logits else None))
            stack.enter_context(stopping())
            extra = {"use_cache": True, "past_key_values": Seeing(see)} if caching else {}
            found = call(self.model, rows.tokens, **extra)
        for item, tensor in made.items():
            _check_shape(item, tensor, rows)
        n, shape = len(self), rows.tokens.ids.shape
        complete = set(keys) == set(range(n))
        known = len(entries) == n + 1 and all(e.dim() == 3 and e.shape[:2] == shape for e in entries.values())
        return Made(
            found.logits if logits else None,
            [entries[i] for i in range(n + 1)] if known else [],
            [keys[i] for i in range(n)] if complete else [],
            [values[i] for i in range(n)] if complete else [],
            made,
        )

    def _residual(self, entries: dict[int, Tensor]) -> list[tuple[Location, Visit]]:
        found = [(Location(self.blocks[0], "input", 0, False, None, "block_input"), _keeping(entries, 0))]
        for i, block in enumerate(self.blocks):
            found.append((Location(block, "output", i, True, None, "block_output"), _keeping(entries, i + 1)))
        return found

    def _look(self, module: nn.Module, args: object, output: object) -> None:
        self._looked, self.outputs = True, len(output) if isinstance(output, tuple) else None

    def look(self) -> None:
        """See what blocks return, where no run has shown it yet."""
        if not self._looked:
            one = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            self.run(Rows(Tokens(one, torch.ones_like(one))), (), start=False, logits=False)

    def embedded(self, embeddings: Tensor | None) -> list[tuple[Location, Visit]]:
        """Return the visit that puts given embeddings in the place of the network's own."""
        if embeddings is None:
            return []
        given = embeddings

        def visit(hidden: Tensor, inputs: Tensor | None) -> Tensor:
            if hidden.shape != given.shape:
                raise IITKitError(
                    f"embeddings {tuple(given.shape)}: the token embedding returns {tuple(hidden.shape)}: give as many"
                )
            return given.to(hidden)

        return [(self.location(None, "embeddings"), visit)]

    @torch.no_grad()
    def tail(self, hidden: Tensor) -> Tensor:
        """Return the logits of what leaves the last block, [n, T, width] → [n, T, vocabulary]."""
        shape = hidden.shape[:2]
        ids = torch.zeros(shape, dtype=torch.long, device=hidden.device)
        with passing([(self.blocks, hidden, self.outputs)]):
            logits: Tensor = call(self.model, Tokens(ids, torch.ones_like(ids))).logits
        return logits


def _check_shape(item: Item, tensor: Tensor, rows: Rows) -> None:
    """Check that an activation has a row for each row and a position for each token."""
    if tensor.shape[:2] != rows.tokens.ids.shape:
        layer, component = item
        where = component if layer is None else f"layer {layer} {component}"
        raise IITKitError(
            f"{where}: the activation is {tuple(tensor.shape)}: expected [batch, sequence, …], "
            f"{tuple(rows.tokens.ids.shape)} here"
        )


def _keeping(into: dict[Any, Tensor], key: Any) -> Visit:
    def visit(hidden: Tensor, inputs: Tensor | None) -> None:
        into[key] = hidden.clone()  # what follows may change it in place

    return visit


def outside(component: str) -> bool:
    """Return whether a component belongs to no layer."""
    return component in OUTSIDE
