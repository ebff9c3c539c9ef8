"""One unedited run and what it made, kept for the cells that start from it or take their values from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from iitkit.models.grids.rows import Rows
from iitkit.models.sites import Head

if TYPE_CHECKING:
    from iitkit.models.grids.engine import Engine


class Run:
    """An unedited run; made by :meth:`Engine.run`.

    Args:
        engine: the engine whose network was run.
        rows: what was run.
        logits: at the columns that are read, [B, (T,) vocabulary].
    """

    def __init__(self, engine: Engine, rows: Rows, logits: Tensor) -> None:
        self.engine, self.rows, self.logits = engine, rows, logits

    def at(self, layer: int | None, component: str = "block_output", head: Head = None) -> Tensor:
        """Return activations at all columns, [B, S, (heads,) width]; what was not kept is computed by another run."""
        raise NotImplementedError
