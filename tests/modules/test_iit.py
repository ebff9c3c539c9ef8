"""IIT's laws: each term by hand, weights that count once, frozen parts that stay, sites outside the alignment."""

from __future__ import annotations

import copy
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from planting import (
    MLP_SIZES,
    OFF,
    PARTS,
    QUIET,
    SIDES,
    Gradients,
    activation,
    booleans,
    by_hand,
    changed,
    equality,
    first,
    fitted,
    made,
    neurons,
    one_step,
    small_gpt2,
    spied,
    strictly,
    swapped,
    tensors,
)
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from training import pairs

from iitkit.errors import IITKitError
from iitkit.models.scratch import GPT2, GRU, MLP, Network
from iitkit.modules import IIT
from iitkit.modules.iit import base_labels
from iitkit.modules.iit_strict import columns_at, mixed
from iitkit.modules.schedules import Schedule
from iitkit.tasks import BooleanTree, Task

pytestmark = QUIET


# --- by hand ---


def test_every_term_is_what_arithmetic_says() -> None:
    module = made(w_strict=0.5)
    batch = first(module, equality())
    own = torch.tensor([[0, 1][int(label)] for label in batch.base_label])
    assert len(set(own.tolist())) == 2
    assert not torch.equal(own, batch.label)
    for name, logits, labels in (
        ("behaviour", by_hand(module.base_model, batch.base.inputs), own),  # type: ignore[attr-defined]
        ("iit", swapped(module.base_model, batch), batch.label),
        ("strict", strictly(module.base_model, batch), own),
    ):
        value, found = module.term(name, batch)
        assert torch.allclose(found[:, 0], logits, atol=1e-6), name
        assert value.item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5), name
    assert torch.equal(base_labels(batch), own[:, None])


@pytest.mark.parametrize("term", ["behaviour", "iit", "strict"])
def test_doubling_a_weight_doubles_its_term_exactly_once(term: str) -> None:
    """.4 acts as .4, not as .16: loss and gradients are linear in each weight, and what is logged does not change."""
    loss, gradients, logged = one_step(**{**OFF, f"w_{term}": 0.4})
    double, twice, again = one_step(**{**OFF, f"w_{term}": 0.8})
    assert logged[f"train/{term}"] == again[f"train/{term}"] > 0.1
    assert loss == pytest.approx(0.4 * logged[f"train/{term}"], rel=1e-6)
    assert double == pytest.approx(2 * loss, rel=1e-6)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0.01
    for one, two in zip(gradients, twice, strict=True):
        assert torch.allclose(2 * one, two, rtol=1e-5, atol=1e-9)


def test_the_loss_is_the_weighted_sum_of_what_is_logged() -> None:
    loss, _, logged = one_step(w_behaviour=0.5, w_iit=2.0, w_strict=0.25)
    by_terms = 0.5 * logged["train/behaviour"] + 2.0 * logged["train/iit"] + 0.25 * logged["train/strict"]
    assert loss == pytest.approx(by_terms, rel=1e-6)
    assert {key for key in logged if "/" in key} >= {"train/behaviour", "train/iit", "train/strict", "train/loss"}


