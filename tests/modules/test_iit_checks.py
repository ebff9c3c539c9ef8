"""What IIT refuses or warns of before it starts; when its schedules let a run stop."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from planting import (
    MLP_SIZES,
    OFF,
    PARTS,
    QUIET,
    Gradients,
    booleans,
    equality,
    first,
    fitted,
    made,
    neurons,
    small_gpt2,
    swapped,
)
from torch import Tensor, nn
from training import adam

from iitkit.cli.keeping import Patient
from iitkit.data import CompletionDataModule, Dataset
from iitkit.errors import IITKitError
from iitkit.models.scratch import GPT2, MLP, Llama
from iitkit.modules import DAS, IIT
from iitkit.modules.iit_checks import check_still, moving_parts
from iitkit.modules.schedules import Schedule

pytestmark = QUIET
LEARNED: dict[str, Any] = {"left_equal": {"layer": 1, "intervention": {"rank": 2}}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "interventions", "w_kl": 1.0}, "model.w_kl is of a base that trains"),
        ({"train": "interventions", "w_iit": 0.0}, "model.train: interventions: interventions train by interchanges"),
        ({"train": "both", **OFF, "w_kl": 1.0}, "model.train: both: interventions train by interchanges: set w_iit or"),
        ({"train": "interventions", "alternating": True}, "model.alternating: in the behaviour's steps nothing would"),
    ],
)
def test_terms_that_nothing_trains_in_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError, match=re.escape(message)):
        made(LEARNED, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"train": "interventions", "w_behaviour": 0.0, "alternating": True},
        {"train": "interventions", "w_iit": 0.0, "w_strict": 1.0},
        {"train": "both", "w_iit": 0.0, "w_strict": 1.0},
        {"train": "base", "w_iit": 0.0},
    ],
)
def test_terms_that_something_trains_in(options: dict[str, Any]) -> None:
    assert fitted(made(LEARNED, **options), equality()).trainer.global_step == 3


@pytest.mark.parametrize(("features", "apart"), [([0, 1], False), ([3, 4], True)])
def test_what_leaves_a_layer_is_what_enters_the_next(features: list[int], apart: bool) -> None:
    """One activation by two names, for two variables."""
    alignment = {
        "ab": neurons(0, [0, 1, 2], position="last"),
        "cd": neurons(1, features, component="block_input", position="last"),
    }
    module = made(alignment, small_gpt2())
    if apart:
        assert fitted(module, booleans()).trainer.global_step == 4
        return
    with pytest.raises(IITKitError, match=re.escape("alignment.cd: it has the site of 'ab' (layer 0 block_output")):
        fitted(module, booleans())


def test_a_module_by_its_path_is_the_component_that_it_is() -> None:
    alignment = {
        "ab": neurons(1, [0, 1, 2]),
        "cd": {"module": "transformer.h.1", "side": "output", "intervention": {"name": "Vanilla", "features": [2, 3]}},
    }
    with pytest.raises(IITKitError, match=re.escape("alignment.cd: it has the site of 'ab'")):
        fitted(made(alignment, small_gpt2()), booleans())


@pytest.mark.parametrize("base", [small_gpt2(positions=4), Llama(3, width=16, layers=2, heads=2, positions=4)])
def test_prompts_longer_than_the_network(base: Any) -> None:
    message = f"base {type(base).__name__}.positions: 4: a train prompt has 5 tokens: set it to more"
    for module in (made(PARTS, base), DAS(base, {"ab": {"layer": 1}}, adam())):
        with pytest.raises(IITKitError, match=re.escape(message)):
            fitted(module, booleans())


def test_das_too_asks_whether_a_network_can_read_the_data() -> None:
    with pytest.raises(IITKitError, match=re.escape("base GPT2.vocabulary: 2: the data have 3 symbols")):
        fitted(DAS(GPT2(2, width=8, layers=2, heads=2), {"ab": {"layer": 1}}, adam()), booleans())
    assert fitted(DAS(small_gpt2(), {"ab": {"layer": 1}}, adam()), booleans()).trainer.global_step == 4


def test_prompts_as_long_as_the_network() -> None:
    assert fitted(made(PARTS, small_gpt2(positions=5)), booleans()).trainer.global_step == 4


class Functional(nn.Module):
    """Drops by a function, as attention does, and in a GRU."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=rate)
        self.gru = nn.GRU(4, 4, 2, dropout=rate)


