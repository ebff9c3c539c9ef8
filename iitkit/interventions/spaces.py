"""Spaces: the coordinates in which an activation is edited."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError


def orthonormal(free: Tensor) -> Tensor:
    """Return the orthonormal basis of the columns of ``free`` [d, r] by one thin QR, in at least fp32.

    The signs are chosen so that diag(R) > 0. LAPACK's own signs may turn round between two steps of training, and an
    edit without a source would turn round with them.
    """
    wide = free.to(torch.promote_types(free.dtype, torch.float32))
    q, r = torch.linalg.qr(wide)
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(q.dtype)
    # a copy also where one column makes q contiguous by name: its strides, and so the sums' order, are as when loaded
    basis: Tensor = (q * signs).clone(memory_format=torch.contiguous_format)
    return basis


class Chart:
    """A space's map at one moment: computed once, used for every row of a step. This one is the identity."""

    def encode(self, x: Tensor) -> Tensor:
        """Return the coordinates of ``x``: [*, d] → [*, k]."""
        return x

    def decode(self, delta: Tensor) -> Tensor:
        """Return the change of the activation for a change of its coordinates: [*, k] → [*, d]."""
        return delta

    def difference(self, source: Tensor, base: Tensor) -> Tensor:
        """Return ``encode(source) − encode(base)``."""
        return self.encode(source) - self.encode(base)


@dataclass(frozen=True)
class LinearChart(Chart):
    """Coordinates along the orthonormal columns of R [d, k]."""

    matrix: Tensor

    def encode(self, x: Tensor) -> Tensor:
        """Return ``x R``."""
        return x @ self.matrix.to(x.dtype)

    def decode(self, delta: Tensor) -> Tensor:
        """Return ``delta Rᵀ``."""
        return delta @ self.matrix.to(delta.dtype).T

    def difference(self, source: Tensor, base: Tensor) -> Tensor:
        """Return ``(source − base) R``: subtracting first rounds less where both share a large part."""
        return self.encode(source - base)


class Space(nn.Module):
    """Coordinates of an activation, perhaps with parameters that train. This one keeps the activation's own."""

    def chart(self) -> Chart:
        """Return the map as it is now. Called once per forward pass of an intervention."""
        return Chart()

    def freeze(self, tensors: dict[str, Tensor] | None = None) -> None:
        """Replace what trains by its result, as an artifact stores it; ``tensors`` are results read from one."""


class Identity(Space):
    """The activation's own coordinates."""


class LowRankRotation(Space):
    """The coordinates along ``rank`` orthonormal directions R [d, r].

    What trains is a free matrix; R is its QR, taken once per forward pass while it trains and once per change of the
    matrix otherwise. A frozen space holds R itself and takes no QR.

    Args:
        width: size d of the activation.
        rank: number of directions r, 1 ≤ r ≤ d.
        generator: draws the start.

    Raises:
        IITKitError: rank outside 1…width.
    """

    def __init__(self, width: int, rank: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not 1 <= rank <= width:
            raise IITKitError(f"rank {rank}: expected 1 to the site's width {width}")
        self.width, self.rank = width, rank
        # unit columns: Adam's steps then turn them as far as in the field's usual orthogonal parametrisation
        start = nn.functional.normalize(torch.randn(width, rank, generator=generator), dim=0)
        self.free: nn.Parameter | None = nn.Parameter(start)
        self.basis: Tensor | None
        self.register_buffer("basis", None)
        self._kept: tuple[Tensor, tuple[int, int, torch.device], Tensor] | None = None

    def rotation(self) -> Tensor:
        """Return R, [d, r], orthonormal columns, fp32 or wider."""
        if self.basis is not None:
            return self.basis
        assert self.free is not None
        if torch.is_grad_enabled() and self.free.requires_grad:
            return orthonormal(self.free)
        key = (self.free._version, self.free.data_ptr(), self.free.device)
        if self._kept is None or self._kept[1] != key:
            with torch.inference_mode(False), torch.no_grad():  # what is kept must serve outside inference mode too
                # holding the matrix itself keeps its address from being given to another
                self._kept = (self.free.detach(), key, orthonormal(self.free))
        return self._kept[2]

    def chart(self) -> Chart:
        """Return the linear map along R."""
        return LinearChart(self.rotation())

    def freeze(self, tensors: dict[str, Tensor] | None = None) -> None:
        """Keep R (or the ``basis`` of ``tensors``) as a buffer and drop the free matrix.

        Raises:
            IITKitError: a basis of another shape, or one whose columns are not orthonormal.
        """
        basis = self.rotation().detach().clone() if tensors is None else tensors["basis"]
        if tuple(basis.shape) != (self.width, self.rank):
            raise IITKitError(f"basis of shape {tuple(basis.shape)}: expected {(self.width, self.rank)}")
        identity = torch.eye(self.rank, dtype=torch.float64, device=basis.device)
        off = (basis.T.double() @ basis.double() - identity).abs().max().item()
        if not off < 1e-3:
            raise IITKitError(f"basis is not orthonormal (RᵀR differs from I by {off:.2g}): the file is damaged")
        self.free = None
        self.basis = basis
