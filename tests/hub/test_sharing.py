"""Push → pull → load with the real client, against a Hub on this machine; in a process of its own, as the client reads
its settings when it is imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import contextlib, io, json, os, re, sys, warnings
from pathlib import Path

import loopback

home = Path(sys.argv[1])
said = {}


def tell(name, question):
    try:
        said[name] = question()
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


def command(*arguments):
    from iitkit.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return [code, out.getvalue(), err.getvalue()]


with loopback.hub() as hub:
    os.environ.update(loopback.environment(hub.url, home / "hf"))
    os.environ["IITKIT_CACHE"] = str(home / "cache")
    warnings.simplefilter("error")
    import huggingface_hub
    import torch
    from tiny import save_tiny

    import iitkit
    from iitkit.hub import Values
    from iitkit.hub.pull import pull

    base = save_tiny(home / "secret-place" / "tiny", "gpt2")
    model, tokenizer = iitkit.load_base(str(base))
    began = torch.linalg.qr(torch.randn(32, 2, generator=torch.Generator().manual_seed(1)))[0]
    from safetensors.torch import save_file
    save_file({"basis": began.contiguous()}, str(home / "secret-place" / "began.safetensors"))
    edit = iitkit.LowRankSubspace(iitkit.SiteInfo(32), rank=2, start=str(home / "secret-place" / "began.safetensors"))
    values = Values(("female", "male"), 40 * torch.randn(2, 2, generator=torch.Generator().manual_seed(2)), (3, 4))
    metrics = {"test/iia": 0.975, "test/iia_flipped": 0.95, "test/n": 40, "full_vector/iia": 1.0,
               "full_vector/iia_flipped": 1.0, "random_subspace/iia": 0.5, "random_subspace/iia_flipped": 0.025}
    alignment = {"gender": (iitkit.Site(layer=2, position="name"), edit)}
    folder = iitkit.save(
        home / "run" / "artifact", model, alignment, tokenizer, values={"gender": values}, metrics=metrics,
        task="PronounGender", example={"prompt": "Yesterday, Anna walked home because", "spans": {"name": "Anna"}},
    )
    (folder / "notes.txt").write_text("mine")
    found = iitkit.load(folder)
    one = tokenizer(["Yesterday, Anna walked home because"], return_tensors="pt")
    other = tokenizer(["Today, Paul walked home because"], return_tensors="pt")

    def logits(artifact):
        with torch.no_grad():
            return iitkit.interchange(model, one, other, artifact.alignment({"gender": 2})).logits

    def steered(artifact):
        with artifact.steer(model, tokenizer, {"gender": "male"}, spans={"name": "Anna"}, match="exact"):
            return model.generate(**one, max_new_tokens=4, do_sample=False, pad_token_id=0, **SCORED).logits

    def written():
        return model.generate(**one, max_new_tokens=4, do_sample=False, pad_token_id=0, **SCORED).logits

    def same(some, others):
        return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))

    SCORED = {"return_dict_in_generate": True, "output_logits": True}
    plain, repos = logits(found), hub.repos

    # push, load
    tell("pushed", lambda: found.push_to_hub("user/gender").commit)
    repo = repos["models", "user/gender"]
    said["main"] = {name: len(data) for name, data in repo.files("main").items()}
    said["commits"] = repo.messages
    said["config"] = json.loads(repo.files("main")["config.json"])
    said["readme"] = repo.files("main")["README.md"].decode()
    sent = repo.files("main")["interventions.safetensors"]
    said["same weights"] = sent == (folder / "interventions.safetensors").read_bytes()
    said["told"] = [name for name, data in repo.files("main").items() if b"secret-place" in data]
    tell("loaded", lambda: torch.equal(logits(iitkit.load("user/gender")), plain))
    edited = steered(found)
    tell("steered", lambda: [same(steered(iitkit.load("user/gender")), edited), same(edited, written())])
    tell("commit", lambda: torch.equal(logits(iitkit.load("user/gender@" + said["pushed"])), plain))
    tell("revision", lambda: torch.equal(logits(iitkit.load("user/gender", revision=said["pushed"])), plain))
    tell("metrics", lambda: iitkit.load("user/gender").metrics == metrics)
    hub.asked.clear()
    tell("again", lambda: iitkit.load("user/gender@" + said["pushed"]).config["task"])
    said["asked again"] = [a for a in hub.asked if a.startswith("GET /user")]

    # branches, folders, pull requests, private
    tell("branch", lambda: found.push_to_hub("user/gender", revision="dev", message="on a branch").commit)
    said["branches"] = {b: repo.sha(b) for b in repo.branches}
    tell("from branch", lambda: torch.equal(logits(iitkit.load("user/gender@dev")), plain))
    tell("subfolder", lambda: str(found.push_to_hub("user/many", subfolder="artifacts/gender").repo_id))
    said["in subfolder"] = sorted(repos["models", "user/many"].files("main"))
    said["readme in subfolder"] = repos["models", "user/many"].files("main")["artifacts/gender/README.md"].decode()
    tell("from subfolder", lambda: torch.equal(logits(iitkit.load("user/many", subfolder="artifacts/gender/")), plain))
    tell("no subfolder", lambda: str(iitkit.load("user/many")))
    tell("bad subfolder", lambda: str(iitkit.load("user/many", subfolder="../x")))
    tell("other subfolder", lambda: str(iitkit.load("user/many", subfolder="x")))
    hub.put("models", "other/theirs", {"README.md": b"# theirs"})
    tell("pull request", lambda: found.push_to_hub("other/theirs", create_pr=True).url.removeprefix(hub.url))
    theirs = repos["models", "other/theirs"]
    said["theirs"] = {branch: sorted(theirs.files(branch)) for branch in theirs.branches}
    tell("from pull request", lambda: torch.equal(logits(iitkit.load("other/theirs", revision="refs/pr/1")), plain))
    tell("private", lambda: found.push_to_hub("user/hidden", private=True).repo_id)
    said["hidden"] = repos["models", "user/hidden"].private

    # READMEs
    hub.put("models", "user/written", {"README.md": b"# By hand\\n", "extra.txt": b"theirs"})
    tell("over a hand-written README", lambda: str(found.push_to_hub("user/written")).splitlines()[1])
    said["written"] = {n: d.decode("latin1")[:9] for n, d in repos["models", "user/written"].files("main").items()}
    from dataclasses import replace
    better = replace(found, metrics={**metrics, "test/iia": 1.0})
    tell("over our own README", lambda: better.push_to_hub("user/gender").readme_kept)
    said["new readme"] = repo.files("main")["README.md"].decode() != said["readme"]
    edited = {**repo.files("main"), "README.md": repo.files("main")["README.md"].replace(b"Trained", b"Well trained")}
    repo.commit("main", edited)
    tell("over an edited README", lambda: found.push_to_hub("user/gender").readme_kept)
    said["kept"] = b"Well trained" in repo.files("main")["README.md"]
    (folder / "README.md").write_text("# Mine\\n")
    tell("a README of mine", lambda: iitkit.load(folder).push_to_hub("user/mine").readme_kept)
    said["mine"] = repos["models", "user/mine"].files("main")["README.md"].decode()
    bare = replace(found, metrics={})
    tell("without metrics", lambda: bare.push_to_hub("user/many", subfolder="artifacts/gender").readme_kept)
    said["stale"] = sorted(repos["models", "user/many"].files("main"))

    # interrupted
    for where in ("/commit/", "/api/repos/create"):
        hub.breaks = where
        tell("interrupted at " + where, lambda: str(found.push_to_hub("user/half")))
        hub.breaks = ""
        there = repos.get(("models", "user/half"))
        said["half after " + where] = there and sorted(there.files("main"))
    tell("half", lambda: str(iitkit.load("user/half")))
    tell("pushed again", lambda: found.push_to_hub("user/half").repo_id)
    tell("whole", lambda: torch.equal(logits(iitkit.load("user/half")), plain))
    before = dict(repos["models", "user/half"].files("main"))
    hub.breaks = "/commit/"
    tell("interrupted update", lambda: str(better.push_to_hub("user/half")))
    hub.breaks = ""
    said["old stays"] = repos["models", "user/half"].files("main") == before
    original = huggingface_hub.HfApi.get_paths_info
    def meanwhile(self, name, *args, **kwargs):
        got = original(self, name, *args, **kwargs)
        repos["models", name].commit("main", {**repos["models", name].files("main"), "x": b"y"}, "meanwhile")
        return got
    huggingface_hub.HfApi.get_paths_info = meanwhile
    tell("in the meantime", lambda: str(better.push_to_hub("user/half")))
    huggingface_hub.HfApi.get_paths_info = original
    said["theirs stays"] = repos["models", "user/half"].files("main") == {**before, "x": b"y"}

    # pull
    tell("pulled", lambda: [p := pull("user/gender@dev", folder=home / "here"), names(home / "here")][1])
    tell("pulled whole", lambda: torch.equal(logits(iitkit.load(home / "here")), plain))
    tell("pulled there", lambda: str(pull("user/gender", folder=home / "here")))
    said["links"] = [p.name for p in (home / "here").iterdir() if p.is_symlink()]
    good = dict(repos["models", "user/half"].files("main"))
    good.pop("x")

    def hostile(name, files, question=None):
        hub.put("models", "evil/" + name, files)
        hub.asked.clear()
        tell(name, lambda: str(iitkit.load("evil/" + name)))
        said["fetched of " + name] = sorted({a.rpartition("/")[2] for a in hub.asked if a.startswith("GET /evil/")})

    hostile("pickled", {**good, "pytorch_model.bin": b"\\x80"})
    hostile("coded", {**good, "modeling_x.py": b"raise SystemExit"})
    hostile("large", {**good, "config.json": b" " * (4 * 2**20 + 1)})
    hostile("rest", {**good, "notes.txt": b"x", "other/model.pt": b"\\x80", "more.json": b"{}", "..%2f..%2fx": b"x"})
    hostile("changed", {**good, "interventions.safetensors": good["interventions.safetensors"][:-1] + b"\\1"})
    hostile("future", {**good, "config.json": good["config.json"].replace(b'"schema": 2', b'"schema": 9')})
    hostile("empty", {"README.md": b"# nothing"})

    # what goes wrong
    tell("nobody", lambda: str(iitkit.load("user/nobody")))
    tell("no revision", lambda: str(iitkit.load("user/gender@v9")))
    tell("two revisions", lambda: str(iitkit.load("user/gender@v9", revision="v8")))
    tell("bad id", lambda: found.push_to_hub("a/b/c"))
    tell("not mine", lambda: found.push_to_hub("other/gender"))
    tell("a folder's revision", lambda: str(iitkit.load(folder, revision="main")))
    tell("no folder", lambda: str(iitkit.load(home / "nowhere")))
    hub.put("models", "user/gated", good).gated = True

    # the commands
    tell("push", lambda: command("push", home / "run", "user/commanded", "--create_pr"))
    tell("push main", lambda: command("push", home / "run", "user/commanded", "--private", "--message=first"))
    said["commanded"] = repos["models", "user/commanded"].messages
    tell("pull", lambda: command("pull", "user/commanded", "--to", home / "there"))
    said["there"] = names(home / "there")
    tell("pull nobody", lambda: command("pull", "user/nobody"))
    tell("push nothing", lambda: command("push", home / "nothing", "user/x"))
    tell("push typo", lambda: command("push", home / "run", "user/x", "--privat"))
    tell("push half", lambda: command("push", home / "run"))

    # the snippet of the card
    os.chdir(home / "secret-place")
    code = re.search(r"```python\\n(.*?)```", said["readme"], re.DOTALL)[1]
    said["snippet"] = code
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        tell("snippet runs", lambda: exec(code, {"__name__": "card"}))
    said["snippet prints"], said["snippet warns"] = out.getvalue(), [str(w.message) for w in warned]

    del os.environ["HF_TOKEN"]
    hub.asked.clear()
    tell("no token", lambda: found.push_to_hub("user/gender"))
    said["asked without token"] = list(hub.asked)
    tell("hidden from me", lambda: str(iitkit.load("user/hidden")))
    tell("given token", lambda: torch.equal(logits(iitkit.load("user/hidden", token=loopback.TOKEN)), plain))
    tell("gated", lambda: str(iitkit.load("user/gated")))
    os.environ["HF_TOKEN"] = "hf_wrong"
    tell("wrong token", lambda: found.push_to_hub("user/gender"))
    os.environ["HF_TOKEN"] = loopback.TOKEN
    hub.fails = 500
    tell("broken push", lambda: found.push_to_hub("user/gender"))
    tell("broken pull", lambda: str(iitkit.load("user/never")))
    hub.fails = 0
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    tell("offline push", lambda: found.push_to_hub("user/gender"))
    tell("offline load", lambda: torch.equal(logits(iitkit.load("user/gender@dev")), plain))
    tell("offline unseen", lambda: str(iitkit.load("user/mine")))
    huggingface_hub.constants.HF_HUB_OFFLINE = False

tell("down push", lambda: found.push_to_hub("user/gender"))
tell("down load", lambda: torch.equal(logits(iitkit.load("user/gender@dev")), plain))
tell("down main", lambda: torch.equal(logits(iitkit.load("user/half")), plain))
tell("down unseen", lambda: str(iitkit.load("user/mine")))
print("SAID " + json.dumps(said, default=str))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every question in the script was answered."""
    home = tmp_path_factory.mktemp("hub")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        env.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(home)], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = next(line for line in done.stdout.splitlines() if line.startswith("SAID "))
    return {"home": str(home), **json.loads(found[5:])}


