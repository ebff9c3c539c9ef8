"""Sampling counterfactual pairs from a causal model, by explicit generators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeGuard

import numpy as np
import numpy.typing as npt

from iitkit.causal.hypotheses import COPY, NO_CHANGE
from iitkit.causal.inputs import ROUNDS, sample_inputs, take
from iitkit.causal.model import CausalModel, Setting
from iitkit.causal.plans import Plan, Together
from iitkit.causal.variables import Codes
from iitkit.errors import IITKitError, choices

__all__ = [
    "Wishes",
    "balanced_values",
    "draw_sources",
    "rivals_of",
    "sample_inputs",
    "sample_sources",
    "take",
]

TRIED = 16
"""Sources that are tried at random before all values of a variable are."""

CELLS = 1_000_000
"""Labels that are computed at once where all of a variable's values are tried."""


class Rival(Protocol):
    """What another hypothesis says of pairs."""

    def __call__(self, bases: Codes, sources: Codes) -> Codes:
        """Return the answers' codes in the model's output domain (−1 for any other) from rows [m] and [m, K].

        [m], or [m, K] where it says one answer for each source.
        """


@dataclass(frozen=True)
class Wishes:
    """What pairs are to be like.

    Args:
        flipped: 1 where the label must change, 0 where it must stay, −1 where either is right, [n].
        groups: number of each input's group, [N]: a source is then another input of its base's group.
        values: code of the value that the intervened variable should have in the source, −1 for any, [n]; a wish that
            gives way where no source can have it.
        rivals: name → another hypothesis: a pair must have another label than it predicts.
    """

    flipped: Codes
    groups: Codes | None = None
    values: Codes | None = None
    rivals: Mapping[str, Rival] = field(default_factory=dict)


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
    plan = Together(variables, chosen[:, None])
    sources, after = draw_sources(model, pool, bases, plan, Wishes(flipped), generator)
    return sources[:, 0], after


