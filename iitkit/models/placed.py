"""What a placement edits in each pass of a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError, choices
from iitkit.interventions import Intervention
from iitkit.models.anatomy import locate
from iitkit.models.columns import check_columns
from iitkit.models.editing import Visit
from iitkit.models.location import Location
from iitkit.models.passes import Pass, Passes, Prompt
from iitkit.models.runs import Selection, editing
from iitkit.models.sites import Site
from iitkit.models.textspans import TextSpans
from iitkit.positions import Span, check_spans, count, listed, resolve, span_name

Where = Literal["prompt", "generated", "all"]
"""Which tokens are edited: the prompt's at the site's position, each generated one, or both."""

Steps = tuple[int, int | None]
"""Generated tokens, counted from 0, from the first to the one before the second; None: to the end."""


@dataclass(frozen=True, eq=False)
class Entries:
    """M tokens of a sequence: rows, columns [M], and what they take from the source, [M, (heads,) width]."""

    rows: Tensor
    columns: Tensor
    features: Tensor | None

    def within(self, start: int, stop: int) -> Entries:
        """Return those that a pass over columns ``start`` to ``stop`` runs."""
        inside = ((self.columns >= start) & (self.columns < stop)).nonzero()[:, 0]
        if len(inside) == len(self.columns):
            return self
        features = None if self.features is None else self.features[inside.to(self.features.device)]
        return Entries(self.rows[inside], self.columns[inside], features)


def _together(parts: Sequence[Entries]) -> Entries:
    features = [part.features for part in parts if part.features is not None]
    return Entries(
        torch.cat([part.rows for part in parts]),
        torch.cat([part.columns for part in parts]),
        torch.cat(features) if features else None,
    )


class Placed:
    """A placement of an open context."""

    def __init__(
        self,
        model: nn.Module,
        name: str,
        site: Site,
        intervention: Intervention,
        features: Tensor | None,
        source_mask: Tensor | None,
        strength: float,
        where: Where,
        steps: Steps | None = None,
        spans: TextSpans | None = None,
        active: Tensor | None = None,
    ) -> None:
        self.name, self.site, self.where, self.source_mask = name, site, where, source_mask
        self.steps, self.spans, self.active = steps, spans, active
        self.intervention, self.strength = intervention, strength
        self.features = features if intervention.needs_source else None
        self.location = self._located(model)
        self._top = model
        self._known: tuple[Prompt, Entries] | None = None
        self._pass: Pass | None = None
        self._entries: Entries | None = None
        self._ran = True
        self._check()

    def _located(self, model: nn.Module) -> Location:
        joined = 0
        if self.site.joint:
            at = self.site.position
            found = at.shape[-1] if isinstance(at, Tensor) else count(at)
            if found is None or self.where != "prompt":
                raise IITKitError(
                    f"{self.name}: a joint site edits a fixed number of the prompt's tokens as one vector: "
                    f"not position {at!r} with where={self.where!r}"
                )
            joined = found
        location = locate(model, self.site, self.name)
        return replace(location, joined=joined, variable=self.site.variable or self.name)

    def _check(self) -> None:
        if self.spans is not None and self.where != "generated" and not isinstance(self.site.position, Tensor):
            check_spans(self.site.position, self.spans.names, self.name)
        blocks = self.intervention.blocks
        if blocks is not None and self.location.variable not in blocks:
            raise IITKitError(
                f"{self.name}: variable {self.location.variable!r} has no block of its own in the rotation: "
                f"it has {choices(blocks)}"
            )
        if self.features is None:
            return
        parted, width = self.location.view is not None and self.location.view.parted, self.location.width
        if self.intervention.source_width is not None:  # coordinates, of a joint site as a whole
            parted, width = parted and not self.site.joint, self.intervention.source_width
        if self.features.dim() != 3 + parted or width not in (None, self.features.shape[-1]):
            expected = f"[examples, positions, {'heads, ' if parted else ''}{width or 'width'}]"
            raise IITKitError(f"{self.name}: the features have shape {tuple(self.features.shape)}: expected {expected}")
        if self.where != "prompt" and self.features.shape[1] != 1:
            raise IITKitError(
                f"{self.name}: the features have {self.features.shape[1]} positions, a generated token takes one: "
                "give features [examples, 1, …], or where='prompt'"
            )

    def begin(self, now: Pass) -> None:
        """Note which entries a pass edits."""
        parts = []
        if self.where != "generated":
            parts += self._of_prompt(now)
        if self.where != "prompt":
            parts += self._of_generated(now)
        self._pass, self._entries = now, _together(parts) if len(parts) > 1 else parts[0] if parts else None
        # what is no component may be skipped by the network itself, e.g. an expert
        self._ran = self._entries is None or self.site.module is not None or now.drafting

    def check_ran(self) -> None:
        """Check that the last pass, if it ended well, came by the site.

        Raises:
            IITKitError: the edit was never made, e.g. because the network was compiled before.
        """
        if self._pass is not None and self._pass.succeeded and not self._ran:
            self._ran = True
            raise IITKitError(
                f"{self.name}: the model ran and never came by {self.site}: is it compiled, or is the layer skipped?"
            )

    def _of_prompt(self, now: Pass) -> list[Entries]:
        prompt = now.prompt
        if prompt is None:
            raise IITKitError(
                f"{self.name}: the model goes on with a cache whose prompt was run outside the context: "
                "run the prompt inside it, or edit where='generated'"
            )
        if now.start >= prompt.length:
            return []
        if self._known is None or self._known[0] is not prompt:
            self._known = (prompt, self._resolved(prompt))
        if now.rows != len(prompt.real):
            raise IITKitError(f"{self.name}: the prompt had {len(prompt.real)} rows, the pass goes on with {now.rows}")
        found = self._known[1].within(now.start, now.stop)
        if self.location.joined and 0 < len(found.rows) < len(self._known[1].rows):
            raise IITKitError(
                f"{self.name}: the positions of a joint site must be run in one pass: prefill the prompt in one chunk"
            )
        return [found] if len(found.rows) else []

    def _kept(self, entries: Entries, batch: int) -> Entries:
        """Return the entries of rows that are edited at all."""
        if self.active is None:
            return entries
        times = self._times(batch, len(self.active), "rows' settings")
        kept = self.active[entries.rows // times].nonzero()[:, 0]
        features = None if entries.features is None else entries.features[kept.to(entries.features.device)]
        return Entries(entries.rows[kept], entries.columns[kept], features)

    def _of_generated(self, now: Pass) -> list[Entries]:
        first, stop = now.start if now.prompt is None else max(now.start, now.prompt.length), now.stop
        if self.steps is not None:
            if now.prompt is None:
                raise IITKitError(
                    f"{self.name}: the model goes on with a cache whose prompt was run outside the context, so that "
                    "generated tokens have no numbers: run the prompt inside it, or give no steps"
                )
            begin, end = self.steps
            first = max(first, now.prompt.length + begin)
            stop = stop if end is None else min(stop, now.prompt.length + end)
        if first >= stop:
            return []
        columns = torch.arange(first, stop)
        rows = torch.arange(now.rows).repeat_interleave(len(columns))
        found = Entries(rows, columns.repeat(now.rows), self._taken(now.rows, rows, torch.zeros_like(rows)))
        found = self._kept(found, now.rows)
        return [found] if len(found.rows) else []

    def _resolved(self, prompt: Prompt) -> Entries:
        """Return the entries of a prompt, row after row."""
        rows, columns, slots = [], [], []
        everywhere = not isinstance(self.site.position, Tensor) and self.site.position == "all"
        for row, found in enumerate(self._columns(prompt)):
            rows += [row] * len(found)
            columns += found
            slots += self._of_source(prompt, row, found) if everywhere else list(range(len(found)))
            positions = prompt.length if everywhere else len(found)
            paired = everywhere and self.source_mask is not None
            if self.features is not None and self.features.shape[1] not in (1, positions) and not paired:
                raise IITKitError(
                    f"{self.name}: the features have {self.features.shape[1]} positions, position "
                    f"{self.site.position!r} has {positions} in row {row}"
                )
        if columns and min(columns) < prompt.cached:
            raise IITKitError(
                f"{self.name}: position {self.site.position!r} is among the prompt's first {prompt.cached} columns, "
                "which the cache holds and nobody runs again: give the prompt without a cache"
            )
        index = torch.tensor(rows, dtype=torch.long)
        entries = Entries(
            index,
            torch.tensor(columns, dtype=torch.long),
            self._taken(len(prompt.real), index, torch.tensor(slots, dtype=torch.long)),
        )
        return self._kept(entries, len(prompt.real))

    def _columns(self, prompt: Prompt) -> list[list[int]]:
        """Return the columns of the site's position in each row."""
        at, found = self.site.position, []
        if isinstance(at, Tensor):
            if at.dim() == 2:
                at = at.repeat_interleave(self._times(len(prompt.real), len(at), "position"), 0)
            return cast(list[list[int]], check_columns(at, prompt.real.long(), self.name).tolist())
        for index, row in enumerate(prompt.real):
            real = row.nonzero()[:, 0].tolist()
            try:
                spans = self._spans(prompt, index, real)
                there = (
                    at if spans is None else [item for item in listed(at) if (span_name(item) or "") in ("", *spans)]
                )
                found.append([real[i] for i in resolve(there, len(real), spans)] if there != [] else [])
            except IITKitError as error:
                raise IITKitError(f"{self.name}: {error}") from error
        return found

    def _spans(self, prompt: Prompt, row: int, real: list[int]) -> Mapping[str, Span] | None:
        """Return the spans of a row's prompt, where its position names one."""
        if self.spans is None or isinstance(self.site.position, Tensor):
            return None
        if not any(span_name(item) for item in listed(self.site.position)):
            return None
        if prompt.tokens is None:
            raise IITKitError(
                f"{self.name}: position {self.site.position!r} is a span of the prompt's text, and the model was given "
                "no tokens of the whole prompt: give input_ids, or a tensor of columns"
            )
        example = row
        if self.spans.examples is not None:
            example = row // self._times(len(prompt.real), self.spans.examples, "spans")
        return self.spans.find(prompt.tokens[row][real].tolist(), example)

    def _times(self, rows: int, examples: int, what: str) -> int:
        """Return how often each example stands in a batch, copies side by side."""
        if examples == 0 or rows % examples:
            raise IITKitError(
                f"{self.name}: the {what} has {examples} rows, the batch {rows}: give one for each row of the prompts"
                f"{', or one for all' if what == 'source' else ''}"
            )
        return rows // examples

    def _taken(self, batch: int, rows: Tensor, slots: Tensor) -> Tensor | None:
        """Return what entries take from the source: position ``slots`` of their row's example."""
        if self.features is None:
            return None
        examples, positions = self.features.shape[:2]
        index = rows // self._times(batch, examples, "source")
        device = self.features.device
        return self.features[index.to(device), (slots if positions > 1 else torch.zeros_like(slots)).to(device)]

    def _of_source(self, prompt: Prompt, row: int, found: list[int]) -> list[int]:
        """Return the source's columns that ``all`` pairs with a row's tokens, one by one, however either is padded."""
        if self.source_mask is None or self.features is None or self.features.shape[1] == 1:
            return found
        example = row // self._times(len(prompt.real), len(self.source_mask), "source")
        theirs: list[int] = self.source_mask[example].nonzero()[:, 0].tolist()
        if len(theirs) != len(found):
            raise IITKitError(
                f"{self.name}: position 'all' needs prompts of equal lengths in base and source: source {example} has "
                f"{len(theirs)} tokens, row {row} of the prompts {len(found)}"
            )
        return theirs

    def visitor(self, passes: Passes) -> Visit:
        """Return the visit that edits the running pass's entries."""

        def visit(hidden: Tensor, inputs: Tensor | None) -> Tensor | None:
            now, entries = self._pass, self._entries
            if passes.paused:
                return None
            if now is None or now is not passes.now or (now.ended and self.location.module is not self._top):
                raise IITKitError(
                    f"{self.name}: {self.site} ran outside the model's own forward pass, so that no position is known: "
                    "call the model itself, or give intervening() the model that is called"
                )
            self._ran = True
            if entries is None:
                return None
            columns = entries.columns - now.start
            if self.site.component == "logits" and hidden.shape[1] < now.stop - now.start:  # logits_to_keep
                entries = entries.within(now.stop - hidden.shape[1], now.stop)
                columns = entries.columns - (now.stop - hidden.shape[1])
            elif hidden.shape[:2] != (now.rows, now.stop - now.start):
                raise IITKitError(
                    f"{self.name}: the activation at {self.site} is {tuple(hidden.shape)}: "
                    f"expected [{now.rows}, {now.stop - now.start}, …] as the model was called"
                )
            rows, columns = entries.rows.to(hidden.device), columns.to(hidden.device)
            selection = Selection(rows, columns, columns, torch.zeros_like(rows))
            taken = hidden.new_empty(0) if entries.features is None else entries.features.to(hidden.device)
            return editing(self.location, selection, self.intervention, taken, self.strength)(hidden, inputs)

        return visit
