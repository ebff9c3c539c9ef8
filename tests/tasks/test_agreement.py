"""Agreement across a relative clause: labels worked by hand; the prepositional form is tested with the splits."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from asking import after_each, bound, computed, drawn, prompt, row, split_sizes

from iitkit.errors import IITKitError
from iitkit.tasks import Agreement, words

ONE = row(noun="dog", plural=False, attractor_noun="actor", attractor_plural=True, embedded_verb="help")
MANY = row(noun="child", plural=True, attractor_noun="king", attractor_plural=False, embedded_verb="watch")


@pytest.fixture(scope="module")
def relative() -> Agreement:
    return Agreement(clause="relative")


def test_prompts(relative: Agreement) -> None:
    assert prompt(relative, ONE, 0) == "The dog that the actors help"
    assert prompt(relative, MANY, 1) == "Today, the children that the king watches"
    assert prompt(relative, MANY, 2) == "I think that the children that the king watches"
    assert (relative.templates(held_out=False), relative.templates(held_out=True)) == ([0, 1], [2])


def test_labels(relative: Agreement) -> None:
    assert computed(relative, ONE) == {
        "subject": "dog",
        "attractor": "actors",
        "number": "singular",
        "verb": " is",
        "embedded": "help",
    }
    assert computed(relative, MANY) == {
        "subject": "children",
        "attractor": "king",
        "number": "plural",
        "verb": " are",
        "embedded": "watches",
    }


def test_interchanges(relative: Agreement) -> None:
    assert after_each(relative, ONE, MANY) == {
        "noun": " is",
        "plural": " are",
        "attractor_noun": " is",
        "attractor_plural": " is",
        "embedded_verb": " is",
        "subject": " is",
        "attractor": " is",
        "number": " are",
        "verb": " are",
        "embedded": " is",
    }
    after = relative.model.interchange(ONE, {"attractor_plural": MANY})
    assert relative.model.values(after, "embedded") == ["helps"]  # the embedded verb agrees with the attractor


def test_the_embedded_verb_agrees_in_every_prompt(relative: Agreement) -> None:
    values = drawn(relative, 500)
    plural = {row["plural"]: row["singular"] for row in words("verbs")}
    for verb, form, many in zip(
        *(values[name] for name in ("embedded_verb", "embedded", "attractor_plural")), strict=True
    ):
        assert form == (verb if many else plural[verb])


def test_splits_share_no_verb(relative: Agreement) -> None:
    parts = relative.split(np.random.default_rng(0))
    assert {split: len(part["embedded_verb"]) for split, part in parts.items()} == {  # of 42
        "train": 25,
        "validation": 9,
        "test": 8,
    }
    for one, other in combinations(parts, 2):
        for name in relative.split_by:
            assert not set(parts[one][str(name)].tolist()) & set(parts[other][str(name)].tolist())
    assert Agreement().split_by == ("noun", "attractor_noun")
    assert "embedded" not in Agreement().model.domains


@pytest.mark.parametrize("variable", ["number", "plural"])
def test_splits_of_the_default_sizes(relative: Agreement, variable: str) -> None:
    assert split_sizes(relative, variable) == {"train": 2000, "validation": 500, "test": 500}


def test_data(relative: Agreement) -> None:
    data = bound(relative, "number")
    assert data.pairs("test").flipped.sum() == 250
    assert data.pairs("test_templates").flipped.sum() == 100


def test_wrong_options() -> None:
    with pytest.raises(IITKitError, match=r"Agreement\.clause: 'subject': expected prepositional or relative"):
        Agreement(clause="subject")  # type: ignore[arg-type]
