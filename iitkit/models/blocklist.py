"""Which of a network's lists of modules holds its blocks, and which block a module stands in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from torch import nn

from iitkit.errors import IITKitError, choices
from iitkit.models.families import config_of, said
from iitkit.models.plain import weight

ALSO = 10
"""A list of blocks outweighs another list of that length beside it by this much: else they share the work."""


def blocks(model: nn.Module) -> nn.ModuleList:
    """Return the network's list of blocks.

    That is its largest list of modules of the config's length, or, where there is none, of modules of one kind. Lists
    inside a block do not count.

    Raises:
        IITKitError: where there is none, or where each layer stands in several lists; each says how to name a module.
    """
    layers = said(config_of(model), "num_hidden_layers")
    found = dict(_lists(model, layers))
    lists = [one for one in found if len(one) == layers] or list(found)
    if not lists:
        names = [name for name, _ in model.named_children()]
        raise IITKitError(
            f"{type(model).__name__} has no list of blocks (its children: {choices(names)}): "
            "name the module, e.g. Site(module='…', side='output')"
        )
    largest = lists[0] if len(lists) == 1 else max(lists, key=weight)
    beside = [
        name
        for name, module in found[largest].named_children()
        if isinstance(module, nn.ModuleList) and len(module) == len(largest) and ALSO * weight(module) > weight(largest)
    ]
    if len(beside) > 1:
        raise IITKitError(
            f"{type(model).__name__} has no list of blocks, but several of {len(largest)} parts ({choices(beside)}): "
            "name the module, e.g. Site(module='…', side='output')"
        )
    return largest


def _lists(module: nn.Module, layers: int | None) -> Iterator[tuple[nn.ModuleList, nn.Module]]:
    """Yield the outermost lists that may be blocks, each with the module that holds it."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) and (len(child) == layers or _alike(child)):
            yield child, module
        else:
            yield from _lists(child, layers)


def _alike(modules: nn.ModuleList) -> bool:
    return len({type(module) for module in modules}) == 1


def sharing(stack: Sequence[nn.Module], block: nn.Module, module: nn.Module) -> list[int]:
    """Return the blocks in which a module of ``block`` stands: several where they share it."""
    path = next((path for path, each in block.named_modules() if each is module), None)
    found = []
    for i, other in enumerate(stack):
        with suppress(AttributeError):
            if path is not None and other.get_submodule(path) is module:
                found.append(i)
    return found


def shared_by(module: nn.Module, there: Sequence[int]) -> str:
    """Return why a module that several layers share is no site of any one of them."""
    return (
        f"one {type(module).__name__} stands in layers {choices([str(i) for i in there])}, which a run passes by turns"
    )
