"""Two-digit addition: labels worked by hand, candidates, combinations held out."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import pytest
from asking import after_each, bound, computed, drawn, prompt, row, said, share, split_sizes

from iitkit.tasks import TwoDigitAddition

BASE = row(a=27, b=15)
SOURCE = row(a=83, b=14)


@pytest.fixture(scope="module")
def task() -> TwoDigitAddition:
    return TwoDigitAddition()


def test_prompts(task: TwoDigitAddition) -> None:
    assert prompt(task, BASE, 0) == "27+15="
    assert prompt(task, SOURCE, 1) == "Sum: 83+14="
    assert prompt(task, BASE, 2) == "Here is a sum: 27+15="
    assert (task.templates(held_out=False), task.templates(held_out=True)) == ([0, 1], [2])


def test_labels(task: TwoDigitAddition) -> None:
    assert computed(task, BASE) == {
        "a_tens": 2,
        "a_ones": 7,
        "b_tens": 1,
        "b_ones": 5,
        "carry": 1,
        "ones": 2,
        "tens": 4,
        "output": "42",
        "without_carry": "32",
        "with_carry": "42",
    }
    assert said(task, SOURCE) == "97"
    assert said(task, row(a=99, b=99)) == "198"
    assert said(task, row(a=10, b=10)) == "20"


def test_interchanges(task: TwoDigitAddition) -> None:
    assert after_each(task, BASE, SOURCE) == {
        "a": "98",
        "b": "41",
        "a_tens": "102",  # 87 + 15
        "a_ones": "38",  # 23 + 15
        "b_tens": "42",
        "b_ones": "41",
        "carry": "32",
        "ones": "47",
        "tens": "92",
        "output": "97",
        "without_carry": "42",  # candidates have no part in the answer
        "with_carry": "42",
    }
    assert said(task, SOURCE, {"carry": BASE}) == "107"
    assert said(task, row(a=90, b=99), {"carry": BASE}) == "199"  # no sum, but what the model says
    assert said(task, BASE, {"carry": SOURCE, "ones": SOURCE}) == "37"


def test_about_half_of_the_sums_carry(task: TwoDigitAddition) -> None:
    assert share(drawn(task)["carry"], 1) == pytest.approx(0.45, abs=0.03)


@pytest.mark.parametrize("variable", ["carry", "ones", "tens"])
def test_splits_of_the_default_sizes(task: TwoDigitAddition, variable: str) -> None:
    assert split_sizes(task, variable) == {"train": 2000, "validation": 500, "test": 500}


def test_data(task: TwoDigitAddition) -> None:
    data = bound(task, "carry")
    prompts: dict[str, Any] = {split: data.pools[split].prompts for split in ("train", "validation", "test")}
    sums = {split: {tuple(re.findall(r"\d+", p.text)) for p in found} for split, found in prompts.items()}
    for one, other in combinations(sums, 2):
        assert not sums[one] & sums[other]
    pairs = data.pairs("test")
    for base, candidates, right, before in zip(
        pairs.base.tolist(), pairs.candidates, pairs.label, pairs.base_label, strict=True
    ):
        a, b = map(int, re.findall(r"\d+", prompts["test"][base].text))
        carries = a % 10 + b % 10 >= 10
        assert candidates[before] == str(a + b)
        assert sorted(map(int, candidates)) == sorted([a + b, a + b + (-10 if carries else 10)])
        assert candidates[right] in candidates
    assert pairs.flipped.sum() == 250
