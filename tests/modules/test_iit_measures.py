"""What IIT measures, counted by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from planting import QUIET, equality, first, made, swapped
from torch import Tensor

from iitkit.metrics import IIA
from iitkit.modules.iit_measures import combinations_of, count_rows, results, taken, worst

pytestmark = QUIET


def test_rows_of_a_variable_are_counted_with_their_top_1() -> None:
    module = made()
    batch = first(module, equality(batch_size=48))
    logits = swapped(module.base_model, batch).detach()
    wide = torch.cat([logits, torch.full((len(batch), 1), -9.0)], 1)
    wide[::2, 2] = 9.0  # in every other row a third token is the vocabulary's best: top 1 is wrong, IIA is as it was
    names = combinations_of(module.alignment, ["left_equal", "right_equal"], 1)
    assert names == {"left_equal": [0], "right_equal": [1]}
    for p, placements in enumerate(names.values()):
        metric = IIA()
        count_rows(metric, batch, placements, wide[:, None], logits.log_softmax(-1))
        mine = [i for i in range(len(batch)) if bool(batch.active[i, p])]
        right = [int(logits[i].argmax()) == int(batch.label[i]) for i in mine]
        top = [right[n] and i % 2 == 1 for n, i in enumerate(mine)]
        flipped = [bool(batch.flipped[i]) for i in mine]
        found = {key: float(value) for key, value in metric.compute().items()}
        assert 0 < len(mine) < len(batch)
        assert found["n"] == len(mine)
        assert found["iia"] == sum(right) / len(mine)
        assert found["top1"] == sum(top) / len(mine)
        assert found["n_flipped"] == sum(flipped)
        assert found["iia_flipped"] == sum(r and f for r, f in zip(right, flipped, strict=True)) / sum(flipped)


def test_rows_of_two_variables_are_not_those_of_two_others() -> None:
    module = made()
    batch = taken(first(module, equality()), torch.arange(3))
    active = torch.tensor([[True, True, False], [True, False, True], [True, False, False]])
    batch = replace(batch, active=active, label=torch.tensor([0, 1, 1]))
    logits = torch.tensor([[[1.0, 0.0]]] * 3)
    for placements, n, right in (([0, 1], 1, 1.0), ([0, 2], 1, 0.0), ([0], 1, 0.0), ([1, 2], 0, None)):
        metric = IIA()
        count_rows(metric, batch, placements, logits, logits[:, 0])
        found = metric.compute()
        assert float(found["n"]) == n
        assert right is None or float(found["iia"]) == right


def test_some_rows_of_a_batch_are_those_rows_in_every_part() -> None:
    module = made()
    batch: Any = first(module, equality())
    some: Any = taken(batch, torch.tensor([3, 0]))
    assert len(some) == 2
    assert torch.equal(some.base.inputs, batch.base.inputs[[3, 0]])
    assert torch.equal(some.sources[0].inputs, batch.sources[0].inputs[[3, 0]])
    assert torch.equal(some.sources[0].prompts, batch.sources[0].prompts[[3, 0]])
    for name in ("active", "base_positions", "labels", "candidates", "base_label", "rows", "flipped"):
        assert torch.equal(getattr(some, name), getattr(batch, name)[[3, 0]]), name
    assert some.stage == batch.stage


def values(iia: float, flipped: float, kept: float, n: float) -> dict[str, Tensor]:
    return {
        "iia": torch.tensor(iia),
        "iia_flipped": torch.tensor(flipped),
        "iia_kept": torch.tensor(kept),
        "n": torch.tensor(n),
    }


def test_the_worst_is_the_least_of_what_was_measured() -> None:
    nan = float("nan")
    found = {
        "val/task": values(0.9, 0.1, 0.2, 8),  # of the task only the whole counts
        "val/a": values(0.8, nan, 0.75, 4),  # no pair was flipped
        "val/strict/one": values(0.7, 0.0, 0.0, 4),
        "val/strict/two": values(nan, nan, nan, 0),  # no row measured it
    }
    assert results(found, "val").keys() == {
        "val/task_accuracy",
        "val/a/iia",
        "val/a/iia_flipped",
        "val/a/iia_kept",
        "val/strict/one/accuracy",
    }
    assert worst(found, "val", ["iit", "strict"]) == torch.tensor(0.7).item()
    del found["val/strict/one"]
    assert worst(found, "val", ["iit"]) == 0.75
    assert worst(found, "val", ["behaviour"]) == torch.tensor(0.9).item()  # IIA is not trained for
    assert worst({}, "val", ["iit"]) == 0.0
