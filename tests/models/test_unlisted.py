"""Families that no table lists: what structure finds is what transformers reports, and what it cannot find is said."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from byhand import relative
from families import decoder, ids
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from iitkit.errors import IITKitError
from iitkit.models.anatomy import blocks, components, locate
from iitkit.models.interchange import collect
from iitkit.models.sites import Site
from iitkit.models.skeleton import skeleton
from iitkit.models.table import rows, without

BASE = ids(2, 6, seed=1)
SIZES: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 24,
    "ffn_dim": 24,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "rotary_dim": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EVERYTHING = {"attention_weight", "head_query_output", "head_key_output", "head_value_output", "mlp_output"}
WHOLE = (
    *("arcee", "biogpt", "cohere", "cohere2", "ernie4_5", "exaone4", "glm", "glm4", "granite", "helium", "jais2"),
    *("ministral3", "nemotron", "olmo3", "olmoe", "phi", "phimoe", "qwen2_moe", "qwen3_moe", "seed_oss", "smollm3"),
    *("stablelm", "starcoder2", "vaultgemma"),
)
"""Families of which all is found."""

FUSED = ("bloom", "codegen", "gpt_bigcode", "gpt_neox_japanese", "mpt", "persimmon")
"""Families that fuse queries, keys and values, in layouts that are not guessed."""


def unlisted(family: str, **more: Any) -> PreTrainedModel:
    """A tiny random network, eager so that transformers reports its attention."""
    known = CONFIG_MAPPING[family]()
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{key: value for key, value in SIZES.items() if hasattr(known, key)} | more)
    auto: Any = AutoModelForCausalLM
    model: Any = auto.from_config(config, attn_implementation="eager")
    found: PreTrainedModel = model.eval().requires_grad_(False)
    return found


def read(model: nn.Module, component: str, layer: int | None = None) -> Tensor:
    return collect(model, {"input_ids": BASE}, {"x": Site(layer, component, "all")})["x"]


@pytest.mark.parametrize("family", [*WHOLE, *FUSED])
@torch.no_grad()
def test_what_structure_finds_is_what_transformers_reports(family: str) -> None:
    model = unlisted(family)
    out = model(BASE, output_hidden_states=True, output_attentions=True, use_cache=True)
    assert len(blocks(model)) == 3
    for layer in range(3):
        has = components(model, layer)
        assert set(has) >= EVERYTHING or family in FUSED
        assert relative(read(model, "block_input", layer), out.hidden_states[layer]) <= 1e-5
        if layer < 2:
            assert relative(read(model, "block_output", layer), out.hidden_states[layer + 1]) <= 1e-5
        weights, value = out.attentions[layer], out.past_key_values.layers[layer].values
        assert relative(read(model, "attention_weight", layer).transpose(1, 2), weights) <= 1e-5
        results = weights @ value.repeat_interleave(weights.shape[1] // value.shape[1], 1)
        assert relative(read(model, "head_attention_value_output", layer).transpose(1, 2), results) <= 1e-5
        if family in FUSED:
            with pytest.raises(IITKitError, match=r"query, key and value come out of .* together, and how they lie"):
                locate(model, Site(layer, "value_output"))
        else:
            assert relative(read(model, "head_value_output", layer).transpose(1, 2), value) <= 1e-5
    if "final_norm" in components(model, None):
        assert relative(read(model, "final_norm"), out.hidden_states[-1]) <= 1e-5
    assert torch.equal(read(model, "logits"), out.logits)


# --- which list is the blocks ---


class Inner(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.adapters = nn.Linear(4, width), nn.ModuleList([nn.Linear(4, 90) for _ in range(9)])


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mamba = nn.Linear(4, 4)


def test_blocks_of_several_kinds_are_the_list_of_the_configs_length() -> None:
    net: Any = nn.Module()
    net.config = SimpleNamespace(num_hidden_layers=3, hidden_size=4)
    net.layers = nn.ModuleList([Other(), Inner(8), Other()])  # as Jamba's and Zamba's
    net.experts = nn.ModuleList([nn.Linear(90, 90) for _ in range(5)])
    assert blocks(net) is net.layers
    del net.config  # nothing says how many: the largest of one kind that stands in no other
    assert blocks(net) is net.experts
    alike = nn.Module()
    alike.layers = nn.ModuleList([Inner(8), Inner(8)])
    assert blocks(alike) is alike.layers
    tower: Any = nn.Module()  # a picture's blocks outweigh the text's
    tower.vision, tower.text = nn.Module(), nn.Module()
    tower.vision.layers = nn.ModuleList([nn.Linear(90, 90) for _ in range(4)])
    tower.text.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
    tower.config = SimpleNamespace(num_hidden_layers=2)
    assert blocks(tower) is tower.text.layers


@pytest.mark.parametrize(("family", "layers"), [("jamba", 32), ("zamba", 76), ("zamba2", 54), ("mllama", 40)])
def test_families_of_blocks_of_several_kinds(family: str, layers: int) -> None:
    model: Any = skeleton(family)
    assert len(blocks(model)) == layers == model.config.get_text_config().num_hidden_layers


def test_blocks_that_are_no_modules_of_their_own_are_not_guessed() -> None:
    with pytest.raises(
        IITKitError,
        match=r"XLMWithLMHeadModel has no list of blocks, but several of 12 parts \(attentions, ffns\): name the mod",
    ):
        blocks(skeleton("xlm"))


def test_a_list_of_modules_is_no_attention() -> None:
    has = components(skeleton("longcat_flash"), 0)
    assert "attention_input" not in has
    assert {"block_input", "block_output"} <= set(has)


# --- parts that are not what their name says ---


def test_a_module_that_several_layers_share_has_no_layer() -> None:
    model = unlisted("granite")
    shared = model.get_submodule("model.layers.0.mlp.act_fn")
    for layer in (1, 2):
        model.get_submodule(f"model.layers.{layer}.mlp").act_fn = shared
    message = "layer 2 of GraniteForCausalLM has no mlp_activation: one SiLUActivation stands in layers 0, 1, 2"
    with pytest.raises(IITKitError, match=message):
        locate(model, Site(2, "mlp_activation"))
    with pytest.raises(
        IITKitError, match=r"x: model\.layers\.2\.mlp\.act_fn: one SiLUActivation stands in layers 0, 1"
    ):
        locate(model, Site(module="model.layers.2.mlp.act_fn"), "x")
    assert "mlp_activation" not in components(model, 1)
    assert locate(model, Site(2, "mlp_hidden")).module is model.get_submodule("model.layers.2.mlp.down_proj")
    net, block = nn.Module(), nn.Linear(4, 4)
    net.layers = nn.ModuleList([block, block])
    with pytest.raises(IITKitError, match="no block_output: one Linear stands in layers 0, 1"):
        locate(net, Site(1))


def test_a_norm_before_the_blocks_is_no_final_norm() -> None:
    with pytest.raises(IITKitError, match=r"BartForCausalLM has no final_norm: no norm among the children of BartDeco"):
        locate(skeleton("bart"), Site(component="final_norm"))
    with pytest.raises(IITKitError, match="NanoChatForCausalLM has no final_norm: its norm runs before the blocks too"):
        locate(skeleton("nanochat"), Site(component="final_norm"))


def test_a_projection_to_another_width_is_no_output_projection() -> None:
    with pytest.raises(IITKitError, match="no attention_value_output: no output projection among the children of JetM"):
        locate(skeleton("jetmoe"), Site(0, "attention_value_output"))


def test_queries_with_a_gate_beside_them_are_not_guessed() -> None:
    model = skeleton("qwen3_next")
    for component in ("query_output", "head_query_output"):
        with pytest.raises(IITKitError, match=f"no {component}: 8192 entries are twice the 16 queries of 256"):
            locate(model, Site(3, component))
    assert locate(model, Site(3, "head_value_output")).heads == 2
    assert any("8192 entries are twice" in line for line in without(model, rows(model)))  # not why layer 0 lacks it


def test_sizes_that_differ_between_layers_are_read_from_the_modules() -> None:
    model = skeleton("gemma4_text")
    for layer in (0, 5):
        attention: Any = model.get_submodule(f"model.layers.{layer}.self_attn")
        found = locate(model, Site(layer, "head_query_output"))
        assert found.width == attention.head_dim
        assert found.heads * attention.head_dim == attention.q_proj.out_features
    assert locate(model, Site(0, "head_query_output")).width != locate(model, Site(5, "head_query_output")).width


def test_a_count_that_the_config_gives_by_layer_is_the_modules() -> None:
    model = skeleton("dots3_note_text")  # its config refuses to say num_attention_heads; heads of 128, head_dim 256
    for component in ("head_attention_value_output", "attention_weight"):
        with pytest.raises(IITKitError, match=f"no {component}: 16384 entries .* do not part into 128 heads of 256"):
            locate(model, Site(0, component))
    assert locate(model, Site(2, "attention_value_output")).width == 8192


def test_a_listed_family_shares_nothing() -> None:
    model = decoder("llama")
    assert locate(model, Site(2, "mlp_activation")).module is model.get_submodule("model.layers.2.mlp.act_fn")
