"""Fetching an artifact from the Hub: its own files, by name, no larger than they may be."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from iitkit.errors import IITKitError, choices
from iitkit.hub.files import NEEDED, check_names, check_size, read_folder
from iitkit.hub.remote import asked, checked_subfolder, parted, unreachable
from iitkit.hub.schema import CONFIG, FILES


def pull(
    repo_id: str,
    *,
    revision: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    subfolder: str | None = None,
    token: str | None = None,
) -> Path:
    """Fetch an artifact from the Hub.

    What is there is looked at first: a repo that holds pickles beside the artifact, or files larger than any
    artifact's, is refused before anything is fetched.

    Args:
        repo_id: ``user/repo`` or ``user/repo@revision``.
        revision: branch, tag or commit; the newest of ``main`` unless said.
        folder: where to put it, a folder that is not there yet; the Hub's own cache unless said.
        subfolder: folder in the repo.
        token: the one that you are logged in with unless given.

    Returns:
        The folder.

    Raises:
        IITKitError: a repo that is not there, or whose artifact is not complete, damaged or hostile; a Hub that cannot
            be reached.
    """
    target = None if folder is None else Path(folder)
    if target is not None and target.exists():
        raise IITKitError(f"{target} is there already: name a folder that is not, or delete it")
    found = fetched(repo_id, revision, subfolder, token)
    read_folder(found)
    if target is None:
        return found
    scratch: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        for file in FILES:
            if (found / file).is_file():
                shutil.copyfile(found / file, scratch / file)
        scratch.chmod(0o755)
        scratch.rename(target)
    except OSError as error:
        raise IITKitError(f"cannot write the artifact {target}: {error.strerror or error}") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def fetched(
    repo_id: str,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    no_folder: bool = False,
) -> Path:
    """Return the folder of the Hub's cache that holds an artifact's files, which nobody has read yet.

    Args:
        repo_id: ``user/repo`` or ``user/repo@revision``.
        revision: branch, tag or commit; the newest of ``main`` unless said.
        subfolder: folder in the repo.
        token: the one that you are logged in with unless given.
        no_folder: whether the name might have been a folder's, and is none.

    Raises:
        IITKitError: see :func:`pull`.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    name, revision = parted(repo_id, revision)
    inside = checked_subfolder(subfolder)
    api = HfApi(token=token)
    prefix = f"{inside}/" if inside else ""
    kept: dict[str, Any] = {"token": token, "allow_patterns": [glob.escape(prefix + file) for file in FILES]}

    def cached() -> Path:
        return Path(snapshot_download(name, revision=revision, local_files_only=True, **kept))

    def fetch() -> Path:
        try:
            commit = str(api.model_info(name, revision=revision).sha)
        except Exception as error:
            if unreachable(error):
                return cached()
            raise
        entries = list(api.list_repo_tree(name, path_in_repo=inside, revision=commit))
        sizes = {entry.path.removeprefix(prefix): getattr(entry, "size", None) for entry in entries}
        _check(sizes, f"{name}/{inside}" if inside else name)
        place = Path(snapshot_download(name, revision=commit, **kept))
        if revision != commit:  # the cache now knows the branch, for a day without a network
            hf_hub_download(name, prefix + CONFIG, revision=revision, token=token)
        return place

    place = asked(fetch, name, revision, no_folder=no_folder)
    return place / inside if inside else place


def _check(sizes: dict[str, int | None], where: str) -> None:
    """Check what the Hub says a repo holds; folders have no size."""
    files = {name: size for name, size in sizes.items() if size is not None}
    check_names(sorted(files), f"artifact {where!r}")
    if missing := [name for name in NEEDED if name not in files]:
        inside = [name for name in sizes if name not in files]
        hint = f". It has the folders {choices(inside, 6)}: say subfolder" if inside else ""
        raise IITKitError(
            f"artifact {where!r} has no {missing[0]}: it is none, or its push was interrupted; push it again{hint}"
        )
    for name in FILES:
        if name in files:
            check_size(name, int(files[name] or 0), f"artifact {where!r}: {name}")
