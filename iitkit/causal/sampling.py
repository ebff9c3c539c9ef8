"""Sampling inputs and counterfactual pairs from a causal model, by explicit generators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from iitkit.causal.model import CausalModel, Setting
from iitkit.causal.plans import Plan, Together
from iitkit.causal.variables import Codes
from iitkit.errors import IITKitError, choices

ROUNDS = 64
"""How often sampling is tried: inputs are then called impossible, sources looked for one by one."""

LEAST = 1000
"""Inputs drawn in a round, at least: few prompts may be wanted of a model whose constraints few inputs satisfy."""


def take(setting: Setting, rows: Codes) -> Setting:
    """Return the given rows of a setting."""
    return {name: codes[rows] for name, codes in setting.items()}


def sample_inputs(
    model: CausalModel,
    n: int,
    generator: np.random.Generator,
    templates: Sequence[int] = (0,),
    among: Mapping[str, Codes] | None = None,
) -> tuple[Setting, Codes]:
    """Draw up to ``n`` inputs whose prompts all differ.

    Args:
        model: the causal model.
        n: how many; fewer are returned where there are no more different prompts.
        generator: draws them.
        templates: indices of the templates to use.
        among: variable → the codes it may take; the whole domain unless said.

    Returns:
        Every variable's codes and the template of each input.

    Raises:
        IITKitError: constraints that no input satisfies.
    """
    model.compile()
    size = max(n, LEAST)
    parts: list[tuple[Setting, Codes]] = []
    seen: set[tuple[int, ...]] = set()
    for _ in range(ROUNDS):
        inputs = {
            name: generator.choice(among[name], size)
            if among and name in among
            else generator.integers(len(domain), size=size)
            for name, domain in model.exogenous.items()
        }
        drawn = model.run({name: codes.astype(np.int64) for name, codes in inputs.items()})
        used = np.asarray(templates, dtype=np.int64)[generator.integers(len(templates), size=size)]
        keys = np.stack([*(drawn[slot] for slot in model.slots), used], 1)
        fresh = []
        for i in model.allowed(drawn).nonzero()[0].tolist():
            key = tuple(keys[i].tolist())
            if key not in seen and len(seen) < n:
                seen.add(key)
                fresh.append(i)
        rows = np.asarray(fresh, dtype=np.int64)
        parts.append((take(drawn, rows), used[rows]))
        if len(seen) == n or (seen and not fresh):  # all asked for, or a whole round brought nothing new
            break
    if not seen:
        raise IITKitError(f"no input satisfies the constraints {choices(model.constraints)}: loosen them")
    setting = {name: np.concatenate([part[name] for part, _ in parts]) for name in parts[0][0]}
    return setting, np.concatenate([used for _, used in parts])


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
