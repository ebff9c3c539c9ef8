"""How a component lies in the tensor that a module takes or returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from iitkit.errors import IITKitError


class View(Protocol):
    """Reads a component out of a module's tensor, and writes one into it without changing the tensor in place."""

    @property
    def parted(self) -> bool:
        """Whether heads are an axis of the view."""

    def read(self, tensor: Tensor) -> Tensor:
        """Return the component, [batch, sequence, (heads,) width]."""

    def write(self, tensor: Tensor, view: Tensor) -> Tensor:
        """Return ``tensor`` with the component replaced by ``view``, a new tensor."""


@dataclass(frozen=True)
class Entries:
    """Some entries of the last dimension, perhaps parted into heads.

    Args:
        index: which entries, in the order of the view.
        heads: number of heads that the entries are parted into, as an axis of its own; None for no such axis.
    """

    index: Sequence[int]
    heads: int | None = None

    @property
    def parted(self) -> bool:
        """Whether heads are an axis of the view."""
        return self.heads is not None

    def read(self, tensor: Tensor) -> Tensor:
        """Return the entries of ``tensor`` [*, d]: [*, w] or [*, heads, w]."""
        run = self._run()
        found = tensor[..., run] if run is not None else tensor.index_select(-1, self._index(tensor))
        return found if self.heads is None else found.reshape(*found.shape[:-1], self.heads, -1)

    def write(self, tensor: Tensor, view: Tensor) -> Tensor:
        """Return ``tensor`` with the entries replaced."""
        flat = view if self.heads is None else view.flatten(-2)
        run = self._run()
        if run is not None:
            return tensor.slice_scatter(flat, -1, run.start, run.stop)
        return tensor.index_copy(-1, self._index(tensor), flat)

    def _run(self) -> slice | None:
        start, stop = self.index[0], self.index[-1] + 1
        consecutive = len(self.index) == stop - start and all(i == start + k for k, i in enumerate(self.index))
        return slice(start, stop) if consecutive else None

    def _index(self, tensor: Tensor) -> Tensor:
        return torch.tensor(list(self.index), device=tensor.device)


@dataclass(frozen=True)
class Probabilities:
    """Attention probabilities [batch, heads, queries, keys] as [batch, queries, heads, keys].

    Args:
        all_heads: how many heads the layer has, for a check.
        heads: one head (the view has no head axis), or several.
    """

    all_heads: int
    heads: int | Sequence[int]

    @property
    def parted(self) -> bool:
        """Whether heads are an axis of the view."""
        return not isinstance(self.heads, int)

    def read(self, tensor: Tensor) -> Tensor:
        """Return the chosen heads' probabilities: [batch, queries, keys] or [batch, queries, heads, keys].

        Raises:
            IITKitError: a tensor of another shape, so that it is no attention probability.
        """
        if tensor.dim() != 4 or tensor.shape[1] != self.all_heads:
            raise IITKitError(
                f"attention_weight: expected probabilities [batch, {self.all_heads} heads, queries, keys], found "
                f"{tuple(tensor.shape)}: load the model with attn_implementation='eager'"
            )
        if isinstance(self.heads, int):
            return tensor[:, self.heads]
        return tensor[:, list(self.heads)].transpose(1, 2)

    def write(self, tensor: Tensor, view: Tensor) -> Tensor:
        """Return ``tensor`` with the chosen heads' probabilities replaced."""
        if isinstance(self.heads, int):
            return tensor.select_scatter(view, 1, self.heads)
        return tensor.index_copy(1, torch.tensor(list(self.heads), device=tensor.device), view.transpose(1, 2))
