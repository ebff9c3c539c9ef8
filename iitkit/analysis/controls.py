"""Controls: what an alignment must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from iitkit.errors import IITKitError
from iitkit.interventions import LowRankSubspace, SiteInfo
from iitkit.interventions.spaces import orthonormal


def random_subspaces(activations: Tensor, rank: int, draws: int, generator: torch.Generator) -> list[LowRankSubspace]:
    """Draw random subspaces from the covariance of activations.

    A direction drawn alike in all of space lies almost wholly outside the few directions that activations vary along
    and swaps next to nothing. Here each direction is Gaussian with the activations' own covariance, so that the control
    swaps as much as a subspace of that rank does.

    Args:
        activations: [n, width], n ≥ 2.
        rank: dimension of each subspace.
        draws: how many.
        generator: draws them; on the CPU.

    Returns:
        Frozen interventions on the activations' device.

    Raises:
        IITKitError: fewer than two activations.
    """
    if activations.shape[0] < 2:
        raise IITKitError(f"random subspaces need two activations or more, given {activations.shape[0]}")
    centred = (activations.float() - activations.float().mean(0)).cpu()
    n, width = centred.shape
    made = []
    for _ in range(draws):
        directions = centred.T @ torch.randn(n, rank, generator=generator)
        if n <= rank:  # too few samples to span the subspace: the rest is isotropic, far below the activations' scale
            directions = directions + 1e-3 * centred.std() * torch.randn(width, rank, generator=generator)
        control = LowRankSubspace(SiteInfo(width=width, generator=generator), rank=rank)
        control.space.freeze({"basis": orthonormal(directions.double()).float()})
        made.append(control.requires_grad_(False).to(activations.device))
    return made
