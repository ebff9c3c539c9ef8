"""Push and pull with the real client, against a Hub on this machine; in a process of its own, as the client reads its
settings when it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import json, os, sys
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


with loopback.hub() as hub:
    os.environ.update(loopback.environment(hub.url, home / "hf"))
    import datasets
    import huggingface_hub
    from iitkit.data.folder import Card, write_dataset
    from iitkit.data.recorded import Recorded
    from iitkit.data.sharing import pull_dataset, push_dataset

    def pair(i):
        return {"base": f"cat {i} is", "source": f"dog {i} is", "label": " a", "base_label": [" a", " b"][i % 2]}

    splits = {"train": [pair(i) for i in range(5)], "test": [pair(i) for i in range(5, 8)],
              "validation": [pair(8)]}
    folder = write_dataset(home / "ours", splits, Card("Cats", license="cc0-1.0"))
    repos = hub.repos

    # push
    tell("pushed", lambda: push_dataset(folder, "user/cats"))
    said["main"] = sorted(repos["datasets", "user/cats"].files("main"))
    said["same bytes"] = all(
        (folder / name).read_bytes() == repos["datasets", "user/cats"].files("main")[name] for name in names(folder)
    )
    said["private"] = repos["datasets", "user/cats"].private
    (folder / "notes.txt").write_text("mine")
    (folder / ".secret.jsonl").write_text("{}")
    tell("branch", lambda: push_dataset(folder, "user/cats", revision="dev", message="on a branch"))
    said["branches"] = {b: repos["datasets", "user/cats"].sha(b) for b in ("main", "dev")}
    said["dev"] = sorted(repos["datasets", "user/cats"].files("dev"))
    said["messages"] = repos["datasets", "user/cats"].messages
    push_dataset(folder, "user/hidden", private=True)
    said["hidden"] = repos["datasets", "user/hidden"].private
    # the same dataset as parquet, and with more rows
    larger = {**splits, "train": [pair(i) for i in range(10, 16)]}
    write_dataset(home / "new", larger, format="parquet")
    first = said["pushed"]
    tell("second", lambda: push_dataset(home / "new", "user/cats"))
    said["main again"] = sorted(repos["datasets", "user/cats"].files("main"))

    # pull and read
    tell("pulled", lambda: names(pull_dataset("user/cats")))
    tell("pulled commit", lambda: names(pull_dataset("user/cats", revision=first)))
    tell("pulled here", lambda: [str(pull_dataset("user/cats", folder=home / "here")), names(home / "here")])
    tell("read", lambda: [(r := Recorded("user/cats")).name, {s: r.size(s, ["x"]) for s in r.splits()}])
    tell("read commit", lambda: [(r := Recorded("user/cats", first)).name, {s: r.size(s, ["x"]) for s in r.splits()}])
    tell("texts", lambda: [t.text for t in Recorded("user/cats", revision="dev").prompts("validation")[0]])
    tell("load_dataset", lambda: datasets.load_dataset("user/cats", split="test")["base"][:])
    line = json.dumps(pair(1)).encode()
    hub.put("datasets", "user/many", {
        "README.md": b"---\\nconfigs:\\n- config_name: one\\n  data_files: data/one-*.jsonl\\n- config_name: two\\n"
                     b"  data_files: [{split: train, path: two.jsonl}, {split: test, path: t.jsonl}]\\n---\\n# many",
        "data/one-0.jsonl": b"\\n".join(json.dumps(pair(i)).encode() for i in range(9)),
        "data/one-1.jsonl": b"\\n".join(json.dumps(pair(i)).encode() for i in range(9, 20)),
        "two.jsonl": line, "t.jsonl": line, "many.py": b"raise SystemExit('code of the Hub ran')", "huge.bin": b"0",
    })
    hub.asked.clear()
    tell("config", lambda: [(r := Recorded("user/many", config="one")), {s: r.size(s, ["x"]) for s in r.splits()}][1])
    said["fetched"] = sorted({a.rpartition("/")[2] for a in hub.asked if a.startswith("GET /datasets/")})
    tell("no config", lambda: Recorded("user/many").name)
    tell("other config", lambda: Recorded("user/many", config="tow").name)
    hub.put("datasets", "user/code", {"code.py": b"raise SystemExit", "README.md": b"# no data"})
    tell("code", lambda: Recorded("user/code").name)
    tell("pulled code", lambda: str(pull_dataset("user/code")))
    hub.put("models", "user/model", {"config.json": b"{}"})
    tell("model", lambda: Recorded("user/model").name)
    bad = {"base": "x", "source": 3, "label": " a"}
    hub.put("datasets", "user/bad", {"train.jsonl": b"\\n" + line + b"\\n" + json.dumps(bad).encode()})
    tell("bad row", lambda: Recorded("user/bad").name)

    # prompts and completions, and chats
    from iitkit.data import CompletionDataModule, Dataset
    def chat(i):
        return {"messages": [{"role": "user", "content": f"Où {i} ?"}, {"role": "assistant", "content": "Là."}]}

    says = {split: {"prompt": split, "completion": " é"} for split in ("train", "validation", "test")}
    card = "---\\nconfigs:\\n- config_name: says\\n  data_files:\\n"
    card += "".join(f"  - {{split: {split}, path: says/{split}.jsonl}}\\n" for split in says)
    hub.put("datasets", "user/says", {
        "README.md": f"{card}- config_name: chats\\n  data_files: chats.jsonl\\n---\\n".encode(),
        "chats.jsonl": "\\n".join(json.dumps(chat(i), ensure_ascii=False) for i in range(5)).encode(),
        **{f"says/{split}.jsonl": json.dumps(row).encode() for split, row in says.items()},
    })

    def examples(*options):
        found = CompletionDataModule(Dataset("user/says", *options), seed=0)
        return [found.name, {s: [[e.prompt, e.completion] for e in of] for s, of in found.examples.items()}]

    tell("completions", lambda: examples(None, "says"))
    tell("chats", lambda: examples(None, "chats"))
    tell("completions of no revision", lambda: examples("v9", "says"))

    # what goes wrong
    tell("nobody", lambda: Recorded("user/nobody").name)
    tell("no revision", lambda: Recorded("user/cats", revision="v9").name)
    tell("not mine", lambda: push_dataset(folder, "other/cats"))
    tell("bad id", lambda: push_dataset(folder, "a/b/c"))
    tell("no folder", lambda: push_dataset(home / "nowhere", "user/cats"))
    del os.environ["HF_TOKEN"]
    hub.asked.clear()
    tell("no token", lambda: push_dataset(folder, "user/cats"))
    said["asked without token"] = list(hub.asked)
    tell("hidden from me", lambda: Recorded("user/hidden").name)
    os.environ["HF_TOKEN"] = "hf_wrong"
    tell("wrong token", lambda: push_dataset(folder, "user/cats"))
    os.environ["HF_TOKEN"] = loopback.TOKEN
    hub.fails = 500
    tell("broken push", lambda: push_dataset(folder, "user/cats"))
    tell("broken pull", lambda: str(pull_dataset("user/never")))
    hub.fails = 0
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    tell("offline push", lambda: push_dataset(folder, "user/cats"))
    tell("offline read", lambda: Recorded("user/cats").name)
    tell("offline new", lambda: Recorded("user/never").name)
    hub.put("datasets", "user/never", {"train.jsonl": line})
    tell("offline unseen", lambda: Recorded("user/never").name)
    huggingface_hub.constants.HF_HUB_OFFLINE = False

tell("down push", lambda: push_dataset(folder, "user/cats"))
tell("down read", lambda: Recorded("user/cats").name)
tell("down new", lambda: Recorded("user/down").name)
print("SAID " + json.dumps(said))
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


def test_push_makes_the_repo_and_uploads_every_byte(said: dict[str, Any]) -> None:
    assert len(said["pushed"]) == 40
    assert said["main"] == [".gitattributes", "README.md", "test.jsonl", "train.jsonl", "validation.jsonl"]
    assert said["same bytes"] is True
    assert said["private"] is False
    assert said["hidden"] is True


def test_push_takes_only_readme_and_data(said: dict[str, Any]) -> None:
    """The user's own notes and hidden files beside them stay at home."""
    assert said["dev"] == [".gitattributes", "README.md", "test.jsonl", "train.jsonl", "validation.jsonl"]


