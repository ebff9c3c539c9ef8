"""The artifact: the released folder with config.json and interventions.safetensors."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from iitkit.errors import IITKitError, choices
from iitkit.hub.values import Values
from iitkit.interventions import Intervention, SiteInfo
from iitkit.models.sites import Site

SCHEMA = 1
SIZES = ("width", "input_width", "heads", "positions")
CONFIG, WEIGHTS = "config.json", "interventions.safetensors"
VALUES = "values"
"""What follows a placement's name in the name of the tensor of its values' features."""
LARGEST = {CONFIG: 16 * 2**20, WEIGHTS: 4 * 2**30}
"""Bytes of the largest files that are read; a sparse autoencoder's weights are the largest there are."""


@dataclass(frozen=True)
class Artifact:
    """Trained interventions as they are released: nothing in them trains.

    Args:
        config: what config.json says.
        interventions: placement name → intervention.
        values: placement name → its variable's values and what they look like there; only placements that take a
            source and whose variable has few values have them.
    """

    config: dict[str, Any]
    interventions: dict[str, Intervention]
    values: dict[str, Values] = field(default_factory=dict)

    @property
    def base(self) -> dict[str, Any]:
        """The base model: id, revision, architecture, width, layers, dtype."""
        return dict(self.config["base"])

    @property
    def metrics(self) -> dict[str, Any]:
        """What the test measured."""
        return dict(self.config.get("metrics", {}))

    def alignment(
        self, positions: Mapping[str, int | str | Sequence[int | str] | Tensor] | None = None
    ) -> dict[str, tuple[Site, Intervention]]:
        """Return site and intervention of every placement, as :func:`iitkit.interchange` takes them.

        Args:
            positions: placement name → position, instead of the trained one. A trained position that names a span of
                the task's prompt means nothing in other text, so it must be given here.

        Raises:
            IITKitError: a placement that the artifact does not have.
        """
        given = dict(positions or {})
        if unknown := [name for name in given if name not in self.interventions]:
            raise IITKitError(f"the artifact has no placement {unknown[0]!r}: it has {choices(self.interventions)}")
        placed = {}
        for name, intervention in self.interventions.items():
            where = self.config["placements"][name]
            keys = ("layer", "component", "module", "side", "head", "joint", "variable")
            site = {key: where[key] for key in keys if key in where}
            placed[name] = (Site(**{**site, "position": given.get(name, where["position"])}), intervention)
        return placed

    def check(self, model: nn.Module) -> None:
        """Check that a model is of the width and the number of layers that the artifact was trained on.

        Raises:
            IITKitError: another width or number of layers.
        """
        config = getattr(model, "config", None)
        for key, attribute in (("width", "hidden_size"), ("layers", "num_hidden_layers")):
            given = getattr(config, attribute, None)
            if given is not None and given != self.config["base"][key]:
                raise IITKitError(
                    f"the artifact was trained on {self.config['base']['id']} with {key} {self.config['base'][key]}, "
                    f"the model has {given}: load that base"
                )

    def __str__(self) -> str:
        lines = [f"artifact of {self.config['base']['id']} ({self.config.get('task') or 'no task'})"]
        lines += [
            f"  {name}: {where['variable']} at {_place(where)}, "
            + (f"shared with {where['shared_with']}" if "shared_with" in where else where["intervention"]["name"])
            for name, where in self.config["placements"].items()
        ]
        return "\n".join(lines)


def _place(where: Mapping[str, Any]) -> str:
    site = where["module"] if where.get("module") else f"layer {where['layer']} {where['component']}"
    return f"{site}, position {where['position']}"


