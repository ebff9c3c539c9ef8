"""The layers of networks without a list of blocks: a stack of modules (``nn.Sequential``) and ``nn.GRU``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from iitkit.errors import choices
from iitkit.models.families import is_activation, is_linear, is_norm, sizes
from iitkit.models.location import Inside
from iitkit.models.parts import MissingPart, Spot

RECURRENCE = (torch.gru,)


class Layers(Protocol):
    """The layers of a plain network."""

    @property
    def module(self) -> nn.Module:
        """The module that holds them."""

    def __len__(self) -> int: ...

    def spot(self, layer: int, component: str) -> Spot:
        """Return where a component of a layer lies.

        Raises:
            MissingPart: where the layer has no such component.
        """


def plain_layers(model: nn.Module) -> Layers | None:
    """Return the layers of a network's largest ``nn.GRU`` or stack of modules; None where it has neither."""
    found = [m for m in model.modules() if isinstance(m, nn.GRU) or (isinstance(m, nn.Sequential) and _starts(m))]
    if not found:
        return None
    largest = max(found, key=weight)
    return Recurrent(largest) if isinstance(largest, nn.GRU) else Stack(largest)


def weight(module: nn.Module) -> int:
    """Return how many parameters a module has."""
    return sum(parameter.numel() for parameter in module.parameters())


def _starts(stack: nn.Sequential) -> list[int]:
    """Where a stack's layers begin: at its linear maps, or, where none stands in it, at whatever else trains."""
    modules = [stack[i] for i in range(len(stack))]  # ``children`` leaves out a module's second place
    linear = [i for i, m in enumerate(modules) if is_linear(m)]
    trains = [i for i, m in enumerate(modules) if not is_norm(m) and any(True for _ in m.parameters())]
    return linear or trains


@dataclass(frozen=True)
class Stack:
    """A stack of modules. A layer is a linear map and what follows it up to the next one: a norm, an activation, ….

    Args:
        module: the modules.
    """

    module: nn.Sequential

    def __len__(self) -> int:
        return len(_starts(self.module))

    def spot(self, layer: int, component: str) -> Spot:
        """See :class:`Layers`: block_input, block_output and mlp_activation."""
        starts = [*_starts(self.module), len(self.module)]
        start, stop = starts[layer], starts[layer + 1]
        entering, width = sizes(self.module[start])
        if component == "block_input":
            return Spot(self.module[start], "input", entering)
        if component == "block_output":
            return self._leaving(stop - 1, width)
        if component == "mlp_activation":
            found = [i for i in range(start, stop) if is_activation(self.module[i])]
            if not found:
                raise MissingPart(f"the modules of its layer ({choices(self._names(start, stop))}) hold no activation")
            return self._leaving(found[0], width)
        raise MissingPart(f"a layer of a stack is its modules ({choices(self._names(start, stop))})")

    def _names(self, start: int, stop: int) -> list[str]:
        return [type(module).__name__ for module in list(self.module)[start:stop]]

    def _leaving(self, i: int, width: int | None) -> Spot:
        """Return the output of module ``i``, at the next module's input where one object stands at several places."""
        modules = list(self.module)

        def alone(j: int) -> bool:
            return sum(module is modules[j] for module in modules) == 1

        if alone(i):
            return Spot(modules[i], "output", width, entering=sizes(modules[i])[0])
        if i + 1 < len(modules) and alone(i + 1):
            return Spot(modules[i + 1], "input", width)
        raise MissingPart(f"one {type(modules[i]).__name__} stands at several places of the stack: give each its own")


@dataclass(frozen=True)
class Recurrent:
    """The layers of an ``nn.GRU``. What leaves a layer is its state at every position, [batch, sequence, hidden].

    An edit of the state is carried on: the positions after it are computed from it.

    Args:
        module: the GRU; of one direction.
    """

    module: nn.GRU

    def __len__(self) -> int:
        return int(self.module.num_layers)

    def spot(self, layer: int, component: str) -> Spot:
        """See :class:`Layers`: block_input and block_output."""
        if component not in ("block_input", "block_output"):
            raise MissingPart("a layer of a GRU has its input and its state")
        if self.module.bidirectional:
            raise MissingPart("a GRU of two directions has no state that an edit could be carried on in")
        entering = component == "block_input"
        width = self.module.input_size if entering and layer == 0 else self.module.hidden_size
        inside = Inside(RECURRENCE, "states", layer)
        return Spot(self.module, "input" if entering else "output", width, inside=inside)
