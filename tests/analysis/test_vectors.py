"""Steering vectors: each formula worked by hand, activations read by hand, and what they do while a model writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from byhand import activation, relative
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor

import iitkit
from iitkit.analysis.prompts import Prompt
from iitkit.analysis.vector_effects import count_words, effects_table, steering_effects
from iitkit.analysis.vector_methods import linear_probe, mean_difference, principal_difference

POSITIVE = ["When Mary was happy", "Today she is", "Yesterday, John walked home because he was happy and"]
NEGATIVE = ["Mary stayed", "On Monday, John was late because Mary", "The"]


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_mean_difference_by_hand() -> None:
    found = mean_difference(rows([1, 2], [3, 4]), rows([0, 1], [0, 1], [3, 1]))
    assert found.tolist() == [1.0, 2.0]  # (2, 3) − (1, 1)


def test_principal_difference_by_hand() -> None:
    # differences (3, 4), (−3, −4), (6, 8), (.8, −.6): along (.6, .8) the squares are 25 + 25 + 100, along (.8, −.6) one
    positive = rows([3, 4], [-3, -4], [6, 8], [0.8, -0.6])
    found = principal_difference(positive, torch.zeros(4, 2))
    mean = 10 / 4  # of 5, −5, 10 and 0
    assert found.tolist() == pytest.approx([0.6 * mean, 0.8 * mean])
    # the sign comes from the mean difference, not from the decomposition
    assert principal_difference(torch.zeros(4, 2), positive).tolist() == pytest.approx([-0.6 * mean, -0.8 * mean])


def test_principal_difference_is_taken_from_nought() -> None:
    # equal differences vary in nothing: what is taken from their mean would have no direction
    found = principal_difference(rows([5, 1], [7, 3]), rows([1, 1], [3, 3]))
    assert found.tolist() == pytest.approx([4.0, 0.0])


def test_probe_by_hand() -> None:
    # one row a side, ±a along (.6, .8): by symmetry b = 0 and w = t a/|a| with penalty · t = z σ(−t z), where z is a's
    # length in pooled standard deviations: |a| / sqrt(mean of squares) = sqrt(2) in two dimensions
    found = linear_probe(rows([1.2, 1.6]), rows([-1.2, -1.6]), 0.1)
    assert found.tolist() == pytest.approx([2.4, 3.2])  # along the direction the means are 4 apart


def test_probe_leaves_out_what_varies_within_the_sets() -> None:
    positive, negative = rows([1, 8], [1, -8], [1.2, 4]), rows([-1, 8], [-1, -8], [-1.2, -4])
    mean, probe = mean_difference(positive, negative), linear_probe(positive, negative, 1e-4)
    assert mean.tolist() == pytest.approx([32 / 15, 8 / 3])
    assert abs(probe[1] / probe[0]) < 0.1 < abs(mean[1] / mean[0])


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 10.0])
def test_probe_is_where_the_loss_is_flat(penalty: float) -> None:
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(7, 3, generator=generator, dtype=torch.float64) + 1
    negative = torch.randn(4, 3, generator=generator, dtype=torch.float64) * 2
    found = linear_probe(positive, negative, penalty)
    # the loss as the docstring says it, minimised along found's direction and b alone, has no slope across it either
    x = torch.cat([positive, negative])
    y = torch.tensor([1.0] * 7 + [-1.0] * 4, dtype=torch.float64)
    share = torch.tensor([1 / 14] * 7 + [1 / 8] * 4, dtype=torch.float64)
    x = x - (share[:, None] * x).sum(0)
    x = x / x.square().mean().sqrt()
    unit = found / found.norm()
    size = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [size], max_iter=200, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss(w: Tensor, b: Tensor) -> Tensor:
        return (share * torch.log1p(torch.exp(-y * (x @ w + b)))).sum() + penalty / 2 * w.square().sum()

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(size[0] * unit, size[1])
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    best = (size[0].detach() * unit).requires_grad_()
    (slope,) = torch.autograd.grad(loss(best, size[1].detach()), best)
    assert slope.norm() < 1e-6
    assert size[0].item() > 0


def test_what_has_no_direction_is_refused() -> None:
    same = rows([1, 2], [3, 4])
    for method in (mean_difference, principal_difference, lambda p, n: linear_probe(p, n, 0.1)):
        with pytest.raises(iitkit.IITKitError, match="direction"):
            method(same, same.clone())
    with pytest.raises(iitkit.IITKitError, match="points neither way"):
        principal_difference(rows([1, 0], [-1, 0]), rows([0, 0], [0, 0]))
    with pytest.raises(iitkit.IITKitError, match="penalty 0"):
        linear_probe(rows([1, 0]), rows([0, 0]), 0.0)


# --- from prompts ---


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_vector_is_the_difference_of_means_by_hand(family: str, batch_size: int, side: str) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    tokenizer.padding_side = side
    found = iitkit.vector(
        model, tokenizer, POSITIVE, NEGATIVE, layers=[1, 3], prefix="<|endoftext|>", batch_size=batch_size
    )
    blocks: Any = model.transformer.h if family == "gpt2" else model.model.layers  # type: ignore[union-attr]
    for layer in (1, 3):
        means = []
        for texts in (POSITIVE, NEGATIVE):
            ids = [tokenizer("<|endoftext|>" + text)["input_ids"] for text in texts]
            assert len({len(row) for row in ids}) == 3  # ragged
            means.append(torch.stack([activation(model, row, blocks[layer])[-1] for row in ids]).mean(0))
        expected = means[0] - means[1]
        assert relative(found.vectors[f"layer_{layer}"], expected) <= 1e-5
        assert found.about["norms"][f"layer_{layer}"] == pytest.approx(float(expected.norm()), rel=1e-5)
        ids = [tokenizer("<|endoftext|>" + text)["input_ids"] for text in (*POSITIVE, *NEGATIVE)]
        lengths = [float(activation(model, row, blocks[layer])[-1].norm()) for row in ids]
        assert found.about["activations"][f"layer_{layer}"] == pytest.approx(sum(lengths) / 6, rel=1e-5)
    assert list(found.sites) == ["layer_1", "layer_3"]
    assert found.sites["layer_3"].position == "all"
    assert found.about["method"] == "mean_difference"


@pytest.mark.parametrize(("position", "columns"), [("all", None), ([0, -1], [0, -1]), ("f1+l1", [0, -1]), (1, [1])])
def test_several_tokens_are_averaged(position: Any, columns: list[int] | None) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    positive, negative = ["When Mary was happy", "Today she"], ["John went to the park"]
    found = iitkit.vector(model, tokenizer, positive, negative, layers=2, position=position)
    blocks: Any = model.transformer.h  # type: ignore[union-attr]
    means = []
    for texts in (positive, negative):
        states = [activation(model, tokenizer(text)["input_ids"], blocks[2]) for text in texts]
        means.append(torch.stack([s.mean(0) if columns is None else s[columns].mean(0) for s in states]).mean(0))
    assert relative(found.vectors["layer_2"], means[0] - means[1]) <= 1e-5


def test_spans_may_be_read() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    positive, negative = Prompt("When Mary went home", {"name": "Mary"}), Prompt("Today John", {"name": "John"})
    found = iitkit.vector(model, tokenizer, [positive], [negative], layers=1, position="name")
    blocks: Any = model.transformer.h  # type: ignore[union-attr]
    states = []
    for text, name in (("When Mary went home", " Mary"), ("Today John", " John")):
        ids, (token,) = tokenizer(text)["input_ids"], tokenizer(name)["input_ids"]
        states.append(activation(model, ids, blocks[1])[ids.index(token)])
    assert relative(found.vectors["layer_1"], states[0] - states[1]) <= 1e-5


@pytest.mark.parametrize("penalty", [None, 0.01, 5.0])
def test_the_probe_takes_its_penalty(penalty: float | None) -> None:
    """Against the formula, which is worked by hand above, on activations that are read by hand."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    found = iitkit.vector(model, tokenizer, POSITIVE, NEGATIVE, layers=1, method="probe", penalty=penalty)
    blocks: Any = model.transformer.h  # type: ignore[union-attr]
    rows = [
        torch.stack([activation(model, tokenizer(text)["input_ids"], blocks[1])[-1].double() for text in texts])
        for texts in (POSITIVE, NEGATIVE)
    ]
    by = {value: linear_probe(rows[0], rows[1], value) for value in (0.01, 5.0)}
    assert relative(by[0.01], by[5.0]) > 0.05
    assert relative(found.vectors["layer_1"].double(), by[penalty or 0.01]) <= 1e-5
    assert found.about["penalty"] == (penalty or 0.01)