@pytest.mark.parametrize("detach", [False, True])
def test_gradients_flow_through_the_source_unless_detached(detach: bool) -> None:
    module = made(w_behaviour=0.0, detach_source=detach)
    batch = first(module, equality())
    module.term("iit", batch)[0].backward()
    found = [parameter.grad.clone() for parameter in module.base_model.parameters() if parameter.grad is not None]
    twin = copy.deepcopy(module.base_model)
    twin.zero_grad()
    F.cross_entropy(swapped(twin, batch, detach), batch.label).backward()
    for ours, parameter in zip(found, twin.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(ours, parameter.grad, atol=1e-7)
    other = copy.deepcopy(module.base_model)
    other.zero_grad()
    F.cross_entropy(swapped(other, batch, not detach), batch.label).backward()
    grad = next(other.parameters()).grad
    assert grad is not None
    assert (found[0] - grad).abs().max() > 1e-4  # the two differ, so the check can fail


@pytest.mark.parametrize("term", ["behaviour", "iit", "strict"])
def test_alternating_and_single_steps_agree_on_one_term(term: str) -> None:
    found = []
    for alternating in (False, True):
        watch = Gradients()
        module = fitted(made(**{**OFF, f"w_{term}": 1.0}, alternating=alternating), equality(), watch, epochs=2)
        found.append((watch.losses, [parameter.detach() for parameter in module.base_model.parameters()]))
    assert len(found[0][0]) == 6
    assert found[0][0] == found[1][0]
    assert all(torch.equal(one, two) for one, two in zip(found[0][1], found[1][1], strict=True))


def test_alternating_takes_the_terms_in_turn() -> None:
    watch = Gradients()
    fitted(made(w_behaviour=1.0, w_iit=2.0, w_strict=3.0, alternating=True), equality(), watch, limit_val_batches=0)
    for step, (name, weight) in enumerate((("behaviour", 1.0), ("iit", 2.0), ("strict", 3.0))):
        assert watch.losses[step] == pytest.approx(weight * watch.logged[step][f"train/{name}"], rel=1e-6)


def test_weights_follow_their_schedules() -> None:
    watch = Gradients()
    fitted(made(w_behaviour=Schedule(1.0, 0.0), w_iit=Schedule(0.0, 1.0)), equality(), watch, epochs=2)
    for step, (loss, logged) in enumerate(zip(watch.losses, watch.logged, strict=True)):
        share = step / 5
        terms = (1 - share) * logged["train/behaviour"] + share * logged.get("train/iit", 0.0)
        if 0 < step < 5:
            assert loss == pytest.approx(terms, rel=1e-5)
    assert watch.losses[0] == pytest.approx(watch.logged[0]["train/behaviour"])  # nothing else is run at weight 0
    assert "train/iit" not in watch.logged[0]


# --- what trains ---


def test_interventions_alone_leave_the_base_bit_identical() -> None:
    module = made({"left_equal": {"layer": 1, "intervention": {"rank": 2}}}, train="interventions")
    module.configure_model()
    before, start = tensors(module), module.edits[0].space.free.clone()
    fitted(module, equality())
    assert changed(before, tensors(module)) == set()
    assert (module.edits[0].space.free - start).abs().max() > 1e-3


@pytest.mark.parametrize(("train", "turns"), [("base", False), ("both", True)])
def test_rotations_train_with_the_base_or_stay(train: str, turns: bool) -> None:
    module = made({"left_equal": {"layer": 1, "intervention": {"rank": 2}}}, train=train)
    module.configure_model()
    before, start = tensors(module), module.edits[0].space.free.clone()
    fitted(module, equality())
    assert len(changed(before, tensors(module))) == len(before) == 6
    assert torch.equal(module.edits[0].space.free, start) is not turns


def test_patterns_choose_what_trains() -> None:
    module = made(parameters=["layers.2.*"])
    module.configure_model()
    before = tensors(module)
    fitted(module, equality())
    assert changed(before, tensors(module)) == {"layers.2.weight", "layers.2.bias"}
    with pytest.raises(IITKitError, match=re.escape("MLPModel has no parameter 'layers.9.*'; it has layers.0.weight")):
        made(parameters=["layers.9.*"]).configure_model()


def test_lora_trains_beside_weights_that_stay() -> None:
    module = made(lora={"rank": 2, "alpha": 6.0, "modules": ["layers.0", "layers.2"]})
    module.configure_model()
    before = tensors(module)
    start = by_hand(MLP(MLP_SIZES, seed=3).build(0), torch.ones(1, 8))
    assert torch.allclose(module.base_model(torch.ones(1, 8)), start, atol=1e-6)  # B is 0: nothing changes at first
    fitted(module, equality())
    assert changed(before, tensors(module)) == {
        f"layers.{i}.parametrizations.weight.0.{name}" for i in (0, 2) for name in ("A", "B")
    }
    linear: Any = module.base_model.get_submodule("layers.0")
    original, delta = linear.parametrizations.weight.original, linear.parametrizations.weight[0]
    assert torch.allclose(linear.weight, original + 3.0 * delta.A @ delta.B)
    state = set(module.state_dict())
    assert {f"base_model.layers.0.parametrizations.weight.0.{name}" for name in ("A", "B")} <= state


class Wild(nn.Module):
    """A network with dropout and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.layers(inputs)
        return found


def wild() -> IIT:
    module = made({"left_equal": neurons(0, [0, 1])})
    model = Wild()
    object.__setattr__(module.base, "make", lambda: model)
    return module


def test_dropout_and_batch_norm_stay_still(caplog: pytest.LogCaptureFixture) -> None:
    module = wild()
    with caplog.at_level(logging.WARNING, logger="iitkit"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("iitkit.models.scratch.shape_of", lambda model: {"architecture": "Wild", "width": 6, "layers": 2})
        module.configure_model()
    assert "dropout of the base (layers.3) stays off" in caplog.text
    assert "batch norms of the base (layers.1) use their running statistics" in caplog.text
    data = equality()
    batch = first(module, data)
    module.train()
    assert not any(part.training for part in module.base_model.modules())
    before = module.base_model.state_dict()["layers.1.running_mean"].clone()
    fitted(module, data)
    assert torch.equal(module.base_model.state_dict()["layers.1.running_mean"], before)
    module.base_model.get_submodule("layers.3").train()
    with pytest.raises(IITKitError, match=r"layers.3 \(Dropout\) is in train mode during an interchange.*call base_mo"):
        module.training_step(batch, 0)
    module.base_model.get_submodule("layers.3").eval()
    module.base_model.get_submodule("layers.1").train()
    with pytest.raises(IITKitError, match=r"layers.1 \(BatchNorm1d\) is in train mode"):
        module.training_step(batch, 0)


# --- networks of sequences ---


def test_terms_of_a_gpt2_against_hand_placed_hooks() -> None:
    """Two variables at different positions; a part of each block's output."""
    module = made(PARTS, small_gpt2(), w_strict=1.0)
    batch = first(module, booleans(together=2))
    model: Any = module.base_model
    assert batch.active.all()
    assert len(batch.sources) == 2
    sources = [activation(model, source, 1) for source in batch.sources]
    order = batch.source_of.tolist()
    assert {tuple(row) for row in order} == {(0, 1)}

    def interchange(hidden: Tensor) -> Tensor:
        new = hidden.clone()
        new[:, 4, 0:3] = sources[0][:, 4, 0:3]
        new[:, 2, 3:5] = sources[1][:, 2, 3:5]
        return new

    logits = spied(model, batch.base, model.transformer.h[1], interchange)
    value, found = module.term("iit", batch)
    assert torch.allclose(found[:, 0], logits, atol=1e-6)
    assert value.item() == pytest.approx(F.cross_entropy(logits, batch.labels[:, 0]).item(), rel=1e-5)

    (site,) = module.strict_sites
    into, out_of, there = columns_at(batch, site, 0)
    assert there.all()
    assert torch.equal(into, out_of)
    assert len(set(into[:, 0].tolist())) > 2  # drawn over the sequence, aligned positions too

    def strict(hidden: Tensor) -> Tensor:
        new = hidden.clone()
        for row, column in enumerate(into[:, 0].tolist()):
            new[row, column] = sources[0][row, column]
        new[:, 4, 0:3] = hidden[:, 4, 0:3]
        new[:, 2, 3:5] = hidden[:, 2, 3:5]
        return new

    logits = spied(model, batch.base, model.transformer.h[1], strict)
    _, found = module.term("strict", batch)
    assert torch.allclose(found[:, 0], logits, atol=1e-6)


def test_strict_sites_beside_a_rotation_and_a_head() -> None:
    module = made(
        {
            "ab": {"layer": 1, "intervention": {"rank": 3}},
            "cd": {
                "layer": 2,
                "component": "head_attention_value_output",
                "head": 1,
                "intervention": {"name": "Vanilla"},
            },
        },
        small_gpt2(),
        w_strict=1.0,
    )
    batch = first(module, booleans())
    model: Any = module.base_model
    residual, heads = module.strict_sites
    assert (residual.name, heads.name) == ("layer_1_block_output", "layer_2_head_attention_value_output")
    assert (heads.location.heads, residual.aligned, heads.aligned) == (2, (0,), (1,))
    source = activation(model, batch.sources[0], 1)
    into = columns_at(batch, residual, 5)[0][:, 0].tolist()
    subspace: Any = module.edits[0]
    projection = subspace.rotation @ subspace.rotation.T

    def outside(hidden: Tensor) -> Tensor:
        new = hidden.clone()
        for row, column in enumerate(into):
            delta = source[row, column] - hidden[row, column]
            new[row, column] += delta if column != 4 else delta - delta @ projection
        return new

    logits = spied(model, batch.base, model.transformer.h[1], outside)
    labels = base_labels(batch)
    assert torch.allclose(module._strict(residual, batch, labels, 5)[:, 0], logits, atol=1e-5)

    projector = model.transformer.h[2].attn.c_proj
    kept: list[Tensor] = []
    handle = projector.register_forward_pre_hook(lambda m, args: kept.append(args[0].clone()))
    model(input_ids=batch.sources[0].ids)
    handle.remove()
    into = columns_at(batch, heads, 2)[0][:, 0].tolist()

    def other_heads(m: Any, args: Any) -> Any:
        new = args[0].clone()
        for row, column in enumerate(into):
            new[row, column] = kept[0][row, column]
        new[:, 4, 8:] = args[0][:, 4, 8:]  # head 1 of 2, width 8, stays the base's at the last position
        return (new,)

    handle = projector.register_forward_pre_hook(other_heads)
    logits = model(input_ids=batch.base.ids).logits[:, -1]
    handle.remove()
    assert torch.allclose(module._strict(heads, batch, labels, 2)[:, 0], logits, atol=1e-6)


def test_parts_that_no_placement_names() -> None:
    alignment = {
        "ab": {"layer": 0, "component": "mlp_output", "intervention": {"name": "Vanilla"}},
        "cd": {"layer": 1, "component": "head_attention_value_output", "head": 0, "intervention": {"name": "Vanilla"}},
    }
    module = made(alignment, small_gpt2(), w_strict=1.0, strict="parts")
    module.configure_model()
    found = {site.name for site in module.strict_sites}
    every = {f"layer_{i}_head_attention_value_output_head_{h}" for i in range(3) for h in range(2)}
    every |= {f"layer_{i}_mlp_output" for i in range(3)}
    assert found == every - {"layer_0_mlp_output", "layer_1_head_attention_value_output_head_0"}
    with pytest.raises(IITKitError, match=r"alignment\.ab is in none of them .*: choose beside"):
        made(PARTS, small_gpt2(), w_strict=1.0, strict="parts").configure_model()


def test_draws_are_the_same_in_any_process_and_others_in_each_step() -> None:
    rows = torch.arange(1000)
    assert torch.equal(mixed(rows, 3)[7::2], mixed(rows[7::2], 3))
    assert int(mixed(rows, 0).min()) >= 0
    counts = torch.stack([torch.bincount(mixed(rows, step) % 5, minlength=5) for step in range(4)])
    assert counts.min() > 140  # 200 expected, standard deviation 13
    assert (mixed(rows, 0) % 5 == mixed(rows, 1) % 5).float().mean() < 0.3


def test_divergence_from_the_original_by_hand() -> None:
    module = made(PARTS, small_gpt2(), w_kl=1.0)
    batch = first(module, booleans())
    model: Any = module.base_model
    before = model(input_ids=batch.base.ids).logits.detach()
    original = module._as_before(batch)
    assert torch.allclose(original, before, atol=1e-6)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.add_(0.5 * torch.randn(16, 64))
    assert torch.equal(module._as_before(batch), original)
    now = model(input_ids=batch.base.ids).logits.log_softmax(-1)
    by_definition = (before.softmax(-1) * (before.log_softmax(-1) - now)).sum(-1).mean()
    value, _ = module.term("kl", batch, original)
    assert value.item() == pytest.approx(by_definition.item(), rel=1e-4)
    assert value.item() > 1e-3


def test_divergence_under_lora_needs_no_copy() -> None:
    module = made(PARTS, small_gpt2(), w_kl=1.0, lora={"rank": 2})
    batch = first(module, booleans())
    before = module.base_model(input_ids=batch.base.ids).logits.detach()
    with torch.no_grad():
        for delta in module.deltas:
            delta.B.add_(0.3)
    assert module._original == []
    assert torch.allclose(module._as_before(batch), before, atol=1e-6)
    assert not torch.allclose(module.base_model(input_ids=batch.base.ids).logits, before, atol=1e-2)
    assert len(module.deltas) == 12  # c_attn, c_proj, c_fc and c_proj of three blocks; not the head


def test_a_gru_trains_at_its_states() -> None:
    module = made({"ab": neurons(0, [0, 1], position="b")}, GRU(3, width=4, hidden=6, seed=0))
    batch = first(module, booleans())
    model: Any = module.base_model
    states = [model.gru(model.embeddings(tokens.ids))[0] for tokens in (batch.base, batch.sources[0])]
    state = states[0][:, 1].clone()
    state[:, :2] = states[1][:, 1, :2]
    after, _ = model.gru(model.embeddings(batch.base.ids[:, 2:]), state[None])
    _, logits = module.term("iit", batch)
    assert torch.allclose(logits[:, 0], model.head(after[:, -1]), atol=1e-6)
    fitted(made({"ab": neurons(0, [0, 1], position="b")}, GRU(3, width=4, hidden=6)), booleans())


def test_a_pretrained_base_trains_on_text(tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    tiny_model("gpt2", dropout=0.5).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    module = made({"gender": neurons(2, [0, 1, 2])}, str(folder), parameters=["transformer.h.*"], w_strict=0.1)
    module.configure_model()
    before = tensors(module)
    fitted(module, pairs())
    after = changed(before, tensors(module))
    assert all(name.startswith("transformer.h.") for name in after)
    assert len(after) == 48  # 12 tensors of each of four blocks
    kept = [key for key in module.state_dict() if key.startswith("base_model.")]
    assert len(kept) == 48


# --- what is measured ---


def test_the_worst_of_what_is_trained_is_watched() -> None:
    class Values(Callback):
        found: dict[str, float]

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.found = {key: float(value) for key, value in trainer.callback_metrics.items()}

    watch = Values()
    fitted(made(w_strict=0.5), equality(eval_batch_size=10), watch)
    rates = [
        f"val/{name}/{rate}" for name in ("left_equal", "right_equal") for rate in ("iia", "iia_flipped", "iia_kept")
    ]
    watched = [*rates, "val/task_accuracy", "val/strict/layer_1_block_output/accuracy"]
    assert watch.found["val/worst"] == min(watch.found[key] for key in watched)
    weighted = (watch.found["val/left_equal/iia"] + watch.found["val/right_equal/iia"]) / 2
    assert watch.found["val/iia"] == pytest.approx(weighted)  # as many pairs of each
    fitted(made(w_iit=0.0), equality(), watch)
    assert watch.found["val/worst"] == watch.found["val/task_accuracy"]  # IIA is not trained for


def test_variables_together_are_counted_together() -> None:
    class Keys(Callback):
        found: set[str]

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.found = {key for key in trainer.callback_metrics if key.startswith("val/") and key.endswith("/iia")}

    watch = Keys()
    fitted(made(PARTS, small_gpt2()), booleans(together=2), watch)
    assert watch.found == {"val/iia", "val/ab+cd/iia"}


# --- errors ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (OFF, "all weights are 0: set w_behaviour, w_iit, w_strict or w_kl above 0"),
        ({"w_iit": -1.0}, "model.w_iit goes from -1.0 to -1.0: expected 0 or more"),
        ({"train": "bases"}, "model.train: 'bases': expected base, interventions or both"),
        (
            {"train": "interventions", "lora": {"rank": 2}},
            "model.lora is of a base that trains: set model.train to base",
        ),
        ({"strict": "parts"}, "model.strict chooses the strict sites: set w_strict above 0"),
        ({"alignment": {"left_equal": {}}}, "alignment.left_equal: give either layer (with a component) or module"),
        ({"base": {"name": "MLPP"}}, "base 'MLPP' is no network. Did you mean 'MLP'?"),
        ({"base": {"name": "MLP", "size": [2, 2, 2]}}, "base MLP has no option 'size'. Did you mean 'sizes'?"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    given = {"base": MLP(MLP_SIZES), "alignment": SIDES, **options}
    with pytest.raises(IITKitError, match=re.escape(message)):
        IIT(**given)


@pytest.mark.parametrize(
    ("alignment", "options", "message"),
    [
        (
            {"left_equal": neurons(1, [0, 1]), "right_equal": neurons(1, [1, 2])},
            {},
            "alignment.right_equal: it has the site of 'left_equal' (layer 1 block_output, position last), and the two "
            "have no parts of their own: give both a block of one rotation",
        ),
        (
            {"left_equal": {"layer": 1}, "right_equal": {"layer": 1}},
            {},
            "alignment.right_equal: it has the site of 'left_equal'",
        ),
        (
            {"left_equal": {"layer": 1, "intervention": {"name": "Vanilla"}}},
            {"w_strict": 1.0},
            "model.w_strict: nothing of layer 1 block_output stands outside the alignment",
        ),
    ],
)
def test_sites_that_cannot_be_trained(alignment: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError, match=re.escape(message)):
        fitted(made(alignment, **options), equality())


def test_blocks_of_one_rotation_share_a_site() -> None:
    blocks = {"name": "RotatedSubspace", "coordinates": {"left_equal": 2, "right_equal": 3}}
    alignment = {
        "left_equal": {"layer": 1, "intervention": blocks},
        "right_equal": {"layer": 1, "shared_with": "left_equal"},
    }
    module = fitted(made(alignment, train="both", w_strict=0.5), equality())
    assert module.trainer.global_step == 3


def test_an_ablation_is_no_interchange() -> None:
    module = made({"left_equal": {"layer": 1, "intervention": {"name": "Zero"}}})
    with pytest.raises(IITKitError, match=r"alignment.left_equal: Zero\(\) takes nothing from a source"):
        module.configure_model()


def test_a_variable_without_a_site_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="iitkit"):
        fitted(made({"left_equal": SIDES["left_equal"]}, w_strict=1.0), equality())
    assert "right_equal has no site, and the loss asks that nothing outside the alignment matters" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="iitkit"):
        fitted(made(w_strict=1.0), equality())
    assert "has no site" not in caplog.text


@pytest.mark.parametrize(
    ("base", "task", "alignment", "message"),
    [
        (MLP([9, 4, 2]), None, SIDES, "base MLP.sizes: an input has 8 numbers, the network takes 9"),
        (MLP([8, 4, 1]), None, SIDES, "base MLP.sizes: there are 2 classes, the network has 1"),
        (small_gpt2(), None, SIDES, "base GPT2 reads sequences, and the data are vectors: choose MLP"),
        (MLP([8, 4, 2]), BooleanTree(inputs="symbols"), PARTS, "base MLP reads vectors, and the data are sequences"),
        (GPT2(2), BooleanTree(inputs="symbols"), PARTS, "base GPT2.vocabulary: 2: the data have 3 symbols"),
    ],
)
def test_networks_that_do_not_read_the_data(base: Network, task: Task | None, alignment: Any, message: str) -> None:
    layer = {name: {**placement, "layer": 0} for name, placement in alignment.items()}
    layer = {
        name: {**p, "intervention": {"name": "Vanilla", "features": [i]}} for i, (name, p) in enumerate(layer.items())
    }
    data = equality() if task is None else booleans()
    with pytest.raises(IITKitError, match=re.escape(message)):
        fitted(made(layer, base), data)
