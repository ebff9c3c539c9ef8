"""Path patching: what one place says to another, with all else held as it is.

Wang et al., 2022, https://arxiv.org/abs/2211.00593; Goldowsky-Dill et al., 2023, https://arxiv.org/abs/2304.05969.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iitkit.analysis.examples import Asked, Chunk, Examples
from iitkit.analysis.frames import Axis, Frame, fingerprint, told
from iitkit.analysis.grid import Grid
from iitkit.analysis.keeping import Kept, measured
from iitkit.analysis.metrics import Measure
from iitkit.analysis.pairs import examples_of
from iitkit.analysis.patching import Patcher
from iitkit.analysis.progress import Bar
from iitkit.batch import Tokens
from iitkit.errors import IITKitError, choices
from iitkit.models.anatomy import locate
from iitkit.models.editing import Visit, stopping, visiting
from iitkit.models.grids import Cell, Engine, Patch, Run
from iitkit.models.location import Location
from iitkit.models.runs import call, head_at
from iitkit.models.sites import Site
from iitkit.positions import Position

Receivers = Literal["logits"] | Site | Sequence[Site] | Mapping[str, Site | Sequence[Site]]
HOLD = ("attention_output", "mlp_output")
"""What stays as it is in the base run, in every layer that comes after the sender."""
ROWS = 64
"""Rows of one hooked run, unless a single cell has more."""


def patch_paths(
    model: nn.Module,
    base: Any,
    source: Any = None,
    *,
    receivers: Receivers = "logits",
    senders: str | Sequence[str] = "head_attention_value_output",
    layers: Sequence[int] | None = None,
    heads: Any = "all",
    positions: Position | Sequence[Position] | None = None,
    hold: Sequence[str] = HOLD,
    tokenizer: Any = None,
    answers: Any = None,
    wrong: Any = None,
    direction: Any = "denoising",
    metrics: str | Sequence[str] | None = None,
    prefix: str = "",
    variable: str | None = None,
    split: str = "test",
    pairs: int | None = None,
    batch_size: int = 16,
    engine: Engine | None = None,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> Grid:
    """Patch the paths from senders to receivers.

    Three runs for each sender: base and source as they are; the base with the sender's activation from the source and
    all that comes after it held (``hold``), in which the receivers' activations are read; and the base with these put
    into the receivers, everything else computed. For the logits the second run is the answer.

    Args:
        model: a causal language model.
        base: what is run; see :func:`iitkit.analysis.patching.patch`, also for the arguments not told of here.
        source: what the senders' activations are taken from.
        receivers: ``logits``; a site or several that receive together; or name → these, which become an axis. A site's
            position is not looked at: it receives at every token.
        senders: component of the senders, or several as a list.
        layers: the senders' layers.
        heads: the senders' heads; None for all at once, or where they have none.
        positions: the senders' positions.
        hold: components that are held behind the sender: attention and MLP outputs. Without ``mlp_output`` paths
            through MLPs count as direct, as in the paper on indirect object identification.
        tokenizer: the network's fast tokenizer; needed for text.
        answers: answers of the clean prompts.
        wrong: answers of the corrupt prompts.
        direction: ``denoising`` or ``noising``.
        metrics: one metric, or several as a list.
        prefix: text before every prompt given as text.
        variable: the causal variable that is interchanged, of a data module.
        split: its split.
        pairs: how many pairs of the split.
        batch_size: examples that are run together.
        engine: runs the cells; one of its own unless said.
        folder: keeps the examples that are done; a later call with the same settings goes on from there.
        progress: whether to show a bar.

    Returns:
        A grid over receivers (where named), senders' components, layers, heads, positions, metrics and examples. A
        receiver that does not come after the sender receives nothing: the base's value.

    Raises:
        IITKitError: a receiver that is not there, something to hold that is neither, and what
            :func:`~iitkit.analysis.patching.patch` refuses.
    """
    if wrongly := [name for name in hold if name not in HOLD]:
        raise IITKitError(f"hold {wrongly[0]!r}: expected some of {choices(HOLD)}")
    groups = _groups(receivers)
    for sites in groups.values():
        for site in sites:
            locate(model, site, "receiver")
            if site.layer is None:
                raise IITKitError(f"receiver {site}: expected a component of a layer")
    clean = "source" if direction == "denoising" else "base"
    asked = Asked(tokenizer, positions, answers, wrong, prefix, batch_size, clean)
    examples = examples_of(model, base, source, asked, (variable, split, pairs))
    patcher = Patcher(model, senders, layers, heads, 1, None, direction, engine)
    names, alone = patcher.metrics_of(examples, metrics)
    if any(chunk.candidates is not None for chunk in examples.chunks):
        raise IITKitError("answers of several tokens cannot be measured along paths: use pairs with single tokens")
    about = told(model, kind="path patching", direction=direction, hold=list(hold), metrics=names)
    about["receivers"] = {name: [str(site) for site in sites] or "logits" for name, sites in groups.items()}
    what = {"components": patcher.components, "layers": patcher.layers, "heads": patcher.heads}
    kept = Kept(folder, {**about, **what, "fingerprint": fingerprint(model)})
    with Bar("path patching", len(examples), progress) as bar:
        jobs = (
            (c.plain(), len(c), partial(_chunk, patcher, c, examples, groups, tuple(hold), names, alone, bar))
            for c in examples.chunks
        )
        done, interrupted = measured(kept, bar, jobs)
    grid = done[0] if examples.single else Grid.join(done, "example")
    about = {**grid.about, **about, **examples.about, **({"interrupted": True} if interrupted else {})}
    return Grid(grid.values, grid.dims, grid.coords, grid.references, grid.failed, about)


def _groups(receivers: Receivers) -> dict[str, list[Site]]:
    """Return name → sites that receive together; no sites for the logits. A single group has no name."""
    if isinstance(receivers, str):
        if receivers != "logits":
            raise IITKitError(f"receivers {receivers!r}: expected 'logits', a Site or several, or name → Site")
        return {"": []}
    if isinstance(receivers, Site):
        return {"": [receivers]}
    if isinstance(receivers, Mapping):
        return {name: [sites] if isinstance(sites, Site) else list(sites) for name, sites in receivers.items()}
    if not receivers:
        raise IITKitError("receivers: expected 'logits', a Site or several, or name → Site")
    return {"": list(receivers)}


def _chunk(
    patcher: Patcher,
    chunk: Chunk,
    examples: Examples,
    groups: Mapping[str, list[Site]],
    hold: tuple[str, ...],
    metrics: list[str],
    alone: bool,
    bar: Bar,
) -> Grid:
    base, source = patcher.runs(chunk)
    base.keep([(layer, component) for layer in range(patcher.count) for component in hold])
    measure = Measure(metrics, chunk.answers, *patcher.turned(base.logits, source.logits))
    senders = [cell for cell in patcher.cells(chunk, source) if isinstance(cell, Patch)]
    values: list[Tensor] = []
    failed: dict[int, str] = {}
    for number, sites in enumerate(groups.values()):
        if sites:
            cells: list[Cell] = [
                [Patch(x.layer, x.component, head=x.head, values=value) for x, value in zip(sites, each, strict=True)]
                for each in _received(patcher, base, senders, sites, hold)
            ]
        else:
            cells = [[sender, *_held(patcher, base, sender, hold)] for sender in senders]
        table = patcher.engine.table(base, cells, measure, bar.part)
        if table.interrupted:
            raise KeyboardInterrupt
        there = ~chunk.there.T.repeat(len(senders) // chunk.there.shape[1], 1)
        values.append(table.values.masked_fill(there[..., None].to(table.values.device), torch.nan))
        failed |= {number * len(senders) + at: line for at, line in table.failed.items()}
    own, theirs = (measure(run.logits[None])[0] for run in (base, source))
    clean, corrupt = patcher.turned(own, theirs)
    axes = patcher.axes(examples)
    named = list(groups) != [""]
    frame = Frame(
        [Axis("receiver", list(groups), not named), *axes], metrics, alone, None if examples.single else chunk.names
    )
    about = {} if named else {"receiver": "logits" if not groups[""] else ", ".join(map(str, groups[""]))}
    grid = frame.grid(torch.cat(values), {"clean": clean, "corrupt": corrupt, "nothing": own}, failed, {})
    return Grid(grid.values, grid.dims, grid.coords, grid.references, grid.failed, {**grid.about, **about})


def _after(patcher: Patcher, sender: Patch, hold: tuple[str, ...]) -> list[tuple[int, str]]:
    """Return what comes after a sender and is held: later layers, and its own layer's MLP behind attention."""
    assert isinstance(sender.layer, list)
    (layer,) = sender.layer
    later = [(at, component) for at in range(layer + 1, patcher.count) for component in hold]
    inside = not sender.component.startswith(("mlp", "block_output", "router"))
    own = ["mlp_output"] if inside and "mlp_output" in hold else []
    if sender.component == "block_input":
        own = list(hold)
    return [*((layer, component) for component in own), *later]