def test_parts_of_heads() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    whole = iitkit.vector(model, tokenizer, POSITIVE, NEGATIVE, layers=1, component="attention_value_output")
    one = iitkit.vector(model, tokenizer, POSITIVE, NEGATIVE, layers=1, component="head_attention_value_output", head=2)
    assert torch.equal(one.vectors["layer_1"], whole.vectors["layer_1"][16:24])  # 4 heads of 8
    with pytest.raises(iitkit.IITKitError, match=r"has 4 heads: say head, or take attention_value_output"):
        iitkit.vector(model, tokenizer, POSITIVE, NEGATIVE, layers=1, component="head_attention_value_output")


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"method": "pac"}, "method 'pac': Did you mean 'pca'"),
        ({"positive": []}, "positive: expected a list of one prompt"),
        ({"negative": "The"}, "negative: expected a list of one prompt"),
        ({"method": "pca", "positive": POSITIVE[:2]}, "given 2 positive and 3 negative"),
        ({"layers": [4]}, "has layers 0 to 3"),
        ({"component": "block_outptu"}, "Did you mean 'block_output'"),
        ({"component": "attention_weight"}, "width"),
        ({"position": 7}, "position 7 is outside a prompt of"),
        ({"negative": POSITIVE}, "layer_1: positive and negative prompts have the same mean"),
        ({"positive": ["The", 3]}, r"positive\[1\]: '3': expected a text or an iitkit.Prompt"),
        ({"negative": [[{"role": "user"}]]}, r"negative\[0\]: .* what tokenizer.apply_chat_template makes"),
        ({"batch_size": 0}, "batch_size 0: expected 1 or more"),
        ({"negative": ["Mary " * 400]}, r"'Mary Mary .*…' has \d+ tokens, the network takes \d+: shorten it"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], match: str) -> None:
    arguments: dict[str, Any] = {"positive": POSITIVE, "negative": NEGATIVE, "layers": 1, **given}
    with pytest.raises(iitkit.IITKitError, match=match):
        iitkit.vector(tiny_model(), tiny_tokenizer(), **arguments)


