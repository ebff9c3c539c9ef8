"""Sampling counterfactual pairs from a causal model, by explicit generators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iitkit.causal.inputs import ROUNDS, sample_inputs, take
from iitkit.causal.model import CausalModel, Setting
from iitkit.causal.plans import Plan, Together
from iitkit.causal.variables import Codes
from iitkit.errors import IITKitError

__all__ = ["draw_sources", "sample_inputs", "sample_sources", "take"]


def sample_sources(
    model: CausalModel,
    pool: Setting,
    bases: Codes,
    variables: Sequence[str],
    chosen: Codes,
    flipped: Codes,
    generator: np.random.Generator,
) -> tuple[Codes, Setting]:
    """Draw a source for each base, so that the interchange changes the label exactly where it is asked to.

    Args:
        model: the causal model.
        pool: every variable's codes on a pool of inputs, [N] each.
        bases: rows of the pool, [n].
        variables: variables that are intervened on.
        chosen: index of each base's variable among them, [n].
        flipped: 1 where the label must change, 0 where it must stay, −1 where either is right, [n].
        generator: draws the sources.

    Returns:
        Rows of the pool, [n], and every variable's codes on the bases under the interchange.

    Raises:
        IITKitError: no source of the pool changes (or keeps) the label of some base.
    """
    sources, after = draw_sources(model, pool, bases, Together(variables, chosen[:, None]), flipped, generator)
    return sources[:, 0], after


def draw_sources(
    model: CausalModel, pool: Setting, bases: Codes, plan: Plan, flipped: Codes, generator: np.random.Generator
) -> tuple[Codes, Setting]:
    """Draw the sources of each base; see :func:`sample_sources`.

    Args:
        model: the causal model.
        pool: every variable's codes on a pool of inputs, [N] each.
        bases: rows of the pool, [n].
        plan: what each row does to the causal model.
        flipped: 1 where the label must change, 0 where it must stay, −1 where either is right, [n].
        generator: draws the sources.

    Returns:
        Rows of the pool, [n, K], and every variable's codes on the bases under the interchange.

    Raises:
        IITKitError: no source of the pool changes (or keeps) the label of some base.
    """
    n, k = len(bases), plan.sources
    sources = np.zeros((n, k), dtype=np.int64)
    rows = np.arange(n)
    for _ in range(ROUNDS):
        sources[rows] = generator.integers(len(pool[model.output]), size=(len(rows), k))
        after = plan.after(model, pool, bases[rows], sources[rows], rows)
        changes = after[model.output] != pool[model.output][bases[rows]]
        wanted = flipped[rows]
        rows = rows[(wanted >= 0) & (changes != (wanted == 1))]
        if not len(rows):
            break
    for row in rows.tolist():  # what is rare: look at all inputs as one source, beside others drawn
        for attempt in range(k if k == 1 else ROUNDS):
            which = attempt % k
            if attempt >= k:
                sources[row] = generator.integers(len(pool[model.output]), size=k)
            right = _inputs_that(model, pool, plan, int(bases[row]), sources[row], row, which, bool(flipped[row]))
            if len(right):
                sources[row, which] = generator.choice(right)
                break
        else:
            does = "changes" if flipped[row] == 1 else "keeps"
            raise IITKitError(
                f"no source {does} the label under an interchange of {plan.named(row)} "
                f"(pair {row} of {n}, {len(pool[model.output])} prompts): set data.flipped to another share, "
                "or enlarge data.sizes and the word lists"
            )
    return sources, plan.after(model, pool, bases, sources, np.arange(n))


def _inputs_that(
    model: CausalModel, pool: Setting, plan: Plan, base: int, sources: Codes, row: int, which: int, flip: bool
) -> Codes:
    """Return every row of the pool that, as one of a pair's sources, changes (or keeps) the label."""
    _, first, alike = np.unique(plan.key(pool, row, which), return_index=True, return_inverse=True)
    tried = np.repeat(sources[None], len(first), 0)
    tried[:, which] = first
    after = plan.after(model, pool, np.full(len(first), base), tried, np.full(len(first), row))
    right = (after[model.output] != pool[model.output][base]) == flip
    found: Codes = right[alike.reshape(-1)].nonzero()[0]
    return found
