"""From a component's name to the family's own module, and what is said when there is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from byhand import COMPONENTS as BY_HAND
from byhand import activation, module_of, prompts, relative
from tiny import FAMILIES, tiny_model
from torch import nn

from iitkit.errors import IITKitError
from iitkit.models import families, parts
from iitkit.models.anatomy import blocks, locate
from iitkit.models.editing import visiting
from iitkit.models.sites import OUTSIDE, Site


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("component", BY_HAND)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_component_is_the_familys_own_activation(family: str, component: str, layer: int) -> None:
    model = tiny_model(family)
    ids = prompts([6])[0]
    seen: list[torch.Tensor] = []
    location = locate(model, Site(layer, component))
    with visiting([(location, lambda hidden, inputs: seen.append(hidden[0].clone()))]):
        model(torch.tensor([ids]))
    assert len(seen) == 1
    assert relative(seen[0], activation(model, ids, module_of(model, family, layer, component))) <= 1e-6
    assert (location.block, location.width) == (layer, 32)
    assert location.after == (component == "block_output")
    assert location.label == f"layer {layer} {component}"


def test_the_blocks_are_the_largest_list_of_alike_modules() -> None:
    model: Any = tiny_model("gpt2", layers=3)
    assert blocks(model) is model.transformer.h
    model.probes = nn.ModuleList([nn.Linear(2, 2) for _ in range(9)])  # longer, but smaller
    model.mixed = nn.ModuleList([nn.Linear(500, 500), nn.LayerNorm(500)])  # larger, but not alike
    model.none = nn.ModuleList()
    assert blocks(model) is model.transformer.h


def test_module_paths() -> None:
    model: Any = tiny_model("gpt2", layers=3)
    found = locate(model, Site(module="transformer.h.2.mlp.c_fc"))
    assert found.module is model.transformer.h[2].mlp.c_fc
    assert (found.side, found.block, found.after, found.width) == ("output", 2, False, 128)  # a Conv1D's [in, out]
    assert locate(model, Site(module="transformer.h.2.mlp.c_fc", side="input")).width == 32
    assert locate(model, Site(module="lm_head")).width == model.config.vocab_size
    norm = locate(model, Site(module="transformer.ln_f", side="input"))
    assert (norm.side, norm.block, norm.width) == ("input", None, 32)
    llama: Any = tiny_model("llama", layers=3)
    inner = locate(llama, Site(module="model.layers.1.mlp.up_proj"))
    assert (inner.module, inner.block, inner.width) == (llama.model.layers[1].mlp.up_proj, 1, 64)
    plain = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    assert locate(plain, Site(module="0")).width == 5
    assert locate(plain, Site(module="0", side="input")).width == 3
    assert locate(plain, Site(module="1")).width is None
    assert locate(plain, Site(module="1")).block is None


def test_a_block_with_other_names_names_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer, self.norm = nn.Linear(2, 2), nn.LayerNorm(2)

    net = nn.Module()
    net.layers = nn.ModuleList([Block(), Block()])
    assert locate(net, Site(1)).module is net.layers[1]
    with pytest.raises(
        IITKitError,
        match=r"site: layer 1 of Module has no mlp_output: no mlp among the children of Block \(mixer, norm\): name it "
        r"by module path\. It has block_input, block_output$",
    ):
        locate(net, Site(1, "mlp_output"))
    with pytest.raises(IITKitError, match="x: layer 0 of Module has no attention_input: no attention among the child"):
        locate(net, Site(0, "attention_input"), "x")
    monkeypatch.setattr(parts, "MLP", (*families.MLP, "mixer"))  # a family that differs is one name more
    assert locate(net, Site(1, "mlp_output")).module is net.layers[1].mixer


class SelfAttention(nn.Module):
    """Nobody's: fused projections of an unknown layout, or separate ones, 2 heads of 3."""

    def __init__(self, fused: bool = False, heads: int = 2) -> None:
        super().__init__()
        self.num_heads = heads
        if fused:
            self.qkv = nn.Linear(4, 18)
        else:
            self.wq, self.wk, self.wv = nn.Linear(4, 6), nn.Linear(4, 3), nn.Linear(4, 3)
        self.mix = nn.Linear(6, 4)


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.nonlinearity, self.last = nn.Linear(4, 7), nn.GELU(), nn.Linear(7, 4)


