"""The anatomy of a network: from a component's name to a module and its side.

Found by structure, not by family: the list of blocks is the network's largest list of alike modules, and a block's
attention and MLP are its children of the usual names. A family that differs gets a row in :data:`ATTENTION` or
:data:`MLP`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.models.sites import Side, Site

COMPONENTS: dict[str, tuple[str, Side]] = {
    "block_input": ("block", "input"),  # the residual stream entering the block
    "block_output": ("block", "output"),  # the residual stream leaving the block
    "attention_input": ("attention", "input"),  # input of the attention module, after its norm
    "attention_output": ("attention", "output"),  # output of the attention module
    "mlp_input": ("mlp", "input"),  # input of the MLP, after its norm
    "mlp_output": ("mlp", "output"),  # output of the MLP
}
"""Component → part of the block and side. Each is [batch, sequence, hidden size]."""

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe")


@dataclass(frozen=True, eq=False)
class Location:
    """A site found in a network.

    Args:
        module: the module whose input or output is the activation.
        side: which of the two.
        block: index of the block that holds the module; None outside the blocks.
        after: whether the activation leaves the block (what runs next is the following block).
        width: size of the activation, None where it is not known.
        label: what messages call it.
    """

    module: nn.Module
    side: Side
    block: int | None
    after: bool
    width: int | None
    label: str


def blocks(model: nn.Module) -> nn.ModuleList:
    """Return the network's list of blocks.

    Raises:
        IITKitError: where there is none, saying how to name a module instead.
    """
    lists = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) and len({type(child) for child in module}) == 1
    ]
    if not lists:
        names = [name for name, _ in model.named_children()]
        raise IITKitError(
            f"{type(model).__name__} has no list of blocks (its children: {choices(names)}): "
            "name the module, e.g. Site(module='…', side='output')"
        )
    return max(lists, key=lambda found: sum(parameter.numel() for parameter in found.parameters()))


def locate(model: nn.Module, site: Site, name: str = "site") -> Location:
    """Find a site in a network.

    Args:
        model: the network.
        site: what to find.
        name: what to call the site in errors.

    Raises:
        IITKitError: an unknown component or side, a layer out of range, a module that is not there; each names what
            there is. Also both a layer and a module, or neither.
    """
    if site.module is not None and site.layer is not None:
        raise IITKitError(
            f"{name}: give either layer {site.layer} (with a component) or module {site.module!r}, not both"
        )
    if site.module is not None:
        return _by_path(model, site, name)
    if site.side != "output":
        raise IITKitError(
            f"{name}: side {site.side!r} belongs to a module; name the component of layer {site.layer} instead, "
            "e.g. mlp_input"
        )
    if site.component not in COMPONENTS:
        raise IITKitError(
            f"{name}: component {site.component!r} is unknown.{did_you_mean(site.component, COMPONENTS)} "
            f"Expected one of {choices(COMPONENTS)}"
        )
    if site.layer is None:
        raise IITKitError(f"{name}: give a layer (with a component) or a module")
    found = blocks(model)
    if not 0 <= site.layer < len(found):
        raise IITKitError(
            f"{name}: layer {site.layer} is out of range: {type(model).__name__} has layers 0 to {len(found) - 1}"
        )
    block = found[site.layer]
    part, side = COMPONENTS[site.component]
    module = block if part == "block" else _child(block, ATTENTION if part == "attention" else MLP, part, name)
    after = part == "block" and side == "output"
    return Location(module, side, site.layer, after, _hidden_size(model), str(site))


def _child(block: nn.Module, names: tuple[str, ...], part: str, name: str) -> nn.Module:
    for candidate in names:
        if isinstance(child := getattr(block, candidate, None), nn.Module):
            return child
    children = [child for child, _ in block.named_children()]
    raise IITKitError(
        f"{name}: no {part} among the children of {type(block).__name__} ({choices(children)}): name it by module path"
    )


def _by_path(model: nn.Module, site: Site, name: str) -> Location:
    assert site.module is not None
    if site.side not in ("input", "output"):
        raise IITKitError(f"{name}: side {site.side!r} is unknown: expected 'input' or 'output'")
    try:
        module = model.get_submodule(site.module)
    except AttributeError as error:
        paths = [path for path, _ in model.named_modules() if path]
        raise IITKitError(
            f"{name}: {type(model).__name__} has no module {site.module!r}.{did_you_mean(site.module, paths)}"
        ) from error
    holder = None
    if any(isinstance(part, nn.ModuleList) for part in model.modules()):
        holder = next((i for i, block in enumerate(blocks(model)) if any(module is m for m in block.modules())), None)
    return Location(module, site.side, holder, False, _module_width(model, module, site.side), str(site))


def _module_width(model: nn.Module, module: nn.Module, side: Side) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features if side == "output" else module.in_features
    if type(module).__name__ == "Conv1D":  # transformers': weight is [in, out]
        weight = module.weight
        assert isinstance(weight, nn.Parameter)
        return int(weight.shape[1 if side == "output" else 0])
    return _hidden_size(model)


def _hidden_size(model: nn.Module) -> int | None:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(text, "hidden_size", None)
    return int(size) if size is not None else None
