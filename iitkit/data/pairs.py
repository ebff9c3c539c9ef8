"""The counterfactual pairs that an epoch makes of a split's pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Protocol

import numpy as np

from iitkit.causal import CausalModel, Chain, Plan, Setting, Together, draw_sources
from iitkit.causal.flipping import flips_asked
from iitkit.causal.inputs import groups_of
from iitkit.causal.sampling import Wishes, balanced_values, rivals_of, take, values_in
from iitkit.causal.variables import Codes
from iitkit.errors import IITKitError


@dataclass(frozen=True)
class Pairs:
    """Counterfactual pairs of a pool.

    Args:
        base: rows of the pool, [n].
        sources: rows of the pool, [n, K].
        variables: indices of the variables that are intervened on, [n, V]: number k takes its value from source k (all
            from source 0 where there is but one); of stages the first variable of each.
        flipped: whether that changes the label, [n].
        candidates: the answers that compete in each pair.
        label: index of the counterfactual label among them.
        base_label: index of the label without intervention.
        other: index of another variable, to be isolated from the first, [n]; None where nothing is isolated.
        other_label: the label under the other variable's interchange with the same source.
    """

    base: Codes
    sources: Codes
    variables: Codes
    flipped: np.ndarray[Any, np.dtype[np.bool_]]
    candidates: list[list[str]]
    label: list[int]
    base_label: list[int]
    other: Codes | None = None
    other_label: list[str] | None = None

    def __len__(self) -> int:
        return len(self.base)

    def taken(self, rows: Codes) -> Pairs:
        """Return only the given pairs."""
        kept = rows.tolist()
        return Pairs(
            self.base[rows],
            self.sources[rows],
            self.variables[rows],
            self.flipped[rows],
            [self.candidates[i] for i in kept],
            [self.label[i] for i in kept],
            [self.base_label[i] for i in kept],
            None if self.other is None else self.other[rows],
            None if self.other_label is None else [self.other_label[i] for i in kept],
        )

    @property
    def source(self) -> Codes:
        """The first source, rows of the pool, [n]."""
        return self.sources[:, 0]

    @property
    def variable(self) -> Codes:
        """Index of the first source's variable, [n]."""
        return self.variables[:, 0]


@dataclass(frozen=True)
class Design:
    """What the pairs of a run are like.

    Args:
        variables: the variables to intervene on.
        flipped: share of pairs whose label the interchange changes; None leaves it to chance.
        together: number of variables that a pair intervenes on, all choices equally often.
        one_source: whether these all take their values from one source instead of one each.
        stages: instead, the variables of each stage of source 0 → source 1 → … → base.
        isolate: whether each pair also names another variable, with the label under that one's interchange.
        balance: ``output`` for bases whose answers are equally frequent, ``variable`` for sources whose values of the
            variable are.
        differ_in: exogenous variables: base and source differ in no others.
        tell_apart: rivals whose label a pair's must differ from: variables, ``output`` (copy the source's output),
            ``no_change``, or names in ``rivals``.
        rivals: name → (another causal model of the same inputs, its variable).
    """

    variables: Sequence[str]
    flipped: float | None
    together: int = 1
    one_source: bool = False
    stages: Sequence[Sequence[str]] = ()
    isolate: bool = False
    balance: Sequence[str] = ()
    differ_in: Sequence[str] = ()
    tell_apart: Sequence[str] = ()
    rivals: Mapping[str, tuple[CausalModel, str]] = field(default_factory=dict)


class Prompted(Protocol):
    """What pairs are made of: a pool, as far as its causal model goes."""

    @property
    def setting(self) -> Setting:
        """Every variable's codes, [N] each."""

    @property
    def templates(self) -> Codes:
        """Template of each prompt, [N]."""

    def __len__(self) -> int:
        """N."""


