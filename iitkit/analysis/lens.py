"""The logit lens: what each layer's residual stream would say if it were the last one's.

nostalgebraist, 2020, https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from iitkit.analysis.examples import told_apart
from iitkit.analysis.frames import Axis, Frame, checked_layers, engine_of, listed, told
from iitkit.analysis.grid import Grid
from iitkit.analysis.metrics import Answers, Measure
from iitkit.analysis.prompts import (
    Encoded,
    Prompt,
    answer_token,
    columns,
    distinct,
    encode,
    pad_of,
    padded,
    said,
    short,
)
from iitkit.batch import Tokens
from iitkit.errors import IITKitError, choices
from iitkit.interventions import Intervention
from iitkit.models.generation import intervening
from iitkit.models.grids import Engine
from iitkit.models.interchange import collect
from iitkit.models.sites import Site
from iitkit.positions import Position

Text = str | Prompt
RUNS = ("plain", "intervened")
"""Labels of the run axis, where there is an intervention."""


@torch.no_grad()
def lens(
    model: nn.Module,
    tokenizer: Any,
    prompts: Text | Sequence[Text],
    answers: str | Sequence[str] | None = None,
    wrong: str | Sequence[str] | None = None,
    *,
    prefix: str = "",
    layers: Sequence[int] | None = None,
    positions: Position | Sequence[Position] | None = None,
    metrics: str | Sequence[str] | None = None,
    interventions: Mapping[str, tuple[Site, Intervention]] | Any = None,
    sources: Text | Sequence[Text] | None = None,
    strength: float = 1.0,
    engine: Engine | None = None,
) -> Grid:
    """Read every layer's residual stream with the network's own final norm and head.

    Args:
        model: a causal language model.
        tokenizer: its fast tokenizer.
        prompts: one prompt or several.
        answers: the tokens that are asked for; the network's own answer at the prompt's end unless said.
        wrong: wrong answers, for logit differences.
        prefix: text before every prompt, e.g. <|endoftext|> for a model that needs an attention sink.
        layers: which layers' outputs; all of them unless said. The last one's is what the network says.
        positions: one position or a list of them, by name or number; all tokens unless said.
        metrics: one metric, or several as a list, which become an axis; the logit difference where there are wrong
            answers, else the probability, unless said. KL is from what the network says at the same position.
        interventions: placement name → (site, intervention), or an artifact: adds an axis of two runs, ``plain`` and
            ``intervened``. A site's position may be a span of the prompts.
        sources: the prompts that the interventions take activations from, as many as prompts.
        strength: of the interventions.
        engine: whose network is read; one of its own unless said.

    Returns:
        A grid over (runs,) layers, positions, metrics and examples, as far as there are several. Its reference
        ``clean`` is what the network itself says at the prompt's end. Of a single prompt ``about["tokens"]`` has each
        layer's likeliest token at every position, of each run.

    Raises:
        IITKitError: no prompt, answers that are too few, a span or layer that is not there, a metric without its
            answers.
    """
    texts, single = listed(prompts)
    asked = [Prompt(text) if isinstance(text, str) else text for text in texts]
    if not asked:
        raise IITKitError("no prompts: expected one or several")
    if interventions is None and (sources is not None or strength != 1):
        name = "strength" if sources is None else "sources"
        raise IITKitError(f"{name}: only interventions read it: give interventions, or leave it out")
    encoded = [encode(tokenizer, prompt, prefix) for prompt in asked]
    engine = engine_of(model, engine)
    wanted = checked_layers(model, layers)
    labels, alone, places = _places(encoded, positions)
    tokens = padded([prompt.ids for prompt in encoded], pad_of(tokenizer), next(model.parameters()).device)
    at = columns(places).to(tokens.ids.device)
    runs = [None] if interventions is None else [None, interventions]
    states = [
        _states(model, tokens, wanted, alignment, encoded, _sources(tokenizer, sources, prefix, encoded), strength)
        for alignment in runs
    ]
    last = len(checked_layers(model, None)) - 1
    final = _read(engine, states[0][last], at)
    own = _read(engine, states[0][last], tokens.last[:, None])[:, 0]
    given = _answers(tokenizer, asked, encoded, own, answers, wrong)
    if metrics is None:
        metrics = "probability" if given.wrong is None else "logit_difference"
    names, metric_alone = listed(metrics)
    if "recovered_logit_difference" in names:
        raise IITKitError(
            "metric 'recovered_logit_difference' needs a corrupt run, which the lens has not: use another"
        )
    b, p = at.shape
    measure = Measure(names, given.repeated(p), final.flatten(0, 1), final.flatten(0, 1))
    values, said_there = [], []
    for run in states:
        for layer in wanted:
            logits = _read(engine, run[layer], at)
            values.append(measure(logits.flatten(0, 1)[None])[0].view(b, p, -1).transpose(0, 1))  # [P, B, M]
            said_there.append(said(tokenizer, logits[0].argmax(-1).tolist()))
    table = torch.stack(values).flatten(0, 1).masked_fill((at < 0).T.repeat(len(values), 1)[..., None], torch.nan)
    axes = [Axis("layer", wanted), Axis("position", labels, alone)]
    if len(runs) > 1:
        axes.insert(0, Axis("run", list(RUNS)))
    frame = Frame(axes, names, metric_alone, None if single else distinct([prompt.text for prompt in asked]))
    clean = Measure(names, given, own, own)(own[None])[0]
    about = told(
        model,
        kind="logit lens",
        prefix=prefix,
        prompts=[prompt.text for prompt in asked],
        answers=said(tokenizer, (given.answer if given.answer is not None else own.argmax(-1)).tolist()),
        **({"tokens": _by_run(said_there, len(runs))} if single else {}),
    )
    grid = frame.grid(table, {}, {}, about)
    return _referenced(grid, frame, clean)


def _referenced(grid: Grid, frame: Frame, clean: Tensor) -> Grid:
    """Add what the network says, the same for every run."""
    values = frame.ordered(clean.double().cpu().numpy())
    if "run" in grid.dims:
        values = values[None].repeat(len(RUNS), 0)
    return replace(grid, references={"clean": values})


def _by_run(tokens: Sequence[list[str]], runs: int) -> dict[str, list[list[str]]]:
    count = len(tokens) // runs
    return {RUNS[run]: list(tokens[run * count : (run + 1) * count]) for run in range(runs)}


def _read(engine: Engine, hidden: Tensor, at: Tensor) -> Tensor:
    """Return what the network's end makes of hidden states [B, S, width] at columns [B, P]: [B, P, vocabulary]."""
    rows = torch.arange(len(hidden), device=hidden.device)[:, None]
    return engine.network.tail(hidden[rows, at.clamp(min=0)])


