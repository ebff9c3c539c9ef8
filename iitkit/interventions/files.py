"""Reading tensors from a file that a user names: safetensors or npz, never pickle."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from iitkit.errors import IITKitError, choices
from iitkit.interventions.orthonormal import check_orthonormal


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors`` or ``.npz`` file.

    Raises:
        IITKitError: a file that is not there, is of another kind, or cannot be read.
    """
    if not file.is_file():
        raise IITKitError(f"there is no file {file}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (SafetensorError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise IITKitError(f"{file} cannot be read: {error}") from error
    raise IITKitError(f"{file}: expected a .safetensors or an .npz file")


def read_basis(name: str, shape: tuple[int, int]) -> Tensor:
    """Return the orthonormal basis that a safetensors file holds, fp32 or wider.

    Args:
        name: ``file.safetensors``, or ``file.safetensors#tensor.name`` where it holds several.
        shape: what it must have, [width, rank].

    Raises:
        IITKitError: a file without it, or a basis of another shape or that is not orthonormal.
    """
    path, _, wanted = name.partition("#")
    tensors = read_tensors(Path(path))
    found = [key for key, tensor in tensors.items() if key == wanted or (not wanted and tensor.dim() == 2)]
    if len(found) != 1:
        asked = f"no tensor {wanted!r}" if wanted else f"{len(found)} matrices: name one, {path}#NAME"
        raise IITKitError(f"{path} has {asked}. It holds {choices(sorted(tensors))}")
    basis = tensors[found[0]]
    try:
        return check_orthonormal(basis, shape).contiguous()
    except IITKitError as error:
        raise IITKitError(f"{name}: {error}") from error
