"""Faults of the pairs that were found in review: shares, sources and reports that were not what they said."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer
from torch import Tensor

from iitkit.batch import Tokens
from iitkit.causal import CausalModel
from iitkit.data import CounterfactualDataModule, Dataset, Sizes
from iitkit.data.drawn import Drawing, TaskPairs
from iitkit.data.labelling import labels_for
from iitkit.data.pairs import Design
from iitkit.data.report import confounded
from iitkit.errors import IITKitError
from iitkit.tasks import Task

LETTERS = list("abcdefgh")


class Place:
    """A placement."""

    def __init__(self, position: Any = "last", variable: str | None = None) -> None:
        self.position, self.variable = position, variable


class Stub:
    """A module as the data see it; its base model answers with the first candidate."""

    def __init__(self, **places: Place) -> None:
        self.tokenizer: Any = tiny_tokenizer()
        self.alignment = places
        self.stages: list[list[str]] = []
        self.isolates = False

    def answer(self, tokens: Tokens, candidates: Tensor) -> Tensor:
        return torch.zeros(len(candidates), dtype=torch.long)


class Gate(Task):
    """Whether two letters are equal, or two others."""

    def causal_model(self) -> CausalModel:
        model = CausalModel(prompt="{w} {x} {y} {z} is", output="answer")
        model.variables(w=LETTERS, x=LETTERS, y=LETTERS, z=LETTERS)

        @model.mechanism
        def left(w: str, x: str) -> bool:
            return w == x

        @model.mechanism
        def right(y: str, z: str) -> bool:
            return y == z

        @model.mechanism
        def answer(left: bool, right: bool) -> str:
            return " true" if left or right else " false"

        return model


class Ten(Task):
    """Whether an odd number of ten letters is an a."""

    names = tuple(f"x{i}" for i in range(10))

    def causal_model(self) -> CausalModel:
        model = CausalModel(prompt=" ".join(f"{{{name}}}" for name in self.names) + " is", output="answer")
        model.variables(**{name: ["a", "b"] for name in self.names})
        function: Callable[..., str] = _odd
        model.mechanism(function)
        return model


def _odd(x0: str, x1: str, x2: str, x3: str, x4: str, x5: str, x6: str, x7: str, x8: str, x9: str) -> str:
    return " odd" if [x0, x1, x2, x3, x4, x5, x6, x7, x8, x9].count("a") % 2 else " even"


_odd.__name__ = "answer"


def bound(task: Task, stub: Stub, **options: Any) -> CounterfactualDataModule:
    data = CounterfactualDataModule(task, **{"sizes": Sizes(train=60, validation=20, test=20), "seed": 0, **options})
    data.bind(stub)
    return data


def test_the_flipped_share_of_many_combinations_of_variables_is_what_is_asked() -> None:
    stub = Stub(**{name: Place() for name in Ten.names})
    assert len(list(combinations(Ten.names, 3))) == 120  # as many as pairs: half a pair of each was rounded to none
    data = bound(Ten(), stub, together=3, sizes=Sizes(train=120, validation=60, test=60))
    assert data.pairs("train").flipped.sum() == 60
    assert data.pairs("test").flipped.sum() == 30


def test_answers_stay_balanced_where_others_stand_in_for_bases() -> None:
    design = Design([], 0.95, balance=("output",))
    source = TaskPairs(Gate(), Drawing({"train": 400, "validation": 20, "test": 20}), design)
    pairs = source.pairs("train", 0, ["left"], 400)
    assert pairs.flipped.sum() == 380
    answers = [pairs.candidates[i][label] for i, label in enumerate(pairs.base_label)]
    assert Counter(answers) == {" true": 200, " false": 200}  # 138 and 262 before


def test_who_stands_in_for_a_base_can_do_what_is_asked() -> None:
    # a base that could not flip was stood in for; then it was chosen to stand in for one that could not be kept
    design = Design([], 0.5, tell_apart=("output",))
    source = TaskPairs(Gate(), Drawing({"train": 4000, "validation": 500, "test": 500}), design)
    pairs, setting = source.pairs("train", 0, ["left"], 20_000), source.drawn("train").setting
    assert pairs.flipped.sum() == 10_000
    label = np.asarray([row[i] for row, i in zip(pairs.candidates, pairs.label, strict=True)])
    copied = np.asarray(source.model.values({"answer": setting["answer"][pairs.source]}, "answer"))
    assert (label != copied).all()


def test_what_the_model_answers_right_still_differs_in_only_some_variables() -> None:
    stub = Stub(left=Place())

    def answer(tokens: Tokens, candidates: Tensor) -> Tensor:
        return torch.tensor([int(row.sum()) % 2 for row in tokens.ids])  # right about half of the time

    stub.answer = answer  # type: ignore[method-assign]
    data = bound(Gate(), stub, only_correct=True, differ_in=["x"], flipped=None, sizes=Sizes(200, 40, 40))
    pairs, setting = data.pairs("train"), data.pools["train"].setting
    assert 2 < len(data.pools["train"]) < 200
    assert (setting["x"][pairs.base] != setting["x"][pairs.source]).all()  # a base alone in its group was its source
    for name in ("w", "y", "z"):
        assert (setting[name][pairs.base] == setting[name][pairs.source]).all()


class Lazy(Task):
    """A variable whose values come to light as they are met."""

    def causal_model(self) -> CausalModel:
        model = CausalModel(prompt="{a} {b} {c} is", output="answer")
        model.variables(a=list(range(400)), b=list(range(400)), c=list(range(400)))

        @model.mechanism
        def code(a: int, b: int) -> int:
            return a * b % 17

        @model.mechanism(domain=[" 0", " 1", " 2"])
        def answer(code: int, c: int) -> str:
            return f" {(code + c) % 3}"

        return model


def test_pairs_are_the_same_whatever_was_asked_first() -> None:
    found = []
    for order in (["train", "test"], ["test", "train"]):
        design = Design([], 0.5, balance=("output", "variable"))
        source = TaskPairs(Lazy(), Drawing({"train": 100, "validation": 50, "test": 50}), design)
        pairs = {split: source.pairs(split, 0, ["code"]) for split in order}
        found.append([(pairs[split].base.tolist(), pairs[split].sources.tolist()) for split in ("train", "test")])
    assert found[0] == found[1]


def test_the_report_compares_each_variable_with_its_own_source() -> None:
    class Two(Task):
        """The answer is the second letter; the first is of no account."""

        def causal_model(self) -> CausalModel:
            model = CausalModel(prompt="{a} {b} is", output="answer")
            model.variables(a=LETTERS, b=LETTERS)

            @model.mechanism
            def answer(b: str) -> str:
                return f" {b}"

            return model

    data = bound(Two(), Stub(a=Place("a"), b=Place("b")), together=2)
    # each pair's label is its second source's answer, which the first source was compared with
    assert [line.split(" predicts")[0] for line in confounded(data, data.pairs("train"))] == ["on all 60 pairs b"]


@pytest.mark.parametrize("option", [{"flipped": 0.9}, {"together": 2}, {"shares": (0.5, 0.25, 0.25)}])
def test_what_a_dataset_does_not_read_is_refused(option: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"base": f"a {i}", "source": f"b {i}", "label": "x", "candidates": ["x", "y"]} for i in range(30)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(IITKitError, match=f"data.{next(iter(option))} is of a task's pairs"):
        CounterfactualDataModule(dataset=Dataset(str(path)), **option)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(IITKitError, match="seed -1: expected 0 or more"):
        bound(Gate(), Stub(left=Place()), seed=-1)


def test_all_forms_count_of_an_answer_that_no_input_has_had_yet() -> None:
    class Late(Task):
        """Answers that come to light as they are met, with two forms each."""

        def causal_model(self) -> CausalModel:
            surface = {i: [f" {i}", f" {i}.0"] for i in range(3)}
            model = CausalModel(prompt="{a} {b} {c} is", output="answer", candidates=["other"], surface=surface)
            model.variables(a=list(range(400)), b=list(range(400)), c=list(range(400)))

            @model.mechanism
            def answer(a: int, b: int, c: int) -> int:
                return (a + b + c) % 3

            @model.mechanism
            def other(answer: int) -> int:
                return (answer + 1) % 3

            return model

    source = TaskPairs(Late(), Drawing({"train": 10, "validation": 10, "test": 10}), Design([], 0.5))
    labels: Any = labels_for(source, Stub().tokenizer, CounterfactualDataModule(Gate()).wording)
    assert labels.forms == {f" {i}": (f" {i}", f" {i}.0") for i in range(3)}
    assert np.asarray(source.model.domains["answer"].values).size == 0  # none was met before