def save(
    folder: str | os.PathLike[str],
    interventions: Mapping[str, Intervention],
    placements: Mapping[str, Mapping[str, Any]],
    base: Mapping[str, Any],
    sites: Mapping[str, SiteInfo],
    values: Mapping[str, Values] | None = None,
    largest: Mapping[str, float] | None = None,
    **more: Any,
) -> Path:
    """Write an artifact: to a temporary folder first, which then takes the name.

    Args:
        folder: the artifact's folder; one that is there is replaced.
        interventions: placement name → trained intervention; of one that is shared only its owner's is written.
        placements: placement name → site and variable as plain values.
        base: the base model's identity.
        sites: placement name → the sizes that the intervention was built for.
        values: placement name → its variable's values, where they are known.
        largest: placement name → the largest norm of the coordinates of one source vector, where it was measured.
        more: further plain values for config.json: task, variables, metrics, ….

    Raises:
        IITKitError: where it cannot be written.
    """
    target = Path(folder)
    tensors = {
        f"{name}.{key}": value.contiguous()
        for name, intervention in interventions.items()
        if "shared_with" not in placements[name]
        for key, value in intervention.released().state_dict().items()
    }
    known, norms = dict(values or {}), dict(largest or {})
    tensors |= {f"{name}.{VALUES}": found.features.float().cpu().contiguous() for name, found in known.items()}
    weights = save_tensors(tensors, metadata={"format": "pt"})
    config = {
        "library": "iitkit",
        "schema": SCHEMA,
        "base": dict(base),
        "placements": {
            name: {
                **where,
                **_sizes(sites[name]),
                **({} if "shared_with" in where else _spec(interventions[name])),
                **({"largest": norms[name]} if name in norms else {}),
                **({"values": known[name].plain()} if name in known else {}),
            }
            for name, where in placements.items()
        },
        "sha256": hashlib.sha256(weights).hexdigest(),
        **more,
    }
    scratch: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        (scratch / WEIGHTS).write_bytes(weights)
        (scratch / CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        scratch.chmod(0o755)
        if target.exists():
            old = scratch.with_name(scratch.name + "-old")
            target.rename(old)
            scratch.rename(target)
            shutil.rmtree(old)
        else:
            scratch.rename(target)
    except OSError as error:
        raise IITKitError(f"cannot write the artifact {target}: {error.strerror or error}") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


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


def load(path: str | os.PathLike[str], allow: Sequence[str] = ()) -> Artifact:
    """Load trained interventions.

    Args:
        path: an artifact's folder, or a run's folder that holds one.
        allow: packages of your own that may be imported if the artifact says that an intervention comes from them.
            Nothing that an artifact names is imported otherwise.

    Raises:
        IITKitError: a folder that holds no artifact, or one that is damaged, foreign or of a newer iitkit.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file() and (folder / "artifact" / CONFIG).is_file():
        folder = folder / "artifact"
    for name in (CONFIG, WEIGHTS):
        file = folder / name
        if not file.is_file():
            raise IITKitError(f"{folder} is no artifact: it has no {name}. Give the folder that `iitkit fit` wrote")
        if file.stat().st_size > LARGEST[name]:
            raise IITKitError(f"{file} has {file.stat().st_size} bytes, more than any artifact: it is not read")
    config = _read_config(folder / CONFIG)
    weights = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(weights).hexdigest() != config["sha256"]:
        raise IITKitError(f"{folder / WEIGHTS} is not the file that config.json describes: fetch the artifact again")
    try:
        tensors = load_tensors(weights)
    except SafetensorError as error:
        raise IITKitError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    interventions: dict[str, Intervention] = {}
    features: dict[str, Tensor | None] = {}
    for name, where in config["placements"].items():
        features[name] = tensors.pop(f"{name}.{VALUES}", None)
        own = {key.removeprefix(f"{name}."): tensors.pop(key) for key in list(tensors) if key.startswith(f"{name}.")}
        if "shared_with" not in where:
            try:
                interventions[name] = _rebuilt(where, own, allow)
            except (IITKitError, TypeError, ValueError) as error:
                raise IITKitError(f"{folder}: placement {name!r}: {error}") from error
    for name, where in config["placements"].items():
        if "shared_with" in where:
            if where["shared_with"] not in interventions:
                raise IITKitError(
                    f"{folder}: placement {name!r} shares with {where['shared_with']!r}, which is not there"
                )
            interventions[name] = interventions[where["shared_with"]]
    interventions = {name: interventions[name] for name in config["placements"]}
    if tensors:
        raise IITKitError(f"{folder / WEIGHTS} holds tensors of no placement: {choices(sorted(tensors))}")
    values: dict[str, Values] = {}
    for name, where in config["placements"].items():
        if "values" in where or features[name] is not None:
            heads = 1 if where.get("joint") else where.get("heads", 1)
            size = interventions[name].space.size or where["width"]
            try:
                values[name] = Values.stored(where.get("values"), features[name], heads, size)
            except IITKitError as error:
                raise IITKitError(f"{folder}: placement {name!r}: {error}") from error
    return Artifact(config, interventions, values)


def _rebuilt(where: Mapping[str, Any], tensors: dict[str, Tensor], allow: Sequence[str]) -> Intervention:
    packages = where.get("packages", [])
    if not isinstance(packages, list) or not all(isinstance(package, str) for package in packages):
        raise IITKitError(f"packages {packages!r}: expected a list of names")
    for package in packages:
        if package in sys.modules:
            continue
        if package not in allow:
            raise IITKitError(
                f"intervention {where['intervention'].get('name')!r} comes from package {package!r}: import it first, "
                f"or say iitkit.load(…, allow=[{package!r}]) if you trust it"
            )
        importlib.import_module(package)
    sizes = {key: where[key] for key in SIZES if key in where}
    return Intervention.from_spec(where["intervention"], SiteInfo(**sizes), tensors)


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise IITKitError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or config.get("library") != "iitkit":
        raise IITKitError(f"{file} is not the config of an iitkit artifact")
    if config.get("schema") != SCHEMA:
        raise IITKitError(
            f"{file} has schema {config.get('schema')!r}, this iitkit reads {SCHEMA}: install a newer iitkit"
        )
    base, placements = config.get("base"), config.get("placements")
    fine = (
        isinstance(base, dict)
        and {"id", "width", "layers"} <= set(base)
        and isinstance(placements, dict)
        and placements
        and isinstance(config.get("sha256"), str)
        and all(
            isinstance(where, dict)
            and {"position", "variable", "width"} <= set(where)
            and (isinstance(where.get("intervention"), dict) or isinstance(where.get("shared_with"), str))
            and all(type(where[key]) is int and 0 < where[key] < 2**24 for key in SIZES if key in where)
            and ("largest" not in where or (type(where["largest"]) is float and 0 <= where["largest"] < math.inf))
            and ({"layer", "component"} <= set(where) or {"module", "side"} <= set(where))
            for where in placements.values()
        )
    )
    if not fine:
        raise IITKitError(f"{file} lacks parts of an artifact's config (base, placements with sites, sha256)")
    return config
