"""Greater-than: labels worked by hand, the offered years, the list of events."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import after_each, bound, computed, drawn, prompt, row, said, share, split_sizes
from datasets import load_dataset

from iitkit.errors import IITKitError
from iitkit.tasks import GreaterThan, words

WORDS = Path(__file__).parents[2] / "datasets" / "words"
BASE = row(event="war", start="32")
LATER = row(event="siege", start="60")
EARLIER = row(event="drought", start="05")


@pytest.fixture(scope="module")
def task() -> GreaterThan:
    return GreaterThan()


def test_prompts(task: GreaterThan) -> None:
    assert prompt(task, BASE, 0) == "The war lasted from the year 1732 to the year 17"
    assert prompt(task, EARLIER, 1) == "The drought began in the year 1705 and ended in the year 17"
    assert prompt(task, LATER, 2) == "In 1760 the siege began, and it lasted until 17"
    assert prompt(task, BASE, 3) == "The war ran from the year 1732 to the year 17"
    assert prompt(task, BASE, 4) == "The war started in 1732 and lasted until 17"
    assert (task.templates(held_out=False), task.templates(held_out=True)) == ([0, 1, 2, 3], [4])
    assert prompt(GreaterThan(century=13), BASE, 0) == "The war lasted from the year 1332 to the year 13"


def test_labels(task: GreaterThan) -> None:
    assert computed(task, BASE) == {"passed": 1, "output": "48"}
    assert computed(task, LATER) == {"passed": 2, "output": "74"}
    starts = {"00": "24", "23": "24", "24": "48", "47": "48", "48": "74", "73": "74", "74": "98", "97": "98"}
    for start, later in starts.items():
        assert said(task, row(event="war", start=start)) == later, start
    assert task.model.answers(task.model.run(BASE), "output") == ["48"]


def test_interchanges(task: GreaterThan) -> None:
    assert after_each(task, BASE, LATER) == {"event": "48", "start": "74", "passed": "74", "output": "74"}
    assert after_each(task, BASE, EARLIER) == {"event": "48", "start": "24", "passed": "24", "output": "24"}
    assert said(task, BASE, {"start": LATER, "passed": EARLIER}) == "24"


def test_other_years() -> None:
    task = GreaterThan((50, 99), without=[76, 89])
    assert (said(task, row(event="war", start="49")), said(task, row(event="war", start="50"))) == ("50", "99")
    assert len(task.model.exogenous["start"]) == 97
    assert not {"76", "89", "99"} & set(task.model.exogenous["start"].values)


def test_answers_are_balanced(task: GreaterThan) -> None:
    values = drawn(task)
    for year in ("24", "48", "74", "98"):
        assert share(values["output"], year) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("variable", ["start", "passed"])
def test_splits_of_the_default_sizes(task: GreaterThan, variable: str) -> None:
    assert split_sizes(task, variable) == {"train": 2000, "validation": 500, "test": 500}


def test_splits_share_neither_events_nor_years(task: GreaterThan) -> None:
    parts = task.split(np.random.default_rng(0))
    for name in ("event", "start"):
        for one, other in combinations(parts, 2):
            assert not set(parts[one][name].tolist()) & set(parts[other][name].tolist())
    years = [int(str(task.model.exogenous["start"].values[code])) for code in parts["test"]["start"].tolist()]
    assert sorted({np.searchsorted([24, 48, 74, 98], year, side="right") for year in years}) == [0, 1, 2, 3]


def test_data(task: GreaterThan) -> None:
    data = bound(task, "start")
    for split, n in {"train": 2000, "validation": 500, "test": 500, "test_templates": 200}.items():
        pairs = data.pairs(split)
        assert (len(pairs), pairs.flipped.sum()) == (n, n / 2)
        assert pairs.candidates[0] == ["24", "48", "74", "98"]


def test_events(tmp_path: Path) -> None:
    rows = words("events")
    assert load_dataset(str(WORDS), "events", split="train", cache_dir=str(tmp_path)).to_list() == rows
    events = [row["event"] for row in rows]
    assert len(events) == len(set(events)) == 70
    assert events == sorted(events)
    assert all(event.isascii() and event.isalpha() and event.islower() for event in events)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offered": [50]}, r"GreaterThan.offered: \[50\]: expected two or more years from 0 to 99, each later"),
        ({"offered": [70, 40]}, r"offered: \[70, 40\]: expected two or more years"),
        ({"offered": [50, 100]}, r"offered: \[50, 100\]: expected two or more years"),
        ({"offered": [50, 52]}, "offered: 52 is the answer of fewer than three start years: every split needs one"),
        ({"century": 9}, "GreaterThan.century: 9: expected 10 to 20"),
        ({"without": [1776]}, r"GreaterThan.without: \[1776\]: expected years from 0 to 99"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError, match=message):
        GreaterThan(**options)
