"""DAS's options: schedules, penalties, mdas, stages, several sources, and what must see data first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from byhand import activation
from lightning.pytorch.callbacks import Callback
from tiny import save_tiny
from torch import Tensor
from training import Losses, adam, batch_of, bound, fitted, pairs

from iitkit.batch import Batch
from iitkit.causal import CausalModel
from iitkit.errors import IITKitError
from iitkit.interventions import BoundlessSubspace, MaskedNeurons, Mean, PCASubspace, RotatedSubspace
from iitkit.models.runs import label_logits
from iitkit.modules import DAS
from iitkit.modules.base import label_loss
from iitkit.modules.schedules import Schedule
from iitkit.tasks import Task

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("base") / "gpt2"))


class Two(Task):
    """Two words with a kind each; the answer is whether the kinds are the same."""

    def causal_model(self) -> CausalModel:
        model = CausalModel(prompt="The {thing} and the {other} are", output="answer")
        things = ["sun", "sea", "fire", "ice", "door", "wall", "dog", "park"]
        model.variables(thing=things, other=things)

        @model.mechanism
        def warm(thing: str) -> bool:
            return thing in ("sun", "fire", "dog", "door")

        @model.mechanism
        def warm_other(other: str) -> bool:
            return other in ("sun", "fire", "dog", "door")

        @model.mechanism
        def answer(warm: bool, warm_other: bool) -> str:
            return " he" if warm == warm_other else " she"

        return model


class Seen(Callback):
    """What the masks' temperature and the logged numbers are in every step."""

    def __init__(self) -> None:
        self.temperatures: list[float] = []
        self.sizes: dict[str, float] = {}
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.temperatures += [float(edit.temperature) for edit in pl_module.own_edits if edit.temperature is not None]
        self.logged.append({key: float(value) for key, value in trainer.callback_metrics.items()})

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self.sizes = {key: float(value) for key, value in trainer.callback_metrics.items() if "/size/" in key}


MASKED: dict[str, Any] = {"gender": {"layer": 3, "position": "last", "intervention": lambda s: BoundlessSubspace(s)}}


def test_temperature_follows_its_schedule_to_the_end(base: str) -> None:
    seen = Seen()
    module = DAS(base, MASKED, adam(), temperature=Schedule(50.0, 0.5), penalty=Schedule(0.0, 1.0))
    fitted(module, pairs(), seen, epochs=2)
    steps = 12
    expected = [50.0 + (0.5 - 50.0) * step / (steps - 1) for step in range(steps)]
    assert seen.temperatures == pytest.approx(expected, rel=1e-6)
    assert [logged["train/temperature"] for logged in seen.logged] == pytest.approx(expected, rel=1e-6)
    assert "train/penalty" not in seen.logged[0]  # its weight was 0
    beta = module.edits[0].penalty().item()
    assert 0.0 < beta < 0.5  # the penalty has made it smaller
    assert seen.logged[-1]["train/penalty"] == pytest.approx(beta, rel=0.2)
    assert seen.sizes == {"val/size/gender": module.edits[0].effective_size()}


def test_a_shared_mask_is_penalised_once(base: str) -> None:
    def made(**more: Any) -> tuple[DAS, float]:
        alignment = {
            "gender": {"layer": 2, "position": "last", "intervention": lambda s: MaskedNeurons(s)},
            **{name: {"layer": 3, "position": "last", "variable": "gender", "shared_with": "gender"} for name in more},
        }
        module = DAS(base, alignment, adam(), penalty=1.0)
        data = pairs()
        bound(module, data)
        batch = batch_of(data)
        prepared = module.runner.prepare(batch)
        plain = label_loss(label_logits(prepared, module.edits, batch.labels), batch.labels)
        module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
        with torch.no_grad():
            return module, float(module.loss(batch, prepared)[0] - plain)

    (one, alone), (two, shared) = made(), made(again=True)
    assert alone == pytest.approx(32 / 2, rel=1e-4)  # Σ σ(0 / T) over 32 neurons
    assert shared == pytest.approx(alone, rel=1e-4)
    assert two.edits[0] is two.edits[1]
    assert len(list(two.interventions.parameters())) == len(list(one.interventions.parameters()))
    assert sum(len(group["params"]) for group in two.configure_optimizers().param_groups) == 1


