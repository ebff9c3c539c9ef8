"""Staged interchanges: source 0 → source 1 → … → base, each run edited with what the run before was edited to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from iitkit.batch import Batch, Runnable, Tokens
from iitkit.interventions import Intervention
from iitkit.models.anatomy import Location
from iitkit.models.editing import Stopped, Visit, stopping, visiting
from iitkit.models.runs import PlainPrepared, PlainRunner, call, editing, select


class StagedRunner:
    """Runs batches whose ``stage`` says which placement belongs to which arrow; everything is computed in every step.

    Args:
        model: the frozen network.
        locations: the sites, in the order of the batch's placements.
    """

    def __init__(self, model: nn.Module, locations: Sequence[Location]) -> None:
        self.plain = PlainRunner(model, locations)

    def prepare(self, batch: Runnable) -> StagedPrepared:
        """Note the batch: its sources are run with the interventions."""
        assert isinstance(batch, Batch)
        return StagedPrepared(self.plain, batch)


class StagedPrepared:
    """See :class:`~iitkit.models.runs.Prepared`; runs the sources with their edits, one after the other, then the base.

    A placement of stage k takes its activation from the run of source k, which the placements of stage k − 1 edit, and
    edits the next source, in the last stage the base. Gradients flow through the edited sources.

    Args:
        runner: the network and its sites.
        batch: the pairs, whose ``stage`` says which placement belongs where.
    """

    def __init__(self, runner: PlainRunner, batch: Batch) -> None:
        self.runner, self.batch, self.selections = runner, batch, select(batch)
        self._plain: list[Tensor] | None = None

    @property
    def features(self) -> Sequence[Tensor]:
        """The activations that each placement would take from an unedited source, [M, width]."""
        if self._plain is None:
            self._plain = self._carried(None)
        return self._plain

    def logits(self, interventions: Sequence[Intervention] | None, continuation: Tensor, copies: int = 1) -> Tensor:
        """See :meth:`~iitkit.models.runs.Prepared.logits`."""
        last = max(self.batch.stage)
        if interventions is None:
            return PlainPrepared(PlainRunner(self.runner.model, []), self.batch.base, [], []).logits(
                None, continuation, copies
            )
        features = self._carried(interventions)
        final = [p for p, stage in enumerate(self.batch.stage) if stage == last]
        base = PlainPrepared(
            PlainRunner(self.runner.model, [self.runner.locations[p] for p in final]),
            self.batch.base,
            [self.selections[p] for p in final],
            [features[p] for p in final],
        )
        return base.logits([interventions[p] for p in final], continuation, copies)

    def _carried(self, interventions: Sequence[Intervention] | None) -> list[Tensor]:
        """Run the sources one after the other; return what each placement takes from its own."""
        features: list[Tensor] = [torch.empty(0)] * len(self.selections)
        for k, source in enumerate(self.batch.sources):
            edits: list[tuple[Location, Visit]] = []
            for p, stage in enumerate(self.batch.stage):
                if interventions is not None and stage == k - 1:
                    at = self.runner.locations[p]
                    edits.append((at, editing(at, self.selections[p], interventions[p], features[p])))
            wanted = [p for p, stage in enumerate(self.batch.stage) if stage == k]
            for p, found in zip(wanted, self._collected(source, edits, wanted), strict=True):
                features[p] = found
        return features

    def _collected(self, source: Tokens, edits: list[tuple[Location, Visit]], wanted: Sequence[int]) -> list[Tensor]:
        found: dict[int, Tensor] = {}

        def reading(p: int) -> Visit:
            def visit(hidden: Tensor, inputs: Tensor | None) -> None:
                found[p] = hidden[self.selections[p].rows, self.selections[p].source_columns]
                if len(found) == len(wanted):
                    raise Stopped

            return visit

        visits = [*edits, *((self.runner.locations[p], reading(p)) for p in wanted)]
        with nullcontext() if edits else torch.no_grad(), visiting(visits), stopping():
            call(self.runner.model, source)
        return [found[p] for p in wanted]
