"""Multiple choice: labels worked by hand; foreign objects and colours; letters in order."""

from __future__ import annotations

from typing import Any

import pytest
from asking import after_each, bound, computed, drawn, prompt, row, said, split_sizes

from iitkit.errors import IITKitError
from iitkit.tasks import MultipleChoice

BASE = row(
    object_a="book",
    object_b="ring",
    asked="first",
    choice_1="blue",
    choice_2="red",
    choice_3="gray",
    choice_4="pink",
    symbol_1="K",
    symbol_2="D",
    symbol_3="X",
    symbol_4="B",
    place_a=2,  # the book is red
    place_b=1,  # the ring is blue
)
SOURCE = row(
    object_a="cake",
    object_b="book",
    asked="second",
    choice_1="white",
    choice_2="pink",
    choice_3="green",
    choice_4="blue",
    symbol_1="M",
    symbol_2="Q",
    symbol_3="D",
    symbol_4="W",
    place_a=2,  # the cake is pink
    place_b=4,  # the book is blue
)


@pytest.fixture(scope="module")
def four() -> MultipleChoice:
    return MultipleChoice()


def test_prompts(four: MultipleChoice) -> None:
    assert prompt(four, BASE, 0) == (
        "The book is red and the ring is blue. What color is the book?\nK. blue\nD. red\nX. gray\nB. pink\nAnswer:"
    )
    assert prompt(four, SOURCE, 1) == (
        "Question: The cake is pink, and the book is blue. Which color is the book?\n"
        "M. white\nQ. pink\nD. green\nW. blue\nAnswer:"
    )
    assert prompt(four, BASE, 2) == (
        "I see the book, which is red, and the ring, which is blue. What is the color of the book?\n"
        "K. blue\nD. red\nX. gray\nB. pink\nAnswer:"
    )
    assert (four.templates(held_out=False), four.templates(held_out=True)) == ([0, 1], [2])


def test_labels(four: MultipleChoice) -> None:
    shown = {"answer_1": "K", "answer_2": "D", "answer_3": "X", "answer_4": "B"}
    assert computed(four, BASE) == {
        "object": "book",
        "colour_a": "red",
        "colour_b": "blue",
        "colour": "red",
        "pointer": 2,
        "symbol": "D",
        **shown,
    }
    assert said(four, SOURCE) == "W"
    assert said(four, {**BASE, "asked": ["second"]}) == "K"
    assert four.model.answers(four.model.run(BASE), "symbol") == [" D"]


def test_interchanges(four: MultipleChoice) -> None:
    assert after_each(four, BASE, SOURCE) == {
        "object_a": "D",  # the cake is red then
        "object_b": "D",
        "asked": "K",  # the ring
        "choice_1": "D",
        "choice_2": "D",  # the book is pink then, but the colour stands there as well as at 4: the first counts
        "choice_3": "D",
        "choice_4": "D",
        "symbol_1": "D",
        "symbol_2": "Q",  # the letter of the right choice
        "symbol_3": "D",
        "symbol_4": "D",
        "place_a": "D",  # the second in both
        "place_b": "D",
        "object": "D",  # the source's is the book, too
        "colour_a": "B",  # pink
        "colour_b": "D",
        "colour": "K",  # the source's is blue, which the base lists first
        "pointer": "B",  # the source's is the fourth
        "symbol": "W",
        "answer_1": "D",
        "answer_2": "D",
        "answer_3": "D",
        "answer_4": "D",
    }
    other = {**SOURCE, "object_b": ["ring"]}
    assert said(four, BASE, {"object": other}) == "K"  # the ring is blue, K
    assert said(four, BASE, {"object": {**SOURCE, "asked": ["first"]}}) == "D"  # a cake is not in the base
    assert said(four, BASE, {"colour": {**SOURCE, "place_b": [1]}}) == "D"  # white is not among the base's choices
    assert said(four, BASE, {"place_a": {**SOURCE, "place_a": [3]}}) == "X"  # the book is gray then
    assert said(four, BASE, {"pointer": SOURCE, "symbol_4": SOURCE}) == "W"
    assert said(four, BASE, {"colour": (SOURCE, "colour_a")}) == "B"  # pink


def test_what_is_drawn() -> None:
    values = drawn(MultipleChoice(), 1000)
    for some in (["object_a", "object_b"], [f"choice_{k}" for k in range(1, 5)], [f"symbol_{k}" for k in range(1, 5)]):
        assert all(len(set(row)) == len(some) for row in zip(*(values[name] for name in some), strict=True))
    assert set(values["pointer"]) == {1, 2, 3, 4}
    assert len(set(values["symbol"])) == 26


def test_not_allowed(four: MultipleChoice) -> None:
    wrong: list[dict[str, Any]] = [
        {"object_b": ["book"]},
        {"choice_3": ["red"]},
        {"symbol_4": ["K"]},
        {"place_b": [2]},
    ]
    for change in wrong:
        assert four.model.allowed(four.model.run({**BASE, **change})).tolist() == [False], change
    assert four.model.allowed(four.model.run(BASE)).tolist() == [True]


def test_two_choices_with_letters_in_order() -> None:
    task = MultipleChoice(choices=2, random_letters=False)
    base = row(object_a="book", object_b="ring", asked="second", choice_1="blue", choice_2="red", place_a=2, place_b=1)
    base.update(symbol_1=["A"], symbol_2=["B"])
    assert prompt(task, base, 0) == (
        "The book is red and the ring is blue. What color is the ring?\nA. blue\nB. red\nAnswer:"
    )
    assert said(task, base) == "A"
    assert said(task, base, {"pointer": {**base, "asked": ["first"]}}) == "B"
    assert set(drawn(task, 100)["symbol"]) == {"A", "B"}


@pytest.mark.parametrize("variable", ["pointer", "symbol", "asked", "colour"])
def test_splits_of_the_default_sizes(four: MultipleChoice, variable: str) -> None:
    assert split_sizes(four, variable) == {"train": 2000, "validation": 500, "test": 500}


@pytest.mark.slow
def test_data(four: MultipleChoice) -> None:
    data = bound(four, "pointer", "symbol")
    for split, n in {"train": 2000, "validation": 500, "test": 500, "test_templates": 200}.items():
        pairs = data.pairs(split)
        assert len(pairs) == n
        assert pairs.flipped.sum() == n / 2
        assert {len(candidates) for candidates in pairs.candidates} == {4, 5}  # a symbol of the source is one more


@pytest.mark.parametrize("n", [1, 9])
def test_wrong_options(n: int) -> None:
    with pytest.raises(IITKitError, match=f"MultipleChoice.choices: {n}: expected 2 to 8"):
        MultipleChoice(choices=n)
