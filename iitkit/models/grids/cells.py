"""Cells: what is edited in one run of a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from iitkit.interventions import Intervention
from iitkit.models.sites import Head

if TYPE_CHECKING:
    from iitkit.models.grids.run import Run


@dataclass(frozen=True, eq=False)
class Patch:
    """An edit of a run: one component in one layer or a window of layers, at columns of each row.

    What is put there is one of: the activations of another run (``source``), ``values``, or what an ``intervention``
    makes of the run's own activations (and of the source's where it needs one).

    Args:
        layer: index of the block, or several (a window): the component is edited in each of them. None for what
            stands outside the layers (``embeddings``, ``final_norm``).
        component: any of :data:`iitkit.models.anatomy.COMPONENTS` but ``logits``.
        columns: columns of the base's tokens, an integer, [n] or [B, n]; −1 where a row has none there. All real
            tokens unless said.
        head: index of a head, or several, of a component that has heads; all of them unless said.
        source: the run that activations are taken from. It has as many rows as the base, or one for all of them.
        source_columns: columns of the source's tokens, as ``columns``; unless said those that stand as far from their
            row's first token as the base's do.
        values: a number, or what broadcasts to [B, n, (heads,) width] (of a window: layer → such a tensor); of a
            window of layers one for all of them unless it is a mapping.
        intervention: edits activations [M, (heads,) width]; sees each position and head by itself unless ``joint``.
        strength: ``h + strength · (edit(h) − h)`` of the intervention.
        joint: the intervention sees all positions (and heads) of a row as one vector.
        variable: whose block of the intervention is meant, where that has several.
    """

    layer: int | Sequence[int] | None
    component: str = "block_output"
    columns: Tensor | int | Sequence[int] | None = None
    head: Head = None
    source: Run | None = None
    source_columns: Tensor | int | Sequence[int] | None = None
    values: Tensor | float | Mapping[int, Tensor] | None = None
    intervention: Intervention | None = None
    strength: float = 1.0
    joint: bool = False
    variable: str | None = None


Cell = Patch | Sequence[Patch]
"""What one cell edits: one patch, or several at once (of one component and place the later one sees the earlier)."""