def test_push_to_a_branch(said: dict[str, Any]) -> None:
    assert said["branches"] == {"main": said["pushed"], "dev": said["branch"]}
    assert said["messages"][1:3] == ["Counterfactual pairs, written by iitkit", "on a branch"]


def test_push_again_removes_what_is_no_longer_there(said: dict[str, Any]) -> None:
    assert said["main again"] == [".gitattributes", "README.md", "test.parquet", "train.parquet", "validation.parquet"]


def test_pull(said: dict[str, Any]) -> None:
    assert said["pulled"] == ["README.md", "test.parquet", "train.parquet", "validation.parquet"]
    assert said["pulled commit"] == ["README.md", "test.jsonl", "train.jsonl", "validation.jsonl"]
    where, files = said["pulled here"]
    assert where == str(Path(said["home"]).resolve() / "here")
    assert {"README.md", "train.parquet"} <= set(files)


def test_recorded_reads_the_hub(said: dict[str, Any]) -> None:
    assert said["read"] == [f"user/cats@{said['second'][:12]}", {"train": 6, "validation": 1, "test": 3}]
    assert said["read commit"] == [f"user/cats@{said['pushed'][:12]}", {"train": 5, "validation": 1, "test": 3}]
    assert said["texts"] == ["cat 8 is", "dog 8 is"]
    assert said["load_dataset"] == ["cat 5 is", "cat 6 is", "cat 7 is"]


