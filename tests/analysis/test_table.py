"""The report's numbers and table, by hand."""

from __future__ import annotations

import json
import math

from iitkit.analysis.table import format_table, with_intervals

METRICS = {
    "test/iia": 0.75,
    "test/iia_flipped": 0.5,
    "test/iia_kept": 1.0,
    "test/n": 20.0,
    "test/n_flipped": 10.0,
    "test/n_kept": 10.0,
    "test/top1": 0.25,
    "test/task_accuracy": 0.9,
    "random/test_templates/iia": 0.0,
    "random/test_templates/iia_flipped": 0.0,
    "random/test_templates/iia_kept": math.nan,
    "random/test_templates/n": 10.0,
    "random/test_templates/n_flipped": 10.0,
    "random/test_templates/n_kept": 0.0,
}


def test_intervals_by_hand() -> None:
    full = with_intervals(METRICS)
    assert full == {
        "test/iia": 0.75,
        "test/iia_ci95": [0.5313, 0.8881],  # Wilson for 15 of 20
        "test/iia_flipped": 0.5,
        "test/iia_flipped_ci95": [0.2366, 0.7634],  # 5 of 10
        "test/iia_kept": 1.0,
        "test/iia_kept_ci95": [0.7225, 1.0],  # 10 of 10
        "test/n": 20,
        "test/n_flipped": 10,
        "test/n_kept": 10,
        "test/top1": 0.25,
        "test/task_accuracy": 0.9,
        "random/test_templates/iia": 0.0,
        "random/test_templates/iia_ci95": [0.0, 0.2775],  # 0 of 10
        "random/test_templates/iia_flipped": 0.0,
        "random/test_templates/iia_flipped_ci95": [0.0, 0.2775],
        "random/test_templates/iia_kept": None,
        "random/test_templates/iia_kept_ci95": None,
        "random/test_templates/n": 10,
        "random/test_templates/n_flipped": 10,
        "random/test_templates/n_kept": 0,
    }
    assert isinstance(full["test/n"], int)
    json.dumps(full, allow_nan=False)  # strict JSON has no NaN


def test_table_by_hand() -> None:
    rows = [("trained, test", "test"), ("trained, train", "train"), ("random, templates", "random/test_templates")]
    header, *lines = format_table(METRICS, rows).splitlines()
    assert header.split() == ["all", "flipped", "kept", "top-1"]
    assert [" ".join(line.split()) for line in lines] == [
        "trained, test 0.750 [0.531, 0.888] 20 0.500 [0.237, 0.763] 10 1.000 [0.722, 1.000] 10 0.250",
        "random, templates 0.000 [0.000, 0.278] 10 0.000 [0.000, 0.278] 10 – –",
    ]  # what was not measured (train) has no line


def test_columns_line_up() -> None:
    rows = [("trained, test", "test"), ("random, templates", "random/test_templates")]
    header, *lines = format_table(METRICS, rows).splitlines()
    ends = [header.index(word) + len(word) for word in ("all", "flipped", "kept", "top-1")]
    assert {len(header), *(len(line) for line in lines)} == {ends[-1]}
    for end in ends[:-1]:
        assert all(line[end] == " " and line[end - 1] != " " for line in lines)


def test_no_rows() -> None:
    assert with_intervals({}) == {}
    assert len(format_table({}, [("trained", "test")]).splitlines()) == 1