@pytest.mark.parametrize("method", ["mean_difference", "pca", "probe"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_activations_that_are_not_finite_are_refused(method: Any, value: float) -> None:
    """As float16's are that overflow: the row is named, not the direction blamed."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    token = tokenizer(" late")["input_ids"][0]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = value  # type: ignore[index]
    with pytest.raises(
        iitkit.IITKitError, match=r"layer_1: the activation of 'John was late' is not finite: .*float32"
    ):
        iitkit.vector(model, tokenizer, ["Mary was", "Mary"], ["John", "John was late"], layers=1, method=method)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_activations_are_averaged_in_a_wide_dtype(dtype: torch.dtype) -> None:
    model, tokenizer = tiny_model("llama").to(dtype), tiny_tokenizer()
    positive, negative = ["Yesterday, John walked home because he was happy and"], ["On Monday, John was late", "The"]
    found = iitkit.vector(model, tokenizer, positive, negative, layers=1, position="all", batch_size=1)
    blocks: Any = model.model.layers  # type: ignore[union-attr]
    means = []
    for texts in (positive, negative):
        states = [activation(model, tokenizer(text)["input_ids"], blocks[1]) for text in texts]
        assert {state.dtype for state in states} == {dtype}
        means.append(torch.stack([state.double().mean(0) for state in states]).mean(0))
    assert found.vectors["layer_1"].dtype == torch.float32
    assert relative(found.vectors["layer_1"].double(), means[0] - means[1]) <= 1e-7


def test_random_vectors_have_the_norm_and_another_direction() -> None:
    found = iitkit.vector(tiny_model(), tiny_tokenizer(), POSITIVE, NEGATIVE)
    drawn, again, other = found.random(3), found.random(3), found.random(4)
    for name, vector in found.vectors.items():
        assert float(drawn.vectors[name].norm()) == pytest.approx(float(vector.norm()), rel=1e-6)
        assert torch.equal(drawn.vectors[name], again.vectors[name])
        cosine = torch.cosine_similarity(drawn.vectors[name], other.vectors[name], dim=0)
        assert abs(float(cosine)) < 0.6
    assert list(found.only("layer_2").sites) == ["layer_2"]
    with pytest.raises(iitkit.IITKitError, match="Did you mean 'layer_2'"):
        found.only("layer2")


def test_vectors_are_saved_and_loaded_as_artifacts(tmp_path: Path, shallow_gpt2: str) -> None:
    model, tokenizer = iitkit.load_base(shallow_gpt2)
    made = iitkit.vector(model, tokenizer, POSITIVE, NEGATIVE, layers=[1, 2])
    iitkit.save(tmp_path / "artifact", model, made.alignment(), made=dict(made.about))
    found = iitkit.load(tmp_path / "artifact")
    assert found.config["placements"]["layer_2"]["intervention"] == {"name": "Addition", "take": "vector"}
    assert found.config["placements"]["layer_2"]["position"] == "all"
    assert found.config["made"]["method"] == "mean_difference"
    inputs = tokenizer("Today she is", return_tensors="pt")
    plain = iitkit.collect(model, inputs, {"x": iitkit.Site(1, position="all")})["x"]
    with iitkit.intervening(model, found.alignment(), strength=2.0):
        steered = iitkit.collect(model, inputs, {"x": iitkit.Site(1, position="all")})["x"]
    assert relative(steered, plain + 2 * made.vectors["layer_1"]) <= 1e-6


def test_vectors_steer_as_any_artifact_does(tmp_path: Path, shallow_gpt2: str) -> None:
    model, tokenizer = iitkit.load_base(shallow_gpt2)
    made = iitkit.vector(model, tokenizer, POSITIVE, NEGATIVE, layers=[1])
    iitkit.save(tmp_path / "artifact", model, made.alignment(), tokenizer)
    untyped: Any = model
    inputs = tokenizer("Today she is", return_tensors="pt")
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with iitkit.intervening(model, made.alignment(), strength=4.0, where="all"):
        expected = untyped.generate(**inputs, **options)
    with iitkit.load(tmp_path / "artifact").steer(model, tokenizer, strength=4.0, where="all"):
        assert torch.equal(untyped.generate(**inputs, **options), expected)
    assert not torch.equal(untyped.generate(**inputs, **options), expected)


# --- what they do ---


def test_effects_by_hand() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    made = iitkit.vector(model, tokenizer, POSITIVE, NEGATIVE, layers=2)
    prompts, good, bad = ["When Mary", "Yesterday, John walked home"], ["happy", "home"], ["late"]
    found = steering_effects(
        model, tokenizer, made, prompts, good, bad, strengths=[3.0], tokens=4, prefix="<|endoftext|>", seed=5
    )
    assert [(e.name, e.kind, e.strength) for e in found] == [
        ("none", "none", 0.0),
        ("layer_2", "vector", 3.0),
        ("layer_2", "random", 3.0),
    ]
    ids = {word: tokenizer(f" {word}")["input_ids"][0] for word in (*good, *bad)}
    drawn = torch.randn(32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    random = (drawn / drawn.norm() * made.vectors["layer_2"].double().norm()).float()
    blocks: Any = model.model.layers  # type: ignore[union-attr]
    for effect, push in zip(found, (torch.zeros(32), made.vectors["layer_2"], random), strict=True):
        hook = blocks[2].register_forward_hook(lambda _, __, out, push=push: out + 3 * push)
        for prompt, logit, text in zip(prompts, effect.logits, effect.texts, strict=True):
            given = tokenizer("<|endoftext|>" + prompt)["input_ids"]
            written: list[int] = []
            for step in range(4):  # without a cache: every token of the sequence is pushed anew
                logits = model(torch.tensor([given + written])).logits[0, -1]
                if not step:
                    expected = (logits[ids["happy"]] + logits[ids["home"]]) / 2 - logits[ids["late"]]
                    assert logit == pytest.approx(float(expected), abs=1e-4)
                written.append(int(logits.argmax()))
                if written[-1] == 0:
                    break
            assert text == tokenizer.decode(written, skip_special_tokens=True)
        hook.remove()
    lines = effects_table(found).splitlines()
    assert len(lines) == 4
    assert f"{found[1].logit - found[0].logit:+.2f}" in lines[2]


def test_the_models_own_settings_of_writing_are_not_taken() -> None:
    """Beams and sampling of a generation config: the effects are of greedy writing, one row a prompt."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    made = iitkit.vector(model, tokenizer, POSITIVE, NEGATIVE, layers=2)
    given = (model, tokenizer, made, ["When Mary", "Yesterday, John"], ["happy"], ["late"])
    expected = steering_effects(*given, strengths=[2.0], tokens=5)
    settings = {"num_beams": 3, "num_return_sequences": 2, "do_sample": True, "temperature": 2.0, "top_k": 9}
    untyped: Any = model
    for name, value in settings.items():
        setattr(untyped.generation_config, name, value)
    assert steering_effects(*given, strengths=[2.0], tokens=5) == expected
    assert {name: getattr(untyped.generation_config, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"tokens": 0}, "tokens 0: expected 1 or more"),
        ({"strengths": []}, "strengths: expected one or more"),
        ({"strengths": [float("nan")]}, "strengths nan: expected a number"),
        ({"tokens": 10_000}, r"'The' has \d tokens and 10000 to be written, the network takes"),
    ],
)
def test_trials_that_cannot_be_made(given: dict[str, Any], match: str) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    made = iitkit.vector(model, tokenizer, POSITIVE, NEGATIVE, layers=2)
    with pytest.raises(iitkit.IITKitError, match=match):
        steering_effects(model, tokenizer, made, ["The"], ["happy"], ["late"], **given)


