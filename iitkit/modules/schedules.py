"""Schedules: numbers that change in the course of training, as plain arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from iitkit.errors import IITKitError


@dataclass(frozen=True)
class Schedule:
    """A number that goes from ``start`` to ``end`` while training goes from its first step to its last.

    >>> halfway = Schedule(50.0, 0.5, shape="exponential").at(0.5)
    >>> round(halfway, 6)
    5.0

    Args:
        start: value at the first step.
        end: value at the last step; ``start`` unless said.
        shape: linear, or exponential (equal factors in equal times; both values above 0).
        until: share of training after which the end is reached, in (0, 1].

    Raises:
        IITKitError: values that the shape cannot join, or a share outside (0, 1].
    """

    start: float
    end: float | None = None
    shape: Literal["linear", "exponential"] = "linear"
    until: float = 1.0

    def __post_init__(self) -> None:
        if self.shape not in ("linear", "exponential"):
            raise IITKitError(f"schedule shape {self.shape!r}: expected 'linear' or 'exponential'")
        if not (math.isfinite(self.start) and math.isfinite(self.last)):
            raise IITKitError(f"schedule from {self.start} to {self.last}: expected finite numbers")
        if self.shape == "exponential" and min(self.start, self.last) <= 0:
            raise IITKitError(f"exponential schedule from {self.start} to {self.last}: expected numbers above 0")
        if not 0 < self.until <= 1:
            raise IITKitError(f"schedule until {self.until}: expected a share of training above 0, at most 1")

    @property
    def last(self) -> float:
        """The value at the end."""
        return self.start if self.end is None else self.end

    def at(self, progress: float) -> float:
        """Return the value after a share ``progress`` of training, 0 at the first step and 1 at the last."""
        share = min(max(progress / self.until, 0.0), 1.0)
        if share == 1.0:
            return self.last
        if self.shape == "exponential":
            return float(self.start * (self.last / self.start) ** share)
        return float(self.start + (self.last - self.start) * share)


def as_schedule(value: float | Schedule) -> Schedule:
    """Return a constant as a schedule."""
    return value if isinstance(value, Schedule) else Schedule(float(value))