FILES = ["README.md", "config.json", "interventions.safetensors", "metrics.json"]


def test_push_takes_the_artifact_and_nothing_else(said: dict[str, Any]) -> None:
    assert sorted(said["main"]) == [".gitattributes", *FILES]
    assert said["same weights"] is True
    assert (said["private"], said["hidden"]) == ("user/hidden", True)
    # one commit each, after the one that makes the repo
    assert said["commits"][:3] == ["", "Trained interventions, written by iitkit", "on a branch"]


def test_what_is_pushed_tells_no_path_of_the_machine(said: dict[str, Any]) -> None:
    assert said["told"] == []
    assert said["config"]["base"]["id"] == "tiny"
    assert said["config"]["placements"]["gender"]["intervention"]["start"] == "began.safetensors"


@pytest.mark.parametrize(
    "name",
    [
        *("loaded", "commit", "revision", "metrics", "from branch", "from subfolder", "from pull request", "whole"),
        *("pulled whole", "given token", "offline load", "down load", "down main"),
    ],
)
def test_what_comes_back_is_bit_identical(said: dict[str, Any], name: str) -> None:
    """The logits of an interchange before the push and after the load."""
    assert said[name] is True


def test_steering_by_what_was_loaded(said: dict[str, Any]) -> None:
    """Every step's logits."""
    assert said["steered"] == [True, False]  # as before it was pushed; not as without it


