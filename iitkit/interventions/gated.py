"""Masks that are learned, one gate for each neuron, direction, component or feature (DBM)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from iitkit.errors import IITKitError
from iitkit.interventions.base import Intervention, SiteInfo
from iitkit.interventions.checks import one_of
from iitkit.interventions.edits import Edit, Swap, Zero
from iitkit.interventions.from_data import Mean, Resample
from iitkit.interventions.gates import HardConcrete, Sigmoid
from iitkit.interventions.masks import Mask, some
from iitkit.interventions.rotations import LowRankRotation, Rotation, rotation_of
from iitkit.interventions.sae import SAE
from iitkit.interventions.spaces import Identity, Space

Gate = Literal["sigmoid", "hard_concrete"]
Change = Literal["swap", "zero", "mean", "resample"]
_GATES: dict[str, type[Sigmoid] | type[HardConcrete]] = {"sigmoid": Sigmoid, "hard_concrete": HardConcrete}
_EDITS: dict[str, type[Edit]] = {"swap": Swap, "zero": Zero, "mean": Mean, "resample": Resample}


def gates(size: int, gate: str, temperature: float | None, site: SiteInfo) -> Mask:
    """Return the learned mask; a temperature of None is the gate's own."""
    kind = _GATES[one_of("gate", gate, _GATES)]
    made = kind(size) if temperature is None else kind(size, temperature)
    made.begin(site.generator)
    return made


def change(space: Space, site: SiteInfo, edit: str) -> Edit:
    """Return the edit of that name."""
    return _EDITS[one_of("edit", edit, _EDITS)](space.size, site)


class MaskedNeurons(Intervention):
    """``(1 − m) ⊙ b + m ⊙ s`` over the activation's own entries, m learned: which neurons hold the variable?

    Desiderata-based masking, Davies et al., 2023, https://arxiv.org/abs/2307.03637. In evaluation the mask is hard. The
    penalty is Σ m for sigmoid gates and the expected number of open gates for hard-concrete ones.

    Args:
        site: the site's sizes.
        gate: ``sigmoid`` or ``hard_concrete`` (Louizos et al., 2018, https://arxiv.org/abs/1712.01312).
        temperature: of the gates at the start; unless said 1 for sigmoid and 2/3 for hard-concrete gates.
        edit: what the chosen entries get: ``swap`` the source's, ``zero``, ``mean`` over data, ``resample`` from data.

    Raises:
        IITKitError: an unknown gate or edit, or a temperature ≤ 0.
    """

    def __init__(
        self, site: SiteInfo, gate: Gate = "sigmoid", temperature: float | None = None, edit: Change = "swap"
    ) -> None:
        space = Identity(site)
        super().__init__(
            space,
            gates(site.width, gate, temperature, site),
            change(space, site, edit),
            gate=gate,
            temperature=temperature,
            edit=edit,
        )


class MaskedSubspace(Intervention):
    """``b + (m ⊙ (s − b) R) Rᵀ``: a learned rotation and a learned mask over its directions.

    Desiderata-based masking in a rotated basis, Davies et al., 2023, https://arxiv.org/abs/2307.03637.

    Args:
        site: the site's sizes.
        rank: number of directions; all of the width unless said.
        gate: ``sigmoid`` or ``hard_concrete``; see :class:`MaskedNeurons`.
        temperature: of the gates at the start; unless said 1 for sigmoid and 2/3 for hard-concrete gates.
        edit: what they get: ``swap`` the source's, ``zero``, ``mean`` over data, ``resample`` from data.
        start: safetensors file with the basis to begin with, ``file.safetensors`` or ``file.safetensors#name``.
        frozen: the rotation does not train.

    Raises:
        IITKitError: rank outside 1…width, an unknown gate or edit, or a temperature ≤ 0.
    """

    def __init__(
        self,
        site: SiteInfo,
        rank: int | None = None,
        gate: Gate = "sigmoid",
        temperature: float | None = None,
        edit: Change = "swap",
        start: str | None = None,
        frozen: bool = False,
    ) -> None:
        space = Rotation(site, start, frozen) if rank is None else LowRankRotation(site, rank, start, frozen)
        super().__init__(
            space,
            gates(space.rank, gate, temperature, site),
            change(space, site, edit),
            rank=rank,
            gate=gate,
            temperature=temperature,
            edit=edit,
            start=start,
            frozen=frozen,
        )

    @property
    def rotation(self) -> Tensor:
        """R, [width, rank], orthonormal columns."""
        return rotation_of(self.space)


class SAEFeatures(Intervention):
    """``b + (m ⊙ (f(s) − f(b))) W_dec``: features of a sparse autoencoder are taken from the source.

    What the autoencoder does not reconstruct of the base stays as it is.

    Args:
        site: the site's sizes.
        file: SAELens' ``….safetensors`` with its ``cfg.json`` beside it, Gemma Scope's ``params.npz``, or Gemma Scope
            2's ``params.safetensors``.
        features: which features: the first k, or a list of indices. All unless said.
        gate: learn a mask over all features instead: ``sigmoid`` or ``hard_concrete``; see :class:`MaskedNeurons`.
        temperature: of the gates at the start.
        edit: what the chosen features get: ``swap`` the source's, ``zero``, ``mean`` over data, ``resample`` from data.

    Raises:
        IITKitError: a file that cannot be used, an autoencoder of another width, or features beside a gate.
    """

    def __init__(
        self,
        site: SiteInfo,
        file: str,
        features: int | list[int] | None = None,
        gate: Gate | None = None,
        temperature: float | None = None,
        edit: Change = "swap",
    ) -> None:
        if gate is not None and features is not None:
            raise IITKitError(f"features {features!r} and gate {gate!r}: give one; a gate chooses among all features")
        if gate is None and temperature is not None:
            raise IITKitError(f"temperature {temperature}: only a gate has one, give gate: sigmoid")
        space = SAE(site, file)
        assert space.size is not None
        mask = some(space.size, features) if gate is None else gates(space.size, gate, temperature, site)
        super().__init__(
            space,
            mask,
            change(space, site, edit),
            file=file,
            features=features,
            gate=gate,
            temperature=temperature,
            edit=edit,
        )
