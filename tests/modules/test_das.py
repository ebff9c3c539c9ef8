"""The module's laws: a frozen base, orthonormal subspaces, strict checkpoints, replay that changes nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tiny import save_tiny, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from training import Losses, adam, batch_of, bound, fitted, pairs

from iitkit.batch import IGNORED
from iitkit.causal import CausalModel
from iitkit.errors import IITKitError
from iitkit.models.runs import label_logits
from iitkit.modules import DAS
from iitkit.tasks import IndirectObject, Task

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]

GENDER: dict[str, Any] = {"gender": {"layer": 3, "position": "last", "intervention": {"rank": 2}}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A GPT-2 of 4 layers whose dropout is .5."""
    folder = tmp_path_factory.mktemp("base") / "gpt2"
    tiny_model("gpt2", dropout=0.5).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def made(base: str, alignment: dict[str, Any] | None = None, **options: Any) -> DAS:
    return DAS(base, alignment or GENDER, **{"optimizer": adam(), **options})


class Watch(Callback):
    """Looks at the base model in every step: its mode, its gradients."""

    def __init__(self) -> None:
        self.steps = 0

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.steps += 1
        assert pl_module.training
        assert not any(module.training for module in pl_module.base_model.modules())
        assert all(p.grad is None and not p.requires_grad for p in pl_module.base_model.parameters())
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pl_module.interventions.parameters())


# --- the frozen base ---


def test_fit_leaves_the_base_bit_identical(base: str) -> None:
    module = made(base)
    module.configure_model()
    module.train()
    tensors = [*module.base_model.named_parameters(), *module.base_model.named_buffers()]
    before = {name: tensor.clone() for name, tensor in tensors}
    start = module.edits[0].space.free.clone()
    watch = Watch()
    fitted(module, pairs(), watch)
    assert watch.steps == 6
    after = dict([*module.base_model.named_parameters(), *module.base_model.named_buffers()])
    assert len(before) > 40
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None and not p.requires_grad for p in module.base_model.parameters())
    assert (module.edits[0].space.free - start).abs().max() > 0.05  # and something was trained


def test_dropout_of_the_base_stays_off(base: str) -> None:
    data = pairs()
    module = bound(made(base, replay="off"), data)
    module.train()
    assert module.training
    assert module.interventions.training
    rates = {part.p for part in module.base_model.modules() if isinstance(part, nn.Dropout)}
    assert rates == {0.5}
    batch = batch_of(data)

    def logits() -> Tensor:
        with torch.no_grad():
            return label_logits(module.runner.prepare(batch), module.edits, batch.labels)

    assert torch.equal(logits(), logits())
    module.base_model.train()  # the check can fail
    assert not torch.equal(logits(), logits())
    module.train()
    assert not module.base_model.training


def test_optimizer_holds_the_interventions_alone(base: str) -> None:
    module = made(base, {"gender": GENDER["gender"], "name": {"layer": 1, "position": "name"}})
    module.configure_model()
    (group,) = module.configure_optimizers().param_groups
    held = {id(parameter) for parameter in group["params"]}
    assert held == {id(parameter) for parameter in module.interventions.parameters()}
    assert len(held) == 2


