"""The logit lens against the network's own final norm and head, called by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from byhand import activation, logits_of, module_of
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from torch import Tensor

from iitkit import Addition, Site, SiteInfo, Vanilla
from iitkit.analysis.lens import lens
from iitkit.analysis.prompts import Prompt
from iitkit.errors import IITKitError
from iitkit.models.grids import Engine

TEXT = "Yesterday, Mary walked home because"
OTHER = "Yesterday, John walked home because"


def ending(model: Any, family: str, hidden: Tensor) -> Tensor:
    """The final norm and the head."""
    norm = model.model.norm if family == "llama" else model.transformer.ln_f
    with torch.no_grad():
        found: Tensor = model.lm_head(norm(hidden))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_by_hand(family: str) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    ids = tokenizer(TEXT)["input_ids"]
    he, she = (tokenizer(word)["input_ids"][0] for word in (" he", " she"))
    metrics = ["logit_difference", "probability", "rank", "kl_from_clean"]
    grid = lens(model, tokenizer, TEXT, "he", "she", metrics=metrics)
    assert grid.dims == ("layer", "position", "metric")
    with torch.no_grad():
        final = logits_of(model, ids)
    words = [[tokenizer.decode([int(i)]) for i in row.argmax(-1)] for row in [final]]
    for layer in range(4):
        made = ending(model, family, activation(model, ids, module_of(model, family, layer, "block_output")))
        assert grid.about["tokens"]["plain"][layer] == [tokenizer.decode([int(i)]) for i in made.argmax(-1)]
        for position in range(len(ids)):
            cell, logits = grid.sel(layer=layer, position=position), made[position]
            p, q = final[position].softmax(-1), logits.softmax(-1)
            assert cell.sel(metric="logit_difference") == pytest.approx(float(logits[he] - logits[she]), abs=1e-5)
            assert cell.sel(metric="probability") == pytest.approx(float(q[he]), rel=1e-4)
            assert cell.sel(metric="rank") == 1 + int((logits > logits[he]).sum())
            assert cell.sel(metric="kl_from_clean") == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-5)
    assert grid.about["tokens"]["plain"][3] == words[0]
    end = final[-1]
    expected = [float(end[he] - end[she]), float(end.softmax(-1)[he]), 1 + int((end > end[he]).sum()), 0]
    assert grid.references["clean"].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    # the last layer is what the network says
    assert grid.sel(layer=3, metric="kl_from_clean").values.max() <= 1e-6


def test_the_networks_own_answer_unless_said() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    texts = [TEXT, "Mary was sick"]
    grid = lens(model, tokenizer, texts, positions=["last", 0], layers=[1, 3])
    assert grid.dims == ("layer", "position", "example")
    assert grid.coords["position"] == ["last", "0"]
    assert grid.coords["example"] == texts
    for row, text in enumerate(texts):
        ids = tokenizer(text)["input_ids"]
        top = int(logits_of(model, ids)[-1].argmax())
        assert grid.about["answers"][row] == tokenizer.decode([top])
        states = activation(model, ids, module_of(model, "gpt2", 1, "block_output"))
        expected = ending(model, "gpt2", states).softmax(-1)[:, top]
        assert grid.sel(layer=1, position="last").values[row] == pytest.approx(float(expected[-1]), rel=1e-4)
        assert grid.sel(layer=1, position="0").values[row] == pytest.approx(float(expected[0]), rel=1e-4)
    every = lens(model, tokenizer, texts)
    assert np.isnan(every.values[:, len(tokenizer(texts[1])["input_ids"]) :, 1]).all()
    assert not np.isnan(every.values[..., 0]).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_under_an_intervention(family: str) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    ids, source = (tokenizer(text)["input_ids"] for text in (TEXT, OTHER))
    (she,) = tokenizer(" she")["input_ids"]
    grid = lens(
        model,
        tokenizer,
        Prompt(TEXT, {"name": "Mary"}, "she"),
        interventions={"gender": (Site(1, position="name"), Vanilla())},
        sources=Prompt(OTHER, {"name": "John"}),
    )
    assert grid.dims == ("run", "layer", "position")
    assert grid.coords["run"] == ["plain", "intervened"]
    edited = module_of(model, family, 1, "block_output")
    value = activation(model, source, edited)[2]
    for layer in range(4):
        module = module_of(model, family, layer, "block_output")
        plain = ending(model, family, activation(model, ids, module))
        seen: list[Tensor] = []
        handles = []

        def edit(_: Any, __: Any, output: Any, value: Tensor = value) -> Any:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[0, 2] = value
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        def read(_: Any, __: Any, output: Any, seen: list[Tensor] = seen) -> None:
            seen.append((output[0] if isinstance(output, tuple) else output)[0].clone())

        handles = [edited.register_forward_hook(edit), module.register_forward_hook(read)]
        with torch.no_grad():
            model(torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        changed = ending(model, family, seen[0])
        for position in range(len(ids)):
            for run, logits in (("plain", plain), ("intervened", changed)):
                expected = float(logits[position].softmax(-1)[she])
                assert grid.sel(run=run, layer=layer, position=position) == pytest.approx(expected, rel=1e-4)
    differs = np.abs(grid.sel(run="intervened").values - grid.sel(run="plain").values) > 1e-9
    assert not differs[0].any()  # nothing below the edit
    assert differs[1].tolist() == [False, False, True, False, False, False]
    assert differs[2:, 2:].all()
    assert set(grid.about["tokens"]) == {"plain", "intervened"}


def test_an_intervention_without_a_source() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    edit = Addition(SiteInfo(32))
    torch.nn.init.normal_(next(edit.parameters()))
    grid = lens(model, tokenizer, [TEXT, "Mary was sick"], interventions={"x": (Site(0, position=-1), edit)})
    assert grid.dims == ("run", "layer", "position", "example")
    assert np.isfinite(grid.sel(run="intervened", layer=3, position=5).values[0])
    assert grid.references["clean"].shape == (2, 2)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prompts": []}, "no prompts: expected one or several"),
        ({"metrics": "logit_difference"}, "metric 'logit_difference' needs the wrong answer"),
        (
            {"answers": "he", "wrong": "she", "metrics": "recovered_logit_difference"},
            "metric 'recovered_logit_difference' needs a corrupt run, which the lens has not",
        ),
        ({"answers": "he", "wrong": " he"}, f"the answer and the wrong answer of {TEXT!r} begin with the same token"),
        ({"engine": Engine(tiny_model("gpt2", seed=1))}, "engine: it runs another network"),
        ({"strength": 2.0}, "strength: only interventions read it: give interventions, or leave it out"),
        ({"sources": OTHER}, "sources: only interventions read it: give interventions, or leave it out"),
        (
            {"prompts": [Prompt(TEXT, answer="he"), Prompt(OTHER)]},
            f"answers: {OTHER!r} has none, which other prompts have",
        ),
        ({"positions": ["name"]}, "position 'name' names a span, and this text has none"),
        ({"positions": ["all"]}, "position 'all' has 6 tokens in"),
        ({"layers": [4]}, "layers 4: GPT2LMHeadModel has layers 0 to 3"),
        ({"answers": ["he", "she"]}, "answers: given 2, expected one for each of 1 prompts"),
        ({"interventions": {"x": (Site(1), Vanilla())}}, "x: the intervention takes activations from a source"),
        ({"interventions": {"x": (Site(1), Vanilla())}, "sources": [TEXT, OTHER]}, "2 sources for 1 prompts"),
        ({"interventions": {"x": (Site(1, position="name"), Vanilla())}, "sources": OTHER}, "x: position 'name' names"),
    ],
)
def test_mistakes_are_one_line(given: dict[str, Any], says: str) -> None:
    with pytest.raises(IITKitError) as raised:
        lens(tiny_model("gpt2"), tiny_tokenizer(), **{"prompts": TEXT, **given})
    assert str(raised.value).startswith(says)
    assert "\n" not in str(raised.value)


def test_spans_and_offsets() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    named = lens(
        model, tokenizer, Prompt(TEXT, {"name": (11, 15), "verb": "walked home"}), positions=["name", "verb.first"]
    )
    by_number = lens(model, tokenizer, TEXT, positions=[2, 3])
    assert np.array_equal(named.values, by_number.values)
    assert not math.isnan(float(named.values[0, 0]))
