"""Causal tracing: which state, restored to the clean run's, brings a fact back after its subject was corrupted?

Meng et al., 2022, https://arxiv.org/abs/2202.05262.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iitkit.analysis.corrupting import Corruption, check_other, corrupted, deviation
from iitkit.analysis.effects import by_role
from iitkit.analysis.facts import Fact, facts_of
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
from iitkit.analysis.metrics import Answers, Measure, check_metrics
from iitkit.analysis.patching import unchanged
from iitkit.analysis.progress import Bar, Estimate, Left, Tell, counted
from iitkit.analysis.prompts import Encoded, Prompt, answer_token, distinct, encode, padded, said, short
from iitkit.errors import IITKitError, choices
from iitkit.models.anatomy import locate
from iitkit.models.grids import Cell, Engine, Patch, Rows, Run
from iitkit.models.grids import Progress as Share
from iitkit.models.sites import Site
from iitkit.positions import Span

WINDOW = 10
"""Layers of a window of MLP or attention outputs, unless said."""


@dataclass(frozen=True)
class _Asked:
    """A fact as tokens.

    Args:
        fact: the fact.
        text: its prompt's tokens.
        other: the corrupt prompt's.
        answer: first token of what should follow.
        wrong: first token of the wrong answer.
    """

    fact: Fact
    text: Encoded
    other: Encoded | None
    answer: int | None
    wrong: int | None

    @property
    def subject(self) -> Span:
        """The subject's tokens."""
        return self.text.spans["subject"]

    def plain(self) -> dict[str, Any]:
        """Return all that its numbers depend on, as plain values."""
        return {**self.fact.plain(), "ids": self.text.ids, "other": None if self.other is None else self.other.ids}


@dataclass(frozen=True)
class _Ready:
    """A fact that is known to the model: its clean run, and that one's likeliest token."""

    asked: _Asked
    clean: Run
    answer: int


def trace(
    model: nn.Module,
    tokenizer: Any,
    prompts: str | Fact | Sequence[str | Fact],
    subjects: str | Sequence[str] | None = None,
    answers: str | Sequence[str] | None = None,
    *,
    prefix: str = "",
    components: str | Sequence[str] = "block_output",
    window: int | None = None,
    layers: Sequence[int] | None = None,
    corruption: str = "noise",
    noise: float = 3.0,
    draws: int = 10,
    seed: int = 0,
    sigma: float | None = None,
    metrics: str | Sequence[str] = "probability",
    engine: Engine | None = None,
    folder: str | Path | None = None,
    progress: bool | None = None,
    tell: Tell | None = None,
) -> Grid:
    """Trace facts through a network, as ROME does.

    The subject's token embeddings are corrupted, and then one state after the other is restored to what it is in the
    clean run: the component at one token, in one layer or a window of layers. A cell's value is the metric at the
    prompt's last token, by default the probability of the clean run's likeliest token, averaged over the draws of the
    noise, which are the same in every cell.

    Args:
        model: a causal language model.
        tokenizer: its fast tokenizer.
        prompts: one prompt or several, as texts with ``subjects`` (and ``answers``) or as :class:`Fact`.
        subjects: each prompt's subject, a substring of it.
        answers: what should follow each prompt. Facts whose clean top-1 token is another are skipped and counted in
            ``about["skipped"]``.
        prefix: text before every prompt, e.g. <|endoftext|> for a model that needs an attention sink.
        components: what is restored: one component, or several as a list, which become an axis.
        window: how many layers are restored together, l − k/2 … l + k/2 − 1, clipped; unless said 1 of a block's input
            and output and 10 of anything else.
        layers: the layers to restore; all of them unless said.
        corruption: ``noise``, ``prompt`` (each fact's ``corrupt``), ``zero`` or ``mean``; see
            :class:`iitkit.analysis.corrupting.Corruption`.
        noise: standard deviation of the noise, as a multiple of that of the subjects' token embeddings.
        draws: how many draws are averaged.
        seed: of the noise.
        sigma: the standard deviation itself; measured over all subject tokens of the facts unless said.
        metrics: one metric, or several as a list, which become an axis; see ``iitkit.analysis.metrics.METRICS``.
        engine: runs the cells; one of its own unless said.
        folder: keeps each fact's grid when it is done; a later call with the same settings goes on from there.
        progress: whether to show a bar; where stderr is a terminal unless said.
        tell: is told what it will cost, and which facts are skipped.

    Returns:
        Of a single prompt a grid over its layers and tokens. Of a list of them a grid over layers, the six rows of
        :data:`iitkit.analysis.effects.ROLES` and facts. Its references: ``clean``, ``corrupt``, ``nothing`` (the
        corrupted run's own states put back) and ``everything`` (all cells restored at once: of block outputs the clean
        run). :mod:`iitkit.analysis.effects` makes indirect effects of it. After Ctrl-C the grid holds the facts that
        were done and ``about["interrupted"]`` is true.

    Raises:
        IITKitError: a subject that is not in its prompt, no known fact, a component or layer that is not there, a
            metric without its answers, a corrupt prompt of another length.
    """
    facts, single = facts_of(prompts, subjects, answers)
    how = Corruption(corruption, noise, draws, seed)  # type: ignore[arg-type]
    tracer = Tracer(model, tokenizer, components, window, layers, how, sigma, metrics, prefix, engine)
    return tracer.run(facts, single, folder, progress, tell)


