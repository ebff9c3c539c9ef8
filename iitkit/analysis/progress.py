"""How far a measurement is: a bar with the time left, and what it will cost before it begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from tqdm import tqdm

from iitkit.models.grids import Cost, Progress

FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
Tell = Callable[[str], None]
"""Is told lines that a user should see before and while a measurement runs."""


class Bar:
    """A bar over examples, each of which is a grid.

    Args:
        what: what is measured.
        examples: how many examples.
        show: whether to show it; where stderr is a terminal unless said.
    """

    def __init__(self, what: str, examples: int, show: bool | None = None) -> None:
        disable = None if show is None else not show
        self._bar = tqdm(total=float(examples), desc=what, bar_format=FORMAT, disable=disable, leave=False)
        self._done = 0
        self.size = 1
        """Examples that are run together at present."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()

    def part(self, progress: Progress) -> None:
        """Show how far the present examples are."""
        self._to(self._done + self.size * progress.share)

    def share(self, number: int, of: int) -> Callable[[Progress], None]:
        """Return what shows how far one of several parts of the present examples is, alike in their work."""
        return lambda progress: self.part(replace(progress, share=(number + progress.share) / of))

    def done(self, examples: int = 1) -> None:
        """Count finished examples."""
        self._done += examples
        self._to(self._done)

    def kept(self, examples: int) -> None:
        """Count examples that took no time, so that the time left is not told by them."""
        self._done += examples
        if not self._bar.disable:
            self._bar.n += examples
            self._bar.initial += examples
            self._bar.last_print_n = self._bar.n
            self._bar.refresh()

    def _to(self, share: float) -> None:
        self._bar.update(max(0.0, share - self._bar.n))


@dataclass(frozen=True)
class Left:
    """What is left to do.

    Args:
        examples: how many examples.
        times: how many times the work of the present one.
    """

    examples: int
    times: float


class Estimate:
    """Tells once what a measurement takes: when the first of the examples that are not kept yet is run.

    Args:
        tell: is told; None for nobody.
        what: what an example is called.
    """

    def __init__(self, tell: Tell | None, what: str) -> None:
        self._tell, self._what = tell, what

    def of(self, cost: Callable[[], Cost], left: Left) -> None:
        """Tell, if that was not done yet.

        Args:
            cost: estimates the present example.
            left: what is left to do.
        """
        if (tell := self._tell) is not None:
            self._tell = None
            tell(told(cost(), left.times, counted(left.examples, self._what)))


def counted(n: int, what: str) -> str:
    """Return a number of things.

    >>> counted(1, "fact"), counted(20, "fact")
    ('1 fact', '20 facts')
    """
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def told(cost: Cost, times: float, what: str) -> str:
    """Return a line on what a measurement takes.

    Args:
        cost: of one example.
        times: how many such examples.
        what: of what, e.g. ``20 facts``.
    """
    saved = f", {cost.filled} of them cannot change anything" if cost.filled else ""
    speed = f", {cost.plain / cost.steps:.1f} times fewer than of whole runs" if 0 < cost.steps < cost.plain else ""
    return (
        f"{what}: {cost.cells} cells each{saved}; {cost.steps * times / 1e6:.2f} million tokens × layers{speed}; "
        f"about {duration(cost.seconds * times)}"
    )


def duration(seconds: float) -> str:
    """Return a time as one reads it.

    >>> duration(4.2), duration(75), duration(7300)
    ('4 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
