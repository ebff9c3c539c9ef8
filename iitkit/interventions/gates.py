"""Masks that are learned: soft while they train, hard in evaluation, and stored as the hard result."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError
from iitkit.interventions.checks import number
from iitkit.interventions.draws import first_step, seeded
from iitkit.interventions.masks import Mask

LEAST = 1e-3
"""Least share of the coordinates that a boundary leaves."""
COLDEST, HOTTEST = 1e-30, 1e30
"""Temperatures by which fp32 can divide and multiply."""


def _heat(value: float) -> Tensor:
    heat = number("temperature", value, above=0)
    if not COLDEST <= heat <= HOTTEST:
        raise IITKitError(f"temperature {value!r}: expected a number from {COLDEST:g} to {HOTTEST:g}")
    return torch.tensor(heat, dtype=torch.float32)


class _Learned(Mask):
    """A mask with parameters: :meth:`soft` in training mode, :meth:`hard` in eval mode and once released.

    The temperature is a buffer: a schedule may set it, an optimizer never sees it.
    """

    def __init__(self, size: int, temperature: float, **options: Any) -> None:
        super().__init__(size, temperature=temperature, **options)
        self.kept: Tensor | None
        self.register_buffer("kept", None)
        self.heat: Tensor | None
        self.register_buffer("heat", _heat(temperature))

    def soft(self) -> Tensor:
        """Return the weights in training, [k] in [0, 1]."""
        raise NotImplementedError  # abstract

    def hard(self) -> Tensor:
        """Return the coordinates that the mask has settled on, bool [k]."""
        raise NotImplementedError  # abstract

    def charge(self) -> Tensor:
        """Return the differentiable measure of the mask's size, 0-dim."""
        raise NotImplementedError  # abstract

    def weights(self, block: str | None = None) -> Tensor:
        """Return soft weights in training mode, hard ones otherwise."""
        if self.kept is not None:
            return self.kept
        return self.soft() if self.training else self.hard()

    def penalty(self) -> Tensor:
        """Return the charge for the soft mask's size; nothing once it is released."""
        return self.charge() if self.kept is None else self.nothing

    def effective_size(self) -> float:
        """Return the number of coordinates of the hardened mask."""
        return float((self.hard() if self.kept is None else self.kept).sum())

    @property
    def temperature(self) -> float | None:
        """How soft the mask is in training; None once it is released."""
        return None if self.heat is None else float(self.heat)

    @temperature.setter
    def temperature(self, value: float) -> None:
        if self.heat is None:
            raise IITKitError(f"temperature {value}: the mask is released and stays hard")
        self.heat = _heat(value).to(self.heat)

    def freeze(self, tensors: dict[str, Tensor] | None = None) -> None:
        """Keep the hard mask (or the ``kept`` of ``tensors``) and drop what trained.

        Raises:
            IITKitError: a stored mask of another length or type.
        """
        if tensors is None:
            kept = self.hard().detach().clone() if self.kept is None else self.kept
        else:
            kept = tensors["kept"]
        if kept.dtype != torch.bool or tuple(kept.shape) != (self.size,):
            raise IITKitError(
                f"mask of {str(kept.dtype).removeprefix('torch.')} {tuple(kept.shape)}: expected bool {(self.size,)}"
            )
        for name in (*dict(self.named_parameters()), *dict(self.named_buffers())):
            if name != "nothing":
                setattr(self, name, None)
        self.kept = kept