def test_masks_may_have_their_own_learning_rate(base: str) -> None:
    module = DAS(base, MASKED, adam(0.01), mask_lr=0.5)
    module.configure_model()
    rates = {
        name: group["lr"]
        for group in module.configure_optimizers().param_groups
        for name, parameter in module.interventions["gender"].named_parameters()
        if any(parameter is held for held in group["params"])
    }
    assert {name.split(".")[0]: rate for name, rate in rates.items()} == {"space": 0.01, "mask": 0.5}


def test_mdas_is_cause_plus_isolate(base: str) -> None:
    alignment = {
        "warm": {
            "layer": 2,
            "position": "last",
            "intervention": lambda s: RotatedSubspace(s, coordinates={"warm": 4, "warm_other": 4}),
        },
        "warm_other": {"layer": 2, "position": "last", "shared_with": "warm"},
    }
    data = pairs(Two(), shares=(0.5, 0.25, 0.25))
    module = DAS(base, alignment, adam(), objective="mdas", isolation=0.5)
    bound(module, data)
    batch = batch_of(data)
    assert batch.isolate_active is not None
    assert batch.isolate_labels is not None
    logged: dict[str, float] = {}
    module.log = lambda name, value, **kwargs: logged.update({name: value.item()})  # type: ignore[method-assign]
    total, _ = module.loss(batch, module.runner.prepare(batch))

    def alone(active: Tensor, labels: Tensor) -> float:
        logits = module.runner.prepare(replace(batch, active=active)).logits(module.edits, labels[:, :0])[:, 0]
        return torch.nn.functional.cross_entropy(logits, labels[:, 0]).item()

    cause, isolate = alone(batch.active, batch.labels), alone(batch.isolate_active, batch.isolate_labels)
    assert cause != pytest.approx(isolate, rel=1e-3)
    assert total.item() == pytest.approx(cause + 0.5 * isolate, rel=1e-5)
    assert logged == {"train/cause": pytest.approx(cause), "train/isolate": pytest.approx(isolate)}
    losses = Losses()
    fitted(module, data, losses, epochs=3)
    assert losses.values[-1] < losses.values[0]


@pytest.mark.parametrize("replay", ["auto", "off"])
def test_several_variables_at_once_train(base: str, replay: Any) -> None:
    alignment = {"warm": {"layer": 2, "position": "thing"}, "warm_other": {"layer": 2, "position": "other"}}
    data = pairs(Two(), shares=(0.5, 0.25, 0.25), together=2)
    module = DAS(base, alignment, adam(), replay=replay)
    losses = Losses()
    fitted(module, data, losses)
    batch = batch_of(data)
    assert len(batch.sources) == 2
    assert batch.active.all()
    assert len(losses.values) == 6


def test_stages_train_and_test(base: str) -> None:
    alignment = {"warm": {"layer": 1, "position": "thing"}, "answer": {"layer": 3, "position": "last"}}
    data = pairs(Two(), shares=(0.5, 0.25, 0.25))
    module = DAS(base, alignment, adam(), stages=[["warm"], ["answer"]])
    losses = Losses()
    fitted(module, data, losses, epochs=2)
    assert losses.values[-1] < losses.values[0]
    trainer = pl.Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
        enable_model_summary=False,
    )
    (found, *_) = trainer.test(module, datamodule=data, verbose=False)
    assert 0.0 <= found["test/iia/dataloader_idx_0" if "test/iia/dataloader_idx_0" in found else "test/iia"] <= 1.0


# --- what must see data first ---


