"""The parts of one block: which module, side and entries each component is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn

from iitkit.errors import choices
from iitkit.models.families import (
    ACTIVATION,
    ATTENTION,
    DOWN,
    EXPERTS,
    FUSED,
    KEY,
    MLP,
    PROJECTION,
    QUERY,
    ROUTER,
    UP,
    VALUE,
    child,
    config_of,
    family_of,
    hidden_size,
    is_activation,
    is_linear,
    only,
    said,
    sizes,
)
from iitkit.models.location import Inside
from iitkit.models.sites import Side

PROBABILITIES = Inside((F.dropout,), "attention probabilities")
"""Every family's eager attention gives its probabilities to ``dropout``, in evaluation too."""

ROUTING = Inside((F.linear,), "router logits")
"""A router that returns its choice of experts computes the logits inside; what it chooses follows from them."""


HEADS = ("num_attention_heads", "num_heads")


class MissingPart(Exception):  # noqa: N818 - becomes an IITKitError with the site's name
    """A network has no such component; the text says what it has instead."""


@dataclass(frozen=True)
class Spot:
    """Where a component lies.

    Args:
        module: the module.
        side: side of it.
        width: size of the component, of all its heads together.
        index: which entries of the module's tensor; None for all.
        heads: number of heads that the component is parted into, None where it has none.
        flat: whether the module may see rows and positions in one dimension.
        inside: where it is made inside the module's forward.
        entering: size of the module's own input, where the component is its output.
    """

    module: nn.Module
    side: Side
    width: int | None
    index: Sequence[int] | None = None
    heads: int | None = None
    flat: bool = False
    inside: Inside | None = None
    entering: int | None = None


