"""A place found in a network: the module, the side of it, and how the component lies in its tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from iitkit.models.sites import Side
from iitkit.models.views import View


@dataclass(frozen=True)
class Inside:
    """An activation that crosses no module's boundary: what a function returns inside a module's forward.

    The module's own code runs; the result of its first call of one of the functions is read and may be replaced.

    Args:
        functions: functions of torch; the module's first call of any of them counts.
        called: what messages call the result.
        layer: layer of a module that runs several layers in one call (nn.GRU).
    """

    functions: tuple[Any, ...]
    called: str
    layer: int | None = None


@dataclass(frozen=True, eq=False)
class Eager:
    """Attention that must compute its probabilities while a site is visited.

    Args:
        config: the config that says how attention is computed.
        network: the network, all of whose attention is computed that way.
    """

    config: Any
    network: nn.Module


@dataclass(frozen=True, eq=False)
class Location:
    """A site found in a network.

    Args:
        module: the module whose input or output is the activation.
        side: which of the two.
        block: index of the block that holds the module; None outside the blocks.
        after: whether the activation leaves the block (what runs next is the following block).
        width: size of one unit of the activation (of one head where the view has heads), None where it is not known.
        label: what messages call it.
        heads: number of units selected, 1 where the view has no head axis.
        input_width: size of the module's own input, where the site is an output and it is known.
        view: how the component lies in the module's tensor; None where it is the tensor.
        replays: whether what stands left of an edit may come from a store. Not so for attention weights, whose last
            axis counts all tokens.
        holder: the block that holds the module.
        flat: whether the module may see [batch · sequence, width], rows and positions in one dimension.
        inside: where the activation is made inside the module's forward.
        field: name of the activation in an output that is a mapping, e.g. ``logits``.
        eager: attention that must compute its probabilities while the site is visited.
        joined: number of positions of a row that an intervention sees as one vector; 0 for each by itself.
        variable: the causal variable that a placement puts here.
    """

    module: nn.Module
    side: Side
    block: int | None
    after: bool
    width: int | None
    label: str
    heads: int = 1
    input_width: int | None = None
    view: View | None = None
    replays: bool = True
    holder: nn.Module | None = None
    flat: bool = False
    inside: Inside | None = None
    field: str | None = None
    eager: Eager | None = None
    joined: int = 0
    variable: str | None = None
