"""Metrics against numbers worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from iitkit.analysis.metrics import DIFFERENTIABLE, METRICS, Answers, Measure, usual
from iitkit.analysis.sequences import Sequences
from iitkit.batch import IGNORED, Tokens
from iitkit.errors import IITKitError

LOG2 = math.log(2.0)
# probabilities in eighths: their logarithms are the logits, plus a constant that must not matter
CLEAN = torch.tensor([[4.0, 2.0, 1.0, 1.0]]).log() + 3
CORRUPT = torch.tensor([[1.0, 4.0, 2.0, 1.0]]).log() - 1
PATCHED = torch.tensor([[[2.0, 2.0, 4.0, 8.0]], [[8.0, 2.0, 4.0, 2.0]]]).log() + 7  # in sixteenths, two cells


def measured(name: str, answers: Answers, logits: torch.Tensor = PATCHED) -> Any:
    return Measure([name], answers, CLEAN, CORRUPT)(logits)[:, 0, 0].tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # answer 0, wrong 1
        ("logit_difference", [0.0, 2 * LOG2]),
        # clean: log 4 − log 2 = log 2; corrupt: log 1 − log 4 = −2 log 2; so (x + 2 log 2) / (3 log 2)
        ("recovered_logit_difference", [2 / 3, 4 / 3]),
        ("probability", [2 / 16, 8 / 16]),
        ("log_probability", [-3 * LOG2, -LOG2]),
        ("rank", [3, 1]),  # 8 and 4 are larger than 2; the other 2 is not
        ("top1", [0, 1]),
        # Σ p log(p/q): ½ log(½ · 8) + ¼ log(¼ · 8) + ⅛ log(⅛ · 4) + ⅛ log(⅛ · 2)
        ("kl_from_clean", [(0.5 * 2 + 0.25 * 1 - 0.125 * 1 - 0.125 * 2) * LOG2, (0 + 0.25 - 0.125 + 0) * LOG2]),
        # Σ q log(q/p): ⅛ log ¼ + ⅛ log ½ + ¼ log 2 + ½ log 4
        ("kl_to_clean", [(-0.25 - 0.125 + 0.25 + 1) * LOG2, (0 - 0.125 + 0.25 + 0) * LOG2]),
    ],
)
def test_metric_by_hand(name: str, expected: list[float]) -> None:
    answers = Answers(torch.tensor([0]), torch.tensor([1]))
    assert measured(name, answers) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in METRICS if not name.startswith("iia")])
def test_clean_and_corrupt_have_their_own_values(name: str) -> None:
    answers = Answers(torch.tensor([0]), torch.tensor([1]))
    measure = Measure([name], answers, CLEAN, CORRUPT)
    clean, corrupt = (float(measure(x[None])[0, 0, 0]) for x in (CLEAN, CORRUPT))
    expected = {
        "logit_difference": (LOG2, -2 * LOG2),
        "recovered_logit_difference": (1, 0),
        "probability": (0.5, 0.125),
        "log_probability": (-LOG2, -3 * LOG2),
        "rank": (1, 3),
        "top1": (1, 0),
        "kl_from_clean": (0, (0.5 * 2 - 0.25 - 0.125) * LOG2),
        "kl_to_clean": (0, (-0.125 * 2 + 0.5 + 0.25) * LOG2),
    }[name]
    assert (clean, corrupt) == pytest.approx(expected, abs=1e-6)


def test_each_row_has_its_own_answer() -> None:
    rows = torch.cat([CLEAN, CORRUPT])
    answers = Answers(torch.tensor([0, 1]), torch.tensor([1, 2]))
    measure = Measure(["logit_difference", "probability"], answers, rows, rows)
    found = measure(torch.stack([rows, rows.flip(0)]))
    assert found.shape == (2, 2, 2)
    assert found[0].flatten().tolist() == pytest.approx([LOG2, 0.5, LOG2, 0.5], abs=1e-6)
    assert found[1].flatten().tolist() == pytest.approx([-2 * LOG2, 1 / 8, LOG2, 1 / 4], abs=1e-6)


def test_draws_are_averaged() -> None:
    answers = Answers(torch.tensor([0]), torch.tensor([1])).repeated(2)
    corrupt = torch.cat([CORRUPT, CLEAN])  # two draws: their differences are −2 log 2 and log 2
    measure = Measure(["probability", "recovered_logit_difference"], answers, CLEAN, corrupt, average=2)
    found = measure(torch.cat([CLEAN, CORRUPT])[None])
    assert found.shape == (1, 1, 2)
    assert found[0, 0].tolist() == pytest.approx([(0.5 + 0.125) / 2, 0.0], abs=1e-6)


def test_nothing_recovered_where_there_is_nothing_to_recover() -> None:
    answers = Answers(torch.tensor([0]), torch.tensor([1]))
    found = Measure(["recovered_logit_difference"], answers, CLEAN, CLEAN)(PATCHED)
    assert bool(found.isnan().all())


def test_iia_on_flipped_and_kept() -> None:
    # rows: label wins; label loses; label wins, of the forms of an answer
    logits = torch.tensor([[5.0, 1.0, 0.0, 9.0], [5.0, 1.0, 0.0, 9.0], [0.0, 3.0, 2.0, 9.0]])
    answers = Answers(
        candidates=torch.tensor([[0, 1, -1], [0, 1, -1], [0, 1, 2]]),
        answer_of=torch.tensor([[0, 1, -1], [0, 1, -1], [0, 1, 1]]),
        label=torch.tensor([0, 1, 1]),
        flipped=torch.tensor([True, True, False]),
    )
    found = Measure(["iia", "iia_flipped", "iia_kept"], answers, logits, logits)(logits[None])[0]
    assert found[:, 0].tolist() == [1, 0, 1]
    assert found[:2, 1].tolist() == [1, 0]
    assert math.isnan(found[2, 1])
    assert found[2, 2] == 1
    assert bool(found[:2, 2].isnan().all())


def test_answers_of_several_tokens() -> None:
    # prompt [7]; candidates "1 2" and "1 3" and "4": log-probabilities summed over their tokens
    candidates = torch.tensor([[[1, 2], [1, 3], [4, IGNORED]]])
    answers = Answers(label=torch.tensor([1]), flipped=torch.tensor([True]))
    sequences = Sequences(["iia", "iia_flipped", "iia_kept"], candidates, answers)
    rows = sequences.rows(Tokens(torch.tensor([[7]]), torch.tensor([[1]])))
    assert rows.tokens.ids.tolist() == [[7, 1], [7, 1], [7, 4]]
    assert rows.read is not None
    assert rows.read.tolist() == [[0, 1], [0, 1], [0, 1]]
    first = torch.tensor([0.1, 0.4, 0.1, 0.1, 0.3])  # 1: .4, 4: .3
    second = torch.tensor([0.1, 0.1, 0.1, 0.6, 0.1])  # after 1: 3 is likeliest, .4 · .6 < .3
    logits = torch.stack([first, second]).log().expand(1, 3, 2, 5)
    found = sequences(logits)[0, 0]
    assert found[:2].tolist() == [0, 0]  # "4" with .3 beats "1 3" with .24
    likelier = torch.stack([first, torch.tensor([0.02, 0.02, 0.02, 0.92, 0.02])]).log().expand(1, 3, 2, 5)
    assert sequences(likelier)[0, 0, :2].tolist() == [1, 1]  # .368
    assert math.isnan(found[2])


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_those_of_the_metric(name: str) -> None:
    answers = Answers(torch.tensor([0]), torch.tensor([1]))
    clean, corrupt = CLEAN.double(), CORRUPT.double()
    measure = Measure([name], answers, clean, corrupt)
    logits = PATCHED[0].double().requires_grad_()
    (found,) = torch.autograd.grad(measure.differentiable(name, logits).sum(), logits)
    step = 1e-6
    for i in range(4):
        moved = [PATCHED[0].double().clone() for _ in range(2)]
        moved[0][0, i] += step
        moved[1][0, i] -= step
        up, down = (float(measure(x[None])[0, 0, 0]) for x in moved)
        assert float(found[0, i]) == pytest.approx((up - down) / (2 * step), abs=1e-7)


@pytest.mark.parametrize(
    ("metrics", "answers", "says"),
    [
        (["logit_difference"], Answers(torch.tensor([0])), "metric 'logit_difference' needs the wrong answer"),
        (["probability"], Answers(), "metric 'probability' needs the right answer"),
        (["iia"], Answers(torch.tensor([0])), "metric 'iia' needs candidates and their counterfactual label"),
        (["probabilty"], Answers(torch.tensor([0])), "no metric 'probabilty'. Did you mean 'probability'?"),
        (["rank", "rank"], Answers(torch.tensor([0])), "metric 'rank' is named twice"),
        ([], Answers(), "no metric: expected one or several of"),
    ],
)
def test_a_metric_without_its_answers_is_one_line(metrics: list[str], answers: Answers, says: str) -> None:
    with pytest.raises(IITKitError) as raised:
        Measure(metrics, answers, CLEAN, CORRUPT)
    assert str(raised.value).startswith(says)
    assert "\n" not in str(raised.value)


def test_what_is_measured_unless_said() -> None:
    token = torch.tensor([0])
    assert usual(Answers(token, token)) == "recovered_logit_difference"
    assert usual(Answers(candidates=token, label=token)) == "iia"
    assert usual(Answers(token)) == "probability"
    assert usual(Answers()) == "kl_from_clean"
