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

SHIFTS = {  # layer, strength → shift of logit(good − bad), of good words less bad words: an earlier measurement
    (16, -1.0): (-5.46, -10),
    (16, 1.0): (4.02, 6),
    (20, 1.0): (5.17, 9),
    (20, 2.0): (7.06, 13),
}


@pytest.mark.real
def test_sentiment_of_the_real_model(tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        ran = iitkit("vector", "--config", "vector_smollm2.yaml")
    assert ran.code == 0, ran.err
    print(ran.out)
    root = tmp_path / "runs" / "vector_smollm2"
    effects = [json.loads(line) for line in (root / "effects.jsonl").read_text().splitlines()]
    found = {
        (e["name"], e["kind"], e["strength"]): (sum(e["logits"]) / len(e["logits"]), e["good"] - e["bad"])
        for e in effects
    }
    plain = found["none", "none", 0.0]
    for (layer, strength), shifts in SHIFTS.items():
        name = f"layer_{layer}"
        for now, before, reference in zip(found[name, "vector", strength], plain, shifts, strict=True):
            assert (now - before) * (1 if reference > 0 else -1) >= 0.8 * abs(reference)
        random = found[name, "random", strength][0] - plain[0]
        assert abs(random) <= 0.5 * abs(shifts[0])
    kept = package.load(root)
    assert list(kept.interventions) == ["layer_16"]
