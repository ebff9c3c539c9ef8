"""Sampling: distinct prompts, constraints, exact shares of flipped labels, and the same numbers in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from iitkit.causal import CausalModel, Together, draw_sources, sample_inputs, sample_sources
from iitkit.causal import variables as variables_module
from iitkit.causal.inputs import groups_of
from iitkit.causal.sampling import Wishes, balanced_values, rivals_of, take
from iitkit.causal.variables import Codes
from iitkit.errors import IITKitError

ROOT = Path(__file__).resolve().parents[2]


def parity(n: int = 10) -> CausalModel:
    """Two numbers; the answer is the parity of their sum, ``left_odd`` and ``right_odd`` lie between."""
    model = CausalModel(prompt=["{left} + {right}", "add {right} to {left}"], output="answer")
    model.variables(left=list(range(n)), right=list(range(n)))

    @model.mechanism
    def left_odd(left: int) -> bool:
        return left % 2 == 1

    @model.mechanism
    def right_odd(right: int) -> bool:
        return right % 2 == 1

    @model.mechanism
    def answer(left_odd: bool, right_odd: bool) -> str:
        return " odd" if left_odd != right_odd else " even"

    return model


def numbers(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_prompts_differ_and_are_consistent() -> None:
    model = parity()
    setting, templates = sample_inputs(model, 150, numbers(), templates=[0, 1])
    texts = [text.text for text in model.render(setting, templates)]
    assert len(texts) == len(set(texts)) == 150
    assert set(templates.tolist()) == {0, 1}
    rows = zip(*(model.values(setting, name) for name in ("left", "right", "answer")), strict=True)
    assert all(answer == (" odd" if (left + right) % 2 else " even") for left, right, answer in rows)


def test_fewer_where_there_are_no_more() -> None:
    setting, templates = sample_inputs(parity(4), 100, numbers(), templates=[1])
    assert templates.tolist() == [1] * 16
    assert sorted(zip(setting["left"].tolist(), setting["right"].tolist(), strict=True)) == [
        (left, right) for left in range(4) for right in range(4)
    ]


def test_among_restricts_the_words() -> None:
    model = parity()
    among = {"left": np.array([1, 3]), "right": np.array([0, 5, 7])}
    setting, _ = sample_inputs(model, 100, numbers(), among=among)
    drawn = set(zip(setting["left"].tolist(), setting["right"].tolist(), strict=True))
    assert drawn == {(1, 0), (1, 5), (1, 7), (3, 0), (3, 5), (3, 7)}


def test_constraints_hold() -> None:
    model = parity()

    @model.constraint
    def ordered(left: int, right: int) -> bool:
        return left < right

    setting, _ = sample_inputs(model, 1000, numbers())
    assert len(setting["left"]) == 45  # 10 · 9 / 2
    assert (setting["left"] < setting["right"]).all()


def test_a_rare_constraint_still_gives_all_that_were_asked_for() -> None:
    model = CausalModel(prompt="{left} {right}", output="answer")
    model.variables(left=list(range(60)), right=list(range(60)))

    @model.mechanism
    def answer(left: int) -> str:
        return f" {left}"

    @model.constraint
    def same(left: int, right: int) -> bool:  # one input in 60
        return left == right

    for seed in range(10):
        setting, _ = sample_inputs(model, 3, numbers(seed))
        assert len(set(setting["left"].tolist())) == 3
        assert (setting["left"] == setting["right"]).all()


def test_impossible_constraint() -> None:
    model = parity()

    @model.constraint
    def never(left: int) -> bool:
        return left < 0

    with pytest.raises(IITKitError, match="no input satisfies the constraint never: loosen it"):
        sample_inputs(model, 10, numbers())


def flips(model: CausalModel, pool: dict[str, Codes], bases: Codes, sources: Codes, variable: str) -> list[bool]:
    """Whether an interchange of ``left_odd`` or ``right_odd`` changes the parity: when the two parities differ."""
    exogenous = variable.removesuffix("_odd")
    values = np.asarray(model.exogenous[exogenous].values, dtype=np.int64)[pool[exogenous]]
    return [(int(values[base]) - int(values[source])) % 2 == 1 for base, source in zip(bases, sources, strict=True)]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_flipped_exactly_as_asked(share: float) -> None:
    model = parity()
    pool, _ = sample_inputs(model, 60, numbers())
    bases = np.arange(60)
    chosen = bases % 2
    wanted = (np.arange(60) < 60 * share).astype(np.int64)
    variables = ["left_odd", "right_odd"]
    sources, after = sample_sources(model, pool, bases, variables, chosen, wanted, numbers(1))
    for v, variable in enumerate(variables):
        rows = (chosen == v).nonzero()[0]
        assert flips(model, pool, bases[rows], sources[rows], variable) == wanted[rows].astype(bool).tolist()
    before = model.values(take(pool, bases), "answer")
    assert [a != b for a, b in zip(model.values(after, "answer"), before, strict=True)] == wanted.astype(bool).tolist()


def test_left_to_chance() -> None:
    model = parity()
    pool, _ = sample_inputs(model, 100, numbers())
    bases = np.tile(np.arange(100), 10)
    sources, _ = sample_sources(
        model, pool, bases, ["left_odd"], np.zeros(1000, dtype=np.int64), np.full(1000, -1), numbers(1)
    )
    assert 0.4 < np.mean(flips(model, pool, bases, sources, "left_odd")) < 0.6
    assert len(set(sources.tolist())) == 100  # every prompt serves as a source


def test_impossible_flip() -> None:
    model = parity()
    # all left numbers are even, so no source changes whether the left number is odd
    even, _ = sample_inputs(model, 20, numbers(), among={"left": np.array([0, 2, 4])})
    chosen, bases = np.zeros(3, dtype=np.int64), np.arange(3)
    message = (
        r"no source changes the label under an interchange of 'left_odd' \(pair 1 of 3, 20 prompts\): set data.flipped"
    )
    with pytest.raises(IITKitError, match=message):
        sample_sources(model, even, bases, ["left_odd"], chosen, np.array([0, 1, 0]), numbers())
    sources, _ = sample_sources(model, even, bases, ["left_odd"], chosen, np.array([0, -1, 0]), numbers())
    assert len(sources) == 3  # what is left to chance is no error


def identity(n: int) -> CausalModel:
    """Two words; the first is the answer: it is kept only by a source with the same first word."""
    model = CausalModel(prompt="{word} {other}", output="answer")
    model.variables(word=[f"w{i}" for i in range(n)], other=list(range(10)))

    @model.mechanism
    def answer(word: str) -> str:
        return f" {word}"

    return model


def test_rare_sources_are_found() -> None:
    model = identity(500)
    pool, _ = sample_inputs(model, 2000, numbers())
    bases = np.arange(60)
    wanted = np.zeros(60, dtype=np.int64)
    sources, after = sample_sources(model, pool, bases, ["word"], np.zeros(60, dtype=np.int64), wanted, numbers(1))
    assert (pool["word"][sources] == pool["word"][bases]).all()
    assert (after["answer"] == pool["answer"][bases]).all()
    assert (sources != bases).any()  # not merely each base itself


def test_same_seed_same_pairs() -> None:
    model = parity()
    pool, _ = sample_inputs(model, 50, numbers())
    again, _ = sample_inputs(model, 50, numbers())
    other, _ = sample_inputs(model, 50, numbers(1))
    assert all((pool[name] == again[name]).all() for name in pool)
    assert any((pool[name] != other[name]).any() for name in pool)


SCRIPT = """
import hashlib, json
import numpy as np
from iitkit.causal import sample_inputs, sample_sources
from iitkit.tasks import Agreement, IndirectObject, PronounGender
seen = []
for task, variable in ((Agreement(), "number"), (IndirectObject(), "io_position"), (PronounGender(), "gender")):
    generator = np.random.default_rng(3)
    words = task.split(generator)
    model = task.model
    pool, used = sample_inputs(model, 80, generator, task.templates(False), words["train"])
    bases, zeros = np.arange(40), np.zeros(40, dtype=np.int64)
    sources, after = sample_sources(model, pool, bases, [variable], zeros, np.arange(40) % 2, generator)
    texts = [text.text for text in model.render(pool, used)]
    seen.append([texts, sources.tolist(), model.values(after, model.output)])
