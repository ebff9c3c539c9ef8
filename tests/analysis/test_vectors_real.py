"""Sentiment in SmolLM2 by a difference of means: the config as it is, beside random vectors of the same norms.

On one thread: how sums are divided among threads decides between words that are nearly as likely, and they are counted.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from running import iitkit

import iitkit as package

SHIFTS = {(16, -1.0): -5.46, (16, 1.0): 4.02, (20, 1.0): 5.17, (20, 2.0): 7.06}
"""(layer, strength) → shift of logit(good − bad): an earlier measurement, on openings that are not these."""
COUNTED = 0.5
"""Good words less bad ones that each opening's twenty tokens gain (or lose) by a vector, and not by a random one."""


@pytest.mark.real
def test_sentiment_of_the_real_model(tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        ran = iitkit("vector", "--config", "vector_smollm2.yaml")
    assert ran.code == 0, ran.err
    print(ran.out)
    root = tmp_path / "runs" / "vector_smollm2"
    effects = [json.loads(line) for line in (root / "effects.jsonl").read_text().splitlines()]
    assert {len(e["logits"]) for e in effects} == {24}
    found = {
        (e["name"], e["kind"], e["strength"]): (sum(e["logits"]) / 24, (e["good"] - e["bad"]) / 24) for e in effects
    }
    plain = found["none", "none", 0.0]
    for (layer, strength), reference in SHIFTS.items():
        name, sign = f"layer_{layer}", 1 if reference > 0 else -1
        (logit, words), (random, beside) = (found[name, kind, strength] for kind in ("vector", "random"))
        assert (logit - plain[0]) * sign >= 0.8 * abs(reference)
        assert abs(random - plain[0]) <= 0.5 * abs(reference)
        assert (words - plain[1]) * sign >= COUNTED
        assert (words - beside) * sign >= COUNTED
    kept = package.load(root)
    assert list(kept.interventions) == ["layer_16"]
