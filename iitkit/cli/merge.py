"""``iitkit merge ARTIFACT TO``: a base model with edits merged into its weights, as a folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import iitkit
from iitkit.cli.convert import named
from iitkit.cli.measuring import loaded, parsed
from iitkit.errors import IITKitError
from iitkit.models.loading import load_base


@dataclass
class Merge:
    """Merge an artifact's edits into a model's weights, where that is exact.

    Args:
        artifact: folder of the interventions, or user/repo.
        to: folder for the model in Hugging Face format; there must be none.
        base: the network; the artifact's own unless said.
        strength: of the edits.
        dtype: of the network, and of what is written.
    """

    artifact: str
    to: str
    base: str | None = None
    strength: float = 1.0
    dtype: str = "float32"


def run(command: str, arguments: Sequence[str]) -> None:
    """Merge and write the model; then read it back and compare.

    Args:
        command: ``merge``.
        arguments: what follows it; the first two may be the artifact and where to write.

    Raises:
        IITKitError: see :func:`iitkit.merge`; a folder that is there, or a model whose class has no place for what was
            merged, so that it would be lost in saving.
    """
    settings, _ = parsed(command, Merge, named(arguments, "artifact", "to"))
    target = Path(settings.to).expanduser()
    if target.exists():
        raise IITKitError(f"to {settings.to!r} is there already: name another folder, or remove it")
    found = iitkit.load(settings.artifact)
    model, tokenizer = loaded(settings.base or str(found.base["id"]), settings.dtype)
    iitkit.merge(model, found, strength=settings.strength)
    model = model.cpu()
    tokens = torch.arange(2, 10)[None] % model.config.get_text_config().vocab_size
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        again, _ = load_base(scratch, dtype=settings.dtype)
        if not torch.equal(_logits(again, tokens), _logits(model, tokens)):
            raise IITKitError(
                f"{type(model).__name__} has no place for the biases that were merged: they are lost when it is saved. "
                "Merge in Python with iitkit.merge(), or place the edit at a module that has a bias"
            )
        scratch.chmod(0o755)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"merged: {target}", flush=True)


def _logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(tokens).logits
    return found
