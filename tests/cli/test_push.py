"""``iitkit push`` and ``iitkit pull`` where no Hub is needed; with one they are tested in tests/hub/test_sharing.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from artifacts import write
from running import iitkit, said

LOGIN = "you are not logged in to the Hub. Run `hf auth login` or set HF_TOKEN"


@pytest.mark.parametrize("command", ["push", "pull"])
def test_help(command: str) -> None:
    ran = iitkit(command, "--help")
    assert ran.code == 0
    assert ran.out.startswith(f"usage: iitkit {command} ")
    assert {"push": "--create-pr", "pull": "--to FOLDER"}[command] in ran.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["push"], "push: the following arguments are required: artifact, repo. See iitkit push --help"),
        (["pull"], "pull: the following arguments are required: repo. See iitkit pull --help"),
        (["pull", "a/b", "--revison", "x"], "pull: unrecognized arguments: --revison x. Did you mean '--revision'?"),
        (["push", "nowhere", "a/b"], "no artifact 'nowhere': give the folder that `iitkit fit` wrote"),
        (["pull", "a/b/c"], "artifact 'a/b/c': expected user/name, or user/name@revision"),
        (["pull", "../x"], "artifact '../x': expected user/name, or user/name@revision"),
        (["pull", "a/b", "--subfolder", ".."], "subfolder '..': expected a folder of the repo"),
        (["pull", "a/b@main", "--revision=dev"], "artifact 'a/b@main' and revision 'dev' name two revisions"),
        (["pull", "a/b", "--to", "."], ". is there already: name a folder that is not, or delete it"),
    ],
)
def test_what_cannot_be(arguments: list[str], message: str) -> None:
    assert message in said(iitkit(*arguments))


def test_without_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert LOGIN in said(iitkit("push", write(tmp_path / "a"), "user/a"))


def test_a_hostile_artifact_is_not_pushed(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    (folder / "weights.pt").write_bytes(b"\x80")
    assert "holds weights.pt, which can run code when it is loaded" in said(iitkit("push", folder, "user/a"))
