"""``iitkit vector``: texts from lists and files, the artifact, the trial, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from byhand import activation, relative
from ourtokenizers import CHATML, adding
from running import files, iitkit
from tiny import tiny_model

import iitkit as package
from iitkit.cli.texts import texts_of

POSITIVE, NEGATIVE = ["When Mary was happy", "Today she is"], ["Mary stayed", "On Monday, John was late"]
SAID = (f"--positive={json.dumps(POSITIVE)}", f"--negative={json.dumps(NEGATIVE)}")


def test_vector_is_tried_and_kept(shallow_gpt2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--layers=[1,2]", "--keep=2", '--prompts=["The", "When Mary"]', "--good=[happy]", "--bad=[late]")
    ran = iitkit("vector", "--base", shallow_gpt2, *SAID, *options, "--strengths=[-1,2]", "--tokens=3")
    assert ran.code == 0, ran.err
    written = [file for file in files(Path("runs/vector")) if not file.startswith("artifact/")]
    assert written == ["config.yaml", "effects.jsonl", "vector.txt"]
    model, tokenizer = package.load_base(shallow_gpt2)
    expected = package.vector(model, tokenizer, POSITIVE, NEGATIVE, layers=2)
    found = package.load("runs/vector")
    assert list(found.interventions) == ["layer_2"]
    kept = found.interventions["layer_2"].state_dict()["edit.vector"]
    assert torch.equal(kept, expected.vectors["layer_2"])
    assert found.config["made"]["positive"] == 2
    effects = [json.loads(line) for line in Path("runs/vector/effects.jsonl").read_text().splitlines()]
    kinds = [("vector", -1.0), ("random", -1.0), ("vector", 2.0), ("random", 2.0)]
    assert [(e["name"], e["kind"], e["strength"]) for e in effects] == [
        ("none", "none", 0.0),
        *((name, *kind) for name in ("layer_1", "layer_2") for kind in kinds),
    ]
    said = [line for line in ran.out.splitlines() if line]
    assert [line for line in Path("runs/vector/vector.txt").read_text().splitlines() if line] == said[:-1]
    assert said[-1] == "artifact: runs/vector/artifact"
    assert "mean_difference of 2 positive and 2 negative prompts, read at last" in ran.out


def test_without_prompts_nothing_is_tried(shallow_gpt2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = iitkit("vector", "--base", shallow_gpt2, *SAID, "--method=pca", "--default_root_dir=out")
    assert ran.code == 0, ran.err
    assert "effects.jsonl" not in files(Path("out"))
    assert list(package.load("out").interventions) == [f"layer_{i}" for i in range(4)]


@pytest.mark.parametrize("prompts", [(), ("--prompts=[The]", "--good=[happy]", "--bad=[late]", "--tokens=1")])
def test_the_kept_layer_may_be_counted_from_the_end(
    prompts: tuple[str, ...], shallow_gpt2: str, tmp_path: Path
) -> None:
    root = ("--layers=null", f"--default_root_dir={tmp_path / 'out'}", *prompts)
    ran = iitkit("vector", "--base", shallow_gpt2, *SAID, "--keep=-1", *root)
    assert ran.code == 0, ran.err
    assert list(package.load(tmp_path / "out").interventions) == ["layer_3"]
    ran = iitkit("vector", "--base", shallow_gpt2, *SAID, "--keep=4", *root)
    assert (ran.code, ran.out) == (2, "")  # before anything is tried


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--good=[happy]",), "good: only prompts are judged by it: give prompts, or leave it out"),
        (("--tokens=3",), "tokens: only prompts are judged by it"),
        (("--penalty=1",), "penalty: only the probe has one, the method is 'mean_difference'"),
        (("--strengths=[1]",), "strengths: only prompts are judged by it"),
        (("--prompts=[The]", "--good=[happy]"), "bad is missing: prompts are judged by good and bad words"),
        (("--layers=[1,2]", "--keep=3"), "keep 3: expected one of the layers [1, 2]"),
        (("--method=mean",), "method: given 'mean', expected 'mean_difference' or 'pca' or 'probe'"),
        (("--layers=[9]",), "has layers 0 to 3"),
        (("--positive=nowhere.txt",), "positive: no file 'nowhere.txt': give a .txt, .jsonl, .json or .yaml file"),
        (("--penalty=0", "--method=probe"), "penalty 0.0: expected a number above 0"),
        (("--keep=9",), "layers 9: GPT2LMHeadModel has layers 0 to 3"),
        (("--negative=[3]",), "negative[0]: 3: expected text, in quotes '3'"),
        (("--prompts=[The]", "--good=[happy]", "--bad=[late]", "--tokens=0"), "tokens 0: expected 1 or more"),
        (("--prompts=[The]", "--good=[happy]", "--bad=[late]", "--strengths=[]"), "strengths: expected one or more"),
        (("--chat",), "the tokenizer has no chat template: give one by template, a .jinja file, or take an"),
        (("--system=x",), "system is of texts that chat makes a user's turn: set chat to true, or leave it out"),
        (("--template=x.jinja",), "template is of chats: set chat to true, or give messages"),
    ],
)
def test_refused(options: tuple[str, ...], said: str, shallow_gpt2: str, tmp_path: Path) -> None:
    ran = iitkit("vector", "--base", shallow_gpt2, *SAID, *options, f"--default_root_dir={tmp_path / 'out'}")
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) <= 2
    assert not (tmp_path / "out").exists()


@pytest.fixture
def chatting(tmp_path: Path) -> str:
    """A folder with a tiny LLaMA whose tokenizer puts a token before each text and has a chat template."""
    tokenizer = adding(before="<|endoftext|>")
    tokenizer.chat_template = CHATML
    tiny_model("llama").save_pretrained(tmp_path / "chatting")
    tokenizer.save_pretrained(tmp_path / "chatting")
    return str(tmp_path / "chatting")


def chat(*turns: str) -> dict[str, list[dict[str, str]]]:
    return {"messages": [{"role": role, "content": text} for role, _, text in (turn.partition(": ") for turn in turns)]}


SAYS, MINES = "<|user|>\nWhen Mary\n<|assistant|>\nwas happy", "<|system|>\nThe park\n<|user|>\nJohn\n<|assistant|>\n"


@pytest.mark.parametrize("flag", ["--chat", "--chat=true"])
def test_chats_by_hand(chatting: str, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat ends where the assistant's words do, or where they would begin; the template writes the special tokens."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps(chat("user: When Mary", "assistant: was happy ")) + "\n")
    negative = json.dumps([chat("system: The park", "user: John")["messages"]])
    options = (f"--negative={negative}", "--layers=[1]", "--prompts=[Today]", flag, "--system=The park", "--tokens=2")
    ran = iitkit("vector", "--base", chatting, "--positive=a.jsonl", *options, "--good=[happy]", "--bad=[late]")
    assert ran.code == 0, ran.err
    model, tokenizer = package.load_base(chatting)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (SAYS, MINES)]
    states = [activation(model, row, model.model.layers[1])[-1] for row in ids]  # type: ignore[union-attr]
    found = package.load("runs/vector")
    kept = found.interventions["layer_1"].state_dict()["edit.vector"]
    assert relative(kept, states[0] - states[1]) <= 1e-5
    assert (found.config["chat"], found.config["system"]) == (True, "The park")  # and so it is steered
    steered = iitkit("steer", "runs/vector", "--prompt=Today", "--strength=3", "--new_tokens=4", "--where=all")
    assert steered.code == 0, steered.err
    asked = tokenizer(MINES.replace("John", "Today"), add_special_tokens=False, return_tensors="pt")
    with package.intervening(model, found.alignment(), strength=3.0, where="all"):
        written = model.generate(**asked, max_new_tokens=4, do_sample=False, pad_token_id=0)  # type: ignore[operator]
    assert tokenizer.decode(written[0, asked["input_ids"].shape[1] :], skip_special_tokens=True) in steered.out
    effects = [json.loads(line) for line in Path("runs/vector/effects.jsonl").read_text().splitlines()]
    words = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in ("happy", "late")]
    prompt = tokenizer(MINES.replace("John", "Today"), add_special_tokens=False)["input_ids"]
    for effect, push in zip(effects[:2], (0.0, -1.0), strict=True):
        hook = model.model.layers[1].register_forward_hook(lambda _, __, out, by=push: out + by * kept)  # type: ignore[union-attr]
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0, -1]  # type: ignore[operator]
        hook.remove()
        assert effect["logits"] == [pytest.approx(float(logits[words[0]] - logits[words[1]]), abs=1e-4)]


def test_texts_take_the_tokenizers_own_tokens_and_chats_do_not(chatting: str, tmp_path: Path) -> None:
    root = (f"--default_root_dir={tmp_path / 'out'}", "--layers=[1]")
    assert iitkit("vector", "--base", chatting, "--positive=[John]", "--negative=[Mary]", *root).code == 0
    model, tokenizer = package.load_base(chatting)
    ids = [[0, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in ("John", "Mary")]
    states = [activation(model, row, model.model.layers[1])[-1] for row in ids]  # type: ignore[union-attr]
    found = package.load(tmp_path / "out")
    assert relative(found.interventions["layer_1"].state_dict()["edit.vector"], states[0] - states[1]) <= 1e-5
    assert "chat" not in found.config


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--negative=[Mary]",), "positive[0] is a chat and negative[0] a text: set chat to true, which makes texts"),
        (("--chat",), "chat is of texts; messages are chats as they are: leave it out"),
        (("--system=x",), "system is of texts that chat makes a user's turn: write it in the messages"),
        (("--template=nowhere.jinja",), "template: no chat template 'nowhere.jinja'. Expected a .jinja file"),
        (('--negative=[{"messages": []}]',), "negative[0]: its chat has no turn"),
        (('--negative=[{"messages": "x"}]',), "negative[0]: messages 'x': expected a list of turns {role, content}"),
        (('--negative=[[{"role": "me", "content": "x"}]]',), "turn 0 of its chat is {'role': 'me', 'content': 'x'}"),
        (('--negative=[[{"role": "user", "content": ""}]]',), "expected {role, content}, a role of system, user"),
        (('--negative=[["x"]]',), "turn 0 of its chat is x"),
    ],
)
def test_chats_that_are_none(options: tuple[str, ...], said: str, chatting: str, tmp_path: Path) -> None:
    rows = json.dumps([chat("user: When Mary")])
    given = ("--positive", rows, "--negative", rows, *options, f"--default_root_dir={tmp_path / 'out'}")
    ran = iitkit("vector", "--base", chatting, *given)
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) <= 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "one\n\n two\n"),
        ("a.jsonl", '{"text": "one"}\n" two"\n'),
        ("a.json", '["one", {"prompt": " two"}]'),
        ("a.yaml", "- one\n- text: ' two'\n"),
    ],
)
def test_texts_of_files(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert [entry for _, entry in texts_of("positive", str(tmp_path / name))] == ["one", " two"]


def test_texts_of_our_own_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(texts_of("prompts", "reviews/neutral.jsonl")) == 24
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews" / "neutral.jsonl").write_text('"mine"\n')
    assert texts_of("prompts", "reviews/neutral.jsonl") == [("reviews/neutral.jsonl line 1", "mine")]
    with pytest.raises(package.IITKitError, match="no file"):
        texts_of("prompts", "../datasets/reviews/neutral.jsonl")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", "{", "a.jsonl cannot be read"),
        ("a.jsonl", '{"txt": "one"}', r"a.jsonl line 1: \{'txt': 'one'\}: expected a text under text"),
        ("a.yaml", "- no", r"a.yaml\[0\]: False: expected text, in quotes"),
        ("a.yaml", "text: one", "holds a dict: expected a list of texts"),
        ("a.txt", "\n\n", "positive: there is no text"),
        ("a.json", '["one", "  "]', r"a.json\[1\]: '  ': expected text"),
    ],
)
def test_texts_that_are_none(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(package.IITKitError, match=said):
        texts_of("positive", str(tmp_path / name))
