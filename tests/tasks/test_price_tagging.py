"""Price tagging: labels worked by hand, both templates, symbols, balance."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from asking import Row, after_each, bound, computed, drawn, label, prompt, row, said, share, split_sizes, symbols

from iitkit.errors import IITKitError
from iitkit.tasks import PriceTagging

BASE = row(lower="2.00", upper="5.00", price="3.50")
HIGH = row(lower="4.00", upper="8.00", price="9.00")
LOW = row(lower="3.00", upper="6.00", price="1.00")


@pytest.fixture(scope="module")
def text() -> PriceTagging:
    return PriceTagging()


def test_prompts(text: PriceTagging) -> None:
    assert prompt(text, BASE, 0) == (
        "Say yes only if the price is between 2.00 and 5.00 dollars, otherwise no. The price is 3.50 dollars. Answer:"
    )
    assert prompt(text, HIGH, 1) == "Question: Is 9.00 dollars a price between 4.00 and 8.00 dollars? Answer:"
    assert prompt(text, LOW, 2) == "A thing costs 1.00 dollars. Is that between 3.00 and 6.00 dollars? Answer:"
    assert (text.templates(held_out=False), text.templates(held_out=True)) == ([0, 1], [2])


def test_alpaca() -> None:
    task = PriceTagging(template="alpaca", step=10)
    assert prompt(task, BASE, 0) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nPlease say yes only if it costs "
        "between 2.00 and 5.00 dollars, otherwise no.\n\n### Input:\n3.50 dollars\n\n### Response:\n"
    )
    assert task.model.answers(task.model.run(BASE), "output") == ["Yes"]
    assert task.model.answers(task.model.run(HIGH), "output") == ["No"]
    assert task.held_out_templates == 0


def test_labels(text: PriceTagging) -> None:
    assert computed(text, BASE) == {"left_boundary": True, "right_boundary": True, "output": True}
    assert computed(text, HIGH) == {"left_boundary": True, "right_boundary": False, "output": False}
    assert computed(text, LOW) == {"left_boundary": False, "right_boundary": True, "output": False}
    for price, inside in {"1.99": False, "2.00": True, "5.00": True, "5.01": False, "0.00": False}.items():
        assert said(text, {**BASE, "price": [price]}) is inside, price
    assert text.model.answers(text.model.run(BASE), "output") == [" Yes"]
    assert text.model.answers(text.model.run(LOW), "output") == [" No"]
    assert text.model.forms(True) == (" Yes", " yes")


def test_interchanges(text: PriceTagging) -> None:
    assert after_each(text, BASE, HIGH) == {
        "lower": False,  # 3.50 is below 4.00
        "upper": True,
        "price": False,
        "left_boundary": True,
        "right_boundary": False,
        "output": False,
    }
    assert after_each(text, BASE, LOW) == {
        "lower": True,
        "upper": True,
        "price": False,
        "left_boundary": False,
        "right_boundary": True,
        "output": False,
    }
    assert said(text, LOW, {"left_boundary": BASE}) is True
    assert said(text, HIGH, {"left_boundary": LOW, "right_boundary": LOW}) is False
    assert said(text, HIGH, {"right_boundary": (LOW, "right_boundary")}) is True
    assert said(text, LOW, {"left_boundary": (LOW, "right_boundary")}) is True


def test_the_lower_bound_is_below_the_upper(text: PriceTagging) -> None:
    rows: list[Row] = [BASE, {**BASE, "upper": ["2.00"]}, {**BASE, "upper": ["1.00"]}]
    assert [text.model.allowed(text.model.run(inputs)).tolist() for inputs in rows] == [[True], [False], [False]]


def test_symbols() -> None:
    task = PriceTagging("symbols", step=10)
    assert symbols(task, BASE) == [21, 51, 36, 0]  # ? is 0, 0.00 is 1, each price ten cents on
    assert (label(task, False), label(task, True)) == (101, 102)
    assert after_each(task, BASE, HIGH)["right_boundary"] is False
    assert len(task.model.exogenous["price"]) == 100


@pytest.mark.parametrize("options", [{}, {"inputs": "symbols", "step": 10}])
def test_too_low_too_high_and_half_between(options: dict[str, Any]) -> None:
    values = drawn(PriceTagging(**options))
    sides = list(zip(values["left_boundary"], values["right_boundary"], strict=True))
    assert share(sides, (True, True)) == pytest.approx(0.5, abs=0.02)
    assert share(sides, (False, True)) == pytest.approx(0.25, abs=0.02)
    assert share(sides, (True, False)) == pytest.approx(0.25, abs=0.02)
    for lower, upper, price, yes in zip(*(values[n] for n in ("lower", "upper", "price", "output")), strict=True):
        assert float(lower) < float(upper)
        assert yes is (float(lower) <= float(price) <= float(upper))


def test_splits_share_no_price(text: PriceTagging) -> None:
    parts = text.split(np.random.default_rng(0))
    for one, other in combinations(parts, 2):
        assert not set(parts[one]["price"].tolist()) & set(parts[other]["upper"].tolist())
    assert parts["test"]["lower"].tolist() == parts["test"]["price"].tolist()
    assert PriceTagging("symbols", step=50).split_by == (("price", "lower", "upper"),)


@pytest.mark.parametrize("options", [{}, {"inputs": "symbols", "step": 10}, {"step": 50}])
@pytest.mark.parametrize("variable", ["left_boundary", "right_boundary", "price"])
def test_splits_of_the_default_sizes(options: dict[str, Any], variable: str) -> None:
    sizes = split_sizes(PriceTagging(**options), variable)
    if options != {"step": 50}:  # of 20 prices, 4 are left for a test
        assert sizes == {"train": 2000, "validation": 500, "test": 500}
    assert min(sizes.values()) >= 24


def test_data(text: PriceTagging) -> None:
    data = bound(text, "left_boundary", "right_boundary")
    for split, n in {"train": 2000, "validation": 500, "test": 500, "test_templates": 200}.items():
        pairs = data.pairs(split)
        assert len(pairs) == n
        assert pairs.flipped.sum() == n / 2  # though a price too high has no lower bound that changes the answer
        assert {tuple(sorted(row)) for row in pairs.candidates} == {(" No", " Yes")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": "vectors"}, "PriceTagging.inputs: 'vectors': expected text or symbols"),
        ({"template": "chat"}, "PriceTagging.template: 'chat': expected plain or alpaca"),
        ({"step": 0}, "PriceTagging.step: 0: expected 1 to 50 cents"),
        ({"step": 51}, "PriceTagging.step: 51: expected 1 to 50 cents"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError, match=message):
        PriceTagging(**options)