class Tracer:
    """Traces facts; see :func:`trace`, whose arguments it takes."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        components: str | Sequence[str],
        window: int | None,
        layers: Sequence[int] | None,
        corruption: Corruption,
        sigma: float | None,
        metrics: str | Sequence[str],
        prefix: str,
        engine: Engine | None = None,
    ) -> None:
        self.model, self.tokenizer, self.prefix = model, tokenizer, prefix
        self.how, self.sigma = corruption, sigma
        self.components, self.component_alone = several(components, "components")
        self.metrics, self.metric_alone = listed(metrics)
        self.layers = checked_layers(model, layers)
        self.count = len(checked_layers(model, None))
        for component in self.components:
            locate(model, Site(self.layers[0], component), "trace")
        if window is not None:
            checked_window(window)
        if sigma is not None and corruption.kind != "noise":
            raise IITKitError(f"sigma: corruption {corruption.kind} draws no noise: leave it out")
        if sigma is not None and not 0 < sigma < math.inf:
            raise IITKitError(f"sigma {sigma}: expected a standard deviation, more than 0")
        self.windows = {c: _window(c) if window is None else window for c in self.components}
        self.engine = engine_of(model, engine)

    def run(
        self,
        facts: Sequence[Fact],
        single: bool = False,
        folder: str | Path | None = None,
        progress: bool | None = None,
        tell: Tell | None = None,
    ) -> Grid:
        """Trace facts; see :func:`trace`."""
        asked = [self._asked(fact) for fact in facts]
        if self.sigma is None:
            texts, subjects = [each.text for each in asked], [each.subject for each in asked]
            self.sigma = deviation(self.model, texts, subjects) if self.how.kind == "noise" else 0.0
        settings = {**self._settings(), "axes": [self.component_alone, self.metric_alone]}
        kept, estimate, skipped = Kept(folder, settings, self.model), Estimate(tell, "fact"), list[str]()

        def measure(fact: _Asked, left: Left, part: Part, bar: Bar) -> Grid | None:
            clean = self.engine.run(self._rows(fact.text), self._items)
            top = int(clean.logits[0].argmax())
            if why := self._unknown(fact, top):
                skipped.append(why)
                return None
            ready = _Ready(fact, clean, top)
            corrupt = self._corrupt(fact)
            estimate.of(lambda: self.engine.cost(corrupt, self._cells(ready)), left)
            return self._fact(ready, corrupt, part, bar.part)

        with Bar("tracing", len(facts), progress) as bar:
            # cells grow as the tokens do, and so does what each of them runs
            jobs = [Job(each.plain(), 1, len(each.text) ** 2, partial(measure, each, bar=bar)) for each in asked]
            done, interrupted = measured(kept, bar, jobs, cells=single)
        if tell is not None and skipped:
            of = f"{len(skipped)} of {counted(len(facts), 'fact')}"
            tell(f"skipped {of} that the model does not know: {choices(skipped, 3)}")
        if not done:
            raise IITKitError(
                f"the model knows none of the {len(facts)} facts: {skipped[0]}. Check prefix and answers, or leave the "
                "answers out"
            )
        return self._joined(done, single, skipped, len(facts), interrupted)

    # --- one fact ---

    def _asked(self, fact: Fact) -> _Asked:
        """Tokenise a fact, and refuse what does not fit before anything is run."""
        given = torch.zeros(1)
        check_metrics(self.metrics, Answers(given, None if fact.wrong is None else given))
        text = encode(self.tokenizer, Prompt(fact.prompt, {"subject": fact.subject}), self.prefix)
        other = None if fact.corrupt is None else encode(self.tokenizer, Prompt(fact.corrupt), self.prefix)
        check_other(self.how, text, other)
        answer, wrong = (
            None if said is None else answer_token(self.tokenizer, text.text, said)
            for said in (fact.answer, fact.wrong)
        )
        return _Asked(fact, text, other, answer, wrong)

    def _unknown(self, asked: _Asked, top: int) -> str:
        """Return why the model does not know a fact; nothing where it does."""
        after, (instead,) = f"after {short(asked.fact.prompt)} it says", said(self.tokenizer, [top])
        if asked.answer not in (None, top):
            return f"{after} {instead!r}, not {asked.fact.answer!r}"
        if asked.wrong == top:
            return f"{after} {instead!r}, with which the wrong {asked.fact.wrong!r} begins"
        return ""

    def _rows(self, text: Encoded) -> Rows:
        return Rows(padded([text.ids], 0, next(self.model.parameters()).device))

    @property
    def _items(self) -> list[tuple[int, str]]:
        return [(layer, c) for c in self.components for layer in self._span(c)]

    def _span(self, component: str) -> list[int]:
        """Every layer in which a component is restored in some cell."""
        return sorted({x for layer in self.layers for x in window_of(layer, self.windows[component], self.count)})

    def _cells(self, ready: _Ready) -> list[Cell]:
        return [
            Patch(window_of(layer, self.windows[component], self.count), component, position, source=ready.clean)
            for component in self.components
            for layer in self.layers
            for position in range(len(ready.asked.text))
        ]

    def _corrupt(self, asked: _Asked) -> Run:
        assert self.sigma is not None
        rows = corrupted(self.model, asked.text, asked.subject, self.how, self.sigma, asked.other)
        return self.engine.run(rows, self._items)

    def _fact(self, ready: _Ready, corrupt: Run, part: Part, progress: Callable[[Share], None]) -> Grid:
        asked, n = ready.asked, self.how.rows
        tokens = torch.tensor([ready.answer])
        answers = Answers(tokens, None if asked.wrong is None else torch.tensor([asked.wrong])).repeated(n)
        measure = Measure(self.metrics, answers, ready.clean.logits, corrupt.logits, average=n)
        cells = self._cells(ready)
        everything = [Patch(self._span(c), c, source=ready.clean) for c in self.components]
        nothing = [unchanged(corrupt, self._span(c), c) for c in self.components]
        run = partial(self.engine.table, corrupt, reduce=measure, progress=progress)
        table = part.table([*cells, everything, nothing], run)
        of = len(cells)
        references = {
            "clean": measure(ready.clean.logits[None].expand(-1, n, -1))[0],
            "corrupt": measure(corrupt.logits[None])[0],
            "everything": table.values[of],
            "nothing": table.values[of + 1],
        }
        frame = Frame(
            [
                Axis("component", self.components, self.component_alone),
                Axis("layer", self.layers),
                Axis("position", asked.text.labels),
            ],
            self.metrics,
            self.metric_alone,
            None,
        )
        failed = {number: line for number, line in table.failed.items() if number < of}
        about = {
            **self._settings(),
            "prompt": asked.text.text,
            "subject": list(asked.subject),
            "answer": said(self.tokenizer, [ready.answer])[0],
            **lost(table.failed, of),
            **({"interrupted": True} if table.interrupted else {}),
        }
        return frame.grid(table.values[:of], references, failed, about)

    # --- all of them ---

    def _joined(self, done: Sequence[Grid], single: bool, skipped: list[str], n: int, interrupted: bool) -> Grid:
        more = {"facts": n, "skipped": skipped, **({"interrupted": True} if interrupted else {}), **all_lost(done)}
        if single:
            grid = done[0]
            return Grid(grid.values, grid.dims, grid.coords, grid.references, grid.failed, {**grid.about, **more})
        facts = [{key: grid.about[key] for key in ("prompt", "subject", "answer")} for grid in done]
        shared = [by_role(grid) for grid in done]
        names = distinct([str(fact["prompt"]).removeprefix(self.prefix) for fact in facts])
        joined = Grid.join(shared, "example", names)
        about = {**self._settings(), **more, "prompts": facts}
        if self.metric_alone:
            about["metric"] = self.metrics[0]
        if self.component_alone:
            about["component"] = self.components[0]
        return Grid(joined.values, joined.dims, joined.coords, joined.references, joined.failed, about)

    def _settings(self) -> dict[str, Any]:
        assert self.sigma is not None
        how: Mapping[str, Any] = {"corruption": self.how.kind}
        if self.how.kind == "noise":
            how = {**how, "noise": self.how.noise, "sigma": self.sigma, "draws": self.how.draws, "seed": self.how.seed}
        return told(
            self.model,
            kind="causal tracing",
            **how,
            prefix=self.prefix,
            components=self.components,
            windows=self.windows,
            layers=self.layers,
            metrics=self.metrics,
        )


def _window(component: str) -> int:
    return 1 if component in ("block_output", "block_input") else WINDOW