class _Bounded(torch.autograd.Function):
    """Clamps to [LEAST, 1]; a value outside gets the gradients that lead back inside, and no others."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return value.clamp(LEAST, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (value,) = ctx.saved_tensors
        outward = ((value < LEAST) & (gradient > 0)) | ((value > 1.0) & (gradient < 0))
        return gradient.masked_fill(outward, 0.0)


class Boundary(_Learned):
    """The first coordinates, up to a learned boundary: ``m_i = σ((β·k − i)/T)``, ``i < β·k`` in evaluation.

    Wu et al., 2023, https://arxiv.org/abs/2305.08809 (Boundless DAS). β is the share of the k coordinates, kept in
    [0.001, 1]. The penalty is β. The paper lowers T from 50 to 0.1 in training.

    Args:
        size: number of coordinates k.
        share: β at the start.
        temperature: T at the start.

    Raises:
        IITKitError: a share outside (0, 1], or a temperature ≤ 0.
    """

    def __init__(self, size: int, share: float = 0.5, temperature: float = 50.0) -> None:
        if share != 1:
            number("share", share, above=0, below=1)
        super().__init__(size, temperature, share=share)
        self.share: nn.Parameter | None = nn.Parameter(torch.tensor(float(share), dtype=torch.float32))

    def charge(self) -> Tensor:
        """Return β."""
        assert self.share is not None
        wide = self.share.to(torch.promote_types(self.share.dtype, torch.float32))
        bounded: Tensor = _Bounded.apply(wide)  # type: ignore[no-untyped-call]
        return bounded

    def _beyond(self) -> Tensor:
        share = self.charge()
        assert self.size is not None
        return share * self.size - torch.arange(self.size, device=share.device, dtype=share.dtype)

    def soft(self) -> Tensor:
        """Return ``σ((β·k − i)/T)``."""
        assert self.heat is not None
        return torch.sigmoid(self._beyond() / self.heat)

    def hard(self) -> Tensor:
        """Return ``i < β·k``, but for what fp32 adds to a share like 7/13."""
        assert self.size is not None
        return self._beyond() > 1e-6 * self.size


class Sigmoid(_Learned):
    """One gate for each coordinate: ``m = σ(θ/T)``, ``θ > 0`` in evaluation.

    Desiderata-based masking, Davies et al., 2023, https://arxiv.org/abs/2307.03637. The penalty is Σ m (L1). θ starts
    at 0: half open in training, an empty mask in evaluation.

    Args:
        size: number of coordinates.
        temperature: T at the start.

    Raises:
        IITKitError: a temperature ≤ 0.
    """

    def __init__(self, size: int, temperature: float = 1.0) -> None:
        super().__init__(size, temperature)
        self.gates: nn.Parameter | None = nn.Parameter(torch.zeros(size, dtype=torch.float32))

    def soft(self) -> Tensor:
        """Return ``σ(θ/T)``."""
        assert self.gates is not None
        assert self.heat is not None
        return torch.sigmoid(self.gates.to(torch.promote_types(self.gates.dtype, torch.float32)) / self.heat)

    def hard(self) -> Tensor:
        """Return ``θ > 0``."""
        assert self.gates is not None
        return self.gates > 0

    def charge(self) -> Tensor:
        """Return Σ m."""
        return self.soft().sum()


class HardConcrete(_Learned):
    """One stochastic gate for each coordinate that is exactly 0 or 1 much of the time.

    Louizos et al., 2018, https://arxiv.org/abs/1712.01312: with u uniform, ``s = σ((log u − log(1−u) + θ)/T)`` and
    ``m = clamp(1.2 s − 0.1, 0, 1)``. In evaluation a gate is open where its median is above a half: θ > 0. The penalty
    is the expected number of gates that are not 0 (L0), ``Σ σ(θ − T log(0.1/1.1))``. Gates are drawn anew in every
    training step, by a counter that a checkpoint keeps.

    Args:
        size: number of coordinates.
        temperature: T at the start.
        seed: of the draws.

    Raises:
        IITKitError: a temperature ≤ 0.
    """

    LOW, HIGH = -0.1, 1.1

    def __init__(self, size: int, temperature: float = 2 / 3, seed: int = 0) -> None:
        super().__init__(size, temperature, seed=seed)
        self.seed = seed
        self.gates: nn.Parameter | None = nn.Parameter(torch.zeros(size, dtype=torch.float32))
        self.draws: Tensor | None
        self.register_buffer("draws", first_step(None))

    def begin(self, generator: torch.Generator | None) -> None:
        """Let a generator say where the draws begin, so that no two placements draw the same gates in every step."""
        self.draws = first_step(generator)

    def _noise(self) -> Tensor:
        """Return this step's log u − log(1−u), [k]."""
        assert self.draws is not None
        assert self.size is not None
        u = torch.rand(self.size, generator=seeded(self.seed, int(self.draws)), dtype=torch.float64)
        self.draws = self.draws + 1
        return torch.logit(u, eps=1e-6)

    def soft(self) -> Tensor:
        """Return a draw of the gates."""
        assert self.gates is not None
        assert self.heat is not None
        noise = self.once("noise", self._noise, graph=False)
        gates = self.gates.to(torch.promote_types(self.gates.dtype, torch.float32))
        drawn = torch.sigmoid((noise.to(gates) + gates) / self.heat)
        return (drawn * (self.HIGH - self.LOW) + self.LOW).clamp(0.0, 1.0)

    def hard(self) -> Tensor:
        """Return ``θ > 0``."""
        assert self.gates is not None
        return self.gates > 0

    def charge(self) -> Tensor:
        """Return ``Σ P(m > 0)``."""
        assert self.gates is not None
        assert self.heat is not None
        gates = self.gates.to(torch.promote_types(self.gates.dtype, torch.float32))
        return torch.sigmoid(gates - self.heat * math.log(-self.LOW / self.HIGH)).sum()
