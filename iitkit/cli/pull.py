"""``iitkit pull user/repo``: an artifact from the Hub."""

from __future__ import annotations

from collections.abc import Sequence

from iitkit.cli.options import options, parser

USAGE = """\
Fetch an artifact from the Hugging Face Hub: its own files, checked, no code. iitkit.load("user/repo") does so itself.
"""


def run(command: str, arguments: Sequence[str]) -> None:
    """Pull.

    Args:
        command: ``pull``.
        arguments: what follows it.

    Raises:
        IITKitError: see :func:`iitkit.hub.pull.pull`.
    """
    asked = parser(command, USAGE, "user/repo[@revision]")
    asked.add_argument("repo", help="user/repo or user/repo@revision")
    asked.add_argument("--to", metavar="FOLDER", help="where to put it; the Hub's own cache unless said")
    asked.add_argument("--revision", help="branch, tag or commit; the newest of main unless said")
    asked.add_argument("--subfolder", help="folder in the repo")
    given = options(asked, arguments)
    from iitkit.hub.pull import pull

    found = pull(given.repo, revision=given.revision, folder=given.to, subfolder=given.subfolder)
    print(f"artifact: {found}", flush=True)
