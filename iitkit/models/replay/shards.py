"""Files of kept activations: safetensors shards that later runs, and other processes, find again.

A shard appears by a single rename, so it is there whole or not at all. Its header says of which network and which
version it is; its checksum is compared before it is first used. One that is damaged is deleted and made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import BaseFileLock, FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger("iitkit")

SCHEMA = "1"
SHARE = 0.1
"""Share of the disk that the files of all networks together may take; the longest unused go first."""
SPARE = 2**30
"""Bytes of the disk that are left free."""


@dataclass(frozen=True)
class Part:
    """A group of items in a shard.

    Args:
        lo: first token of each text, [n].
        hi: one behind the last, [n].
        tensors: item → [tokens, …], the texts one behind the other.
    """

    lo: Tensor
    hi: Tensor
    tensors: Mapping[str, Tensor]

    @property
    def offset(self) -> Tensor:
        """Where each text begins, [n]."""
        lengths = self.hi - self.lo
        return lengths.cumsum(0) - lengths


@dataclass(frozen=True)
class Shard:
    """Activations of some texts.

    Args:
        prompts: the texts' digests.
        parts: groups of items.
        checksum: of its tensors, as its file says; None for one that has no file.
    """

    prompts: Sequence[bytes]
    parts: Sequence[Part]
    checksum: str | None = None

    @property
    def bytes(self) -> int:
        """Size of the activations."""
        return sum(x.numel() * x.element_size() for part in self.parts for x in part.tensors.values())


class ShardFolder:
    """The shards of one network in one precision.

    Args:
        root: folder of all networks' shards.
        key: what tells networks, precisions and versions apart.
    """

    def __init__(self, root: Path, key: Mapping[str, str]) -> None:
        self.root, self.key = root, {"schema": SCHEMA, **key}
        named = json.dumps(self.key, sort_keys=True)
        self.path = root / hashlib.sha256(named.encode()).hexdigest()[:16]
        self._named = named
        self._seen: set[str] = set()
        self._shards: dict[str, Shard] = {}
        self._checked: set[str] = set()
        self._where: dict[bytes, list[tuple[str, int]]] = {}  # digest → file, row

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process at a time compute what is missing: the others then find it."""
        lock: BaseFileLock | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            try:
                lock.acquire(timeout=1)
            except Timeout:
                log.info("replay: waiting for another process that fills the same store")
                lock.acquire()
        except (OSError, NotImplementedError) as error:  # a folder that cannot be written, or a disk without locks
            log.debug("%s: %s", self.path, error)
            lock = None
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    # --- finding ---

    def find(self, digest: bytes, items: Sequence[str], lo: int, hi: int) -> tuple[Part, int] | None:
        """Return a part of a shard, and the row in it, that holds these tokens of a text."""
        for name, row in self._where.get(digest, ()):
            for part in self._shards[name].parts if name in self._shards else ():
                holds = int(part.lo[row]) <= lo and int(part.hi[row]) >= hi
                if holds and all(item in part.tensors for item in items) and self._sound(name):
                    return part, row
        return None

    def scan(self) -> None:
        """Open shards that came since the last time."""
        for file in sorted(self.path.glob("*.safetensors")):
            if file.name not in self._seen:
                self._seen.add(file.name)
                shard = self._open(file)
                if shard is not None:
                    self._note(file.name, shard)

    def _note(self, name: str, shard: Shard) -> None:
        self._shards[name] = shard
        for row, digest in enumerate(shard.prompts):
            self._where.setdefault(digest, []).append((name, row))

    def _open(self, file: Path) -> Shard | None:
        """Return a shard, memory-mapped; None for one that is none of ours, which is left alone, or is damaged."""
        try:
            with safe_open(file, framework="pt") as stored:
                meta = stored.metadata() or {}
                if meta.get("key") != self._named:
                    return None
                prompts = [bytes(row) for row in stored.get_tensor("prompts").tolist()]
                parts = []
                for i, items in enumerate(json.loads(meta["parts"])):
                    lo, hi = (stored.get_tensor(f"{i}/{end}").long() for end in ("lo", "hi"))
                    part = Part(lo, hi, {item: stored.get_tensor(f"{i}/{item}") for item in items})
                    if len(lo) != len(prompts) or any(len(x) < int((hi - lo).sum()) for x in part.tensors.values()):
                        raise ValueError("texts and tensors do not fit")
                    parts.append(part)
            return Shard(prompts, parts, meta["crc32"])
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
            self._damaged(file, str(error))
            return None

    def _sound(self, name: str) -> bool:
        """Compare a shard's checksum before its first use; delete and forget one that differs."""
        if name not in self._checked:
            file, shard = self.path / name, self._shards[name]
            if shard.checksum != _checksum(_tensors(shard)):
                del self._shards[name]
                self._damaged(file, "its checksum differs")
                return False
            self._checked.add(name)
            with suppress(OSError):
                os.utime(file)  # the longest unused go first
        return True

    def _damaged(self, file: Path, why: str) -> None:
        log.warning("replay: %s is damaged (%s): it is made anew", file.name, why.splitlines()[0] if why else "?")
        with suppress(OSError):
            file.unlink(missing_ok=True)
        self._seen.discard(file.name)

    # --- writing ---

    def write(self, shard: Shard) -> Shard:
        """Write a shard; return it as memory-mapped from its file.

        Raises:
            OSError: a full disk, or a folder that cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        make_room(self.root, shard.bytes, keep=self.path)
        tensors = _tensors(shard)
        what = [sorted(part.tensors) for part in shard.parts]
        # the same texts, tokens and items have the same name: a file is only ever replaced by its like
        named = [json.dumps(what).encode(), *(tensors[key].numpy().tobytes() for key in sorted(tensors) if _index(key))]
        name = hashlib.sha256(b"".join(named)).hexdigest()[:24]
        meta = {"key": self._named, "parts": json.dumps(what), "crc32": _checksum(tensors)}
        scratch = self.path / f".{name}.{os.getpid()}.tmp"
        file = self.path / f"{name}.safetensors"
        try:
            save_file(tensors, scratch, metadata=meta)
            scratch.replace(file)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        finally:
            scratch.unlink(missing_ok=True)
        found = self._open(file)
        if found is None:
            raise OSError(f"{file} could not be read back")
        self._seen.add(file.name)
        self._checked.add(file.name)
        self._note(file.name, found)
        return found

    def clear(self) -> None:
        """Delete all shards."""
        self._shards, self._where, self._seen, self._checked = {}, {}, set(), set()
        for file in self.path.glob("*.safetensors"):
            file.unlink(missing_ok=True)


def _tensors(shard: Shard) -> dict[str, Tensor]:
    found = {"prompts": torch.tensor([list(digest) for digest in shard.prompts], dtype=torch.uint8)}
    for i, part in enumerate(shard.parts):
        found |= {f"{i}/lo": part.lo.int(), f"{i}/hi": part.hi.int()}
        found |= {f"{i}/{item}": x.cpu().contiguous() for item, x in part.tensors.items()}
    return found


def _index(key: str) -> bool:
    return key == "prompts" or key.endswith(("/lo", "/hi"))


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].contiguous().view(torch.uint8).numpy().data, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def make_room(root: Path, size: int, keep: Path | None = None) -> None:
    """Delete the longest unused shards until ``size`` more bytes keep within the share of the disk.

    Args:
        root: folder of all networks' shards.
        size: bytes that are to be written.
        keep: a network's folder whose shards stay.

    Raises:
        OSError: where that leaves no room on the disk.
    """
    files = []
    for file in root.glob("*/*.safetensors"):
        try:
            found = file.stat()
        except OSError:  # another process was faster
            continue
        files.append((found.st_mtime, found.st_size, file))
    for stale in root.glob("*/.*.tmp"):  # left by a killed process
        if time.time() - stale.stat().st_mtime > 3600:
            stale.unlink(missing_ok=True)
    disk = shutil.disk_usage(root)
    total, free = sum(f[1] for f in files), disk.free
    for _, bytes_, file in sorted(files):
        if total + size <= SHARE * disk.total and free - size >= SPARE:
            return
        if file.parent != keep:
            file.unlink(missing_ok=True)
            total, free = total - bytes_, free + bytes_
    if free - size < SPARE:
        raise OSError(f"{free / 2**30:.1f} GiB are free on the disk")
