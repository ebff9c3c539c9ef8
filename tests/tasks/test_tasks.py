"""The tasks: labels worked by hand, and how their words are split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from itertools import combinations

import numpy as np
import pytest

from iitkit.causal import CausalModel
from iitkit.errors import IITKitError
from iitkit.tasks import Agreement, IndirectObject, PronounGender, Task, words
from iitkit.tasks.base import SPLITS

TASKS = [Agreement, IndirectObject, PronounGender]


@pytest.fixture(scope="module")
def indirect() -> IndirectObject:
    return IndirectObject()


def prompts(model: CausalModel, inputs: dict[str, list[Hashable]], template: int) -> list[str]:
    setting = model.run(inputs)
    n = len(setting[model.output])
    return [text.text for text in model.render(setting, np.full(n, template))]


# --- indirect object ---

MARY_FIRST: dict[str, list[Hashable]] = {
    "io_position": ["first"],
    "name_a": ["Mary"],
    "name_b": ["John"],
    "place": ["park"],
    "object": ["book"],
}
TOM_SECOND: dict[str, list[Hashable]] = {
    "io_position": ["second"],
    "name_a": ["Sarah"],
    "name_b": ["Tom"],
    "place": ["school"],
    "object": ["ring"],
}


def test_indirect_object_by_hand(indirect: IndirectObject) -> None:
    model = indirect.model
    first, second = model.run(MARY_FIRST), model.run(TOM_SECOND)
    assert prompts(model, MARY_FIRST, 0) == ["When Mary and John went to the park, John gave a book to"]
    assert prompts(model, TOM_SECOND, 2) == ["While Sarah and Tom were at the school, Sarah handed a ring to"]
    assert prompts(model, TOM_SECOND, 3) == ["Then, Sarah and Tom went to the school. Sarah gave a ring to"]
    assert model.values(first, "answer") == [" Mary"]
    assert model.values(second, "answer") == [" Tom"]
    assert model.values(first, "subject") == ["John"]
    assert model.values(second, "io_name") == ["Tom"]
    assert [model.values(second, name) for name in model.candidates] == [[" Sarah"], [" Tom"]]


@pytest.mark.parametrize(
    ("variable", "label"),
    [
        ("io_position", " John"),  # the second name, of the base
        ("io_name", " Tom"),  # the source's name itself
        ("subject", " Mary"),  # the subject has no part in the answer
        ("name_a", " Sarah"),  # the first name is the indirect object
        ("name_b", " Mary"),
        ("place", " Mary"),
    ],
)
def test_indirect_object_interchanges(indirect: IndirectObject, variable: str, label: str) -> None:
    model = indirect.model
    assert model.values(model.interchange(MARY_FIRST, {variable: TOM_SECOND}), "answer") == [label]


def test_indirect_object_of_two_sources(indirect: IndirectObject) -> None:
    model = indirect.model
    after = model.interchange(MARY_FIRST, {"io_position": TOM_SECOND, "name_b": TOM_SECOND})
    assert model.values(after, "answer") == [" Tom"]


def test_indirect_object_wants_two_names(indirect: IndirectObject) -> None:
    same = {**MARY_FIRST, "name_b": ["Mary"]}
    assert indirect.model.allowed(indirect.model.run(same)).tolist() == [False]
    assert indirect.model.allowed(indirect.model.run(MARY_FIRST)).tolist() == [True]


# --- agreement ---


def agreement(noun: str, plural: bool, attractor: str, attractor_plural: bool) -> dict[str, list[Hashable]]:
    return {
        "noun": [noun],
        "plural": [plural],
        "attractor_noun": [attractor],
        "attractor_plural": [attractor_plural],
    }


def test_agreement_by_hand() -> None:
    model = Agreement().model
    one, many = agreement("dog", False, "actor", True), agreement("child", True, "dog", False)
    assert prompts(model, one, 0) == ["The dog near the actors"]
    assert prompts(model, many, 2) == ["The children beside the dog"]
    assert model.values(model.run(one), "verb") == [" is"]
    assert model.values(model.run(many), "verb") == [" are"]
    assert model.values(model.run(many), "number") == ["plural"]
    for variable, label in {"number": " are", "plural": " are", "attractor_plural": " is", "noun": " is"}.items():
        assert model.values(model.interchange(one, {variable: many}), "verb") == [label], variable
    assert model.allowed(model.run(agreement("dog", True, "dog", False))).tolist() == [False]


# --- pronouns ---


def test_pronoun_gender_by_hand() -> None:
    model = PronounGender().model
    mary, john, anna = (dict[str, list[Hashable]](name=[name]) for name in ("Mary", "John", "Anna"))
    assert prompts(model, mary, 0) == ["Yesterday, Mary walked home because"]
    assert prompts(model, john, 5) == ["We heard that John is sick because"]
    assert model.values(model.run(mary), "pronoun") == [" she"]
    assert model.values(model.run(john), "pronoun") == [" he"]
    assert model.values(model.interchange(mary, {"gender": john}), "pronoun") == [" he"]
    assert model.values(model.interchange(john, {"gender": anna}), "pronoun") == [" she"]
    assert model.values(model.interchange(mary, {"gender": anna}), "pronoun") == [" she"]
    assert model.values(model.interchange(mary, {"name": john}), "name") == ["John"]


# --- splits ---


def split_words(task: Task, seed: int) -> dict[str, set[Hashable]]:
    """The words of each split, over all its variables."""
    found = task.split(np.random.default_rng(seed))
    assert set(found) == set(SPLITS)
    return {
        split: {task.model.exogenous[name].values[code] for name, codes in variables.items() for code in codes.tolist()}
        for split, variables in found.items()
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", TASKS)
def test_splits_share_no_words(kind: type[Task], seed: int) -> None:
    task = kind()
    found = split_words(task, seed)
    for one, other in combinations(SPLITS, 2):
        assert found[one] & found[other] == set()
    everything = {value for name in task.split_by for value in task.model.exogenous[name].values}
    assert set().union(*found.values()) == everything  # no word is lost
    for name, codes in task.split(np.random.default_rng(seed))["train"].items():
        assert len(codes) == pytest.approx(0.6 * len(task.model.exogenous[name]), abs=1)


def test_splits_are_drawn_by_the_seed() -> None:
    task = PronounGender()
    assert split_words(task, 0) == split_words(task, 0)
    assert split_words(task, 0)["test"] != split_words(task, 1)["test"]


@pytest.mark.parametrize("seed", range(5))
def test_splits_keep_the_share_of_each_gender(seed: int) -> None:
    genders = {row["name"]: row["gender"] for row in words("names")}
    found = split_words(PronounGender(), seed)
    counts = {split: Counter(genders[str(name)] for name in names) for split, names in found.items()}
    assert counts == {
        "train": {"female": 78, "male": 78},  # 60 % of 130
        "validation": {"female": 26, "male": 26},
        "test": {"female": 26, "male": 26},
    }


def test_a_name_is_in_one_split_for_both_places(indirect: IndirectObject) -> None:
    found = indirect.split(np.random.default_rng(0))
    for split in SPLITS:
        assert found[split]["name_a"].tolist() == found[split]["name_b"].tolist()


def test_other_shares() -> None:
    found = PronounGender().split(np.random.default_rng(0), (0.5, 0.1, 0.4))
    assert {split: len(codes["name"]) for split, codes in found.items()} == {
        "train": 130,
        "validation": 26,
        "test": 104,
    }


@pytest.mark.parametrize(
    ("kind", "seen", "held"),
    [(Agreement, [0, 1], [2]), (IndirectObject, [0, 1, 2], [3]), (PronounGender, [0, 1, 2, 3], [4, 5])],
)
def test_held_out_templates(kind: type[Task], seen: list[int], held: list[int]) -> None:
    task = kind()
    assert task.templates(held_out=False) == seen
    assert task.templates(held_out=True) == held
    assert task.name == kind.__name__


class Few(Task):
    """Two words: too few for three splits."""

    split_by = ("word",)

    def causal_model(self) -> CausalModel:
        model = CausalModel(prompt="{word}", output="answer")
        model.variables(word=["a", "b"])

        @model.mechanism
        def answer(word: str) -> str:
            return f" {word}"

        return model


class Misspelt(Few):
    """Splits by a variable that is not there."""

    split_by = ("wrod",)


class NoTemplate(Few):
    """Holds out its only template."""

    held_out_templates = 1


def test_too_few_words() -> None:
    with pytest.raises(IITKitError, match=r"Few: no word of 'word' \(2 words\) is left for the \w+ split: enlarge"):
        Few().split(np.random.default_rng(0))


def test_wrong_tasks() -> None:
    with pytest.raises(IITKitError, match=r"Misspelt\.split_by 'wrod' is no variable\. Did you mean 'word'\?"):
        Misspelt()
    with pytest.raises(IITKitError, match="NoTemplate: 1 held-out templates of 1: at least one must be left"):
        NoTemplate()
    with pytest.raises(IITKitError, match="word list 'nmaes' is not installed"):
        words("nmaes")
