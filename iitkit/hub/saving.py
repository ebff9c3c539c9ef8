"""Writing artifacts: whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors

from iitkit import __version__
from iitkit.errors import IITKitError
from iitkit.hub.artifact import Artifact
from iitkit.hub.card import card, is_generated
from iitkit.hub.files import write_config, write_metrics
from iitkit.hub.schema import CONFIG, METRICS, README, SCHEMA, WEIGHTS, checked_config
from iitkit.hub.values import Values
from iitkit.interventions import Intervention, SiteInfo

VALUES = "values"
"""What follows a placement's name in the name of the tensor of its values' features."""


def write_artifact(
    folder: str | os.PathLike[str],
    interventions: Mapping[str, Intervention],
    placements: Mapping[str, Mapping[str, Any]],
    base: Mapping[str, Any],
    sites: Mapping[str, SiteInfo],
    values: Mapping[str, Values] | None = None,
    largest: Mapping[str, float] | None = None,
    metrics: Mapping[str, Any] | None = None,
    **more: Any,
) -> Path:
    """Write an artifact from its parts.

    Args:
        folder: the artifact's folder; one that is there is replaced.
        interventions: placement name → trained intervention; of one that is shared only its owner's is written.
        placements: placement name → site and variable as plain values.
        base: the base model's identity.
        sites: placement name → the sizes that the intervention was built for.
        values: placement name → its variable's values, where they are known.
        largest: placement name → the largest norm of the coordinates of one source vector, where it was measured.
        metrics: what was measured, ``group/rate`` → number.
        more: further plain values for config.json: task, variables, ….

    Raises:
        IITKitError: where it cannot be written.
    """
    known, norms = dict(values or {}), dict(largest or {})
    released = {name: made.released() for name, made in interventions.items() if "shared_with" not in placements[name]}
    described = {
        name: {
            **where,
            **_sizes(sites[name]),
            **({} if "shared_with" in where else _spec(interventions[name])),
            **({"largest": float(norms[name])} if name in norms else {}),
            **({"values": known[name].plain()} if name in known else {}),
        }
        for name, where in placements.items()
    }
    config = {"base": dict(base), "placements": described, **more}
    return write_folder(folder, Artifact(config, released, known, dict(metrics or {})))


def write_folder(folder: str | os.PathLike[str], artifact: Artifact) -> Path:
    """Write an artifact: to a temporary folder first, which then takes the name.

    An artifact that is there is replaced, but for a README that was written by hand.

    Raises:
        IITKitError: where it cannot be written, another thing of that name, or a part that no artifact may have.
    """
    target = Path(folder).resolve() if Path(folder).is_symlink() else Path(folder)
    if target.is_file() or (target.is_dir() and not (target / CONFIG).is_file() and any(target.iterdir())):
        raise IITKitError(f"{target} is there and is no artifact: it is not replaced. Name another folder")
    files = files_of(artifact, _by_hand(target) or artifact.card, target.name)
    scratch: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        for name, data in files.items():
            (scratch / name).write_bytes(data)
        scratch.chmod(0o755)
        _take_the_place_of(target, scratch)
    except OSError as error:
        raise IITKitError(f"cannot write the artifact {target}: {error.strerror or error}") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def _take_the_place_of(target: Path, scratch: Path) -> None:
    """Give a finished folder its name; one that has it goes, and stays where that fails."""
    if not target.exists():
        scratch.rename(target)
        return
    old = scratch.with_name(scratch.name + "-old")
    target.rename(old)
    try:
        scratch.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def files_of(artifact: Artifact, readme: str | None, where: str, subfolder: str | None = None) -> dict[str, bytes]:
    """Return the files of an artifact, name → bytes.

    Args:
        artifact: the artifact.
        readme: its README, where there is one by hand.
        where: what the README's snippet loads: a folder's name or user/repo.
        subfolder: the folder in the repo.
    """
    tensors = {
        f"{name}.{key}": value.contiguous()
        for name, intervention in artifact.interventions.items()
        if "shared_with" not in artifact.config["placements"][name]
        for key, value in intervention.state_dict().items()
    }
    # a copy: two placements may be given one tensor, and safetensors stores none twice
    tensors |= {
        f"{name}.{VALUES}": each.features.float().cpu().contiguous().clone() for name, each in artifact.values.items()
    }
    weights = save_tensors(tensors, metadata={"format": "pt"})
    config = {
        "library": "iitkit",
        "schema": SCHEMA,
        "versions": {"iitkit": __version__},
        **{key: value for key, value in artifact.config.items() if key not in ("library", "schema", "sha256")},
        "sha256": {WEIGHTS: hashlib.sha256(weights).hexdigest()},
    }
    try:
        text = write_config(config)
        plain, measured = text.encode(), write_metrics(artifact.metrics).encode()
    except (ValueError, TypeError) as error:
        raise IITKitError(f"the artifact holds what JSON cannot: {error}") from error
    checked_config(text, "the artifact")
    written = replace(artifact, config=config)
    return {
        CONFIG: plain,
        WEIGHTS: weights,
        **({METRICS: measured} if artifact.metrics else {}),
        README: (readme or card(written, where, subfolder)).encode(),
    }


def _by_hand(folder: Path) -> str | None:
    """Return the README of a folder that somebody wrote."""
    try:
        text = (folder / README).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return None if is_generated(text) else text


def _sizes(site: SiteInfo) -> dict[str, int]:
    sizes = {"width": site.width}
    if site.input_width is not None:
        sizes["input_width"] = site.input_width
    return sizes | {key: n for key in ("heads", "positions") if (n := getattr(site, key)) != 1}


def _spec(intervention: Intervention) -> dict[str, Any]:
    spec = intervention.spec()
    named = [intervention, *(part for part in intervention.parts if part.kind in spec)]  # parts that the spec names
    packages = sorted({type(part).__module__.partition(".")[0] for part in named} - {"iitkit"})
    return {"intervention": spec, **({"packages": packages} if packages else {})}
