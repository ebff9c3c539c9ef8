"""Sampling inputs and counterfactual pairs from a causal model, by explicit generators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from iitkit.causal.model import CausalModel, Setting
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
    sources = np.zeros_like(bases)
    open_rows = np.arange(len(bases))
    for _ in range(ROUNDS):
        sources[open_rows] = generator.integers(len(pool[model.output]), size=len(open_rows))
        after = _interchanged(model, pool, bases[open_rows], sources[open_rows], variables, chosen[open_rows])
        changes = after[model.output] != pool[model.output][bases[open_rows]]
        wanted = flipped[open_rows]
        open_rows = open_rows[(wanted >= 0) & (changes != (wanted == 1))]
        if not len(open_rows):
            break
    for row in open_rows.tolist():  # what is rare: look at all sources
        right = _sources_that(model, pool, int(bases[row]), variables[chosen[row]], bool(flipped[row]))
        if not len(right):
            does = "changes" if flipped[row] == 1 else "keeps"
            raise IITKitError(
                f"no source {does} the label under an interchange of {variables[chosen[row]]!r} "
                f"(pair {row} of {len(bases)}, {len(pool[model.output])} prompts): set data.flipped to another share, "
                "or enlarge data.sizes and the word lists"
            )
        sources[row] = generator.choice(right)
    return sources, _interchanged(model, pool, bases, sources, variables, chosen)


def _sources_that(model: CausalModel, pool: Setting, base: int, variable: str, flip: bool) -> Codes:
    """Return every row of the pool whose value of ``variable`` changes (or keeps) the label of one base."""
    values, which = np.unique(pool[variable], return_inverse=True)
    inputs = {name: np.full(len(values), pool[name][base]) for name in model.exogenous}
    after = model.run(inputs, do={variable: values})
    right = (after[model.output] != pool[model.output][base]) == flip
    rows: Codes = right[which.reshape(-1)].nonzero()[0]
    return rows


def _interchanged(
    model: CausalModel, pool: Setting, bases: Codes, sources: Codes, variables: Sequence[str], chosen: Codes
) -> Setting:
    result = {name: codes[bases].copy() for name, codes in pool.items()}
    for v, variable in enumerate(variables):
        rows = (chosen == v).nonzero()[0]
        if len(rows):
            inputs = {name: pool[name][bases[rows]] for name in model.exogenous}
            after = model.run(inputs, do={variable: pool[variable][sources[rows]]})
            for name, codes in after.items():
                result[name][rows] = codes
    return result
