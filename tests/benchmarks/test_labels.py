"""How many counterfactual labels a second one core makes, beside an interpreter that runs functions row by row.

A label is the output on a base after one variable has got its value under a source: both inputs are given as integer
codes, a million pairs at once. Bounds are on the quickest of some rounds. Run with ``pytest tests/benchmarks``;
RESULTS.md keeps the numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from iitkit.causal import sample_inputs, sample_sources
from iitkit.causal.model import Setting
from iitkit.tasks import HierarchicalEquality, PriceTagging, Task

pytest.importorskip("pytest_benchmark")

PAIRS = 1_000_000
INTERPRETED = 20_000
SAMPLED = 100_000

Functions = dict[str, tuple[Callable[..., Any], list[str]]]
"""Variable → its function and its parents, parents first."""

EQUALITY: Functions = {
    "left_equal": (lambda w, x: w == x, ["w", "x"]),
    "right_equal": (lambda y, z: y == z, ["y", "z"]),
    "output": (lambda left, right: left == right, ["left_equal", "right_equal"]),
}
PRICES: Functions = {
    "left_boundary": (lambda price, lower: price >= lower, ["price", "lower"]),
    "right_boundary": (lambda price, upper: price <= upper, ["price", "upper"]),
    "output": (lambda left, right: left and right, ["left_boundary", "right_boundary"]),
}
CASES = {"equality": (HierarchicalEquality, EQUALITY, "left_equal"), "prices": (PriceTagging, PRICES, "left_boundary")}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=CASES)
def case(request: Any) -> tuple[Task, Functions, str]:
    kind, functions, variable = CASES[request.param]
    return kind(), functions, variable


def inputs(task: Task, n: int, seed: int) -> Setting:
    """Codes of inputs, evenly drawn."""
    generator = np.random.default_rng(seed)
    return {name: generator.integers(len(domain), size=n) for name, domain in task.model.exogenous.items()}


def interpreted(
    functions: Functions, variable: str, bases: list[dict[str, Any]], sources: list[dict[str, Any]]
) -> list[Any]:
    """The labels, each by running the functions on the source and then on the base."""
    labels = []
    for base, source in zip(bases, sources, strict=True):
        values = dict(source)
        for name, (function, parents) in functions.items():
            values[name] = function(*(values[parent] for parent in parents))
        held = values[variable]
        values = dict(base)
        for name, (function, parents) in functions.items():
            values[name] = held if name == variable else function(*(values[parent] for parent in parents))
        labels.append(values["output"])
    return labels


def quickest(run: Callable[[], Any], rounds: int) -> float:
    """Least seconds."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def test_a_million_labels_a_second(case: tuple[Task, Functions, str], benchmark: Any) -> None:
    task, functions, variable = case
    model = task.model
    base, source = inputs(task, PAIRS, 0), inputs(task, PAIRS, 1)
    benchmark.pedantic(lambda: model.interchange(base, {variable: source}), rounds=7, warmup_rounds=1)
    rate = PAIRS / benchmark.stats.stats.min

    few = [{name: codes[:INTERPRETED] for name, codes in codes_of.items()} for codes_of in (base, source)]
    rows = [
        [dict(zip(some, values, strict=True)) for values in zip(*(model.values(some, n) for n in some), strict=True)]
        for some in few
    ]
    labels = model.values(model.interchange(few[0], {variable: few[1]}), "output")
    assert labels == interpreted(functions, variable, *rows)  # what is compared says the same
    plain = INTERPRETED / quickest(lambda: interpreted(functions, variable, *rows), rounds=5)

    benchmark.extra_info.update(labels_a_second=round(rate), interpreted=round(plain), times=round(rate / plain, 1))
    print(
        f"\n{task.name}: {rate / 1e6:.1f} million labels a second, interpreted {plain / 1e6:.2f}: {rate / plain:.0f} ×"
    )
    assert rate >= 1e6
    assert rate >= 5 * plain


def test_prompts_and_pairs_from_nothing(case: tuple[Task, Functions, str], benchmark: Any) -> None:
    """Distinct prompts drawn, each paired with a source at random, and labelled: as a data module does it."""
    task, _, variable = case
    seconds: dict[str, float] = {}

    def run() -> None:
        generator = np.random.default_rng(0)
        start = time.perf_counter()
        pool, templates = sample_inputs(task.model, SAMPLED, generator, range(len(task.model.templates)))
        seconds["prompts"] = time.perf_counter() - start
        bases = np.arange(len(templates))
        sample_sources(task.model, pool, bases, [variable], 0 * bases, 0 * bases - 1, generator)
        assert len(templates) == SAMPLED

    benchmark.pedantic(run, rounds=3, warmup_rounds=1)
    whole = benchmark.stats.stats.min
    benchmark.extra_info.update(pairs_a_second=round(SAMPLED / whole), prompts_seconds=round(seconds["prompts"], 2))
    print(f"\n{task.name}: {SAMPLED / whole / 1e6:.2f} million pairs a second with their prompts, {seconds}")
