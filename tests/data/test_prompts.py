"""Ragged rows and columnar prompts, against lists and against positions resolved prompt by prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from iitkit.batch import Tokens, Values
from iitkit.data.prompts import Arrays, Prompts, symbols
from iitkit.data.ragged import Padding, Ragged, Strings
from iitkit.errors import IITKitError
from iitkit.positions import Position, resolve

ROWS = [[7, 8, 9], [], [5], [1, 2, 3, 4, 6]]


# --- ragged rows ---


def test_ragged_rows_read_like_lists() -> None:
    rows = Ragged.of(ROWS)
    assert len(rows) == 4
    assert list(rows) == ROWS
    assert [rows[i] for i in (-1, -4, 1)] == [ROWS[-1], ROWS[0], []]
    assert rows == ROWS
    assert rows == Ragged.of(ROWS)
    assert rows != Ragged.of([[7, 8], [9], [5], [1, 2, 3, 4, 6]])  # the same numbers, otherwise divided
    assert rows != ROWS[:-1]
    assert rows.lengths.tolist() == [3, 0, 1, 5]
    for row in (4, -5):
        with pytest.raises(IndexError, match=f"row {row} of 4"):
            rows[row]


def test_ragged_rows_taken() -> None:
    rows = Ragged.of(ROWS)
    assert rows.taken(np.array([3, 1, 0, 3])) == [ROWS[3], [], ROWS[0], ROWS[3]]
    assert rows.taken(np.zeros(0, np.int64)) == []


@pytest.mark.parametrize(
    ("side", "expected"),
    [("right", [[5, 0, 0], [7, 8, 9], [0, 0, 0]]), ("left", [[0, 0, 5], [7, 8, 9], [0, 0, 0]])],
)
def test_padded(side: Padding, expected: list[list[int]]) -> None:
    found, real = Ragged.of(ROWS).padded([2, 0, 1], 0, side)
    assert found.tolist() == expected
    assert real.tolist() == [[bool(number) for number in row] for row in expected]
    assert found.dtype == np.int64


def test_padded_nothing() -> None:
    assert Ragged.of(ROWS).padded([1, 1], 9)[0].shape == (2, 0)
    assert Ragged.of([[], []]).padded([0, 1], 9)[0].shape == (2, 0)
    assert Ragged.of(ROWS).padded([], 9)[0].shape == (0, 0)


def test_between() -> None:
    lo, hi = np.array([[0, 5], [3, 2]]), np.array([[2, 6], [3, 4]])
    assert Ragged.between(lo, hi) == [[0, 1, 5], [2, 3]]
    assert Ragged.between(lo[:, :1], hi[:, :1] - 1) == [[0], []]  # an end before its start is empty


def test_strings() -> None:
    texts = ["Mary", "", "é😀", "park"]
    found = Strings.of(texts)
    assert list(found) == texts
    assert found[-1] == "park"
    assert list(found.taken([2, 2, 1])) == ["é😀", "é😀", ""]
    with pytest.raises(IndexError, match="text 4 of 4"):
        found[4]


# --- positions ---

LENGTHS = [1, 2, 5, 9]
SPANS = [{"a": (0, 1)}, {"a": (0, 1), "b": (1, 2)}, {"a": (1, 4), "b": (4, 5)}, {"a": (2, 3), "b": (0, 9)}]


def prompts(of: slice = slice(None)) -> Prompts:
    lengths, spans = LENGTHS[of], SPANS[of]
    bounds = np.array([[row.get(slot, (-1, -1)) for slot in ("a", "b")] for row in spans])
    texts = Strings.of([f"text {n}" for n in lengths])
    return Prompts(Ragged.of([list(range(100, 100 + n)) for n in lengths]), ["a", "b"], bounds, texts)


POSITIONS: list[Position] = [
    "last", "all", 0, -1, 1, -2, 4, -5, "a", "a.first", "a.last", "a.all", "b", "b.all", "f1+l1", "f2+l3", "f7+l7",
    "f0+l2", "f3+l0", "f0+l0", ["a", "b"], ["b.first", "last"], [0, -1], ["a.all", "b.all"], ["f1+l1", 2], ["all", 0],
    ["last", "a.first", "f1+l0"], ["f1+l0", "b"], "c", "c.first", ["a", "c"], 9, -10,
]  # fmt: skip


@pytest.mark.parametrize("position", POSITIONS, ids=str)
@pytest.mark.parametrize("of", [slice(None), slice(1, None), slice(2, None), slice(3, None), slice(0, 1)], ids=str)
def test_positions_as_resolved_one_by_one(position: Position, of: slice) -> None:
    """``resolve`` has hand-worked tests of its own; what it refuses is refused with its message and the prompt."""
    expected: list[Any] = []
    refused = ""
    for length, spans in zip(LENGTHS[of], SPANS[of], strict=True):
        try:
            expected.append(resolve(position, length, spans))
        except IITKitError as error:
            refused = refused or f"alignment.x: {error}, in 'text {length}'"
    if refused:
        with pytest.raises(IITKitError) as caught:
            prompts(of).find(position, "alignment.x")
        assert str(caught.value) == refused
    else:
        assert prompts(of).find(position, "alignment.x") == expected


def test_a_prompt_is_made_when_it_is_asked_for() -> None:
    one = prompts()[0]
    assert (one.text, one.ids, one.spans) == ("text 1", [100], {"a": (0, 1)})  # it lacks the other span
    last = prompts()[-1]
    assert (last.text, last.ids, last.spans) == ("text 9", list(range(100, 109)), {"a": (2, 3), "b": (0, 9)})
    taken = prompts().taken(np.array([3, 1]))
    assert [taken[i] for i in range(2)] == [prompts()[3], prompts()[1]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches(side: Padding) -> None:
    found = prompts().batch([1, 2], 40, 7, side)
    assert isinstance(found, Tokens)
    gap = [7, 7, 7]
    assert found.ids.tolist() == [
        [*gap, 100, 101] if side == "left" else [100, 101, *gap],
        [100, 101, 102, 103, 104],
    ]
    assert found.mask.tolist() == [[0, 0, 0, 1, 1] if side == "left" else [1, 1, 0, 0, 0], [1] * 5]
    assert found.prompts is not None
    assert found.prompts.tolist() == [41, 42]
    assert {x.dtype for x in (found.ids, found.mask, found.prompts)} == {torch.int64}


# --- what is no text ---


def test_symbols() -> None:
    ids = np.array([[2, 0, 3, 1], [3, 0, 2, 1], [2, 0, 2, 1]])
    made = symbols(ids, {"x": (0, 1), "y": (2, 3)}, names=["+", "=", 0, 1])
    assert made[1].text == "1 + 0 ="
    assert made[1].ids == [3, 0, 2, 1]
    assert made[1].spans == {"x": (0, 1), "y": (2, 3)}
    assert made.taken(np.array([2, 0]))[1].text == "0 + 1 ="
    assert symbols(ids, {})[0].text == "2 0 3 1"
    assert made.find("y", "alignment.x") == [[2]] * 3
    assert made.find(["x", -1], "alignment.x") == [[0, 3]] * 3
    tokens = made.batch([2, 1], 10, 0, "right")
    assert tokens.ids.tolist() == [[2, 0, 2, 1], [3, 0, 2, 1]]
    assert tokens.mask.all()
    with pytest.raises(IITKitError, match="position 'z' is no span of the prompt"):
        made.find("z", "alignment.x")


def test_arrays() -> None:
    inputs = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    made = Arrays(inputs)
    assert len(made) == 4
    found = made.batch([3, 0], 10, 0, "left")
    assert isinstance(found, Values)
    assert torch.equal(found.inputs, torch.tensor([[[18.0, 19, 20], [21, 22, 23]], [[0.0, 1, 2], [3, 4, 5]]]))
    assert found.prompts is not None
    assert found.prompts.tolist() == [13, 10]
    assert made.taken(np.array([2])).inputs.tolist() == inputs[2:3].tolist()
    assert "18." in made[3].text
    for position in ("last", 0, -1, "all"):
        assert made.find(position, "alignment.x") == [[0]] * 4
    for position in ("w", 1, ["last", 0]):
        with pytest.raises(IITKitError, match=r"alignment.x: position .* an input of numbers has one place"):
            made.find(position, "alignment.x")
