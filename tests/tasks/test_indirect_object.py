"""Indirect object: the subject as a variable. What else there is to it is tested with the splits."""

from __future__ import annotations

import pytest
from asking import after_each, bound, row, said, split_sizes

from iitkit.tasks import IndirectObject

BASE = row(io_position="first", name_a="Mary", name_b="John", place="park", object="book")  # John gave it to Mary
SOURCE = row(io_position="second", name_a="Mary", name_b="Tom", place="school", object="ring")  # Mary gave it to Tom


@pytest.fixture(scope="module")
def task() -> IndirectObject:
    return IndirectObject()


def test_interchanges(task: IndirectObject) -> None:
    assert after_each(task, BASE, SOURCE) == {
        "io_position": " John",
        "name_a": " Mary",
        "name_b": " Mary",
        "place": " Mary",
        "object": " Mary",
        "subject": " John",  # if Mary gives, John is given
        "io_name": " Tom",
        "answer": " Tom",
        "answer_a": " Mary",
        "answer_b": " Mary",
    }


def test_a_foreign_subject_changes_nothing(task: IndirectObject) -> None:
    foreign = row(io_position="second", name_a="Sarah", name_b="Tom", place="school", object="ring")
    assert said(task, BASE, {"subject": foreign}) == " Mary"
    assert said(task, BASE, {"subject": foreign, "io_position": foreign}) == " John"
    assert said(task, BASE, {"subject": SOURCE, "io_position": SOURCE}) == " John"  # the base's, swapped once
    assert said(task, BASE, {"subject": SOURCE, "name_b": SOURCE}) == " Tom"
    assert said(task, BASE, {"subject": (SOURCE, "io_name")}) == " Mary"  # Tom is foreign, too


def test_the_name_after_other_names(task: IndirectObject) -> None:
    sarah = row(io_position="first", name_a="Sarah", name_b="Tom", place="school", object="ring")
    assert said(task, BASE, {"name_a": sarah}) == " Sarah"
    assert said(task, BASE, {"name_b": sarah}) == " Mary"  # the subject is Tom then


@pytest.mark.parametrize("variable", ["subject", "io_position", "io_name"])
def test_splits_of_the_default_sizes(task: IndirectObject, variable: str) -> None:
    if variable != "subject":  # few sources have the subject that a base needs
        assert split_sizes(task, variable) == {"train": 2000, "validation": 500, "test": 500}
    pairs = bound(task, variable).pairs("test")
    assert (len(pairs), pairs.flipped.sum()) == (500, 250)
