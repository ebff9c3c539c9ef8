"""Fits with replay: the losses of the plain run, whatever the precision or the accumulation, and less of the work."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny
from training import Losses, adam, fitted, pairs

from iitkit.errors import IITKitError
from iitkit.models.replay import Replay
from iitkit.modules import DAS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]

ALIGNMENT = {"gender": {"layer": 1, "position": "name", "intervention": {"rank": 2}}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("base") / "tiny", "llama"))


def losses_of(base: str, replay: Any, folder: Path, **trainer: Any) -> tuple[list[float], DAS]:
    losses = Losses()
    module = DAS(base, ALIGNMENT, adam(), replay=replay, replay_folder=str(folder))  # type: ignore[arg-type]
    fitted(module, pairs(), losses, epochs=2, **trainer)
    return losses.values, module


TRAINERS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "gradient accumulation": {"accumulate_grad_batches": 2},
    "clipped gradients": {"gradient_clip_val": 0.1},
    "bf16-mixed": {"precision": "bf16-mixed"},
}


@pytest.mark.parametrize("how", TRAINERS)
@pytest.mark.parametrize("replay", ["auto", "layers"])
def test_losses_are_those_of_the_plain_run(base: str, how: str, replay: str, tmp_path: Path) -> None:
    found, module = losses_of(base, replay, tmp_path, **TRAINERS[how])
    expected, plain = losses_of(base, "off", tmp_path, **TRAINERS[how])
    assert isinstance(module.runner, Replay)
    assert module.runner.mode == ("tokens" if replay == "auto" else "layers")
    assert not isinstance(plain.runner, Replay)
    tolerance = 5e-3 if how == "bf16-mixed" else 1e-5
    assert found == pytest.approx(expected, rel=tolerance)
    assert max(found) - min(found) > 10 * tolerance * max(found)  # they tell runs apart


def test_layers_below_the_site_run_once_a_prompt(base: str, tmp_path: Path) -> None:
    class Counting(Losses):
        """Counts the rows and tokens that each layer's attention computes in training steps."""

        def __init__(self) -> None:
            super().__init__()
            self.within, self.seen = False, {"below": [], "above": []}

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            layers = pl_module.base_model.model.layers
            for name, layer in (("below", layers[1]), ("above", layers[3])):
                layer.mlp.register_forward_hook(
                    lambda _, args, __, name=name: self.seen[name].append((self.within, *args[0].shape[:2]))
                )

        def on_train_batch_start(self, *args: Any) -> None:
            self.within = True

        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            self.within = False

    counting = Counting()
    module = DAS(base, ALIGNMENT, adam(), replay_folder=str(tmp_path))  # type: ignore[arg-type]
    data = pairs()
    fitted(module, data, counting, epochs=3)
    prompts = len(data.pools["train"]) + len(data.pools["validation"])
    filling = sum(rows for within, rows, _ in counting.seen["below"] if not within)
    in_steps = [rows for within, rows, _ in counting.seen["below"] if within]
    # before the first step each prompt once, and one token to see what is kept; then the one comparison with plain
    # runs (sources and bases, unedited and swapped), and one token to see what blocks return
    assert prompts <= filling <= prompts + 2 + 3 * 24  # the comparison may fall to a validation batch
    assert len(in_steps) <= 4
    steps = 3 * len(data.train_dataloader())
    assert len([1 for within, *_ in counting.seen["above"] if within]) <= steps + 6
    longest = max(len(prompt.ids) for prompt in data.pools["train"].prompts)
    widths = [width for within, _, width in counting.seen["above"] if within]
    assert widths.count(longest) <= 6  # a step runs the tokens from the site on
    assert max(sorted(widths)[:steps]) < longest


def test_a_second_fit_runs_no_prompt_again(base: str, tmp_path: Path) -> None:
    found, first = losses_of(base, "auto", tmp_path)
    again, second = losses_of(base, "auto", tmp_path)
    assert isinstance(first.runner, Replay)
    assert isinstance(second.runner, Replay)
    kept = first.runner.store.computed
    assert len(kept) >= 64
    assert second.runner.store.found == kept
    assert second.runner.store.computed == set()
    assert again == pytest.approx(found, rel=1e-6)


def test_no_memory_is_allowed(base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found, _ = losses_of(base, "auto", tmp_path / "a")
    losses = Losses()
    module = DAS(base, ALIGNMENT, adam(), replay_memory=0, replay_folder=str(tmp_path / "b"))  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, logger="iitkit"):
        fitted(module, pairs(), losses, epochs=2)
    assert losses.values == found
    assert isinstance(module.runner, Replay)
    assert module.runner.store.memory == 0
    assert "layers 2 to 3 are run, at the tokens from the sites on; " in caplog.text
    assert "0 KiB in memory and " in caplog.text


@pytest.mark.parametrize("memory", [-1.0, float("nan")])
def test_memory_is_a_number_of_gib(memory: float) -> None:
    with pytest.raises(IITKitError, match=r"model.replay_memory: .*: expected GiB, 0 or more"):
        DAS("nowhere", ALIGNMENT, replay_memory=memory)  # type: ignore[arg-type]


def test_stages_say_that_they_run_plainly(base: str, caplog: pytest.LogCaptureFixture) -> None:
    alignment = {
        "gender": {"layer": 0, "position": "name"},
        "again": {"layer": 2, "position": "name", "variable": "gender"},
    }
    module = DAS(base, alignment, adam(), stages=[["gender"], ["again"]])  # type: ignore[arg-type]
    module.configure_model()
    with caplog.at_level(logging.INFO, logger="iitkit"):
        assert not isinstance(module.runner, Replay)
    assert "replay is off: the sources of later stages are run with the edits of the earlier ones" in caplog.text


def test_a_run_of_a_few_batches_keeps_what_they_need(base: str, tmp_path: Path) -> None:
    module = DAS(base, ALIGNMENT, adam(), replay_folder=str(tmp_path))  # type: ignore[arg-type]
    fitted(module, pairs(), limit_train_batches=1, limit_val_batches=1)
    assert isinstance(module.runner, Replay)
    assert 0 < len(module.runner.store.texts) < 64  # of 72
    assert torch.isfinite(next(module.interventions.parameters())).all()
