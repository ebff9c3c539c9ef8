"""City facts: labels worked by hand; an attribute changes the answer to its own question and to no other."""

from __future__ import annotations

from typing import Any

import pytest
from asking import after_each, bound, computed, prompt, row, said, split_sizes

from iitkit.errors import IITKitError
from iitkit.tasks import CityFacts

ATTRIBUTES = ("country", "continent", "language")


def of(city: str, attribute: str = "country") -> dict[str, list[Any]]:
    return row(city=city, attribute=attribute)


@pytest.fixture(scope="module")
def task() -> CityFacts:
    return CityFacts()


def test_prompts(task: CityFacts) -> None:
    assert prompt(task, of("Lyon"), 0) == "As we all know, the city of Lyon is located in the country of"
    assert prompt(task, of("Lima", "continent"), 1) == (
        "Geography lesson: the city of Lima is located on the continent of"
    )
    assert prompt(task, of("Geneva", "language"), 2) == (
        "Everyone knows that the city of Geneva has an official language, which is called"
    )
    assert prompt(task, of("Lyon"), 3) == "In the world's atlas, the city of Lyon is located in the country of"
    assert (task.templates(held_out=False), task.templates(held_out=True)) == ([0, 1, 2], [3])


def test_labels(task: CityFacts) -> None:
    found = computed(task, of("Geneva", "language"))
    assert [found[name] for name in (*ATTRIBUTES, "answer")] == ["Switzerland", "Europe", "French", "French"]
    assert said(task, of("Toronto", "continent")) == "North America"
    assert said(task, of("Lima", "continent")) == "South America"
    assert said(task, of("Chennai", "language")) == "Tamil"
    assert said(task, of("Luanda")) == "Angola"
    assert task.model.answers(task.model.run(of("Lima", "continent")), "answer") == [" South America"]


def test_rivals(task: CityFacts) -> None:
    found = computed(task, of("Lyon", "continent"))
    # Africa, Asia, Europe, North America, South America, and round
    assert [found[f"rival_{k}"] for k in range(1, 5)] == ["North America", "South America", "Africa", "Asia"]
    assert computed(task, of("Lyon", "country"))["rival_1"] == "Germany"
    assert computed(CityFacts(rivals=1), of("Lyon", "language"))["rival_1"] == "German"


@pytest.mark.parametrize("asked", ATTRIBUTES)
def test_an_attribute_is_caused_and_the_others_are_isolated(task: CityFacts, asked: str) -> None:
    lyon, lima = (
        {"country": "France", "continent": "Europe", "language": "French"},
        {
            "country": "Peru",
            "continent": "South America",
            "language": "Spanish",
        },
    )
    found = after_each(task, of("Lyon", asked), of("Lima", asked))
    assert {name: found[name] for name in ATTRIBUTES} == {
        name: lima[asked] if name == asked else lyon[asked] for name in ATTRIBUTES
    }
    assert found["city"] == lima[asked]
    assert found["relation"] == lyon[asked]  # only the words
    for attribute in ATTRIBUTES:
        assert said(task, of("Lyon", asked), {"attribute": of("Lima", attribute)}) == lyon[attribute]


def test_two_attributes_at_once(task: CityFacts) -> None:
    lima = of("Lima", "language")
    for asked, answer in {"country": "Peru", "continent": "Europe", "language": "Spanish"}.items():
        assert said(task, of("Lyon", asked), {"country": lima, "language": lima}) == answer


@pytest.mark.parametrize("variable", ATTRIBUTES)
def test_splits_of_the_default_sizes(task: CityFacts, variable: str) -> None:
    sizes = split_sizes(task, variable)
    assert min(sizes.values()) >= 400  # about 50 cities × 3 attributes × 3 templates


def test_data(task: CityFacts) -> None:
    data = bound(task, *ATTRIBUTES)
    model = task.model
    for split, n in {"train": 2000, "validation": 500, "test": 500, "test_templates": 200}.items():
        pairs = data.pairs(split)
        assert len(pairs) == n
        assert pairs.flipped.mean() == pytest.approx(0.5, abs=0.01)
        asked = model.values({"attribute": data.pools[split].setting["attribute"][pairs.base]}, "attribute")
        changed = [ATTRIBUTES[v] for v in pairs.variables[:, 0].tolist()]
        assert all(a == c for a, c, flipped in zip(asked, changed, pairs.flipped, strict=True) if flipped)
        kept = [(a, c) for a, c, flipped in zip(asked, changed, pairs.flipped, strict=True) if not flipped]
        assert sum(a != c for a, c in kept) > 0.6 * len(kept)
        assert max(len(candidates) for candidates in pairs.candidates) == 6


def test_one_attribute() -> None:
    data = bound(CityFacts(attributes=["continent"]), "continent")
    assert data.pairs("test").flipped.sum() == 250


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attributes": ["mayor"]}, r"CityFacts.attributes: \['mayor'\]: expected a list of one or more of country"),
        ({"attributes": "country"}, "CityFacts.attributes: 'country': expected a list"),
        ({"attributes": []}, r"CityFacts.attributes: \[\]: expected a list"),
        ({"rivals": 0}, "CityFacts.rivals: 0: expected 1 or more"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError, match=message):
        CityFacts(**options)
