"""Flips are asked of bases that let their label change; nothing is drawn otherwise where all of them do."""

from __future__ import annotations

import numpy as np
import pytest

from iitkit.causal import CausalModel, Together, draw_sources, sample_inputs
from iitkit.causal.flipping import flips_asked
from iitkit.causal.sampling import Wishes, balanced_values, rivals_of
from iitkit.errors import IITKitError


def either() -> CausalModel:
    """One or other: where the other is true, one changes nothing."""
    model = CausalModel(prompt="{one} {other} {extra}", output="answer")
    model.variables(one=[False, True], other=[False, True], extra=list(range(20)))

    @model.mechanism
    def answer(one: bool, other: bool) -> str:
        return " yes" if one or other else " no"

    return model


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_only_bases_that_can_are_asked_to_flip(share: float) -> None:
    model = either()
    pool, _ = sample_inputs(model, 60, np.random.default_rng(0))
    bases, n = np.arange(60), 60
    wanted = (np.random.default_rng(1).permutation(n) < share * n).astype(np.int64)
    plan = Together(["one"], np.zeros((n, 1), dtype=np.int64))
    generator = np.random.default_rng(2)
    new, asked = flips_asked(model, pool, bases, plan, Wishes(wanted), np.zeros(n, dtype=np.int64), generator)
    assert asked.sum() == wanted.sum()
    other = model.values(pool, "other")
    assert not any(other[base] for base in new[asked == 1])
    able = [i for i in range(n) if not other[i]]
    if len(able) >= wanted.sum():
        assert (new == bases)[asked == 1].all()  # none stands in for another
    sources, after = draw_sources(model, pool, new, plan, Wishes(asked), generator)
    assert ((after["answer"] != pool["answer"][new]) == (asked == 1)).all()
    assert sources.shape == (n, 1)


def test_nothing_is_drawn_otherwise_where_all_can() -> None:
    model = either()
    pool, _ = sample_inputs(model, 60, np.random.default_rng(0))
    bases = np.asarray([i for i, value in enumerate(model.values(pool, "other")) if not value])
    n = len(bases)
    wanted = np.arange(n) % 2
    plan = Together(["one"], np.zeros((n, 1), dtype=np.int64))
    generator, alone = np.random.default_rng(2), np.random.default_rng(2)
    new, asked = flips_asked(model, pool, bases, plan, Wishes(wanted), np.zeros(n, dtype=np.int64), generator)
    assert (new == bases).all()
    assert (asked == wanted).all()
    assert generator.random() == alone.random()


def test_impossible_flips_are_still_an_error() -> None:
    model = either()
    pool, _ = sample_inputs(model, 60, np.random.default_rng(0))
    bases = np.asarray([i for i, value in enumerate(model.values(pool, "other")) if value])
    plan = Together(["one"], np.zeros((len(bases), 1), dtype=np.int64))
    wishes = Wishes(np.ones(len(bases), dtype=np.int64))
    zeros = np.zeros(len(bases), dtype=np.int64)
    new, asked = flips_asked(model, pool, bases, plan, wishes, zeros, np.random.default_rng(0))
    with pytest.raises(IITKitError, match="no source changes the label under an interchange of 'one'"):
        draw_sources(model, pool, new, plan, Wishes(asked), np.random.default_rng(0))


def test_with_rivals_and_balance() -> None:
    model = either()
    pool, _ = sample_inputs(model, 80, np.random.default_rng(0))
    n = 80
    plan = Together(["one"], np.zeros((n, 1), dtype=np.int64))
    wishes = Wishes(np.arange(n) % 2, rivals=rivals_of(model, pool, ["output"]))
    zeros = np.zeros(n, dtype=np.int64)
    new, asked = flips_asked(model, pool, np.arange(n), plan, wishes, zeros, np.random.default_rng(1))
    sources, after = draw_sources(model, pool, new, plan, Wishes(asked, rivals=wishes.rivals), np.random.default_rng(2))
    assert (after["answer"] != pool["answer"][sources[:, 0]]).all()
    assert (after["answer"] != pool["answer"][new]).sum() == 40
    values = balanced_values(model, pool, new, plan, asked, np.random.default_rng(3))
    assert (values >= 0).all()
