"""Pools and pairs: labels recomputed by hand, exact shares, candidates."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from tiny import tiny_tokenizer

from iitkit.causal import CausalModel, sample_inputs
from iitkit.data.pairs import Design, Pairs, candidate_answers, make_pairs
from iitkit.data.pool import Pool, make_pool
from iitkit.errors import IITKitError
from iitkit.positions import Position
from iitkit.tasks import IndirectObject

SCENE = re.compile(r"(?:When|After|While|Then,) (\w+) and (\w+) w.* the \w+[,.] (\w+) (?:gave|handed) a \w+ to")


@pytest.fixture(scope="module")
def task() -> IndirectObject:
    return IndirectObject()


def pool_of(task: IndirectObject, n: int = 60, first: int = 0) -> Pool:
    model = task.model
    few = {"name_a": np.arange(8), "name_b": np.arange(8)}
    setting, templates = sample_inputs(model, n, np.random.default_rng(0), task.templates(False), few)
    positions: dict[str, Position] = {"io_position": "subject", "other": [0, "last"]}
    return make_pool(model, setting, templates, tiny_tokenizer(), positions, "", first)


@pytest.fixture(scope="module")
def pool(task: IndirectObject) -> Pool:
    return pool_of(task)


def scene(text: str) -> tuple[str, str, str]:
    """First name, second name, subject: read from the prompt."""
    found = SCENE.fullmatch(text)
    assert found is not None, text
    return found[1], found[2], found[3]


def label_by_hand(base: str, source: str, variable: str) -> str:
    """The answer on the base under the interchange, from the two prompts alone."""
    (a, b, subject), (source_a, source_b, source_subject) = scene(base), scene(source)
    if variable == "io_position":
        return f" {a}" if source_subject == source_b else f" {b}"
    if variable == "io_name":
        return f" {source_a}" if source_subject == source_b else f" {source_b}"
    if variable == "subject" and source_subject in (a, b):  # a foreign subject changes nothing
        subject = source_subject
    return f" {a}" if subject == b else f" {b}"


def check(pairs: Pairs, pool: Pool, variables: list[str]) -> None:
    for i in range(len(pairs)):
        base, source = pool.texts[pairs.base[i]].text, pool.texts[pairs.source[i]].text
        before, after = label_by_hand(base, source, "none"), label_by_hand(base, source, variables[pairs.variable[i]])
        assert pairs.candidates[i][pairs.label[i]] == after
        assert pairs.candidates[i][pairs.base_label[i]] == before
        assert bool(pairs.flipped[i]) == (before != after)


@pytest.mark.parametrize(
    "variables", [["io_position"], ["io_name"], ["io_position", "io_name"], ["place"], ["subject"]]
)
@pytest.mark.parametrize("share", [None, 0.5, 0.3])
def test_every_label_by_hand(task: IndirectObject, pool: Pool, variables: list[str], share: float | None) -> None:
    if variables == ["place"]:
        share = 0.0 if share is not None else None  # the place never changes the answer
    pairs = make_pairs(task.model, pool, Design(variables, share), 101, np.random.default_rng(1))
    check(pairs, pool, variables)
    assert sorted(Counter(pairs.variable.tolist()).values()) == ([101] if len(variables) == 1 else [50, 51])
    if share is not None:
        for v in range(len(variables)):
            rows = pairs.variable == v
            assert pairs.flipped[rows].sum() == round(share * rows.sum())


def test_rare_pairs_are_found_among_many_names(task: IndirectObject) -> None:
    """``io_name`` keeps the label only where both prompts have the same indirect object, one in 150 or so."""
    model = task.model
    words = task.split(np.random.default_rng(0))["train"]
    setting, templates = sample_inputs(model, 1000, np.random.default_rng(0), task.templates(False), words)
    pool = make_pool(model, setting, templates, tiny_tokenizer(), {"x": "last"}, "", 0)
    pairs = make_pairs(model, pool, Design(["io_name"], 0.5), 100, np.random.default_rng(1))
    check(pairs, pool, ["io_name"])
    assert pairs.flipped.sum() == 50


def test_every_prompt_is_a_base_equally_often(task: IndirectObject, pool: Pool) -> None:
    pairs = make_pairs(task.model, pool, Design(["io_position"], 0.5), 3 * len(pool), np.random.default_rng(1))
    assert Counter(pairs.base.tolist()) == dict.fromkeys(range(len(pool)), 3)
    assert len(set(pairs.source.tolist())) > len(pool) / 2


def test_candidates_are_the_two_names_of_the_base(task: IndirectObject, pool: Pool) -> None:
    pairs = make_pairs(task.model, pool, Design(["io_position"], 0.5), 40, np.random.default_rng(1))
    for base, candidates in zip(pairs.base.tolist(), pairs.candidates, strict=True):
        a, b, _ = scene(pool.texts[base].text)
        assert candidates == [f" {a}", f" {b}"]


def test_candidates_of_a_foreign_name(task: IndirectObject, pool: Pool) -> None:
    """Under an interchange of the name, the source's name competes too."""
    pairs = make_pairs(task.model, pool, Design(["io_name"], 1.0), 40, np.random.default_rng(1))
    for i, (base, source) in enumerate(zip(pairs.base.tolist(), pairs.source.tolist(), strict=True)):
        a, b, _ = scene(pool.texts[base].text)
        label = label_by_hand(pool.texts[base].text, pool.texts[source].text, "io_name")
        assert pairs.candidates[i] == list(dict.fromkeys([f" {a}", f" {b}", label]))


