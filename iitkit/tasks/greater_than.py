"""Greater-than: how does the network keep the year after which another must come?"""

from __future__ import annotations

from collections.abc import Sequence

from iitkit.causal import CausalModel
from iitkit.errors import IITKitError, choices
from iitkit.tasks.base import Task, words

TEMPLATES = [
    "The {event} lasted from the year CC{start} to the year CC",
    "The {event} began in the year CC{start} and ended in the year CC",
    "In CC{start} the {event} began, and it lasted until CC",
    "The {event} ran from the year CC{start} to the year CC",
    "The {event} started in CC{start} and lasted until CC",  # held out
]


class GreaterThan(Task):
    """``The {event} lasted from the year 17{start} to the year 17`` → the next of the offered years, e.g. ``48``.

    A later year alone is no label: after 1732, every year from 1733 on is right. So a few years are offered, and the
    answer is the first of them that is greater than ``start``: 24 up to 23, 48 up to 47, 74, 98. An interchange that
    sets ``start`` later rules the base's answer out, which is greater-than by itself; one that sets it earlier also
    needs the network to prefer the nearest year, as language models mostly do (``only_correct`` keeps the prompts
    where it does).

    Variables: ``event`` and ``start`` (two digits as they are written; exogenous), ``passed`` (number of offered years
    that are not greater than ``start``), ``output``. Hanna et al., 2023, https://arxiv.org/abs/2305.00586.

    Args:
        offered: years of the century that compete, two or more, in order; the last one bounds ``start``.
        century: first two digits of all years, 10 to 20.
        without: start years that are left out, e.g. those that a tokenizer joins with the century (GPT-2 knows 1776).
    """

    split_by = ("event", "start")
    held_out_templates = 1

    def __init__(
        self, offered: Sequence[int] = (24, 48, 74, 98), century: int = 17, without: Sequence[int] = ()
    ) -> None:
        self.offered, self.century, self.without = list(offered), century, list(without)
        if len(self.offered) < 2 or self.offered != sorted(set(self.offered)) or not self._years(self.offered):
            raise IITKitError(
                f"GreaterThan.offered: {self.offered}: expected two or more years from 0 to 99, each later than the "
                "one before"
            )
        if not 10 <= century <= 20:
            raise IITKitError(f"GreaterThan.century: {century}: expected 10 to 20")
        if not self._years(self.without):
            raise IITKitError(f"GreaterThan.without: {self.without}: expected years from 0 to 99")
        starts = [year for year in range(self.offered[-1]) if year not in self.without]
        empty = [
            last
            for first, last in zip([0, *self.offered], self.offered, strict=False)
            if len([year for year in starts if first <= year < last]) < 3
        ]
        if empty:
            raise IITKitError(
                f"GreaterThan.offered: {choices(empty)} is the answer of fewer than three start years: every split "
                "needs one; offer years that are farther apart"
            )
        self.starts = [f"{year:02d}" for year in starts]
        super().__init__()

    @staticmethod
    def _years(years: Sequence[int]) -> bool:
        return all(isinstance(year, int) and 0 <= year <= 99 for year in years)

    def causal_model(self) -> CausalModel:
        """Start → passed → output."""
        offered = [f"{year:02d}" for year in self.offered]
        model = CausalModel(prompt=[text.replace("CC", str(self.century)) for text in TEMPLATES], output="output")
        model.variables(event=[row["event"] for row in words("events")], start=self.starts)

        @model.mechanism(domain=list(range(len(offered))))
        def passed(start: str) -> int:
            return sum(year <= start for year in offered)  # of two digits each, so that years compare as texts do

        @model.mechanism(domain=offered)
        def output(passed: int) -> str:
            return offered[passed]

        return model
