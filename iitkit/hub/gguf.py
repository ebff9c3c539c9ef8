"""Control vectors of llama.cpp: GGUF files of architecture ``controlvector`` with tensors ``direction.N``.

llama.cpp adds ``direction.N`` to what leaves block N, counted from 0 as ours are; it has none for block 0, whose number
its format keeps for the embeddings. So ``direction.N`` is ``block_output`` of layer N here, N ≥ 1, at all tokens.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError
from iitkit.hub.affine import constant_of
from iitkit.hub.artifact import Artifact
from iitkit.interventions import Addition, Intervention
from iitkit.interventions.checks import number
from iitkit.models.anatomy import locate
from iitkit.models.gguf import require
from iitkit.models.interchange import Alignment
from iitkit.models.sites import Site
from iitkit.positions import Position

ARCHITECTURE = "controlvector"
_DIRECTION = re.compile(r"direction\.(\d+)")


def to_gguf(
    file: str | os.PathLike[str],
    found: Artifact | Alignment,
    *,
    strength: float = 1.0,
    model_hint: str | None = None,
) -> Path:
    """Write added vectors as a control vector for llama.cpp (``--control-vector FILE``).

    Args:
        file: the .gguf file; one that is there is replaced.
        found: an artifact, or placement name → (site, intervention). Each adds a constant vector to a layer's
            ``block_output`` at all tokens; several at one layer are summed.
        strength: what the vectors are multiplied by.
        model_hint: what the file says of the model, which llama.cpp does not check; an artifact's architecture unless
            said.

    Returns:
        The file.

    Raises:
        IITKitError: an edit that is no addition of a constant, one elsewhere or at some tokens only, or at layer 0;
            numbers that fp32 does not hold.
    """
    require("gguf")
    number("strength", strength)
    alignment = found.alignment() if isinstance(found, Artifact) else found
    if not alignment:
        raise IITKitError("there is no intervention to export")
    vectors: dict[int, Tensor] = {}
    for name, (site, edit) in alignment.items():
        layer = _layer(name, site)
        vector = constant_of(name, edit)
        if layer in vectors and len(vectors[layer]) != len(vector):
            raise IITKitError(f"{name}: it has width {len(vector)}, another at layer {layer} {len(vectors[layer])}")
        vectors[layer] = vectors.get(layer, torch.zeros_like(vector)) + strength * vector
        if not vectors[layer].float().isfinite().all():
            raise IITKitError(f"{name}: times strength {strength:g} it is more than fp32 holds")
    hint = model_hint if model_hint is not None else _hint(found)
    return _write(Path(file).expanduser(), {layer: vectors[layer].float() for layer in sorted(vectors)}, hint)


def from_gguf(
    file: Path, model: nn.Module, *, position: Position | None = None
) -> dict[str, tuple[Site, Intervention]]:
    """Return additions of a control vector's directions.

    Raises:
        IITKitError: a file that cannot be read, is no control vector, or does not fit the model.
    """
    found: dict[str, tuple[Site, Intervention]] = {}
    for layer, vector in read_gguf(file).items():
        site = Site(layer, "block_output", "all" if position is None else position)
        location = locate(model, site, f"{file}: direction.{layer}")
        if location.width != len(vector):
            raise IITKitError(f"{file}: direction.{layer} has {len(vector)} numbers, {location.label} {location.width}")
        found[f"layer_{layer}"] = (site, Addition.of(vector))
    return found


def read_gguf(file: Path) -> dict[int, Tensor]:
    """Return a control vector's directions by layer, [width], fp32.

    Raises:
        IITKitError: a file that cannot be read or is no control vector.
    """
    require("gguf")
    import gguf

    try:
        reader = gguf.GGUFReader(file)
        field = reader.get_field("general.architecture")
        architecture = None if field is None else field.contents()
        tensors = [(tensor.name, torch.from_numpy(tensor.data.copy())) for tensor in reader.tensors]
    except Exception as error:  # gguf raises whatever a damaged file brings it to
        raise IITKitError(f"{file} cannot be read as GGUF: {' '.join(str(error).split())[:160]}") from error
    if architecture != ARCHITECTURE:
        raise IITKitError(f"{file} has architecture {architecture!r}: expected {ARCHITECTURE!r}, a control vector")
    found: dict[int, Tensor] = {}
    for name, tensor in tensors:
        match = _DIRECTION.fullmatch(name)
        if match is None or not int(match[1]) or tensor.dtype != torch.float32 or tensor.dim() != 1:
            raise IITKitError(f"{file}: tensor {name!r} of {tensor.dtype} is no direction.N with N ≥ 1, in fp32")
        if int(match[1]) in found or not tensor.isfinite().all():
            what = "is there twice" if int(match[1]) in found else "holds other things than finite numbers"
            raise IITKitError(f"{file}: direction.{int(match[1])} {what}")
        found[int(match[1])] = tensor
    if not found:
        raise IITKitError(f"{file} holds no direction")
    return {layer: found[layer] for layer in sorted(found)}


def _layer(name: str, site: Site) -> int:
    if site.module is not None or site.component != "block_output" or site.layer is None:
        raise IITKitError(
            f"{name}: it edits {site}: a control vector is added to block_output of a layer and nowhere else"
        )
    if isinstance(site.position, Tensor) or site.position != "all":
        raise IITKitError(
            f"{name}: it edits position {site.position!r}: a control vector is added at all tokens. If that is what "
            "you want, place it at 'all'"
        )
    if site.layer < 1:
        raise IITKitError(
            f"{name}: llama.cpp's format has no direction for block {site.layer}: its numbers begin with 1, which is "
            "our layer 1"
        )
    return site.layer


def _hint(found: Artifact | Alignment) -> str:
    return str(found.base.get("architecture", "")) if isinstance(found, Artifact) else ""


def _write(file: Path, vectors: Mapping[int, Tensor], hint: str) -> Path:
    import gguf

    scratch: Path | None = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
        os.close(handle)
        scratch = Path(name)
        writer: Any = gguf.GGUFWriter(scratch, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", hint)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
        for layer, vector in vectors.items():
            writer.add_tensor(f"direction.{layer}", vector.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        scratch.chmod(0o644)
        scratch.replace(file)
    except OSError as error:
        raise IITKitError(f"cannot write {file}: {error.strerror or error}") from error
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)
    return file
