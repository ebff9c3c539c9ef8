"""IIA by counting, Wilson's interval against published numbers, label chance by hand."""

from __future__ import annotations

import math
import random

import pytest
import torch

from iitkit.metrics import IIA, label_chance, wilson


def counted(*batches: tuple[list[int], list[int], list[int]], top1: list[list[int]] | None = None) -> dict[str, float]:
    metric = IIA()
    for i, (predicted, label, flipped) in enumerate(batches):
        top = None if top1 is None else torch.tensor(top1[i]).bool()
        metric.update(torch.tensor(predicted), torch.tensor(label), torch.tensor(flipped).bool(), top)
    return {key: float(value) for key, value in metric.compute().items()}


def test_counts_by_hand() -> None:
    # rows:      right  wrong  right  right | wrong  right
    found = counted(
        ([0, 1, 2, 0], [0, 0, 2, 0], [1, 1, 0, 0]),
        ([1, 1], [0, 1], [1, 0]),
        top1=[[1, 0, 1, 0], [0, 1]],
    )
    assert found == {
        "iia": 4 / 6,
        "iia_flipped": 1 / 3,
        "iia_kept": 3 / 3,
        "n": 6,
        "n_flipped": 3,
        "n_kept": 3,
        "top1": 3 / 6,
    }


@pytest.mark.parametrize("flipped", [0, 1])
def test_a_group_without_pairs_is_nan(flipped: int) -> None:
    found = counted(([0, 1], [0, 0], [flipped, flipped]))
    there, absent = ("iia_flipped", "iia_kept") if flipped else ("iia_kept", "iia_flipped")
    assert found[there] == found["iia"] == 0.5
    assert math.isnan(found[absent])
    assert found[absent.replace("iia", "n")] == 0


def test_many_small_batches_are_one_large_one() -> None:
    rng = random.Random(0)
    rows = [(rng.randrange(3), rng.randrange(3), rng.randrange(2)) for _ in range(200)]
    found = counted(*(([p], [y], [f]) for p, y, f in rows))
    groups = {
        "iia": [p == y for p, y, _ in rows],
        "iia_flipped": [p == y for p, y, f in rows if f],
        "iia_kept": [p == y for p, y, f in rows if not f],
    }
    for key, right in groups.items():
        assert found[key] == pytest.approx(sum(right) / len(right), abs=1e-12)
        assert found[key.replace("iia", "n")] == len(right)


def test_counts_beyond_what_fp32_can_count() -> None:
    metric = IIA()
    metric.update(torch.tensor([0]), torch.tensor([0]), torch.tensor([True]))
    metric.count += 2.0**25
    metric.update(torch.tensor([0]), torch.tensor([1]), torch.tensor([True]))
    assert float(metric.compute()["n_flipped"]) == 2**25 + 2


def test_reset() -> None:
    metric = IIA()
    metric.update(torch.tensor([0]), torch.tensor([1]), torch.tensor([True]))
    metric.reset()
    metric.update(torch.tensor([1]), torch.tensor([1]), torch.tensor([False]))
    found = metric.compute()
    assert (float(found["n"]), float(found["iia"])) == (1, 1)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        # Newcombe, 1998, Statistics in Medicine 17, table I, method 3 (Wilson's score, no continuity correction)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # by hand: z² / (n + z²) for none right, n / (n + z²) for all
        (0, 10, 0.0, 3.841459 / 13.841459),
        (10, 10, 10 / 13.841459, 1.0),
        # symmetric around one half
        (5, 10, 0.2366, 0.7634),
    ],
)
def test_wilson(right: float, n: float, low: float, high: float) -> None:
    assert wilson(right, n) == pytest.approx((low, high), abs=6e-5)


def test_wilson_solves_its_equation() -> None:
    """The bounds are the rates p with |p̂ − p| = z √(p (1 − p) / n)."""
    for right, n, z in ((3, 17, 1.959964), (40, 41, 1.644854), (250, 1000, 2.575829)):
        for bound in wilson(right, n, z):
            assert abs(right / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), rel=1e-9)


def test_wilson_of_nothing() -> None:
    assert all(math.isnan(bound) for bound in wilson(0, 0))


@pytest.mark.parametrize(
    ("candidates", "label", "expected"),
    [
        ([["he", "she"]] * 4, [0, 0, 1, 1], 0.5),
        ([["he", "she"]] * 4, [0, 0, 0, 0], 1.0),
        ([["he", "she"]] * 4, [0, 0, 0, 1], (3 * 3 / 4 + 1 / 4) / 4),
        # the same answers in another order: it is the answer that counts, not its place
        ([["he", "she"], ["she", "he"]], [0, 1], 1.0),
        # Mary is right twice, John and Tom once, Ann never
        (
            [["Mary", "John"], ["Mary", "Tom"], ["John", "Ann"], ["Tom", "Mary"]],
            [0, 0, 0, 0],
            (2 / 3 + 2 / 3 + 1 / 1 + 1 / 3) / 4,
        ),
        # names that each occur once: two answers compete, either might be right
        ([["a", "b"], ["b", "a"]], [0, 0], 0.5),
        ([["a", "b", "c"]] * 3, [0, 1, 2], 1 / 3),
    ],
)
def test_label_chance(candidates: list[list[str]], label: list[int], expected: float) -> None:
    assert label_chance(candidates, label) == pytest.approx(expected, abs=1e-12)
