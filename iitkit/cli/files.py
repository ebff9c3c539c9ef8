"""Configs by bare name. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iitkit.errors import IITKitError, choices, did_you_mean


def config_folder() -> Path:
    """Return the folder of iitkit's own configs: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_share" / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def config_names() -> list[str]:
    """Return the names of iitkit's own configs."""
    return sorted(file.name for file in config_folder().glob("*.yaml"))


def resolve_configs(arguments: Sequence[str]) -> list[str]:
    """Replace bare names of iitkit's own configs by their paths.

    Args:
        arguments: a command's arguments.

    Raises:
        IITKitError: a config that is neither a file nor one of iitkit's.
    """
    found = list(arguments)
    for i, argument in enumerate(found):
        if argument in ("--config", "-c") and i + 1 < len(found):
            found[i + 1] = _resolve(found[i + 1])
        elif argument.startswith("--config="):
            found[i] = f"--config={_resolve(argument.removeprefix('--config='))}"
    return found


def _resolve(name: str) -> str:
    if "://" in name or "\n" in name or Path(name).is_file():
        return name
    own = config_folder() / name
    if Path(name).name == name and own.is_file():
        return str(own)
    names = config_names()
    raise IITKitError(f"no config {name!r}.{did_you_mean(name, names)} Give a file, or one of {choices(names)}")
