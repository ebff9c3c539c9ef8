"""pyvene's interventions in ours: one function for each class that is known by name. Nothing is ever imported.

Wu et al., 2024, https://arxiv.org/abs/2403.07809. The classes and formulas are those of pyvene 0.1.8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError
from iitkit.hub.foreign import taken
from iitkit.interventions import Intervention, SiteInfo

Boundary = Literal["soft", "hard"]
"""What becomes of a soft mask: kept as it is, as pyvene itself computes, or rounded to in or out, as ours do."""
LEAST = 1e-12
"""Mask weights below it are none."""


@dataclass
class Saved:
    """One of a folder's interventions.

    Args:
        who: what messages call it.
        site: the sizes of its site.
        dimension: how many entries (or coordinates) it changes, the first ones.
        tensors: its state; what is used is taken out.
        boundary: what becomes of a soft mask.
    """

    who: str
    site: SiteInfo
    dimension: int
    tensors: dict[str, Tensor]
    boundary: Boundary

    @property
    def features(self) -> int | None:
        """The first k entries; None for all."""
        return None if self.dimension >= self.site.width else self.dimension

    def take(self, name: str, *shape: int) -> Tensor:
        """Take a tensor of this shape out of the state."""
        return taken(self.tensors, name, shape, self.who)

    def temperature(self) -> float:
        """Take a soft mask's temperature out of the state."""
        found = float(self.take("temperature"))
        if not found > 0:
            raise IITKitError(f"{self.who}: temperature {found:g}: expected a number above 0")
        return found

    def constant(self) -> Tensor | None:
        """Take the constant source, [width], out of the state, where there is one."""
        found = self.tensors.pop("source_representation", None)
        if found is None:
            return None
        if found.numel() != self.site.width:
            raise IITKitError(
                f"{self.who}: source_representation has shape {tuple(found.shape)}: expected {self.site.width} numbers"
            )
        return taken({"source_representation": found.flatten()}, "source_representation", (self.site.width,), self.who)

    def rotation(self, rank: int) -> Tensor:
        """Take the rotation, [width, rank], out of the state of torch's orthogonal parametrisation."""
        stem = "rotate_layer."
        own = {key.removeprefix(stem): self.tensors.pop(key) for key in list(self.tensors) if key.startswith(stem)}
        if "weight" in own:  # as pyreft keeps it
            return taken(own, "weight", (self.site.width, rank), self.who)
        layer = nn.Module()
        layer.weight = nn.Parameter(torch.eye(self.site.width, rank))
        nn.utils.parametrizations.orthogonal(layer)
        try:
            layer.load_state_dict({key: value.float() for key, value in own.items()}, strict=True)
        except RuntimeError as error:
            first = " ".join(str(error).split())[:160]
            raise IITKitError(f"{self.who}: its rotation is none of width {self.site.width}: {first}") from error
        with torch.no_grad():
            found = {"weight": torch.as_tensor(layer.weight)}
        return taken(found, "weight", (self.site.width, rank), self.who)

    def built(self, name: str, tensors: dict[str, Tensor] | None = None, **options: object) -> Intervention:
        """Return an intervention of ours."""
        try:
            return Intervention.from_spec({"name": name, **options}, self.site, tensors or {})
        except (IITKitError, TypeError, ValueError) as error:
            raise IITKitError(f"{self.who}: {error}") from error


def _signed(name: str) -> Callable[[Saved], Intervention]:
    def build(saved: Saved) -> Intervention:
        vector = saved.constant()
        if vector is None:
            return saved.built(name, take="source", features=saved.features)
        return saved.built(name, {"edit.vector": vector}, take="vector", features=saved.features)

    return build


def _vanilla(saved: Saved) -> Intervention:
    value = saved.constant()
    if value is None:
        return saved.built("Vanilla", features=saved.features)
    return saved.built("Constant", value=value.tolist(), features=saved.features)


