"""Representation fine-tuning: learned edits of the activation's part in a low-rank space; they take no source.

Wu et al., 2024, https://arxiv.org/abs/2404.03592, whose names and formulas these are. R [d, r] has orthonormal columns,
W and W₁ are free.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from iitkit.interventions.base import Intervention, SiteInfo
from iitkit.interventions.learned import Activation, Affine
from iitkit.interventions.masks import All
from iitkit.interventions.rotations import LowRankRotation, rotation_of
from iitkit.interventions.spaces import FreeProjection

RANK = 4
"""The rank unless one is said."""


class _Rotated(Intervention):
    """In an orthonormal space."""

    def __init__(
        self, site: SiteInfo, rank: int | None, constant: bool = False, add: bool = False, **options: Any
    ) -> None:
        rank = RANK if rank is None else rank
        space = LowRankRotation(site, rank)
        edit = Affine(rank, site, options.get("activation", "linear"), constant, add)
        super().__init__(space, All(rank), edit, rank=rank, **options)

    @property
    def rotation(self) -> Tensor:
        """R, [width, rank], orthonormal columns."""
        return rotation_of(self.space)


class _Free(Intervention):
    """In a space that nothing keeps orthonormal."""

    def __init__(self, site: SiteInfo, rank: int | None, activation: Activation, add: bool) -> None:
        rank = RANK if rank is None else rank
        space = FreeProjection(site, rank)
        edit = Affine(rank, site, activation, add=add)
        super().__init__(space, All(rank), edit, rank=rank, activation=activation)


class LoReFT(_Rotated):
    """``h + (act(W h + c) − h R) Rᵀ``.

    Args:
        site: the site's sizes.
        rank: dimension of the subspace, 1 ≤ rank ≤ width; 4 unless said.
        activation: act: linear, relu, gelu, silu, tanh or sigmoid.
    """

    def __init__(self, site: SiteInfo, rank: int | None = None, activation: Activation = "linear") -> None:
        super().__init__(site, rank, activation=activation)


class NoReFT(_Free):
    """``h + (act(W₁ h + c) − W₂ h) W₂``: LoReFT without orthonormal directions.

    Args:
        site: the site's sizes.
        rank: dimension of the subspace, 1 ≤ rank ≤ width; 4 unless said.
        activation: act: linear, relu, gelu, silu, tanh or sigmoid.
    """

    def __init__(self, site: SiteInfo, rank: int | None = None, activation: Activation = "linear") -> None:
        super().__init__(site, rank, activation, add=False)


class ConsReFT(_Rotated):
    """``h + (c − h R) Rᵀ``: the part in the subspace becomes a constant, from 0.

    Args:
        site: the site's sizes.
        rank: dimension of the subspace, 1 ≤ rank ≤ width; 4 unless said.
    """

    def __init__(self, site: SiteInfo, rank: int | None = None) -> None:
        super().__init__(site, rank, constant=True)


class LoBiReFT(_Rotated):
    """``h + c Rᵀ``: a bias of low rank, from 0.

    Args:
        site: the site's sizes.
        rank: dimension of the subspace, 1 ≤ rank ≤ width; 4 unless said.
    """

    def __init__(self, site: SiteInfo, rank: int | None = None) -> None:
        super().__init__(site, rank, constant=True, add=True)


class DiReFT(_Rotated):
    """``h + act(W h + c) Rᵀ``: LoReFT that adds instead of setting.

    Args:
        site: the site's sizes.
        rank: dimension of the subspace, 1 ≤ rank ≤ width; 4 unless said.
        activation: act: linear, relu, gelu, silu, tanh or sigmoid.
    """

    def __init__(self, site: SiteInfo, rank: int | None = None, activation: Activation = "linear") -> None:
        super().__init__(site, rank, add=True, activation=activation)


class NoDiReFT(_Free):
    """``h + act(W₁ h + c) W₂``: DiReFT without orthonormal directions.

    Args:
        site: the site's sizes.
        rank: dimension of the subspace, 1 ≤ rank ≤ width; 4 unless said.
        activation: act: linear, relu, gelu, silu, tanh or sigmoid.
    """

    def __init__(self, site: SiteInfo, rank: int | None = None, activation: Activation = "linear") -> None:
        super().__init__(site, rank, activation, add=True)
