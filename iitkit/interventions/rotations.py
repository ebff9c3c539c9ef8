"""Rotations: coordinates along orthonormal directions that are learned, or were."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError
from iitkit.interventions.charts import LinearChart
from iitkit.interventions.checks import whole
from iitkit.interventions.files import read_basis
from iitkit.interventions.orthonormal import check_orthonormal, orthonormal
from iitkit.interventions.site import SiteInfo
from iitkit.interventions.spaces import Space


class _Rotated(Space):
    """The coordinates along orthonormal directions R [d, r].

    What trains is a free matrix; R is its QR, taken once per forward pass (once inside ``held()``) while it trains and
    once per change of the matrix otherwise. A frozen space holds R itself and takes no QR.
    """

    def __init__(self, site: SiteInfo, rank: int, start: str | None, frozen: bool, /, **options: Any) -> None:
        super().__init__(site.width, rank, start=start, frozen=frozen, **options)
        self.rank = rank
        if start is not None and site.stored is None:
            free = read_basis(start, (site.width, rank))
        else:
            # unit columns: Adam's steps then turn them as far as in the field's usual orthogonal parametrisation
            drawn = torch.randn(site.width, rank, generator=site.generator, dtype=torch.float32)
            free = nn.functional.normalize(drawn, dim=0)
        self.free: nn.Parameter | None = nn.Parameter(free)
        self.basis: Tensor | None
        self.register_buffer("basis", None)
        self._kept: tuple[Tensor, Tensor] | None = None
        if frozen:
            self.freeze(None if start is None or site.stored is not None else {"basis": free})

    def rotation(self) -> Tensor:
        """Return R, [d, r], orthonormal columns, fp32 or wider."""
        if self.basis is not None:
            return self.basis
        assert self.free is not None
        if torch.is_grad_enabled() and self.free.requires_grad:
            return self.once("rotation", lambda: orthonormal(self.free))  # type: ignore[arg-type]
        if self._kept is None or not _same(self._kept[0], self.free):
            with torch.inference_mode(False), torch.no_grad():  # what is kept must serve outside inference mode too
                self._kept = (self.free.detach().clone(), orthonormal(self.free))
        return self._kept[1]

    def chart(self) -> LinearChart:
        """Return the linear map along R."""
        return LinearChart(self.rotation())

    def freeze(self, tensors: dict[str, Tensor] | None = None) -> None:
        """Keep R (or the ``basis`` of ``tensors``) as a buffer and drop the free matrix.

        Raises:
            IITKitError: a basis of another shape, or one whose columns are not orthonormal.
        """
        given = self.rotation().detach().clone() if tensors is None else tensors["basis"]
        assert self.width is not None
        self.basis = check_orthonormal(given, (self.width, self.rank))
        self.free = None


def _same(kept: Tensor, now: Tensor) -> bool:
    """Return whether a matrix is what it was: by its numbers, as a change through ``.data`` leaves no other trace."""
    return kept.dtype == now.dtype and kept.device == now.device and torch.equal(kept, now)


class LowRankRotation(_Rotated):
    """The coordinates along ``rank`` orthonormal directions.

    Args:
        site: the site's sizes.
        rank: number of directions, 1 ≤ rank ≤ width.
        start: safetensors file with the basis to begin with, ``file.safetensors`` or ``file.safetensors#tensor.name``.
        frozen: nothing trains.

    Raises:
        IITKitError: rank outside 1…width, or a file that holds no such basis.
    """

    def __init__(self, site: SiteInfo, rank: int = 1, start: str | None = None, frozen: bool = False) -> None:
        whole("rank", rank, 1, site.width, "the site's width")
        super().__init__(site, rank, start, frozen, rank=rank)


class Rotation(_Rotated):
    """The coordinates of a whole rotated basis, as many as the activation has.

    Args:
        site: the site's sizes.
        start: safetensors file with the basis to begin with; see :class:`LowRankRotation`.
        frozen: nothing trains.

    Raises:
        IITKitError: a file that holds no such basis.
    """

    def __init__(self, site: SiteInfo, start: str | None = None, frozen: bool = False) -> None:
        super().__init__(site, site.width, start, frozen)


def rotation_of(space: Space) -> Tensor:
    """Return the directions R [d, r] of a rotation.

    Raises:
        IITKitError: a space that is no rotation.
    """
    if not isinstance(space, _Rotated):
        raise IITKitError(f"the space {type(space).__name__} has no rotation")
    return space.rotation()
