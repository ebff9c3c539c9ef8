"""Causal tracing: which state, restored to the clean run's, brings a fact back after its subject was corrupted?

Meng et al., 2022, https://arxiv.org/abs/2202.05262.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iitkit.analysis.corrupting import Corruption, corrupted, deviation
from iitkit.analysis.effects import by_role
from iitkit.analysis.frames import Axis, Frame, checked_layers, fingerprint, listed, told, window_of
from iitkit.analysis.grid import Grid
from iitkit.analysis.keeping import Kept, measured
from iitkit.analysis.metrics import Answers, Measure, check_metrics
from iitkit.analysis.progress import Bar, Tell
from iitkit.analysis.progress import told as cost_told
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
class Fact:
    """A prompt about a subject.

    Args:
        prompt: the text that the fact's answer follows.
        subject: substring of it, which stands there once, or its first character and the one behind its last.
        answer: what should follow; a fact whose clean top-1 token is another is skipped. Without it none is.
        corrupt: a prompt with another subject and as many tokens, for corruption by ``prompt``.
        wrong: a wrong answer, for metrics that compare with one.
    """

    prompt: str
    subject: str | tuple[int, int]
    answer: str | None = None
    corrupt: str | None = None
    wrong: str | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {key: list(x) if isinstance(x, tuple) else x for key, x in vars(self).items() if x is not None}


@dataclass(frozen=True)
class _Ready:
    """A fact that is known to the model.

    Args:
        fact: the fact.
        text: its tokens.
        subject: its subject's.
        clean: the clean run.
        answer: the clean run's likeliest token.
        wrong: the wrong answer's token.
        other: the corrupt prompt.
    """

    fact: Fact
    text: Encoded
    subject: Span
    clean: Run
    answer: int
    wrong: int | None
    other: Encoded | None


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
        self.components, self.component_alone = listed(components)
        self.metrics, self.metric_alone = listed(metrics)
        self.layers = checked_layers(model, layers)
        self.count = len(checked_layers(model, None))
        for component in self.components:
            locate(model, Site(self.layers[0], component), "trace")
        if window is not None and window < 1:
            raise IITKitError(f"window {window}: expected a number of layers, 1 or more")
        self.windows = {c: _window(c) if window is None else window for c in self.components}
        self.engine = Engine(model) if engine is None else engine

    def run(
        self,
        facts: Sequence[Fact],
        single: bool = False,
        folder: str | Path | None = None,
        progress: bool | None = None,
        tell: Tell | None = None,
    ) -> Grid:
        """Trace facts; see :func:`trace`."""
        texts = [self._encoded(fact) for fact in facts]
        subjects = [text.spans["subject"] for text in texts]
        for fact in facts:
            self._check(fact)
        if self.sigma is None:
            self.sigma = deviation(self.model, texts, subjects) if self.how.kind == "noise" else 0.0
        settings = {**self._settings(), "fingerprint": fingerprint(self.model)}
        kept, skipped, waiting = Kept(folder, settings), [], [tell]

        def measure(fact: Fact, text: Encoded, bar: Bar) -> Grid | None:
            ready, why = self._ready(fact, text)
            if ready is None:
                skipped.append(why)
                return None
            if (first := waiting.pop() if waiting else None) is not None:
                self._tell_cost(ready, texts, first)
            return self._fact(ready, bar.part)

        with Bar("tracing", len(facts), progress) as bar:
            jobs = (
                (fact.plain(), 1, partial(measure, fact, text, bar)) for fact, text in zip(facts, texts, strict=True)
            )
            done, interrupted = measured(kept, bar, jobs)
        if tell is not None and skipped:
            tell(f"skipped {len(skipped)} of {len(facts)} facts that the model does not know: {choices(skipped, 3)}")
        if not done:
            raise IITKitError(
                f"the model knows none of the {len(facts)} facts: {skipped[0]}. Check prefix and answers, or leave the "
                "answers out"
            )
        return self._joined(done, single, skipped, len(facts), interrupted)

    # --- one fact ---

    def _encoded(self, fact: Fact) -> Encoded:
        return encode(self.tokenizer, Prompt(fact.prompt, {"subject": fact.subject}), self.prefix)

    def _check(self, fact: Fact) -> None:
        """Refuse metrics without their answers before anything is run."""
        given = torch.zeros(1)
        check_metrics(self.metrics, Answers(given, None if fact.wrong is None else given))

    def _ready(self, fact: Fact, text: Encoded) -> tuple[_Ready | None, str]:
        device = next(self.model.parameters()).device
        items = [(layer, c) for c in self.components for layer in self._span(c)]
        clean = self.engine.run(Rows(padded([text.ids], 0, device)), items)
        top = int(clean.logits[0].argmax())
        (instead,) = said(self.tokenizer, [top])
        if fact.answer is not None and top != answer_token(self.tokenizer, text.text, fact.answer):
            return None, f"after {short(fact.prompt)} it says {instead!r}, not {fact.answer!r}"
        wrong = None if fact.wrong is None else answer_token(self.tokenizer, text.text, fact.wrong)
        if wrong == top:
            return None, f"after {short(fact.prompt)} it says {instead!r}, with which the wrong {fact.wrong!r} begins"
        other = None if fact.corrupt is None else encode(self.tokenizer, Prompt(fact.corrupt), self.prefix)
        return _Ready(fact, text, text.spans["subject"], clean, top, wrong, other), ""

    def _span(self, component: str) -> list[int]:
        """Every layer in which a component is restored in some cell."""
        return sorted({x for layer in self.layers for x in window_of(layer, self.windows[component], self.count)})

    def _cells(self, ready: _Ready) -> list[Cell]:
        return [
            Patch(window_of(layer, self.windows[component], self.count), component, position, source=ready.clean)
            for component in self.components
            for layer in self.layers
            for position in range(len(ready.text))
        ]

    def _corrupt(self, ready: _Ready) -> Run:
        assert self.sigma is not None
        rows = corrupted(self.model, ready.text, ready.subject, self.how, self.sigma, ready.other)
        return self.engine.run(rows, [(layer, c) for c in self.components for layer in self._span(c)])

    def _fact(self, ready: _Ready, progress: Callable[[Share], None]) -> Grid:
        corrupt, n = self._corrupt(ready), self.how.rows
        tokens = torch.tensor([ready.answer])
        answers = Answers(tokens, None if ready.wrong is None else torch.tensor([ready.wrong])).repeated(n)
        measure = Measure(self.metrics, answers, ready.clean.logits, corrupt.logits, average=n)
        cells = self._cells(ready)
        everything = [Patch(self._span(c), c, source=ready.clean) for c in self.components]
        nothing = [Patch(self._span(c), c, source=corrupt) for c in self.components]
        table = self.engine.table(corrupt, [*cells, everything, nothing], measure, progress)
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
                Axis("position", ready.text.labels),
            ],
            self.metrics,
            self.metric_alone,
            None,
        )
        failed = {number: line for number, line in table.failed.items() if number < of}
        about = {
            **self._settings(),
            "prompt": ready.text.text,
            "subject": list(ready.subject),
            "answer": said(self.tokenizer, [ready.answer])[0],
            **({"interrupted": True} if table.interrupted else {}),
        }
        return frame.grid(table.values[:of], references, failed, about)

    # --- all of them ---

    def _joined(self, done: Sequence[Grid], single: bool, skipped: list[str], n: int, interrupted: bool) -> Grid:
        more = {"facts": n, "skipped": skipped, **({"interrupted": True} if interrupted else {})}
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

    def _tell_cost(self, ready: _Ready, texts: Sequence[Encoded], tell: Tell) -> None:
        cost = self.engine.cost(self._corrupt(ready), self._cells(ready))
        # cells grow as the tokens do, and so does what each of them runs
        times = sum(len(text) ** 2 for text in texts) / len(ready.text) ** 2
        tell(cost_told(cost, times, f"{len(texts)} facts"))


def facts_of(
    prompts: str | Fact | Sequence[str | Fact],
    subjects: str | Sequence[str] | None = None,
    answers: str | Sequence[str] | None = None,
) -> tuple[list[Fact], bool]:
    """Return facts, and whether a single one was given, from what :func:`trace` takes.

    Raises:
        IITKitError: no prompt, a prompt without a subject, lists of different lengths.
    """
    single = isinstance(prompts, str | Fact)
    given = [prompts] if isinstance(prompts, str | Fact) else list(prompts)
    if not given:
        raise IITKitError("no prompts: expected a prompt with a subject, or several")
    more: dict[str, list[Any]] = {}
    for name, values in (("subjects", subjects), ("answers", answers)):
        each = [values] * len(given) if values is None or (isinstance(values, str) and single) else list(values)
        if (isinstance(values, str) and not single) or len(each) != len(given):
            raise IITKitError(f"{name}: expected one for each of {len(given)} prompts, given {len(each)}")
        more[name] = each
    facts = []
    for prompt, subject, answer in zip(given, more["subjects"], more["answers"], strict=True):
        if isinstance(prompt, Fact):
            if subject is not None or answer is not None:
                raise IITKitError("subjects and answers are for prompts given as text: a Fact has its own")
            facts.append(prompt)
        elif subject is None:
            raise IITKitError(f"prompt {short(prompt)} has no subject: give subjects, or a Fact")
        else:
            facts.append(Fact(prompt, subject, answer))
    return facts, single


def _window(component: str) -> int:
    return 1 if component in ("block_output", "block_input") else WINDOW
