"""Tokenised prompts as Arrow files, for later runs and other processes.

A file appears by a single rename, so it is there whole or not at all. Its name is the digest of all that went into it
and the checksum of its bytes; one that is damaged is deleted and made anew. Columns are memory-mapped.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import BaseFileLock, FileLock, Timeout

from iitkit.causal import Text
from iitkit.data.prompts import Prompts
from iitkit.data.ragged import Ragged, Strings
from iitkit.data.tokens import character_spans, check_fast, tokenise
from iitkit.data.wording import Wording
from iitkit.folders import cache_folder

log = logging.getLogger("iitkit")

FORMAT = 1
"""Raised when the same prompts would get other tokens or spans, or the columns change."""

STALE = 3600
"""Seconds after which a temporary file is nobody's: a killed process left it."""


class PromptCache:
    """Tokenised prompts of earlier runs.

    Args:
        folder: where the files are; ``prompts`` in iitkit's cache unless said.
        limit: bytes that all files together may take; the longest unused go first.
        least: fewer prompts than these are tokenised anew each time.
    """

    def __init__(self, folder: Path | str | None = None, limit: int = 4 * 2**30, least: int = 2000) -> None:
        self.folder = cache_folder() / "prompts" if folder is None else Path(folder).expanduser()
        self.limit, self.least = limit, least

    def prompts(self, tokenizer: Any, texts: Sequence[Text], wording: Wording) -> Prompts:
        """Return the tokenised prompts, from a file where there is one; make it otherwise.

        Args:
            tokenizer: a fast tokenizer.
            texts: rendered prompts.
            wording: what stands around each.

        Raises:
            IITKitError: see :func:`tokenise`.
        """
        if len(texts) < self.least:
            return tokenise(tokenizer, texts, wording)
        check_fast(tokenizer)
        key = digest(tokenizer, texts, wording)
        found = self._find(key)
        if found is not None:
            return found
        with self._locked(key):
            found = self._find(key)  # another process was faster
            if found is None:
                made = tokenise(tokenizer, texts, wording)
                found = self._keep(key, made) or made
        return found

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Let one process at a time tokenise the same prompts: the others then find them."""
        lock: BaseFileLock | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / f".lock-{key[0]}")  # few files for many keys: they are never deleted
            try:
                lock.acquire(timeout=1)
            except Timeout:
                log.info("data: waiting for another process that tokenises prompts")
                lock.acquire()
        except (OSError, NotImplementedError) as error:  # a folder that cannot be written, or a disk without locks
            log.debug("%s: %s", self.folder, error)
            lock = None
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def _find(self, key: str) -> Prompts | None:
        for file in sorted(self.folder.glob(f"{key}-*.arrow")):
            try:
                found = _read(file)
            except FileNotFoundError:  # another process deleted it
                continue
            except Exception as error:  # whatever pyarrow makes of damaged bytes
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
                log.warning("data: the kept prompts %s are damaged (%s): they are made anew", file.name, why)
                with suppress(OSError):
                    file.unlink(missing_ok=True)
                continue
            with suppress(OSError):
                os.utime(file)  # the longest unused go first
            return found
        return None

    def _keep(self, key: str, prompts: Prompts) -> Prompts | None:
        """Write a file; return the prompts as memory-mapped from it, None where it cannot be written."""
        scratch = self.folder / f".{key}-{os.getpid()}-{os.urandom(4).hex()}.tmp"
        try:
            self._sweep(key)
            try:
                checksum = _write(scratch, prompts)
                size = scratch.stat().st_size
                if size > self.limit:
                    return None
                self._make_room(size)
                file = self.folder / f"{key}-{checksum:08x}.arrow"
                scratch.replace(file)
            finally:
                with suppress(OSError):
                    scratch.unlink(missing_ok=True)
            return _read(file)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            why = "the disk is full" if full else error.strerror or str(error)
            log.warning("data: tokenised prompts are not kept in %s: %s", self.folder, why)
            return None

    def _sweep(self, key: str) -> None:
        """Delete what killed processes left: of this key at once, since its lock is ours; of others after a while."""
        for file in self.folder.glob(".*.tmp"):
            with suppress(OSError):
                if file.name.startswith(f".{key}-") or time.time() - file.stat().st_mtime > STALE:
                    file.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        files = []
        for file in self.folder.glob("*.arrow"):
            with suppress(OSError):  # another process was faster
                stat = file.stat()
                files.append((stat.st_mtime_ns, stat.st_size, file))
        total = sum(bytes_ for _, bytes_, _ in files) + size
        for _, bytes_, file in sorted(files):
            if total <= self.limit:
                return
            with suppress(OSError):
                file.unlink(missing_ok=True)
                total -= bytes_


def digest(tokenizer: Any, texts: Sequence[Text], wording: Wording) -> str:
    """Return 32 hex digits that stand for all that decides on the tokens and spans of prompts."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for passing in ("truncation", "padding"):  # set and unset by every call
        backend.pop(passing, None)
    slots, spans = character_spans(texts)
    raw = Strings.of([text.text for text in texts])
    about = {
        "format": FORMAT,
        "libraries": [version(name) for name in ("tokenizers", "transformers")],
        "class": tokenizer.__class__.__name__,
        "tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "split_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
        "wording": asdict(wording),
        "frame": wording.frame(tokenizer),  # of a chat: the template's text, which may hold today's date
        "template": tokenizer.chat_template if wording.chat else None,
        "slots": slots,
        "backend": backend,
    }
    found = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for array in (raw.flat, raw.starts, spans):
        found.update(str(array.shape).encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:32]