def test_dropout_that_is_no_module_is_dropout_too() -> None:
    check_still(Functional(0.0).train())
    assert moving_parts(Functional(0.0)) == ([], [])
    assert moving_parts(Functional(0.25)) == (["attention", "gru"], [])
    check_still(Functional(0.25).eval())
    with pytest.raises(IITKitError, match=r"attention \(MultiheadAttention\) is in train mode during an interchange"):
        check_still(Functional(0.25).train())


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(6, track_running_stats=False)
        self.layers = nn.Sequential(nn.Linear(8, 6), norm, nn.ReLU(), nn.Linear(6, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.layers(inputs)
        return found


def test_a_batch_norm_that_mixes_rows_in_eval_mode_too(monkeypatch: pytest.MonkeyPatch) -> None:
    module = made({"left_equal": neurons(0, [0, 1])})
    object.__setattr__(module.base, "make", Mixing)
    sizes = {"architecture": "Mixing", "width": 6, "layers": 2}
    monkeypatch.setattr("iitkit.models.scratch.shape_of", lambda model: sizes)
    with pytest.raises(IITKitError, match=re.escape("layers.1 (BatchNorm1d) keeps no running statistics")):
        module.configure_model()


def test_no_warning_where_nothing_moves(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="iitkit"):
        made(PARTS, small_gpt2()).configure_model()
        made(base=MLP(MLP_SIZES)).configure_model()
    assert caplog.text == ""


class Flat(Patient):
    """Sees nothing better, ever; says in which epoch it began to look."""

    def __init__(self) -> None:
        super().__init__("val/worst", mode="max", patience=1, check_finite=False)
        self.looked: list[int] = []

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        self.looked.append(self.epoch)
        return super()._evaluate_stopping_criteria(torch.zeros(()))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.epoch = trainer.current_epoch
        super().on_validation_end(trainer, pl_module)


@pytest.mark.parametrize(
    ("weights", "looked"),
    [
        ({}, [0, 1]),
        ({"w_iit": Schedule(0.0, 1.0, until=0.5)}, [2, 3]),  # step 9 of 0…17 is the first behind the half
        ({"w_iit": Schedule(0.0, 1.0), "w_behaviour": Schedule(1.0, 0.5, until=0.2)}, [5]),
        ({"w_iit": Schedule(1.0, 1.0, until=1.0)}, [0, 1]),  # goes nowhere
    ],
)
def test_no_run_stops_before_its_weights_are_where_they_go(weights: dict[str, Any], looked: list[int]) -> None:
    watch = Flat()
    module: IIT = fitted(made(**weights), equality(), watch, epochs=6)
    assert watch.looked == looked
    assert module.settled  # what is measured is true at any weights: any checkpoint may be the best


def test_a_schedule_needs_an_end() -> None:
    with pytest.raises(IITKitError, match=re.escape("model.w_iit is a schedule, and the run has no end")):
        fitted(made(w_iit=Schedule(0.0, 1.0)), equality(), epochs=-1)


# --- two variables at one place ---


SHARED: dict[str, Any] = {
    "left_equal": {"layer": 1, "intervention": {"rank": 2}},
    "right_equal": {"layer": 1, "shared_with": "left_equal"},
}
HEADS: dict[str, Any] = {
    name: {
        "layer": 1,
        "component": "head_attention_value_output",
        "head": head,
        "intervention": {"name": "Vanilla"},
    }
    for name, head in (("ab", 0), ("cd", 1))
}


@pytest.mark.parametrize(
    ("alignment", "data", "apart"),
    [
        (SHARED, equality, False),  # one subspace for two variables
        (HEADS, booleans, True),
        ({**HEADS, "cd": {**HEADS["cd"], "head": [0, 1]}}, booleans, False),
        ({"ab": neurons(1, [0], position=[0, 1]), "cd": neurons(1, [0], position="last")}, booleans, True),
        ({"ab": neurons(1, [0], position=[0, 1]), "cd": neurons(1, [0], position=1)}, booleans, False),
        (  # two sites of one variable may be one place
            {"ab": neurons(1, [0, 1]), "again": neurons(1, [1, 2], variable="ab")},
            booleans,
            True,
        ),
    ],
)
def test_two_variables_at_one_place_need_parts_of_their_own(alignment: Any, data: Any, apart: bool) -> None:
    base = None if data is equality else small_gpt2()
    if apart:
        assert fitted(made(alignment, base), data()).trainer.global_step >= 3
        return
    with pytest.raises(IITKitError, match=r"it has the site of '(left_equal|ab)'.*the two have no parts of their own"):
        fitted(made(alignment, base), data())


def test_a_run_of_one_step_begins_its_schedules() -> None:
    watch = Gradients()
    weights = {"w_iit": Schedule(0.5, 0.0), "w_behaviour": 0.0}
    fitted(made(**weights), equality(), watch, limit_train_batches=1, limit_val_batches=0)
    assert watch.losses[0] == pytest.approx(0.5 * watch.logged[0]["train/iit"], rel=1e-6)


def test_training_pairs_are_counted_before_the_step_that_they_train() -> None:
    module, data = made(), equality()
    batch = first(module, data)
    said = swapped(module.base_model, batch).argmax(1)
    right = float((said == batch.label).float().mean())
    trainer = fitted(module, data, limit_train_batches=1, limit_val_batches=0).trainer
    assert float(trainer.callback_metrics["train/iia"]) == pytest.approx(right)


def test_data_without_pairs(tiny_gpt2: str, tmp_path: Path) -> None:
    lines = "".join(f'{{"prompt": "The {i} cats", "completion": " sat"}}\n' for i in range(40))
    (tmp_path / "said.jsonl").write_text(lines, encoding="utf-8")
    data = CompletionDataModule(Dataset(str(tmp_path / "said.jsonl")), batch_size=2)
    module = made({"x": {"layer": 1, "intervention": {"name": "Vanilla"}}}, tiny_gpt2)
    with pytest.raises(IITKitError, match="IIT trains on counterfactual pairs, and CompletionDataModule has none"):
        fitted(module, data)
