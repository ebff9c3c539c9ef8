"""Edits whose target is learned: affine maps of the activation (ReFT) and of the module's input (LoRA)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iitkit.errors import IITKitError
from iitkit.interventions.charts import Chart
from iitkit.interventions.checks import number, one_of, whole
from iitkit.interventions.draws import first_step, seeded, uniform
from iitkit.interventions.edits import Edit, sized
from iitkit.interventions.site import SiteInfo

Activation = Literal["linear", "relu", "gelu", "silu", "tanh", "sigmoid"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class Affine(Edit):
    """Set the coordinates to ``act(W h + c)``, or add that to them; W [k, d] and c [k] are learned.

    Args:
        size: number of coordinates k.
        site: the site's sizes.
        activation: act.
        constant: leave W out: c alone, from 0.
        add: add instead of set.
    """

    def __init__(
        self,
        size: int | None = None,
        site: SiteInfo | None = None,
        activation: Activation = "linear",
        constant: bool = False,
        add: bool = False,
    ) -> None:
        one_of("activation", activation, ACTIVATIONS)
        super().__init__(size, site, activation=activation, constant=constant, add=add)
        k = sized(size, "Affine")
        self.activation, self.add = activation, add
        self.weight: nn.Parameter | None = None
        bound = 0.0
        generator = None if site is None else site.generator
        if not constant:
            bound = sized(None if site is None else site.width, "Affine") ** -0.5
            assert site is not None
            # as torch's linear layers begin
            self.weight = nn.Parameter(uniform((k, site.width), bound, generator))
        self.bias = nn.Parameter(uniform((k,), bound, generator) if bound else torch.zeros(k, dtype=torch.float32))

    def delta(self, chart: Chart, base: Tensor, source: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Return ``act(W h + c)``, less the base's coordinates where it sets them."""
        found = self.bias.to(base.dtype).expand(*base.shape[:-1], -1)
        if self.weight is not None:
            found = found + base @ self.weight.to(base.dtype).T
        found = ACTIVATIONS[self.activation](found)
        return found if self.add else found - chart.encode(base)


class LowRankUpdate(Edit):
    """Add ``α/r · (x A) B`` to the coordinates, x the module's input: A [input width, r] and B [r, k] are learned.

    B starts at 0, so that nothing changes at first. Dropout of x is drawn anew in every training step, by a counter
    that a checkpoint keeps; it is off in evaluation. With gradient checkpointing, keep the step inside ``held()``, or
    the recomputation draws again.

    Args:
        size: number of coordinates k.
        site: the site's sizes; it needs the module's input width.
        rank: r.
        alpha: α.
        dropout: share of x's entries that a training step leaves out, in [0, 1).
        seed: of the dropout.
    """

    needs_input = True

    def __init__(
        self,
        size: int | None = None,
        site: SiteInfo | None = None,
        rank: int = 4,
        alpha: float = 8.0,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        whole("rank", rank, 1)
        if dropout != 0:
            number("dropout", dropout, above=0, below=1)
        super().__init__(size, site, rank=rank, alpha=number("alpha", alpha), dropout=dropout, seed=seed)
        if site is not None and site.stored is not None and self.input_width is None:
            stored = site.stored["edit.A"]
            if stored.dim() != 2:
                raise IITKitError(f"A of shape {tuple(stored.shape)}: expected [input width, rank]")
            self.input_width = stored.shape[0]
        if site is None or self.input_width is None:
            raise IITKitError("LoRA reads the module's input, and the site has none: place it at a module's output")
        self.scale, self.dropout, self.seed = alpha / rank, dropout, whole("seed", seed, 0)
        self.A = nn.Parameter(uniform((self.input_width, rank), self.input_width**-0.5, site.generator))
        self.B = nn.Parameter(torch.zeros(rank, sized(size, "LoRA"), dtype=torch.float32))
        self.draws: Tensor | None
        self.register_buffer("draws", first_step(site.generator) if dropout else None)

    def _step(self) -> int:
        """Return the number of this step's draw."""
        assert self.draws is not None
        number = int(self.draws)
        self.draws = self.draws + 1
        return number

    def freeze(self, tensors: dict[str, Tensor] | None = None) -> None:
        """Drop the counter of the dropout: a release has none."""
        self.draws = None

    def delta(self, chart: Chart, base: Tensor, source: Tensor | None, inputs: Tensor | None) -> Tensor:
        """Return ``α/r · (x A) B``."""
        assert inputs is not None
        if self.draws is not None and self.training:
            generator = seeded(self.seed, self.once("step", self._step, graph=False))
            kept = torch.rand(inputs.shape, generator=generator, dtype=torch.float32) >= self.dropout
            inputs = inputs * kept.to(inputs) / (1 - self.dropout)
        return self.scale * ((inputs @ self.A.to(inputs.dtype)) @ self.B.to(inputs.dtype))
