"""Finished examples kept in a folder, so that a measurement that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iitkit.analysis.grid import Grid
from iitkit.analysis.progress import Bar, Left
from iitkit.errors import IITKitError
from iitkit.interventions import Intervention
from iitkit.models.grids import Cell, Found


@dataclass(frozen=True)
class Job:
    """One example, or several that are run together.

    Args:
        example: all that its numbers depend on besides the settings: plain values.
        size: how many examples it is.
        work: how much work it is, in any unit that the jobs have in common.
        measure: measures it; is told what is left to do, itself included, and where its cells are kept. None where the
            example is left out.
    """

    example: Mapping[str, Any]
    size: int
    work: float
    measure: Callable[[Left, Part], Grid | None]


class Part:
    """The cells of an example that were done when Ctrl-C came.

    Args:
        stem: of their files; None keeps nothing.
        whole: whether a table that is finished is kept as well, as another may not be.
    """

    def __init__(self, stem: Path | None, whole: bool = False) -> None:
        self._stem, self._whole = stem, whole

    def of(self, number: int) -> Part:
        """Return one of several tables of an example."""
        return Part(None if self._stem is None else self._stem.with_name(f"{self._stem.name}_{number}"), True)

    def table(self, cells: Sequence[Cell], run: Callable[[Sequence[Cell]], Found]) -> Found:
        """Run the cells that are not kept; keep those that are done when Ctrl-C comes."""
        held = self._load(len(cells))
        if held is None:
            found = run(cells)
        else:
            rest = held.isnan().all(1).nonzero()[:, 0].tolist()
            some = run([cells[number] for number in rest])
            found = Found.empty(len(cells), some.base)
            found.values[:] = held.view_as(found.values)
            found.done[:] = True
            found.values[rest], found.done[rest], found.filled[rest] = some.values, some.done, some.filled
            found.failed, found.interrupted = {rest[at]: line for at, line in some.failed.items()}, some.interrupted
        if self._stem is not None and (found.interrupted or self._whole):
            Grid(found.values.double().flatten(1).numpy(), ("cell", "number")).save(self._stem)
        return found

    def _load(self, cells: int) -> Tensor | None:
        if self._stem is None or not self._stem.with_name(f"{self._stem.name}.json").is_file():
            return None
        try:
            found = torch.from_numpy(Grid.load(self._stem).values.copy())
        except IITKitError:
            return None
        return found if len(found) == cells else None


class Kept:
    """Grids of finished examples, each under a digest of all that its numbers depend on.

    Args:
        folder: where they are; None keeps nothing.
        settings: what they depend on besides the example: plain values.
        model: the network, every number of it.
        interventions: trained interventions, every number of them.
    """

    def __init__(
        self,
        folder: str | Path | None,
        settings: Mapping[str, Any],
        model: nn.Module,
        interventions: Iterable[Intervention] = (),
    ) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        self.settings = dict(settings)
        if folder is not None:
            edits = [[edit.spec(), edit.training, digest(edit)] for edit in interventions]
            self.settings |= {"network": digest(model), "hooks": _hooks(model), "interventions": edits}

    def find(self, example: Mapping[str, Any]) -> Grid | None:
        """Return an example's grid, if it was finished; a damaged or incomplete one is measured anew."""
        stem = self._stem(example)
        if stem is None or not stem.with_name(f"{stem.name}.json").is_file():
            return None
        try:
            found = Grid.load(stem)
        except IITKitError:
            return None
        return None if found.failed else found

    def keep(self, example: Mapping[str, Any], grid: Grid) -> None:
        """Write an example's grid, in the place of its parts."""
        if (stem := self._stem(example)) is not None:
            grid.save(stem)
            for file in stem.parent.glob(f"{stem.name}_part*"):
                file.unlink(missing_ok=True)

    def part(self, example: Mapping[str, Any]) -> Part:
        """Return where the cells of an unfinished example are."""
        stem = self._stem(example)
        return Part(None if stem is None else stem.with_name(f"{stem.name}_part"))

    def _stem(self, example: Mapping[str, Any]) -> Path | None:
        if self.folder is None:
            return None
        told = json.dumps([self.settings, dict(example)], sort_keys=True, ensure_ascii=False, default=str)
        return self.folder / hashlib.sha256(told.encode()).hexdigest()[:20]


def measured(kept: Kept, bar: Bar, jobs: Sequence[Job], cells: bool = False) -> tuple[list[Grid], bool]:
    """Measure what is not kept yet; keep what is done without a failure.

    Args:
        kept: what is kept.
        bar: is told of finished examples.
        jobs: what is to be measured.
        cells: whether after Ctrl-C in the first example the cells of it that are done are returned.

    Returns:
        The grids, and whether Ctrl-C ended it early.

    Raises:
        KeyboardInterrupt: after Ctrl-C before anything was done.
    """
    found = [kept.find(job.example) for job in jobs]
    waiting = [job for job, grid in zip(jobs, found, strict=True) if grid is None]
    examples, work = sum(job.size for job in waiting), sum(job.work for job in waiting)
    done: list[Grid] = []
    try:
        for job, grid in zip(jobs, found, strict=True):
            bar.size = job.size
            if grid is None:
                grid = kept.find(job.example)  # the same as one before
            if grid is not None:
                done.append(grid)
                bar.kept(job.size)
            else:
                grid = job.measure(Left(examples, work / job.work), kept.part(job.example))
                if grid is not None and grid.about.get("interrupted"):
                    if cells and not done:
                        lost = {"unfinished": True} if kept.folder is None else {}
                        return [replace(grid, about={**grid.about, **lost})], True
                    raise KeyboardInterrupt
                if grid is not None and not grid.failed and "failed_references" not in grid.about:
                    kept.keep(job.example, grid)
                examples, work = examples - job.size, work - job.work
                if grid is not None:
                    done.append(grid)
                bar.done(job.size)
    except KeyboardInterrupt:
        if not done:
            raise
        return done, True
    return done, False


def digest(module: nn.Module) -> str:
    """Return what stands for every parameter and buffer of a module, and for its config where it has one."""
    found = hashlib.sha256()
    config: Any = getattr(module, "config", None)
    if hasattr(config, "to_dict"):
        found.update(json.dumps(config.to_dict(), sort_keys=True, default=str).encode())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        if not tensor.is_meta:
            found.update(_bytes(tensor))
    return found.hexdigest()[:32]


def _bytes(tensor: Tensor) -> Any:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else b""


def _hooks(model: nn.Module) -> list[str]:
    """Return the modules with hooks of the user's: what these do is not known, but that they are there is."""
    return [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]
