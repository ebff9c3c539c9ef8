"""What may be declared: domains, open variables, vectorised mechanisms, samplers; and the checks of each."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from iitkit.causal import CausalModel, Open, Symbols, sample_inputs
from iitkit.causal import variables as variables_module
from iitkit.errors import IITKitError


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def prices(vectorised: bool = True) -> CausalModel:
    """Is a price within two bounds? Large enough not to be tabulated entry by entry when it is made."""
    model = CausalModel(prompt="{price} between {low} and {high}?", output="answer")
    model.variables(price=list(range(400)), low=list(range(400)), high=list(range(400)))

    @model.mechanism(vectorised=vectorised)
    def above(price: Any, low: Any) -> Any:
        return price >= low

    @model.mechanism(vectorised=vectorised, domain=[False, True])
    def below(price: Any, high: Any) -> Any:
        return price <= high

    @model.mechanism
    def answer(above: bool, below: bool) -> str:
        return " yes" if above and below else " no"

    return model


@pytest.mark.parametrize("vectorised", [False, True])
def test_vectorised_mechanisms_are_the_same(vectorised: bool) -> None:
    model = prices(vectorised).compile()
    rng = generator()
    rows = rng.integers(400, size=(3, 5000))
    setting = model.run(dict(zip(("price", "low", "high"), rows.tolist(), strict=True)))
    expected = [" yes" if low <= price <= high else " no" for price, low, high in rows.T.tolist()]
    assert model.values(setting, "answer") == expected
    assert {type(value) for value in model.domains["above"].values} == {bool}  # not numpy's
    assert model.domains["below"].values == [False, True]
    assert model.domains["above"].complete is vectorised
    assert model.domains["below"].complete  # declared


def test_vectorised_mechanisms_of_open_variables_run_on_what_is_drawn() -> None:
    model = CausalModel(prompt="{a} {b}", output="answer")
    model.variables(a=Open(lambda g, n: g.normal(size=n).tolist()), b=Open(lambda g, n: g.normal(size=n).tolist()))

    @model.mechanism(vectorised=True)
    def less(a: Any, b: Any) -> Any:
        return a < b

    @model.mechanism
    def answer(less: bool) -> str:
        return " yes" if less else " no"

    setting, _ = sample_inputs(model, 500, generator())
    a, b = model.values(setting, "a"), model.values(setting, "b")
    assert len(set(a)) == 500
    assert model.values(setting, "answer") == [" yes" if x < y else " no" for x, y in zip(a, b, strict=True)]
    again = sample_inputs(prices(), 10, generator())[0]
    assert len(again["price"]) == 10


def test_open_variables_are_drawn_by_the_seed() -> None:
    def drawn(seed: int) -> list[Any]:
        model = CausalModel(prompt="{a}", output="answer")
        model.variables(a=Open(lambda g, n: g.integers(10**9, size=n).tolist()))

        @model.mechanism
        def answer(a: int) -> str:
            return f" {a % 2}"

        return model.values(sample_inputs(model, 20, generator(seed))[0], "a")

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_an_open_variable_takes_what_it_is_given() -> None:
    model = CausalModel(prompt="{a}", output="answer")
    model.variables(a=Open(lambda g, n: list(range(n - 1))))

    @model.mechanism
    def answer(a: int) -> str:
        return f" {a + 1}"

    assert model.values(model.run({"a": [41, 7]}), "answer") == [" 42", " 8"]
    with pytest.raises(IITKitError, match="open variable 'a': draw returned 999 values, expected 1000"):
        sample_inputs(model, 10, generator())


@pytest.mark.parametrize("eager", [100_000, 0], ids=["tabulated", "lazy"])
def test_a_mechanism_that_leaves_its_domain(eager: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variables_module, "TABULATED", eager)
    model = CausalModel(prompt="{x}", output="answer")
    model.variables(x=[1, 2, 3])

    @model.mechanism(domain=[0, 1])
    def odd(x: int) -> int:
        return x % 2 if x < 3 else 3

    @model.mechanism
    def answer(odd: int) -> str:
        return f" {odd}"

    message = r"mechanism 'odd' returned 3 \(int\) on \{'x': 3\}: outside its declared domain 0, 1"
    with pytest.raises(IITKitError, match=message):
        model.run({"x": [1, 2, 3]})


def test_a_declared_domain_says_the_order_and_what_is_never_reached() -> None:
    model = CausalModel(prompt="{x}", output="answer")
    model.variables(x=[1, 3])

    @model.mechanism(domain=["even", "odd"])
    def parity(x: int) -> str:
        return "odd" if x % 2 else "even"

    @model.mechanism
    def answer(parity: str) -> str:
        return f" {parity}"

    assert model.compile().domains["parity"].values == ["even", "odd"]
    after = model.run({"x": [1]}, do={"parity": ["even"]})
    assert model.values(after, "answer") == [" even"]
    with pytest.raises(IITKitError, match=r"variable 'parity' has no value 'evn'\. Did you mean 'even'\?"):
        model.run({"x": [1]}, do={"parity": ["evn"]})


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda a: a[:1], r"mechanism 'answer' \(vectorised\) returned 1 values for 3 rows: expected one a row"),
        (lambda a: 7, r"mechanism 'answer' \(vectorised\) returned a int for 3 rows"),
        (lambda a: [None, " a", " b"], r"mechanism 'answer' returned None on \{'x': 1\}"),
        (lambda a: a.nothing, r"mechanism 'answer' \(vectorised\) failed on 3 rows: AttributeError"),
        (lambda a: [" a", ["b"], " c"], r"variable 'answer': value \['b'\] is not hashable"),
    ],
)
def test_wrong_vectorised_mechanisms(result: Any, message: str) -> None:
    model = CausalModel(prompt="{x}", output="answer")
    model.variables(x=[1, 2, 3])

    @model.mechanism(vectorised=True)
    def answer(x: Any) -> Any:
        return result(x)

    with pytest.raises(IITKitError, match=message):
        model.compile()


def equal_halves() -> CausalModel:
    model = CausalModel(prompt="{left} {right}", output="answer")
    model.variables(left=list(range(50)), right=list(range(50)))

    @model.mechanism
    def answer(left: int, right: int) -> str:
        return " same" if left == right else " other"

    return model


def test_samplers_draw_variables_together() -> None:
    model = equal_halves()
    plain, _ = sample_inputs(model, 1000, generator())
    assert np.mean([value == " same" for value in model.values(plain, "answer")]) < 0.05

    @model.sampler
    def halves(g: np.random.Generator, n: int) -> dict[str, list[int]]:
        left, right = g.integers(50, size=n), g.integers(50, size=n)
        return {"left": left.tolist(), "right": np.where(np.arange(n) % 2, left, right).tolist()}

    drawn, _ = sample_inputs(model, 60, generator())
    assert np.mean([value == " same" for value in model.values(drawn, "answer")]) == pytest.approx(0.5, abs=0.1)


def test_samplers_are_told_what_a_split_may_use() -> None:
    model = equal_halves()
    told: list[Any] = []

    @model.sampler
    def halves(g: np.random.Generator, n: int, among: dict[str, list[int]]) -> dict[str, list[int]]:
        told.append(among)
        left = g.choice(among["left"], n)
        return {"left": left.tolist(), "right": left.tolist()}

    drawn, _ = sample_inputs(model, 3, generator(), among={"left": np.array([4, 7, 9])})
    assert sorted(model.values(drawn, "left")) == [4, 7, 9]
    assert told[0] == {"left": [4, 7, 9], "right": list(range(50))}


def test_what_a_sampler_draws_outside_a_split_is_drawn_again_as_a_whole() -> None:
    model = equal_halves()

    @model.sampler
    def equal(g: np.random.Generator, n: int) -> dict[str, list[int]]:
        left = g.integers(50, size=n).tolist()
        return {"left": left, "right": left}

    among = {"left": np.arange(10), "right": np.arange(10)}
    drawn, _ = sample_inputs(model, 10, generator(), among=among)
    assert sorted(model.values(drawn, "left")) == list(range(10))
    assert model.values(drawn, "left") == model.values(drawn, "right")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda g, n: {"lfet": [0] * n}, r"draws 'lfet', which is no exogenous variable\. Did you mean 'left'\?"),
        (lambda g, n: {"answer": [" same"] * n}, "draws 'answer', which is no exogenous variable"),
        (lambda g, n: {"left": [0] * (n - 1)}, "draws 999 values of 'left', expected 1000"),
        (lambda g, n: {"left": [50] * n}, "draws 50, which is no value of 'left': its domain is 0, 1, 2"),
        (lambda g, n: {"left": [True] * n}, "draws True, which is no value of 'left'"),
        (lambda g, n: {"left": [49] * n}, "draws nothing that this split may use: give it a third argument, among"),
    ],
)
def test_wrong_samplers(draw: Any, message: str) -> None:
    model = equal_halves()
    model.sampler(draw)
    with pytest.raises(IITKitError, match=message):
        sample_inputs(model, 10, generator(), among={"left": np.arange(10)})
    with pytest.raises(IITKitError, match=r"sampler '<lambda>': expected the arguments \(generator, n\)"):
        model.sampler(lambda g: {})


def test_two_samplers_of_one_variable() -> None:
    model = equal_halves()
    model.sampler(lambda g, n: {"left": [0] * n})
    model.sampler(lambda g, n: {"left": [1] * n})
    with pytest.raises(IITKitError, match="two samplers draw 'left': leave it to one"):
        sample_inputs(model, 10, generator())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "variable 'x' has an empty domain"),
        ([1, None], "variable 'x' has the value None: every variable needs a value"),
        ([1.0, float("nan")], "variable 'x' has the value NaN, which equals nothing"),
        ("abc", "variable 'x': domain 'abc': expected a list of values, or Open"),
        (5, "variable 'x': domain 5: expected a list of values"),
        ([(1, 2), (1, 2)], r"variable 'x': value \(1, 2\) stands twice in its domain"),
    ],
)
def test_wrong_domains_are_found_at_once(values: Any, message: str) -> None:
    start = time.perf_counter()
    with pytest.raises(IITKitError, match=message):
        CausalModel(prompt="{x}", output="answer").variables(x=values)
    assert time.perf_counter() - start < 1


def test_an_empty_declared_domain() -> None:
    with pytest.raises(IITKitError, match="variable 'y' has an empty domain"):

        @CausalModel(prompt="{x}", output="y").mechanism(domain=[])
        def y(x: int) -> int:
            return x


def test_a_model_of_symbols_needs_no_text() -> None:
    model = CausalModel(prompt=Symbols("{a} {b}"), output="total")
    model.variables(a=[0, 1], b=[0, 1])

    @model.mechanism
    def total(a: int, b: int) -> int:
        return a + b

    setting = model.run({"a": [0, 1], "b": [1, 1]})
    assert model.features(setting).tolist() == [[0, 1], [1, 1]]
    assert model.encoding is not None
    assert [model.encoding.label(value) for value in model.values(setting, "total")] == [1, 2]
    with pytest.raises(IITKitError, match="the inputs of this model are Symbols, no text"):
        model.render(setting, np.zeros(2, dtype=np.int64))
    with pytest.raises(IITKitError, match="the inputs of this model are text: use render"):
        equal_halves().compile().features({})
