"""``.gguf`` files as bases: converted to safetensors once and read from there ever after.

Dequantising takes tens of seconds, reading the converted folder about one.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as hf_logging

from iitkit.errors import IITKitError
from iitkit.models.cache import cached_folder, digest
from iitkit.models.load_errors import disk_full, first_line

_QUIET = threading.RLock()  # the settings that quiet() changes belong to the whole process


def gguf_folder(file: Path) -> Path:
    """Return the cached safetensors folder of a ``.gguf`` file, converting it the first time.

    Args:
        file: A GGUF file of an architecture that transformers reads.

    Returns:
        A folder in Hugging Face format, fp32.

    Raises:
        IITKitError: If the file cannot be read, extras are missing or the cache cannot be written.
    """
    stem = "".join(c if c.isalnum() or c in "._-" else "-" for c in file.stem)
    name = f"{stem}-{digest([file])}"
    return cached_folder(name, str(file), lambda scratch: convert(file, str(file), scratch / name))


def convert(file: Path, base: str, folder: Path) -> Path:
    """Write a GGUF file as a safetensors folder with its tokenizer.

    Args:
        file: The GGUF file.
        base: What the user asked for: becomes the config's ``_name_or_path``.
        folder: Where to write; made here.

    Returns:
        ``folder``.

    Raises:
        IITKitError: If extras are missing or the file cannot be read.
    """
    require("gguf", "accelerate")
    print(f"Converting {base} once to {folder.parents[1] / folder.name} …", file=sys.stderr)
    options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    with quiet():
        try:
            loaded = read_model(str(file.parent), base, dtype=torch.float32, **options)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
        except IITKitError:
            raise
        except Exception as error:
            if disk_full(error):
                raise
            raise IITKitError(
                f"base {base!r} cannot be read as a GGUF model ({first_line(error)}). "
                "Expected a whole file of an architecture that transformers reads: fetch it again if it is cut short."
            ) from error
        config = loaded.config
        for mark in ("quantization_config", "_model_name_or_path"):
            if hasattr(config, mark):
                delattr(config, mark)
        with torch.device("meta"):  # a model that was loaded quantised refuses to be saved: move its weights
            model = type(loaded)(config)
        model.load_state_dict(loaded.state_dict(), assign=True)
        model.tie_weights()
        model.config._name_or_path = tokenizer.name_or_path = base
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def read_model(source: str, base: str, **options: Any) -> PreTrainedModel:
    """Read a causal language model quietly, and all of it.

    Args:
        source: A folder or a Hub id.
        base: What the user asked for, for messages.
        options: For ``AutoModelForCausalLM.from_pretrained``.

    Returns:
        The model.

    Raises:
        IITKitError: If there are no weights for a part of it; transformers would leave that part random.
    """
    with quiet():
        read: Any = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    model: PreTrainedModel = read[0]
    if missing := read[1]["missing_keys"]:
        raise IITKitError(
            f"base {base!r} lacks {len(missing)} weights of {type(model).__name__}, such as {min(missing)}: they would "
            "be random. Expected a whole causal language model."
        )
    return model


def require(*modules: str) -> None:
    """Raise an error that says how to install what is missing.

    Args:
        modules: Names of top-level modules.

    Raises:
        IITKitError: If one cannot be found.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise IITKitError(
            f"GGUF and pypi:// bases need {' and '.join(missing)}, not installed here. Run: pip install 'iitkit[gguf]'"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Switch transformers' progress bars and warnings off, and put them back as they were."""
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    with _QUIET:
        verbosity, bar = hf_logging.get_verbosity(), getattr(reader, "tqdm", None)  # that bar obeys no setting
        hook = hf_logging.set_tqdm_hook(lambda make, args, kwargs: make(*args, **{**kwargs, "disable": True}))
        hf_logging.set_verbosity(logging.ERROR)
        try:
            if bar is not None:
                reader.tqdm = lambda iterable, **_: iterable
            yield
        finally:
            if bar is not None:
                reader.tqdm = bar
            hf_logging.set_verbosity(verbosity)
            hf_logging.set_tqdm_hook(hook)
