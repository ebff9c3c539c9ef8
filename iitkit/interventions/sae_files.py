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
GEMMA_SCOPE: Mapping[str, Any] = {"architecture": "jumprelu", "apply_b_dec_to_input": False}
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

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], width: int, who: str) -> Weights:
        """Return the weights that :meth:`tensors` gave, or that a file holds.

        Args:
            tensors: by name.
            width: what the activation's size must be.
            who: whose they are, for messages.

        Raises:
            IITKitError: another width, shapes that do not go together, or no such number of features for a TopK.
        """
        encoder, top = tensors["W_enc"], tensors["top"]
        if encoder.dim() != 2:
            raise IITKitError(f"{who}: W_enc has shape {tuple(encoder.shape)}, expected {width} × features")
        if encoder.shape[0] != width:
            raise IITKitError(f"{who} is for activations of width {encoder.shape[0]}, the site's is {width}")
        k = encoder.shape[1]
        shapes = {"b_enc": (k,), "W_dec": (k, width), "centre": (width,), "threshold": (k,)}
        for name, shape in shapes.items():
            if tuple(tensors[name].shape) != shape:
                said = "b_dec" if name == "centre" else name
                raise IITKitError(f"{who}: {said} has shape {tuple(tensors[name].shape)}, expected {shape}")
        if top.dim() or top.is_floating_point() or not 1 <= int(top) <= k:
            raise IITKitError(f"{who}: k is {top.tolist()}: expected 1 to its {k} features")
        found = {name: tensors[name] for name in ("W_enc", *shapes)}
        wide = {name: x.to(torch.promote_types(x.dtype, torch.float32)).contiguous() for name, x in found.items()}
        return Weights(**wide, top=int(top))


def read_sae(name: str, width: int) -> Weights:
    """Read a sparse autoencoder.

    Args:
        name: ``….safetensors`` of SAELens, with its ``cfg.json`` beside it; ``….npz`` of Gemma Scope, or
            ``….safetensors`` of Gemma Scope 2.
        width: what the activation's size must be.

    Raises:
        IITKitError: a file that lacks a tensor, is of another width, or is of a kind that is not known here.
    """
    file = Path(name)
    tensors = read_tensors(file)
    if "w_enc" in tensors:  # as Gemma Scope 2 spells them
        tensors = {{"w_enc": "W_enc", "w_dec": "W_dec"}.get(key, key): value for key, value in tensors.items()}
        config = GEMMA_SCOPE
    else:
        config = GEMMA_SCOPE if file.suffix == ".npz" else _config(file)
    if "affine_skip_connection" in tensors:
        raise IITKitError(f"{file} is a transcoder (it has affine_skip_connection), no sparse autoencoder of one site")
    architecture, top = _architecture(config, file)
    wanted = ["W_enc", "b_enc", "W_dec", "b_dec"] + ["threshold"] * (architecture == "jumprelu")
    if missing := [key for key in wanted if key not in tensors]:
        raise IITKitError(f"{file} has no tensor {missing[0]!r}: it holds {choices(sorted(tensors))}")
    bias, nowhere = tensors["b_enc"], torch.zeros(width, dtype=torch.float32)
    found = {
        **{key: tensors[key] for key in ("W_enc", "b_enc", "W_dec")},
        "centre": tensors["b_dec"] if config.get("apply_b_dec_to_input", True) else nowhere,
        "threshold": tensors["threshold"] if architecture == "jumprelu" else torch.zeros_like(bias),
        "top": torch.tensor(bias.numel() if top is None else top),
    }
    return Weights.from_tensors(found, width, str(file))


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
