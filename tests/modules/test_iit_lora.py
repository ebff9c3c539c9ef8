"""Low-rank updates and chosen parameters of a base that trains: gradients by hand, names, ties, what is saved."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from planting import (
    MLP_SIZES,
    PARTS,
    QUIET,
    Gradients,
    activation,
    booleans,
    first,
    fitted,
    made,
    small_gpt2,
    spied,
    tensors,
)
from torch import Tensor
from transformers import AutoModelForCausalLM

from iitkit import load_network
from iitkit.errors import IITKitError
from iitkit.models.scratch import MLP, Llama, Network
from iitkit.models.scratch_saving import save_network
from iitkit.modules import IIT
from iitkit.modules.iit_lora import Adapters, merged_state

pytestmark = QUIET
LORA = {"rank": 2, "alpha": 6.0}


def moved(module: IIT) -> IIT:
    """With updates that are not 0."""
    module.configure_model()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for delta in module.deltas:
            delta.B.add_(0.1 * torch.randn(delta.B.shape, generator=generator))
    return module


def interchanged(module: IIT, batch: Any, detach: bool) -> Tensor:
    """Cross-entropy of the interchange by hooks: ab in 0…2 at the last token, cd in 3 and 4 at token 2."""
    model: Any = module.base_model
    source = activation(model, batch.sources[0], 1)
    source = source.detach() if detach else source

    def put(hidden: Tensor) -> Tensor:
        new = hidden.clone()
        ab, cd = batch.active[:, 0], batch.active[:, 1]
        new[ab, 4, 0:3] = source[ab, 4, 0:3]
        new[cd, 2, 3:5] = source[cd, 2, 3:5]
        return new

    return F.cross_entropy(spied(model, batch.base, model.transformer.h[1], put), batch.labels[:, 0])


@pytest.mark.parametrize("detach", [True, False])
def test_updates_below_the_site_train_also_where_the_source_is_run_first(detach: bool) -> None:
    """A source that is run without gradients must not leave its weights, without gradients, to the base's run."""
    watch, data = Gradients(), booleans()
    module = moved(made(PARTS, small_gpt2(), w_behaviour=0.0, detach_source=detach, lora=LORA))
    batch = first(module, data)
    interchanged(module, batch, detach).backward()  # type: ignore[no-untyped-call]
    trained = [p for p in module.base_model.parameters() if p.requires_grad]
    expected = [p.grad.clone() for p in trained if p.grad is not None]
    assert len(expected) == len(trained) == 24
    assert min(float(gradient.abs().max()) for gradient in expected) > 1e-5
    module.zero_grad()
    fitted(module, data, watch, limit_train_batches=1, limit_val_batches=0)
    assert len(watch.steps[0]) == 24
    for ours, by_hand in zip(watch.steps[0], expected, strict=True):
        assert torch.allclose(ours, by_hand, atol=1e-6)


def test_updates_are_added_in_fp32_under_autocast_too() -> None:
    """What a mixed precision trains is what is saved."""
    module = moved(made(PARTS, small_gpt2(), lora=LORA))
    merged = merged_state(module.base_model)
    linear: Any = module.base_model.get_submodule("transformer.h.0.mlp.c_fc")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear.weight, merged["transformer.h.0.mlp.c_fc.weight"])


@pytest.mark.parametrize(
    "network", [small_gpt2(), Llama(3, width=16, layers=3, heads=2, positions=8, seed=0)], ids=["gpt2", "llama"]
)
@pytest.mark.parametrize("modules", [["*"], []], ids=["all", "layers"])
def test_the_merged_folder_is_the_network_for_transformers(
    network: Network, modules: list[str], tmp_path: Path
) -> None:
    """With an update of a head that was tied to the embeddings, too."""
    module = moved(made(PARTS, network, lora={**LORA, "modules": modules}))
    adapted = sum("lm_head" in name for name in tensors(module))
    assert (adapted > 1) == bool(modules)
    folder = save_network(module.base_model, tmp_path / "network", tensors=merged_state(module.base_model))
    ids = torch.tensor([[0, 2, 1, 1]])
    with torch.no_grad():
        expected = module.base_model(input_ids=ids).logits
        for model in (AutoModelForCausalLM.from_pretrained(folder), load_network(folder)):
            assert torch.equal(model.eval()(input_ids=ids).logits, expected)
    tied = json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    assert tied is (isinstance(network, type(small_gpt2())) and not modules)
    start = network.build(0).get_input_embeddings().weight  # type: ignore[operator]
    assert torch.equal(module.base_model.get_input_embeddings().weight, start)  # type: ignore[operator]


