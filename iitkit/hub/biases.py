"""Biases for modules that have none, so that a merged model can be saved and loaded where its config has a switch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

SWITCHES = ("attention_bias", "mlp_bias", "use_bias", "bias")
"""Settings of transformers' configs that give linear modules a bias."""


def with_bias(model: nn.Module, module: nn.Module) -> tuple[Callable[[], None], nn.Parameter]:
    """Give a linear module a bias of 0.

    Where the model's config has a switch by which a model of its class has a bias there, it is turned on and all other
    modules that then have one get a bias of 0 too.

    Returns:
        What takes it all back, and the bias.
    """
    path = next(name for name, part in model.named_modules() if part is module)
    chosen = _switched(model, path)
    paths = [path] if chosen is None else chosen[1]
    added: list[nn.Module] = []
    for each in paths:
        part: Any = model.get_submodule(each)
        size = part.weight.shape[0 if isinstance(part, nn.Linear) else 1]
        part.bias = nn.Parameter(part.weight.new_zeros(size), requires_grad=part.weight.requires_grad)
        added.append(part)
    untyped: Any = model
    if chosen is not None:
        setattr(untyped.config, chosen[0], True)

    def undo() -> None:
        untyped_parts: list[Any] = list(added)
        for part in untyped_parts:
            part.bias = None
        if chosen is not None:
            setattr(untyped.config, chosen[0], False)

    untyped_module: Any = module
    return undo, untyped_module.bias


def _switched(model: nn.Module, path: str) -> tuple[str, list[str]] | None:
    """Return the switch that gives a module its bias, and all modules that get one by it."""
    config: Any = getattr(model, "config", None)
    for switch in SWITCHES:
        if getattr(config, switch, None) is not False:
            continue
        changed = copy.deepcopy(config)
        setattr(changed, switch, True)
        untyped: Any = type(model)
        try:
            with torch.device("meta"):
                other: nn.Module = untyped(changed)
        except Exception:  # a config from which its class cannot be built has no such switch
            continue
        own = dict(model.named_modules())
        got = [
            name
            for name, part in other.named_modules()
            if getattr(part, "bias", None) is not None and name in own and getattr(own[name], "bias", None) is None
        ]
        if path in got:
            return switch, got
    return None
