"""Pushing an artifact to the Hub: its own files, in one commit, so that there is never half of one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iitkit.errors import IITKitError
from iitkit.hub.artifact import Artifact
from iitkit.hub.card import is_generated, task_of
from iitkit.hub.files import LARGEST, check_size
from iitkit.hub.identity import name_of, without_folders
from iitkit.hub.remote import LOGIN, asked, checked_subfolder, parted
from iitkit.hub.saving import files_of
from iitkit.hub.schema import FILES, README


@dataclass(frozen=True)
class Pushed:
    """What a push made.

    Args:
        repo_id: user/repo.
        commit: the commit.
        url: of the commit, or of the pull request.
        readme_kept: the repo has a README that somebody wrote, which was left alone.
    """

    repo_id: str
    commit: str
    url: str
    readme_kept: bool = False

    def __str__(self) -> str:
        kept = "\nREADME.md there was written by hand: it was left as it is" if self.readme_kept else ""
        return f"{self.repo_id} at {self.commit}: {self.url}{kept}"


def push(
    artifact: Artifact,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
    token: str | None = None,
    message: str | None = None,
) -> Pushed:
    """Push an artifact to the Hub in one commit: config.json, tensors, metrics and README, nothing else.

    A README on the Hub is replaced only if iitkit wrote it and nobody has changed it since. Paths of this machine, of a
    base model or of a file that an intervention began with, are not told: the last part of each is.

    Args:
        artifact: the artifact.
        repo_id: user/repo; made if it is not there.
        private: whether a repo that is made can be seen by its owner only.
        revision: a branch other than ``main``; made if it is not there.
        create_pr: open a pull request instead of writing to the branch; it may be to somebody else's repo.
        subfolder: folder in the repo.
        token: the one that you are logged in with unless given.
        message: the commit's message.

    Raises:
        IITKitError: no token, or a Hub that refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    name, revision = parted(repo_id, revision)
    inside = checked_subfolder(subfolder)
    prefix = f"{inside}/" if inside else ""
    if token is None and get_token() is None:
        raise IITKitError(f"artifact {name!r}: you are not logged in to the Hub. {LOGIN}")
    files = files_of(public(artifact), artifact.card, name, inside)
    for file, data in files.items():
        check_size(file, len(data), file)
    api = HfApi(token=token)

    def there() -> tuple[str, bool, set[str]]:
        """Return the newest commit, whether its README is by hand, and which of our files it has."""
        commit = str(api.model_info(name, revision=revision).sha)
        entries = api.get_paths_info(name, [prefix + file for file in FILES], revision=commit)
        sizes = {entry.path: getattr(entry, "size", None) or 0 for entry in entries}
        size = sizes.get(prefix + README)
        if size is None or size > LARGEST[README]:
            return commit, size is not None, set(sizes)
        text = Path(api.hf_hub_download(name, prefix + README, revision=commit)).read_text("utf-8", "replace")
        return commit, not is_generated(text), set(sizes)

    def ask() -> Pushed:
        if not create_pr or not api.repo_exists(name):
            api.create_repo(name, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(name, branch=revision, exist_ok=True)
        commit, by_hand, paths = there()
        sent = {prefix + file: data for file, data in files.items() if file != README or not by_hand}
        stale = sorted(paths - {prefix + file for file in files})
        operations: list[Any] = [CommitOperationAdd(path, data) for path, data in sent.items()]
        operations += [CommitOperationDelete(path) for path in stale]
        done = api.create_commit(
            name,
            operations,
            commit_message=message or "Trained interventions, written by iitkit",
            revision=revision,
            create_pr=create_pr,
            parent_commit=commit,
        )
        return Pushed(name, str(done.oid), str(done.pr_url or done.commit_url), by_hand)

    return asked(ask, name, revision, push=True)


def public(artifact: Artifact) -> Artifact:
    """Return an artifact as it may be shown: no path of this machine is in its config."""
    config = artifact.config
    told: dict[str, Any] = {**config, "base": {**config["base"], "id": name_of(config["base"])}}
    told["placements"] = _told(config["placements"])
    if config.get("task"):
        told["task"] = task_of(config)
    return replace(artifact, config=told)


def _told(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _told(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_told(item) for item in value]
    return without_folders(value) if isinstance(value, str) else value
