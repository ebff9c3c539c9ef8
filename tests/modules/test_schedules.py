"""Schedules, by numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from iitkit.errors import IITKitError
from iitkit.modules.schedules import Schedule, as_schedule


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Schedule(50.0, 0.1), [50.0, 37.525, 25.05, 0.1]),
        (Schedule(100.0, 1.0, shape="exponential"), [100.0, 31.6227766, 10.0, 1.0]),
        (Schedule(1.0, 0.0, until=0.5), [1.0, 0.5, 0.0, 0.0]),
        (Schedule(3.0), [3.0, 3.0, 3.0, 3.0]),
        (as_schedule(2), [2.0, 2.0, 2.0, 2.0]),
    ],
)
def test_values(schedule: Schedule, values: list[float]) -> None:
    assert [schedule.at(progress) for progress in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(values, rel=1e-8)


def test_outside_the_run_it_stays_at_its_ends() -> None:
    assert Schedule(5.0, 1.0).at(-1.0) == 5.0
    assert Schedule(5.0, 1.0).at(2.0) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 1.0, "end": 0.0, "shape": "exponential"}, "exponential schedule from 1.0 to 0.0: expected numbers"),
        ({"start": 1.0, "shape": "cosine"}, "schedule shape 'cosine': expected 'linear' or 'exponential'"),
        ({"start": 1.0, "until": 0.0}, "schedule until 0.0: expected a share"),
        ({"start": math.inf}, "expected finite numbers"),
    ],
)
def test_errors(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(IITKitError, match=message):
        Schedule(**arguments)  # type: ignore[arg-type]
