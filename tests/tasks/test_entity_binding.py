"""Entity binding: labels worked by hand; a pointer, an entity and an object told apart; boxes and people."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pytest
from asking import after_each, bound, computed, drawn, prompt, said, split_sizes

from iitkit.errors import IITKitError
from iitkit.tasks import EntityBinding


def pairs(query: int, **objects: Hashable) -> dict[str, list[Hashable]]:
    """Entities and their objects in order."""
    numbered = enumerate(objects.items(), start=1)
    found = {name: [v] for k, (e, o) in numbered for name, v in ((f"entity_{k}", e), (f"object_{k}", o))}
    return {**found, "query": [query]}


BASE = pairs(2, Z="book", Q="ring", C="cake")
SOURCE = pairs(3, X="cup", Q="pen", Z="hat")


@pytest.fixture(scope="module")
def boxes() -> EntityBinding:
    return EntityBinding()


def test_prompts(boxes: EntityBinding) -> None:
    assert prompt(boxes, BASE, 0) == (
        "We know that the book is in box Z, the ring is in box Q, the cake is in box C. Box Q contains the"
    )
    assert prompt(boxes, SOURCE, 1) == (
        "We know that box X contains the cup, box Q contains the pen, box Z contains the hat. So box Z contains the"
    )
    assert prompt(boxes, BASE, 2) == (
        "Today, the book lies in box Z and the ring lies in box Q and the cake lies in box C. In box Q there is the"
    )
    assert (boxes.templates(held_out=False), boxes.templates(held_out=True)) == ([0, 1], [2])


def test_labels(boxes: EntityBinding) -> None:
    assert computed(boxes, BASE) == {
        "asked": "Q",
        "position": 2,
        "answer": "ring",
        "answer_1": "book",
        "answer_2": "ring",
        "answer_3": "cake",
    }
    assert said(boxes, SOURCE) == "hat"
    assert boxes.model.answers(boxes.model.run(BASE), "answer") == [" ring"]


def test_interchanges(boxes: EntityBinding) -> None:
    assert after_each(boxes, BASE, SOURCE) == {
        "entity_1": "ring",
        "entity_2": "ring",
        "entity_3": "ring",
        "object_1": "ring",
        "object_2": "pen",
        "object_3": "ring",
        "query": "cake",
        "asked": "book",  # box Z, the base's first
        "position": "cake",  # the third
        "answer": "hat",
        "answer_1": "ring",
        "answer_2": "ring",
        "answer_3": "ring",
    }
    assert said(boxes, BASE, {"asked": {**SOURCE, "query": [1]}}) == "ring"  # the base has no box X
    assert said(boxes, BASE, {"position": SOURCE, "object_3": SOURCE}) == "hat"
    assert said(boxes, SOURCE, {"position": BASE}) == "pen"


def test_not_allowed(boxes: EntityBinding) -> None:
    for wrong in ({"entity_2": ["Z"]}, {"object_3": ["book"]}):
        assert boxes.model.allowed(boxes.model.run({**BASE, **wrong})).tolist() == [False]
    assert boxes.model.allowed(boxes.model.run(BASE)).tolist() == [True]


def test_people() -> None:
    task = EntityBinding(pairs=2, entities="people")
    base, source = pairs(1, Mary="book", John="ring"), pairs(2, Tom="cup", Mary="pen")
    assert prompt(task, base, 0) == "Mary carries the book, John carries the ring. As I said, Mary carries the"
    assert prompt(task, source, 1) == "Tom has a cup, Mary has a pen. Remember that Mary has a"
    assert prompt(task, base, 2) == "Mary: book\nJohn: ring\nMary:"
    assert said(task, base) == "book"
    assert said(task, base, {"asked": source}) == "book"  # Mary again
    assert said(task, base, {"position": source}) == "ring"
    assert said(task, base, {"answer": source}) == "pen"
    assert task.split_by == ("object_1", "object_2", "entity_1", "entity_2")
    parts = task.split(np.random.default_rng(0))
    assert not set(parts["train"]["entity_1"].tolist()) & set(parts["test"]["entity_2"].tolist())


def test_eight_pairs() -> None:
    task = EntityBinding(pairs=8)
    values = drawn(task, 500)
    for name in ("entity", "object"):
        rows = zip(*(values[f"{name}_{k}"] for k in range(1, 9)), strict=True)
        assert all(len(set(row)) == 8 for row in rows)
    assert set(values["position"]) == set(range(1, 9))
    inputs = {name: [some[0]] for name, some in values.items() if name in task.model.exogenous}
    assert said(task, inputs) == inputs[f"object_{inputs['query'][0]}"][0]


@pytest.mark.parametrize("variable", ["position", "asked", "answer", "object_1"])
def test_splits_of_the_default_sizes(boxes: EntityBinding, variable: str) -> None:
    assert split_sizes(boxes, variable) == {"train": 2000, "validation": 500, "test": 500}


def test_data(boxes: EntityBinding) -> None:
    data = bound(boxes, "position")
    for split, n in {"train": 2000, "validation": 500, "test": 500, "test_templates": 200}.items():
        found = data.pairs(split)
        assert len(found) == n
        assert found.flipped.sum() == n / 2
        assert {len(candidates) for candidates in found.candidates} == {3}


def test_wrong_options() -> None:
    with pytest.raises(IITKitError, match=r"EntityBinding\.pairs: 1: expected 2 to 8"):
        EntityBinding(pairs=1)
    with pytest.raises(IITKitError, match=r"EntityBinding\.entities: 'cats': expected boxes or people"):
        EntityBinding(entities="cats")  # type: ignore[arg-type]
