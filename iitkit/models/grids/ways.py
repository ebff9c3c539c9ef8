"""How much of a run a network lets be left out, found out by comparing the first cells with plain hooked runs."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from iitkit.batch import Tokens
from iitkit.models.grids.hooked import hooked
from iitkit.models.grids.network import Network
from iitkit.models.grids.rows import Rows
from iitkit.models.grids.run import Run
from iitkit.models.grids.sweep import Sweep
from iitkit.models.grids.table import Table, Units
from iitkit.models.replay.runner import TRIALS, _steady, why_plain
from iitkit.models.replay.stores import precision

log = logging.getLogger("iitkit")


@dataclass(frozen=True)
class Way:
    """A way to run cells.

    Args:
        name: ``tokens`` where layers below and tokens left of an edit are left out, ``layers`` where layers are,
            ``plain`` for hooked runs.
        causal: whether a token sees no later one.
        growing: whether cells join a batch on its way through the layers.
    """

    name: str
    causal: bool
    growing: bool


WAYS = (Way("tokens", True, True), Way("tokens", True, False), Way("layers", False, False), Way("plain", False, False))


class Ways:
    """The way in which a network's cells are run.

    Args:
        network: the network.
        plain: whether the user wants hooked runs.
    """

    def __init__(self, network: Network, plain: bool) -> None:
        self.network = network
        self.left = list(WAYS)
        self.checked, self.trials = False, 0
        self.causal = False
        """Whether it was seen that a token sees no later one."""
        self.reason: str | None = None
        self.longest = _steady(getattr(network.model, "config", None))
        if plain:
            self.reason = "mode is 'plain'"
        elif not network.single:
            self.reason = "an encoder-decoder"
        else:
            self.reason = why_plain(network.model, [network.location(0, "block_output")])
        if self.reason is not None:
            self.left = self.left[-1:]

    def now(self, base: Run) -> Way:
        """Return the way in which a base's cells are run."""
        if self.left[0].name == "plain":
            return self.left[0]
        if self.longest is not None and int(base.lengths.max()) > self.longest:
            return WAYS[-1]  # its positions depend on how long the longest row is
        base.restart()
        if not base.entries:
            self.left = self.left[-2:]
            self.less("what passes between the blocks is not [batch, sequence, width]")
        elif self.left[0].name == "tokens" and not base.keys:
            self.less("the network keeps no keys and values", "tokens")
        return self.left[0]

    def less(self, reason: str, name: str | None = None) -> None:
        """Leave less out; of the way of that name nothing more is tried."""
        self.left = [way for way in self.left[1:] if way.name != name]
        self.checked, self.trials, self.reason = False, 0, reason
        log.warning("grids are run %s: %s", _SAID[self.left[0]], reason)

    @torch.no_grad()
    def check(self, base: Run, table: Table, whole: Table, units: Units) -> bool:
        """Compare some units with hooked runs of them, until one of them could tell; False where less is left out now.

        Args:
            base: the run that is edited.
            table: the cells, run this way.
            whole: the same cells, run plainly, with all that they edit.
            units: what is run of them.
        """
        way = self.left[0]
        if self.checked or way.name == "plain" or not len(units):
            return True
        units = units.take(_sample(units))
        units, theirs = _told(base, whole, units.take(units.join.argsort(stable=True)))
        if theirs is None:
            return True  # all of them fail plainly too: it is not the way that is wrong
        try:
            alone = [torch.ones_like(units.join, dtype=torch.bool)]
            if not way.growing:
                alone = [units.join == join for join in torch.unique(units.join)]
            swept = [Sweep(base, units.take(which.nonzero()[:, 0]), way.name == "tokens").run(table) for which in alone]
            ours = self.network.tail(torch.cat(swept))
        except Exception as error:
            self.less(f"{type(error).__name__}: {error}".splitlines()[0])
            return False
        tolerance, same = self.tolerance, torch.equal(ours, theirs)  # 0 is as far from 0
        off = 0.0 if same else float((ours - theirs).abs().max() / theirs.abs().max())
        if not off <= tolerance:
            self.less(f"logits differ from the hooked run's by {off:.1g} of the largest")
            return False
        self.trials += 1
        changed = (theirs - base.reading[units.row.to(theirs.device)]).abs().max() > tolerance * theirs.abs().max()
        before = bool((units.before > 0).any()) or way.name == "layers"
        told = bool(changed) and before
        self.causal |= told and way.causal
        self.checked = told or self.trials >= TRIALS
        return True

    def looks_ahead(self, base: Run) -> bool:
        """Return whether a row's last token changes what earlier ones are; less is left out then."""
        if self.causal or not self.left[0].causal:
            return False
        row = int(base.lengths.argmax())
        start, stop = int(base.starts[row]), int(base.starts[row] + base.lengths[row])
        ids = base.rows.tokens.ids[row : row + 1, start:stop]
        other = ids.clone()
        other[0, -1] = int(ids[0, -1] == 0)
        runs = [self.network.run(Rows(Tokens(x, torch.ones_like(x))), (), True, logits=False) for x in (ids, other)]
        ours, theirs = (torch.stack(run.entries)[:, :, :-1] for run in runs)
        if ours.numel() and not float((ours - theirs).abs().max()) <= self.tolerance * float(theirs.abs().max()):
            self.less("a token sees later ones", "tokens")
            return True
        self.causal = ours.numel() > 0
        return False

    @property
    def tolerance(self) -> float:
        """Most that rounding makes of a difference, of the largest value."""
        return 1e-4 if precision(self.network.model)[1] in ("float32", "float64") else 5e-2


_SAID = {
    WAYS[1]: "layer by layer",
    WAYS[2]: "at all tokens of the layers behind the edit",
    WAYS[3]: "plainly",
}


def _sample(units: Units) -> Tensor:
    """Return units that can tell most: of late positions, of low layers, and one between."""
    late, low = units.before * 10_000, -units.join * 10_000
    picked = [(late - units.join).argmax(), (low - units.before).argmax(), torch.tensor(len(units) // 2)]
    found: Tensor = torch.unique(torch.stack([x.reshape(()) for x in picked]))
    return found


def _told(base: Run, whole: Table, units: Units) -> tuple[Units, Tensor | None]:
    """Return the units that run plainly, with their logits; None where none does."""
    with suppress(Exception):  # what is wrong with a cell is said when it is run
        return units, hooked(base, whole, units)
    found: list[Tensor] = []
    good: list[int] = []
    for i in range(len(units)):
        with suppress(Exception):
            found.append(hooked(base, whole, units.take(torch.tensor([i]))))
            good.append(i)
    return units.take(torch.tensor(good, dtype=torch.long)), torch.cat(found) if found else None
