"""The orthonormal basis of a free matrix's columns."""

from __future__ import annotations

import torch
from torch import Tensor

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


def check_orthonormal(basis: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return a basis read from a file, fp32 or wider.

    Raises:
        IITKitError: another shape, no real numbers, or columns that are not orthonormal.
    """
    if not basis.is_floating_point():
        raise IITKitError(f"basis of {str(basis.dtype).removeprefix('torch.')} numbers: expected float32 or wider")
    if tuple(basis.shape) != shape:
        raise IITKitError(f"basis of shape {tuple(basis.shape)}: expected {shape}")
    identity = torch.eye(shape[1], dtype=torch.float64, device=basis.device)
    off = (basis.T.double() @ basis.double() - identity).abs().max().item()
    if not off < 1e-3:
        raise IITKitError(f"basis is not orthonormal (RᵀR differs from I by {off:.2g}): the file is damaged")
    return basis.to(torch.promote_types(basis.dtype, torch.float32))
