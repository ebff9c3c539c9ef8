"""The features of a sparse autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iitkit.interventions.charts import Chart
from iitkit.interventions.sae_files import Weights, read_sae
from iitkit.interventions.site import SiteInfo
from iitkit.interventions.spaces import Space


@dataclass(frozen=True)
class SAEChart(Chart):
    """Features ``act((x − c) W_enc + b_enc)``; a change of features is decoded by W_dec.

    An edit moves the activation by the decoded change, so what the autoencoder does not reconstruct stays in it.
    """

    weights: Weights

    def encode(self, x: Tensor) -> Tensor:
        """Return the features, [*, k]."""
        w = self.weights
        before = (x - w.centre.to(x.dtype)) @ w.W_enc.to(x.dtype) + w.b_enc.to(x.dtype)
        active = torch.relu(before) * (before > w.threshold.to(x.dtype))
        if w.top == active.shape[-1]:
            return active
        values, which = active.topk(w.top, dim=-1)
        return torch.zeros_like(active).scatter(-1, which, values)

    def decode(self, delta: Tensor) -> Tensor:
        """Return ``delta W_dec``."""
        return delta @ self.weights.W_dec.to(delta.dtype)

    def change(self, step: Tensor, base: Tensor) -> Tensor:
        """Return ``encode(base + step) − encode(base)``."""
        return self.encode(base + step) - self.encode(base)


class SAE(Space):
    """The features of a trained sparse autoencoder, whose reconstruction error is left in place. Nothing trains.

    ReLU (Bricken et al., 2023), JumpReLU (Rajamanoharan et al., 2024, https://arxiv.org/abs/2407.14435) and TopK (Gao
    et al., 2024, https://arxiv.org/abs/2406.04093).

    Args:
        site: the site's sizes.
        file: SAELens' ``….safetensors`` with its ``cfg.json`` beside it, Gemma Scope's ``params.npz``, or Gemma Scope
            2's ``params.safetensors``.

    Raises:
        IITKitError: a file that cannot be used, or an autoencoder for activations of another width.
    """

    affine = False

    def __init__(self, site: SiteInfo, file: str) -> None:
        stored = site.stored
        if stored is None:
            weights = read_sae(file, site.width)
        else:
            own = {key.removeprefix("space."): value for key, value in stored.items()}
            weights = Weights.from_tensors(own, site.width, "the stored autoencoder")
        super().__init__(site.width, weights.W_enc.shape[1], file=file)
        self.W_enc: Tensor
        self.b_enc: Tensor
        self.W_dec: Tensor
        self.centre: Tensor
        self.threshold: Tensor
        for name, tensor in weights.tensors().items():
            self.register_buffer(name, tensor.clone())
        self._top = weights.top

    def chart(self) -> SAEChart:
        """Return the encoder and the decoder."""
        return SAEChart(Weights(self.W_enc, self.b_enc, self.W_dec, self.centre, self.threshold, self._top))