print(hashlib.sha256(json.dumps(seen).encode()).hexdigest(), len(seen[1][0]), seen[1][0][0].split()[0])
"""


def test_same_numbers_in_another_process_with_other_hashes() -> None:
    found = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        found.append(done.stdout)
    assert found[0] == found[1]
    assert found[0].split()[1] == "80"


def test_sampling_does_not_depend_on_tabulation(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for most in (100_000, 0):
        monkeypatch.setattr(variables_module, "TABULATED", most)
        model = parity()
        generator = numbers(5)
        pool, used = sample_inputs(model, 60, generator, [0, 1])
        sources, after = sample_sources(
            model, pool, np.arange(60), ["left_odd"], np.zeros(60, dtype=np.int64), np.arange(60) % 2, generator
        )
        texts = [text.text for text in model.render(pool, used)]
        found.append((texts, sources.tolist(), model.values(after, "answer")))
    assert found[0] == found[1]


# --- what pairs may be asked to be like ---


def words() -> CausalModel:
    """A class for each of 12 words, 9 of them in one class; and a flag that turns the answer."""
    model = CausalModel(prompt="{word} {flag} {extra}", output="answer")
    model.variables(word=list(range(12)), flag=[False, True], extra=list(range(6)))

    @model.mechanism
    def kind(word: int) -> str:
        return "rare" if word >= 9 else "common"

    @model.mechanism
    def answer(kind: str, flag: bool) -> str:
        return " up" if (kind == "rare") != flag else " down"

    return model


def counts(values: list[object]) -> dict[object, int]:
    return {value: values.count(value) for value in dict.fromkeys(values)}


@pytest.mark.parametrize("wanted", [-1, 0, 1])
def test_values_of_the_variable_are_balanced(wanted: int) -> None:
    model = words()
    pool, _ = sample_inputs(model, 100, numbers())
    bases = np.arange(200) % 100
    plan = Together(["kind"], np.zeros((200, 1), dtype=np.int64))
    flipped = np.full(200, wanted)
    values = balanced_values(model, pool, bases, plan, flipped, numbers(1))
    sources, after = draw_sources(model, pool, bases, plan, Wishes(flipped, values=values), numbers(2))
    taken = [model.values(pool, "kind")[source] for source in sources[:, 0]]
    own = [model.values(pool, "kind")[base] for base in bases]
    if wanted == -1:  # 100 each, though 9 of 12 words are common
        assert counts(taken) == {"rare": 100, "common": 100} or counts(taken) == {"common": 100, "rare": 100}
    else:  # the only value that flips (or keeps) the answer is the other one (or its own)
        assert [one != other for one, other in zip(taken, own, strict=True)] == [wanted == 1] * 200
    changes = after["answer"] != pool["answer"][bases]
    assert wanted == -1 or (changes == (wanted == 1)).all()


def test_pairs_that_differ_in_only_some_variables() -> None:
    model = words()
    pool, templates = sample_inputs(model, 64, numbers(), varying=["flag", "extra"])
    groups = groups_of(model, pool, templates, ["flag", "extra"])
    assert len(set(groups.tolist())) == len(set(pool["word"].tolist()))
    bases = np.arange(64)
    plan = Together(["flag"], np.zeros((64, 1), dtype=np.int64))
    sources, after = draw_sources(model, pool, bases, plan, Wishes(bases % 2, groups=groups), numbers(3))
    assert (pool["word"][sources[:, 0]] == pool["word"]).all()
    assert (sources[:, 0] != bases).all()
    assert ((after["answer"] != pool["answer"]) == (bases % 2 == 1)).all()
    with pytest.raises(IITKitError, match="differ_in: 'kind' is computed from word: name exogenous variables"):
        sample_inputs(model, 64, numbers(), varying=["kind"])


def test_pairs_that_tell_rivals_apart() -> None:
    model = words()
    pool, _ = sample_inputs(model, 100, numbers())
    bases = np.arange(100)
    plan = Together(["kind"], np.zeros((100, 1), dtype=np.int64))
    any_ = np.full(100, -1)
    rivals = rivals_of(model, pool, ["output", "flag"])
    assert list(rivals) == ["copy the source's output", "flag"]
    sources, after = draw_sources(model, pool, bases, plan, Wishes(any_, rivals=rivals), numbers(4))
    source = {name: codes[sources[:, 0]] for name, codes in pool.items()}
    assert (after["answer"] != source["answer"]).all()
    turned = model.interchange({n: pool[n] for n in model.exogenous}, {"flag": {n: source[n] for n in model.exogenous}})
    assert (after["answer"] != turned["answer"]).all()


def test_rivals_that_no_pair_can_tell_apart() -> None:
    model = words()
    pool, _ = sample_inputs(model, 50, numbers())
    plan = Together(["answer"], np.zeros((5, 1), dtype=np.int64))
    wishes = Wishes(np.full(5, -1), rivals=rivals_of(model, pool, ["output"]))
    message = "no source is as wished and tells 'answer' from copy the source's output under an interchange of 'answer'"
    with pytest.raises(IITKitError, match=message):
        draw_sources(model, pool, np.arange(5), plan, wishes, numbers())
    with pytest.raises(IITKitError, match=r"tell_apart 'flg' is no variable\. Did you mean 'flag'\?"):
        rivals_of(model, pool, ["flg"])


def test_a_rival_model() -> None:
    model, other = words(), words()
    pool, _ = sample_inputs(model, 80, numbers())
    bases = np.arange(80)
    plan = Together(["kind"], np.zeros((80, 1), dtype=np.int64))
    rivals = rivals_of(model, pool, ["theirs"], {"theirs": (other, "kind")})
    with pytest.raises(IITKitError, match="tells 'kind' from theirs"):  # it is the same hypothesis
        draw_sources(model, pool, bases, plan, Wishes(np.full(80, -1), rivals=rivals), numbers())


def test_two_variables_from_one_source() -> None:
    model = words()
    pool, _ = sample_inputs(model, 60, numbers())
    bases = np.arange(60)
    plan = Together(["kind", "flag"], np.tile(np.array([[0, 1]]), (60, 1)), one_source=True)
    sources, after = draw_sources(model, pool, bases, plan, Wishes(bases % 2), numbers(5))
    assert sources.shape == (60, 1)
    assert (after["answer"] == pool["answer"][sources[:, 0]]).all()  # both causes of the answer are the source's
    assert ((after["answer"] != pool["answer"]) == (bases % 2 == 1)).all()
