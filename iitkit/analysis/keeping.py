"""Finished examples kept in a folder, so that a measurement that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from iitkit.analysis.grid import Grid
from iitkit.analysis.progress import Bar
from iitkit.errors import IITKitError


class Kept:
    """Grids of finished examples, each under a digest of all that its numbers depend on.

    Args:
        folder: where they are; None keeps nothing.
        settings: what they depend on besides the example: plain values.
    """

    def __init__(self, folder: str | Path | None, settings: Mapping[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        self.settings = dict(settings)

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
        """Write an example's grid."""
        if (stem := self._stem(example)) is not None:
            grid.save(stem)

    def _stem(self, example: Mapping[str, Any]) -> Path | None:
        if self.folder is None:
            return None
        told = json.dumps([self.settings, dict(example)], sort_keys=True, ensure_ascii=False)
        return self.folder / hashlib.sha256(told.encode()).hexdigest()[:20]


def measured(
    kept: Kept, bar: Bar, jobs: Iterable[tuple[Mapping[str, Any], int, Callable[[], Grid | None]]]
) -> tuple[list[Grid], bool]:
    """Measure what is not kept yet; keep what is done without a failure.

    Args:
        kept: what is kept.
        bar: is told of finished examples.
        jobs: what tells an example, how many examples it is, and what measures it (None where it is left out).

    Returns:
        The grids, and whether Ctrl-C ended it early.

    Raises:
        KeyboardInterrupt: after Ctrl-C before anything was done.
    """
    done: list[Grid] = []
    try:
        for example, size, measure in jobs:
            bar.size = size
            found = kept.find(example)
            if found is None:
                found = measure()
                if found is not None and found.about.get("interrupted"):
                    raise KeyboardInterrupt
                if found is not None and not found.failed:
                    kept.keep(example, found)
            if found is not None:
                done.append(found)
            bar.done(size)
    except KeyboardInterrupt:
        if not done:
            raise
        return done, True
    return done, False
