"""Faults that were found in review: each gave wrong numbers, or data that depended on what was asked before."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from iitkit.causal import CausalModel, Open, Symbols, sample_inputs
from iitkit.causal.hypotheses import COPY
from iitkit.causal.plans import Together
from iitkit.causal.sampling import Wishes, balanced_values, draw_sources, rivals_of
from iitkit.causal.splits import audit, divide
from iitkit.errors import IITKitError


def adder(answer: Callable[..., Any], vectorised: bool = False, prompt: Any = "{a} {b}", **options: Any) -> CausalModel:
    """A model of two numbers from 1 to 3 whose answer is what a function of them says."""
    model = CausalModel(prompt=prompt, output="answer", **options)
    model.variables(a=[1, 2, 3], b=[1, 2, 3])
    answer.__name__ = "answer"
    model.mechanism(vectorised=vectorised)(answer)
    return model


# --- values ---


def test_a_numpy_scalar_is_the_same_value_as_pythons() -> None:
    # numpy's string and Python's had two codes: a pair whose label is " x" before and after counted as flipped
    model = adder(lambda a, b: np.str_(" x") if a == 1 else " x")
    setting = model.run({"a": [1, 2], "b": [1, 1]})
    assert setting["answer"].tolist() == [0, 0]
    assert [type(value) for value in model.domains["answer"].values] == [str]


def test_numpy_scalars_in_a_tuple_are_pythons_values() -> None:
    model = CausalModel(prompt="{a} {b}", output="answer")
    model.variables(a=[1, 2], b=[1, 2])

    @model.mechanism(vectorised=True)
    def both(a: Any, b: Any) -> Any:
        return list(zip(a, b, strict=True))

    @model.mechanism
    def answer(both: tuple[int, int]) -> str:
        return str(both)

    assert model.values(model.run({"a": [1], "b": [2]}), "answer") == ["(1, 2)"]


def test_what_an_open_variable_draws_in_an_array_are_pythons_values() -> None:
    model = CausalModel(prompt="{code}", output="answer")
    model.variables(code=Open(lambda generator, n: generator.integers(3, size=n)))

    @model.mechanism
    def answer(code: int) -> str:
        return str(code % 2)

    setting, _ = sample_inputs(model, 3, np.random.default_rng(0))
    assert sorted(model.values(setting, "code")) == [0, 1, 2]
    model.run({"code": [0, 1, 2]})
    assert len(model.domains["code"]) == 3  # not 6


def test_true_is_not_one_in_a_tuple_either() -> None:
    model = CausalModel(prompt="{a}", output="answer")
    model.variables(a=[1, 2])

    @model.mechanism
    def flag(a: int) -> tuple[object]:
        return (True,) if a == 1 else (1,)

    @model.mechanism
    def answer(flag: tuple[object]) -> str:
        return str(flag)

    assert model.values(model.run({"a": [1, 2]}), "answer") == ["(True,)", "(1,)"]


def test_nan_in_a_tuple_is_refused() -> None:
    model = adder(lambda a, b: "x")
    with pytest.raises(IITKitError, match="'v' has the value NaN"):
        model.variables(v=[(1.0, float("nan"))])


@pytest.mark.parametrize(
    ("values", "says"),
    [([2**63, -1, 5], ["9223372036854775808", "-1", "5"]), (["x\0", "x"], ["x\0", "x"])],
)
def test_vectorised_mechanisms_get_values_as_they_are(values: list[Any], says: list[str]) -> None:
    model = CausalModel(prompt="{a}", output="answer")
    model.variables(a=values)

    @model.mechanism(vectorised=True)
    def answer(a: Any) -> list[str]:
        return [str(value) for value in a]

    assert model.values(model.run({"a": values}), "answer") == says


def test_a_vectorised_mechanism_returns_one_value_a_row() -> None:
    with pytest.raises(IITKitError, match=r"an array of shape \[9, 2\], expected \[9\]"):
        adder(lambda a, b: np.stack([a, b], 1), vectorised=True).compile()


def test_two_answers_of_one_text_are_refused_where_they_become_classes() -> None:
    with pytest.raises(IITKitError, match="the values 1 and '1', which have one text"):
        adder(lambda a, b: 1 if a == 1 else "1", prompt=Symbols("{a} {b}")).compile()


# --- inputs ---


def test_every_integer_array_holds_codes() -> None:
    model = adder(lambda a, b: str(10 * a + b))
    for kind in (np.int32, np.int64, np.uint8):
        setting = model.run({"a": np.asarray([0, 2], dtype=kind), "b": [1, 2]})
        assert model.values(setting, "answer") == ["11", "32"]


@pytest.mark.parametrize("given", [1, "12", torch.tensor([1, 2]), np.zeros((2, 1), dtype=np.int64), {1: 2}, None])
def test_inputs_that_are_no_column_are_refused(given: Any) -> None:
    model = adder(lambda a, b: str(a + b))
    with pytest.raises(IITKitError, match="variable 'a': given a "):
        model.run({"a": given, "b": [1, 2]})


def test_no_rows_of_a_model_that_has_met_no_value() -> None:
    model = CausalModel(prompt="{a}", output="answer")
    model.variables(a=Open(lambda generator, n: list(range(n))))

    @model.mechanism
    def answer(a: int) -> str:
        return str(a)

    @model.constraint
    def positive(a: int) -> bool:
        return a > 0

    assert model.allowed(model.run({"a": []})).tolist() == []


# --- hypotheses ---


def yes_or_no(text: bool) -> CausalModel:
    """Whether a number is another: as a truth with surface forms, or as the text itself."""
    surface = None if text else {True: [" yes", " Yes"], False: " no"}
    model = CausalModel(prompt="{a} {b}", output="answer", surface=surface)
    model.variables(a=[1, 2, 3], b=[1, 2, 3])

    @model.mechanism
    def one(a: int) -> int:
        return a

    @model.mechanism
    def answer(one: int, b: int) -> object:
        return (" Yes" if one == b else " no") if text else one == b

    return model


def test_models_whose_answers_have_one_text_agree() -> None:
    # True with the surface " yes" or " Yes" was never the rival's answer " Yes", so that all rivals seemed told apart
    model, other = yes_or_no(text=False), yes_or_no(text=True)
    inputs = {"a": [1, 2, 3, 1], "b": [1, 1, 2, 2]}, {"a": [2, 1, 1, 2], "b": [3, 1, 2, 1]}
    assert model.distinguish({"one": "one", "same": (other, "one")}, inputs).between("one", "same") == 0
    pool = model.run(inputs[0])
    rival = rivals_of(model, pool, ["other.one"], {"other.one": (other, "one")})["other.one"]
    bases, sources = np.asarray([0, 1]), np.asarray([[1], [0]])
    after = Together(["one"], np.zeros((2, 1), dtype=np.int64)).after(model, pool, bases, sources, np.arange(2))
    assert rival(bases, sources).tolist() == after["answer"].tolist()


def test_several_variables_of_a_hypothesis_may_be_a_tuple() -> None:
    model = yes_or_no(text=True)
    pairs = {"a": [1], "b": [2]}, {"a": [3], "b": [3]}
    assert model.distinguish({"both": ("one", "b")}, pairs).between("both", COPY) == 0
    with pytest.raises(IITKitError, match="hypothesis 'odd' is"):
        model.distinguish({"odd": (model, "one", "b")}, pairs)


def test_pairs_are_told_apart_from_a_copy_of_each_of_their_sources() -> None:
    model = CausalModel(prompt="{w} {x} {y}", output="answer")
    model.variables(w=["a", "b"], x=["a", "b"], y=["a", "b"])

    @model.mechanism
    def answer(w: str, x: str, y: str) -> str:
        return "odd" if [w, x, y].count("a") % 2 else "even"

    pool, _ = sample_inputs(model, 8, np.random.default_rng(0))
    plan = Together(["w", "x"], np.tile([0, 1], (100, 1)))
    wishes = Wishes(np.full(100, -1), rivals=rivals_of(model, pool, ["output"]))
    sources, after = draw_sources(model, pool, np.arange(100) % 8, plan, wishes, np.random.default_rng(1))
    assert (pool["answer"][sources] != after["answer"][:, None]).all()


def test_a_variable_called_output_is_that_variable() -> None:
    model = CausalModel(prompt="{a} {b}", output="answer")
    model.variables(a=["a", "b"], b=["a", "b"])

    @model.mechanism
    def output(a: str) -> str:
        return a

    @model.mechanism
    def answer(output: str, b: str) -> str:
        return output + b

    pool = model.run({"a": ["a", "b"], "b": ["a", "b"]})
    said = rivals_of(model, pool, ["output"])["output"](np.asarray([0]), np.asarray([[1]]))
    assert model.values({"answer": said}, "answer") == ["ba"]  # of the base a a with the source's first letter


# --- sampling ---


def test_all_inputs_are_found_where_few_are_allowed() -> None:
    model = CausalModel(prompt="{a} {b}", output="answer")
    model.variables(a=list(range(250)), b=list(range(250)))

    @model.mechanism
    def answer(a: int, b: int) -> str:
        return str((a + b) % 3)

    @model.constraint
    def small(a: int, b: int) -> bool:
        return a + b < 7

    setting, _ = sample_inputs(model, 100, np.random.default_rng(1))  # 28 of 62 500: 3 were found
    assert len(set(zip(setting["a"].tolist(), setting["b"].tolist(), strict=True))) == len(setting["a"]) == 28


def test_a_round_that_brings_nothing_does_not_end_the_search() -> None:
    model = CausalModel(prompt="{a} {b}", output="answer")
    model.variables(a=list(range(3000)), b=list(range(3000)))

    @model.mechanism(domain=["0", "1"])
    def answer(a: int) -> str:
        return str(a % 2)

    @model.constraint(vectorised=True)
    def small(a: Any) -> Any:
        return a < 2

    for seed in range(3):
        assert len(sample_inputs(model, 20, np.random.default_rng(seed))[1]) == 20  # of 6000: 1, 1 and 9 were found


def test_what_a_sampler_never_draws_is_not_listed() -> None:
    model = CausalModel(prompt="{a} {b}", output="answer")
    model.variables(a=[0, 1, 2], b=[0, 1, 2])

    @model.mechanism
    def answer(a: int, b: int) -> str:
        return str(a + b)

    @model.sampler
    def alike(generator: np.random.Generator, n: int) -> dict[str, list[int]]:
        drawn = generator.integers(3, size=n).tolist()
        return {"a": drawn, "b": drawn}

    setting, _ = sample_inputs(model, 9, np.random.default_rng(0))
    assert sorted(model.values(setting, "answer")) == ["0", "2", "4"]


def test_values_are_balanced_in_little_memory() -> None:
    model = CausalModel(prompt="{a} {b}", output="answer")
    model.variables(a=list(range(1000)), b=list(range(1000)))

    @model.mechanism(domain=list("0123456"), vectorised=True)
    def answer(a: Any, b: Any) -> Any:
        return ((a + b) % 7).astype(str)

    pool, _ = sample_inputs(model, 5000, np.random.default_rng(0))
    plan = Together(["a"], np.zeros((5000, 1), dtype=np.int64))
    tracemalloc.start()
    values = balanced_values(model, pool, np.arange(5000), plan, np.full(5000, -1), np.random.default_rng(1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6  # bytes; one array of all pairs by all values, of which there were six, is 40e6
    assert set(np.bincount(values)[np.unique(pool["a"])].tolist()) <= {4, 5, 6}  # 5000 pairs of some 990 values


# --- splits ---


def by_open_values(order: list[str]) -> dict[str, list[str]]:
    model = CausalModel(prompt="{code}", output="answer")
    model.variables(code=Open(lambda generator, n: [f"w{i}" for i in generator.integers(3000, size=n)]))

    @model.mechanism(domain=["0", "1"])
    def answer(code: str) -> str:
        return str(len(code) % 2)

    shares = divide(model, [("code",)], np.random.default_rng(0))
    found = {}
    for split in order:
        generator = np.random.default_rng([1, len(split)])
        setting, _ = sample_inputs(model, 50, generator, where=shares[split].where)
        found[split] = model.values(setting, "code")
    return found


def test_open_values_go_to_the_same_split_whatever_was_asked_first() -> None:
    one, other = by_open_values(["train", "test"]), by_open_values(["test", "train"])
    assert one == other
    assert not set(one["train"]) & set(one["test"])


def test_a_long_word_list_is_divided_at_once() -> None:
    model = CausalModel(prompt="{word}", output="answer")
    model.variables(word=[f"w{i}" for i in range(30_000)])

    @model.mechanism(vectorised=True)
    def answer(word: Any) -> Any:
        return np.where(word < "w3", "a", "b")

    begun = time.process_time()
    among = divide(model, ["word"], np.random.default_rng(0))
    assert time.process_time() - begun < 2
    assert [len(among[split].among["word"]) for split in ("train", "validation", "test")] == [18_000, 6000, 6000]


def test_held_out_templates_may_share_words_with_the_test_split_only() -> None:
    model = CausalModel(prompt=["{a} and {b}", "{a} or {b}"], output="answer")
    model.variables(a=list("pqr"), b=list("stu"))

    @model.mechanism
    def answer(a: str) -> str:
        return a

    def split(words: list[str], template: int) -> tuple[dict[str, Any], Any]:
        return model.run({"a": words, "b": ["s"] * len(words)}), np.full(len(words), template)

    splits = {"train": split(["p"], 0), "test": split(["q"], 0), "test_templates": split(["q"], 1)}
    assert audit(model, ["a"], splits, {"test_templates": "test"}) == ["no prompts; no words of a in two splits"]
    splits["test_templates"] = split(["p"], 1)
    with pytest.raises(IITKitError, match="train and test_templates share 1 of 1 words of a"):
        audit(model, ["a"], splits, {"test_templates": "test"})
