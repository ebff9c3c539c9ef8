"""Trained interventions in the cells of a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iitkit.errors import IITKitError
from iitkit.interventions import Intervention
from iitkit.models.sites import Site

Interventions = Mapping[str, Intervention | tuple[Site, Intervention]] | Any
"""Name → intervention, or (site, intervention) as an artifact's alignment has them; or an artifact."""


@dataclass(frozen=True)
class What:
    """What a cell puts into its place.

    Args:
        label: what the component's axis calls it.
        component: the component.
        intervention: a trained one; None for all of the source's activation.
        variable: whose block of it is meant.
        joint: whether it sees all positions of a cell as one vector.
    """

    label: str
    component: str
    intervention: Intervention | None = None
    variable: str | None = None
    joint: bool = False

    def plain(self) -> list[Any]:
        """Return it as plain values, without the intervention."""
        return [self.label, self.component, self.intervention is not None, self.variable, self.joint]


def trained(given: Interventions | None, components: Sequence[str]) -> list[What]:
    """Return trained interventions as what a cell may put into its place.

    Args:
        given: the interventions.
        components: where those are patched that have no site of their own.

    Raises:
        IITKitError: what is no intervention, has not seen its data, or is placed at a module by its path.
    """
    if given is None:
        return []
    if isinstance(given, Intervention):
        given = {type(given).__name__: given}
    placed: Mapping[str, Any] = given.alignment() if hasattr(given, "alignment") else given
    found = []
    for name, each in placed.items():
        site, edit = each if isinstance(each, tuple) else (None, each)
        if not isinstance(edit, Intervention):
            raise IITKitError(f"interventions: {name!r} is a {type(edit).__name__}: expected an intervention")
        if edit.unfitted:
            raise IITKitError(
                f"interventions: {name!r} must see data first: let `iitkit fit` do it, or observe and finish"
            )
        if site is not None and site.module is not None:
            raise IITKitError(f"interventions: {name!r} is placed at module {site.module}, which no layer axis names")
        of = components if site is None else [site.component]
        variable = name if site is None or site.variable is None else site.variable
        block, joint = variable if edit.blocks else None, site is not None and site.joint
        found += [What(f"{component}: {name}", component, edit, block, joint) for component in of]
    return found