class Parts:
    """Finds the parts of one block of a network.

    Args:
        model: the network.
        block: the block.
    """

    def __init__(self, model: nn.Module, block: nn.Module) -> None:
        self.block, self.family = block, family_of(model)
        self.config, self.hidden = config_of(model), hidden_size(model)

    def spot(self, component: str) -> Spot:
        """Return where a component lies.

        Raises:
            MissingPart: where the block has no such component.
        """
        if component.startswith("head_"):
            spot = self.spot(component.removeprefix("head_"))
            own = component in ("head_query_output", "head_attention_value_output")
            names = HEADS if own else ("num_key_value_heads",)
            return replace(spot, heads=self._counted(spot.width, spot.module, names))
        kinds: dict[str, Callable[[], Spot]] = {
            "block_input": lambda: Spot(self.block, "input", self.hidden),
            "block_output": lambda: Spot(self.block, "output", self.hidden, entering=self.hidden),
            "attention_input": lambda: Spot(self.attention, "input", self.hidden),
            "attention_output": lambda: Spot(self.attention, "output", self.hidden, entering=self.hidden),
            "attention_value_output": lambda: Spot(self.projection, "input", sizes(self.projection)[0]),
            "attention_weight": lambda: Spot(self.inner, "output", None, heads=self.heads, inside=PROBABILITIES),
            "query_output": lambda: self._projected(0),
            "key_output": lambda: self._projected(1),
            "value_output": lambda: self._projected(2),
            "mlp_input": lambda: Spot(self._up_or_mlp, "input", self.hidden, flat=True),
            "mlp_activation": self._activated,
            "mlp_hidden": lambda: Spot(self.down, "input", sizes(self.down)[0], flat=True),
            "mlp_output": self._mlp_output,
            "router_input": lambda: Spot(self.router, "input", self.hidden, flat=True),
            "router_output": self._routed,
        }
        return kinds[component]()

    # --- attention ---

    @cached_property
    def attention(self) -> nn.Module:
        """The attention module of the block."""
        if self.family.attention is not None:
            return self.block.get_submodule(self.family.attention)
        named = [m for m in self.block.children() if "attention" in type(m).__name__.lower()]
        found = self._one(ATTENTION) or only(named)
        return found if found is not None else self._missing("attention", self.block)

    @cached_property
    def inner(self) -> nn.Module:
        """The module that holds the projections: the attention, or one inside it (GPT-Neo)."""
        holds = (m for m in self.attention.modules() if child(m, QUERY) or child(m, FUSED))
        return next(holds, self.attention)

    @cached_property
    def projection(self) -> nn.Module:
        """The attention's output projection."""
        others = [m for m in self.inner.children() if is_linear(m) and not self._is_query_key_value(m)]
        others = [m for m in others if self.hidden is None or sizes(m)[1] == self.hidden]
        found = child(self.inner, PROJECTION) or only(others)
        return found if found is not None else self._missing("output projection", self.inner)

    def _is_query_key_value(self, module: nn.Module) -> bool:
        return any(module is child(self.inner, names) for names in (QUERY, KEY, VALUE, FUSED))

    @cached_property
    def head_size(self) -> int:
        """The size of one head."""
        for owner, names in ((self.inner, ("head_dim", "head_size")), (self.config, ("head_dim",))):
            for name in names:
                if (size := said(owner, name)) is not None:
                    return size
        for owner in (self.inner, self.config):
            for name in ("num_heads", "num_attention_heads", "n_heads", "n_head"):
                entering = sizes(self.projection)[0]
                if (count := said(owner, name)) is not None and entering is not None:
                    return entering // count
        raise MissingPart(f"the size of a head is not known: {type(self.inner).__name__} has no head_dim")

    @cached_property
    def heads(self) -> int:
        """The number of (query) heads."""
        return self._counted(sizes(self.projection)[0], self.projection, HEADS)

    def _said(self, names: Sequence[str]) -> int | None:
        owners = (self.inner, self.config)
        return next((n for owner in owners for name in names if (n := said(owner, name)) is not None), None)

    def _counted(self, width: int | None, module: nn.Module, names: tuple[str, ...]) -> int:
        """Return how many heads a width holds, checked against what the module or the config says."""
        if width is None:
            raise MissingPart(f"{type(module).__name__} does not tell its sizes")
        heads = self._said(names)
        if width % self.head_size or (heads is not None and width // self.head_size != heads):
            raise MissingPart(
                f"{width} entries of {type(self.inner).__name__} do not part into {heads or 'some'} heads of "
                f"{self.head_size}: name the module, without heads"
            )
        return width // self.head_size

    @cached_property
    def _fused(self) -> nn.Module:
        """The projection that holds query, key and value in one."""
        names = [self.family.fused] if self.family.fused else []
        if (found := child(self.inner, names)) is not None:
            return found
        there = next((name for name in FUSED if name in self.inner._modules), None)
        if there is None:
            return self._missing("query, key and value projections", self.inner)
        raise MissingPart(
            f"query, key and value come out of {there} together, and how they lie in it is not known: "
            "add the family to iitkit.models.families.FAMILIES"
        )

    def _projected(self, which: int) -> Spot:
        single = child(self.inner, (QUERY, KEY, VALUE)[which])
        if single is not None:
            width, heads = sizes(single)[1], self._said(HEADS)
            if which == 0 and heads is not None and width == 2 * heads * self.head_size:  # Qwen3-Next's
                raise MissingPart(
                    f"{width} entries are twice the {heads} queries of {self.head_size}, and how they lie among "
                    "others, e.g. a gate, is not known: name the module"
                )
            return Spot(single, "output", width, entering=sizes(single)[0])
        fused, size, heads = self._fused, self.head_size, self.heads
        kept = ((sizes(fused)[1] or 0) // size - heads) // 2
        if self.family.layout == "heads":
            index: Sequence[int] = [
                (head * 3 + which) * size + i for head in range(heads) for i in range(size)
            ]  # query, key and value of the first head, then of the second, …
        else:
            starts = (0, heads * size, (heads + kept) * size, (heads + 2 * kept) * size)
            index = range(starts[which], starts[which + 1])
        return Spot(fused, "output", len(index), index, entering=sizes(fused)[0])

    # --- MLP and experts ---

    @cached_property
    def mlp(self) -> nn.Module:
        """The MLP of the block; the block itself where its layers stand in it (OPT)."""
        if self.family.mlp is not None:
            return self.block.get_submodule(self.family.mlp)
        if (found := self._one(MLP)) is not None:
            return found
        if child(self.block, UP) is not None and child(self.block, DOWN) is not None:
            return self.block
        named = [m for m in self.block.children() if any(x in type(m).__name__.lower() for x in ("mlp", "feedforward"))]
        found = only(named)
        return found if found is not None else self._missing("mlp", self.block)

    @property
    def _up_or_mlp(self) -> nn.Module:
        return (child(self.mlp, UP) or self.mlp) if self.mlp is self.block else self.mlp

    def _mlp_output(self) -> Spot:
        own = self.mlp is self.block
        module, entering = (self.down, sizes(self.down)[0]) if own else (self.mlp, self.hidden)
        return Spot(module, "output", self.hidden, flat=True, entering=entering)

    def _activated(self) -> Spot:
        width = sizes(self.down)[0]
        return Spot(self.activation, "output", width, flat=True, entering=width)

    @cached_property
    def down(self) -> nn.Module:
        """The MLP's down projection."""
        self._no_experts()
        last = [m for m in self.mlp.children() if is_linear(m) and sizes(m)[1] == self.hidden is not None]
        found = child(self.mlp, DOWN) or (last[-1] if last else None)
        return found if found is not None else self._missing("down projection", self.mlp)

    @cached_property
    def activation(self) -> nn.Module:
        """The MLP's activation function."""
        self._no_experts()
        found = child(self.mlp, ACTIVATION) or only([m for m in self.mlp.children() if is_activation(m)])
        return found if found is not None else self._missing("activation function", self.mlp)

    def _no_experts(self) -> None:
        if child(self.mlp, EXPERTS) is not None:
            raise MissingPart(f"the experts of {type(self.mlp).__name__} see only the tokens routed to them")

    @cached_property
    def router(self) -> nn.Module:
        """The router of a mixture of experts."""
        found = child(self.mlp, ROUTER) if child(self.mlp, EXPERTS) is not None else None
        if found is None:
            raise MissingPart(f"{type(self.mlp).__name__} is no mixture of experts with a router")
        return found

    def _routed(self) -> Spot:
        router = self.router
        if is_linear(router):
            return Spot(router, "output", sizes(router)[1], flat=True, entering=self.hidden)
        weight = getattr(router, "weight", None)
        experts = int(weight.shape[0]) if isinstance(weight, torch.Tensor) and weight.dim() == 2 else None
        return Spot(router, "output", experts, flat=True, inside=ROUTING)

    def _one(self, names: Sequence[str]) -> nn.Module | None:
        """Return the block's child of one of these names, no list of several."""
        found = child(self.block, names)
        return None if isinstance(found, nn.ModuleList) else found

    def _missing(self, part: str, module: nn.Module) -> nn.Module:
        children = [name for name, _ in module.named_children()]
        raise MissingPart(
            f"no {part} among the children of {type(module).__name__} ({choices(children)}): name it by module path"
        )
