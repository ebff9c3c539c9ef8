"""Runs of a batch of pairs: source activations, then the base with the edits, logits only at the label positions.

:class:`PlainRunner` computes everything in every step; :mod:`iitkit.models.replay` keeps what never changes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from iitkit.batch import IGNORED, Runnable, Tokens, Values
from iitkit.errors import IITKitError
from iitkit.interventions import Intervention
from iitkit.models.anatomy import Location
from iitkit.models.editing import Stopped, Visit, stopping, visiting


@dataclass(frozen=True)
class Selection:
    """The entries of a batch that one placement edits: M pairs of row and column, made once per batch.

    Args:
        rows: rows of the batch, [M].
        columns: columns of the base, [M].
        source_columns: columns of the source, [M].
        source_of: which source each entry takes its activation from, [M].
        sequence: whether the inputs are sequences; else an activation may be [B, width], of one column.
    """

    rows: Tensor
    columns: Tensor
    source_columns: Tensor
    source_of: Tensor
    sequence: bool = True

    def lined(self, hidden: Tensor) -> Tensor:
        """Return an activation with its axis of columns, [B, S, …]."""
        return hidden if self.sequence or hidden.dim() > 2 else hidden[:, None]

    def repeated(self, times: int) -> tuple[Selection, Tensor]:
        """Return the selection for a batch whose rows stand ``times`` times, copies side by side.

        Also which entry each of its entries is a copy of, [M · times]: a row's entries stay together.
        """
        copies = torch.arange(times, device=self.rows.device)
        rows, order = (self.rows[:, None] * times + copies).flatten().sort(stable=True)
        entries = order // times
        columns, source_columns = self.columns[entries], self.source_columns[entries]
        return Selection(rows, columns, source_columns, self.source_of[entries], self.sequence), entries


def select(batch: Runnable) -> list[Selection]:
    """Return, for each placement, the entries of the batch that it edits."""
    selections = []
    for p in range(batch.active.shape[1]):
        rows, slots = (batch.position_mask[:, p] & batch.active[:, p, None]).nonzero(as_tuple=True)
        columns, sources = batch.base_positions[rows, p, slots], batch.source_positions[rows, p, slots]
        sequence = isinstance(batch.base, Tokens)
        selections.append(Selection(rows, columns, sources, batch.source_of[rows, p], sequence))
    return selections


def call(model: nn.Module, tokens: Tokens | Values, **extra: Any) -> Any:
    """Run a network on tokens, with the position ids that its padding asks for; or on values, its only argument."""
    if isinstance(tokens, Values):
        return model(tokens.inputs.to(next(model.parameters()).dtype))
    arguments: dict[str, Any] = {"input_ids": tokens.ids, "attention_mask": tokens.mask, "use_cache": False, **extra}
    if "position_ids" in inspect.signature(model.forward).parameters:
        arguments.setdefault("position_ids", tokens.position_ids)
    return model(**arguments)


@contextmanager
def head_at(model: nn.Module, columns: Tensor | None) -> Iterator[None]:
    """Let the LM head see only the given columns [B, T] of its input; None ends the run before the head."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        raise IITKitError(f"{type(model).__name__} has no LM head: load a causal language model")

    def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if columns is None:
            raise Stopped
        hidden = args[0]
        rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
        return (hidden[rows, columns].contiguous(), *args[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def editing(
    location: Location, selection: Selection, intervention: Intervention, features: Tensor, strength: float = 1.0
) -> Visit:
    """Return the visit that edits the selected entries with their sources' ``features`` [M, width].

    Args:
        location: the placement's location; ``joined`` positions of a row are one vector.
        selection: the entries.
        intervention: edits them.
        features: the sources' activations, [M, (heads,) width].
        strength: ``h + strength · (edit(h) − h)``.
    """
    block = location.variable if intervention.blocks is not None else None

    def visit(hidden: Tensor, inputs: Tensor | None) -> Tensor | None:
        if selection.rows.numel() == 0:
            return None
        where = (selection.rows, selection.columns)
        lined = selection.lined(hidden)
        before = lined[where]
        source = None
        if intervention.needs_source:
            source = features if intervention.source_width is not None else features.to(hidden.dtype)
        entering = None
        if intervention.needs_input:
            entering = module_input(location, None if inputs is None else selection.lined(inputs), where)
        if location.joined:
            groups = _rows_joined(location, selection)
            if source is not None and intervention.source_width is not None:  # each position has the whole's
                source = source[:: location.joined]
            edited = intervention(
                before.reshape(groups, -1),
                None if source is None else source.reshape(groups, -1),
                strength,
                inputs=None if entering is None else entering.reshape(groups, -1),
                block=block,
            ).reshape(before.shape)
        else:
            if entering is not None and before.dim() > entering.dim():  # every head sees the same input
                entering = entering[:, None].expand(*before.shape[:2], -1)
            edited = intervention(before, source, strength, inputs=entering, block=block)
        put = lined.index_put(where, edited)
        return put if lined is hidden else put[:, 0]

    return visit


def module_input(location: Location, inputs: Tensor | None, where: tuple[Tensor, Tensor]) -> Tensor:
    """Return the module's own input at the entries, [M, input width].

    Raises:
        IITKitError: a site that is a module's input itself.
    """
    if inputs is None:
        raise IITKitError(
            f"{location.label}: the intervention reads the module's input, and the site has none: "
            "place it at a module's output"
        )
    return inputs[where]


def grouped(location: Location, features: Tensor) -> Tensor:
    """Return entries [M, (heads,) width] as the vectors that the location's intervention sees, [*, width]."""
    return features.reshape(len(features) // location.joined, -1) if location.joined else features.flatten(0, -2)


def _rows_joined(location: Location, selection: Selection) -> int:
    """Return the number of rows, after a check that each has as many positions as the intervention was built for."""
    rows, positions = torch.unique_consecutive(selection.rows, return_counts=True)
    if not bool((positions == location.joined).all()):
        given = sorted(set(positions.tolist()) - {location.joined})
        raise IITKitError(
            f"{location.label}: the joint intervention was built for {location.joined} positions, "
            f"a row has {given[0]}: give prompts that have them all"
        )
    return len(rows)


class Prepared(Protocol):
    """A batch whose source activations are known; runs the base under any interventions at the same sites."""

    @property
    def features(self) -> Sequence[Tensor]:
        """The source activations of each placement, [M, width]."""

    def logits(self, interventions: Sequence[Intervention] | None, continuation: Tensor, copies: int = 1) -> Tensor:
        """Return the logits that predict what follows the prompt.

        Args:
            interventions: one for each placement, in order; None runs the base unedited.
            continuation: tokens that follow the prompt, [B · copies, T − 1].
            copies: how many times each row of the batch stands, copies side by side.

        Returns:
            [B · copies, T, vocabulary].
        """


class Runner(Protocol):
    """Prepares batches for a network and sites."""

    def prepare(self, batch: Runnable) -> Prepared:
        """Find the source activations of a batch."""


class PlainRunner:
    """Runs every source up to the deepest site, and the base from the first layer to the last.

    Args:
        model: the frozen network.
        locations: the sites, in the order of the batch's placements.
        gradients: whether gradients flow through the sources' runs, of a network that trains.
    """

    def __init__(self, model: nn.Module, locations: Sequence[Location], gradients: bool = False) -> None:
        self.model, self.locations, self.gradients = model, list(locations), gradients

    def prepare(self, batch: Runnable) -> PlainPrepared:
        """Run the sources."""
        selections = select(batch)
        return PlainPrepared(self, batch.base, selections, self._features(batch, selections))

    def _features(self, batch: Runnable, selections: list[Selection]) -> list[Tensor]:
        features: list[Tensor | None] = [None] * len(selections)
        for k, source in enumerate(batch.sources):
            wanted = [(selection.source_of == k).nonzero()[:, 0] for selection in selections]
            left = {p for p, entries in enumerate(wanted) if entries.numel()}

            def visit(p: int, hidden: Tensor, wanted: list[Tensor] = wanted, left: set[int] = left) -> None:
                chosen, entries = selections[p], wanted[p]
                hidden = chosen.lined(hidden)
                if features[p] is None:
                    features[p] = hidden.new_empty(chosen.rows.shape[0], *hidden.shape[2:])
                kept = features[p]
                assert kept is not None
                kept[entries] = hidden[chosen.rows[entries], chosen.source_columns[entries]]
                left.discard(p)
                if not left:
                    raise Stopped

            visits = [(self.locations[p], _bound(visit, p)) for p in sorted(left)]
            if visits:
                graph = self.gradients and torch.is_grad_enabled()
                with torch.set_grad_enabled(graph), visiting(visits), stopping():
                    call(self.model, source)
        return [batch.labels.new_empty(0, 0, dtype=torch.float32) if f is None else f for f in features]


def _bound(visit: Any, p: int) -> Visit:
    return lambda hidden, inputs: visit(p, hidden)


@dataclass(frozen=True)
class PlainPrepared:
    """See :class:`Prepared`; runs the whole network."""

    runner: PlainRunner
    base: Tokens | Values
    selections: list[Selection]
    features: list[Tensor]

    def logits(self, interventions: Sequence[Intervention] | None, continuation: Tensor, copies: int = 1) -> Tensor:
        """See :meth:`Prepared.logits`."""
        visits: list[tuple[Location, Visit]] = []
        if interventions is not None:
            for location, intervention, selection, features in zip(
                self.runner.locations, interventions, self.selections, self.features, strict=True
            ):
                if copies > 1:
                    selection, entries = selection.repeated(copies)
                    features = features[entries]
                visits.append((location, editing(location, selection, intervention, features)))
        base = self.base if copies == 1 else self.base.repeated(copies)
        if isinstance(base, Values):
            with visiting(visits):
                found = call(self.runner.model, base)
            classes: Tensor = getattr(found, "logits", found)
            return classes[:, None]
        columns = base.last[:, None] + torch.arange(continuation.shape[1] + 1, device=base.ids.device)
        with visiting(visits), head_at(self.runner.model, columns):
            logits: Tensor = call(self.runner.model, base.extended(continuation)).logits
        return logits


def label_logits(prepared: Prepared, interventions: Sequence[Intervention] | None, labels: Tensor) -> Tensor:
    """Return the logits at the label's positions, [B, T, vocabulary], for labels [B, T]."""
    return prepared.logits(interventions, labels[:, :-1])


def candidate_scores(
    prepared: Prepared, interventions: Sequence[Intervention] | None, candidates: Tensor, known: Tensor | None = None
) -> Tensor:
    """Return the log-probability of each candidate, summed over all its tokens, [B, C]; −inf where there is none.

    Args:
        prepared: the batch.
        interventions: one for each placement; None for the base as it is.
        candidates: candidates' tokens, [B, C, T].
        known: logits at the label's positions, [B, ≥ 1, vocabulary], to save a run where candidates are single tokens.
    """
    b, c, t = candidates.shape
    real = candidates != IGNORED
    if t == 1:
        logits = prepared.logits(interventions, candidates[:, 0, :0]) if known is None else known
        scores = logits[:, 0].float().log_softmax(-1).gather(1, candidates[:, :, 0].clamp(min=0))
    else:
        rows = candidates.reshape(b * c, t)
        logits = prepared.logits(interventions, rows[:, :-1], copies=c).float().log_softmax(-1)
        tokens = logits.gather(2, rows.clamp(min=0)[:, :, None])[:, :, 0].reshape(b, c, t)
        scores = tokens.masked_fill(~real, 0.0).sum(2)
    return scores.masked_fill(~real[:, :, 0], -torch.inf)