def test_same_generator_same_pairs(task: IndirectObject, pool: Pool) -> None:
    def drawn(seed: int) -> tuple[list[int], list[int]]:
        pairs = make_pairs(task.model, pool, Design(["io_position"], 0.5), 50, np.random.default_rng(seed))
        return pairs.base.tolist(), pairs.source.tolist()

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_impossible_share(task: IndirectObject, pool: Pool) -> None:
    with pytest.raises(IITKitError, match="no source changes the label under an interchange of 'place'"):
        make_pairs(task.model, pool, Design(["place"], 0.5), 10, np.random.default_rng(0))


def test_taken_keeps_rows_together(task: IndirectObject) -> None:
    pool = pool_of(task, 20, first=7)
    rows = np.array([3, 11, 19])
    kept = pool.taken(rows)
    assert len(kept) == 3
    assert [text.text for text in kept.texts] == [pool.texts[i].text for i in rows]
    assert [prompt.text for prompt in kept.prompts] == [pool.texts[i].text for i in rows]
    assert kept.positions == [[of_prompt[i] for i in rows] for of_prompt in pool.positions]
    assert kept.templates.tolist() == pool.templates[rows].tolist()
    assert task.model.values(kept.setting, "subject") == [scene(pool.texts[i].text)[2] for i in rows]
    assert kept.first == 7


# --- candidates ---


def colours(candidates: list[str], n: int = 3) -> CausalModel:
    model = CausalModel(prompt="{thing}", output="answer", candidates=candidates)
    model.variables(thing=["grass", "sky", "blood"][:n])

    @model.mechanism
    def answer(thing: str) -> str:
        return {"grass": " green", "sky": " blue", "blood": " red"}[thing]

    @model.mechanism
    def other(thing: str) -> str:
        return {"grass": " black", "sky": " blue", "blood": " black"}[thing]

    return model.compile()


def test_candidates_are_the_whole_domain_unless_declared() -> None:
    model = colours([])
    setting = model.run({"thing": ["sky", "blood"]})
    assert candidate_answers(model, setting, [[" blue", " red"]]) == [[" green", " blue", " red"]] * 2


def test_declared_candidates_and_the_label() -> None:
    model = colours(["other"])
    setting = model.run({"thing": ["grass", "blood"]})
    assert candidate_answers(model, setting, [[" green", " red"]]) == [[" black", " green"], [" black", " red"]]
    alone = model.run({"thing": ["sky"]})
    with pytest.raises(IITKitError, match="output 'answer' has one possible answer in some rows"):
        candidate_answers(model, alone, [[" blue"]])


def test_one_answer_is_no_test() -> None:
    model = colours([], n=1)
    with pytest.raises(IITKitError, match="a test needs at least two candidates"):
        candidate_answers(model, model.run({"thing": ["grass"]}), [[" green"]])


def test_an_open_domain_needs_declared_candidates() -> None:
    """What has come to light so far would depend on which pairs were drawn before."""
    model = CausalModel(prompt="{a} {b} {c}", output="answer")
    model.variables(a=list(range(50)), b=list(range(50)), c=list(range(50)))

    @model.mechanism
    def answer(a: int, b: int, c: int) -> str:
        return f" {(a + b + c) % 10}"

    setting = model.run({"a": [1, 2], "b": [3, 4], "c": [5, 6]})
    with pytest.raises(IITKitError, match=r"output 'answer' is computed from too many combinations .* candidates="):
        candidate_answers(model, setting, [[" 9", " 2"]])
