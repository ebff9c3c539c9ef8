"""Path patching: what one place says to another, with all else held as it is.

Wang et al., 2022, https://arxiv.org/abs/2211.00593; Goldowsky-Dill et al., 2023, https://arxiv.org/abs/2304.05969.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iitkit.analysis.examples import Chunk, Examples
from iitkit.analysis.frames import Axis, Frame, all_lost, listed, lost, told
from iitkit.analysis.grid import Grid
from iitkit.analysis.keeping import Job, Kept, Part, measured
from iitkit.analysis.metrics import Measure
from iitkit.analysis.pairs import examples_of
from iitkit.analysis.patching import Patcher, asked_of
from iitkit.analysis.progress import Bar, Estimate, Left, Tell
from iitkit.errors import IITKitError, choices
from iitkit.models.anatomy import locate
from iitkit.models.grids import Engine, Paths, Receiver, total
from iitkit.models.sites import Site
from iitkit.positions import Position

Ends = Literal["logits"] | Site | Sequence[Site]
Receivers = Ends | Mapping[str, Ends]
HOLD = {"attention_output": "attention", "mlp_output": "mlp"}
"""What stays as it is in the base run, in every layer that comes after the sender → what the engine calls it."""
EXPECTED = "'logits', a Site or several, or name → these"


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
    hold: Sequence[str] = tuple(HOLD),
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
    tell: Tell | None = None,
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
        tell: is told what it will cost.

    Returns:
        A grid over receivers (where named), senders' components, layers, heads, positions, metrics and examples. A
        receiver that does not come after the sender receives nothing: the base's value. Its references: ``clean``,
        ``corrupt``, ``nothing`` (the base) and ``everything``: all senders to all receivers at once, where none of
        them would be held (senders within attention or MLP of several layers, the logits beside other receivers).

    Raises:
        IITKitError: a receiver that is not there, something to hold that is neither, and what
            :func:`~iitkit.analysis.patching.patch` refuses.
    """
    hold = [hold] if isinstance(hold, str) else list(dict.fromkeys(hold))
    if wrongly := [name for name in hold if name not in HOLD]:
        raise IITKitError(f"hold {wrongly[0]!r}: expected some of {choices(HOLD)}")
    groups = _groups(model, receivers)
    asked = asked_of(tokenizer, positions, answers, wrong, prefix, batch_size, direction)
    examples = examples_of(model, base, source, asked, (variable, split, pairs))
    patcher = Patcher(model, senders, layers, heads, 1, None, direction, engine)
    names, alone = patcher.metrics_of(examples, metrics)
    if any(chunk.candidates is not None for chunk in examples.chunks):
        raise IITKitError("answers of several tokens cannot be measured along paths: use pairs with single tokens")
    about = told(model, kind="path patching", direction=direction, hold=hold, metrics=names)
    about["receivers"] = {name: _said(each) or "logits" for name, each in groups.items()}
    what: dict[str, Any] = {"components": patcher.components, "layers": patcher.layers, "heads": patcher.heads}
    what["axes"] = [patcher.component_alone, alone, examples.position_alone, examples.single]
    kept, estimate = Kept(folder, {**about, **what}, model), Estimate(tell, "example")
    with Bar("path patching", len(examples), progress) as bar:
        rest = groups, hold, names, alone
        jobs = [
            Job(c.plain(), len(c), len(c), partial(_chunk, patcher, c, examples, *rest, bar, estimate))
            for c in examples.chunks
        ]
        done, interrupted = measured(kept, bar, jobs, cells=True)
    grid = done[0] if examples.single else Grid.join(done, "example")
    about = {
        **grid.about,
        **about,
        **examples.about,
        **all_lost(done),
        **({"interrupted": True} if interrupted else {}),
    }
    return Grid(grid.values, grid.dims, grid.coords, grid.references, grid.failed, about)


def _groups(model: nn.Module, receivers: Receivers) -> dict[str, list[Receiver]]:
    """Return name → what receives together; nothing for the logits. A single group has no name.

    Raises:
        IITKitError: no receivers, or what is none.
    """
    named = receivers if isinstance(receivers, Mapping) else {"": receivers}
    if not named:
        raise IITKitError(f"receivers: expected {EXPECTED}")
    found = {}
    for name, given in named.items():
        of = f" of {name!r}" if isinstance(receivers, Mapping) else ""
        if not isinstance(name, str):
            raise IITKitError(f"receivers: {name!r} is no name: expected text")
        sites = [] if isinstance(given, str) and given == "logits" else listed(given)[0]
        if given != "logits" and not (sites and all(isinstance(site, Site) for site in sites)):
            raise IITKitError(f"receivers{of}: {given!r}: expected {EXPECTED}")
        for site in sites:
            locate(model, site, "receiver")
            if site.layer is None:
                raise IITKitError(f"receiver {site}: expected a component of a layer")
        found[name] = [Receiver(site.layer, site.component, site.head) for site in sites]
    return found


def _said(receivers: Sequence[Receiver]) -> list[str]:
    return [str(Site(each.layer, each.component, head=each.head)) for each in receivers]


def _chunk(
    patcher: Patcher,
    chunk: Chunk,
    examples: Examples,
    groups: Mapping[str, list[Receiver]],
    hold: Sequence[str],
    metrics: list[str],
    alone: bool,
    bar: Bar,
    estimate: Estimate,
    left: Left,
    part: Part,
) -> Grid:
    base, source = patcher.runs(chunk)
    measure = Measure(metrics, chunk.answers, *patcher.turned(base.logits, source.logits))
    senders, held = patcher.cells(chunk, source), [HOLD[what] for what in hold]
    ways = [Paths(patcher.engine, base, receivers, held) for receivers in groups.values()]
    estimate.of(lambda: total([way.cost(senders) for way in ways]), left)
    values: list[Tensor] = []
    failed: dict[int, str] = {}
    interrupted = False
    for number, way in enumerate(ways):
        run = partial(way.table, reduce=measure, progress=bar.share(number, len(ways)))
        table = part.of(number).table(senders, run)
        values.append(patcher.masked(table.values, chunk))
        failed |= {number * len(senders) + at: line for at, line in table.failed.items()}
        if interrupted := table.interrupted:
            values += [torch.full_like(values[0], torch.nan)] * (len(ways) - len(values))
            break
    own, theirs = (measure(run.logits[None])[0] for run in (base, source))
    clean, corrupt = patcher.turned(own, theirs)
    ends = [receiver for receivers in groups.values() for receiver in receivers]
    references = {"clean": clean, "corrupt": corrupt, "nothing": own}
    missing: dict[str, Any] = {}
    if (all(groups.values()) or not ends) and not interrupted:
        with suppress(IITKitError):  # of several layers' queries, the later ones' change is held
            table = Paths(patcher.engine, base, ends, held).table([patcher.everything(chunk, source)], measure)
            references["everything"] = table.values[0]
            missing, interrupted = lost(table.failed, 0), table.interrupted
    axes = patcher.axes(examples)
    named = list(groups) != [""]
    frame = Frame(
        [Axis("receiver", list(groups), not named), *axes], metrics, alone, None if examples.single else chunk.names
    )
    about: dict[str, Any] = {} if named else {"receiver": ", ".join(_said(groups[""])) or "logits"}
    about |= {**missing, **({"interrupted": True} if interrupted else {})}
    grid = frame.grid(torch.cat(values), references, failed, {})
    return Grid(grid.values, grid.dims, grid.coords, grid.references, grid.failed, {**grid.about, **about})