def draw_sources(
    model: CausalModel, pool: Setting, bases: Codes, plan: Plan, wishes: Wishes, generator: np.random.Generator
) -> tuple[Codes, Setting]:
    """Draw the sources of each base; see :func:`sample_sources`.

    Args:
        model: the causal model.
        pool: every variable's codes on a pool of inputs, [N] each.
        bases: rows of the pool, [n].
        plan: what each row does to the causal model.
        wishes: what the pairs are to be like.
        generator: draws the sources.

    Returns:
        Rows of the pool, [n, K], and every variable's codes on the bases under the interchange.

    Raises:
        IITKitError: no source of the pool makes of some base what is wished.
    """
    n, k = len(bases), plan.sources
    sources = np.zeros((n, k), dtype=np.int64)
    rows = np.arange(n)
    drawn = Drawing(pool, bases, plan, wishes, generator)
    rounds = TRIED if by_value(plan, wishes) else ROUNDS
    for attempt in range(rounds):
        sources[rows] = drawn.proposals(rows, valued=attempt < rounds // 2)
        rows = rows[~is_right(model, pool, bases[rows], plan, sources[rows], rows, wishes)]
        if not len(rows):
            break
    if len(rows) and by_value(plan, wishes):
        for v, name in enumerate(plan.variables):
            mine = rows[plan.chosen[rows, 0] == v]
            found = _of_right_value(model, pool, bases[mine], name, wishes.flipped[mine], generator)
            sources[mine, 0] = found
            if (found < 0).any():
                raise IITKitError(_impossible(pool, bases, plan, wishes, int(mine[(found < 0).argmax()])))
        rows = rows[:0]
    for row in rows.tolist():  # what is rare: look at all inputs as one source, beside others drawn
        for attempt in range(k if k == 1 else ROUNDS):
            which = attempt % k
            if attempt >= k:
                sources[row] = drawn.proposals(np.asarray([row]), valued=False)[0]
            right = _inputs_that(model, pool, plan, int(bases[row]), sources[row], row, which, wishes)
            if len(right):
                sources[row, which] = generator.choice(right)
                break
        else:
            raise IITKitError(_impossible(pool, bases, plan, wishes, row))
    return sources, plan.after(model, pool, bases, sources, np.arange(n))


def by_value(plan: Plan, wishes: Wishes) -> TypeGuard[Together]:
    """Whether nothing but the value of one variable matters of a source."""
    return isinstance(plan, Together) and plan.chosen.shape[1] == 1 and wishes.groups is None and not wishes.rivals


def changes_by_value(
    model: CausalModel, pool: Setting, bases: Codes, name: str, values: Codes
) -> npt.NDArray[np.bool_]:
    """Return whether each value of a variable changes each base's label, [n, values]."""
    bases, of = np.unique(bases, return_inverse=True)  # each base once: there may be many pairs of each
    found = np.zeros((len(bases), len(values)), dtype=bool)
    step = max(1, CELLS // len(values))
    for start in range(0, len(bases), step):
        some = bases[start : start + step]
        known = {x: np.repeat(codes[some], len(values)) for x, codes in pool.items()}
        labels = model.held(known, {name: np.tile(values, len(some))})[model.output].reshape(len(some), -1)
        found[start : start + step] = labels != pool[model.output][some, None]
    return found[of.reshape(-1)]


def _of_right_value(
    model: CausalModel, pool: Setting, bases: Codes, name: str, wanted: Codes, generator: np.random.Generator
) -> Codes:
    """Return a source for each base whose value of a variable makes of the label what is wanted; −1 for none, [n]."""
    values = values_in(model, pool, name)
    weights = np.bincount(pool[name])[values]  # each fitting input is as likely as any other
    drawn, there = generator.random(len(bases)), np.zeros(len(bases), dtype=bool)
    chosen = np.zeros(len(bases), dtype=np.int64)
    step = max(1, CELLS // len(values))
    for rows in np.split(np.arange(len(bases)), range(step, len(bases), step)):
        fits = changes_by_value(model, pool, bases[rows], name, values) == (wanted[rows, None] == 1)
        bounds = np.cumsum(fits * weights, axis=1)
        below = (bounds <= (drawn[rows] * bounds[:, -1])[:, None]).sum(1)
        chosen[rows], there[rows] = np.minimum(below, len(values) - 1), bounds[:, -1] > 0
    found = _Grouped(pool[name]).members(values[chosen], generator)
    return np.where(there, found, -1)


def values_in(model: CausalModel, pool: Setting, name: str) -> Codes:
    """Return the codes that a variable has in a pool, each once, in an order that does not depend on other pools.

    Values that come to light as they are met have other codes in another process, or where another split was asked
    for first: they stand in the order in which the pool has them.
    """
    codes, first = np.unique(pool[name], return_index=True)
    return codes if model.domains[name].complete else codes[np.argsort(first)]


class Drawing:
    """Proposes sources: any input, one of the base's group, or one with the value that is wished."""

    def __init__(self, pool: Setting, bases: Codes, plan: Plan, wishes: Wishes, generator: np.random.Generator) -> None:
        self.bases, self.plan, self.wishes, self.generator = bases, plan, wishes, generator
        self.n, self.k = len(next(iter(pool.values()))), plan.sources
        self.groups = None if wishes.groups is None else _Grouped(wishes.groups)
        self.by_value: dict[str, _Grouped] = {}
        if wishes.values is not None and self.groups is None and isinstance(plan, Together):
            self.by_value = {name: _Grouped(pool[name]) for name in plan.variables}

    def proposals(self, rows: Codes, valued: bool) -> Codes:
        """Return sources of some rows, [len(rows), K]."""
        if self.groups is not None:
            return np.stack([self.groups.others(self.bases[rows], self.generator) for _ in range(self.k)], 1)
        drawn: Codes = self.generator.integers(self.n, size=(len(rows), self.k)).astype(np.int64)
        if valued and self.by_value and isinstance(self.plan, Together) and self.wishes.values is not None:
            wanted, chosen = self.wishes.values[rows], self.plan.chosen[rows, 0]
            for v, name in enumerate(self.plan.variables):
                these = ((chosen == v) & (wanted >= 0)).nonzero()[0]
                if len(these):
                    drawn[these, 0] = self.by_value[name].members(wanted[these], self.generator)
        return drawn


class _Grouped:
    """Rows of the pool by a number that they have in common."""

    def __init__(self, numbers: Codes) -> None:
        self.numbers = numbers
        self.order = np.argsort(numbers, kind="stable")
        self.place = np.empty_like(self.order)
        self.place[self.order] = np.arange(len(numbers))
        self.count = np.bincount(numbers)
        self.start = np.cumsum(self.count) - self.count

    def others(self, rows: Codes, generator: np.random.Generator) -> Codes:
        """Return for each row another of its group."""
        count, start = self.count[self.numbers[rows]], self.start[self.numbers[rows]]
        step = 1 + (generator.random(len(rows)) * (count - 1)).astype(np.int64)
        found: Codes = self.order[start + (self.place[rows] - start + step) % count]
        return found

    def members(self, numbers: Codes, generator: np.random.Generator) -> Codes:
        """Return a row with each number; any row where there is none."""
        known = numbers < len(self.count)
        count = np.where(known, self.count[np.where(known, numbers, 0)], 0)
        start = self.start[np.where(known, numbers, 0)]
        there = start + (generator.random(len(numbers)) * count).astype(np.int64)
        found: Codes = self.order[np.where(count > 0, there, generator.integers(len(self.order), size=len(numbers)))]
        return found


def is_right(
    model: CausalModel, pool: Setting, bases: Codes, plan: Plan, sources: Codes, rows: Codes, wishes: Wishes
) -> npt.NDArray[np.bool_]:
    """Return which pairs are as wished (but for their values, [m])."""
    label = plan.after(model, pool, bases, sources, rows)[model.output]
    wanted = wishes.flipped[rows]
    right = (wanted < 0) | ((label != pool[model.output][bases]) == (wanted == 1))
    for rival in wishes.rivals.values():
        said = rival(bases, sources)
        right &= said != label if said.ndim == 1 else (said != label[:, None]).all(1)
    return np.asarray(right)


def _inputs_that(
    model: CausalModel, pool: Setting, plan: Plan, base: int, sources: Codes, row: int, which: int, wishes: Wishes
) -> Codes:
    """Return every row of the pool that, as one of a pair's sources, makes it as wished."""
    among = np.arange(len(pool[model.output]))
    if wishes.groups is not None:
        among = ((wishes.groups == wishes.groups[base]) & (among != base)).nonzero()[0]
    key = among if wishes.rivals else plan.key(pool, row, which)[among]  # a rival may look at more than the variable
    _, first, alike = np.unique(key, return_index=True, return_inverse=True)
    tried = np.repeat(sources[None], len(first), 0)
    tried[:, which] = among[first]
    right = is_right(model, pool, np.full(len(first), base), plan, tried, np.full(len(first), row), wishes)
    found: Codes = among[right[alike.reshape(-1)].nonzero()[0]]
    return found


def _impossible(pool: Setting, bases: Codes, plan: Plan, wishes: Wishes, row: int) -> str:
    does = {1: "changes the label", 0: "keeps the label"}.get(int(wishes.flipped[row]), "is as wished")
    n = len(next(iter(pool.values())))
    extra = [f"tells {plan.named(row)} from {choices(wishes.rivals)}"] if wishes.rivals else []
    if wishes.groups is not None:
        extra.append("differs in only the variables of differ_in")
    return (
        f"no source {' and '.join([does, *extra])} under an interchange of {plan.named(row)} "
        f"(pair {row} of {len(bases)}, {n} prompts): set data.flipped to another share, "
        + ("ask for less, " if extra else "")
        + "or enlarge data.sizes and the word lists"
    )


def rivals_of(
    model: CausalModel, pool: Setting, names: Sequence[str], others: Mapping[str, tuple[CausalModel, str]] | None = None
) -> dict[str, Rival]:
    """Return rivals by name, of several sources for the first; :data:`COPY` is of each.

    Args:
        model: the causal model.
        pool: every variable's codes on a pool of inputs, [N] each.
        names: variables of the model, :data:`COPY`, :data:`NO_CHANGE`, or names in ``others``.
        others: name → (another causal model of the same inputs, its variable).

    Raises:
        IITKitError: a name that is none of these.
    """
    found: dict[str, Rival] = {}
    for name in names:
        if name == COPY or (name == "output" and name not in model.domains):
            found[COPY] = lambda bases, sources: pool[model.output][sources]
        elif name == NO_CHANGE or (name == "no_change" and name not in model.domains):
            found[NO_CHANGE] = lambda bases, sources: pool[model.output][bases]
        elif others and name in others:
            found[name] = _of_model(model, pool, *others[name])
        else:
            model.check_variable(name, "tell_apart")
            found[name] = _of_model(model, pool, model, name)
    return found


def _of_model(model: CausalModel, pool: Setting, other: CausalModel, variable: str) -> Rival:
    """The rival that another variable, of this or of another model, is what the interchange sets."""
    from iitkit.causal.hypotheses import answer_keys, translated

    inputs = {name: pool[name] for name in model.exogenous}
    setting = pool if other is model else other.run(translated(model, other, inputs))

    def rival(bases: Codes, sources: Codes) -> Codes:
        known = {name: codes[bases] for name, codes in setting.items()}
        after = other.held(known, {variable: setting[variable][sources[:, 0]]})[other.output]
        if other is model:
            return after
        domain = model.domains[model.output]
        table = np.asarray(
            [domain.codes.get(key, -1) if isinstance(key, tuple) else -1 for key in answer_keys(model, other)]
        )
        found: Codes = table[after]
        return found

    return rival


def balanced_values(
    model: CausalModel, pool: Setting, bases: Codes, plan: Together, flipped: Codes, generator: np.random.Generator
) -> Codes:
    """Choose the value that each pair's variable takes from its source, all values equally often as far as possible.

    Args:
        model: the causal model.
        pool: every variable's codes on a pool of inputs, [N] each.
        bases: rows of the pool, [n].
        plan: one variable in each row.
        flipped: 1 where the label must change, 0 where it must stay, −1 where either is right, [n].
        generator: breaks ties.

    Returns:
        Codes of the values, −1 where none does what is asked, [n].
    """
    found = np.full(len(bases), -1, dtype=np.int64)
    for v, name in enumerate(plan.variables):
        rows = (plan.chosen[:, 0] == v).nonzero()[0]
        values = values_in(model, pool, name)
        changes = changes_by_value(model, pool, bases[rows], name, values)
        fits = (flipped[rows, None] < 0) | (changes == (flipped[rows, None] == 1))
        counts = np.zeros(len(values))
        for i in generator.permutation(len(rows)).tolist():
            if fits[i].any():
                least = np.where(fits[i], counts + generator.random(len(values)) / 2, np.inf).argmin()
                counts[least] += 1
                found[rows[i]] = values[least]
    return found