def _states(
    model: nn.Module,
    tokens: Tokens,
    layers: Sequence[int],
    interventions: Any,
    encoded: Sequence[Encoded],
    sources: Sequence[Encoded] | None,
    strength: float,
) -> dict[int, Tensor]:
    """Return layers' outputs, [B, S, width] each, of a plain run or of one under interventions."""
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.mask}
    last = len(checked_layers(model, None)) - 1
    sites = {str(layer): Site(layer, position="all") for layer in sorted({*layers, last})}
    with ExitStack() as stack:
        if interventions is not None:
            alignment = interventions.alignment() if hasattr(interventions, "alignment") else interventions
            placed = {
                name: (replace(site, position=_columns(encoded, site, name)), edit)
                for name, (site, edit) in alignment.items()
            }
            features = _features(model, alignment, sources)
            stack.enter_context(intervening(model, placed, features=features, strength=strength))
        found = collect(model, inputs, sites)
    return {int(name): states for name, states in found.items()}


def _features(model: nn.Module, alignment: Mapping[str, Any], sources: Sequence[Encoded] | None) -> dict[str, Tensor]:
    needing = {name: site for name, (site, edit) in alignment.items() if edit.needs_source}
    if not needing:
        return {}
    if sources is None:
        raise IITKitError(f"{choices(needing)}: the intervention takes activations from a source: give sources")
    tokens = padded([source.ids for source in sources], 0, next(model.parameters()).device)
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.mask}
    sites = {name: replace(site, position=_columns(sources, site, name)) for name, site in needing.items()}
    return collect(model, inputs, sites)


def _columns(encoded: Sequence[Encoded], site: Site, name: str) -> Tensor:
    """Return the columns of a site's position in prompts padded on the right, [B, k]."""
    if isinstance(site.position, Tensor):
        return site.position
    try:
        rows = [prompt.at(site.position) for prompt in encoded]
    except IITKitError as error:
        raise IITKitError(f"{name}: {error}") from error
    if len({len(row) for row in rows}) > 1:
        raise IITKitError(f"{name}: position {site.position!r} has another number of tokens in different prompts")
    return torch.tensor(rows)


def _sources(
    tokenizer: Any, sources: Text | Sequence[Text] | None, prefix: str, encoded: Sequence[Encoded]
) -> list[Encoded] | None:
    if sources is None:
        return None
    texts, _ = listed(sources)
    if len(texts) != len(encoded):
        raise IITKitError(f"{len(texts)} sources for {len(encoded)} prompts: expected as many of both")
    return [encode(tokenizer, Prompt(text) if isinstance(text, str) else text, prefix) for text in texts]


def _places(
    encoded: Sequence[Encoded], positions: Position | Sequence[Position] | None
) -> tuple[list[str], bool, list[list[int]]]:
    """Return what the positions are called, whether there is one alone, and the columns of each prompt."""
    if positions is None:
        most = max(encoded, key=len)
        labels = most.labels if len(encoded) == 1 else [str(i) for i in range(len(most))]
        return labels, False, [list(range(len(prompt))) for prompt in encoded]
    several, alone = listed(positions)
    rows = []
    for prompt in encoded:
        each = [prompt.at(position) for position in several]
        for position, found in zip(several, each, strict=True):
            if len(found) != 1:
                raise IITKitError(f"position {position!r} has {len(found)} tokens in {short(prompt.text)}: name one")
        rows.append([found[0] for found in each])
    return distinct([str(position) for position in several]), alone, rows


def _answers(
    tokenizer: Any, prompts: Sequence[Prompt], encoded: Sequence[Encoded], own: Tensor, answers: Any, wrong: Any
) -> Answers:
    found = []
    for name, given in (("answers", answers), ("wrong", wrong)):
        if given is None:
            mine = [prompt.answer for prompt in prompts] if name == "answers" else [None]
            given = None if all(answer is None for answer in mine) else mine
            if given is not None and None in mine:
                raise IITKitError(
                    f"answers: {short(prompts[mine.index(None)].text)} has none, which other prompts have"
                )
        if given is None:
            found.append(own.argmax(-1) if name == "answers" else None)
            continue
        many, alone = listed(given)
        many = many * len(prompts) if alone else many
        if len(many) != len(prompts):
            raise IITKitError(f"{name}: given {len(many)}, expected one for each of {len(prompts)} prompts")
        tokens = [answer_token(tokenizer, prompt.text, text) for prompt, text in zip(encoded, many, strict=True)]
        found.append(torch.tensor(tokens, device=own.device))
    right, other = (None if tokens is None else tokens.tolist() for tokens in found)
    told_apart([prompt.text for prompt in encoded], right, other, tokenizer)
    return Answers(*found)
