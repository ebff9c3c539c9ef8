"""Artifacts of other tools as alignments of ours."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from iitkit.errors import IITKitError, did_you_mean
from iitkit.hub.constants import from_constants
from iitkit.hub.foreign import read_json
from iitkit.hub.gguf import from_gguf
from iitkit.hub.peft import CONFIG as PEFT
from iitkit.hub.peft import from_peft
from iitkit.hub.pyvene import from_pyvene, is_pyvene
from iitkit.hub.pyvene_types import Boundary
from iitkit.interventions import Intervention
from iitkit.models.sites import Head, Site
from iitkit.positions import Position, listed


def convert(
    source: str | os.PathLike[str],
    model: nn.Module,
    *,
    trust: bool = False,
    position: Position | None = None,
    head: Head = None,
    boundary: Boundary = "soft",
) -> dict[str, tuple[Site, Intervention]]:
    """Read what another tool saved as sites and interventions of ours.

    It reads pyvene's folders, LoRA adapters of PEFT, control vectors of llama.cpp (``.gguf``), and folders or files of
    vectors to be added (safetensors; a tensor is named for its site, e.g. ``block_output.16``). Nothing that a file
    names is imported.

    Args:
        source: the folder, or the file.
        model: the base model that it was made for, with or without weights.
        trust: whether ``.bin`` files, which are pickles, may be read, with ``weights_only=True``.
        position: where the interventions are placed. pyvene's folders do not say it, as it is given with each call:
            ``last`` unless said, and ``all`` for constant vectors and whole heads. LoRA's is always ``all``.
        head: of pyvene's components that have heads, which ones, as that too is given with each call; all unless said.
        boundary: of pyvene's boundless and sigmoid masks, which it never hardens: ``soft`` computes what it computes,
            ``hard`` swaps a coordinate whole or not at all.

    Returns:
        Placement name → (site, intervention): what :func:`iitkit.interchange` and :func:`iitkit.intervening` take, and
        :func:`iitkit.save` writes as an artifact.

    Raises:
        IITKitError: nothing that is known, a pickle without trust, a class without a counterpart, tensors that do not
            fit the model, or an option that nothing there reads.
    """
    path = Path(source).expanduser()
    options = {"position": position, "head": head, "boundary": None if boundary == "soft" else boundary}
    if boundary not in ("soft", "hard"):
        raise IITKitError(f"boundary {boundary!r}:{did_you_mean(boundary, ('soft', 'hard'))} expected soft or hard")
    if position is not None:
        listed(position)
    if not path.exists():
        raise IITKitError(f"source {os.fspath(source)!r}: no such folder or file")
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if is_pyvene(config):
        return from_pyvene(path, model, trust=trust, position=position, head=head, boundary=boundary)
    if config.get("library") == "iitkit":
        raise IITKitError(f"{path} is an artifact of iitkit already: iitkit.load reads it")
    if (path / PEFT).is_file():
        _unread(path, "a LoRA adapter", **options)
        return from_peft(path, model, trust=trust)
    _unread(path, "vectors", **{**options, "position": None})
    if path.suffix == ".gguf":
        return from_gguf(path, model, position=position)
    if path.is_dir() or path.suffix == ".safetensors":
        return from_constants(path, model, position=position)
    raise IITKitError(
        f"source {os.fspath(source)!r}: expected a folder of pyvene, a LoRA adapter of PEFT, a .gguf control vector "
        "or .safetensors with vectors"
    )


def _unread(path: Path, what: str, **options: object) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise IITKitError(f"{given[0]}: {path} holds {what}, which does not read it: leave it out")