@pytest.mark.parametrize("replay", ["auto", "off"])
def test_pca_is_fitted_to_each_training_prompt_once(base: str, replay: Any) -> None:
    alignment = {"gender": {"layer": 2, "position": "name", "intervention": lambda s: PCASubspace(s, rank=4)}}
    data = pairs()
    module = DAS(base, alignment, adam(), replay=replay)
    trainer = pl.Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
        enable_model_summary=False,
    )
    trainer.test(module, datamodule=data, verbose=False)
    pool, first = data.pools["train"], data.pairs("train")
    rows = sorted(set(first.source.tolist()))
    module_at = module.base_model.transformer.h[2]  # type: ignore[union-attr,index]
    seen = torch.stack(
        [activation(module.base_model, pool.prompts[i].ids, module_at)[pool.positions[0][i][0]] for i in rows]
    ).double()
    values, vectors = torch.linalg.eigh(torch.cov(seen.T))
    by_hand = vectors[:, -4:]
    ours = module.edits[0].space.chart().encode(torch.eye(32).double() + seen.mean(0)).detach()  # rows: R + constant
    ours = ours - module.edits[0].space.chart().encode(seen.mean(0)[None])
    assert torch.allclose(ours.double() @ ours.double().T, by_hand @ by_hand.T, atol=1e-4)
    assert values[-4] > 1e-3


def test_means_are_those_of_the_training_prompts_and_survive_a_checkpoint(base: str, tmp_path: Path) -> None:
    alignment = {
        "gender": {"layer": 2, "position": "last", "intervention": {"rank": 1}},
        "off": {"layer": 1, "position": "last", "variable": "gender", "intervention": lambda s: Mean(s)},
    }
    data = pairs()
    module = fitted(DAS(base, alignment, adam()), data)
    assert not module.edits[1].unfitted
    state = module.state_dict()
    again = DAS(base, alignment, adam())
    again.configure_model()
    assert again.edits[1].unfitted
    again.load_state_dict(state)
    assert not again.edits[1].unfitted
    given = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.edits[1](given), module.edits[1](given))
    rows = sorted(set(data.pairs("train").source.tolist()))
    pool, at = data.pools["train"], module.base_model.transformer.h[1]  # type: ignore[union-attr,index]
    seen = torch.stack([activation(module.base_model, pool.prompts[i].ids, at)[-1] for i in rows])
    assert torch.allclose(module.edits[1](given)[0], seen.double().mean(0).float(), atol=1e-5)


# --- errors ---


@pytest.mark.parametrize(
    ("alignment", "options", "message"),
    [
        (None, {"temperature": 2.0}, r"model\.temperature is of masks that are learned, and LowRankSubspace\(rank=2\)"),
        (None, {"penalty": 0.1}, r"model\.penalty is of masks that are learned"),
        (None, {"mask_lr": 0.1}, r"model\.mask_lr is of masks that are learned"),
        (MASKED, {"temperature": 0.0}, r"model\.temperature goes from 0\.0 to 0\.0: expected above 0"),
        (MASKED, {"temperature": Schedule(5.0, -1.0)}, r"model\.temperature goes from 5\.0 to -1\.0"),
        (MASKED, {"penalty": -1.0}, r"model\.penalty goes from -1\.0"),
        (None, {"objective": "ravel"}, r"model\.objective: 'ravel': expected 'interchange' or 'mdas'"),
        (None, {"objective": "mdas"}, r"model\.objective: mdas isolates variables .*: place two or more"),
        (None, {"isolation": 2.0}, r"model\.isolation: 2\.0: .* objective: mdas that reads it"),
        (
            None,
            {"stages": [["gender"], ["name"]]},
            r"model\.stages: .*: expected every placement \(gender\) in one stage",
        ),
        (None, {"stages": [["gender"], []]}, r"model\.stages: .*: expected every placement"),
    ],
)
def test_what_nothing_reads_is_an_error(base: str, alignment: Any, options: dict[str, Any], message: str) -> None:
    plain = {"gender": {"layer": 3, "position": "last", "intervention": {"rank": 2}}}
    with pytest.raises(IITKitError, match=message):
        DAS(base, alignment or plain, adam(), **options).configure_model()


def test_more_variables_at_once_than_there_are(base: str) -> None:
    with pytest.raises(IITKitError, match=r"data\.together: 2 variables at once: the alignment places 1"):
        bound(DAS(base, {"gender": {"layer": 3}}, adam()), pairs(together=2))
    batch: Batch = batch_of_one(base)
    assert len(batch.sources) == 1


def batch_of_one(base: str) -> Batch:
    data = pairs()
    bound(DAS(base, {"gender": {"layer": 3}}, adam()), data)
    return batch_of(data)
