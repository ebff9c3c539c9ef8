"""Datasets on the Hugging Face Hub: push, pull and fetch, with the official client and its own settings."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from iitkit.data.tables import README, SUFFIXES, data_files, declared, find_files, front_matter
from iitkit.errors import IITKitError, choices

T = TypeVar("T")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
DATA = [f"*{suffix}" for suffix in SUFFIXES]
LOGIN = "Run `hf auth login` or set HF_TOKEN"


def is_repo_id(text: str) -> bool:
    """Return whether a text is a Hub repo's id (user/name) rather than a file's path."""
    return _REPO.fullmatch(text) is not None and not text.endswith(SUFFIXES)


def fetch(repo_id: str, revision: str | None = None, config: str | None = None) -> Path:
    """Fetch a dataset's README and the .jsonl, .parquet and .csv files that it names, and nothing else.

    Args:
        repo_id: user/name.
        revision: branch, tag or commit; the newest of ``main`` unless said.
        config: which of the README's ``configs:``; None takes the default one, or the only one.

    Returns:
        The folder in the Hub's own cache; it is named by the commit.

    Raises:
        IITKitError: a dataset or revision that is not there, or a Hub that cannot be reached.
    """
    from huggingface_hub import snapshot_download

    def get(revision: str | None, patterns: list[str]) -> Path:
        return Path(
            _asked(
                lambda: snapshot_download(repo_id, repo_type="dataset", revision=revision, allow_patterns=patterns),
                repo_id,
                revision,
            )
        )

    folder = get(revision, [README])
    readme = folder / README
    named = declared(front_matter(readme) if readme.is_file() else {}, config, repo_id)
    # the client's patterns let * cross folders: more is fetched than read, never less
    patterns = [_pattern(path) for _, paths in named for path in paths if path.endswith(SUFFIXES)] or DATA
    return get(folder.name, [README, *patterns])


def _pattern(path: str) -> str:
    return path.replace("**/", "*") if any(sign in path for sign in "*?") else glob.escape(path)


def _asked(question: Callable[[], T], repo_id: str, revision: str | None = None, push: bool = False) -> T:
    """Return what the Hub answers, or raise what went wrong in a line or two."""
    from huggingface_hub import errors

    try:
        return question()
    except errors.HFValidationError as error:
        raise IITKitError(f"dataset {repo_id!r}: expected user/name: {_first(error)}") from error
    except errors.GatedRepoError as error:
        raise IITKitError(f"dataset {repo_id!r} is gated: accept its terms on its Hub page. {LOGIN}") from error
    except errors.RevisionNotFoundError as error:
        raise IITKitError(
            f"dataset {repo_id!r} has no revision {revision!r}: leave revision out for the newest"
        ) from error
    except errors.RepositoryNotFoundError as error:
        if push:
            raise IITKitError(f"dataset {repo_id!r}: the Hub lets you not write there. {LOGIN}") from error
        raise IITKitError(
            f"dataset {repo_id!r} was not found on the Hub: check the spelling. If it is private: {LOGIN}"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise IITKitError(f"dataset {repo_id!r}: HF_HUB_OFFLINE is set, so the Hub is not asked. Unset it") from error
    except errors.LocalEntryNotFoundError as error:
        raise IITKitError(
            f"dataset {repo_id!r}: the Hub could not be reached and the dataset is not all in the local cache. "
            "Check the network, or give a local folder"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise IITKitError(
                f"dataset {repo_id!r}: the Hub refused your token ({status}): it needs write access. {LOGIN}"
            ) from error
        raise IITKitError(f"dataset {repo_id!r}: the Hub answered {_first(error)}. Try again later") from error
    except Exception as error:
        # the client lets its network library's errors through, and which library that is changes between versions
        if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "requests"):
            raise IITKitError(
                f"dataset {repo_id!r}: the Hub could not be reached ({_first(error)}). Check the network"
            ) from error
        raise


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")


def push_dataset(
    folder: str | os.PathLike[str],
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    message: str = "Counterfactual pairs, written by iitkit",
) -> str:
    """Push a dataset's folder to the Hub: README and data files, nothing else; files that it no longer has go.

    Args:
        folder: what :func:`iitkit.data.folder.write_dataset` wrote, or a folder like it.
        repo_id: user/name; made if it is not there.
        private: whether a repo that is made can be seen by its owner only.
        revision: a branch other than ``main``; made if it is not there.
        message: the commit's message.

    Returns:
        The commit.

    Raises:
        IITKitError: a folder that is no dataset, no token, or a Hub that refuses or cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    place = Path(folder)
    if not (place / README).is_file():
        raise IITKitError(f"{place} is no dataset: it has no {README}. Write it with write_dataset first")
    names = [README, *data_files(place)]
    if len(names) == 1:
        raise IITKitError(
            f"{place} has no data file: expected train, validation and test as one of {choices(SUFFIXES)}"
        )
    if get_token() is None:
        raise IITKitError(f"dataset {repo_id!r}: you are not logged in to the Hub. {LOGIN}")

    def push() -> str:
        api = HfApi()
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=place,
            repo_type="dataset",
            revision=revision,
            commit_message=message,
            allow_patterns=[glob.escape(name) for name in names],
            delete_patterns=DATA,
        )
        return str(done.oid)

    return _asked(push, repo_id, revision, push=True)


def pull_dataset(repo_id: str, revision: str | None = None, folder: str | os.PathLike[str] | None = None) -> Path:
    """Fetch a dataset's README and data files from the Hub.

    Args:
        repo_id: user/name.
        revision: branch, tag or commit; the newest of ``main`` unless said.
        folder: where to put them; the Hub's own cache unless said.

    Returns:
        The folder.

    Raises:
        IITKitError: a dataset or revision that is not there or holds no pairs, or a Hub that cannot be reached.
    """
    from huggingface_hub import snapshot_download

    def pull() -> Path:
        return Path(
            snapshot_download(
                repo_id,
                repo_type="dataset",
                revision=revision,
                local_dir=None if folder is None else Path(folder),
                allow_patterns=[README, *DATA],
            )
        )

    found = _asked(pull, repo_id, revision)
    find_files(found, None, repo_id)
    return found
