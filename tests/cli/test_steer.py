"""``iitkit steer``, through the command line on a tiny network."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from ourtokenizers import adding
from running import iitkit
from tiny import tiny_model, tiny_tokenizer

import iitkit as library
from iitkit.cli.measuring import parsed
from iitkit.cli.steer import Steer, rewritten
from iitkit.hub import Values, write_artifact
from iitkit.hub.identity import identity
from iitkit.interventions import LowRankSubspace, SiteInfo

PROMPT = "Yesterday, Anna walked home because"


@pytest.fixture
def artifact(shallow_gpt2: str, tmp_path: Path) -> Path:
    """Gender by value at a name, of the tiny GPT-2; " she" and " he" are its answers."""
    where = {"layer": 2, "component": "block_output", "position": "name", "variable": "gender"}
    edit = LowRankSubspace(SiteInfo(32, generator=torch.Generator().manual_seed(3)), rank=2)
    features = 40 * torch.randn(2, 2, generator=torch.Generator().manual_seed(5))
    return write_artifact(
        tmp_path / "artifact",
        {"gender": edit},
        {"gender": {**where, "answers": [" she", " he"]}},
        identity(tiny_model("gpt2"), shallow_gpt2),
        {"gender": SiteInfo(32)},
        values={"gender": Values(("female", "male"), features, (3, 3))},
    )


def by_library(artifact: Path, strength: float | None, new: int = 6) -> str:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    given = tokenizer(PROMPT, return_tensors="pt")
    steering = library.load(artifact).steer(
        model, tokenizer, {"gender": "male"}, spans={"name": "Anna"}, strength=strength or 0.0
    )
    with steering:
        out = model.generate(**given, max_new_tokens=new, do_sample=False, pad_token_id=0)
    text: str = tokenizer.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


def test_a_prompt_is_continued_as_the_library_does(artifact: Path) -> None:
    ran = iitkit("steer", artifact, PROMPT, "--set", "gender=he", "--span", "name=Anna", "--new_tokens", 6)
    assert ran.code == 0, ran.err
    assert ran.out == f"{PROMPT}{by_library(artifact, 1.0)}\n"
    assert by_library(artifact, 1.0) != by_library(artifact, None)


def test_plain_and_steered_side_by_side(artifact: Path) -> None:
    given = ("--set", "gender=male", "--span", "name=Anna", "--strength", 1.5, "--new-tokens", 4)
    ran = iitkit("steer", artifact, PROMPT, *given, "--compare")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0] == PROMPT
    heads = re.fullmatch(
        r"plain \(perplexity ([\d.]+)\) +\| gender=male strength 1\.5 \(perplexity ([\d.]+)\)", lines[1]
    )
    assert heads
    cells = [[cell.strip() for cell in line.split("|")] for line in lines[3:] if "|" in line]
    assert " ".join(left for left, _ in cells).split() == by_library(artifact, None, 4).split()
    assert " ".join(right for _, right in cells).split() == by_library(artifact, 1.5, 4).split()


def test_a_sweep_prints_effect_and_fluency_of_each_strength(artifact: Path) -> None:
    given = ("--set", "gender=male", "--span", "name=Anna", "--strengths", "[0, 1, 8]", "--new_tokens", 4)
    ran = iitkit("steer", artifact, PROMPT, *given, "--sweep-strength", "--expect", "he", "--instead", "she")
    assert ran.code == 0, ran.err
    head, *rows, last = ran.out.splitlines()
    assert head.split()[:4] == ["strength", "KL,", "nats", "p(he)"]
    numbers = [[float(cell) for cell in line.split()[:4]] for line in rows]
    assert [row[0] for row in numbers] == [0, 1, 8]
    assert numbers[0][1] == 0
    assert numbers[2][1] > 0.001
    assert last.startswith(("suggested: strength ", "no strength has an effect"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--set", "x=no"], {"set": {"x": "no"}}),
        (["--set", "x=null"], {"set": {"x": ["null"]}}),  # one for all rows
        (["--set", "x=#5: é"], {"set": {"x": ["#5: é"]}}),
        (["--set", "x=she: he"], {"set": {"x": ["she: he"]}}),
        (["--set", "x=05"], {"set": {"x": "05"}}),
        (["--set", "x=a = b"], {"set": {"x": "a = b"}}),
        (["--set", "x=- a"], {"set": {"x": ["- a"]}}),
        (["--set", "x=[she, he]"], {"set": {"x": ["she", "he"]}}),
        (["--set", "x=she", "--set", "y=[he, null]"], {"set": {"x": "she", "y": ["he", None]}}),
        (["--set", "x=she", "--set=x=he"], {"set": {"x": "he"}}),
        (["--set", '{"x": "a=b"}'], {"set": {"x": "a=b"}}),
        (["--set={x: she}"], {"set": {"x": "she"}}),
        (["--span", "name=Note: Anna"], {"span": {"name": ["Note: Anna"]}}),
        (["--span", 'name=["Anna", "Paul"]'], {"span": {"name": ["Anna", "Paul"]}}),
        (["--source-span", "name=12"], {"source_span": {"name": "12"}}),
        (["--steps", "[1, null]"], {"steps": [1, None]}),
        (["--compare"], {"compare": True}),
        (["--compare", "false"], {"compare": False}),
    ],
)
def test_what_is_given_arrives_as_it_was_written(arguments: list[str], expected: dict[str, object]) -> None:
    settings, _ = parsed("steer", Steer, rewritten(["runs/a", PROMPT, *arguments]))
    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("[Anna] said", "[Anna] said"),
        ("[Anna]", ["[Anna]"]),  # a list of one prompt
        ("- Anna", ["- Anna"]),
        ("-5 degrees, he said", "-5 degrees, he said"),
        ('["a", "b"]', ["a", "b"]),
        ("null", ["null"]),
        ("a: b", ["a: b"]),
        ("5", "5"),
        ("#tag\nline", "#tag\nline"),
    ],
)
def test_prompts_arrive_as_they_were_written(prompt: str, expected: object) -> None:
    for arguments in (["runs/a", prompt], ["runs/a", "--prompt", prompt], ["--artifact=runs/a", f"--prompt={prompt}"]):
        settings, _ = parsed("steer", Steer, rewritten(arguments))
        assert settings.prompt == expected


def test_a_config_and_options_together(artifact: Path, tmp_path: Path) -> None:
    config = tmp_path / "steer.yaml"
    config.write_text(
        f"artifact: {artifact}\nprompt: [{PROMPT!r}]\nset: {{gender: she}}\nspan: {{name: [Anna]}}\nnew_tokens: 6\n"
    )
    ran = iitkit("steer", "-c", config, "--set", "gender=he")
    assert ran.code == 0, ran.err
    assert ran.out == f"{PROMPT}{by_library(artifact, 1.0)}\n"
    ran = iitkit("steer", "-c", config, "--strength", 2, "--print_config")
    assert ran.code == 0, ran.err
    assert yaml.safe_load(ran.out) | {"strength": 2.0, "set": {"gender": "she"}} == yaml.safe_load(ran.out)


def test_a_chat_is_begun_once(artifact: Path, shallow_gpt2: str, tmp_path: Path) -> None:
    """The template writes the first token; the tokenizer, which would too, does not write it again."""
    tokenizer = adding("<|endoftext|>")
    tokenizer.chat_template = "<|endoftext|>{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    tiny_model("gpt2").save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    options = ("--where", "last", "--new_tokens", 3, "--base", tmp_path / "base", "--chat", "--set", "gender=he")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tokenizer is another
        ran = iitkit("steer", artifact, PROMPT, *options)
    assert ran.code == 0, ran.err
    model, ids = tiny_model("gpt2"), [0, *tiny_tokenizer()(f"{PROMPT}\n")["input_ids"]]
    with library.load(artifact).steer(model, None, {"gender": "he"}, where="last"):
        given = torch.tensor([ids])
        out = model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=3, do_sample=False, pad_token_id=0
        )
    text = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
    assert ran.out == f"{PROMPT}\n{text}\n"


def test_a_runs_folder_and_several_prompts(artifact: Path) -> None:
    """The artifact's own prefix stands before each prompt, and is not printed."""
    prompts = f'["{PROMPT}", "Anna was happy"]'
    ran = iitkit("steer", artifact.parent, "--prompt", prompts, "--set.gender", "female", "--where", "last")
    assert ran.code == 0, ran.err
    assert [line[:10] for line in ran.out.splitlines() if line[:4] in ("Yest", "Anna")] == ["Yesterday,", "Anna was h"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "gender=they"], "variable 'gender' has no value 'they'. It has 'female' (she), 'male' (he)"),
        (["--set", "gendr=he"], "no variable 'gendr'. Did you mean 'gender'?"),
        ([], "nothing is set: give a value of gender"),
        (["--set", "gender=he"], "say what it is in yours"),
        (["--set", "gender=he", "--span", "name=Eve"], "'Eve' is not in the prompt"),
        (["--set", "gender=he", "--where", "last", "--steps", "[1]"], "steps [1]: expected two numbers"),
        (["--set", "gender=he", "--where", "last", "--strengths", "[1]"], "read by sweep_strength alone"),
        (["--set", "gender=he", "--where", "last", "--compare", "--sweep-strength"], "expected one of them"),
        (["--set", "gender=he", "--where", "last", "--sweep-strength", "--expect", "he"], "give both"),
        (["--set", "gender=he", "--where", "last", "--chat"], "no chat template"),
        (["--set", "gender=he", "--where", "last", "--new-tokens", "0"], "new_tokens 0: expected 1 or more"),
        (["--set", "gender"], "--set gender: expected name=value, e.g. --set gender=she"),
        (["--set", "gender", "he"], "--set gender: expected name=value, e.g. --set gender=she"),
        (["--set=gender"], "--set gender: expected name=value, e.g. --set gender=she"),
        (["--span", "Anna", "--set", "gender=he"], "--span Anna: expected name=value, e.g. --span name=Anna"),
        (["--set"], "expected one argument"),
        (["--set", "gender=he", "--where", "last", "--sweep-strength", "--strengths", "[]"], "strengths []: expected"),
        (["--set", "gender=he", "--where", "last", "--sweep-strength", "--strength", "2"], "strength: a sweep tries"),
        (["--set", "gender=he", "--where", "last", "--temperature", "0.5"], "temperature: sampling alone has one"),
        (["--set", "gender=he", "--where", "last", "--seed", "1", "--temperature", "0"], "temperature 0: expected"),
        (["--set", "gender=he", "--where", "last", "--span", "name=Anna"], "spans name 'name', and no position"),
    ],
)
def test_what_does_not_fit_is_one_line_and_exit_code_2(artifact: Path, arguments: list[str], message: str) -> None:
    ran = iitkit("steer", artifact, PROMPT, *arguments)
    assert ran.code == 2
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) <= 2


def test_no_artifact(tmp_path: Path) -> None:
    ran = iitkit("steer", tmp_path, PROMPT)
    assert ran.code == 2
    assert "no artifact" in ran.err
