"""Any space with any mask and any edit, named in plain values."""

from __future__ import annotations

from typing import Any

from iitkit.interventions.base import Intervention, SiteInfo
from iitkit.interventions.edits import Edit
from iitkit.interventions.masks import Mask
from iitkit.interventions.spaces import Space


class Composed(Intervention):
    """Any choice of space, mask and edit, each by its name with its options, e.g. ``space: {name: PCA, rank: 8}``.

    Args:
        site: the site's sizes.
        space: Identity, Rotation, LowRankRotation, FreeProjection, PCA or SAE. Identity unless said.
        mask: All, Indices, Blocks, Boundary, Sigmoid or HardConcrete. All unless said.
        edit: Swap, Add, Subtract, Scale, Zero, Constant, Mean, Resample, Noise, Collect, Skip, Affine or LowRankUpdate.
            Swap unless said.

    Raises:
        IITKitError: an unknown name or option, or options that do not fit the site.
    """

    def __init__(
        self,
        site: SiteInfo,
        space: dict[str, Any] | None = None,
        mask: dict[str, Any] | None = None,
        edit: dict[str, Any] | None = None,
    ) -> None:
        where: Space = Space.named(space or {"name": "Identity"}, site)
        which: Mask = Mask.named(mask or {"name": "All"}, where.size)
        which.begin(site.generator)
        what: Edit = Edit.named(edit or {"name": "Swap"}, where.size, site)
        # whole specs: what was left at its default is said too
        super().__init__(where, which, what, space=where.spec(), mask=which.spec(), edit=what.spec())
