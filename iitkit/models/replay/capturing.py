"""One run of the frozen network that hands over what replay keeps, and stops when it has handed over all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from iitkit.batch import Tokens
from iitkit.models.anatomy import Location
from iitkit.models.editing import Stopped, Visit, stopping, visiting
from iitkit.models.runs import call, head_at

Take = Callable[[str, Tensor], None]
"""Gets an item's name and its activations, [B, S, …]."""


def keys(layer: int) -> str:
    """Name the keys of a layer."""
    return f"keys {layer}"


def values(layer: int) -> str:
    """Name the values of a layer."""
    return f"values {layer}"


def entry(layer: int) -> str:
    """Name the hidden states that enter a layer."""
    return f"entry {layer}"


def reading(location: Location) -> str:
    """Name the activations at a site."""
    return f"at {location.label}"


class Seeing(DynamicCache):
    """A cache that keeps nothing: it shows each layer's keys and values [B, heads, S, size] and returns them."""

    def __init__(self, see: Callable[[int, Tensor, Tensor], None]) -> None:
        super().__init__()
        self.see = see

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Show a layer's keys and values."""
        self.see(layer_idx, key_states, value_states)
        return key_states, value_states


@dataclass(frozen=True)
class Network:
    """A frozen network as replay sees it.

    Args:
        model: the network.
        blocks: its blocks.
        sites: item → location, of the activations at sites.
    """

    model: nn.Module
    blocks: Sequence[nn.Module]
    sites: Mapping[str, Location]

    @torch.no_grad()
    def capture(self, tokens: Tokens, items: Sequence[str], take: Take) -> set[str]:
        """Run tokens and hand over items; the run stops behind the last of them.

        Args:
            tokens: rows of tokens.
            items: what to hand over.
            take: gets each item as [B, S, …].

        Returns:
            The items that the network never made.
        """
        left = set(items)

        def taken(item: str, tensor: Tensor) -> None:
            if item in left:
                take(item, tensor)
                left.discard(item)

        def see(layer: int, k: Tensor, v: Tensor) -> None:
            taken(keys(layer), k.transpose(1, 2))
            taken(values(layer), v.transpose(1, 2))
            if not left:
                raise Stopped

        visits = [(location, _visit(item, taken, left)) for item, location in self._places(items)]
        cache = Seeing(see) if any(item.startswith(("keys ", "values ")) for item in items) else None
        extra = {} if cache is None else {"use_cache": True, "past_key_values": cache}
        with visiting(visits), head_at(self.model, None), stopping():
            call(self.model, tokens, **extra)
        return left

    def _places(self, items: Sequence[str]) -> list[tuple[str, Location]]:
        found = []
        for item in items:
            kind, _, layer = item.partition(" ")
            if kind == "entry":
                found.append((item, Location(self.blocks[int(layer) - 1], "output", None, True, None, item)))
            elif kind == "at":
                found.append((item, self.sites[item]))
        return found


def _visit(item: str, taken: Take, left: set[str]) -> Visit:
    def visit(hidden: Tensor, inputs: Tensor | None) -> None:
        taken(item, hidden)
        if not left:
            raise Stopped

    return visit
