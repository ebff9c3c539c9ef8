"""What every task keeps: a paper, documented options, disjoint splits of default sizes, labels by the causal model."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import warnings

import numpy as np
import pytest

import iitkit.tasks
from iitkit.causal import sample_inputs
from iitkit.data import Sizes
from iitkit.data.drawn import Drawing, TaskPairs
from iitkit.data.pairs import Design
from iitkit.tasks import Hypothesis, Task

TASKS: list[type[Task]] = [
    kind
    for name in iitkit.tasks.__all__
    if isinstance(kind := getattr(iitkit.tasks, name), type)
    and issubclass(kind, Task)
    and kind not in (Task, Hypothesis)
]


def made(kind: type[Task]) -> Task:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no two inputs with one prompt
        return kind()


def test_there_are_the_tasks_of_the_field() -> None:
    assert {kind.__name__ for kind in TASKS} >= {
        "Agreement",
        "BinaryAddition",
        "BooleanTree",
        "EntityBinding",
        "GreaterThan",
        "HierarchicalEquality",
        "IndirectObject",
        "ModularAddition",
        "MultipleChoice",
        "PriceTagging",
        "PronounGender",
        "Sentiment",
        "Successor",
        "TwoDigitAddition",
    }
    assert any("capital" in kind.__name__.lower() or "fact" in kind.__name__.lower() for kind in TASKS)


@pytest.mark.parametrize("kind", TASKS)
def test_it_says_what_it_is(kind: type[Task]) -> None:
    text = inspect.getdoc(kind) or ""
    assert re.search(r"https://\S+", text), "a reference"
    assert "ariables" in text
    for name in list(inspect.signature(kind).parameters):
        assert re.search(rf"^ *{name}: \S", text, re.MULTILINE), f"{name} is not documented"


@pytest.mark.parametrize("kind", TASKS)
def test_it_stands_in_a_file_of_its_own_with_a_test(kind: type[Task]) -> None:
    tree = ast.parse(inspect.getsource(inspect.getmodule(kind)))  # type: ignore[arg-type]
    public = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    assert kind.__name__ in public
    assert len(textwrap.dedent(inspect.getsource(kind)).splitlines()) < 250


@pytest.mark.parametrize("kind", TASKS)
def test_its_splits_are_apart(kind: type[Task]) -> None:
    task = made(kind)
    shares = task.divide(np.random.default_rng(0))
    pools = {}
    for split, share in shares.items():
        setting, templates = sample_inputs(
            task.model, 300, np.random.default_rng(1), share.templates, share.among, share.where
        )
        assert len(templates) >= 8, (split, len(templates))
        assert task.model.allowed(setting).all()
        pools[split] = (setting, templates)
    for item in task.split_by:
        if item == "template":
            continue
        names = [item] if isinstance(item, str) else list(item)
        values = {
            split: set(zip(*(task.model.values(setting, name) for name in names), strict=True))
            for split, (setting, _) in pools.items()
        }
        assert not values["train"] & values["test"], item
        assert not values["train"] & values["validation"], item
        assert not values["validation"] & values["test"], item


@pytest.mark.parametrize("kind", TASKS)
def test_some_interchange_changes_its_label_and_pairs_are_the_same_again(kind: type[Task]) -> None:
    task = made(kind)
    setting, _ = sample_inputs(task.model, 200, np.random.default_rng(0))
    inputs = {name: setting[name] for name in task.model.exogenous}
    turned = {name: codes[::-1].copy() for name, codes in inputs.items()}
    changing = [
        name
        for name in task.model.mechanisms
        if (task.model.interchange(inputs, {name: turned})[task.model.output] != setting[task.model.output]).mean()
        > 0.05
    ]
    assert changing, "no variable matters"
    one, other = (TaskPairs(made(kind), Drawing(Sizes().of_task()), Design([], flipped=0.5)) for _ in range(2))
    for split, n in Sizes().of_task().items():
        if split not in one.splits():
            continue
        a, b = (source.pairs(split, 0, changing[:1], n) for source in (one, other))
        assert len(a) == n
        assert a.flipped.sum() == n / 2
        assert a.base.tolist() == b.base.tolist()
        assert a.sources.tolist() == b.sources.tolist()
        assert one.prompts(split)[0] == other.prompts(split)[0]
        labels = [row[i] for row, i in zip(a.candidates, a.label, strict=True)]
        assert min(len(row) for row in a.candidates) >= 2
        if task.model.encoding is None:  # a word of its own, or more of a number
            assert all(label[0] == " " or label.isdigit() for label in labels)
