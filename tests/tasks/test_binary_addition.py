"""Binary addition: labels worked by hand, other widths and answers."""

from __future__ import annotations

from typing import Any

import pytest
from asking import after_each, computed, label, row, said, split_sizes, symbols

from iitkit.errors import IITKitError
from iitkit.tasks import BinaryAddition


def bits(a: int, b: int, n: int = 4) -> dict[str, list[Any]]:
    """The input of a sum."""
    written = {"a": f"{a:0{n}b}"[::-1], "b": f"{b:0{n}b}"[::-1]}
    return row(**{f"{side}{i}": int(written[side][i - 1]) for i in range(1, n + 1) for side in "ab"})


BASE = bits(6, 7)  # 0110 + 0111 = 01101
SOURCE = bits(9, 11)  # 1001 + 1011 = 10100


def test_labels() -> None:
    task = BinaryAddition()
    assert row(a1=0, b1=1, a2=1, b2=1, a3=1, b3=1, a4=0, b4=0) == BASE
    assert computed(task, BASE) == {
        "s1": 1,
        "c1": 0,
        "s2": 0,
        "c2": 1,
        "s3": 1,
        "c3": 1,
        "s4": 1,
        "c4": 0,
        "output": "01101",
    }
    assert computed(task, SOURCE) == {
        "s1": 0,
        "c1": 1,
        "s2": 0,
        "c2": 1,
        "s3": 1,
        "c3": 0,
        "s4": 0,
        "c4": 1,
        "output": "10100",
    }
    assert said(task, bits(15, 15)) == "11110"
    assert said(task, bits(0, 0)) == "00000"


def test_interchanges() -> None:
    assert after_each(BinaryAddition(), BASE, SOURCE) == {
        "a1": "01110",  # 7 + 7
        "a2": "01011",  # 4 + 7
        "a3": "01001",  # 2 + 7
        "a4": "10101",  # 14 + 7
        "b1": "01101",
        "b2": "01101",
        "b3": "01001",  # 6 + 3
        "b4": "10101",  # 6 + 15
        "s1": "01100",
        "c1": "01111",
        "s2": "01101",
        "c2": "01101",
        "s3": "01101",
        "c3": "00101",
        "s4": "00101",
        "c4": "11101",
        "output": "10100",
    }


def test_symbols() -> None:
    task = BinaryAddition()
    assert symbols(task, BASE) == [1, 2, 2, 2, 2, 2, 1, 1, 0]  # = is 0, the bits 1 and 2
    assert (label(task, "00000"), label(task, "01101")) == (3, 16)  # 13 behind the first


def test_one_bit_is_the_answer() -> None:
    carry, lowest = BinaryAddition(answer=5), BinaryAddition(answer=1)
    assert (said(carry, BASE), said(carry, SOURCE), said(lowest, BASE), said(lowest, SOURCE)) == (0, 1, 1, 0)
    assert said(carry, BASE, {"c3": SOURCE}) == 0
    assert said(carry, SOURCE, {"c3": BASE}) == 1
    assert said(carry, bits(8, 7), {"c1": SOURCE}) == 1  # 1000 + 0111, with a carry into the second column
    assert said(lowest, BASE, {"c1": SOURCE}) == 1
    assert label(carry, 1) == 2


def test_other_widths() -> None:
    assert said(BinaryAddition(2), bits(3, 2, 2)) == "101"
    assert said(BinaryAddition(8), bits(200, 100, 8)) == "100101100"
    assert split_sizes(BinaryAddition(8), "c7") == {"train": 2000, "validation": 500, "test": 500}


@pytest.mark.parametrize("variable", ["c1", "c2", "c3", "c4", "s2"])
def test_splits_share_no_combination(variable: str) -> None:
    assert split_sizes(BinaryAddition(), variable) == {"train": 154, "validation": 51, "test": 51}  # of 256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, "BinaryAddition.bits: 1: expected 2 to 8"),
        ({"bits": 9}, "BinaryAddition.bits: 9: expected 2 to 8"),
        ({"answer": 0}, r"BinaryAddition.answer: 0: expected 1 to 5 \(the last carry\), or null for the whole sum"),
        ({"bits": 2, "answer": 4}, "answer: 4: expected 1 to 3"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError, match=message):
        BinaryAddition(**options)
