"""Capitals: labels worked by hand, rivals."""

from __future__ import annotations

import pytest
from asking import after_each, bound, computed, prompt, row, said

from iitkit.errors import IITKitError
from iitkit.tasks import Capitals

FRANCE, JAPAN = row(country="France"), row(country="Japan")


@pytest.fixture(scope="module")
def task() -> Capitals:
    return Capitals()


def test_prompts(task: Capitals) -> None:
    assert prompt(task, FRANCE, 0) == "The capital of France is the city of"
    assert prompt(task, JAPAN, 1) == "Geography lesson: the capital of Japan is the city of"
    assert prompt(task, JAPAN, 2) == "Everyone knows that the capital of Japan is the city of"
    assert prompt(task, FRANCE, 3) == "The capital city of France is called"
    assert (task.templates(held_out=False), task.templates(held_out=True)) == ([0, 1, 2], [3])


def test_labels(task: Capitals) -> None:
    # after France come Gabon, Germany, Ghana and Greece
    assert computed(task, FRANCE) == {
        "capital": "Paris",
        "rival_1": "Libreville",
        "rival_2": "Berlin",
        "rival_3": "Accra",
        "rival_4": "Athens",
    }
    # Zimbabwe is the last country; Afghanistan and Albania are the first
    assert list(computed(Capitals(rivals=2), row(country="Zimbabwe")).values()) == ["Harare", "Kabul", "Tirana"]
    assert said(task, row(country="Argentina")) == "Buenos Aires"
    assert task.model.answers(task.model.run(FRANCE), "capital") == [" Paris"]


def test_interchanges(task: Capitals) -> None:
    assert after_each(task, FRANCE, JAPAN) == {
        "country": "Tokyo",
        "capital": "Tokyo",
        "rival_1": "Paris",
        "rival_2": "Paris",
        "rival_3": "Paris",
        "rival_4": "Paris",
    }


def test_data(task: Capitals) -> None:
    data = bound(task, "country")
    for split, n in {"train": 2000, "validation": 500, "test": 500, "test_templates": 200}.items():
        pairs = data.pairs(split)
        assert len(pairs) == n
        assert pairs.flipped.sum() == n / 2
        assert {len(candidates) for candidates in pairs.candidates} == {5, 6}
    # 107 countries: 64, 22 and 21
    assert {split: len(pool) for split, pool in data.pools.items()} == {
        "train": 192,
        "validation": 66,
        "test": 63,
        "test_templates": 21,
    }


@pytest.mark.parametrize("rivals", [0, 107])
def test_wrong_options(rivals: int) -> None:
    with pytest.raises(IITKitError, match=f"Capitals.rivals: {rivals}: expected 1 to 106"):
        Capitals(rivals=rivals)
