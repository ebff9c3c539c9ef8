"""Hierarchical equality: labels worked by hand, balance, entities of text and vectors."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from asking import after_each, bound, computed, drawn, label, prompt, row, said, share, split_sizes, symbols

from iitkit.errors import IITKitError
from iitkit.tasks import HierarchicalEquality

BASE = row(w="dog", x="dog", y="cat", z="horse")  # equal, different
SOURCE = row(w="bird", x="dog", y="horse", z="horse")  # different, equal


@pytest.fixture(scope="module")
def text() -> HierarchicalEquality:
    return HierarchicalEquality()


def test_prompts(text: HierarchicalEquality) -> None:
    assert prompt(text, BASE, 0) == "( dog == dog ) == ( cat == horse ) is"
    assert prompt(text, SOURCE, 1) == "It is said that ( bird == dog ) == ( horse == horse ) is"
    assert prompt(text, BASE, 2) == "Python says that ( dog == dog ) == ( cat == horse ) is"
    assert (text.templates(held_out=False), text.templates(held_out=True)) == ([0, 1], [2])


def test_labels(text: HierarchicalEquality) -> None:
    assert computed(text, BASE) == {"left_equal": True, "right_equal": False, "output": False}
    assert computed(text, SOURCE) == {"left_equal": False, "right_equal": True, "output": False}
    assert said(text, row(w="dog", x="cat", y="dog", z="bird")) is True  # neither side is equal
    assert said(text, row(w="dog", x="dog", y="cat", z="cat")) is True
    model = text.model
    assert model.answers(model.run(BASE), "output") == [" False"]
    assert model.answers(model.interchange(BASE, {"left_equal": SOURCE}), "output") == [" True"]


def test_interchanges(text: HierarchicalEquality) -> None:
    assert after_each(text, BASE, SOURCE) == {
        "w": True,  # bird == dog, cat == horse: neither
        "x": False,
        "y": True,  # horse == horse
        "z": False,  # cat == horse, as before
        "left_equal": True,
        "right_equal": True,
        "output": False,
    }


def test_interchanges_of_several(text: HierarchicalEquality) -> None:
    assert said(text, BASE, {"left_equal": SOURCE, "right_equal": SOURCE}) is False
    assert said(text, BASE, {"w": SOURCE, "y": SOURCE}) is False  # bird == dog, horse == horse
    assert said(text, BASE, {"left_equal": (SOURCE, "right_equal")}) is False
    assert said(text, BASE, {"right_equal": (SOURCE, "left_equal")}) is False
    assert said(text, BASE, {"left_equal": SOURCE, "right_equal": BASE}) is True


VECTORS = ((0.5, -1.0), (0.25, 0.0), (1.0, 1.0))


def test_open_vectors() -> None:
    task = HierarchicalEquality("vectors", width=2)
    p, q, r = VECTORS
    base, source = row(w=p, x=p, y=q, z=r), row(w=p, x=q, y=r, z=r)
    assert symbols(task, base) == [0.5, -1.0, 0.5, -1.0, 0.25, 0.0, 1.0, 1.0]
    assert after_each(task, base, source) == {
        "w": False,
        "x": True,
        "y": True,
        "z": False,
        "left_equal": True,
        "right_equal": True,
        "output": False,
    }
    assert (label(task, False), label(task, True)) == (0, 1)
    assert task.split_by == ()
    assert task.held_out_templates == 0


def test_open_vectors_are_new_in_each_prompt() -> None:
    values = drawn(HierarchicalEquality("vectors"), 1000)
    seen = [v for name in "wxyz" for v in values[name]]
    assert len(set(seen)) == 3000  # a thousand of each side's first, and of its second where that differs
    assert all(len(v) == 4 and max(map(abs, v)) <= 1 for v in seen)
    assert np.std(np.asarray(seen)) == pytest.approx(3**-0.5, abs=0.02)  # uniform in [−1, 1]


@pytest.mark.parametrize("options", [{}, {"inputs": "vectors"}, {"inputs": "vectors", "entities": 60}])
def test_either_side_is_equal_in_half_of_the_prompts(options: dict[str, Any]) -> None:
    values = drawn(HierarchicalEquality(**options))
    pairs = list(zip(values["left_equal"], values["right_equal"], strict=True))
    for both in product([False, True], repeat=2):
        assert share(pairs, both) == pytest.approx(0.25, abs=0.03), both
    assert share(values["output"], True) == pytest.approx(0.5, abs=0.03)


def test_listed_vectors_come_from_the_seed() -> None:
    one, other = HierarchicalEquality("vectors", 20, width=3), HierarchicalEquality("vectors", 20, width=3)
    assert one.model.exogenous["w"].values == other.model.exogenous["z"].values
    assert one.model.exogenous["w"].values != HierarchicalEquality("vectors", 20, 3, 1).model.exogenous["w"].values
    assert [len(value) for value in one.model.exogenous["w"].values] == [3] * 20  # type: ignore[arg-type]


def test_splits_share_no_entities(text: HierarchicalEquality) -> None:
    for task in (text, HierarchicalEquality("vectors", 50)):
        parts = task.split(np.random.default_rng(0))
        for one, other in combinations(parts, 2):
            assert not set(parts[one]["w"].tolist()) & set(parts[other]["z"].tolist())


@pytest.mark.parametrize("variable", ["left_equal", "right_equal"])
@pytest.mark.parametrize("options", [{}, {"inputs": "vectors"}, {"inputs": "vectors", "entities": 60}])
def test_splits_of_the_default_sizes(options: dict[str, Any], variable: str) -> None:
    sizes = split_sizes(HierarchicalEquality(**options), variable)
    assert sizes == {"train": 2000, "validation": 500, "test": 500}


def test_data(text: HierarchicalEquality) -> None:
    data = bound(text, "left_equal", "right_equal")
    for split, n in {"train": 2000, "validation": 500, "test": 500, "test_templates": 200}.items():
        pairs = data.pairs(split)
        assert (len(pairs), pairs.flipped.sum()) == (n, n / 2)
        assert {tuple(sorted(row)) for row in pairs.candidates} == {(" False", " True")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": "txt"}, "HierarchicalEquality.inputs: 'txt': expected text or vectors"),
        ({"entities": 9}, "entities: 9: expected 10 or more, and at most the 155 nouns there are"),
        ({"entities": 156}, "entities: 156: expected 10 or more, and at most the 155 nouns there are"),
        ({"inputs": "vectors", "entities": 1}, "entities: 1: expected 10 or more, or null for vectors that are all"),
        ({"inputs": "vectors", "width": 0}, "width: 0: expected 1 or more"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError, match=message):
        HierarchicalEquality(**options)
