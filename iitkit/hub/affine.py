"""What an intervention does as an affine map, found by trying it: ``h ↦ h M + c``, plus ``x D`` of the module's input.

Nothing is taken on trust: the map is read off unit vectors in fp64 and then compared with the intervention on random
activations, so that whatever is not affine is found out.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from iitkit.errors import IITKitError
from iitkit.interventions import Intervention

TRIED = 7
"""Random activations of each size on which a map is compared with its intervention."""
SIZES = (1.0, 1e-2, 1e2, 1e4)
"""Their standard deviations: what bends, bends somewhere."""
CLOSE = 1e-9
"""Largest relative difference, in fp64, at which they are the same."""


@dataclass(frozen=True)
class Affine:
    """An affine map in fp64.

    Args:
        shift: c, [d].
        linear: M, [d, d]; None for the identity.
        entering: D, [input width, d]; None where the module's input is not read.
    """

    shift: Tensor
    linear: Tensor | None
    entering: Tensor | None


def affine_of(name: str, intervention: Intervention, width: int, input_width: int | None = None) -> Affine:
    """Return an intervention as an affine map.

    Args:
        name: what messages call it.
        intervention: at strength 1, on vectors of ``width``.
        width: d.
        input_width: size of the module's input, where there is one.

    Raises:
        IITKitError: one that takes a source, is not affine, or gives each row something else.
    """
    title = type(intervention).__name__
    if intervention.needs_source:
        raise IITKitError(f"{name}: {title} takes activations from a source, which differ from prompt to prompt")
    if intervention.blocks is not None:
        raise IITKitError(f"{name}: {title} has blocks of which a placement names one: it is no map by itself")
    edit = copy.deepcopy(intervention).double().eval()
    enters = edit.needs_input
    if enters and input_width is None:
        raise IITKitError(f"{name}: {title} reads the module's input, and the site has none")
    size = input_width or 0

    def run(hidden: Tensor, inputs: Tensor | None) -> Tensor:
        with torch.no_grad():
            found: Tensor = edit(hidden, inputs=inputs if enters else None)
        return found

    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor(SIZES, dtype=torch.float64).repeat_interleave(TRIED)[:, None]
    rows = sizes * torch.randn(len(sizes), width, generator=generator, dtype=torch.float64)
    inputs = sizes * torch.randn(len(sizes), size, generator=generator, dtype=torch.float64) if enters else None
    nothing = torch.zeros(1, size, dtype=torch.float64) if enters else None
    shift = run(torch.zeros(1, width, dtype=torch.float64), nothing)[0]
    entering = None
    if enters:
        unit = torch.eye(size, dtype=torch.float64)
        entering = run(torch.zeros(size, width, dtype=torch.float64), unit) - shift
    rest = run(rows, inputs) - shift - (0 if entering is None or inputs is None else inputs @ entering)
    scale = torch.stack([rest.abs().amax(1), rows.abs().amax(1), shift.abs().max().expand(len(rows))]).amax(0)

    def same(other: Tensor) -> bool:
        return bool(((rest - other).abs().amax(1) <= CLOSE * scale).all())

    linear = None
    if not same(rows):
        unit = torch.eye(width, dtype=torch.float64)
        linear = run(unit, torch.zeros(width, size, dtype=torch.float64) if enters else None) - shift
        if not same(rows @ linear):
            raise IITKitError(f"{name}: {title} is no affine map of the activation, the same for every token")
    return Affine(shift, linear, entering)


def constant_of(name: str, intervention: Intervention) -> Tensor:
    """Return the vector [d] that an intervention adds, fp64.

    Raises:
        IITKitError: one that does something else.
    """
    title, width = type(intervention).__name__, intervention.space.width
    found = None
    if width is not None and not intervention.needs_source and not intervention.needs_input:
        found = affine_of(name, intervention, width)
    if found is None or found.linear is not None:
        raise IITKitError(f"{name}: {title} is more than the addition of a constant vector, which alone will do here")
    return found.shift