def make_pairs(model: CausalModel, pool: Prompted, design: Design, n: int, generator: np.random.Generator) -> Pairs:
    """Pair the prompts of a pool and label the pairs by the causal model.

    Args:
        model: the causal model.
        pool: the prompts.
        design: what the pairs are like.
        n: number of pairs.
        generator: draws the pairs.

    Raises:
        IITKitError: pairs that the pool cannot give.
    """
    base = _bases(model, pool, design, n, generator)
    plan: Plan
    if design.stages:
        plan, groups = Chain(design.stages), np.zeros(n, dtype=np.int64)
        first = [design.variables.index(names[0]) for names in design.stages]
        chosen = np.tile(np.asarray(first, dtype=np.int64), (n, 1))
    else:
        choice = np.asarray(list(combinations(range(len(design.variables)), design.together)), dtype=np.int64)
        groups = generator.permutation(np.arange(n) % len(choice))
        chosen = choice[groups]
        plan = Together(design.variables, chosen, design.one_source)
    wanted = np.full(n, -1)
    if design.flipped is not None:
        counts = np.bincount(groups)
        asked = [round(design.flipped * count) for count in counts.tolist()]
        if abs(sum(asked) - design.flipped * n) > n / 100:  # groups of a few pairs: what each lacks adds up
            asked = np.diff(np.round(design.flipped * np.cumsum([0, *counts]))).astype(int).tolist()
        for group, share in enumerate(asked):
            rows = (groups == group).nonzero()[0]
            wanted[rows] = generator.permutation(np.arange(len(rows)) < share)
    wishes = Wishes(
        wanted,
        groups_of(model, pool.setting, pool.templates, design.differ_in) if design.differ_in else None,
        None,
        rivals_of(model, pool.setting, design.tell_apart, design.rivals),
    )
    if design.flipped is not None:
        alike = pool.setting[model.output] if "output" in design.balance else None
        base, wanted = flips_asked(model, pool.setting, base, plan, wishes, groups, generator, alike)
        wishes = replace(wishes, flipped=wanted)
    if "variable" in design.balance:
        assert isinstance(plan, Together)
        values = balanced_values(model, pool.setting, base, plan, wishes.flipped, generator)
        wishes = replace(wishes, values=values)
    sources, after = draw_sources(model, pool.setting, base, plan, wishes, generator)
    labels = model.answers(after, model.output)
    before = model.answers(take(pool.setting, base), model.output)
    candidates = candidate_answers(model, take(pool.setting, base), [before, labels])
    other, other_label = None, None
    if design.isolate:
        v = len(design.variables)
        other = (chosen[:, 0] + 1 + generator.integers(v - 1, size=n)) % v
        apart = Together(design.variables, other[:, None])
        isolated = apart.after(model, pool.setting, base, sources[:, :1], np.arange(n))
        other_label = model.answers(isolated, model.output)
    return Pairs(
        base,
        sources,
        chosen,
        after[model.output] != pool.setting[model.output][base],
        candidates,
        [row.index(label) for row, label in zip(candidates, labels, strict=True)],
        [row.index(label) for row, label in zip(candidates, before, strict=True)],
        other,
        other_label,
    )


def _bases(model: CausalModel, pool: Prompted, design: Design, n: int, generator: np.random.Generator) -> Codes:
    """Draw the bases: each prompt as often as any other, or each answer."""
    if "output" not in design.balance:
        return _laps(len(pool), n, generator)
    answers = pool.setting[model.output]
    kinds = values_in(model, pool.setting, model.output)
    of_pair = generator.permutation(np.arange(n) % len(kinds))
    base = np.zeros(n, dtype=np.int64)
    for number, kind in enumerate(kinds.tolist()):
        these = (of_pair == number).nonzero()[0]
        rows = (answers == kind).nonzero()[0]
        base[these] = rows[_laps(len(rows), len(these), generator)]
    return base


def _laps(size: int, n: int, generator: np.random.Generator) -> Codes:
    """Return ``n`` numbers below ``size``, none again before all have been."""
    return np.concatenate([generator.permutation(size) for _ in range(-(-n // size))] or [np.zeros(0, int)])[:n]


def candidate_answers(model: CausalModel, setting: Setting, always: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return each row's competing answers: the declared candidates in the base, or the output's whole domain.

    Args:
        model: the causal model.
        setting: every variable's codes in the base, [n] each.
        always: answers that compete in any case (the labels), lists of n.

    Raises:
        IITKitError: a row with one answer, or no declared candidates where the output's domain is not known in advance.
    """
    n = len(setting[model.output])
    if model.candidates:
        columns = [model.answers(setting, name) for name in model.candidates]
    else:
        if not model.domains[model.output].complete:
            raise IITKitError(
                f"output {model.output!r} is computed from too many combinations to know all its values: name the "
                "variables whose values compete, CausalModel(…, candidates=[…])"
            )
        every = [model.forms(value)[0] for value in model.domains[model.output].values]
        # one list for all rows where the labels are among them, as they are: a pair has no candidates of its own
        own = [[text for text in column if text not in set(every)] for column in always]
        if not any(own) and len(every) > 1:
            return [every] * n
        columns = [[text] * n for text in every]
    rows = [list(dict.fromkeys(column[i] for column in (*columns, *always))) for i in range(n)]
    if any(len(row) < 2 for row in rows):
        raise IITKitError(
            f"output {model.output!r} has one possible answer in some rows: a test needs at least two candidates"
        )
    return rows