def test_scheduler_steps_every_batch(base: str) -> None:
    module = made(base, lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 12))

    class Rates(Callback):
        def __init__(self) -> None:
            self.values: list[float] = []

        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            self.values.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates = Rates()
    fitted(module, pairs(), rates)
    assert rates.values == pytest.approx([0.05 * (1 - step / 12) for step in range(6)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rotation_stays_orthonormal(base: str, dtype: str) -> None:
    module = made(base, {"gender": {**GENDER["gender"], "intervention": {"rank": 8}}}, dtype=dtype)
    losses = Losses()
    fitted(module, pairs(), losses)
    assert str(module.base_model.dtype) == f"torch.{dtype}"
    rotation = module.edits[0].rotation
    assert rotation.dtype == torch.float32
    assert rotation.shape == (32, 8)
    assert (rotation.T @ rotation - torch.eye(8)).abs().max() <= 1e-5
    assert all(loss == loss and loss > 0 for loss in losses.values)


# --- steps ---


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_replay_changes_no_loss(tmp_path: Path, family: str) -> None:
    folder = str(save_tiny(tmp_path / family, family))
    alignment = {"gender": {"layer": 2, "position": "name", "intervention": {"rank": 2}}}
    found = {}
    for replay in ("auto", "off"):
        losses = Losses()
        torch.manual_seed(0)
        module = fitted(made(folder, alignment, replay=replay), pairs(), losses, epochs=2)
        found[type(module.runner).__name__] = losses.values
    assert len(found) == 2  # auto chose replay, off did not
    replayed, plain = found.values()
    assert len(plain) == 12
    assert replayed == pytest.approx(plain, rel=1e-5)
    assert len(set(plain)) == 12


def test_loss_is_the_cross_entropy_of_the_label(base: str) -> None:
    data = pairs()
    module = bound(made(base), data)
    batch = batch_of(data)
    loss, logits = module.loss(batch, module.runner.prepare(batch))
    assert batch.labels.shape == (8, 1)
    by_hand = -torch.log_softmax(logits[:, 0], -1)[torch.arange(8), batch.labels[:, 0]].mean()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)


class Colours(Task):
    """Answers that the tiny tokenizer cuts into several tokens."""

    answers: ClassVar = {"warm": " vermilion-orange", "cold": " ultramarine"}

    def causal_model(self) -> CausalModel:
        model = CausalModel(prompt="The {kind} {thing} is painted", output="colour")
        model.variables(kind=["warm", "cold"], thing=["sun", "sea", "fire", "ice", "door", "wall"])

        @model.mechanism
        def colour(kind: str) -> str:
            return self.answers[kind]

        return model


def test_multi_token_labels_train(base: str) -> None:
    task = Colours()
    tokens = [tiny_tokenizer()(answer)["input_ids"] for answer in task.answers.values()]
    assert min(map(len, tokens)) > 2
    assert len(tokens[0]) != len(tokens[1])
    data = pairs(task, batch_size=16)
    module = bound(made(base, {"kind": {"layer": 3, "intervention": {"rank": 32}}}), data)
    batch = batch_of(data)
    assert batch.labels.shape[1] == max(map(len, tokens))
    real = batch.labels != IGNORED
    loss, logits = module.loss(batch, module.runner.prepare(batch))
    each = torch.log_softmax(logits, -1).gather(2, batch.labels.clamp(min=0)[:, :, None])[:, :, 0]
    assert loss.item() == pytest.approx(-each[real].mean().item(), rel=1e-5)  # every real token, no other
    losses = Losses()
    fitted(made(base, {"kind": {"layer": 3, "intervention": {"rank": 32}}}), pairs(task), losses, epochs=40)
    assert sum(losses.values[-24:]) < sum(losses.values[:24])  # whole epochs


def test_two_variables_at_several_sites(base: str) -> None:
    alignment = {
        "io_position": {"layer": 2, "position": "last"},
        "early": {"layer": 1, "position": "subject", "variable": "io_position", "intervention": {"rank": 2}},
        "io_name": {"layer": 1, "position": "subject.first", "component": "mlp_output"},
    }
    data = pairs(IndirectObject(), batch_size=16)
    module = bound(made(base, alignment), data)
    batch = batch_of(data)
    assert data.variables == ["io_position", "io_name"]
    assert {tuple(row) for row in batch.active.tolist()} == {(True, True, False), (False, False, True)}
    starts = [edit.space.free.clone() for edit in module.edits]
    fitted(module, data)
    for edit, start in zip(module.edits, starts, strict=True):
        assert (edit.space.free - start).abs().max() > 1e-3


def test_nothing_to_train(base: str) -> None:
    module = made(base, {"gender": {**GENDER["gender"], "intervention": {"name": "Vanilla"}}})
    with pytest.raises(IITKitError, match="nothing to train in Vanilla: run `iitkit test` instead"):
        fitted(module, pairs())


# --- checkpoints ---


def test_state_is_ours_alone_and_strict(base: str) -> None:
    module = made(base)
    module.configure_model()
    state = {key: value.clone() for key, value in module.state_dict().items()}
    assert list(state) == ["interventions.gender.space.free"]
    (key,) = state
    other = made(base)
    other.configure_model()
    with torch.no_grad():
        other.edits[0].space.free.add_(1.0)
    other.load_state_dict(state)
    assert torch.equal(other.state_dict()[key], state[key])
    weight = "base_model.transformer.wte.weight"
    for damaged, problem in (
        ({}, f"missing {key}"),
        ({**state, "extra": torch.zeros(1)}, "unexpected extra"),
        ({**state, weight: torch.zeros(1)}, f"unexpected {weight}"),
        ({key: torch.zeros(32, 3)}, f"{key} has shape (32, 3), expected (32, 2)"),
    ):
        with pytest.raises(IITKitError, match=re.escape(problem)):
            other.load_state_dict(damaged)
        assert torch.equal(other.state_dict()[key], state[key])  # a refused one changes nothing


def test_load_from_checkpoint_needs_no_arguments(base: str, tmp_path: Path) -> None:
    data = pairs()
    module = made(base)
    fitted(module, data, logger=False, enable_checkpointing=False)
    assert module.trainer is not None
    module.trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = DAS.load_from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.plain() == module.plain()
    batch = batch_of(data)

    def logits(which: DAS) -> Tensor:
        with torch.no_grad():
            return label_logits(which.runner.prepare(batch), which.edits, batch.labels)

    fresh = made(base)
    fresh.configure_model()
    assert torch.equal(logits(loaded), logits(module))
    assert not torch.equal(logits(fresh), logits(module))


@pytest.mark.parametrize(
    ("alignment", "message"),
    [
        ({}, "model.alignment is empty"),
        ({"two words": {"layer": 1}}, "placement 'two words' must be a plain name"),
        ({"gender": {"layr": 1}}, "alignment.gender has no key 'layr'. Did you mean 'layer'?"),
        ({"gender": {}}, "alignment.gender: give either layer (with a component) or module"),
        ({"gender": {"layer": 1, "module": "transformer"}}, "give either layer"),
    ],
)
def test_refused_alignments(base: str, alignment: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError, match=re.escape(message)):
        DAS(base, alignment)
