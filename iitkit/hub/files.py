"""An artifact's files, read without trust: only those that it has, of sizes that it may have, and tensors alone."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from iitkit.errors import IITKitError, choices
from iitkit.hub.schema import CONFIG, METRICS, README, RUNNABLE, WEIGHTS, checked_config, strict_json

LARGEST = {CONFIG: 4 * 2**20, WEIGHTS: 4 * 2**30, METRICS: 2**20, README: 2**20}
"""Bytes of the largest files that are read; a sparse autoencoder's weights are the largest there are."""
NEEDED = (CONFIG, WEIGHTS)
HEADER = 100 * 2**20
"""Bytes of the largest header of a safetensors file."""


def check_names(names: list[str], where: str) -> None:
    """Check that nothing among an artifact's files can run code.

    Raises:
        IITKitError: a pickle or the like.
    """
    if found := sorted(name for name in names if name.endswith(RUNNABLE)):
        raise IITKitError(
            f"{where} holds {choices(found, 3)}, which can run code when it is loaded: an artifact has only JSON, "
            "safetensors and a README. Nothing was read; delete it if the rest is what you trust"
        )


def check_size(name: str, size: int, where: str) -> None:
    """Check that a file is no larger than any artifact's.

    Raises:
        IITKitError: it is.
    """
    if size > LARGEST[name]:
        raise IITKitError(f"{where} has {size} bytes, more than any artifact's {name}: it is not read")


def read_file(folder: Path, name: str) -> bytes | None:
    """Return a file of an artifact; None where it is not there.

    Raises:
        IITKitError: one that is too large, leads out of the folder, or cannot be read.
    """
    file = folder / name
    if file.is_symlink() and not _of_the_cache(file):
        raise IITKitError(f"{file} is a link to another place: expected a file. Copy it there if it is yours")
    if not file.is_file():
        return None
    try:
        check_size(name, file.stat().st_size, str(file))
        with file.open("rb") as stream:
            return stream.read(LARGEST[name] + 1)
    except OSError as error:
        raise IITKitError(f"{file} cannot be read: {error.strerror or error}") from error


def _of_the_cache(file: Path) -> bool:
    """Return whether a link is one of the Hub's own cache: from snapshots/… to the blobs beside it."""
    target = file.resolve()
    return any(
        parent.name == "snapshots" and target.parent == (parent.parent / "blobs").resolve() for parent in file.parents
    )


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, float | None], str | None]:
    """Return config, tensors, metrics and README of an artifact's folder.

    Raises:
        IITKitError: no artifact, or one that is damaged, hostile or of another iitkit.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    check_names(names, str(folder))
    files = {name: read_file(folder, name) for name in LARGEST}
    for name in NEEDED:
        if files[name] is None:
            raise IITKitError(f"{folder} is no artifact: it has no {name}. Give the folder that `iitkit fit` wrote")
    config = checked_config(_text(files[CONFIG], folder / CONFIG), str(folder / CONFIG))
    others = sorted(name for name in names if name.endswith(".safetensors") and name not in config["sha256"])
    if others:
        raise IITKitError(f"{folder} holds {choices(others, 3)}, which {CONFIG} has no digest of: delete it")
    weights = files[WEIGHTS]
    assert weights is not None
    if hashlib.sha256(weights).hexdigest() != config["sha256"][WEIGHTS]:
        raise IITKitError(f"{folder / WEIGHTS} is not the file that {CONFIG} describes: fetch the artifact again")
    tensors = read_tensors(weights, str(folder / WEIGHTS))
    metrics = {} if files[METRICS] is None else read_metrics(_text(files[METRICS], folder / METRICS), folder / METRICS)
    card = None if files[README] is None else _text(files[README], folder / README)
    return config, tensors, metrics, card


def _text(data: bytes | None, file: Path) -> str:
    try:
        return (data or b"").decode("utf-8")
    except UnicodeDecodeError as error:
        raise IITKitError(f"{file} is not text in UTF-8 (byte {error.start})") from error


def read_tensors(data: bytes, where: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        IITKitError: one that is cut short or claims more than it has, or a tensor that is not finite, or of floating
            point narrower than fp32.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(HEADER, len(data) - 8):
        raise IITKitError(f"{where} cannot be read: its header claims {length} bytes, the file has {len(data)}")
    header = strict_json(data[8 : 8 + length].decode("utf-8", "replace"), f"{where}: its header")
    claimed = _claimed(header)
    if claimed is not None and claimed != len(data) - 8 - length:
        raise IITKitError(
            f"{where} cannot be read: its header claims {claimed} bytes of tensors, the file has "
            f"{len(data) - 8 - length}: it is cut short or was changed"
        )
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        raise IITKitError(f"{where} cannot be read: {error}") from error
    for name, tensor in tensors.items():
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64)):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise IITKitError(f"{where}: tensor {name!r} is {kind}: expected float32 or float64")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise IITKitError(f"{where}: tensor {name!r} holds NaN or infinity")
    return tensors


def _claimed(header: Any) -> int | None:
    """Return the bytes that a header's tensors take; None where it is no header, which the reader says."""
    try:
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        return None
    return max(ends, default=0)


def _finite(rate: Any) -> bool:
    return type(rate) in (int, float) and -math.inf < rate < math.inf


def read_metrics(text: str, file: Path) -> dict[str, float | None]:
    """Return what the test measured, ``group/rate`` → number, None for a rate of no pairs.

    Raises:
        IITKitError: no mapping of groups to rates.
    """
    found = strict_json(text, str(file))
    fine = isinstance(found, dict) and all(
        isinstance(rates, dict) and all(rate is None or _finite(rate) for rate in rates.values())
        for rates in found.values()
    )
    if not fine:
        raise IITKitError(f"{file}: expected groups of rates, each a finite number or null")
    return {f"{group}/{key}" if group else key: rate for group, rates in found.items() for key, rate in rates.items()}


def write_metrics(metrics: Mapping[str, float | None]) -> str:
    """Return metrics as :func:`read_metrics` reads them, a group on each line."""
    groups: dict[str, dict[str, float | None]] = {}
    for name, value in metrics.items():
        group, _, key = name.rpartition("/")
        groups.setdefault(group, {})[key] = value
    lines = [
        f"{json.dumps(group)}:{json.dumps(rates, allow_nan=False, separators=(',', ':'))}"
        for group, rates in groups.items()
    ]
    return "{" + ",\n".join(lines) + "}\n"


def write_config(config: Mapping[str, Any]) -> str:
    """Return a config as JSON to be read by people too: what holds no other mapping or list stands on one line.

    Raises:
        ValueError: a number that JSON does not have.
        TypeError: a value that JSON does not have.
    """
    return _written(config, "") + "\n"


def _written(value: Any, indent: str) -> str:
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    if not any(isinstance(item, dict | list | tuple) for item in items):
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    if not isinstance(value, dict):
        return f"[{', '.join(_written(item, indent) for item in value)}]"
    inner = [f"{indent} {json.dumps(str(key))}: {_written(item, indent + ' ')}" for key, item in value.items()]
    return "{\n" + ",\n".join(inner) + f"\n{indent}}}"
