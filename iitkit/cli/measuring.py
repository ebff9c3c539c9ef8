"""What the commands that measure have in common: settings, the base model, results in a folder, exit codes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import ActionConfigFile

import iitkit.tasks  # noqa: F401 - makes the tasks known by their short names
from iitkit.analysis.axes import CELLS
from iitkit.analysis.grid import Grid
from iitkit.analysis.summaries import failures
from iitkit.causal import Text
from iitkit.cli.callbacks import write_text
from iitkit.cli.parser import Parser
from iitkit.cli.training import prepared
from iitkit.data import CounterfactualDataModule, Sizes
from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.models.load_errors import causes
from iitkit.models.loading import load_base
from iitkit.tasks import Task

Settings = TypeVar("Settings")


def parsed(command: str, kind: type[Settings], arguments: Sequence[str]) -> tuple[Settings, str]:
    """Return a command's settings, and the config as it would be written.

    Args:
        command: its name.
        kind: a dataclass: its fields are the keys of a config and the options.
        arguments: what follows the command.

    Raises:
        IITKitError: what our classes say of their arguments.
    """
    parser = Parser(prog=f"iitkit {command}", description=(kind.__doc__ or "").split("\n")[0])
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="a config: a file, or one of iitkit's own")
    parser.add_class_arguments(kind, as_group=False)
    found = parser.parse_args(prepared(arguments))
    written = parser.dump(found.clone(), skip_none=False) if "config" not in found else _dumped(parser, found)
    try:
        made = parser.instantiate_classes(found)
    except ValueError as error:
        for link in causes(error):
            if isinstance(link, IITKitError):
                raise IITKitError(str(link)) from error
        raise
    values = {name: value for name, value in made.as_dict().items() if name != "config"}
    return kind(**values), written


def _dumped(parser: Parser, found: Any) -> str:
    plain = found.clone()
    plain.pop("config", None)
    text: str = parser.dump(plain)
    return text


def root_of(folder: str) -> Path:
    """Return the folder for results, which need not be there yet.

    Raises:
        IITKitError: it could not be made.
    """
    root = Path(folder).expanduser()
    there = next(part for part in (root, *root.absolute().parents) if part.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "cannot be written to" if there.is_dir() else "is a file"
        raise IITKitError(f"default_root_dir: {there} {why}: give another folder")
    return root


def loaded(base: str, dtype: str) -> tuple[Any, Any]:
    """Return a base model, on a GPU where there is one, and its tokenizer."""
    model, tokenizer = load_base(base, dtype=dtype, device="cuda" if torch.cuda.is_available() else None)
    return model, tokenizer


def one_of(**given: Any) -> str:
    """Return which of several inputs was given.

    Raises:
        IITKitError: none of them, or several.
    """
    there = [name for name, value in given.items() if value is not None]
    if len(there) != 1:
        said = " and ".join(there) if there else "none of them"
        raise IITKitError(f"inputs: expected one of {', '.join(given)}; given {said}")
    return there[0]


def refuse(settings: Any, unread: Mapping[str, Any], why: str) -> None:
    """Refuse keys that nothing would read.

    Args:
        settings: a command's.
        unread: key → its default.
        why: what is said of one that has another value.

    Raises:
        IITKitError: naming the key.
    """
    for key, default in unread.items():
        if getattr(settings, key) != default:
            raise IITKitError(f"{key}: {why}: leave it out")


def data_of(
    task: Task | None, data: CounterfactualDataModule | None, prefix: str, most: int | None, seed: int
) -> CounterfactualDataModule:
    """Return the data module of a task, with as many pairs in each split as are asked for; or the one that is given.

    Raises:
        IITKitError: a prefix beside a data module, which has its own.
    """
    if data is not None:
        if prefix:
            raise IITKitError("prefix: the data have their own (data.init_args.prefix): leave it out")
        return data
    n = max(32, most or 0)  # of fewer prompts some have no source that changes their label
    sizes = Sizes(train=n, validation=n, test=n, test_templates=n)
    return CounterfactualDataModule(task, sizes, prefix=prefix, seed=seed)


def prompts_of(data: CounterfactualDataModule, split: str, most: int | None) -> list[tuple[Text, str | None]]:
    """Return the prompts of a split, with what should follow them where that is known.

    Args:
        data: of a task or a dataset.
        split: which split.
        most: how many prompts; all unless said.

    Raises:
        IITKitError: no such split, no number of prompts, inputs that are no text, prompts with more around them than
            a prefix.
    """
    if most is not None and most < 1:
        raise IITKitError(f"most {most}: expected 1 or more")
    if split not in data.splits:
        hint = did_you_mean(split, data.splits)
        raise IITKitError(f"split {split!r}:{hint} expected one of {choices(data.splits)}")
    if data.source.inputs(split) is not None:
        raise IITKitError("data: the inputs are no text: expected prompts")
    unread = {"shots": data.shots, "chat": data.wording.chat, "max_tokens": data.wording.max_tokens}
    for name, value in {**unread, "special_tokens": data.wording.special_tokens is False}.items():
        if value:
            raise IITKitError(f"data.{name}: the prompts are read as they are, behind data.prefix: leave it out")
    texts, _, _ = data.source.prompts(split)
    truths = data.source.truths(split)
    return [(text, truth or None) for text, truth in zip(texts, truths, strict=True)][:most]


def write(grid: Grid, root: Path, name: str, text: str, config: str = "", drawn: Grid | None = None) -> None:
    """Write a measurement's files: ``name`` .parquet, .json, .txt, .png and .html, and config.yaml.

    Args:
        grid: what was measured.
        root: the folder.
        name: of the files.
        text: what the command prints.
        config: the settings.
        drawn: what picture and page show, where that is another grid.
    """
    root.mkdir(parents=True, exist_ok=True)
    grid.save(root / name)
    write_text(root / f"{name}.txt", text + "\n")
    if config:
        write_text(root / "config.yaml", config)
    for line in draw(grid if drawn is None else drawn, root / name):
        print(f"iitkit: {line}", file=sys.stderr)
    print(text, flush=True)
    print(f"\nresults: {root / name}.parquet, .json, .png, .html", flush=True)


def draw(grid: Grid, stem: Path, **options: Any) -> list[str]:
    """Write picture and page of a grid; what cannot be drawn is said and does not end the run.

    Directions and runs, which are no sample to average, become files of their own, and so do pictures of what has more
    axes than one shows; the picture is of the first metric where it would need panels for components and metrics. The
    page has all.
    """
    said = []
    other = next((dim for dim in grid.dims if dim not in (*CELLS, "metric", "example")), None)
    parts = [("", grid)] if other is None else [(f"_{x}", grid.sel(**{other: x})) for x in grid.coords[other]]
    for suffix, part in parts:
        chosen = part
        if min(part.sizes.get("metric", 1), part.sizes.get("component", 1)) > 1:
            chosen = part.isel(metric=0)
        asked = [options[key] for key in ("x", "y", "panels") if key in options]
        for name, each in _pictures(chosen, asked):
            try:
                each.save_png(stem.with_name(f"{stem.name}{suffix}{name}.png"), **options)
            except IITKitError as error:
                said.append(f"no picture: {error}")
        try:
            kept = {key: value for key, value in options.items() if key in ("theme", "title")}
            part.page(stem.with_name(f"{stem.name}{suffix}.html"), **kept)
        except IITKitError as error:
            said.append(f"no page: {error}")
    return said


def _pictures(grid: Grid, asked: Sequence[str]) -> list[tuple[str, Grid]]:
    """Return parts of a grid that a picture can show, rows, columns and panels, and what their files' names end in."""
    live = [dim for dim in grid.dims if grid.sizes[dim] > 1 and dim != "example"]
    dim = next((dim for dim in ("receiver", "component") if dim in live and dim not in asked), None)
    if len(live) > 3 and dim is None and "metric" in live:
        return [("", grid.isel(metric=0))]
    if len(live) <= 3 or dim is None:
        return [("", grid)]
    parts = [(re.sub(r"[^\w.-]+", "_", f"_{label}"), grid.sel(**{dim: label})) for label in grid.coords[dim]]
    return [(f"{name}{more}", each) for name, part in parts for more, each in _pictures(part, asked)]


def finish(grid: Grid) -> None:
    """End with the exit code that a grid deserves: 1 where cells failed, 130 after Ctrl-C."""
    if grid.failed:
        print(f"iitkit: {len(grid.failed)} values failed:", file=sys.stderr)
        for line in failures(grid):
            print(f"  {line}", file=sys.stderr)
    references = grid.about.get("failed_references", {})
    for name, line in references.items():
        print(f"iitkit: reference {name} failed: {line}", file=sys.stderr)
    if grid.about.get("interrupted"):
        goes_on = "starts anew" if grid.about.get("unfinished") else "goes on from there"
        print(f"iitkit: interrupted; what is done is kept, and the same command {goes_on}", file=sys.stderr)
        sys.exit(130)
    if grid.failed or references:
        sys.exit(1)


def tell(line: str) -> None:
    """Print a line while a measurement runs."""
    print(line, flush=True)
