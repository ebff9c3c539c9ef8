"""Interventions as steering uses them: toward stored coordinates, and with a length instead of a factor."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor

from iitkit.errors import IITKitError
from iitkit.interventions.base import Intervention
from iitkit.interventions.registered import Registered

ROUNDING = 4
"""A change of up to so many units of rounding of the activation is none: it has no direction to be scaled in."""

Unit = Literal["edit", "norm", "largest"]
"""What a strength of 1 is: the trained edit, the activation's own norm, or the largest norm that training saw."""


class _Steered(Intervention):
    """Another intervention's edit, scaled, perhaps from a source's coordinates; it goes where the activation is.

    Args:
        inner: the intervention; copied, as it moves to the activation's device.
        unit: ``edit`` multiplies the edit by the strength; ``norm`` gives it the length strength · ‖h‖, h the vector
            that is edited; ``largest`` the length strength · ``largest``. An edit of length 0, but for rounding, stays
            as it is.
        largest: the largest norm of a source's coordinates that training saw.
        by_coordinates: the source is given by its coordinates [*, k], not by its activation.
    """

    def __init__(
        self, inner: Intervention, unit: Unit = "edit", largest: float | None = None, by_coordinates: bool = False
    ) -> None:
        Registered.__init__(self)  # the parts are bound already
        self.inner = copy.deepcopy(inner).requires_grad_(False)
        self.space, self.mask, self.edit = self.inner.space, self.inner.mask, self.inner.edit
        if unit == "largest" and largest is None:
            raise IITKitError(
                f"{type(inner).__name__}: unit 'largest' needs the largest norm that training saw, and none is stored: "
                "use unit 'norm' or 'edit'"
            )
        self.unit, self.largest, self.by_coordinates = unit, largest, by_coordinates

    @property
    def source_width(self) -> int | None:
        """The number k of coordinates where they are given."""
        return self.space.size if self.by_coordinates else None

    def forward(
        self,
        base: Tensor,
        source: Tensor | None = None,
        strength: float = 1.0,
        *,
        inputs: Tensor | None = None,
        block: str | None = None,
    ) -> Tensor:
        """Return the edited activation, as :meth:`Intervention.forward` does."""
        held = next((tensor.device for tensor in self.inner.state_dict().values()), base.device)
        if held != base.device:
            self.inner.to(base.device)
        if self.unit == "edit":
            return self._whole(base, source, strength, inputs, block)
        if strength == 0:
            return base.clone()
        # the direction of a short edit would drown in the activation's rounding
        wide = base.to(torch.float32 if base.device.type == "mps" else torch.float64)
        step = self._whole(wide, source, 1.0, inputs, block) - wide
        length, own = step.norm(dim=-1, keepdim=True), wide.norm(dim=-1, keepdim=True)
        unit = own if self.unit == "norm" else torch.full_like(own, self.largest or 0)
        rounding = ROUNDING * torch.finfo(torch.promote_types(base.dtype, torch.float32)).eps * own
        scaled = torch.where(length > rounding, step * (unit / length.clamp(min=torch.finfo(length.dtype).tiny)), 0.0)
        return (wide + strength * scaled).to(base.dtype)

    def _whole(
        self, base: Tensor, source: Tensor | None, strength: float, inputs: Tensor | None, block: str | None
    ) -> Tensor:
        if self.by_coordinates and source is not None:
            return self.inner.toward(base, source, strength, inputs=inputs, block=block)
        if source is not None:
            source = source.to(base.dtype)
        edited: Tensor = self.inner(base, source, strength, inputs=inputs, block=block)
        return edited


def steered(
    inner: Intervention, unit: Unit = "edit", largest: float | None = None, by_coordinates: bool = False
) -> Intervention:
    """Return an intervention as steering uses it.

    Args:
        inner: the trained intervention; a copy of it is used.
        unit: what a strength of 1 is: ``edit``: the trained edit; ``norm``: an edit as long as the vector that is
            edited, so that strength is a share of the residual stream's norm; ``largest``: an edit as long as
            ``largest``.
        largest: the largest norm of a source's coordinates that training saw; for ``largest``.
        by_coordinates: sources are given by their coordinates, [*, k].

    Raises:
        IITKitError: an unknown unit, or ``largest`` without its number.
    """
    if unit not in ("edit", "norm", "largest"):
        raise IITKitError(f"unit {unit!r}: expected 'edit', 'norm' or 'largest'")
    return _Steered(inner, unit, largest, by_coordinates)
