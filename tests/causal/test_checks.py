"""What is checked when a model is made: prompts, surface forms, constraints."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import pytest

from iitkit.causal import CausalModel
from iitkit.errors import IITKitError


def numbers(prompt: str, surface: Any = None, n: int = 3) -> CausalModel:
    model = CausalModel(prompt=prompt, output="big", surface=surface)
    model.variables(a=list(range(n)), b=list(range(n)))

    @model.mechanism
    def big(a: int, b: int) -> bool:
        return a + b >= 2

    return model


YES_NO = {True: [" yes", " Yes"], False: " no"}


def test_surface_forms() -> None:
    model = numbers("{a} and {b}", YES_NO).compile()
    setting = model.run({"a": [0, 2], "b": [0, 1]})
    assert model.values(setting, "big") == [False, True]
    assert model.answers(setting, "big") == [" no", " yes"]
    assert model.forms(True) == (" yes", " Yes")
    with pytest.raises(IITKitError, match="answer 1 has no surface form: surface says True, False"):
        model.forms(1)


@pytest.mark.parametrize(
    ("surface", "message"),
    [
        ({True: " yes"}, "answer False has no surface form: surface says True"),
        ({True: " yes", False: " no", "maybe": " maybe"}, "surface has 'maybe', which 'big' never is: its values are"),
        ({True: " yes", False: " yes"}, "surface: ' yes' stands for True and for False: each needs its own"),
        ({True: " yes", False: []}, r"surface of False: given \[\], expected a text or a list of texts"),
        ({True: " yes", False: ""}, "surface of False: given '', expected a text"),
        ({True: " yes", False: False}, r"surface of False: given False, expected a text .*quote it"),
        ({True: " yes", False: [" no", 12]}, "surface of False"),
        (None, r"label (True|False) of variable 'big' is a bool, expected a string: quote it"),
    ],
)
def test_wrong_surfaces(surface: Any, message: str) -> None:
    with pytest.raises(IITKitError, match=message):
        numbers("{a} and {b}", surface).compile()


@pytest.mark.parametrize("n", [3, 300], ids=["listed", "probed"])
def test_two_inputs_with_one_prompt(n: int) -> None:
    with pytest.warns(UserWarning, match=r"two inputs have one prompt, '.*', with .* answer.*: b .* or"):
        numbers("only {a}", YES_NO, n).compile()


def test_which_two_inputs() -> None:
    with pytest.warns(UserWarning, match="two inputs have one prompt") as caught:
        numbers("{a}{b}", YES_NO, 12).compile()
    assert len(caught) == 1
    # 1 and 10 read as 11 and 0 do
    assert "two inputs have one prompt, '110', with the same answer (True, True): a 1 or 11; b 10 or 0" in str(
        caught[0].message
    )


def test_prompts_that_differ_are_no_cause_for_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers("{a}, {b}", YES_NO, 12).compile()
        numbers("{a}, {b}", YES_NO, 300).compile()
        bound = numbers("{a}", YES_NO)

        @bound.constraint
        def one_of_them(b: int) -> bool:
            return b == 0

        bound.compile()  # those that constraints rule out are no inputs


def test_the_check_does_not_run_what_the_prompt_does_not_need() -> None:
    model = CausalModel(prompt="{a} {b} {c}", output="answer")
    model.variables(a=list(range(300)), b=list(range(300)), c=list(range(300)))
    calls = 0

    @model.mechanism
    def answer(a: int, b: int, c: int) -> str:
        nonlocal calls
        calls += 1
        return " x"

    start = time.perf_counter()
    model.compile()
    assert calls == 0
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("n", [3, 700], ids=["listed", "probed"])
def test_unsatisfiable_constraints_are_named(n: int) -> None:
    from iitkit.causal import sample_inputs

    start = time.perf_counter()
    model = numbers("{a} and {b}", YES_NO, n)

    @model.constraint
    def never(a: int) -> bool:
        return a < 0

    @model.constraint
    def sometimes(b: int) -> bool:
        return b > 0

    with pytest.raises(IITKitError, match="no input satisfies the constraint never: loosen it"):
        sample_inputs(model, 5, np.random.default_rng(0))
    other = numbers("{a} and {b}", YES_NO, n)

    @other.constraint
    def small(a: int) -> bool:
        return a < 1

    @other.constraint
    def large(a: int) -> bool:
        return a > 1

    with pytest.raises(IITKitError, match="no input satisfies the constraints small, large together: loosen one"):
        sample_inputs(other, 5, np.random.default_rng(0))
    assert time.perf_counter() - start < 2  # both


def test_candidates_of_another_kind() -> None:
    model = CausalModel(prompt="{x}", output="answer", candidates=["other"])
    model.variables(x=["a", "b"])

    @model.mechanism
    def answer(x: str) -> str:
        return f" {x}"

    @model.mechanism
    def other(x: str) -> str:
        return x

    with pytest.raises(IITKitError, match=r"candidate 'other' is 'a', 'b', output 'answer' is ' a', ' b'"):
        model.compile()


def test_a_failed_check_is_found_again() -> None:
    model = numbers("{a} and {b}", {True: " yes"})
    for _ in range(2):
        with pytest.raises(IITKitError, match="has no surface form"):
            model.compile()
