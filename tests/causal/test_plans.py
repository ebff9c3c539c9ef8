"""Several sources at once and one after the other: labels against sums done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from iitkit.causal import CausalModel, Chain, Together, draw_sources, sample_inputs
from iitkit.causal.sampling import Wishes
from iitkit.errors import IITKitError


def sums() -> CausalModel:
    """``left``, ``middle``, ``right``; the answer is their sum, and ``pair`` = left + middle lies between."""
    model = CausalModel(prompt="{left} {middle} {right}", output="answer")
    model.variables(left=list(range(4)), middle=list(range(4)), right=list(range(4)))

    @model.mechanism
    def pair(left: int, middle: int) -> int:
        return left + middle

    @model.mechanism
    def answer(pair: int, right: int) -> str:
        return f" {pair + right}"

    return model


def drawn(n: int = 50) -> tuple[CausalModel, dict[str, np.ndarray], list[tuple[int, int, int]]]:
    model = sums()
    pool, _ = sample_inputs(model, n, np.random.default_rng(0))
    inputs = list(zip(*(pool[name].tolist() for name in ("left", "middle", "right")), strict=True))  # codes = values
    return model, pool, inputs


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_two_variables_each_from_its_own_source(share: float) -> None:
    model, pool, inputs = drawn()
    n = len(inputs)
    bases = np.arange(n)
    chosen = np.array([[0, 1], [1, 2]])[bases % 2]  # pair and right, or right and left
    variables = ["pair", "right", "left"]
    wanted = (np.arange(n) < share * n).astype(np.int64)
    plan = Together(variables, chosen)
    sources, after = draw_sources(model, pool, bases, plan, Wishes(wanted), np.random.default_rng(1))
    assert sources.shape == (n, 2)
    labels = model.values(after, "answer")
    for i in range(n):
        left, middle, right = inputs[i]
        first, second = (inputs[s] for s in sources[i])
        expected = first[0] + first[1] + second[2] if i % 2 == 0 else second[0] + middle + first[2]
        assert labels[i] == f" {expected}"
        assert (expected != left + middle + right) == bool(wanted[i])
    assert (sources[:, 0] != sources[:, 1]).mean() > 0.8  # the two are drawn apart from each other


def test_a_chain_passes_on_what_the_run_before_was_set_to() -> None:
    model, pool, inputs = drawn()
    n = len(inputs)
    bases = np.arange(n)
    plan = Chain([["left"], ["pair"]])  # source 0 → left of source 1 → pair of source 1 → base
    wanted = np.arange(n) % 2
    sources, after = draw_sources(model, pool, bases, plan, Wishes(wanted), np.random.default_rng(1))
    labels = model.values(after, "answer")
    differ = 0
    for i in range(n):
        zero, one = (inputs[s] for s in sources[i])
        expected = zero[0] + one[1] + inputs[i][2]
        assert labels[i] == f" {expected}"
        assert (expected != sum(inputs[i])) == bool(wanted[i])
        differ += expected != one[0] + one[1] + inputs[i][2]
    assert differ > n / 3  # leaving out the first stage would be seen


def test_impossible_plans_name_the_variables() -> None:
    model, pool, _ = drawn()
    same = {name: codes[:1] for name, codes in pool.items()}  # one prompt: every source is the base
    zero, flip = np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int64)
    with pytest.raises(IITKitError, match="no source changes the label under an interchange of 'pair' and 'right'"):
        draw_sources(
            model, same, zero, Together(["pair", "right"], np.array([[0, 1]])), Wishes(flip), np.random.default_rng(0)
        )
    with pytest.raises(IITKitError, match="under an interchange of 'left' → 'pair'"):
        draw_sources(model, same, zero, Chain([["left"], ["pair"]]), Wishes(flip), np.random.default_rng(0))
