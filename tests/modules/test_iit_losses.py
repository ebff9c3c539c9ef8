"""IIT's losses by hand, row by row: answers and prompts of several lengths, halves of a batch, weights of 0."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from planting import OFF, QUIET, Gradients, equality, fitted, made, neurons, tensors
from torch import Tensor
from training import batch_of, pairs

from iitkit.batch import IGNORED, Batch
from iitkit.causal import CausalModel
from iitkit.modules import IIT
from iitkit.modules.iit_measures import base_labels, taken
from iitkit.modules.schedules import Schedule
from iitkit.tasks import Task

pytestmark = QUIET


class Painted(Task):
    """Prompts of several lengths, answers that the tiny tokenizer cuts into several tokens."""

    answers: ClassVar = {"warm": " vermilion-orange", "cold": " ultramarine"}

    def causal_model(self) -> CausalModel:
        model = CausalModel(prompt="The {kind} {thing} is painted", output="colour")
        things = ["box", "wardrobe in the corridor", "cup", "tin of the old man", "large wooden jug", "pen"]
        model.variables(kind=["warm", "cold"], thing=[*things, *(f"{thing} there" for thing in things)])

        @model.mechanism
        def colour(kind: str) -> str:
            return self.answers[kind]

        return model


@pytest.fixture
def text(tiny_gpt2: str) -> tuple[IIT, Batch]:
    module = made(
        {"kind": neurons(2, [0, 1, 2, 3], position="kind")}, tiny_gpt2, w_strict=1.0, w_kl=1.0, detach_source=True
    )
    module.configure_model()
    sizes = {"train": 16, "validation": 8, "test": 8, "test_templates": None}
    data = pairs(Painted(), batch_size=8, sizes=sizes, flipped=None)
    data.bind(module)
    return module, batch_of(data)


def tokens(row: Tensor, mask: Tensor) -> Tensor:
    return row[mask.bool()]


def test_lengths_differ(text: tuple[IIT, Batch]) -> None:
    """Else the tests below would say nothing."""
    _, batch = text
    assert len({int(n) for n in batch.base.mask.sum(1)}) > 1
    assert len({int(n) for n in (batch.labels != IGNORED).sum(1)}) > 1


def test_terms_of_text_by_hand_row_by_row(text: tuple[IIT, Batch]) -> None:
    """Each row by itself, without padding; the answer's tokens follow the prompt."""
    module, batch = text
    model: Any = module.base_model
    found: dict[str, list[float]] = {"behaviour": [], "iit": [], "kl": []}
    original = module._as_before(batch)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight.mul_(1.5)
    own = base_labels(batch)
    for i in range(len(batch)):
        prompt = tokens(batch.base.ids[i], batch.base.mask[i])
        source = tokens(batch.sources[0].ids[i], batch.sources[0].mask[i])
        for name, labels in (("behaviour", own[i]), ("iit", batch.labels[i])):
            said = labels[labels != IGNORED]
            kept: list[Tensor] = []

            def put(layer: Any, args: Any, output: Tensor, i: int = i, kept: list[Tensor] = kept) -> Tensor:
                if not kept:
                    kept.append(output)
                    return output
                new = output.clone()
                new[0, batch.base_positions[i, 0, 0], :4] = kept[0][0, batch.source_positions[i, 0, 0], :4]
                return new

            handle = model.transformer.h[2].register_forward_hook(put) if name == "iit" else None
            with torch.no_grad():
                if handle is not None:
                    model(input_ids=source[None])
                logits = model(input_ids=torch.cat([prompt, said[:-1]])[None]).logits[0, len(prompt) - 1 :]
            if handle is not None:
                handle.remove()
            found[name].append(-float(logits.log_softmax(-1)[torch.arange(len(said)), said].mean()))
        with torch.no_grad():
            now = model(input_ids=prompt[None]).logits[0].log_softmax(-1)
        before = tokens(original[i], batch.base.mask[i]).log_softmax(-1)
        found["kl"].append(float((before.exp() * (before - now)).sum(-1).mean()))
    for name, rows in found.items():
        value, _ = module.term(name, batch, original)
        assert value.item() == pytest.approx(sum(rows) / len(rows), rel=1e-5), name
        assert value.item() > 1e-3


@pytest.mark.parametrize("name", ["behaviour", "iit", "strict", "kl"])
def test_two_halves_are_the_batch(text: tuple[IIT, Batch], name: str) -> None:
    """Two processes each have half the rows: the mean of their losses is the loss of all."""
    module, batch = text
    original = module._as_before(batch)
    with torch.no_grad():
        module.base_model.transformer.h[1].mlp.c_fc.weight.mul_(1.5)  # type: ignore[union-attr]
    whole = module.term(name, batch, original)[0].item()
    halves = [
        module.term(name, taken(batch, rows), original[rows])[0].item()
        for rows in (torch.arange(0, 8, 2), torch.arange(1, 8, 2))
    ]
    assert abs(halves[0] - halves[1]) > 1e-4
    assert sum(halves) / 2 == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("alternating", [False, True])
@pytest.mark.parametrize(
    ("weights", "still"),
    [
        ({"w_behaviour": Schedule(1.0, 0.0)}, 5),
        ({"w_iit": Schedule(0.0, 1.0)}, 0),
        ({"w_strict": Schedule(0.0, 1.0)}, 0),
    ],
)
def test_a_step_of_weights_0_is_a_step_that_trains_nothing(
    weights: dict[str, Any], still: int, alternating: bool
) -> None:
    steps: list[bool] = []

    class Watch(Gradients):
        before: dict[str, Tensor]

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            self.before = tensors(pl_module)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, pl_module, outputs)
            now = tensors(pl_module)
            steps.append(any(not torch.equal(now[name], self.before[name]) for name in now))

    watch = Watch()
    given = {**OFF, **weights, "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)}
    fitted(made(alternating=alternating, **given), equality(), watch, epochs=2)
    assert steps == [step != still for step in range(6)]
    assert watch.losses[still] == 0.0
