"""``iitkit plot FILE``: a saved grid, drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from iitkit.analysis.effects import indirect
from iitkit.analysis.grid import Grid
from iitkit.cli.measuring import draw, parsed
from iitkit.errors import IITKitError, choices

NAMES = ("trace", "patch", "lens")
"""What the commands call their grids."""


@dataclass
class Plot:
    """Draw a saved grid: a PNG picture and an interactive HTML page beside it.

    Args:
        file: the grid's .parquet or .json file, or the folder of the run that wrote it.
        out: files to write, without an ending; beside the grid's own unless said.
        select: labels to keep, axis → label or list of labels, e.g. '{component: mlp_output}'.
        effects: of a trace, indirect effects instead of the values; unless said they are.
        x: axis of the columns.
        y: axis of the rows.
        panels: axis of the panels.
        theme: of the picture; the page follows the reader unless said.
        title: instead of what was measured.
    """

    file: str
    out: str | None = None
    select: dict[str, Any] | None = None
    effects: bool | None = None
    x: str | None = None
    y: str | None = None
    panels: str | None = None
    theme: Literal["light", "dark"] | None = None
    title: str | None = None


def run(command: str, arguments: Sequence[str]) -> None:
    """Draw a grid.

    Args:
        command: ``plot``.
        arguments: what follows it; the first may be the file.

    Raises:
        IITKitError: no such grid, or nothing that could be drawn of it.
    """
    rest = list(arguments)
    if rest and not rest[0].startswith("-"):
        rest[0] = f"--file={rest[0]}"
    settings, _ = parsed(command, Plot, rest)
    stem = stem_of(settings.file)
    grid = Grid.load(stem)
    traced = grid.about.get("kind") == "causal tracing"
    if settings.effects and not traced:
        raise IITKitError(f"effects: {stem} is no trace, but {grid.about.get('kind', 'a grid of another kind')}")
    if traced and settings.effects is not False:
        grid = indirect(grid)
    if settings.select:
        grid = grid.sel(**settings.select)
        if not isinstance(grid, Grid):
            raise IITKitError(f"select {settings.select} leaves one value, {grid:g}: nothing to draw")
    out = stem if settings.out is None else Path(settings.out).expanduser()
    options = {key: getattr(settings, key) for key in ("x", "y", "panels", "theme", "title")}
    said = draw(grid, out, **{key: value for key, value in options.items() if value is not None})
    if said:
        raise IITKitError("; ".join(said))
    print(f"drawn: {out}.png, .html", flush=True)


def stem_of(file: str) -> Path:
    """Return a grid's files without their endings, of one of them or of the folder of a run.

    Raises:
        IITKitError: no grid there, or several in a folder.
    """
    path = Path(file).expanduser()
    if path.is_dir():
        found = [path / name for name in NAMES if (path / f"{name}.parquet").is_file()]
        if len(found) != 1:
            have = f"{len(found)} grids ({choices(stem.name for stem in found)})" if found else "no grid"
            raise IITKitError(f"{file} holds {have}: expected the .parquet file of one")
        return found[0]
    for ending in (".parquet", ".json"):
        if path.suffix == ending:
            return path.with_suffix("")
    return path