def _write(file: Path, prompts: Prompts) -> int:
    """Write prompts as one Arrow record batch, a row each; return the checksum of the file."""
    import pyarrow as pa  # type: ignore[import-untyped]

    texts = prompts.texts
    assert isinstance(texts, Strings)
    n, slots = len(prompts), len(prompts.slots)
    flat = pa.py_buffer(np.ascontiguousarray(texts.flat))
    columns = {
        "text": pa.Array.from_buffers(pa.large_string(), n, [None, pa.py_buffer(texts.starts), flat]),
        "ids": pa.LargeListArray.from_arrays(prompts.ids.starts, pa.array(prompts.ids.flat, pa.int32())),
    }
    if slots:
        spans = pa.array(np.ascontiguousarray(prompts.spans, dtype=np.int32).ravel(), pa.int32())
        columns["spans"] = pa.FixedSizeListArray.from_arrays(spans, 2 * slots)
    batch = pa.record_batch(list(columns.values()), names=list(columns))
    batch = batch.replace_schema_metadata({"slots": json.dumps(prompts.slots), "format": str(FORMAT)})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pa.memory_map(str(file)) as source:
        return zlib.crc32(source.read_buffer())


def _read(file: Path) -> Prompts:
    """Return prompts whose columns are memory-mapped from a file.

    Raises:
        OSError, ValueError: a file that is damaged.
    """
    import pyarrow as pa

    source = pa.memory_map(str(file))
    if f"{zlib.crc32(source.read_buffer()):08x}" != file.stem.rpartition("-")[2]:
        raise ValueError("its checksum differs")
    batch = pa.ipc.open_file(source).get_batch(0)
    texts, ids = batch.column("text"), batch.column("ids")
    _, starts, flat = texts.buffers()
    slots = json.loads(batch.schema.metadata[b"slots"])
    spans = batch.column("spans").values.to_numpy() if slots else np.zeros(0, np.int32)
    return Prompts(
        Ragged(ids.values.to_numpy(), ids.offsets.to_numpy()),
        slots,
        spans.reshape(len(batch), len(slots), 2),
        Strings(
            np.frombuffer(flat, np.uint8) if flat is not None and flat.size else np.zeros(0, np.uint8),
            np.frombuffer(starts, np.int64)[: len(batch) + 1],
        ),
    )