def test_a_commit_is_fetched_once(said: dict[str, Any]) -> None:
    assert (said["again"], said["asked again"]) == ("PronounGender", [])


def test_branches_folders_and_pull_requests(said: dict[str, Any]) -> None:
    assert said["branches"] == {"main": said["pushed"], "dev": said["branch"]}
    assert said["in subfolder"] == [".gitattributes", *(f"artifacts/gender/{name}" for name in FILES)]
    assert "iitkit.load('user/many', subfolder='artifacts/gender')" in said["readme in subfolder"]
    assert said["pull request"] == "/other/theirs/discussions/1"
    assert said["theirs"] == {"main": ["README.md"], "refs/pr/1": FILES}  # whose README was by hand
    assert said["stale"] == [".gitattributes", *(f"artifacts/gender/{name}" for name in FILES[:3])]


def test_a_hand_written_readme_stays(said: dict[str, Any]) -> None:
    assert said["over a hand-written README"] == "README.md there was written by hand: it was left as it is"
    assert (said["written"]["README.md"], said["written"]["extra.txt"]) == ("# By hand", "theirs")
    assert (said["over our own README"], said["new readme"]) == (False, True)
    assert (said["over an edited README"], said["kept"]) == (True, True)
    assert (said["a README of mine"], said["mine"]) == (False, "# Mine\n")