def test_prompts_may_fill_the_context() -> None:
    """As many tokens as there are positions, the written ones but the last among them, and not one more."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    most: Any = model.config.max_position_embeddings
    full = " Mary" * most
    assert len(tokenizer(full)["input_ids"]) == most
    made = iitkit.vector(model, tokenizer, [full], ["The"], layers=1)
    with pytest.raises(iitkit.IITKitError, match=rf"has {most + 1} tokens, the network takes {most}: shorten it"):
        iitkit.vector(model, tokenizer, [full + " Mary"], ["The"], layers=1)
    assert len(steering_effects(model, tokenizer, made, [full], ["happy"], ["late"], tokens=1)) == 5
    with pytest.raises(iitkit.IITKitError, match=rf"has {most} tokens and 2 to be written, the network takes {most}"):
        steering_effects(model, tokenizer, made, [full], ["happy"], ["late"], tokens=2)


def test_words_are_whole_words() -> None:
    texts = ["Good food, good-natured staff; a goodness, ungood.", "not so GOOD. bad"]
    assert count_words(texts, ["good"]) == 3
    assert count_words(texts, ["bad", " staff"]) == 2


def test_words_that_begin_alike_are_refused() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    made = iitkit.vector(model, tokenizer, POSITIVE, NEGATIVE, layers=2)
    with pytest.raises(iitkit.IITKitError, match="happy, happy begin with the same token"):
        steering_effects(model, tokenizer, made, ["The"], ["happy"], ["happy"])
    with pytest.raises(iitkit.IITKitError, match="bad: expected one or more"):
        steering_effects(model, tokenizer, made, ["The"], ["happy"], [])


# --- the real model ---

REVIEWS = Path(__file__).resolve().parents[2] / "datasets" / "reviews"


def reviews(name: str) -> list[str]:
    return [json.loads(line)["text"] for line in (REVIEWS / f"{name}.jsonl").read_text().splitlines()]


def test_reviews_are_pairs() -> None:
    positive, negative, neutral = (reviews(name) for name in ("positive", "negative", "neutral"))
    assert (len(positive), len(negative), len(neutral)) == (10, 10, 24)
    assert len({*positive, *negative, *neutral, *reviews("development")}) == 44 + 77
    for one, other in zip(positive, negative, strict=True):  # the same but for the last word
        assert one.split()[:-1] == other.split()[:-1]
        assert one.split()[-1] != other.split()[-1]
        assert one.endswith(".") is other.endswith(".")
    words = [set(text.lower().rstrip(".").split()) for text in (*positive, *negative)]
    config = yaml.safe_load((REVIEWS.parents[1] / "configs" / "vector_smollm2.yaml").read_text())
    judging = {*config["good"], *config["bad"]}
    assert all(len(of_one & judging) == 1 for of_one in words)
    for opening in neutral:  # nothing in them judges
        assert not set(re.findall(r"\w+", opening.lower())) & judging
