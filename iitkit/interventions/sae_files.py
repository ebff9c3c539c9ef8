"""Weights of sparse autoencoders from the files that the field shares: SAELens folders and Gemma Scope archives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iitkit.errors import IITKitError, choices
from iitkit.interventions.files import read_tensors

ARCHITECTURES = ("standard", "jumprelu", "topk")
_PLAIN: dict[str, tuple[Any, ...]] = {
    "normalize_activations": ("none", None, False),
    "reshape_activations": ("none", None, False),
    "finetuning_scaling_factor": (False, None),
    "rescale_acts_by_decoder_norm": (False, None),
}
"""Settings of SAELens that change the maths, and the values with which they do not."""


@dataclass(frozen=True)
class Weights:
    """A sparse autoencoder's weights: d entries, k features.

    Args:
        W_enc: [d, k].
        b_enc: [k].
        W_dec: [k, d].
        centre: what is subtracted from the activation first, [d]; 0 where nothing is.
        threshold: of a JumpReLU, [k]; 0 for the others.
        top: how many features a TopK leaves; k, all, for the others.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    centre: Tensor
    threshold: Tensor
    top: int

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it as tensors, by name: what tells the kinds apart must not go missing."""
        return {name: torch.as_tensor(value) for name, value in vars(self).items()}


def read_sae(name: str, width: int) -> Weights:
    """Read a sparse autoencoder.

    Args:
        name: ``….safetensors`` of SAELens, with its ``cfg.json`` beside it, or ``….npz`` of Gemma Scope.
        width: what the activation's size must be.

    Raises:
        IITKitError: a file that lacks a tensor, is of another width, or is of a kind that is not known here.
    """
    file = Path(name)
    tensors = read_tensors(file)
    config: Mapping[str, Any] = (
        {"architecture": "jumprelu", "apply_b_dec_to_input": False} if file.suffix == ".npz" else _config(file)
    )
    architecture, top = _architecture(config, file)
    wanted = ["W_enc", "b_enc", "W_dec", "b_dec"] + ["threshold"] * (architecture == "jumprelu")
    if missing := [key for key in wanted if key not in tensors]:
        raise IITKitError(f"{file} has no tensor {missing[0]!r}: it holds {choices(sorted(tensors))}")
    W_enc, b_enc, W_dec, b_dec, *rest = (
        tensors[key].to(torch.promote_types(tensors[key].dtype, torch.float32)).contiguous() for key in wanted
    )
    if W_enc.dim() != 2 or W_enc.shape[0] != width:
        raise IITKitError(f"{file} is for activations of width {W_enc.shape[0]}, the site's is {width}")
    k = W_enc.shape[1]
    for key, tensor, shape in zip(
        wanted[1:], [b_enc, W_dec, b_dec, *rest], [(k,), (k, width), (width,), (k,)], strict=False
    ):
        if tuple(tensor.shape) != shape:
            raise IITKitError(f"{file}: {key} has shape {tuple(tensor.shape)}, expected {shape}")
    if top is not None and not 1 <= top <= k:
        raise IITKitError(f"{file}: k is {top}: expected 1 to its {k} features")
    centre = b_dec if config.get("apply_b_dec_to_input", True) else torch.zeros_like(b_dec)
    return Weights(W_enc, b_enc, W_dec, centre, rest[0] if rest else torch.zeros_like(b_enc), top or k)


def _config(file: Path) -> Mapping[str, Any]:
    beside = file.with_name("cfg.json")
    try:
        config = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IITKitError(f"{file} needs SAELens' cfg.json beside it, which says what kind it is") from None
    except (OSError, ValueError) as error:
        raise IITKitError(f"{beside} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise IITKitError(f"{beside} is not SAELens' configuration: expected names with values")
    for key, plain in _PLAIN.items():
        if config.get(key) not in plain:
            raise IITKitError(f"{beside}: {key} {config[key]!r} is not supported: expected {plain[0]!r}")
    return config


def _architecture(config: Mapping[str, Any], file: Path) -> tuple[str, int | None]:
    """Return the architecture, and the number of features that a TopK leaves."""
    given = config.get("architecture", "standard")
    if given not in ARCHITECTURES:
        raise IITKitError(f"{file}: architecture {given!r} is not supported: expected {choices(ARCHITECTURES)}")
    # older files say topk as the activation function of a standard one
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if activation not in ("relu", "topk"):
        raise IITKitError(f"{file}: activation {activation!r} is not supported: expected relu or topk")
    if given != "topk" and activation != "topk":
        return str(given), None
    kwargs = config.get("activation_fn_kwargs")
    top = config.get("k", kwargs.get("k") if isinstance(kwargs, dict) else None)
    if type(top) is not int:
        raise IITKitError(f"{file}: its cfg.json gives no k for topk")
    return "topk", top