def test_an_interrupted_push_leaves_nothing_that_looks_complete(said: dict[str, Any]) -> None:
    assert said["half after /commit/"] == [".gitattributes"]
    assert "artifact 'user/half' has no config.json: it is none, or its push was interrupted; push it" in said["half"]
    assert said["old stays"] is True
    assert "somebody pushed in the meantime; nothing was changed. Push again" in said["in the meantime"]
    assert said["theirs stays"] is True


def test_pull(said: dict[str, Any]) -> None:
    assert (said["pulled"], said["links"]) == (FILES, [])
    assert said["there"] == FILES


@pytest.mark.parametrize("name", ["pickled", "coded", "large", "empty"])
def test_what_is_refused_is_not_fetched(said: dict[str, Any], name: str) -> None:
    assert said[f"fetched of {name}"] == []


def test_only_an_artifacts_files_are_fetched(said: dict[str, Any]) -> None:
    assert said["rest"].startswith("artifact of tiny (PronounGender)")
    assert said["fetched of rest"] == FILES


LOGIN = "Run `hf auth login` or set HF_TOKEN"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no subfolder", "has no config.json: it is none, or its push was interrupted; push it again. It has the"),
        ("bad subfolder", "subfolder '../x': expected a folder of the repo, e.g. artifacts/gender"),
        ("other subfolder", "artifact 'user/many' has no such folder: check subfolder"),
        ("interrupted at /commit/", "artifact 'user/half': the Hub could not be reached (Server disconnected"),
        ("interrupted at /api/repos/create", "artifact 'user/half': the Hub could not be reached (Server disconnected"),
        ("pulled there", "here is there already: name a folder that is not, or delete it"),
        ("pickled", "artifact 'evil/pickled' holds pytorch_model.bin, which can run code when it is loaded"),
        ("coded", "artifact 'evil/coded' holds modeling_x.py, which can run code when it is loaded"),
        ("large", "artifact 'evil/large': config.json has 4194305 bytes, more than any artifact's config.json"),
        ("changed", "interventions.safetensors is not the file that config.json describes: fetch the artifact again"),
        ("future", "config.json has schema 9, this iitkit reads 2: install a newer iitkit"),
        ("empty", "artifact 'evil/empty' has no config.json: it is none"),
        ("nobody", "artifact 'user/nobody' is no folder here, and was not found on the Hub: check the spelling. If"),
        ("no revision", "artifact 'user/gender' has no revision 'v9': leave it out for the newest"),
        ("two revisions", "artifact 'user/gender@v9' and revision 'v8' name two revisions: keep one of them"),
        ("bad id", "artifact 'a/b/c': expected user/name, or user/name@revision"),
        ("not mine", f"artifact 'other/gender': the Hub refused your token (403): it needs write access. {LOGIN}"),
        ("a folder's revision", "revision is of a repo on the Hub, user/repo: "),
        ("no folder", "nowhere is no artifact: it has no config.json. Give the folder that `iitkit fit` wrote"),
        ("no token", f"artifact 'user/gender': you are not logged in to the Hub. {LOGIN}"),
        ("hidden from me", "artifact 'user/hidden' is no folder here, and was not found on the Hub: check the"),
        ("gated", f"artifact 'user/gated' is gated: accept its terms on its Hub page, then load it again. {LOGIN}"),
        ("wrong token", "artifact 'user/gender': the Hub refused your token (401): it needs write access"),
        ("broken push", "artifact 'user/gender': the Hub answered Server error '500 Internal Server Error'"),
        ("broken pull", "artifact 'user/never': the Hub answered Server error '500 Internal Server Error'"),
        ("offline push", "artifact 'user/gender': HF_HUB_OFFLINE is set, so the Hub is not asked. Unset it"),
        ("offline unseen", "artifact 'user/mine' is no folder here: the Hub could not be reached and the"),
        ("down push", "artifact 'user/gender': the Hub could not be reached ("),
        ("down unseen", "artifact 'user/mine' is no folder here: the Hub could not be reached and the"),
    ],
)  # fmt: skip
def test_messages(said: dict[str, Any], name: str, message: str) -> None:
    assert said[name].startswith("IITKitError: "), said[name]
    assert message in said[name]
    assert len(said[name].splitlines()) == 1
    assert len(said[name]) < 350


