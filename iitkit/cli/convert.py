"""``iitkit convert SOURCE TO``: others' artifacts as ours, and ours as control vectors of llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import iitkit
from iitkit.cli.measuring import loaded, parsed
from iitkit.errors import IITKitError
from iitkit.models.sites import Head


@dataclass
class Convert:
    """Convert what another tool saved into an artifact, or an artifact into a control vector of llama.cpp.

    Args:
        source: pyvene's folder, a LoRA adapter of PEFT, a .gguf control vector, or a folder or file of vectors in
            safetensors (tensors named for their sites, e.g. block_output.16). Or an artifact, if ``to`` ends in .gguf.
        to: the artifact's folder, or a .gguf file.
        base: the network that it was made for; not needed for a .gguf file.
        trust: read .bin files too, which are pickles, with weights_only=True; --trust alone is enough.
        position: where pyvene's interventions and constant vectors are placed; last, or all for constants and whole
            heads, unless said.
        head: of pyvene's components that have heads, which ones.
        boundary: of pyvene's soft masks, computed as pyvene does or rounded; soft unless said.
        strength: of a .gguf file, what the vectors are multiplied by.
        dtype: of the network.
    """

    source: str
    to: str
    base: str | None = None
    trust: bool = False
    position: int | str | list[int | str] | None = None
    head: Head = None
    boundary: Literal["soft", "hard"] = "soft"
    strength: float | None = None
    dtype: str = "float32"


def run(command: str, arguments: Sequence[str]) -> None:
    """Convert an artifact.

    Args:
        command: ``convert``.
        arguments: what follows it; the first two may be the source and where to write.

    Raises:
        IITKitError: see :func:`iitkit.convert` and :func:`iitkit.to_gguf`.
    """
    settings, _ = parsed(command, Convert, named(flagged(arguments, "trust"), "source", "to"))
    target = Path(settings.to).expanduser()
    if target.suffix == ".gguf":
        unread = {"base": settings.base, "position": settings.position, "head": settings.head}
        unread |= {"trust": settings.trust or None, "boundary": None if settings.boundary == "soft" else "hard"}
        if given := [name for name, value in unread.items() if value is not None]:
            raise IITKitError(f"{given[0]}: a .gguf file needs none: leave it out")
        strength = 1.0 if settings.strength is None else settings.strength
        print(f"control vector: {iitkit.to_gguf(target, iitkit.load(settings.source), strength=strength)}", flush=True)
        return
    if settings.strength is not None:
        raise IITKitError("strength: only a .gguf file has it written into it; an artifact is steered with one later")
    if settings.base is None:
        raise IITKitError("base is missing: which network was it made for? Its sites are looked up there")
    model, tokenizer = loaded(settings.base, settings.dtype)
    alignment = iitkit.convert(
        settings.source,
        model,
        trust=settings.trust,
        position=settings.position,
        head=settings.head,
        boundary=settings.boundary,
    )
    folder = iitkit.save(target, model, alignment, tokenizer, base=settings.base, converted=Path(settings.source).name)
    for name, (site, edit) in alignment.items():
        print(f"{name}: {edit.title} at {site}, position {site.position}")
    print(f"artifact: {folder}", flush=True)


def flagged(arguments: Sequence[str], flag: str) -> list[str]:
    """Return arguments with ``--flag`` as ``--flag=true`` behind them, unless true or false follows it."""
    rest = list(arguments)
    if f"--{flag}" in rest:
        at = rest.index(f"--{flag}")
        if rest[at + 1 : at + 2] not in (["true"], ["false"]):
            rest = [*rest[:at], *rest[at + 1 :], f"--{flag}=true"]
    return rest


def named(arguments: Sequence[str], *names: str) -> list[str]:
    """Return arguments with names before the first ones, where these have none."""
    rest = list(arguments)
    for i, name in enumerate(names):
        if i >= len(rest) or rest[i].startswith("-"):
            break
        rest[i] = f"--{name}={rest[i]}"
    return rest
