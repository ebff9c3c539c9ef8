"""Successor: labels worked by hand, over the end of the week and the year, and from days to months."""

from __future__ import annotations

from typing import Any

import pytest
from asking import after_each, bound, computed, drawn, prompt, row, said, split_sizes

from iitkit.errors import IITKitError
from iitkit.tasks import Successor

MONDAY = row(name="Mary", item="Monday", offset=1)
SUNDAY = row(name="Tom", item="Sunday", offset=1)
DECEMBER = row(name="John", item="December", offset=1)


@pytest.fixture(scope="module")
def both() -> Successor:
    return Successor()


def test_prompts(both: Successor) -> None:
    assert prompt(both, MONDAY, 0) == "Mary says: Today: Monday. Tomorrow:"
    assert prompt(both, DECEMBER, 1) == "Diary of John. This month: December. Next month:"
    assert prompt(both, SUNDAY, 2) == "Note for Tom\nToday: Sunday\nTomorrow:"
    assert prompt(both, DECEMBER, 3) == "John's calendar. This month: December. Next month:"
    assert (both.templates(held_out=False), both.templates(held_out=True)) == ([0, 1, 2], [3])


def test_labels(both: Successor) -> None:
    assert computed(both, MONDAY) == {
        "kind": "days",
        "index": 0,
        "now": "Today",
        "then": "Tomorrow",
        "successor": "Tuesday",
    }
    assert computed(both, DECEMBER) == {
        "kind": "months",
        "index": 11,
        "now": "This month",
        "then": "Next month",
        "successor": "January",
    }
    assert said(both, SUNDAY) == "Monday"
    assert both.model.answers(both.model.run(MONDAY), "successor") == [" Tuesday"]


def test_interchanges(both: Successor) -> None:
    assert after_each(both, MONDAY, DECEMBER) == {
        "name": "Tuesday",
        "item": "January",
        "offset": "Tuesday",
        "kind": "February",  # index 0 is January
        "index": "Saturday",  # index 11 of seven days is 4, Friday
        "now": "Tuesday",
        "then": "Tuesday",
        "successor": "January",
    }
    assert after_each(both, DECEMBER, SUNDAY)["index"] == "August"  # index 6 is July
    assert after_each(both, DECEMBER, SUNDAY)["kind"] == "Saturday"  # index 11 of seven days is 4, Friday
    assert said(both, MONDAY, {"successor": (SUNDAY, "item")}) == "Sunday"


@pytest.mark.parametrize(
    ("offset", "day", "month", "then"),
    [
        (-2, "Saturday", "October", ("The day before yesterday", "The month before last")),
        (-1, "Sunday", "November", ("Yesterday", "Last month")),
        (1, "Tuesday", "January", ("Tomorrow", "Next month")),
        (2, "Wednesday", "February", ("The day after tomorrow", "The month after next")),
    ],
)
def test_offsets(offset: int, day: str, month: str, then: tuple[str, str]) -> None:
    task = Successor(offsets=[-2, -1, 1, 2])
    monday, december = {**MONDAY, "offset": [offset]}, {**DECEMBER, "offset": [offset]}
    assert (said(task, monday), said(task, december)) == (day, month)
    assert prompt(task, monday, 0) == f"Mary says: Today: Monday. {then[0]}:"
    assert prompt(task, december, 0) == f"Mary says: This month: December. {then[1]}:".replace("Mary", "John")
    assert said(task, MONDAY, {"offset": monday}) == day


def test_one_kind() -> None:
    assert set(drawn(Successor(kinds=["days"]), 200)["kind"]) == {"days"}
    assert set(drawn(Successor(), 200)["kind"]) == {"days", "months"}
    assert len(Successor(kinds=["months"]).model.domains["successor"]) == 12


@pytest.mark.parametrize("variable", ["index", "kind", "item", "successor"])
def test_splits_of_the_default_sizes(both: Successor, variable: str) -> None:
    assert split_sizes(both, variable) == {"train": 2000, "validation": 500, "test": 500}


def test_data(both: Successor) -> None:
    data = bound(both, "index", "kind")
    for split, n in {"train": 2000, "validation": 500, "test": 500, "test_templates": 200}.items():
        pairs = data.pairs(split)
        assert len(pairs) == n
        assert pairs.flipped.sum() == n / 2
        assert len(pairs.candidates[0]) == 19


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["weeks"]}, r"Successor.kinds: \['weeks'\]: expected a list of one or more of days, months"),
        ({"kinds": "days"}, r"Successor.kinds: 'days': expected a list of one or more of days, months"),
        ({"offsets": []}, r"Successor.offsets: \[\]: expected a list of one or more of -2, -1, 1, 2"),
        ({"offsets": [1, 1]}, r"Successor.offsets: \[1, 1\]: expected a list of one or more of -2, -1, 1, 2"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError, match=message):
        Successor(**options)
