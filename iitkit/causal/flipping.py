"""Which pairs' labels must change, where a share of all is asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from iitkit.causal.model import CausalModel, Setting
from iitkit.causal.plans import Plan
from iitkit.causal.sampling import TRIED, Drawing, Wishes, by_value, changes_by_value, is_right
from iitkit.causal.variables import Codes


def flips_asked(
    model: CausalModel,
    pool: Setting,
    bases: Codes,
    plan: Plan,
    wishes: Wishes,
    among: Codes,
    generator: np.random.Generator,
    alike: Codes | None = None,
) -> tuple[Codes, Codes]:
    """Move the flips that are wished to bases that let their label change, as many in each group as before.

    Where one half of a disjunction is true, the other changes nothing: such a base can only keep its label. If fewer
    bases than are asked for let their label change, some of these stand in for others.

    Args:
        model: the causal model.
        pool: every variable's codes on a pool of inputs, [N] each.
        bases: rows of the pool, [n].
        plan: what each row does to the causal model.
        wishes: what the pairs are to be like.
        among: number of each pair's group, [n].
        generator: breaks ties; it is not used where every base can do what is wished.
        alike: number of each input of the pool: a base is stood in for by one of its number, if any can, [N].

    Returns:
        The bases, and 1 where the label must change, 0 where it must stay, [n] each.
    """
    own = generator.spawn(1)[0]  # what is drawn after this is drawn alike, whether flips had to be moved or not
    free = replace(wishes, flipped=np.full(len(bases), -1))
    flips, keeps = _possible(model, pool, bases, plan, free, own)
    stand_in, wanted = bases.copy(), wishes.flipped.copy()
    for group in np.unique(among[np.where(wanted == 1, ~flips, ~keeps)]).tolist():
        these = own.permutation((among == group).nonzero()[0])
        asked = int((wanted[these] == 1).sum())
        rank = np.where(flips[these], np.where(keeps[these], 1, 0), 2)  # what can only change, either, only stay
        order = these[np.argsort(rank, kind="stable")]
        wanted[these] = 0
        wanted[order[:asked]] = 1
        for rows, can in ((order[:asked], flips), (order[asked:], keeps)):
            unable, able = rows[~can[rows]], these[can[these]]
            if len(able):
                stand_in[unable] = bases[own.choice(able, len(unable))]
            if alike is None:
                continue
            for number in np.unique(alike[bases[unable]]).tolist():
                mine, fits = unable[alike[bases[unable]] == number], able[alike[bases[able]] == number]
                if len(fits):
                    stand_in[mine] = bases[own.choice(fits, len(mine))]
    return stand_in, wanted


def _possible(
    model: CausalModel, pool: Setting, bases: Codes, plan: Plan, wishes: Wishes, generator: np.random.Generator
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return on which bases some source changes the label, and on which some source keeps it, [n] each."""
    drawn = Drawing(pool, bases, plan, wishes, generator)
    flips, keeps = np.zeros(len(bases), dtype=bool), np.zeros(len(bases), dtype=bool)
    rows = np.arange(len(bases))
    for _ in range(TRIED):
        sources = drawn.proposals(rows, valued=False)
        right = is_right(model, pool, bases[rows], plan, sources, rows, wishes)
        changes = plan.after(model, pool, bases[rows], sources, rows)[model.output] != pool[model.output][bases[rows]]
        flips[rows] |= right & changes
        keeps[rows] |= right & ~changes
        rows = rows[~(flips[rows] & keeps[rows])]
        if not len(rows):
            break
    if len(rows) and by_value(plan, wishes):
        for v, name in enumerate(plan.variables):
            mine = rows[plan.chosen[rows, 0] == v]
            changes = changes_by_value(model, pool, bases[mine], name, np.unique(pool[name]))
            flips[mine], keeps[mine] = changes.any(1), ~changes.all(1)
    return flips, keeps
