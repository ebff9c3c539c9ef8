"""Boolean trees: labels worked by hand, larger trees, text and symbols."""

from __future__ import annotations

from typing import Any

import pytest
from asking import after_each, bound, computed, label, prompt, row, said, split_sizes, symbols

from iitkit.errors import IITKitError
from iitkit.tasks import BooleanTree

BASE = row(a=True, b=True, c=False, d=True)
SOURCE = row(a=False, b=True, c=True, d=True)
AFTER = {
    "a": False,  # (F and T) or (F and T)
    "b": True,
    "c": True,
    "d": True,
    "ab": False,  # F or F
    "cd": True,
    "output": True,
}


def test_prompts() -> None:
    task = BooleanTree()
    assert prompt(task, BASE, 0) == "( True and True ) or ( False and True ) is"
    assert prompt(task, SOURCE, 1) == "It is said that ( False and True ) or ( True and True ) is"
    assert prompt(task, BASE, 2) == "Python says that ( True and True ) or ( False and True ) is"
    assert (task.templates(held_out=False), task.templates(held_out=True)) == ([0, 1], [2])


@pytest.mark.parametrize("inputs", ["text", "symbols"])
def test_labels(inputs: Any) -> None:
    task = BooleanTree(inputs=inputs)
    assert computed(task, BASE) == {"ab": True, "cd": False, "output": True}
    assert computed(task, SOURCE) == {"ab": False, "cd": True, "output": True}
    assert after_each(task, BASE, SOURCE) == AFTER
    neither = row(a=False, b=True, c=True, d=False)
    assert said(task, neither) is False
    assert said(task, neither, {"cd": SOURCE}) is True
    assert said(task, neither, {"cd": SOURCE, "ab": SOURCE}) is True
    assert said(task, BASE, {"ab": SOURCE, "cd": neither}) is False
    assert said(task, neither, {"ab": (SOURCE, "cd")}) is True


def test_answers() -> None:
    task = BooleanTree()
    assert task.model.answers(task.model.run(BASE), "output") == [" True"]
    assert task.model.answers(task.model.interchange(BASE, {"ab": SOURCE}), "output") == [" False"]


def test_symbols() -> None:
    task = BooleanTree(inputs="symbols")
    assert symbols(task, BASE) == [2, 2, 1, 2, 0]  # = is 0, False 1, True 2
    assert (label(task, False), label(task, True)) == (1, 2)


LARGE = dict(zip("abcdefgh", [True, False, False, True, True, True, False, True], strict=True))
OTHER = dict(zip("abcdefgh", [True, True, False, False, True, False, True, False], strict=True))


def test_a_larger_tree() -> None:
    task = BooleanTree(("xor", "and", "or"))
    base, source = row(**LARGE), row(**OTHER)
    assert prompt(task, base, 0) == (
        "( ( True xor False ) and ( False xor True ) ) or ( ( True xor True ) and ( False xor True ) ) is"
    )
    assert computed(task, base) == {
        "ab": True,
        "cd": True,
        "ef": False,
        "gh": True,
        "abcd": True,
        "efgh": False,
        "output": True,
    }
    assert computed(task, source) == {
        "ab": False,
        "cd": False,
        "ef": True,
        "gh": True,
        "abcd": False,
        "efgh": True,
        "output": True,
    }
    kept = dict.fromkeys(["a", "c", "e", "f", "g", "h", "ef", "gh", "efgh", "output"], True)
    changed = dict.fromkeys(["b", "d", "ab", "cd", "abcd"], False)  # each leaves the left half false
    assert after_each(task, base, source) == kept | changed
    assert said(task, base, {"ab": source, "ef": source}) is True  # the right half is true instead


def test_the_smallest_tree() -> None:
    task = BooleanTree(["xor"])
    base = row(a=True, b=True)
    assert prompt(task, base, 0) == "True xor True is"
    assert list(task.model.domains) == ["a", "b", "output"]
    assert said(task, base) is False
    assert said(task, base, {"b": row(a=True, b=False)}) is True


@pytest.mark.parametrize("variable", ["ab", "cd", "a"])
def test_splits(variable: str) -> None:
    assert split_sizes(BooleanTree(), variable) == {"train": 32, "validation": 32, "test": 32}  # in two templates
    symbols_only = split_sizes(BooleanTree(inputs="symbols"), variable)
    assert symbols_only == {"train": 16, "validation": 16, "test": 16}


def test_the_largest_tree() -> None:
    task = BooleanTree(["and", "or", "and", "or"], "symbols")
    assert split_sizes(task, "abcdefgh") == {"train": 2000, "validation": 500, "test": 500}


def test_data() -> None:
    data = bound(BooleanTree(), "ab", "cd")
    for split, n in {"train": 2000, "validation": 500, "test": 500, "test_templates": 200}.items():
        pairs = data.pairs(split)
        assert len(pairs) == n
        assert pairs.flipped.sum() == n / 2  # though where one half is true, the other changes nothing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operators": ["and", "nor"]}, "BooleanTree.operators: 'nor': expected and, or, or xor"),
        ({"operators": []}, r"operators: \[\]: expected one operator for each level, 1 to 4 of them"),
        ({"operators": ["and"] * 5}, "expected one operator for each level, 1 to 4 of them"),
        ({"operators": "and"}, "operators: 'and': expected one operator for each level"),
        ({"inputs": "vectors"}, "BooleanTree.inputs: 'vectors': expected text or symbols"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError, match=message):
        BooleanTree(**options)
