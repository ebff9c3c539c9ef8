"""What pairs do to the causal model: which variables take their values from which source, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from iitkit.causal.model import CausalModel, Setting
from iitkit.causal.variables import Codes


class Plan(Protocol):
    """An interchange with K sources, row by row."""

    @property
    def sources(self) -> int:
        """K, the number of sources of a row."""

    def after(self, model: CausalModel, pool: Setting, bases: Codes, sources: Codes, rows: Codes) -> Setting:
        """Return every variable's codes on the bases under the interchange.

        Args:
            model: the causal model.
            pool: every variable's codes on a pool of inputs, [N] each.
            bases: rows of the pool, [m].
            sources: rows of the pool, [m, K].
            rows: which rows of the plan these are, [m].
        """

    def key(self, pool: Setting, row: int, k: int) -> Codes:
        """Return codes of the inputs that are alike as source ``k`` of a row, [N]: equal codes, equal outcome."""

    def named(self, row: int) -> str:
        """Return what a row intervenes on, for messages."""


@dataclass(frozen=True)
class Together:
    """Some variables at once, each set to its value under a source of its own, or all under one.

    Args:
        variables: names.
        chosen: indices of a row's variables, all different, [n, V]; number k takes its value from source k.
        one_source: whether all take theirs from source 0 instead.
    """

    variables: Sequence[str]
    chosen: Codes
    one_source: bool = False

    @property
    def sources(self) -> int:
        """See :class:`Plan`."""
        return 1 if self.one_source else int(self.chosen.shape[1])

    def after(self, model: CausalModel, pool: Setting, bases: Codes, sources: Codes, rows: Codes) -> Setting:
        """See :class:`Plan`."""
        result = {name: codes[bases].copy() for name, codes in pool.items()}
        chosen = self.chosen[rows]
        for combination in np.unique(chosen, axis=0):
            these = (chosen == combination).all(1).nonzero()[0]
            known = {name: codes[bases[these]] for name, codes in pool.items()}
            names = [self.variables[v] for v in combination]
            do = {name: pool[name][sources[these, 0 if self.one_source else k]] for k, name in enumerate(names)}
            for name, codes in model.held(known, do).items():
                result[name][these] = codes
        return result

    def key(self, pool: Setting, row: int, k: int) -> Codes:
        """See :class:`Plan`."""
        if self.one_source and self.chosen.shape[1] > 1:
            columns = np.stack([pool[self.variables[v]] for v in self.chosen[row]], 1)
            return np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1)
        return pool[self.variables[int(self.chosen[row, k])]]

    def named(self, row: int) -> str:
        """See :class:`Plan`."""
        return " and ".join(repr(self.variables[v]) for v in self.chosen[row])


@dataclass(frozen=True)
class Chain:
    """Source 0 → source 1 → … → base: each run takes variables from the run before, as that is after its own change.

    Args:
        stages: for each arrow the variables that pass along it.
    """

    stages: Sequence[Sequence[str]]

    @property
    def sources(self) -> int:
        """See :class:`Plan`."""
        return len(self.stages)

    def after(self, model: CausalModel, pool: Setting, bases: Codes, sources: Codes, rows: Codes) -> Setting:
        """See :class:`Plan`."""
        setting = {name: codes[sources[:, 0]] for name, codes in pool.items()}
        for k, names in enumerate(self.stages):
            into = bases if k + 1 == len(self.stages) else sources[:, k + 1]
            known = {name: codes[into] for name, codes in pool.items()}
            setting = model.held(known, {name: setting[name] for name in names})
        return setting

    def key(self, pool: Setting, row: int, k: int) -> Codes:
        """See :class:`Plan`."""
        return np.arange(len(next(iter(pool.values()))))

    def named(self, row: int) -> str:
        """See :class:`Plan`."""
        return " → ".join(" and ".join(repr(name) for name in names) for names in self.stages)
