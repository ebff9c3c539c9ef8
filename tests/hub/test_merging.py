"""merge(): the merged model says what the edited one said, and what cannot be merged is refused with its reason."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from byhand import hooks_of, relative
from families import WIDTH, build, ids
from taps import TAPS, swapped
from torch import Tensor, nn

import iitkit
from iitkit import Intervention, Site
from iitkit.hub.merging import merge
from iitkit.models.placing import place
from iitkit.models.sites import Placement

FAMILIES = ("gpt2", "gpt_neox", "gptj", "opt", "llama", "qwen2", "qwen3", "gemma2", "phi3", "olmo2")


def filled(model: nn.Module, site: Site, name: str, **options: Any) -> Intervention:
    """An intervention for a site, with random numbers in whatever trains, released."""
    where = Placement(
        site.layer, site.component, "all", lambda info: Intervention.named({"name": name, **options}, info),
        module=site.module, side=site.side, head=site.head,
    )  # fmt: skip
    _, edits = place(model, {"x": where}, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in edits["x"].parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return edits["x"].released()


def logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(tokens).logits
    return found


def edited(model: Any, tokens: Tensor, alignment: Any, strength: float = 1.0) -> Tensor:
    with iitkit.intervening(model, alignment, strength=strength, where="all"):
        return logits(model, tokens)


@pytest.mark.parametrize("component", ["attention_output", "mlp_output"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_addition_by_hand(family: str, component: str) -> None:
    model, tokens = build(family), ids(3, 7, seed=3)
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(4))
    site = Site(1, component, "all")
    edit = filled(model, site, "Addition")
    edit.load_state_dict({"edit.vector": vector})
    expected = swapped(model, TAPS[family][component], 1, tokens, lambda h: h + 2 * vector)
    plain = logits(model, tokens)
    assert merge(model, {"x": (site, edit)}, strength=2.0) is model
    assert relative(logits(model, tokens), expected) <= 1e-5
    assert relative(plain, expected) > 1e-3
    assert hooks_of(model) == hooks_of(build(family))


EDITS: list[tuple[str, dict[str, Any]]] = [
    ("Addition", {}),
    ("Addition", {"features": [1, 3]}),
    ("Subtraction", {"take": "vector"}),
    ("LoRA", {"rank": 2}),
    ("LoReFT", {"rank": 2}),
    ("NoReFT", {"rank": 3}),
    ("ConsReFT", {"rank": 2}),
    ("LoBiReFT", {"rank": 2}),
    ("DiReFT", {"rank": 2}),
    ("Zero", {"features": 3}),
    ("Scale", {"factor": 0.5, "features": 4}),
    ("Constant", {"value": 0.3}),
]


@pytest.mark.parametrize(("name", "options"), EDITS)
@pytest.mark.parametrize("strength", [1.0, -0.7])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_affine_edit(family: str, strength: float, name: str, options: dict[str, Any]) -> None:
    model, tokens = build(family), ids(2, 6, seed=5)
    site = Site(
        module={"gpt2": "transformer.h.1.mlp.c_proj"}.get(family, "model.layers.1.mlp.down_proj"), position="all"
    )
    alignment = {"x": (site, filled(model, site, name, **options))}
    expected = edited(model, tokens, alignment, strength)
    assert relative(logits(model, tokens), expected) > 1e-4
    merge(model, alignment, strength=strength)
    assert relative(logits(model, tokens), expected) <= 1e-5
    double = build(family).double()
    expected = edited(double, tokens, alignment, strength)
    assert relative(logits(merge(double, alignment, strength=strength), tokens), expected) <= 1e-10


@pytest.mark.parametrize(
    ("component", "head"),
    [
        *(("query_output", None), ("key_output", None), ("value_output", None), ("attention_value_output", None)),
        *(("head_query_output", None), ("head_value_output", 1), ("head_attention_value_output", [2, 0])),
        *(("mlp_hidden", None), ("attention_output", None), ("mlp_output", None)),
    ],
)
@pytest.mark.parametrize("name", ["Addition", "LoReFT"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "qwen3", "phi3"])
def test_every_component_that_is_a_linear_modules(family: str, name: str, component: str, head: Any) -> None:
    model, tokens = build(family), ids(2, 6, seed=6)
    site = Site(2, component, "all", head=head)
    alignment = {"x": (site, filled(model, site, name))}
    expected = edited(model, tokens, alignment)
    if (family, name, component) != (
        "gpt2",
        "Addition",
        "key_output",
    ):  # which softmax does not see: no rotary embedding
        assert relative(logits(model, tokens), expected) > 1e-4
    assert relative(logits(merge(model, alignment), tokens), expected) <= 1e-5


def test_several_edits_apply_in_order() -> None:
    model, tokens = build("llama"), ids(2, 6, seed=7)
    out, into = Site(1, "mlp_output", "all"), Site(1, "mlp_hidden", "all")
    alignment = {
        "a": (out, filled(model, out, "LoReFT", rank=2)),
        "b": (into, filled(model, into, "Addition")),
        "c": (out, filled(model, out, "Scale", factor=2.0)),
        "d": (Site(0, "attention_output", "all"), filled(model, Site(0, "attention_output"), "Addition")),
        "e": (out, filled(model, out, "Addition")),
    }
    expected = edited(model, tokens, alignment)
    assert relative(logits(merge(model, alignment), tokens), expected) <= 1e-5


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("family", "path"), [("llama", "model.layers.1.mlp.down_proj"), ("gpt2", "transformer.h.1.mlp.c_proj")]
)
def test_a_linear_module_is_edited_before_the_module_that_it_ends(family: str, path: str, turned: bool) -> None:
    """Whichever is named first: what the linear map returns is edited when it returns, the MLP's output after that."""
    model, tokens = build(family), ids(2, 6, seed=12)
    whole, own = Site(1, "mlp_output", "all"), Site(module=path, position="all")
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(13))
    edits = [("a", (whole, iitkit.Addition.of(vector))), ("b", (own, filled(model, own, "Scale", factor=3.0)))]
    module = model.get_submodule(path)
    handle = module.register_forward_hook(lambda _, __, out: 3 * out + vector)
    expected = logits(model, tokens)
    handle.remove()
    assert relative(logits(merge(model, dict(edits[::-1] if turned else edits)), tokens), expected) <= 1e-5


