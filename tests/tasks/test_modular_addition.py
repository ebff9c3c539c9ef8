"""Modular addition: labels worked by hand, terms, moduli, text and symbols."""

from __future__ import annotations

from typing import Any

import pytest
from asking import after_each, bound, computed, label, prompt, row, said, split_sizes, symbols

from iitkit.errors import IITKitError
from iitkit.tasks import ModularAddition

BASE = row(a=3, b=5, c=6)  # 8 → 1, 7 → 0
SOURCE = row(a=2, b=2, c=4)  # 4, 8 → 1


@pytest.mark.parametrize("inputs", ["text", "symbols"])
def test_labels(inputs: Any) -> None:
    task = ModularAddition(inputs=inputs)
    assert computed(task, BASE) == {"ab": 1, "output": 0}
    assert computed(task, SOURCE) == {"ab": 4, "output": 1}
    assert after_each(task, BASE, SOURCE) == {
        "a": 6,  # 2 + 5 + 6 = 13
        "b": 4,  # 3 + 2 + 6 = 11
        "c": 5,  # 3 + 5 + 4 = 12
        "ab": 3,  # 4 + 6 = 10
        "output": 1,
    }
    assert said(task, BASE, {"ab": SOURCE, "c": SOURCE}) == 1
    assert said(task, BASE, {"ab": (SOURCE, "c"), "c": (SOURCE, "a")}) == 6  # 4 + 2


def test_symbols() -> None:
    task = ModularAddition()
    assert symbols(task, BASE) == [5, 0, 7, 0, 8, 1]  # + is 0, = is 1, the numbers follow
    assert [label(task, value) for value in range(7)] == [2, 3, 4, 5, 6, 7, 8]


def test_text() -> None:
    task = ModularAddition(inputs="text")
    assert prompt(task, BASE, 0) == "(3+5+6)%7="
    assert prompt(task, SOURCE, 1) == "(2+2+4) mod 7="
    assert prompt(task, BASE, 2) == "Modulo 7, 3+5+6="
    assert task.templates(held_out=True) == [2]
    assert task.model.answers(task.model.interchange(BASE, {"ab": SOURCE}), "output") == ["3"]


def test_four_terms() -> None:
    task = ModularAddition(10, terms=4)
    base, source = row(a=9, b=8, c=7, d=6), row(a=1, b=2, c=3, d=4)
    assert computed(task, base) == {"ab": 7, "abc": 4, "output": 0}
    assert computed(task, source) == {"ab": 3, "abc": 6, "output": 0}
    assert said(task, base, {"abc": source}) == 2  # 6 + 6
    assert said(task, base, {"ab": source}) == 6  # 3 + 7 + 6
    assert said(task, base, {"ab": source, "abc": source}) == 2  # ab is then read by nobody


def test_two_terms_of_a_large_modulus() -> None:
    task = ModularAddition(113, terms=2)
    assert list(task.model.domains) == ["a", "b", "output"]
    assert said(task, row(a=100, b=50)) == 37
    assert split_sizes(task, "a") == {"train": 2000, "validation": 500, "test": 500}


@pytest.mark.parametrize("variable", ["ab", "c"])
def test_splits_share_no_combination(variable: str) -> None:
    sizes = split_sizes(ModularAddition(), variable)
    assert sizes == {"train": 206, "validation": 68, "test": 69}  # of 343


def test_data() -> None:
    data = bound(ModularAddition(inputs="text"), "ab", "c")
    for split, n in {"train": 2000, "validation": 500, "test": 500, "test_templates": 200}.items():
        pairs = data.pairs(split)
        assert (len(pairs), pairs.flipped.sum()) == (n, n / 2)
        assert set(pairs.candidates[0]) == set("0123456")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modulus": 1}, "ModularAddition.modulus: 1: expected 2 to 1000"),
        ({"modulus": 11, "inputs": "text"}, "modulus: 11: expected 2 to 10 .in text an answer is a single digit"),
        ({"terms": 1}, "ModularAddition.terms: 1: expected 2 to 8"),
        ({"terms": 9}, "ModularAddition.terms: 9: expected 2 to 8"),
        ({"inputs": "words"}, "ModularAddition.inputs: 'words': expected symbols or text"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError, match=message):
        ModularAddition(**options)
