"""From a component's name to the family's own module, and what is said when there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from byhand import COMPONENTS as BY_HAND
from byhand import activation, module_of, prompts, relative
from tiny import FAMILIES, tiny_model
from torch import nn

from iitkit.errors import IITKitError
from iitkit.models import anatomy
from iitkit.models.anatomy import COMPONENTS, blocks, locate
from iitkit.models.editing import visiting
from iitkit.models.sites import Site


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_component_is_the_familys_own_activation(family: str, component: str, layer: int) -> None:
    model = tiny_model(family)
    ids = prompts([6])[0]
    seen: list[torch.Tensor] = []
    location = locate(model, Site(layer, component))
    with visiting([(location, lambda hidden: seen.append(hidden[0].clone()))]):
        model(torch.tensor([ids]))
    assert len(seen) == 1
    assert relative(seen[0], activation(model, ids, module_of(model, family, layer, component))) <= 1e-6
    assert (location.block, location.width) == (layer, 32)
    assert location.after == (component == "block_output")
    assert location.label == f"layer {layer} {component}"


def test_every_component_is_checked_by_hand() -> None:
    assert set(BY_HAND) == set(COMPONENTS)


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
        IITKitError, match=r"site: no mlp among the children of Block \(mixer, norm\): name it by module"
    ):
        locate(net, Site(1, "mlp_output"))
    with pytest.raises(IITKitError, match="x: no attention among the children of Block"):
        locate(net, Site(1, "attention_input"), "x")
    monkeypatch.setattr(anatomy, "MLP", (*anatomy.MLP, "mixer"))  # a family that differs is one name more
    assert locate(net, Site(1, "mlp_output")).module is net.layers[1].mixer


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
    with pytest.raises(IITKitError, match=r"Sequential has no list of blocks \(its children: 0, 1\): name the module"):
        locate(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), Site(0))


def test_what_would_be_ignored_is_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(IITKitError, match=r"x: give either layer 1 \(with a component\) or module 'lm_head', not both"):
        locate(model, Site(1, module="lm_head"), "x")
    with pytest.raises(IITKitError, match="side 'input' belongs to a module; name the component of layer 1 instead"):
        locate(model, Site(1, side="input"))
    wrong: Any = "Output"
    with pytest.raises(IITKitError, match="side 'Output' is unknown: expected 'input' or 'output'"):
        locate(model, Site(module="lm_head", side=wrong))