def test_several_edits_of_an_input_apply_in_order() -> None:
    model, tokens = build("llama"), ids(2, 6, seed=14)
    site, part = Site(1, "mlp_hidden", "all"), Site(module="model.layers.1.mlp.down_proj", side="input", position="all")
    vector = torch.randn(24, generator=torch.Generator().manual_seed(15))
    reft = filled(model, site, "LoReFT", rank=3)
    alignment = {
        "a": (site, iitkit.Addition.of(vector)),
        "b": (part, reft),
        "c": (site, filled(model, site, "Zero", features=5)),
    }

    def before(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        hidden = reft(args[0] + vector)
        return (torch.cat([torch.zeros_like(hidden[..., :5]), hidden[..., 5:]], -1),)

    handle = model.get_submodule("model.layers.1.mlp.down_proj").register_forward_pre_hook(before)
    expected = logits(model, tokens)
    handle.remove()
    assert relative(logits(merge(model, alignment), tokens), expected) <= 1e-5


@pytest.mark.parametrize(
    ("family", "component"), [("llama", "mlp_output"), ("llama", "attention_output"), ("gpt2", "mlp_output")]
)
def test_a_merged_model_is_saved_and_loaded(family: str, component: str, tmp_path: Path) -> None:
    model, tokens = build(family), ids(2, 6, seed=8)
    site = Site(1, component, "all")
    alignment = {"x": (site, filled(model, site, "Addition"))}
    expected = edited(model, tokens, alignment)
    merge(model, alignment)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert relative(logits(again, tokens), expected) <= 1e-5


def test_generation_is_that_of_all_tokens(tmp_path: Path) -> None:
    model, tokens = build("llama"), ids(2, 4, seed=9)
    site = Site(1, "mlp_output", "all")
    alignment = {"x": (site, filled(model, site, "Addition"))}
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    untyped: Any = model
    with iitkit.intervening(model, alignment, where="all"):
        expected = untyped.generate(tokens, **options)
    merge(model, alignment)
    assert torch.equal(untyped.generate(tokens, **options), expected)


def test_artifacts_are_merged(tmp_path: Path, shallow_gpt2: str) -> None:
    model, tokenizer = iitkit.load_base(shallow_gpt2)
    site = Site(2, "mlp_output", "all")
    iitkit.save(tmp_path / "a", model, {"x": (site, filled(model, site, "Addition"))})
    found = iitkit.load(tmp_path / "a")
    tokens = tokenizer("When Mary went home", return_tensors="pt")["input_ids"]
    expected = edited(model, tokens, found.alignment())
    assert relative(logits(iitkit.merge(model, found), tokens), expected) <= 1e-5


@pytest.mark.parametrize(
    ("site", "edit", "match"),
    [
        (Site(1, "block_output", "all"), "Addition", r"the residual stream, .*placed at mlp_output of layer 1 instead"),
        (Site(1, "block_output", "all"), "LoReFT", "the residual stream, not a linear module's own output"),
        (Site(1, "mlp_input", "all"), "Addition", "what a norm or the whole network returns"),
        (Site(1, "mlp_activation", "all"), "Addition", "not a linear module's own output"),
        (Site(1, "mlp_output", "last"), "Addition", "it edits position 'last': weights do the same at every token"),
        (Site(1, "mlp_output", -1), "Addition", "it edits position -1"),
        (Site(1, "mlp_output", "all"), "LowRankSubspace", "takes activations from a source"),
        (Site(1, "mlp_output", "all"), "relu", "LoReFT is no affine map"),
        (Site(1, "mlp_output", "all"), "noise", "Noise is no affine map of the activation, the same for every token"),
        (Site(module="model.layers.1.mlp", position="all"), "Addition", "the output of another module"),
        (Site(module="lm_head", position="all"), "Addition53", "are also those of model.embed_tokens"),
        (Site(1, "attention_output", "all"), "LoRA", "reads what enters the whole module, .* by its path"),
        (Site(1, "mlp_output", "all"), "LoRA", "reads what enters the whole module"),
        (Site(1, "attention_value_output", "all"), "reader", "b reads the input of the module that a edits"),
    ],
)
def test_what_cannot_be_merged_says_why(site: Site, edit: str, match: str) -> None:
    model = build("llama", tie_word_embeddings=True)
    before = copy.deepcopy(model.state_dict())
    names = {"relu": ("LoReFT", {"activation": "relu"}), "noise": ("Noise", {"sigma": 1.0}), "reader": ("Addition", {})}
    name, options = names.get(edit, (edit.rstrip("0123456789"), {}))
    alignment = {"a": (site, filled(model, site, name, **options))}
    if edit == "reader":
        out = Site(module="model.layers.1.self_attn.o_proj", position="all")
        alignment["b"] = (out, filled(model, out, "LoRA"))
    good = Site(0, "mlp_output", "all")
    with pytest.raises(iitkit.IITKitError, match=match):
        merge(model, {"good": (good, filled(model, good, "Addition")), **alignment})
    after = model.state_dict()
    assert set(after) == set(before)  # nothing was changed, not even by the one that could be merged
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_mixture_of_experts_has_no_such_module() -> None:
    model = build("mixtral")
    site = Site(1, "mlp_output", "all")
    with pytest.raises(iitkit.IITKitError, match="ends in no linear module"):
        merge(model, {"x": (site, filled(model, site, "Addition"))})


class Eighths(nn.Module):
    """A linear map with weights in 8 bits."""

    def __init__(self, made: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = made.in_features, made.out_features, None
        self.register_buffer("weight", (made.weight * 64).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight / 64).T


def test_quantised_weights_are_refused() -> None:
    model = build("llama")
    layer: Any = model.model.layers[1]  # type: ignore[union-attr]
    layer.mlp.down_proj = Eighths(layer.mlp.down_proj)
    site = Site(1, "mlp_output", "all")
    with pytest.raises(iitkit.IITKitError, match="quantised: merge into the model in full precision"):
        merge(model, {"x": (site, filled(model, site, "Addition"))})


class Scaled(nn.Linear):
    """A linear map with weights in float8 and a scale beside them."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.to(x.dtype) / 64).T


@pytest.mark.parametrize("name", ["Addition", "LoReFT"])
def test_weights_in_eight_bits_are_quantised_even_as_floats(name: str) -> None:
    model = build("llama")
    layer: Any = model.model.layers[1]  # type: ignore[union-attr]
    scaled = Scaled(24, 16, bias=False)
    scaled.weight = nn.Parameter((64 * layer.mlp.down_proj.weight).to(torch.float8_e4m3fn), requires_grad=False)
    layer.mlp.down_proj = scaled
    site = Site(1, "mlp_output", "all")
    with pytest.raises(iitkit.IITKitError, match="quantised: merge into the model in full precision"):
        merge(model, {"x": (site, filled(model, site, name))})


def test_weights_that_are_computed_are_refused() -> None:
    model = build("llama")
    nn.utils.parametrizations.weight_norm(model.model.layers[1].mlp.down_proj)  # type: ignore[union-attr]
    site = Site(1, "mlp_output", "all")
    with pytest.raises(iitkit.IITKitError, match=r"are computed by a parametrization: remove it \(torch\.nn\.utils"):
        merge(model, {"x": (site, filled(model, site, "Addition"))})


def test_what_bends_far_away_is_no_affine_map() -> None:
    """ReLU with a threshold that small activations do not reach, and the network's own do."""
    model = build("llama")
    site = Site(1, "mlp_output", "all")
    edit = filled(model, site, "LoReFT", activation="relu")
    state = edit.state_dict()
    edit.load_state_dict({**state, "edit.bias": torch.full_like(state["edit.bias"], 60.0)})
    weight = state["edit.weight"]
    assert float(weight[0].square().sum()) > 0.5  # along its first row an activation of length 100 bends
    assert float(weight.norm(dim=1).max()) * 10 < 60  # and one of length 10 does not
    with pytest.raises(iitkit.IITKitError, match="LoReFT is no affine map of the activation"):
        merge(model, {"x": (site, edit)})


@pytest.mark.parametrize("strength", ["2", float("nan"), None, True])
def test_strengths_that_are_no_numbers(strength: Any) -> None:
    model = build("llama")
    site = Site(1, "mlp_output", "all")
    with pytest.raises(iitkit.IITKitError, match=r"strength .*: expected a number"):
        merge(model, {"x": (site, filled(model, site, "Addition"))}, strength=strength)


def test_logits_that_differ_by_more_than_rounding_are_refused() -> None:
    """Of fp32 weights 1e-5 is asked for: a module that adds a little more than that is told of."""
    model, tokens = build("llama"), ids(2, 8, seed=16)
    layer: Any = model.model.layers[1]  # type: ignore[union-attr]
    own = layer.mlp.forward
    layer.mlp.forward = lambda x: own(x) * (1 + 1e-4)
    site = Site(1, "mlp_output", "all")
    with pytest.raises(iitkit.IITKitError, match="differ from the edited one's by"):
        merge(
            model,
            {"x": (site, iitkit.Addition.of(20 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))))},
        )
    assert logits(model, tokens).isfinite().all()


