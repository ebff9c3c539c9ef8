"""The Hugging Face Hub, by the official client and its own settings; what goes wrong, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from iitkit.errors import IITKitError

T = TypeVar("T")
LOGIN = "Run `hf auth login` or set HF_TOKEN"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def is_repo_id(text: str) -> bool:
    """Return whether a text is a Hub repo's id, ``user/name`` or ``user/name@revision``."""
    return _REPO.fullmatch(text) is not None and ".." not in text


def parted(repo_id: str, revision: str | None) -> tuple[str, str | None]:
    """Return a repo's id and the revision that it or ``revision`` names.

    Raises:
        IITKitError: no repo's id, or two revisions.
    """
    if not is_repo_id(repo_id):
        raise IITKitError(f"artifact {repo_id!r}: expected user/name, or user/name@revision")
    name, _, named = repo_id.partition("@")
    if named and revision is not None and named != revision:
        raise IITKitError(f"artifact {repo_id!r} and revision {revision!r} name two revisions: keep one of them")
    return name, named or revision


def checked_subfolder(subfolder: str | None) -> str | None:
    """Return a folder of a repo, without a slash at its ends; None for the repo itself.

    Raises:
        IITKitError: one that leads out of the repo.
    """
    if subfolder is None:
        return None
    parts = subfolder.strip("/").split("/")
    if not all(re.fullmatch(r"[\w-][\w. -]*", part) for part in parts):
        raise IITKitError(f"subfolder {subfolder!r}: expected a folder of the repo, e.g. artifacts/gender")
    return "/".join(parts)


def asked(
    question: Callable[[], T], repo_id: str, revision: str | None = None, *, push: bool = False, no_folder: bool = False
) -> T:
    """Return what the Hub answers.

    Args:
        question: asks it.
        repo_id: user/repo.
        revision: the revision that is asked for.
        push: whether something is written.
        no_folder: whether the name might have been a folder's, and is none.

    Raises:
        IITKitError: what went wrong.
    """
    from huggingface_hub import errors

    name = f"artifact {repo_id!r}"
    looked = f"{name} is no folder here" if no_folder else name
    try:
        return question()
    except IITKitError:
        raise
    except errors.HFValidationError as error:
        raise IITKitError(f"{name}: expected user/name: {_first(error)}") from error
    except errors.GatedRepoError as error:
        raise IITKitError(f"{name} is gated: accept its terms on its Hub page, then load it again. {LOGIN}") from error
    except errors.RevisionNotFoundError as error:
        raise IITKitError(f"{name} has no revision {revision!r}: leave it out for the newest") from error
    except errors.RepositoryNotFoundError as error:
        if push:
            raise IITKitError(f"{name}: the Hub lets you not write there. {LOGIN}") from error
        there = f"{looked}, and" if no_folder else name
        raise IITKitError(f"{there} was not found on the Hub: check the spelling. If it is private: {LOGIN}") from error
    except errors.LocalEntryNotFoundError as error:
        raise IITKitError(
            f"{looked}: the Hub could not be reached and the artifact is not all in the local cache. Check the network"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise IITKitError(f"{name}: HF_HUB_OFFLINE is set, so the Hub is not asked. Unset it") from error
    except errors.EntryNotFoundError as error:
        raise IITKitError(f"{name} has no such folder: check subfolder") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            needs = "write access" if push else "access"
            raise IITKitError(f"{name}: the Hub refused your token ({status}): it needs {needs}. {LOGIN}") from error
        if status == 412:
            raise IITKitError(f"{name}: somebody pushed in the meantime; nothing was changed. Push again") from error
        raise IITKitError(f"{name}: the Hub answered {_first(error)}. Try again later") from error
    except ValueError as error:
        raise IITKitError(f"{name}: the client refused: {_first(error)}") from error
    except Exception as error:
        if unreachable(error):
            raise IITKitError(f"{name}: the Hub could not be reached ({_first(error)}). Check the network") from error
        raise


def unreachable(error: Exception) -> bool:
    """Return whether an error says that the Hub did not answer at all."""
    from huggingface_hub import errors

    # the client lets its network library's errors through, and which library that is changes between versions
    network = type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "requests")
    return not isinstance(error, errors.HfHubHTTPError) and (isinstance(error, OSError) or network)


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")
