"""Loading artifacts, from a folder or from the Hub."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from iitkit.errors import IITKitError, choices
from iitkit.hub.artifact import Artifact
from iitkit.hub.card import is_generated
from iitkit.hub.files import read_folder
from iitkit.hub.pull import fetched
from iitkit.hub.remote import is_repo_id
from iitkit.hub.saving import VALUES
from iitkit.hub.schema import CONFIG, SIZES
from iitkit.hub.sizes import limited
from iitkit.hub.values import Values
from iitkit.interventions import Intervention, SiteInfo


def load(
    path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    allow: Sequence[str] = (),
) -> Artifact:
    """Load trained interventions.

    Args:
        path: an artifact's folder, a run's folder that holds one, or a Hub repo: ``user/repo`` or
            ``user/repo@revision``. A folder goes before a repo of the same name.
        revision: branch, tag or commit of the repo; the newest of ``main`` unless said.
        subfolder: folder in the repo.
        token: of the Hub; the one that you are logged in with unless given.
        allow: packages of your own that may be imported if the artifact says that an intervention comes from them.
            Nothing that an artifact names is imported otherwise.

    Raises:
        IITKitError: a folder or repo that holds no artifact, or one that is damaged, hostile or of a newer iitkit.
    """
    folder, name = Path(path), os.fspath(path)
    if isinstance(path, str) and not folder.exists() and is_repo_id(path):
        folder = fetched(path, revision, subfolder, token, no_folder=True)
    elif revision is not None or subfolder is not None or token is not None:
        given = "revision" if revision is not None else "subfolder" if subfolder is not None else "token"
        raise IITKitError(f"{given} is of a repo on the Hub, user/repo: {name} is none. Leave it out")
    elif not (folder / CONFIG).is_file() and (folder / "artifact" / CONFIG).is_file():
        folder = folder / "artifact"
    return load_folder(folder, allow)


def load_folder(folder: Path, allow: Sequence[str] = ()) -> Artifact:
    """Load the artifact of a folder; see :func:`load`."""
    config, tensors, metrics, readme = read_folder(folder)
    placements: dict[str, Mapping[str, Any]] = config["placements"]
    interventions: dict[str, Intervention] = {}
    values: dict[str, Values] = {}
    features = {name: tensors.pop(f"{name}.{VALUES}", None) for name in placements}
    for name, where in placements.items():
        own = {key.removeprefix(f"{name}."): tensors.pop(key) for key in list(tensors) if key.startswith(f"{name}.")}
        if "shared_with" in where and not own:
            continue
        try:
            if "shared_with" in where:
                raise IITKitError(f"it shares with {where['shared_with']!r}, and has tensors of its own")
            interventions[name] = _rebuilt(where, own, allow)
        except IITKitError as error:
            raise IITKitError(f"{folder}: placement {name!r}: {_short(str(error))}") from error
    if tensors:
        raise IITKitError(f"{folder} holds tensors of no placement: {_short(choices(sorted(tensors)))}")
    for name, where in placements.items():
        if "shared_with" in where:
            interventions[name] = interventions[where["shared_with"]]
        if "values" in where or features[name] is not None:
            heads = 1 if where.get("joint") else where.get("heads", 1)
            size = interventions[name].space.size or where["width"]
            try:
                values[name] = Values.stored(where.get("values"), features[name], heads, size)
            except IITKitError as error:
                raise IITKitError(f"{folder}: placement {name!r}: {error}") from error
    ordered = {name: interventions[name] for name in placements}
    return Artifact(config, ordered, values, metrics, None if readme is None or is_generated(readme) else readme)


def _rebuilt(where: Mapping[str, Any], tensors: dict[str, Tensor], allow: Sequence[str]) -> Intervention:
    for package in where.get("packages", ()):
        if package in sys.modules:
            continue
        if package not in allow:
            raise IITKitError(
                f"intervention {where['intervention'].get('name')!r} comes from package {package!r}: import it first, "
                f"or say iitkit.load(…, allow=[{package!r}]) if you trust it"
            )
        importlib.import_module(package)
    sizes = {key: where[key] for key in SIZES if key in where}
    stored = sum(tensor.numel() for tensor in tensors.values())
    try:
        with limited(stored):
            made = Intervention.from_spec(where["intervention"], SiteInfo(**sizes), tensors)
    except IITKitError:
        raise
    except Exception as error:  # options of any kind reach the interventions' own code
        raise IITKitError(f"{where['intervention'].get('name')} cannot be built: {_first(error)}") from error
    for key, value in made.state_dict().items():
        if value.dtype != tensors[key].dtype:
            kinds = (str(dtype).removeprefix("torch.") for dtype in (tensors[key].dtype, value.dtype))
            raise IITKitError("{} is {}: expected {}".format(key, *kinds))
    return made


def _first(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def _short(message: str) -> str:
    """Return a message that may hold what the artifact's author wrote, no longer than messages are."""
    return message if len(message) <= 400 else f"{message[:300]} … {message[-90:]}"