class Nobodys(nn.Module):
    """A family that no table names: its parts are found by their kinds."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(9, 4), nn.Parameter(torch.zeros(5, 4))
        self.stack, self.last_norm = nn.ModuleList(), nn.LayerNorm(4)
        for _ in range(2):
            block = nn.Module()
            block.mixing, block.thinking = SelfAttention(**options), FeedForward()
            self.stack.append(block)
        self.config = SimpleNamespace(hidden_size=4, model_type="nobodys", num_attention_heads=2)


def test_a_family_that_nobody_listed_is_found_by_structure() -> None:
    net = Nobodys()
    block: Any = net.stack[1]
    table = {
        "attention_input": (block.mixing, "input", 4, 1),
        "attention_output": (block.mixing, "output", 4, 1),
        "attention_value_output": (block.mixing.mix, "input", 6, 1),
        "query_output": (block.mixing.wq, "output", 6, 1),
        "key_output": (block.mixing.wk, "output", 3, 1),
        "head_query_output": (block.mixing.wq, "output", 3, 2),
        "head_value_output": (block.mixing.wv, "output", 3, 1),
        "mlp_input": (block.thinking, "input", 4, 1),
        "mlp_activation": (block.thinking.nonlinearity, "output", 7, 1),
        "mlp_hidden": (block.thinking.last, "input", 7, 1),
        "mlp_output": (block.thinking, "output", 4, 1),
    }
    for component, (module, side, width, heads) in table.items():
        found = locate(net, Site(1, component))
        assert (found.module, found.side, found.width, found.heads) == (module, side, width, heads)
    assert locate(net, Site(component="final_norm")).module is net.last_norm
    assert locate(net, Site(component="embeddings")).module is net.words


def test_a_fused_projection_of_unknown_layout_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Nobodys(fused=True)
    with pytest.raises(
        IITKitError,
        match=r"no value_output: query, key and value come out of qkv together, and how they lie in it is not known: "
        r"add the family to iitkit.models.families.FAMILIES\. It has block_input, .*mlp_output$",
    ):
        locate(net, Site(0, "value_output"))
    row = families.Family(fused="qkv", layout="heads")
    monkeypatch.setitem(families.FAMILIES, "nobodys", row)  # adding a family is one row
    view = locate(net, Site(0, "head_value_output", head=1)).view
    assert view is not None
    assert view.read(torch.arange(18)).tolist() == [15, 16, 17]  # q k v of head 0, then of head 1
    monkeypatch.setitem(families.FAMILIES, "nobodys", families.Family(fused="qkv"))
    for component, entries in (("query_output", [0, 1, 2, 3, 4, 5]), ("value_output", [12, 13, 14, 15, 16, 17])):
        view = locate(net, Site(0, component)).view
        assert view is not None
        assert view.read(torch.arange(18)).tolist() == entries


def test_heads_whose_sizes_contradict_each_other_are_refused() -> None:
    net = Nobodys()
    net.config.head_dim = 2  # of something else than the heads of the projection, as in DeepSeek
    with pytest.raises(
        IITKitError, match="no head_attention_value_output: 6 entries of SelfAttention do not part into 2 heads of 2"
    ):
        locate(net, Site(0, "head_attention_value_output"))


def test_what_a_location_tells() -> None:
    model: Any = tiny_model("llama", layers=3)  # 4 heads of 8, 2 key-value heads
    block = model.model.layers[1]
    key = locate(model, Site(1, "head_key_output", head=1))
    assert (key.module, key.width, key.heads, key.input_width, key.block, key.after) == (
        *(block.self_attn.k_proj, 8, 1, 32, 1, False),
    )
    assert key.label == "layer 1 head_key_output head 1"
    assert locate(model, Site(1, "head_query_output")).heads == 4
    several = locate(model, Site(1, "head_query_output", head=[3, 0]))
    assert several.heads == 2
    assert several.view is not None
    read = several.view.read(torch.arange(32.0))
    assert read.tolist() == [[24.0 + i for i in range(8)], [0.0 + i for i in range(8)]]
    written = several.view.write(torch.zeros(32), -read)
    assert written.tolist() == [-float(i) if i < 8 or i >= 24 else 0.0 for i in range(32)]
    weight = locate(model, Site(1, "attention_weight", head=[0, 2]))
    assert (weight.width, weight.heads, weight.replays, weight.block) == (None, 2, False, 1)
    for component in OUTSIDE:
        found = locate(model, Site(component=component))
        assert (found.block, found.replays) == (None, False)
    assert locate(model, Site(1, "mlp_hidden")).width == 64
    assert locate(model, Site(1, "mlp_activation")).input_width == 64
    assert locate(model, Site(1, "mlp_input")).input_width is None
    assert [locate(model, Site(1, component)).replays for component in ("block_output", "key_output")] == [True, True]


def test_what_is_not_there() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(
        IITKitError, match=r"x: component 'mpl_output' is unknown\. Did you mean 'mlp_output'\? Expected"
    ):
        locate(model, Site(1, "mpl_output"), "x")
    for layer in (4, -1, 400):
        with pytest.raises(IITKitError, match=f"layer {layer} is out of range: GPT2LMHeadModel has layers 0 to 3"):
            locate(model, Site(layer))
    with pytest.raises(
        IITKitError, match=r"has no module 'transformer\.h\.1\.mpl'\. Did you mean 'transformer\.h\.\d\.mlp'\?"
    ):
        locate(model, Site(module="transformer.h.1.mpl"))
    with pytest.raises(IITKitError, match=r"site: give a layer \(with a component\) or a module"):
        locate(model, Site())
    with pytest.raises(IITKitError, match=r"Bilinear has no list of blocks \(its children: \): name the module"):
        locate(nn.Bilinear(2, 2, 2), Site(0))
    with pytest.raises(IITKitError, match="layer 1 is out of range: Sequential has layers 0 to 0"):
        locate(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), Site(1))


def test_what_would_be_ignored_is_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(IITKitError, match=r"x: give either layer 1 \(with a component\) or module 'lm_head', not both"):
        locate(model, Site(1, module="lm_head"), "x")
    with pytest.raises(IITKitError, match="side 'input' belongs to a module; name the component of layer 1 instead"):
        locate(model, Site(1, side="input"))
    with pytest.raises(IITKitError, match="x: embeddings belongs to no layer: leave layer 0 out"):
        locate(model, Site(0, "embeddings"), "x")
    with pytest.raises(IITKitError, match="x: head 1: value_output has no heads, name head_value_output"):
        locate(model, Site(1, "value_output", head=1), "x")
    with pytest.raises(IITKitError, match=r"x: head \[0\]: mlp_output has no heads, these have: attention_weight"):
        locate(model, Site(1, "mlp_output", head=[0]), "x")
    with pytest.raises(IITKitError, match="x: head 0: logits has no heads"):
        locate(model, Site(component="logits", head=0), "x")
    with pytest.raises(IITKitError, match="x: head 0: a module has no heads, name a component, e"):
        locate(model, Site(module="lm_head", head=0), "x")
    for head, outside in ((4, 4), (-1, -1), ([0, 7], 7)):
        with pytest.raises(
            IITKitError, match=f"x: head {outside} is out of range: layer 1 head_key_output has heads 0 to 3"
        ):
            locate(model, Site(1, "head_key_output", head=head), "x")
    for odd in ([], [1, 1], True, "2", [0.0]):
        with pytest.raises(IITKitError, match=r"x: head .*: expected the index of a head, or a list of different ones"):
            locate(model, Site(1, "attention_weight", head=odd), "x")  # type: ignore[arg-type]
    wrong: Any = "Output"
    with pytest.raises(IITKitError, match="side 'Output' is unknown: expected 'input' or 'output'"):
        locate(model, Site(module="lm_head", side=wrong))
