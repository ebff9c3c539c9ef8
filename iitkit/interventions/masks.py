"""Masks: which coordinates of a space an edit reaches, and how far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.interventions.checks import coordinates, whole
from iitkit.interventions.parts import Part


class Mask(Part):
    """Weights in [0, 1] of a space's coordinates.

    Args:
        size: number of coordinates k; None where any will do.
        options: what the subclass was built from.
    """

    kind = "mask"
    blocks: tuple[str, ...] | None = None
    """Names of the blocks that it has one set of weights for each of."""

    def __init__(self, size: int | None, **options: Any) -> None:
        super().__init__(**options)
        self.size = size
        self.nothing: Tensor
        self.register_buffer("nothing", torch.zeros((), dtype=torch.float32), persistent=False)  # on its device

    def begin(self, generator: torch.Generator | None) -> None:
        """Let a generator say where random draws begin; nothing to do for a mask that draws none."""

    def weights(self, block: str | None = None) -> Tensor | None:
        """Return the weights [k]: bool where the mask is hard; None stands for all."""
        raise NotImplementedError  # abstract

    def forward(self, delta: Tensor, block: str | None = None) -> Tensor:
        """Return a change of coordinates ``delta`` [*, k] with every coordinate weighted.

        Raises:
            IITKitError: no ``block`` where the mask has blocks, or one that it has not.
        """
        if block is not None and (self.blocks is None or block not in self.blocks):
            has = "it has no blocks" if self.blocks is None else f"it has {choices(self.blocks)}"
            raise IITKitError(f"block {block!r}: {has}.{did_you_mean(block, self.blocks or ())}")
        if block is None and self.blocks is not None:
            raise IITKitError(f"which block? The mask has {choices(self.blocks)}: give block=…")
        weights = self.once(f"weights {block} {self.training}", lambda: self.weights(block))
        if weights is None:
            return delta
        if weights.dtype == torch.bool:
            return torch.where(weights, delta, torch.zeros((), dtype=delta.dtype, device=delta.device))
        return delta * weights.to(delta.dtype)

    def penalty(self) -> Tensor:
        """Return what a loss may be charged for the mask's size, 0-dim; nothing where the size is fixed."""
        return self.nothing

    def effective_size(self) -> float | None:
        """Return the number of coordinates of the hardened mask; None stands for all."""
        return None

    @property
    def temperature(self) -> float | None:
        """How soft the mask is in training; None where no temperature is read."""
        return None

    @temperature.setter
    def temperature(self, value: float) -> None:
        raise IITKitError(f"temperature {value}: the mask {type(self).__name__} has none")


class All(Mask):
    """All coordinates.

    Args:
        size: number of coordinates; without it any will do.
    """

    def __init__(self, size: int | None = None) -> None:
        super().__init__(size)

    def weights(self, block: str | None = None) -> None:
        """Return None: all."""
        return


class _Fixed(Mask):
    """Sets of coordinates that never change, a row of ``kept`` for each block."""

    def __init__(self, size: int, sets: list[list[int]], **options: Any) -> None:
        super().__init__(size, **options)
        kept = torch.zeros(len(sets), size, dtype=torch.bool)
        for row, indices in zip(kept, sets, strict=True):
            row[indices] = True
        self.kept: Tensor
        self.register_buffer("kept", kept, persistent=False)  # the options say it all

    def weights(self, block: str | None = None) -> Tensor:
        """Return the block's set, bool [k]."""
        return self.kept[self.blocks.index(block) if self.blocks is not None and block is not None else 0]

    def effective_size(self) -> float:
        """Return the number of coordinates in all sets together."""
        return float(self.kept.sum())


class Indices(_Fixed):
    """Some coordinates.

    Args:
        size: number of coordinates.
        indices: the first k of them, or a list of indices; an empty list leaves the base as it is.

    Raises:
        IITKitError: an index that is negative, out of range or given twice.
    """

    def __init__(self, size: int, indices: int | list[int]) -> None:
        super().__init__(size, [coordinates("indices", indices, size)], indices=indices)


class Blocks(_Fixed):
    """Disjoint sets of coordinates, one for each of several variables that share a rotation.

    Huang et al., 2024, https://arxiv.org/abs/2402.17700 (multi-task DAS). A forward pass names one of them.

    Args:
        size: number of coordinates.
        blocks: name → list of indices, or a number of coordinates: the next ones, in order, that no list claims.

    Raises:
        IITKitError: blocks that overlap, are empty, or ask for more coordinates than there are.
    """

    def __init__(self, size: int, blocks: dict[str, int | list[int]]) -> None:
        if not isinstance(blocks, dict) or not blocks:
            raise IITKitError(f"blocks {blocks!r}: expected names with a number of coordinates or a list of them each")
        owner: dict[int, str] = {}
        for name, given in blocks.items():
            if type(given) is int:
                continue
            claimed = coordinates(f"block {name!r}", given, size)
            if not claimed:
                raise IITKitError(f"block {name!r} is empty: give it a coordinate")
            for index in claimed:
                if index in owner:
                    raise IITKitError(f"blocks {owner[index]!r} and {name!r} overlap at coordinate {index}")
                owner[index] = name
        free = [index for index in range(size) if index not in owner]
        sets: list[list[int]] = []
        for name, given in blocks.items():
            if isinstance(given, int):
                count = whole(f"block {name!r}", given, 1)
                if count > len(free):
                    raise IITKitError(f"block {name!r} asks for {count} coordinates, {len(free)} of {size} are left")
                taken, free = free[:count], free[count:]
                sets.append(taken)
            else:
                sets.append(list(given))
        super().__init__(size, sets, blocks=blocks)
        self.blocks = tuple(blocks)


def some(size: int | None, features: int | list[int] | None) -> Mask:
    """Return the mask of some coordinates; None stands for all.

    Raises:
        IITKitError: some, where the number of all is not known.
    """
    if features is None:
        return All(size)
    if size is None:
        raise IITKitError(f"features {features!r} need a site: build it with SiteInfo(width=…)")
    return Indices(size, features)
