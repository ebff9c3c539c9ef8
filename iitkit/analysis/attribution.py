"""Attribution patching: a whole grid of first-order estimates from two forward passes and one backward pass.

Nanda, 2023, https://www.neelnanda.io/mechanistic-interpretability/attribution-patching; Syed et al., 2023,
https://arxiv.org/abs/2310.10348.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iitkit.analysis.examples import Chunk, Examples
from iitkit.analysis.frames import Frame, lost, told
from iitkit.analysis.grid import Grid
from iitkit.analysis.metrics import DIFFERENTIABLE, Measure
from iitkit.analysis.pairs import examples_of
from iitkit.analysis.patching import Patcher, asked_of
from iitkit.analysis.progress import Bar, Estimate, Left, Tell
from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.models.anatomy import locate
from iitkit.models.editing import Visit, visiting
from iitkit.models.grids import Engine, Found
from iitkit.models.location import Location
from iitkit.models.runs import call, head_at
from iitkit.models.sites import Site
from iitkit.positions import Position

Item = tuple[int, str]
"""A layer and a component."""
COLUMNS = ("attribution", "exact")
"""Labels of the metric axis: the estimate, and what patching the cell really does (missing where it was not run)."""


def attribute(
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
    heads: Any = None,
    direction: Any = "denoising",
    metric: str = "logit_difference",
    exact: int | None = 20,
    prefix: str = "",
    variable: str | None = None,
    split: str = "test",
    pairs: int | None = None,
    batch_size: int = 16,
    engine: Engine | None = None,
    progress: bool | None = None,
    tell: Tell | None = None,
) -> Grid:
    """Estimate what patching each place does to a metric, as (a_source − a_base) · ∂M/∂a at the base run.

    Args:
        model: a causal language model.
        base: what is run; see :func:`iitkit.analysis.patching.patch`, also for the arguments not told of here.
        source: what activations are taken from.
        tokenizer: the network's fast tokenizer; needed for text.
        answers: answers of the clean prompts.
        wrong: answers of the corrupt prompts.
        components: what is patched.
        layers: which layers.
        positions: which positions.
        heads: which heads.
        direction: ``denoising`` or ``noising``.
        metric: one with a gradient: ``iitkit.analysis.metrics.DIFFERENTIABLE``.
        exact: how many cells are patched as well, to compare: half of them those with the largest average estimate, the
            others spread evenly over the rest, so that the correlation is not of large ones alone. None for all.
        prefix: text before every prompt given as text.
        variable: the causal variable that is interchanged, of a data module.
        split: its split.
        pairs: how many pairs of the split.
        batch_size: examples that are run together.
        engine: runs the exact cells.
        progress: whether to show a bar.
        tell: is told what the exact cells will cost, and how far estimates and exact values agree.

    Returns:
        A grid like that of :func:`~iitkit.analysis.patching.patch`, of changes of the metric, with ``attribution`` and
        ``exact`` along its metric axis; the reference ``everything`` is exact alone. ``about["correlation"]`` is
        Pearson's, over all cells and examples that were patched; None where these are too few or do not vary. After
        Ctrl-C it holds the exact values that were done.

    Raises:
        IITKitError: a metric without a gradient, and what :func:`~iitkit.analysis.patching.patch` refuses.
    """
    if metric not in DIFFERENTIABLE:
        raise IITKitError(
            f"metric {metric!r} has no gradient.{did_you_mean(metric, DIFFERENTIABLE)} Attribution patching takes one "
            f"of {choices(DIFFERENTIABLE)}"
        )
    if exact is not None and exact < 0:
        raise IITKitError(f"exact {exact}: expected a number of cells, or None for all")
    asked = asked_of(tokenizer, positions, answers, wrong, prefix, batch_size, direction)
    examples = examples_of(model, base, source, asked, (variable, split, pairs))
    patcher = Patcher(model, components, layers, heads, 1, None, direction, engine)
    patcher.metrics_of(examples, metric)
    estimates, of_bases, of_sources = [], [], []
    with Bar("attribution", len(examples), progress) as bar:
        for chunk in examples.chunks:
            found, of_base, of_source = _estimate(patcher, chunk, metric)
            estimates.append(found)
            of_bases.append(of_base)
            of_sources.append(of_source)
            bar.done(len(chunk))
    estimate = torch.cat(estimates, 1)  # [cells, examples]
    chosen = _chosen(estimate, exact)
    real = torch.full_like(estimate, torch.nan)
    failed: dict[int, str] = {}
    everything = torch.full_like(real[0], torch.nan)
    missing: dict[str, Any] = {}
    interrupted, estimated = False, Estimate(tell, "example")
    with Bar("exact cells", len(examples), progress) as bar:
        start = 0
        for chunk, of_base in zip(examples.chunks, of_bases, strict=True):
            bar.size = len(chunk)
            table = _exact(patcher, chunk, metric, chosen, bar, estimated, len(examples) - start)
            change = table.values[..., 0].double().cpu() - of_base
            real[chosen, start : start + len(chunk)] = change[:-1]
            everything[start : start + len(chunk)] = change[-1]
            failed |= {int(chosen[at]): line for at, line in table.failed.items() if at < len(chosen)}
            missing |= lost(table.failed, len(chosen))
            start += len(chunk)
            bar.done(len(chunk))
            if interrupted := table.interrupted:
                break
    correlation = _correlation(estimate, real)
    if tell is not None:
        said = "too few to correlate" if correlation is None else f"correlation {correlation:.3f}"
        tell(f"attribution against patching, {len(chosen)} of {len(estimate)} cells: {said}")
    about = {
        **told(model, kind="attribution patching", direction=direction, of=metric),
        **examples.about,
        "correlation": correlation,
        "patched": len(chosen),
        **missing,
        **({"interrupted": True, "unfinished": True} if interrupted else {}),
        "units": dict.fromkeys(COLUMNS, f"change in {metric.replace('_', ' ')}"),
    }
    gap = torch.cat(of_sources) - torch.cat(of_bases)
    return _grid(patcher, examples, torch.stack([estimate, real], -1), gap, everything, failed, about)


def _grid(
    patcher: Patcher,
    examples: Examples,
    values: Tensor,
    gap: Tensor,
    everything: Tensor,
    failed: Mapping[int, str],
    about: Any,
) -> Grid:
    axes = patcher.axes(examples)
    frame = Frame(axes, list(COLUMNS), False, None if examples.single else examples.names)
    # all are changes of the base's metric, so the base itself is 0
    clean, corrupt = patcher.turned(torch.zeros_like(gap), gap)
    both = {"clean": clean, "corrupt": corrupt, "nothing": torch.zeros_like(gap)}
    references = {name: x[:, None].expand(-1, len(COLUMNS)) for name, x in both.items()}
    # no estimate: what layer after layer passes on would be counted again and again
    references["everything"] = torch.stack([torch.full_like(everything, torch.nan), everything], -1)
    grid = frame.grid(values, references, {}, about)
    column = COLUMNS.index("exact")
    lost = {}
    for number, line in failed.items():
        where = np.unravel_index(number, [len(axis.labels) for axis in axes])
        kept = tuple(int(at) for at, axis in zip(where, axes, strict=True) if not axis.single)
        lost[(*kept, column)] = line
    return replace(grid, failed=lost)


def _estimate(patcher: Patcher, chunk: Chunk, metric: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the estimates [cells, B], and the metric of the base and of the source, [B] each."""
    device = next(patcher.model.parameters()).device
    items = [(layer, component) for component in patcher.components for layer in patcher.layers]
    theirs: dict[Item, Tensor] = {}
    with torch.no_grad():
        answered = _forward(patcher.model, chunk.source.to(device), [(item, _keeping(theirs, item)) for item in items])
    ours: dict[Item, Tensor] = {}
    deltas: dict[Item, Tensor] = {}
    with torch.enable_grad():
        logits = _forward(patcher.model, chunk.base.to(device), [(i, _adding(ours, deltas, i)) for i in items])
        high, low = patcher.turned(logits.detach(), answered)
        measure = Measure([metric], chunk.answers, high, low)
        value = measure.differentiable(metric, logits)
        gradients = torch.autograd.grad(value.sum(), [deltas[item] for item in items])
    found = []
    rows = torch.arange(len(chunk), device=device)[:, None]
    for item, gradient in zip(items, gradients, strict=True):
        parts = []
        for p in range(chunk.base_at.shape[1]):
            at, of = chunk.base_at[:, p].to(device), chunk.source_at[:, p].to(device)
            change = theirs[item][rows, of.clamp(min=0)] - ours[item][rows, at.clamp(min=0)]
            each = (change.double() * gradient[rows, at.clamp(min=0)].double()).sum(-1)  # [B, n, (heads)]
            there = (at >= 0).view(*at.shape, *[1] * (each.dim() - 2))
            parts.append(torch.where(there, each, 0.0).sum(1))
        found.append(torch.stack(parts))  # [P, B, (heads)]
    cells = torch.cat([_cells(each, patcher.heads) for each in found])
    missing = ~chunk.there.T.to(device).repeat(len(cells) // chunk.there.shape[1], 1)
    of_source = measure(answered[None])[0, :, 0]
    return cells.masked_fill(missing, torch.nan).cpu(), value.detach().double().cpu(), of_source.cpu()


def _cells(each: Tensor, heads: Sequence[int] | None) -> Tensor:
    """Return [P, B, (heads)] in the order of the cells: heads, positions."""
    if heads is None:
        return each.sum(-1) if each.dim() == 3 else each
    return each[..., list(heads)].permute(2, 0, 1).flatten(0, 1)


def _forward(model: nn.Module, tokens: Any, visits: Sequence[tuple[Item, Visit]]) -> Tensor:
    """Return logits at each row's last token, [B, vocabulary]."""
    placed = [(_located(model, item), visit) for item, visit in visits]
    with visiting(placed), head_at(model, tokens.last[:, None]):
        logits: Tensor = call(model, tokens).logits
    return logits[:, 0]


def _located(model: nn.Module, item: Item) -> Location:
    return locate(model, Site(item[0], item[1]), "attribution")


def _keeping(into: dict[Item, Tensor], item: Item) -> Visit:
    def visit(hidden: Tensor, inputs: Tensor | None) -> None:
        into[item] = hidden.detach().clone()

    return visit


def _adding(into: dict[Item, Tensor], deltas: dict[Item, Tensor], item: Item) -> Visit:
    """Add a zero to an activation: its gradient is the activation's, whatever lies before."""

    def visit(hidden: Tensor, inputs: Tensor | None) -> Tensor:
        into[item] = hidden.detach().clone()
        deltas[item] = torch.zeros_like(hidden).requires_grad_()
        return hidden + deltas[item]

    return visit


def _chosen(estimate: Tensor, exact: int | None) -> Tensor:
    """Return the cells to patch: those with the largest average estimate, then some spread evenly over the rest."""
    size = estimate.nanmean(1).abs().nan_to_num(-math.inf)
    order = size.argsort(descending=True, stable=True)
    if exact is None or exact >= len(order):
        return order
    top = (exact + 1) // 2
    rest = torch.linspace(top, len(order) - 1, exact - top).round().long()
    return torch.cat([order[:top], order[rest]])


def _exact(
    patcher: Patcher, chunk: Chunk, metric: str, chosen: Tensor, bar: Bar, estimate: Estimate, left: int
) -> Found:
    """Return the metric under each chosen cell, and at last under all of the grid's at once, [chosen + 1, B, 1]."""
    base, source = patcher.runs(chunk)
    measure = Measure([metric], chunk.answers, *patcher.turned(base.logits, source.logits))
    cells = patcher.cells(chunk, source)
    some = [*(cells[int(i)] for i in chosen), patcher.everything(chunk, source)]
    estimate.of(lambda: patcher.engine.cost(base, some), Left(left, left / len(chunk)))
    return patcher.engine.table(base, some, measure, bar.part)


def _correlation(estimate: Tensor, real: Tensor) -> float | None:
    known = ~(estimate.isnan() | real.isnan())
    x, y = estimate[known].double(), real[known].double()
    if len(x) < 3 or not float(x.std()) > 0 or not float(y.std()) > 0:
        return None
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x.norm() * y.norm()))
