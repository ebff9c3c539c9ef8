"""What an intervention costs in a training step: forward and backward on one core, and no more than its mathematics.

Bounds are on the quickest of many rounds, or on ratios of such, measured in turns: they say what the code needs,
however busy the machine. Run with ``pytest tests/benchmarks``; RESULTS.md keeps the numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from iitkit.interventions import BoundlessSubspace, Intervention, LowRankSubspace, RotatedSubspace, SiteInfo

pytest.importorskip("pytest_benchmark")

WIDTH, BATCH = 768, 16


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def step(made: Intervention) -> Callable[[], None]:
    """A forward and a backward pass."""
    generator = torch.Generator().manual_seed(0)
    base, source, gradient = torch.randn(3, BATCH, WIDTH, generator=generator).unbind(0)

    def run() -> None:
        made.zero_grad()
        made(base, source).backward(gradient)

    return run


def quickest(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Least seconds of each, measured in turns so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn > 1:  # the first ones warm up
                times[name].append(time.perf_counter() - start)
    return {name: min(seconds) for name, seconds in times.items()}


def test_low_rank_subspace_takes_under_a_millisecond(benchmark: Any) -> None:
    run = step(LowRankSubspace(SiteInfo(WIDTH), rank=16))
    benchmark.pedantic(run, rounds=200, warmup_rounds=20)
    assert benchmark.stats.stats.min < 1e-3


def test_rotation_costs_its_qr_and_three_products(benchmark: Any) -> None:
    made = RotatedSubspace(SiteInfo(WIDTH), coordinates=64)
    generator = torch.Generator().manual_seed(1)
    free = torch.randn(WIDTH, WIDTH, generator=generator).requires_grad_()
    left, right, gradient = torch.randn(3, WIDTH, WIDTH, generator=generator).unbind(0)

    def products() -> None:
        for _ in range(3):
            left @ right

    def qr() -> None:
        free.grad = None
        q, _ = torch.linalg.qr(free)
        q.backward(gradient)

    run = step(made)
    seconds = quickest({"rotation": run, "products": products, "qr": qr}, rounds=15)
    benchmark.extra_info.update({name: round(1e3 * value, 2) for name, value in seconds.items()})
    benchmark.pedantic(run, rounds=3)
    assert seconds["rotation"] < 1.5 * (seconds["products"] + seconds["qr"])


@pytest.mark.parametrize("kind", ["BoundlessSubspace", "MaskedSubspace", "LoReFT", "MaskedNeurons"])
def test_other_steps(kind: str, benchmark: Any) -> None:
    made = Intervention.from_spec({"name": kind}, SiteInfo(WIDTH))
    generator = torch.Generator().manual_seed(0)
    base, source, gradient = torch.randn(3, BATCH, WIDTH, generator=generator).unbind(0)
    given: tuple[Tensor, ...] = (base, source) if made.needs_source else (base,)

    def run() -> None:
        made.zero_grad()
        made(*given).backward(gradient)

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_held_takes_one_qr_for_three_sites(benchmark: Any) -> None:
    made = BoundlessSubspace(SiteInfo(WIDTH))
    generator = torch.Generator().manual_seed(0)
    base, source = torch.randn(2, BATCH, WIDTH, generator=generator).unbind(0)

    def once() -> None:
        made.zero_grad()
        made(base, source).sum().backward()

    def three() -> None:
        made.zero_grad()
        with made.held():
            sum(made(base, source).sum() for _ in range(3)).backward()

    seconds = quickest({"once": once, "three": three}, rounds=25)
    benchmark.pedantic(three, rounds=3)
    benchmark.extra_info.update({name: round(1e3 * value, 2) for name, value in seconds.items()})
    assert seconds["three"] < 1.5 * seconds["once"]
