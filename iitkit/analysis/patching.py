"""Activation patching: what does the answer do when one activation comes from another run?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from iitkit.analysis.examples import Asked, Chunk, Examples
from iitkit.analysis.frames import (
    Axis,
    Frame,
    all_lost,
    checked_layers,
    checked_window,
    engine_of,
    listed,
    lost,
    several,
    told,
    window_of,
)
from iitkit.analysis.grid import Grid
from iitkit.analysis.keeping import Job, Kept, Part, measured
from iitkit.analysis.metrics import Measure, check_metrics, usual
from iitkit.analysis.pairs import examples_of
from iitkit.analysis.progress import Bar, Estimate, Left, Tell
from iitkit.analysis.prompts import short
from iitkit.analysis.sequences import Sequences
from iitkit.analysis.trained import Interventions, What, trained
from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.models.anatomy import locate
from iitkit.models.grids import Cell, Engine, Patch, Rows, Run
from iitkit.models.sites import Site
from iitkit.positions import Position

Direction = Literal["denoising", "noising"]
Heads = Literal["all"] | Sequence[int] | None


def patch(
    model: nn.Module,
    base: Any,
    source: Any = None,
    *,
    tokenizer: Any = None,
    answers: Any = None,
    wrong: Any = None,
    components: str | Sequence[str] = "block_output",
    layers: Sequence[int] | None = None,
    positions: Position | Sequence[Position] | None = None,
    heads: Heads = None,
    window: int = 1,
    interventions: Interventions | None = None,
    direction: Direction = "denoising",
    metrics: str | Sequence[str] | None = None,
    prefix: str = "",
    variable: str | None = None,
    split: str = "test",
    pairs: int | None = None,
    batch_size: int = 16,
    engine: Engine | None = None,
    folder: str | Path | None = None,
    progress: bool | None = None,
    tell: Tell | None = None,
) -> Grid:
    """Patch activations of a source run into a base run, one place after the other.

    Args:
        model: a causal language model.
        base: what is run: a prompt or several, as text, as :class:`iitkit.Prompt` (with spans) or as
            what a tokenizer returns; a :class:`iitkit.batch.Batch` of pairs; or a
            :class:`iitkit.CounterfactualDataModule`. The latter two bring their sources and answers along.
        source: what activations are taken from, as ``base``.
        tokenizer: the network's fast tokenizer; needed for text.
        answers: answers of the clean prompts, as text or token ids; one for all or a list.
        wrong: answers of the corrupt prompts.
        components: what is patched: one component, or several as a list, which become an axis. ``attention_weight``
            patches attention patterns; positions are then the queries.
        layers: which layers; all of them unless said.
        positions: one position or a list of them, by name or number; all tokens unless said, aligned by their index.
        heads: which heads of a component that has them, or ``all``; they become an axis. All at once unless said.
        window: how many layers are patched together, l − k/2 … l + k/2 − 1, clipped.
        interventions: trained interventions (what ``iitkit.load`` returns, or name → intervention), each patched at
            every place of the grid beside the full activation.
        direction: ``denoising``: the source is the clean prompt; ``noising``: the base is.
        metrics: one metric, or several as a list, which become an axis; see ``iitkit.analysis.metrics.METRICS``.
        prefix: text before every prompt given as text.
        variable: the causal variable that is interchanged, of a data module.
        split: its split.
        pairs: how many pairs of the split; all of them unless said.
        batch_size: examples that are run together and kept together.
        engine: runs the cells; one of its own unless said.
        folder: keeps the examples that are done; a later call with the same settings goes on from there.
        progress: whether to show a bar; where stderr is a terminal unless said.
        tell: is told what it will cost.

    Returns:
        A grid over components, layers, heads, positions, metrics and examples, as far as there are several. Its
        references: ``clean``, ``corrupt``, ``nothing`` (the base's own activations put back) and ``everything`` (all
        of the grid's cells at once). After Ctrl-C the grid holds the examples that were done and
        ``about["interrupted"]`` is true.

    Raises:
        IITKitError: sources of another length without named positions, a component, layer, head or span that is not
            there, a metric without its answers.
    """
    asked = asked_of(tokenizer, positions, answers, wrong, prefix, batch_size, direction)
    examples = examples_of(model, base, source, asked, (variable, split, pairs))
    patcher = Patcher(model, components, layers, heads, window, interventions, direction, engine)
    return patcher.run(examples, metrics, folder, progress, tell)


def asked_of(
    tokenizer: Any, positions: Any, answers: Any, wrong: Any, prefix: str, batch_size: int, direction: Direction
) -> Asked:
    """Return what is asked about pairs of prompts.

    Raises:
        IITKitError: a direction that is none, batches of nothing.
    """
    if direction not in get_args(Direction):
        hint = did_you_mean(direction, get_args(Direction))
        raise IITKitError(f"direction {direction!r}:{hint} expected {choices(get_args(Direction))}")
    if batch_size < 1:
        raise IITKitError(f"batch_size {batch_size}: expected 1 or more")
    clean = "source" if direction == "denoising" else "base"
    return Asked(tokenizer, positions, answers, wrong, prefix, batch_size, clean)


def unchanged(run: Run, layers: Sequence[int], component: str) -> Patch:
    """Return what puts a run's own activations back, as given values: unlike those of a source they are really put."""
    return Patch(layers, component, values={layer: run.at(layer, component) for layer in layers})


class Patcher:
    """Patches examples; see :func:`patch`, whose arguments it takes."""

    def __init__(
        self,
        model: nn.Module,
        components: str | Sequence[str] = "block_output",
        layers: Sequence[int] | None = None,
        heads: Heads = None,
        window: int = 1,
        interventions: Interventions | None = None,
        direction: Direction = "denoising",
        engine: Engine | None = None,
    ) -> None:
        self.model, self.window, self.direction = model, window, direction
        names, alone = several(components, "components")
        self.layers = checked_layers(model, layers)
        self.count = len(checked_layers(model, None))
        checked_window(window)
        more = trained(interventions, names)
        self.what = [What(name, name) for name in names] + more
        self.component_alone = alone and not more
        for what in self.what:
            self._check(what)
        self.heads = self._heads(heads)
        self.engine = engine_of(model, engine)

    def _check(self, what: What) -> None:
        location = locate(self.model, Site(self.layers[0], what.component), "patch")
        if what.intervention is not None and what.intervention.space.width not in (None, location.width):
            raise IITKitError(
                f"{what.label}: the intervention is for width {what.intervention.space.width}, {what.component} has "
                f"{location.width}"
            )

    def _heads(self, heads: Heads) -> list[int] | None:
        if heads is None:
            return None
        if heads != "all" and listed(heads)[1]:
            raise IITKitError(f"heads {heads!r}: expected a list of them, or 'all'")
        if heads != "all":
            several(heads, "heads")
        counts = {}
        for what in self.what:
            counts[what.component] = len(heads) if heads != "all" else self._count(what.component)
            for head in [] if heads == "all" else heads:
                locate(self.model, Site(self.layers[0], what.component, head=head), "patch")
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{component} {n}" for component, n in counts.items())
            raise IITKitError(f"heads: the components have different numbers of them ({said}): patch them one by one")
        return list(range(next(iter(counts.values())))) if heads == "all" else list(heads)

    def _count(self, component: str) -> int:
        location = locate(self.model, Site(self.layers[0], component), "patch")
        if location.view is None or not location.view.parted:
            raise IITKitError(f"heads: {component} has none: name a component that has them, e.g. head_{component}")
        return location.heads

    # --- running ---

    def run(
        self,
        examples: Examples,
        metrics: str | Sequence[str] | None = None,
        folder: str | Path | None = None,
        progress: bool | None = None,
        tell: Tell | None = None,
    ) -> Grid:
        """Patch examples; see :func:`patch`."""
        names, alone = self.metrics_of(examples, metrics)
        edits = [what.intervention for what in self.what if what.intervention is not None]
        settings = {**self._settings(names), "what": [what.plain() for what in self.what]}
        settings["axes"] = [self.component_alone, alone, examples.position_alone, examples.single]
        kept, estimate = Kept(folder, settings, self.model, edits), Estimate(tell, "example")
        with Bar("patching", len(examples), progress) as bar:
            jobs = [
                Job(c.plain(), len(c), len(c), partial(self._chunk, c, examples, names, alone, bar, estimate))
                for c in examples.chunks
            ]
            done, interrupted = measured(kept, bar, jobs, cells=True)
        return self._joined(done, examples, names, interrupted)

    def metrics_of(self, examples: Examples, metrics: str | Sequence[str] | None) -> tuple[list[str], bool]:
        """Return the metrics, and whether there is but one without an axis, after a check that they can be measured.

        Raises:
            IITKitError: one that is unknown, or without its answers.
        """
        answers, several = examples.chunks[0].answers, any(chunk.candidates is not None for chunk in examples.chunks)
        if metrics is None:
            metrics = usual(answers) if examples.metrics is None else examples.metrics
        names, alone = listed(metrics)
        if several and (other := [name for name in names if not name.startswith("iia")]):
            raise IITKitError(f"metric {other[0]!r}: answers of several tokens are measured by iia alone")
        check_metrics(names, answers)
        if "recovered_logit_difference" in names and (
            alike := [name for chunk in examples.chunks for name in chunk.alike]
        ):
            raise IITKitError(
                f"metric 'recovered_logit_difference': base and source of {short(alike[0])} are the same prompt, so "
                "there is nothing to recover: give another corrupt prompt, or use logit_difference"
            )
        if examples.metrics is not None and "recovered_logit_difference" in names:
            raise IITKitError(
                "metric 'recovered_logit_difference' needs a clean prompt that answers as the patched one should; a "
                "pair's source has an answer of its own: use logit_difference or iia"
            )
        return names, alone

    def _chunk(
        self,
        chunk: Chunk,
        examples: Examples,
        metrics: list[str],
        alone: bool,
        bar: Bar,
        estimate: Estimate,
        left: Left,
        part: Part,
    ) -> Grid:
        scored = None if chunk.candidates is None else Sequences(metrics, chunk.candidates, chunk.answers)
        times = 1 if scored is None else scored.count
        base, source = self.runs(chunk, scored)
        measure = scored or Measure(metrics, chunk.answers, *self.turned(base.logits, source.logits))
        cells = self.cells(chunk, source, times)
        everything = self.everything(chunk, source, times)
        nothing = unchanged(base, self._span, self.what[0].component)
        estimate.of(lambda: self.engine.cost(base, cells), left)
        run = partial(self.engine.table, base, reduce=measure, progress=bar.part)
        table = part.table([*cells, everything, nothing], run)
        of = len(cells)
        values = self.masked(table.values[:of], chunk)
        own = measure(base.logits[None], [0])[0]
        theirs = measure(source.logits[None], [0])[0] if scored is None else torch.full_like(own, torch.nan)
        clean, corrupt = self.turned(own, theirs)
        references = {
            "clean": clean,
            "corrupt": corrupt,
            "everything": table.values[of],
            "nothing": table.values[of + 1],
        }
        failed = {number: line for number, line in table.failed.items() if number < of}
        about = {**self._settings(metrics), **lost(table.failed, of)}
        about |= {"interrupted": True} if table.interrupted else {}
        frame = Frame(self.axes(examples), metrics, alone, None if examples.single else chunk.names)
        return frame.grid(values, references, failed, about)

    def turned(self, base: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is of the clean run, and what is of the corrupt one."""
        return (source, base) if self.direction == "denoising" else (base, source)

    def runs(self, chunk: Chunk, scored: Sequences | None = None) -> tuple[Run, Run]:
        """Return the unedited runs of a chunk's bases and sources."""
        device = next(self.model.parameters()).device
        items = [(layer, component) for component in self.components for layer in self._span]
        base = Rows(chunk.base.to(device)) if scored is None else scored.rows(chunk.base.to(device))
        source = Rows((chunk.source if scored is None else chunk.source.repeated(scored.count)).to(device))
        return self.engine.run(base, items), self.engine.run(source, items)

    @property
    def components(self) -> list[str]:
        """The components that are patched, each once."""
        return list(dict.fromkeys(what.component for what in self.what))

    @property
    def _span(self) -> list[int]:
        return sorted({x for layer in self.layers for x in window_of(layer, self.window, self.count)})

    def cells(self, chunk: Chunk, source: Run, times: int = 1) -> list[Cell]:
        """Return the cells of a chunk in the order of the axes: component, layer, head, position."""
        return [
            self._patch(what, window_of(layer, self.window, self.count), head, chunk, position, source, times)
            for what in self.what
            for layer in self.layers
            for head in (self.heads if self.heads is not None else [None])
            for position in range(chunk.base_at.shape[1])
        ]

    def everything(self, chunk: Chunk, source: Run, times: int = 1) -> list[Patch]:
        """Return the cell of all cells at once; of full activations where there are any."""
        whole = [what for what in self.what if what.intervention is None] or self.what
        return [self._patch(what, self._span, self.heads, chunk, slice(None), source, times) for what in whole]

    def _patch(
        self,
        what: What,
        layers: list[int],
        head: int | list[int] | None,
        chunk: Chunk,
        position: int | slice,
        source: Run,
        times: int,
    ) -> Patch:
        base_at, source_at = (
            at[:, position].flatten(1).repeat_interleave(times, 0) for at in (chunk.base_at, chunk.source_at)
        )
        return Patch(
            layers,
            what.component,
            base_at,
            head,
            source,
            source_at,
            intervention=what.intervention,
            joint=what.joint,
            variable=what.variable,
        )

    def masked(self, values: Tensor, chunk: Chunk) -> Tensor:
        """Return values with NaN where an example has no such position."""
        there = chunk.there.T  # [P, B]
        missing = ~there.to(values.device).repeat(len(values) // len(there), 1)
        return values.masked_fill(missing[..., None], torch.nan)

    def axes(self, examples: Examples) -> list[Axis]:
        """Return the axes of the cells."""
        return [
            Axis("component", [what.label for what in self.what], self.component_alone),
            Axis("layer", self.layers),
            *([Axis("head", self.heads)] if self.heads is not None else []),
            Axis("position", examples.positions, examples.position_alone),
        ]

    # --- all of them ---

    def _joined(self, done: Sequence[Grid], examples: Examples, metrics: list[str], interrupted: bool) -> Grid:
        grid = done[0] if examples.single else Grid.join(done, "example")
        more = {**self._settings(metrics), **examples.about, **({"interrupted": True} if interrupted else {})}
        about = {**grid.about, **more, **all_lost(done)}
        return Grid(grid.values, grid.dims, grid.coords, grid.references, grid.failed, about)

    def _settings(self, metrics: Sequence[str]) -> dict[str, Any]:
        return told(
            self.model,
            kind="activation patching",
            direction=self.direction,
            components=[what.label for what in self.what],
            layers=self.layers,
            heads=self.heads,
            window=self.window,
            metrics=list(metrics),
        )
