"""Splits by word, value combination and template: disjoint, audited, the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iitkit.causal import CausalModel, sample_inputs
from iitkit.causal.splits import SPLITS, audit, check_split_by, divide
from iitkit.errors import IITKitError

ROOT = Path(__file__).resolve().parents[2]


def sums(n: int = 12, prompts: int = 5) -> CausalModel:
    model = CausalModel(prompt=[f"{i}: {{a}} + {{b}} =" for i in range(prompts)], output="answer")
    model.variables(a=list(range(n)), b=list(range(n)))

    @model.mechanism
    def total(a: int, b: int) -> int:
        return a + b

    @model.mechanism
    def answer(total: int) -> str:
        return f" {total}"

    return model


def drawn(model: CausalModel, by: Any, n: int = 400, seed: int = 0) -> dict[str, Any]:
    shares = divide(model, by, np.random.default_rng(seed), templates=range(len(model.templates)))
    return {
        split: sample_inputs(model, n, np.random.default_rng(1), share.templates, share.among, share.where)
        for split, share in shares.items()
    }


def values(model: CausalModel, of_split: Any, *names: str) -> set[Any]:
    return set(zip(*(model.values(of_split[0], name) for name in names), strict=True))


def test_value_combinations() -> None:
    model = sums()
    splits = drawn(model, [("a", "b")], n=1000)
    pairs = {split: values(model, splits[split], "a", "b") for split in SPLITS}
    assert [len(pairs[split]) for split in SPLITS] == [86, 29, 29]  # of 144: .6, .2, .2
    assert not any(pairs[one] & pairs[other] for one, other in combinations(SPLITS, 2))
    for split in SPLITS:  # the numbers are in every split; only the combinations are new
        assert len({a for a, _ in pairs[split]}) > 9


def test_combinations_of_what_is_computed() -> None:
    model = sums()
    splits = drawn(model, [["total"]], n=1000)
    totals = {split: {total for (total,) in values(model, splits[split], "total")} for split in SPLITS}
    assert sum(len(part) for part in totals.values()) == 23
    assert not any(totals[one] & totals[other] for one, other in combinations(SPLITS, 2))


def test_combinations_too_many_to_list_are_divided_by_a_hash() -> None:
    model = sums(1200)
    splits = drawn(model, [("a", "b")], n=3000)
    pairs = {split: values(model, splits[split], "a", "b") for split in SPLITS}
    assert not any(pairs[one] & pairs[other] for one, other in combinations(SPLITS, 2))
    shares = divide(model, [("a", "b")], np.random.default_rng(0), (0.5, 0.3, 0.2))
    everything, _ = sample_inputs(model, 20_000, np.random.default_rng(2))
    parts = np.array([share.where(everything) for share in shares.values() if share.where])
    assert (parts.sum(0) == 1).all()  # each in one split
    assert parts.mean(1).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.015)


def test_templates() -> None:
    model = sums()
    splits = drawn(model, ["template"])
    used = {split: set(splits[split][1].tolist()) for split in SPLITS}
    assert [len(used[split]) for split in SPLITS] == [3, 1, 1]
    assert set().union(*used.values()) == set(range(5))
    with pytest.raises(IITKitError, match=r"split_by: \[template\]: of 2 templates none is left for the \w+ split"):
        drawn(sums(prompts=2), ["template"])


def test_words_and_combinations_together() -> None:
    model = sums()
    splits = drawn(model, ["a", ("b", "total")])
    for one, other in combinations(SPLITS, 2):
        for names in (["a"], ["b", "total"]):
            assert not values(model, splits[one], *names) & values(model, splits[other], *names)


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (["aa"], r"split_by 'aa' is no variable\. Did you mean 'a'\?"),
        ([("a", "totl")], r"split_by 'totl' is no variable\. Did you mean 'total'\?"),
        (["total"], r"'total' is computed, so its values cannot be dealt out: .* or write \[total\]"),
        ([[]], "an empty combination: name its variables"),
    ],
)
def test_wrong_names(by: Any, message: str) -> None:
    with pytest.raises(IITKitError, match=message):
        check_split_by(sums().compile(), by, "split_by")


def test_too_few_combinations() -> None:
    with pytest.raises(IITKitError, match=r"no combination of a, b \(1 combinations\) is left for the \w+ split"):
        divide(sums(1).compile(), [("a", "b")], np.random.default_rng(0))


def test_the_audit_says_what_is_apart_and_what_is_shared() -> None:
    model = sums()
    assert audit(model, [("a", "b")], drawn(model, [("a", "b")])) == [
        "no prompts; no combinations of a × b in two splits"
    ]
    lines = audit(model, [], drawn(model, [], n=600))
    assert [line.split(" share ")[0] for line in lines] == [
        "train and validation",
        "train and test",
        "validation and test",
    ]
    assert lines[0].endswith("of 600 prompts: divide them with split_by")
    leaky = drawn(model, [("a", "b")])
    leaky["test"] = leaky["train"]
    with pytest.raises(IITKitError, match=r"split_by: train and test share 8\d of 8\d combinations of a × b"):
        audit(model, [("a", "b")], leaky)


def test_a_word_counts_wherever_it_stands() -> None:
    model = sums()
    splits = drawn(model, ["a", "b"])
    assert audit(model, ["a", "b"], splits) == ["no prompts; no words of a, b in two splits"]
    swapped = {**splits["test"][0], "a": splits["train"][0]["b"][: len(splits["test"][0]["a"])]}
    with pytest.raises(IITKitError, match=r"train and test share .* words of a, b"):
        audit(model, ["a", "b"], {**splits, "test": (swapped, splits["test"][1][: len(swapped["a"])])})


def test_splits_are_the_same_in_every_process() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests/causal'); import test_splits as t;"
        "s = t.drawn(t.sums(), ['a', ('b', 'total'), 'template']);"
        "print([sorted(t.values(t.sums().compile(), s[k], 'a', 'b')) for k in t.SPLITS], [s[k][1].tolist() for k in s])"
    )
    out = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "42")
    }
    assert len(out) == 1
    assert len(out.pop()) > 500
