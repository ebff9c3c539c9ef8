"""Swaps of an activation, or of its part in a rotated basis: interchange interventions and alignment search."""

from __future__ import annotations

from torch import Tensor

from iitkit.interventions.base import Intervention, SiteInfo
from iitkit.interventions.edits import Swap
from iitkit.interventions.gates import Boundary
from iitkit.interventions.masks import All, Blocks, Indices, Mask, some
from iitkit.interventions.pca import PCA
from iitkit.interventions.rotations import LowRankRotation, Rotation, rotation_of
from iitkit.interventions.spaces import Identity


class Vanilla(Intervention):
    """``b ← s``: the activation, or some of its entries, is taken from the source (activation patching).

    Geiger et al., 2020, https://arxiv.org/abs/2004.14623 (interchange interventions). Trains nothing.

    Args:
        site: the site's sizes; needed only with ``features``.
        features: which entries: the first k, or a list of indices. All unless said.

    Raises:
        IITKitError: indices outside the width or given twice.
    """

    def __init__(self, site: SiteInfo | None = None, features: int | list[int] | None = None) -> None:
        space = Identity(site)
        super().__init__(space, some(space.size, features), Swap(), features=features)

    def forward(
        self,
        base: Tensor,
        source: Tensor | None = None,
        strength: float = 1.0,
        *,
        inputs: Tensor | None = None,
        block: str | None = None,
    ) -> Tensor:
        """Return the source's entries themselves at strength 1: ``b + (s − b)`` would round."""
        edited = super().forward(base, source, strength, inputs=inputs, block=block)
        if strength != 1.0 or source is None:
            return edited
        kept = self.mask.weights(block)
        return source.to(base.dtype) if kept is None else source.to(base.dtype).where(kept, base)


class RotatedSubspace(Intervention):
    """``b + (m ⊙ (s − b) W) Wᵀ``: chosen coordinates of a learned d×d rotation are taken from the source (DAS).

    Distributed alignment search, Geiger et al., 2023, https://arxiv.org/abs/2303.02536. Several variables may share the
    rotation, each with a block of its own (multi-task DAS, Huang et al., 2024, https://arxiv.org/abs/2402.17700).

    Args:
        site: the site's sizes.
        coordinates: the first k, or a list of indices; or block name → number or list, one block for each variable.
        start: safetensors file with the d×d basis to begin with, ``file.safetensors`` or ``file.safetensors#name``.
        frozen: nothing trains.

    Raises:
        IITKitError: coordinates outside the width, or blocks that overlap.
    """

    def __init__(
        self,
        site: SiteInfo,
        coordinates: int | list[int] | dict[str, int | list[int]],
        start: str | None = None,
        frozen: bool = False,
    ) -> None:
        mask: Mask
        mask = Blocks(site.width, coordinates) if isinstance(coordinates, dict) else Indices(site.width, coordinates)
        super().__init__(
            Rotation(site, start, frozen), mask, Swap(), coordinates=coordinates, start=start, frozen=frozen
        )

    @property
    def rotation(self) -> Tensor:
        """W, [width, width], orthonormal."""
        return rotation_of(self.space)


class LowRankSubspace(Intervention):
    """``b + (s − b) R Rᵀ``: the activation's part in a learned subspace is taken from the source (DAS).

    Distributed alignment search, Geiger et al., 2023, https://arxiv.org/abs/2303.02536, with ``rank`` of the rotated
    basis' directions learned and the rest left alone. ``rank`` = width is the full swap.

    Args:
        site: the site's sizes.
        rank: dimension of the subspace, 1 ≤ rank ≤ width; 1 unless said.
        start: safetensors file with the width × rank basis to begin with, ``file.safetensors`` or
            ``file.safetensors#name``, e.g. an artifact's.
        frozen: nothing trains.

    Raises:
        IITKitError: rank outside 1…width, or a file that holds no such basis.
    """

    # the default is None, as in all classes with a rank: jsonargparse hands the default class' own defaults on to
    # whatever class a config names instead, and a 1 would silently become theirs
    def __init__(self, site: SiteInfo, rank: int | None = None, start: str | None = None, frozen: bool = False) -> None:
        rank = 1 if rank is None else rank
        super().__init__(
            LowRankRotation(site, rank, start, frozen), All(rank), Swap(), rank=rank, start=start, frozen=frozen
        )

    @property
    def rotation(self) -> Tensor:
        """R, [width, rank], orthonormal columns."""
        return rotation_of(self.space)


class BoundlessSubspace(Intervention):
    """``b + (m ⊙ (s − b) W) Wᵀ`` with ``m_i = σ((β·d − i)/T)``: a rotation whose swapped part learns its own size.

    Boundless DAS, Wu et al., 2023, https://arxiv.org/abs/2305.08809. The penalty is β; the paper lowers T from 50 to
    0.1 in training. In evaluation the first coordinates i < β·d are swapped whole.

    Args:
        site: the site's sizes.
        share: β, the swapped share of the coordinates, at the start.
        temperature: T at the start.
        start: safetensors file with the d×d basis to begin with, ``file.safetensors`` or ``file.safetensors#name``.
        frozen: the rotation does not train.

    Raises:
        IITKitError: a share outside (0, 1], or a temperature ≤ 0.
    """

    def __init__(
        self,
        site: SiteInfo,
        share: float = 0.5,
        temperature: float = 50.0,
        start: str | None = None,
        frozen: bool = False,
    ) -> None:
        mask = Boundary(site.width, share, temperature)
        super().__init__(
            Rotation(site, start, frozen),
            mask,
            Swap(),
            share=share,
            temperature=temperature,
            start=start,
            frozen=frozen,
        )

    @property
    def rotation(self) -> Tensor:
        """W, [width, width], orthonormal."""
        return rotation_of(self.space)


class PCASubspace(Intervention):
    """``b + (s − b) R Rᵀ`` with the activations' own principal components R, fitted to data before.

    Args:
        site: the site's sizes.
        rank: number of components, 1 ≤ rank ≤ width; 8 unless said.
        standardise: divide the activation's entries by their standard deviations first.
        components: which of the components are swapped: the first k, or a list of indices. All unless said.

    Raises:
        IITKitError: rank outside 1…width, or components outside the rank.
    """

    def __init__(
        self,
        site: SiteInfo,
        rank: int | None = None,
        standardise: bool = False,
        components: int | list[int] | None = None,
    ) -> None:
        rank = 8 if rank is None else rank
        super().__init__(
            PCA(site, rank, standardise),
            some(rank, components),
            Swap(),
            rank=rank,
            standardise=standardise,
            components=components,
        )