def test_narrow_weights_take_what_they_can_hold() -> None:
    model, tokens = build("llama").to(torch.bfloat16), ids(2, 6, seed=10)
    site = Site(1, "mlp_output", "all")
    alignment = {"x": (site, filled(model, site, "Addition"))}
    expected, plain = edited(model, tokens, alignment), logits(model, tokens)
    merged = logits(merge(model, alignment), tokens)
    assert merged.dtype == torch.bfloat16
    assert relative(merged.float(), expected.float()) <= 0.1 < relative(plain.float(), expected.float())


def test_what_comes_between_is_found_out() -> None:
    """A module of the user's that doubles what its last linear map returns: the logits tell, and nothing is changed."""
    model = build("llama")
    layer: Any = model.model.layers[1]  # type: ignore[union-attr]
    own = layer.mlp.forward
    layer.mlp.forward = lambda x: 2 * own(x)
    before = copy.deepcopy(model.state_dict())
    site = Site(1, "mlp_output", "all")
    with pytest.raises(iitkit.IITKitError, match=r"differ from the edited one's by 0\.\d+ .*; the model is as it was"):
        merge(model, {"x": (site, filled(model, site, "LoReFT"))})
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)
    assert set(model.state_dict()) == set(before)
    assert model.config.mlp_bias is False