def test_an_untied_head_is_saved_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = moved(made(PARTS, small_gpt2(), lora={**LORA, "modules": ["lm_head"]}))
    folder = save_network(module.base_model, tmp_path / "network", tensors=merged_state(module.base_model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoModelForCausalLM.from_pretrained(folder)
    assert "tie" not in caplog.text


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 0}, "model.lora.rank: 0: expected an integer, 1 or more"),
        ({"rank": 2.5}, "model.lora.rank: 2.5: expected an integer"),
        ({"rank": 17}, "model.lora.rank: 17: transformer.h.0.attn.c_attn is (16, 48): expected at most 16, or modules"),
        ({"rank": 2, "alpha": 0.0}, "model.lora.alpha: 0.0: expected a number above 0"),
        ({"rank": 2, "alpha": -1.0}, "model.lora.alpha: -1.0: expected a number above 0"),
        ({"rank": 2, "alpha": float("nan")}, "model.lora.alpha: nan: expected a number above 0"),
        (
            {"rank": 2, "modules": ["*.c_fcc"]},
            "no linear map of GPT2LMHeadModel is named '*.c_fcc'; it has transformer",
        ),
        ({"rank": 2, "modules": ["transformer.wte"]}, "is named 'transformer.wte'"),
    ],
)
def test_updates_that_cannot_be(lora: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError, match=re.escape(message)):
        made(PARTS, small_gpt2(), lora=lora).configure_model()


def test_a_tied_parameter_has_both_of_its_names_and_trains_once() -> None:
    for pattern in ("lm_head.weight", "transformer.wte.*"):
        module = made(PARTS, small_gpt2(), parameters=[pattern])
        module.configure_model()
        before = tensors(module)
        (group,) = module.parameter_groups()
        assert [p is module.base_model.lm_head.weight for p in group["params"]] == [True]
        fitted(module, booleans())
        changed = [name for name, tensor in tensors(module).items() if not torch.equal(tensor, before[name])]
        assert sorted(changed) == ["lm_head.weight", "transformer.wte.weight"]
    module = made(PARTS, small_gpt2(), parameters=["lm_head*", "*wte*"])
    module.configure_model()
    assert len(module.parameter_groups()[0]["params"]) == 1


def test_no_pattern_is_nothing_to_train() -> None:
    with pytest.raises(IITKitError, match="nothing to train in Vanilla, Vanilla"):
        fitted(made(PARTS, small_gpt2(), parameters=[]), booleans())


def checkpoint(module: IIT) -> dict[str, Any]:
    module.configure_model()
    found: dict[str, Any] = {}
    module.on_save_checkpoint(found)
    return found


@pytest.mark.parametrize(
    ("trained", "wanted", "message"),
    [
        ({"lora": LORA}, {"lora": {**LORA, "alpha": 4.0}}, "was trained with model.lora {'rank': 2, 'alpha': 6.0"),
        ({"lora": LORA}, {}, "was trained with model.lora {'rank': 2"),
        ({}, {"parameters": ["layers.2.*"]}, "was trained with model.parameters None, not ['layers.2.*']: give that"),
        ({}, {"base": MLP(MLP_SIZES, "tanh", seed=3)}, "is of base MLP(sizes=[8, 6, 7, 2], activation=relu, seed=3)"),
        ({}, {"base": MLP(MLP_SIZES, seed=4)}, "is of base MLP(sizes=[8, 6, 7, 2], activation=relu, seed=3)"),
    ],
)
def test_a_checkpoint_of_other_updates_or_of_another_recipe_is_refused(
    trained: dict[str, Any], wanted: dict[str, Any], message: str
) -> None:
    """They fit in every shape, and would give another network."""
    kept = checkpoint(made(**trained))
    made(**trained).on_load_checkpoint(kept)
    with pytest.raises(IITKitError, match=re.escape(message)):
        made(**wanted).on_load_checkpoint(kept)


def test_updates_are_of_the_seed_alone() -> None:
    found = []
    for seed in (0, 0):
        torch.manual_seed(seed + len(found))
        module = made(PARTS, small_gpt2(), lora=Adapters(rank=2))
        module.configure_model()
        found.append([delta.A.detach() for delta in module.deltas])
        assert all(delta.scale == 2.0 for delta in module.deltas)  # α is 2 r unless said
        assert all(float(delta.B.detach().abs().max()) == 0.0 for delta in module.deltas)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    assert not torch.equal(found[0][0], found[0][4][:16])  # each its own draw
