"""Sentiment: labels worked by hand, with and without negation."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from asking import after_each, bound, computed, drawn, prompt, row, said, share, split_sizes

from iitkit.tasks import Sentiment, words

GOOD = row(thing="film", adjective="wonderful", negated=False)
BAD = row(thing="meal", adjective="awful", negated=False)
NOT_BAD = row(thing="meal", adjective="awful", negated=True)


@pytest.fixture(scope="module")
def negation() -> Sentiment:
    return Sentiment(negation=True)


def test_prompts(negation: Sentiment) -> None:
    assert prompt(Sentiment(), GOOD, 0) == "The film was wonderful. Overall, this review is"
    assert prompt(negation, BAD, 1) == "The meal was awful. The review was"
    assert prompt(negation, NOT_BAD, 2) == "I think the meal was not awful. The sentiment of this review is"
    assert prompt(negation, NOT_BAD, 3) == "The meal was not awful, so the review was"
    assert (negation.templates(held_out=False), negation.templates(held_out=True)) == ([0, 1, 2], [3])


def test_labels(negation: Sentiment) -> None:
    for task in (Sentiment(), negation):
        assert computed(task, GOOD) == {"was": "was", "polarity": "positive", "sentiment": "positive"}
        assert computed(task, BAD) == {"was": "was", "polarity": "negative", "sentiment": "negative"}
    assert computed(negation, NOT_BAD) == {"was": "was not", "polarity": "negative", "sentiment": "positive"}
    assert negation.model.answers(negation.model.run(GOOD), "sentiment") == [" positive"]


def test_interchanges(negation: Sentiment) -> None:
    assert after_each(Sentiment(), GOOD, BAD) == {
        "thing": "positive",
        "adjective": "negative",
        "negated": "positive",
        "was": "positive",
        "polarity": "negative",
        "sentiment": "negative",
    }
    assert after_each(negation, GOOD, NOT_BAD) == {
        "thing": "positive",
        "adjective": "negative",
        "negated": "negative",
        "was": "positive",  # only a word of the prompt
        "polarity": "negative",
        "sentiment": "positive",
    }
    assert said(negation, GOOD, {"polarity": NOT_BAD, "negated": NOT_BAD}) == "positive"
    assert said(negation, NOT_BAD, {"polarity": GOOD}) == "negative"


def test_what_is_drawn(negation: Sentiment) -> None:
    values = drawn(negation)
    assert share(values["negated"], True) == pytest.approx(0.5, abs=0.03)
    assert share(values["sentiment"], "positive") == pytest.approx(0.5, abs=0.03)
    assert share(drawn(Sentiment())["negated"], False) == 1


def test_splits_keep_both_sentiments() -> None:
    kinds = {row["adjective"]: row["sentiment"] for row in words("adjectives")}
    task = Sentiment()
    parts = task.split(np.random.default_rng(0))
    domain = task.model.exogenous["adjective"].values
    counts = {split: Counter(kinds[str(domain[c])] for c in part["adjective"]) for split, part in parts.items()}
    assert counts == {  # of 33 each
        "train": {"negative": 20, "positive": 20},
        "validation": {"negative": 6, "positive": 6},
        "test": {"negative": 7, "positive": 7},
    }


@pytest.mark.parametrize("variable", ["polarity", "negated", "adjective"])
def test_splits_of_the_default_sizes(negation: Sentiment, variable: str) -> None:
    # 12 adjectives × 8 things × 3 templates × negation in the smaller splits
    assert split_sizes(negation, variable) == {"train": 2000, "validation": 500, "test": 500}


def test_data() -> None:
    data = bound(Sentiment(), "polarity")
    for split, n in {"train": 2000, "validation": 500, "test": 500, "test_templates": 200}.items():
        pairs = data.pairs(split)
        assert len(pairs) == n
        assert pairs.flipped.sum() == n / 2
        assert {tuple(sorted(some)) for some in pairs.candidates} == {(" negative", " positive")}