def test_completions_and_chats_are_read_from_the_hub(said: dict[str, Any]) -> None:
    name, found = said["completions"]
    assert name.startswith("user/says@")
    assert found == {split: [[split, " é"]] for split in ("train", "validation", "test")}
    _, found = said["chats"]
    assert {split: len(rows) for split, rows in found.items()} == {"train": 3, "validation": 1, "test": 1}
    rows = [row for of in found.values() for row in of]
    assert sorted(rows) == [[[["user", f"Où {i} ?"]], "Là."] for i in range(5)]
    assert said["completions of no revision"].startswith("IITKitError: ")
    assert "v9" in said["completions of no revision"]


def test_only_the_files_of_the_config_are_fetched(said: dict[str, Any]) -> None:
    assert said["config"] == {"train": 12, "validation": 4, "test": 4}  # 20 pairs, divided
    assert said["fetched"] == ["README.md", "one-0.jsonl", "one-1.jsonl"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no config", "user/many has several configs (one, two): say which, config: one"),
        ("other config", "user/many has no config 'tow'. Did you mean 'two'? Expected one of one, two"),
        ("code", "has no data file: expected train, validation and test as one of .jsonl, .parquet, .csv"),
        ("pulled code", "user/code has no data file: expected train"),
        ("model", "dataset 'user/model' was not found on the Hub: check the spelling"),
        ("bad row", "train.jsonl line 3: column 'source' is 3 (int): expected text"),
        (
            "nobody",
            "dataset 'user/nobody' was not found on the Hub: check the spelling. If it is private: Run `hf auth",
        ),
        ("no revision", "dataset 'user/cats' has no revision 'v9': leave revision out for the newest"),
        (
            "not mine",
            "dataset 'other/cats': the Hub refused your token (403): it needs write access. Run `hf auth login",
        ),
        ("bad id", "dataset 'a/b/c': expected user/name"),
        ("no folder", "nowhere is no dataset: it has no README.md. Write it with write_dataset first"),
        ("no token", "dataset 'user/cats': you are not logged in to the Hub. Run `hf auth login` or set HF_TOKEN"),
        ("hidden from me", "dataset 'user/hidden' was not found on the Hub: check the spelling. If it is private"),
        ("wrong token", "dataset 'user/cats': the Hub refused your token (401)"),
        ("broken push", "dataset 'user/cats': the Hub answered Server error '500 Internal Server Error'"),
        ("broken pull", "dataset 'user/never': the Hub could not be reached and the dataset is not all in the local"),
        ("offline push", "dataset 'user/cats': HF_HUB_OFFLINE is set, so the Hub is not asked. Unset it"),
        ("offline new", "dataset 'user/never': the Hub could not be reached and the dataset is not all in the local"),
        ("offline unseen", "dataset 'user/never': the Hub could not be reached and the dataset is not all in the"),
        ("down push", "dataset 'user/cats': the Hub could not be reached ("),
        ("down new", "dataset 'user/down': the Hub could not be reached and the dataset is not all in the local cache"),
    ],
)
def test_messages(said: dict[str, Any], name: str, message: str) -> None:
    assert said[name].startswith("IITKitError: "), said[name]
    assert message in said[name]
    assert len(said[name].splitlines()) == 1
    assert len(said[name]) < 300


def test_without_a_token_the_hub_is_not_asked(said: dict[str, Any]) -> None:
    assert said["asked without token"] == []


@pytest.mark.parametrize("name", ["offline read", "down read"])
def test_what_was_fetched_is_read_without_a_hub(said: dict[str, Any], name: str) -> None:
    assert said[name] == f"user/cats@{said['second'][:12]}"
