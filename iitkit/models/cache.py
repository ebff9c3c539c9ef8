"""The folder of converted bases, and the digest that says which weights a file holds."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from iitkit.errors import IITKitError, choices
from iitkit.folders import cache_folder as cache_folder
from iitkit.models.load_errors import disk_full

_WHOLE = 64 * 2**20  # files up to this many bytes are hashed whole
_HEAD, _CHUNK, _CHUNKS = 2**20, 64 * 2**10, 64


def cached_folder(name: str, base: str, make: Callable[[Path], Path]) -> Path:
    """Return the folder ``bases/<name>`` of the cache, making it if it is not there.

    A folder appears by a single rename, so it is there whole or not at all, and a file lock lets one process make it
    while the others wait.

    Args:
        name: Name of the folder; says which version of the weights it holds.
        base: What the user asked for, for messages.
        make: Gets an empty scratch folder and returns a folder in it that holds the finished model.

    Returns:
        A folder in Hugging Face format.

    Raises:
        IITKitError: If making or writing it fails; then nothing half-written stays behind.
    """
    target = cache_folder() / "bases" / name
    if _complete(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{name}.lock")):
            if _complete(target):  # another process was faster
                return target
            for stale in target.parent.glob(f".{name}.*.tmp"):  # left by a killed process: we hold the lock
                shutil.rmtree(stale, ignore_errors=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=target.parent))
            try:
                made = make(scratch)
                shutil.rmtree(target, ignore_errors=True)  # there but incomplete: somebody deleted files in it
                made.replace(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except IITKitError:
        raise
    except Exception as error:
        if disk_full(error):
            raise IITKitError(
                f"{base}: no space left on the disk of {target.parent}; nothing was kept. "
                "Free some, or set IITKIT_CACHE to a folder on a larger disk."
            ) from error
        if isinstance(error, OSError):
            raise IITKitError(
                f"{base}: the cache {target.parent} cannot be written: {error}. Set IITKIT_CACHE to a folder that can."
            ) from error
        raise
    return target


def _complete(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))


def weight_files(base: str, folder: Path) -> list[Path]:
    """Return the safetensors files of a model's folder.

    Args:
        base: What the user asked for, for messages.
        folder: A folder in Hugging Face format.

    Returns:
        The file, or the shards in the order of their names.

    Raises:
        IITKitError: If the folder has no config, no weights, not all shards, or only pickled weights.
    """
    if not (folder / "config.json").is_file():
        raise IITKitError(f"base {base!r}: the folder has no config.json. Expected one in Hugging Face format.")
    if (single := folder / "model.safetensors").is_file():
        return [single]
    names = sorted(file.name for file in folder.iterdir())
    if "model.safetensors.index.json" in names:
        index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
        shards = sorted(set(index["weight_map"].values()))
        if lost := sorted(set(shards) - set(names)):
            raise IITKitError(f"base {base!r}: the folder lacks {choices(lost, 3)}, which its index names.")
        return [folder / shard for shard in shards]
    if pickles := [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]:
        raise IITKitError(
            f"base {base!r} has its weights only as {choices(pickles, 3)}, a pickle, which can run code: expected "
            "model.safetensors. Convert a copy that you trust with transformers' save_pretrained."
        )
    raise IITKitError(f"base {base!r}: expected model.safetensors in the folder, which has {choices(names, 6)}.")


def digest(files: Sequence[Path]) -> str:
    """Return 16 hex digits that stand for the contents of weight files.

    One file of at most 64 MB gives the head of its sha256. Of a larger file the size, the first MB (where safetensors
    and GGUF keep their headers) and 64 evenly spaced chunks of 64 kB are hashed, so that any size takes milliseconds:
    another model or a retrained one is always noticed, a change of a few bytes in a large file is not. Several files
    give the sha256 of their digests in the order given; names do not count.

    Args:
        files: The files, shards in their order.

    Returns:
        The first 16 hex digits of a sha256.
    """
    each = [_digest(file) for file in files]
    return (each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest())[:16]


def _digest(file: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _WHOLE:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        sampled = hashlib.sha256(f"{size}:".encode() + stream.read(_HEAD))
        for i in range(_CHUNKS):
            stream.seek(i * (size - _CHUNK) // (_CHUNKS - 1))
            sampled.update(stream.read(_CHUNK))
    return sampled.hexdigest()