def test_without_a_token_the_hub_is_not_asked(said: dict[str, Any]) -> None:
    assert said["asked without token"] == []


def test_the_commands(said: dict[str, Any]) -> None:
    code, out, err = said["push"]
    assert (code, err) == (0, "")
    assert re.fullmatch(r"pushed: user/commanded at \w{40}: http://\S+/user/commanded/discussions/1\n", out)
    assert (said["push main"][0], said["commanded"][-1]) == (0, "first")
    assert said["pull"][1] == f"artifact: {said['home']}/there\n"
    for name, message in {
        "pull nobody": "artifact 'user/nobody' was not found on the Hub",
        "push nothing": "nothing': give the folder that `iitkit fit` wrote",
        "push typo": "push: unrecognized arguments: --privat. Did you mean '--private'? See iitkit push --help",
        "push half": "push: the following arguments are required: repo. See iitkit push --help",
    }.items():
        code, out, err = said[name]
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert message in err


def test_the_cards_snippet_runs(said: dict[str, Any]) -> None:
    assert "found = iitkit.load('user/gender')\n" in said["snippet"]
    assert "found.steer(model, tokenizer, {'gender': 'male'}, spans={'name': 'Anna'})" in said["snippet"]
    assert said["snippet runs"] is None
    assert said["snippet prints"].startswith("Yesterday, Anna walked home because")
    assert said["snippet warns"] == []
