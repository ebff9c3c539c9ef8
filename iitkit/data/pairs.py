"""The counterfactual pairs that an epoch makes of a split's pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from iitkit.causal import CausalModel, Chain, Plan, Setting, Together, draw_sources
from iitkit.causal.sampling import take
from iitkit.causal.variables import Codes
from iitkit.data.pool import Pool
from iitkit.errors import IITKitError


@dataclass(frozen=True)
class Pairs:
    """Counterfactual pairs of a pool.

    Args:
        base: rows of the pool, [n].
        sources: rows of the pool, [n, K].
        variables: index of the variable that takes its value from source k, [n, K]; of stages the first one's.
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
        together: number of variables that a pair intervenes on, each with a source of its own, all choices equally
            often.
        stages: instead, the variables of each stage of source 0 → source 1 → … → base.
        isolate: whether each pair also names another variable, with the label under that one's interchange.
    """

    variables: Sequence[str]
    flipped: float | None
    together: int = 1
    stages: Sequence[Sequence[str]] = ()
    isolate: bool = False


def make_pairs(model: CausalModel, pool: Pool, design: Design, n: int, generator: np.random.Generator) -> Pairs:
    """Pair the prompts of a pool and label the pairs by the causal model.

    Args:
        model: the causal model.
        pool: the prompts.
        design: what the pairs are like.
        n: number of pairs.
        generator: draws the pairs.

    Raises:
        IITKitError: a share of flipped pairs that the pool cannot give.
    """
    laps = -(-n // len(pool))
    base = np.concatenate([generator.permutation(len(pool)) for _ in range(laps)])[:n]
    plan: Plan
    if design.stages:
        plan, groups = Chain(design.stages), np.zeros(n, dtype=np.int64)
        first = [design.variables.index(names[0]) for names in design.stages]
        chosen = np.tile(np.asarray(first, dtype=np.int64), (n, 1))
    else:
        choice = np.asarray(list(combinations(range(len(design.variables)), design.together)), dtype=np.int64)
        groups = generator.permutation(np.arange(n) % len(choice))
        chosen = choice[groups]
        plan = Together(design.variables, chosen)
    wanted = np.full(n, -1)
    if design.flipped is not None:
        for group in range(int(groups.max()) + 1):
            rows = (groups == group).nonzero()[0]
            wanted[rows] = generator.permutation(np.arange(len(rows)) < round(design.flipped * len(rows)))
    sources, after = draw_sources(model, pool.setting, base, plan, wanted, generator)
    labels = model.values(after, model.output)
    before = model.values(take(pool.setting, base), model.output)
    candidates = candidate_answers(model, take(pool.setting, base), [before, labels])
    other, other_label = None, None
    if design.isolate:
        v = len(design.variables)
        other = (chosen[:, 0] + 1 + generator.integers(v - 1, size=n)) % v
        apart = Together(design.variables, other[:, None])
        isolated = apart.after(model, pool.setting, base, sources[:, :1], np.arange(n))
        other_label = [str(value) for value in model.values(isolated, model.output)]
    return Pairs(
        base,
        sources,
        chosen,
        after[model.output] != pool.setting[model.output][base],
        candidates,
        [row.index(str(label)) for row, label in zip(candidates, labels, strict=True)],
        [row.index(str(label)) for row, label in zip(candidates, before, strict=True)],
        other,
        other_label,
    )


def candidate_answers(model: CausalModel, setting: Setting, always: Sequence[Sequence[object]]) -> list[list[str]]:
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
        columns = [model.values(setting, name) for name in model.candidates]
    else:
        if not model.domains[model.output].complete:
            raise IITKitError(
                f"output {model.output!r} is computed from too many combinations to know all its values: name the "
                "variables whose values compete, CausalModel(…, candidates=[…])"
            )
        columns = [[value] * n for value in model.domains[model.output].values]
    rows = [list(dict.fromkeys(str(column[i]) for column in (*columns, *always))) for i in range(n)]
    if any(len(row) < 2 for row in rows):
        raise IITKitError(
            f"output {model.output!r} has one possible answer in some rows: a test needs at least two candidates"
        )
    return rows