def _held(patcher: Patcher, base: Run, sender: Patch, hold: tuple[str, ...]) -> list[Patch]:
    return [Patch(layer, component, source=base) for layer, component in _after(patcher, sender, hold)]


@torch.no_grad()
def _received(
    patcher: Patcher, base: Run, senders: Sequence[Patch], sites: Sequence[Site], hold: tuple[str, ...]
) -> list[list[Tensor]]:
    """Return the receivers' activations [B, S, …] under each sender, by hooked runs of several senders at once."""
    b = len(base.rows)
    found: list[list[Tensor]] = []
    size = max(1, ROWS // b)
    for start in range(0, len(senders), size):
        part = senders[start : start + size]
        n = len(part)
        tokens = Tokens(base.rows.tokens.ids.repeat(n, 1), base.rows.tokens.mask.repeat(n, 1))
        seen: dict[int, Tensor] = {}
        visits: list[tuple[Location, Visit]] = []
        held: dict[tuple[int, str], list[int]] = {}
        for k, sender in enumerate(part):
            visits.append(_sending(patcher, sender, k, b))
            for item in _after(patcher, sender, hold):
                held.setdefault(item, []).append(k)
        for number, site in enumerate(sites):  # before what is held: it receives what would have come
            visits.append((locate(patcher.model, site, "receiver"), _seeing(seen, number)))
        for item, which in held.items():
            visits.append((locate(patcher.model, Site(*item), "hold"), _holding(base.at(*item), which, b)))
        with visiting(visits), head_at(patcher.model, None), stopping():
            call(patcher.model, tokens)
        found += [[seen[number][k * b : (k + 1) * b] for number in range(len(sites))] for k in range(n)]
    return found


def _sending(patcher: Patcher, sender: Patch, k: int, b: int) -> tuple[Location, Visit]:
    assert isinstance(sender.layer, list)
    assert isinstance(sender.columns, Tensor)
    assert isinstance(sender.source_columns, Tensor)
    assert sender.source is not None
    (layer,) = sender.layer
    location = locate(patcher.model, Site(layer, sender.component, head=sender.head), "sender")
    whole = sender.source.at(layer, sender.component, sender.head)
    rows, slots = (sender.columns >= 0).nonzero(as_tuple=True)
    at, of = sender.columns[rows, slots], sender.source_columns[rows, slots]
    put = whole[rows.to(whole.device), of.to(whole.device)]

    def visit(hidden: Tensor, inputs: Tensor | None) -> Tensor:
        where = ((rows + k * b).to(hidden.device), at.to(hidden.device))
        return hidden.index_put(where, put.to(hidden))

    return location, visit


def _holding(kept: Tensor, which: Sequence[int], b: int) -> Visit:
    rows = torch.cat([torch.arange(k * b, (k + 1) * b) for k in which])

    def visit(hidden: Tensor, inputs: Tensor | None) -> Tensor:
        return hidden.index_copy(0, rows.to(hidden.device), kept.repeat(len(which), *[1] * (kept.dim() - 1)).to(hidden))

    return visit


def _seeing(into: dict[int, Tensor], number: int) -> Visit:
    def visit(hidden: Tensor, inputs: Tensor | None) -> None:
        into[number] = hidden.clone()

    return visit