def test_a_module_at_two_places_is_refused() -> None:
    model = build("llama")
    model.add_module("second", model.get_submodule("model.layers.1.mlp.down_proj"))
    site = Site(1, "mlp_output", "all")
    with pytest.raises(iitkit.IITKitError, match=r"are also those of .*: an edit would change both"):
        merge(model, {"x": (site, filled(model, site, "Addition"))})


def test_a_model_without_weights_is_refused() -> None:
    site = Site(1, "mlp_output", "all")
    edit = filled(build("llama"), site, "Addition")
    with pytest.raises(iitkit.IITKitError, match="the model has no weights"):
        merge(build("llama").to("meta"), {"x": (site, edit)})


def test_several_positions_as_one_vector_are_refused() -> None:
    site = Site(1, "mlp_output", "all")
    edit = filled(build("llama"), site, "Addition")
    with pytest.raises(iitkit.IITKitError, match="several positions as one vector: weights see one token at a time"):
        merge(build("llama"), {"x": (replace(site, joint=True), edit)})


def test_an_artifact_of_another_base_is_refused(tmp_path: Path, shallow_gpt2: str) -> None:
    model, _ = iitkit.load_base(shallow_gpt2)
    site = Site(2, "mlp_output", "all")
    iitkit.save(tmp_path / "a", model, {"x": (site, filled(model, site, "Addition"))})
    with pytest.raises(iitkit.IITKitError, match=r"was trained on .*, not GPT2LMHeadModel"):
        merge(build("llama"), iitkit.load(tmp_path / "a"))


@pytest.mark.parametrize("component", ["mlp_output", "attention_output"])
def test_a_switched_on_bias_is_there_wherever_the_class_has_one(component: str) -> None:
    model = build("llama")
    site = Site(1, component, "all")
    merge(model, {"x": (site, filled(model, site, "Addition"))})
    fresh: Any = type(model)
    assert set(model.state_dict()) == set(fresh(model.config).state_dict())
    new = {name: value for name, value in model.state_dict().items() if name.endswith("bias")}
    assert sum(bool(value.any()) for value in new.values()) == 1
    assert len(new) == {"mlp_output": 3, "attention_output": 4}[component] * model.config.num_hidden_layers


def test_nothing_to_merge() -> None:
    with pytest.raises(iitkit.IITKitError, match="no intervention to merge"):
        merge(build("llama"), {})
