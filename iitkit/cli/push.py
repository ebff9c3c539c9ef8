"""``iitkit push ARTIFACT user/repo``: an artifact to the Hub."""

from __future__ import annotations

from collections.abc import Sequence

from iitkit.cli.options import options, parser
from iitkit.errors import IITKitError

USAGE = """\
Push an artifact to the Hugging Face Hub in one commit: config.json, tensors, metrics and README, nothing else. A README
there that was written by hand stays as it is.
"""


def run(command: str, arguments: Sequence[str]) -> None:
    """Push.

    Args:
        command: ``push``.
        arguments: what follows it.

    Raises:
        IITKitError: see :meth:`iitkit.Artifact.push_to_hub`.
    """
    asked = parser(command, USAGE, "ARTIFACT user/repo")
    asked.add_argument("artifact", help="an artifact's folder, or a run's folder that holds one")
    asked.add_argument("repo", help="user/repo; made if it is not there")
    asked.add_argument("--private", action="store_true", help="a repo that is made can be seen by its owner only")
    asked.add_argument("--revision", help="a branch other than main; made if it is not there")
    asked.add_argument("--create-pr", action="store_true", help="open a pull request instead; it may be to any repo")
    asked.add_argument("--subfolder", help="folder in the repo")
    asked.add_argument("--message", help="the commit's message")
    asked.add_argument("--allow", action="append", default=[], help="a package of your own that may be imported")
    given = options(asked, arguments)
    from pathlib import Path

    import iitkit

    if not Path(given.artifact).exists():
        raise IITKitError(f"no artifact {given.artifact!r}: give the folder that `iitkit fit` wrote")
    found = iitkit.load(given.artifact, allow=given.allow)
    pushed = found.push_to_hub(
        given.repo,
        private=given.private,
        revision=given.revision,
        create_pr=given.create_pr,
        subfolder=given.subfolder,
        message=given.message,
    )
    print(f"pushed: {pushed}", flush=True)
