"""Which network an artifact is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from iitkit.errors import IITKitError
from iitkit.models.fingerprint import weights_digest


def identity(model: nn.Module, base: str | None = None) -> dict[str, Any]:
    """Return what an artifact records of its base model.

    Args:
        model: the network.
        base: what it was loaded from; what the model itself says unless given.

    Raises:
        IITKitError: a base that cannot be what the model was loaded from.
    """
    config = getattr(model, "config", None)
    said = base or getattr(config, "_name_or_path", None)
    origin = {"id": said or type(model).__name__, "revision": "unknown"}
    if said and config is not None:
        from iitkit.models.loading import base_identity

        try:
            found = base_identity(str(said), model)
            origin = {key: str(found[key]) for key in origin}
        except IITKitError:
            if base is not None:
                raise
    return {**origin, **shape(model), "weights": weights_digest(model)}


def shape(model: nn.Module) -> dict[str, Any]:
    """Return a network's class, width, number of layers and dtype; None where it has no such number."""
    model = getattr(model, "_orig_mod", model)  # torch.compile
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    width = getattr(text, "hidden_size", getattr(model, "width", None))
    layers = getattr(text, "num_hidden_layers", getattr(model, "depth", None))
    dtype = next((parameter.dtype for parameter in model.parameters()), None)
    return {
        "architecture": type(model).__name__,
        "width": width if type(width) is int else None,
        "layers": layers if type(layers) is int else None,
        "dtype": str(getattr(model, "dtype", dtype)).removeprefix("torch."),
    }


def is_local(base: Mapping[str, Any]) -> bool:
    """Return whether a base was a file or folder, whose path tells of the machine that it was on."""
    return str(base["revision"]).startswith("sha256:")


def name_of(base: Mapping[str, Any]) -> str:
    """Return a base model's name, without the folders of the machine that it was on."""
    found = str(base["id"])
    return _last(found) if is_local(base) else without_folders(found)


def without_folders(text: str) -> str:
    """Return the last part of a path that tells of a machine; other texts, and ids of the Hub, as they are."""
    told = text.startswith(("/", "~", "./", "../")) or (len(text) > 2 and text[1] == ":" and text[2] in "\\/")
    return _last(text) if told else text


def _last(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]