def _low_rank(saved: Saved) -> Intervention:
    found = saved.tensors.get("rotate_layer.parametrizations.weight.original", saved.tensors.get("rotate_layer.weight"))
    if found is None or found.dim() != 2 or not 1 <= found.shape[1] <= saved.site.width:
        shape = "is not there" if found is None else f"has shape {tuple(found.shape)}"
        raise IITKitError(f"{saved.who}: its rotation {shape}: expected {saved.site.width} rows and 1 column or more")
    rank = found.shape[1]
    return saved.built("LowRankSubspace", {"space.basis": saved.rotation(rank)}, rank=rank)


def _rotated(saved: Saved) -> Intervention:
    basis = {"space.basis": saved.rotation(saved.site.width)}
    return saved.built("RotatedSubspace", basis, coordinates=saved.dimension)


def _boundless(saved: Saved) -> Intervention:
    width = saved.site.width
    rotation = saved.rotation(width)
    share = float(saved.take("intervention_boundaries", 1).clamp(1e-3, 1))
    temperature = saved.temperature()
    saved.tensors.pop("intervention_population", None)  # 0 to width − 1
    index = torch.arange(width, dtype=torch.float64)
    if saved.boundary == "hard":
        kept = index < share * width
        return saved.built("BoundlessSubspace", {"space.basis": rotation, "mask.kept": kept}, share=share)
    mask = torch.sigmoid(index / temperature) * torch.sigmoid((share * width - index) / temperature)
    return _weighted(saved, rotation, mask)


def _sigmoid_rotated(saved: Saved) -> Intervention:
    rotation, gates = saved.rotation(saved.site.width), saved.take("masks", saved.site.width).double()
    temperature = saved.temperature()
    if saved.boundary == "hard":
        chosen = (gates > 0).nonzero()[:, 0].tolist()
        return saved.built("RotatedSubspace", {"space.basis": rotation}, coordinates=chosen)
    return _weighted(saved, rotation, torch.sigmoid(gates / temperature))


def _sigmoid(saved: Saved) -> Intervention:
    gates, temperature = saved.take("mask", saved.site.width).double(), saved.temperature()
    if saved.boundary == "hard":
        return saved.built("MaskedNeurons", {"mask.kept": gates > 0})
    return _weighted(saved, torch.eye(saved.site.width), torch.sigmoid(gates / temperature))


def _weighted(saved: Saved, rotation: Tensor, mask: Tensor) -> Intervention:
    """Return ``b + (m ⊙ (s − b) W) Wᵀ`` for weights m in [0, 1]: a swap along the free directions ``√mᵢ wᵢ``."""
    kept = mask > LEAST
    if not kept.any():
        raise IITKitError(f"{saved.who}: its mask is closed: it changes nothing")
    rows = (rotation.double() * mask.sqrt()).T[kept].float().contiguous()
    return saved.built(
        "Composed",
        {"space.weight": rows},
        space={"name": "FreeProjection", "rank": len(rows)},
        edit={"name": "Swap"},
    )


def _plain(name: str) -> Callable[[Saved], Intervention]:
    return lambda saved: saved.built(name, features=saved.features)


TYPES: dict[str, Callable[[Saved], Intervention]] = {
    "VanillaIntervention": _vanilla,
    "AdditionIntervention": _signed("Addition"),
    "SubtractionIntervention": _signed("Subtraction"),
    "ZeroIntervention": _plain("Zero"),
    "CollectIntervention": _plain("Collect"),
    "SkipIntervention": _plain("Skip"),
    "LowRankRotatedSpaceIntervention": _low_rank,
    "RotatedSpaceIntervention": _rotated,
    "BoundlessRotatedSpaceIntervention": _boundless,
    "SigmoidMaskRotatedSpaceIntervention": _sigmoid_rotated,
    "SigmoidMaskIntervention": _sigmoid,
}
"""pyvene's class → what makes ours of its state."""
