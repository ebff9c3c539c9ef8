"""Low-rank updates of a base model's own weights, and which of its parameters train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from iitkit.errors import IITKitError, choices


@dataclass(frozen=True)
class Adapters:
    """Low-rank updates ``W + α/r · A B`` of linear maps: the base's own weights stay as they are.

    Hu et al., 2021, https://arxiv.org/abs/2106.09685. What is saved has the updates added to its weights.

    Args:
        rank: r.
        alpha: α; 2 r unless said.
        modules: patterns of module names, e.g. ``*.q_proj``; every linear map in a layer unless said.
    """

    rank: int = 8
    alpha: float | None = None
    modules: list[str] = field(default_factory=list)


class LowRankDelta(nn.Module):
    """A parametrisation of a weight: ``W + scale · A B`` (A [rows, r], B [r, columns]), B from 0.

    Args:
        weight: W.
        rank: r.
        scale: α/r.
        generator: draws A.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.scale, self.on = scale, True
        start = torch.randn(rows, rank, generator=generator, dtype=torch.float32) * rank**-0.5
        self.A = nn.Parameter(start.to(weight.device))
        self.B = nn.Parameter(torch.zeros(rank, columns, dtype=torch.float32, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated weight, in its own dtype; in fp32 also under autocast, as it is saved."""
        if not self.on:
            return weight
        with torch.autocast(weight.device.type, enabled=False):
            return weight + (self.scale * (self.A @ self.B)).to(weight.dtype)


def adapt(model: nn.Module, adapters: Adapters, generator: torch.Generator) -> list[LowRankDelta]:
    """Put low-rank updates on a network's linear maps.

    A head that is tied to the embeddings gets an update of its own, and is tied no longer.

    Raises:
        IITKitError: a rank that fits no map, an α that is none, or a pattern that no linear map has the name of.
    """
    if isinstance(adapters.rank, bool) or not isinstance(adapters.rank, int) or adapters.rank < 1:
        raise IITKitError(f"model.lora.rank: {adapters.rank}: expected an integer, 1 or more")
    alpha = 2 * adapters.rank if adapters.alpha is None else adapters.alpha
    if not 0 < alpha < float("inf"):
        raise IITKitError(f"model.lora.alpha: {alpha}: expected a number above 0")
    maps = _maps(model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    named = [name for name, module in maps.items() if module is not head]
    for pattern in adapters.modules:
        if not any(fnmatchcase(name, pattern) for name in maps):
            raise IITKitError(
                f"model.lora.modules: no linear map of {type(model).__name__} is named {pattern!r}; it has "
                f"{choices(maps, 6)}"
            )
    if adapters.modules:
        named = [name for name in maps if any(fnmatchcase(name, pattern) for pattern in adapters.modules)]
    if not named:
        raise IITKitError(f"model.lora: {type(model).__name__} has no linear maps: train its parameters instead")
    made = []
    for name in named:
        module = maps[name]
        weight = module.weight
        assert isinstance(weight, Tensor)
        if adapters.rank > min(weight.shape):
            raise IITKitError(
                f"model.lora.rank: {adapters.rank}: {name} is {tuple(weight.shape)}: expected at most "
                f"{min(weight.shape)}, or modules without it"
            )
        delta = LowRankDelta(weight, adapters.rank, alpha / adapters.rank, generator)
        config: Any = getattr(model, "config", None)
        if module is head and getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
        parametrize.register_parametrization(module, "weight", delta)
        made.append(delta)
    model.eval()
    return made


def _maps(model: nn.Module) -> dict[str, nn.Module]:
    """The linear maps: modules with a matrix and nothing below, no embedding."""
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        lookup = isinstance(module, nn.Embedding)
        if isinstance(weight, nn.Parameter) and weight.dim() == 2 and not lookup and not list(module.children()):
            found[name] = module
    return found


@contextmanager
def adapters_off(deltas: Sequence[LowRankDelta]) -> Iterator[None]:
    """Run the base as it was."""
    for delta in deltas:
        delta.on = False
    try:
        yield
    finally:
        for delta in deltas:
            delta.on = True


@contextmanager
def updates_held(model: nn.Module) -> Iterator[None]:
    """Compute every updated weight once, with its gradient: a run without gradients may be the first to ask for it."""
    with parametrize.cached():
        for module in model.modules():
            if parametrize.is_parametrized(module, "weight"):
                _ = module.weight
        yield


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a network's tensors by the names that they had, every low-rank update added to its weight."""
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            weight = module.weight
            assert isinstance(weight, Tensor)
            prefix = f"{name}.parametrizations.weight."
            state = {key: value for key, value in state.items() if not key.startswith(prefix)}
            state[f"{name}.weight"] = weight.detach()
    return state


def chosen(model: nn.Module, patterns: Sequence[str] | None) -> list[nn.Parameter]:
    """Return a network's parameters that match a pattern, each once, tied ones by any of their names; all for None.

    Raises:
        IITKitError: a pattern that matches none.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    if patterns is None:
        return list(model.parameters())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise IITKitError(
                f"model.parameters: {type(model).__name__} has no parameter {pattern!r}; it has {choices(named, 6)}"
            )
    found = [p for name, p in named.items() if any(fnmatchcase(name, pattern) for pattern in patterns)]
    return list(dict.fromkeys(found))
