"""Constant vectors to be added, from a folder of safetensors files whose tensors are named for their sites."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.hub.foreign import read_safetensors
from iitkit.interventions import Addition, Intervention
from iitkit.models.anatomy import COMPONENTS, locate
from iitkit.models.sites import Site
from iitkit.positions import Position

_NAME = re.compile(r"([a-z_]+)\.(\d+)(?:\.(\d+))?")


def from_constants(
    folder: Path, model: nn.Module, *, position: Position | None = None
) -> dict[str, tuple[Site, Intervention]]:
    """Return additions of the vectors that a folder's safetensors files (or one file) hold.

    A tensor is named ``component.layer``, e.g. ``block_output.16`` [width]. ``attention_value_output.12`` may be
    [heads · size] or [heads, size], one vector for each head; so may the other components that have heads, with or
    without ``head_`` before them. ``head_value_output.12.3`` [size] is one head's.

    Raises:
        IITKitError: no file, a name that is none of these, a layer or head that is not there, or another width.
    """
    files = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise IITKitError(f"{folder} holds no .safetensors file: expected one with tensors such as block_output.16")
    found: dict[str, tuple[Site, Intervention]] = {}
    for file in files:
        for name, tensor in sorted(read_safetensors(file).items(), key=lambda item: _order(item[0])):
            site, vector = _placed(model, name, tensor, "all" if position is None else position, file)
            place = (site.layer, site.component, site.head)
            twins = [k for k, (there, _) in found.items() if (there.layer, there.component, there.head) == place]
            if twins:
                raise IITKitError(f"{file}: {name} is there twice: {twins[0]} of {folder} is at {site} too")
            found[name.replace(".", "_")] = (site, Addition.of(vector))
    if not found:
        raise IITKitError(f"{folder} holds no tensor: expected some that are named for their sites: block_output.16")
    return found


def _placed(model: nn.Module, name: str, tensor: Tensor, position: Position, file: Path) -> tuple[Site, Tensor]:
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in COMPONENTS:
        hint = did_you_mean(match[1], COMPONENTS) if match else ""
        raise IITKitError(f"{file}: tensor {name!r}:{hint} expected component.layer, e.g. block_output.16")
    component, layer, head = match[1], int(match[2]), None if match[3] is None else int(match[3])
    if head is None:  # all heads together are the whole, of which each has its part
        component = component.removeprefix("head_")
    site = Site(layer, component, position, head=head)
    location = locate(model, site, f"{file}: {name}")
    whole = tensor.flatten()
    if location.width is None or location.heads != 1 or len(whole) != location.width:
        each = f" ({choices(tensor.shape)})" if tensor.dim() > 1 else ""
        raise IITKitError(f"{file}: {name} has {len(whole)} numbers{each}, {location.label} has {location.width}")
    if not tensor.is_floating_point() or not torch.isfinite(whole).all():
        raise IITKitError(f"{file}: {name} holds other things than finite real numbers")
    return site, whole


def _order(name: str) -> tuple[int, str]:
    match = _NAME.fullmatch(name)
    return (int(match[2]) if match else 0, name)
