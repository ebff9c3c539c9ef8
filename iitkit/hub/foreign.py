"""Reading what other tools wrote: tensors from safetensors, or from a pickle's tensors where the user trusts it."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from iitkit.errors import IITKitError, choices

LARGEST = 4 * 2**30
"""Bytes of the largest file that is read."""


def read_tensors(stem: Path, trust: bool) -> dict[str, Tensor]:
    """Return the tensors of ``stem.safetensors``, or of ``stem.bin`` where that is trusted.

    A ``.bin`` file is a pickle. It is read with ``weights_only=True``, which builds tensors and nothing else, and only
    if asked for.

    Args:
        stem: the file without its ending.
        trust: whether a ``.bin`` file may be read.

    Raises:
        IITKitError: neither file, a ``.bin`` that is not trusted, or one that cannot be read or holds other things.
    """
    safe, pickled = (stem.parent / f"{stem.name}{ending}" for ending in (".safetensors", ".bin"))
    if safe.is_file():
        return read_safetensors(safe)
    if not pickled.is_file():
        raise IITKitError(f"{stem.parent} has neither {safe.name} nor {pickled.name}, which its config speaks of")
    if not trust:
        raise IITKitError(
            f"{pickled} is a pickle, which may come from anyone: if you trust who wrote it, say --trust (trust=True); "
            "it is then read with weights_only=True"
        )
    _check_size(pickled)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols that torch.save does not write: what it reads is said below
            found = torch.load(pickled, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        first = " ".join(str(error).split())[:160]
        raise IITKitError(f"{pickled} cannot be read as tensors and nothing else: {first}") from error
    if not isinstance(found, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()
    ):
        raise IITKitError(f"{pickled} holds a {type(found).__name__}: expected names with tensors")
    return {key: value.detach() for key, value in found.items()}


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Return a safetensors file's tensors.

    Raises:
        IITKitError: a file that is too large or cannot be read.
    """
    _check_size(file)
    try:
        return load_safetensors(file.read_bytes())
    except (SafetensorError, OSError) as error:
        raise IITKitError(f"{file} cannot be read: {error}") from error


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON file's mapping.

    Raises:
        IITKitError: a file that is not there, cannot be read or holds something else.
    """
    _check_size(file)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise IITKitError(f"{file} cannot be read: {' '.join(str(error).split())[:160]}") from error
    if not isinstance(found, dict):
        raise IITKitError(f"{file} holds a {type(found).__name__}: expected a mapping")
    return found


def taken(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], who: str) -> Tensor:
    """Take a tensor out of several, in fp32.

    Raises:
        IITKitError: it is not there, has another shape or holds no finite real numbers.
    """
    if name not in tensors:
        raise IITKitError(f"{who}: there is no tensor {name!r}: it has {choices(sorted(tensors)) or 'none'}")
    found = tensors.pop(name)
    if tuple(found.shape) != shape:
        raise IITKitError(f"{who}: {name} has shape {tuple(found.shape)}: expected {shape}")
    if not found.is_floating_point() or not torch.isfinite(found).all():
        raise IITKitError(f"{who}: {name} holds other things than finite real numbers")
    return found.float().contiguous()


def _check_size(file: Path) -> None:
    if file.stat().st_size > LARGEST if file.is_file() else False:
        raise IITKitError(f"{file} has {file.stat().st_size} bytes, more than any of its kind: it is not read")
