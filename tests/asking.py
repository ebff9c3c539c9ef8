"""What tasks' tests ask: labels of one row, exact prompts, and whether each split can give its pairs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from tiny import tiny_tokenizer

from iitkit.causal import sample_inputs, sample_sources
from iitkit.data import CounterfactualDataModule, Sizes
from iitkit.tasks import Task

Row = dict[str, list[Hashable]]
SIZES = {"train": 2000, "validation": 500, "test": 500}


def row(**values: Hashable) -> Row:
    """One input."""
    return {name: [value] for name, value in values.items()}


def said(task: Task, base: Row, sources: Mapping[str, Any] | None = None) -> Any:
    """The output's value on one input, after an interchange where sources are given."""
    model = task.model
    setting = model.interchange(base, sources) if sources else model.run(base)
    (value,) = model.values(setting, model.output)
    return value


def computed(task: Task, base: Row) -> dict[str, Hashable]:
    """Every computed variable's value on one input."""
    setting = task.model.run(base)
    return {name: task.model.values(setting, name)[0] for name in task.model.mechanisms}


def after_each(task: Task, base: Row, source: Row) -> dict[str, Any]:
    """Every variable → the output's value on the base after the interchange of that variable alone."""
    return {name: said(task, base, {name: source}) for name in task.model.domains}


def prompt(task: Task, base: Row, template: int) -> str:
    """One input's prompt."""
    setting = task.model.run(base)
    (text,) = task.model.render(setting, np.asarray([template]))
    for slot, (start, stop) in text.spans.items():
        assert text.text[start:stop] == str(task.model.values(setting, slot)[0])
    return text.text


def symbols(task: Task, base: Row) -> list[Any]:
    """One input as an encoding gives it."""
    found: list[Any] = task.model.features(task.model.run(base))[0].tolist()
    return found


def label(task: Task, value: Hashable) -> int:
    """A value's class or symbol."""
    assert task.model.encoding is not None
    return task.model.encoding.label(value)


def drawn(task: Task, n: int = 4000, seed: int = 0) -> dict[str, list[Any]]:
    """Every variable's values on inputs that are drawn without a split."""
    setting, _ = sample_inputs(task.model, n, np.random.default_rng(seed))
    return {name: task.model.values(setting, name) for name in task.model.domains}


def share(values: list[Any], value: Hashable) -> float:
    """How frequent a value is."""
    return float(np.mean([v == value for v in values]))


def split_sizes(task: Task, variable: str) -> dict[str, int]:
    """Draw each split's inputs, and pairs of them; the numbers of inputs.

    The label is asked to change in half of the pairs, or in as many as have a base where the variable can change it.
    """
    generator = np.random.default_rng(0)
    found = {}
    for split, part in task.divide(generator).items():
        pool, templates = sample_inputs(task.model, SIZES[split], generator, part.templates, part.among, part.where)
        n = found[split] = len(templates)
        answers, bases = pool[task.model.output], np.arange(n)

        def inputs(rows: Any, pool: Any = pool) -> dict[str, Any]:
            return {name: pool[name][rows] for name in task.model.exogenous}

        tried = [task.model.interchange(inputs(bases), {variable: inputs(generator.permutation(n))}) for _ in range(64)]
        can = np.any([after[task.model.output] != answers for after in tried], axis=0)
        assert can.mean() > 0.2
        wanted = np.where(can, bases % 2, 0)
        _, after = sample_sources(task.model, pool, bases, [variable], 0 * bases, wanted, generator)
        assert (after[task.model.output] != answers).tolist() == (wanted == 1).tolist()
    return found


def bound(task: Task, *variables: str, flipped: float | None = 0.5) -> CounterfactualDataModule:
    """The task's data, of the default sizes, for an alignment of these variables at the last token."""
    place = SimpleNamespace(variable=None, position="last")
    subject: Any = SimpleNamespace(
        tokenizer=tiny_tokenizer(), alignment=dict.fromkeys(variables, place), stages=[], isolates=False
    )
    data = CounterfactualDataModule(task, sizes=Sizes(), flipped=flipped, seed=0)
    data.bind(subject)
    return data
