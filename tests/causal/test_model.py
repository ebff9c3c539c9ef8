"""The causal model against a naive interpreter on random graphs, and every way to make one wrong."""

from __future__ import annotations

import inspect
import itertools
import random
import time
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from iitkit.causal import CausalModel
from iitkit.causal import variables as variables_module
from iitkit.errors import IITKitError

Inputs = dict[str, Hashable]
SOME_VALUES: list[list[Hashable]] = [["a", "b", "c"], [0, 1, 2, 3], [False, True], [1, True, "1", 1.0], ["x", 0]]


def typed(values: list[Hashable]) -> list[tuple[type, Hashable]]:
    """Values with their types, so that ``True`` is not 1."""
    return [(type(value), value) for value in values]


# --- a naive interpreter of random models ---


@dataclass
class Naive:
    """A random model as plain dicts, computed by recursion."""

    exogenous: dict[str, list[Hashable]]
    parents: dict[str, list[str]]
    tables: dict[str, dict[tuple[tuple[type, Hashable], ...], Hashable]]
    output: str

    def value(self, name: str, inputs: Inputs, do: Mapping[str, Hashable]) -> Hashable:
        if name in do:
            return do[name]
        if name in self.exogenous:
            return inputs[name]
        return self.tables[name][tuple(typed([self.value(p, inputs, do) for p in self.parents[name]]))]

    @property
    def names(self) -> list[str]:
        return [*self.exogenous, *self.parents]

    def inputs(self) -> list[Inputs]:
        """Every input there is."""
        return [dict(zip(self.exogenous, row, strict=True)) for row in itertools.product(*self.exogenous.values())]


def random_naive(rng: random.Random, most: int = 10) -> Naive:
    exogenous = {f"x{i}": rng.choice(SOME_VALUES) for i in range(rng.randint(2, 4))}
    domains: dict[str, list[Hashable]] = dict(exogenous)
    parents: dict[str, list[str]] = {}
    tables: dict[str, dict[tuple[tuple[type, Hashable], ...], Hashable]] = {}
    n = rng.randint(3, min(6, most - len(exogenous)))
    for i in range(n):
        name = f"m{i}"
        parents[name] = rng.sample(list(domains), rng.randint(1, min(3, len(domains))))
        range_: list[Hashable] = [" yes", " no", " maybe"] if i == n - 1 else rng.choice(SOME_VALUES)
        combinations = itertools.product(*(domains[p] for p in parents[name]))
        tables[name] = {tuple(typed(list(row))): rng.choice(range_) for row in combinations}
        domains[name] = list({(type(v), v): v for v in tables[name].values()}.values())
    return Naive(exogenous, parents, tables, f"m{n - 1}")


def as_function(naive: Naive, name: str) -> Callable[..., Hashable]:
    """The mechanism as a function whose arguments are named after its parents."""

    def function(**arguments: Hashable) -> Hashable:
        return naive.tables[name][tuple(typed([arguments[p] for p in naive.parents[name]]))]

    kind = inspect.Parameter.KEYWORD_ONLY
    function.__name__ = name
    function.__signature__ = inspect.Signature([inspect.Parameter(p, kind) for p in naive.parents[name]])  # type: ignore[attr-defined]
    return function


def build(naive: Naive, rng: random.Random) -> CausalModel:
    model = CausalModel(prompt=" ".join(f"{name}={{{name}}}" for name in naive.exogenous), output=naive.output)
    names = list(naive.parents)
    rng.shuffle(names)  # the order of declaration says nothing
    for name in names:
        model.mechanism(as_function(naive, name))
    model.variables(**naive.exogenous)
    with warnings.catch_warnings(action="ignore"):  # 1 and "1" read alike
        return model.compile()


def columns(rows: list[Inputs]) -> dict[str, list[Hashable]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.mark.parametrize("most", [100_000, 4, 0], ids=["tabulated", "mixed", "lazy"])
@pytest.mark.parametrize("seed", range(30))
def test_random_models_equal_a_naive_interpreter(seed: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variables_module, "TABULATED", most)
    rng = random.Random(seed)
    naive = random_naive(rng)
    model = build(naive, rng)
    everything = naive.inputs()

    setting = model.run(columns(everything))
    for name in naive.names:
        assert typed(model.values(setting, name)) == typed([naive.value(name, row, {}) for row in everything]), name

    bases = rng.choices(everything, k=20)
    for _ in range(3):
        # interchange: up to three variables, each from a source of its own
        chosen = rng.sample(naive.names, rng.randint(1, min(3, len(naive.names))))
        sources = {name: rng.choices(everything, k=20) for name in chosen}
        after = model.interchange(columns(bases), {name: columns(rows) for name, rows in sources.items()})
        held = [{name: naive.value(name, sources[name][i], {}) for name in chosen} for i in range(20)]
        for name in naive.names:
            expected = [naive.value(name, base, do) for base, do in zip(bases, held, strict=True)]
            assert typed(model.values(after, name)) == typed(expected), (name, chosen)
        taken = {name: model.run(columns(rows))[name] for name, rows in sources.items()}
        again = model.held(model.run(columns(bases)), taken)
        assert again.keys() == after.keys()
        for name, codes in after.items():
            np.testing.assert_array_equal(again[name], codes, err_msg=f"{name} {chosen}")

        # do: values that a variable takes, whatever its causes say
        reached = {name: [naive.value(name, row, {}) for row in everything] for name in chosen}
        held = [{name: rng.choice(reached[name]) for name in chosen} for _ in range(20)]
        after = model.run(columns(bases), do={name: [do[name] for do in held] for name in chosen})
        for name in naive.names:
            expected = [naive.value(name, base, do) for base, do in zip(bases, held, strict=True)]
            assert typed(model.values(after, name)) == typed(expected), (name, chosen)


@pytest.mark.parametrize("start", range(0, 200, 20))
def test_every_subset_of_interventions(start: int) -> None:
    """200 models of up to 8 variables: each set of variables at once, each from a source of its own."""
    for seed in range(start, start + 20):
        rng = random.Random(1000 + seed)
        naive = random_naive(rng, most=8)
        model = build(naive, rng)
        assert len(naive.names) <= 8
        everything = naive.inputs()
        subsets = [
            list(chosen) for k in range(len(naive.names) + 1) for chosen in itertools.combinations(naive.names, k)
        ]
        assert len(subsets) == 2 ** len(naive.names)
        for chosen in subsets:
            bases = rng.choices(everything, k=3)
            sources = {name: rng.choices(everything, k=3) for name in chosen}
            after = model.interchange(columns(bases), {name: columns(rows) for name, rows in sources.items()})
            for i, base in enumerate(bases):
                held = {name: naive.value(name, sources[name][i], {}) for name in chosen}
                for name in naive.names:
                    value = model.domains[name].values[int(after[name][i])]
                    assert typed([value]) == typed([naive.value(name, base, held)]), (seed, name, chosen)


def test_several_variables_from_one_source_and_across_variables() -> None:
    """``A ← B of the source``, on random models: wherever every value of B is one of A's."""
    crossed = 0
    for seed in range(60):
        rng = random.Random(5000 + seed)
        naive = random_naive(rng)
        model = build(naive, rng)
        everything = naive.inputs()
        reached = {name: set(typed([naive.value(name, row, {}) for row in everything])) for name in naive.names}
        for a, b in itertools.permutations(naive.names, 2):
            if not reached[b] <= set(typed(model.domains[a].values)):
                continue
            crossed += 1
            bases, sources = rng.choices(everything, k=5), rng.choices(everything, k=5)
            other = next(name for name in naive.names if name != a)
            shared = columns(sources)
            after = model.interchange(columns(bases), {a: (shared, b), other: shared})
            for i, (base, source) in enumerate(zip(bases, sources, strict=True)):
                held = {a: naive.value(b, source, {}), other: naive.value(other, source, {})}
                for name in naive.names:
                    value = model.domains[name].values[int(after[name][i])]
                    assert typed([value]) == typed([naive.value(name, base, held)]), (seed, name, a, b)
    assert crossed > 100


# --- models worked by hand ---


def sums() -> CausalModel:
    """Left + middle → total; total + right → answer."""
    model = CausalModel(prompt="{left} {middle} {right}", output="answer")
    model.variables(left=[1, 2, 3], middle=[1, 2, 3], right=[1, 2, 3])

    @model.mechanism
    def total(left: int, middle: int) -> int:
        return left + middle

    @model.mechanism
    def answer(total: int, right: int) -> str:
        return f" {total + right}"

    return model


def test_run_by_hand() -> None:
    model = sums()
    setting = model.run({"left": [1, 3], "middle": [2, 3], "right": [3, 1]})
    assert model.values(setting, "total") == [3, 6]
    assert model.values(setting, "answer") == [" 6", " 7"]


def test_what_does_not_depend_on_a_held_variable_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variables_module, "TABULATED", 0)
    monkeypatch.setattr(variables_module, "DENSE", 0)
    calls: list[str] = []
    model = CausalModel(prompt="{a} {b}", output="total", surface={n: str(n) for n in range(21)})
    model.variables(a=range(5), b=range(5))

    @model.mechanism
    def double(a: int) -> int:
        calls.append("double")
        return 2 * a

    @model.mechanism
    def triple(b: int) -> int:
        calls.append("triple")
        return 3 * b

    @model.mechanism
    def total(double: int, triple: int) -> int:
        calls.append("total")
        return double + triple

    known = model.run({"a": [1, 2], "b": [3, 4]})
    taken = {"double": model.run({"a": [0, 3], "b": [0, 0]})["double"]}
    calls.clear()
    found = model.held(known, taken)
    assert model.values(found, "total") == [0 + 9, 6 + 12]
    assert model.values(found, "triple") == [9, 12]
    assert calls == ["total", "total"]


def test_do_on_exogenous_and_endogenous() -> None:
    model = sums()
    base = {"left": [1], "middle": [2], "right": [3]}
    assert model.values(model.run(base, do={"left": [3]}), "answer") == [" 8"]
    after = model.run(base, do={"left": [3], "total": [2]})
    assert model.values(after, "answer") == [" 5"]
    assert model.values(after, "left") == [3]
    assert model.values(after, "total") == [2]
    assert model.values(model.run(base, do={"answer": [" 9"]}), "answer") == [" 9"]


def test_interchange_of_two_variables_from_two_sources() -> None:
    model = sums()
    base = {"left": [1], "middle": [1], "right": [1]}
    one = {"left": [3], "middle": [2], "right": [2]}
    other = {"left": [2], "middle": [2], "right": [3]}
    assert model.values(model.interchange(base, {"total": one}), "answer") == [" 6"]
    assert model.values(model.interchange(base, {"right": other}), "answer") == [" 5"]
    assert model.values(model.interchange(base, {"total": one, "right": other}), "answer") == [" 8"]


def test_codes_and_values_mean_the_same() -> None:
    model = sums()
    by_value = model.run({"left": [3, 1], "middle": [1, 2], "right": [2, 2]})
    by_code = model.run({"left": np.array([2, 0]), "middle": np.array([0, 1]), "right": np.array([1, 1])})
    assert model.values(by_code, "answer") == model.values(by_value, "answer") == [" 6", " 5"]


def test_true_is_not_one() -> None:
    model = CausalModel(prompt="{shown}", output="answer")
    model.variables(flag=[1, True, 1.0, "1"])

    @model.mechanism
    def shown(flag: object) -> str:
        return repr(flag)

    @model.mechanism
    def answer(flag: object) -> str:
        return f" {type(flag).__name__}"

    assert model.values(model.run({"flag": [True, 1, "1", 1.0]}), "answer") == [" bool", " int", " str", " float"]
    other = CausalModel(prompt="{flag}", output="answer")
    other.variables(flag=[0, 1])
    other.mechanism(answer)
    with pytest.raises(IITKitError, match="variable 'flag' has no value True"):
        other.run({"flag": [True]})


def test_a_mechanism_too_large_to_tabulate() -> None:
    calls = 0
    model = CausalModel(prompt="{a} {b} {c}", output="answer")
    model.variables(a=list(range(50)), b=list(range(50)), c=list(range(50)))  # 125 000 combinations

    @model.mechanism
    def total(a: int, b: int, c: int) -> int:
        nonlocal calls
        calls += 1
        return (a * b + c) % 7

    @model.mechanism
    def answer(total: int) -> str:
        return f" {total}"

    model.compile()
    assert calls == 0
    rng = random.Random(0)
    rows = [[rng.randrange(50) for _ in range(3)] for _ in range(300)] * 2
    inputs = {name: [row[i] for row in rows] for i, name in enumerate("abc")}
    expected = [f" {(a * b + c) % 7}" for a, b, c in rows]
    assert model.values(model.run(inputs), "answer") == expected
    assert model.values(model.run(inputs), "answer") == expected
    assert calls == len({tuple(row) for row in rows})  # once for each combination that occurs
    source = {name: values[::-1] for name, values in inputs.items()}
    assert model.values(model.interchange(inputs, {"total": source}), "answer") == expected[::-1]


def test_small_mechanisms_run_once_for_each_combination() -> None:
    calls = 0
    model = CausalModel(prompt="{a}", output="answer")
    model.variables(a=[0, 1, 2])

    @model.mechanism
    def answer(a: int) -> str:
        nonlocal calls
        calls += 1
        return f" {a}"

    model.run({"a": [0, 1] * 100})
    model.run({"a": [2]})
    assert calls == 3


def test_render() -> None:
    model = CausalModel(prompt=["{a} then {b}", "{b} after {a}"], output="answer")
    model.variables(a=["one", "two"])

    @model.mechanism
    def b(a: str) -> str:
        return a.upper()

    @model.mechanism
    def answer(b: str) -> str:
        return f" {b}"

    texts = model.render(model.run({"a": ["one", "two", "two"]}), np.array([0, 1, 0]))
    assert [text.text for text in texts] == ["one then ONE", "TWO after two", "two then TWO"]
    assert [text.spans for text in texts] == [
        {"a": (0, 3), "b": (9, 12)},
        {"b": (0, 3), "a": (10, 13)},
        {"a": (0, 3), "b": (9, 12)},
    ]


def test_constraints() -> None:
    model = sums()

    @model.constraint
    def ordered(left: int, middle: int) -> bool:
        return left <= middle

    @model.constraint
    def small(total: int) -> bool:
        return total < 5

    setting = model.run({"left": [1, 2, 2, 3], "middle": [2, 1, 3, 3], "right": [1, 1, 1, 1]})
    assert model.allowed(setting).tolist() == [True, False, False, False]
    with pytest.raises(IITKitError, match="constraint 'small' is declared twice"):
        model.constraint(small)


# --- every way to make one wrong ---


def chain(*edges: str, output: str = "answer") -> CausalModel:
    """A model of mechanisms ``child<parent,parent`` that all return a string."""
    model = CausalModel(prompt="{x}", output=output)
    model.variables(x=["a", "b"])
    for edge in edges:
        child, _, parents = edge.partition("<")
        scope: dict[str, Any] = {}
        exec(f"def {child}({parents}): return ' s'", scope)
        model.mechanism(scope[child])
    return model


@pytest.mark.parametrize(
    ("edges", "cycles"),
    [
        (["a<c", "b<a", "c<b", "answer<c"], {"a → b → c → a", "b → c → a → b", "c → a → b → c"}),
        (["a<a", "answer<a"], {"a → a"}),
        (["answer<x,late", "late<answer"], {"answer → late → answer", "late → answer → late"}),
    ],
)
def test_cycle_is_named_from_cause_to_effect(edges: list[str], cycles: set[str]) -> None:
    start = time.perf_counter()
    with pytest.raises(IITKitError, match="the causal graph has a cycle: ") as caught:
        chain(*edges).compile()
    assert time.perf_counter() - start < 1
    assert str(caught.value).rpartition(": ")[2] in cycles


def test_a_long_cycle_is_found_fast() -> None:
    edges = [f"m{i}<m{(i - 1) % 400}" for i in range(400)]
    start = time.perf_counter()
    with pytest.raises(IITKitError, match=r"m5 → m6 → m7"):
        chain(*edges, "answer<m0").compile()
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (["number<x", "answer<numbr"], "mechanism 'answer': parent 'numbr' is no variable. Did you mean 'number'?"),
        (["other<x"], "output or candidate 'answer' is no variable"),
        (["x<answer"], "variable 'x' is declared twice"),
        (["a<x", "a<x", "answer<a"], "variable 'a' is declared twice"),
        (["answer<"], "its arguments must be named after its parents"),
        (["answer<*x"], "its arguments must be named after its parents"),
        (["answer<**x"], "its arguments must be named after its parents"),
    ],
)
def test_wrong_graphs(edges: list[str], message: str) -> None:
    with pytest.raises(IITKitError) as caught:
        chain(*edges).compile()
    assert message in str(caught.value)


def test_unknown_slot() -> None:
    model = CausalModel(prompt="the {nuon}", output="answer")
    model.variables(noun=["dog"])
    with pytest.raises(IITKitError, match=r"prompt: slot 'nuon' is no variable\. Did you mean 'noun'\?"):
        model.compile()


def test_unknown_parent_of_a_constraint() -> None:
    model = sums()

    @model.constraint
    def fine(lift: int) -> bool:
        return True

    with pytest.raises(IITKitError, match=r"'fine': parent 'lift' is no variable\. Did you mean 'left'\?"):
        model.compile()


def test_templates_with_different_slots() -> None:
    with pytest.raises(IITKitError, match=r"has the slots \['a', 'c'\], the first has \['a', 'b'\]"):
        CausalModel(prompt=["{a} {b}", "{a} {c}"], output="answer")
    with pytest.raises(IITKitError, match="at least one"):
        CausalModel(prompt=[], output="answer")


def test_wrong_domains() -> None:
    model = CausalModel(prompt="{a}", output="answer")
    with pytest.raises(IITKitError, match="variable 'a' has an empty domain"):
        model.variables(a=[])
    with pytest.raises(IITKitError, match="variable 'b': value 'dog' stands twice"):
        model.variables(b=["dog", "cat", "dog"])
    with pytest.raises(IITKitError, match=r"variable 'c': value \['x'\] is not hashable"):
        model.variables(c=[["x"]])  # type: ignore[list-item]
    model.variables(d=[1])
    with pytest.raises(IITKitError, match="variable 'd' is declared twice"):
        model.variables(d=[2])


@pytest.mark.parametrize("most", [100_000, 0], ids=["tabulated", "lazy"])
@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("None", "mechanism 'answer' returned None on {'x': 'a'}"),
        ("1 / 0", "mechanism 'answer' failed on {'x': 'a'}: ZeroDivisionError: division by zero"),
        ("{}[x]", "mechanism 'answer' failed on {'x': 'a'}: KeyError: 'a'"),
        ("['a']", "variable 'answer': value ['a'] is not hashable"),
        ("True", "label True of variable 'answer' is a bool, expected a string: quote it (YAML reads a bare yes"),
        ("12", "label 12 of variable 'answer' is a int, expected a string"),
    ],
)
def test_mechanisms_that_return_no_value(result: str, message: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variables_module, "TABULATED", most)
    model = CausalModel(prompt="{x}", output="answer")
    model.variables(x=["a", "b"])
    scope: dict[str, Any] = {}
    exec(f"def answer(x): return {result}", scope)
    model.mechanism(scope["answer"])
    with pytest.raises(IITKitError) as caught:
        model.run({"x": ["a"]})
    assert message in str(caught.value)


def test_candidates_are_labels_too() -> None:
    model = CausalModel(prompt="{x}", output="answer", candidates=["other"])
    model.variables(x=["a", "b"])

    @model.mechanism
    def answer(x: str) -> str:
        return f" {x}"

    @model.mechanism
    def other(x: str) -> bool:
        return x == "a"

    with pytest.raises(IITKitError, match="label True of variable 'other' is a bool"):
        model.compile()


def test_exogenous_output() -> None:
    with pytest.raises(IITKitError, match="output or candidate 'x' is exogenous: an answer needs a mechanism"):
        chain(output="x").compile()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"left": [4], "middle": [1], "right": [1]}, "variable 'left' has no value 4"),
        ({"left": ["1"], "middle": [1], "right": [1]}, "variable 'left' has no value '1'"),
        ({"lfet": [1], "middle": [1], "right": [1]}, "input 'lfet' is no variable. Did you mean 'left'?"),
        ({"left": [1], "right": [1]}, "inputs lack a value for middle"),
        ({}, "inputs lack a value for left, middle, right"),
        ({"left": np.array([3]), "middle": [1], "right": [1]}, "variable 'left': codes 3 to 3, expected 0 to 2"),
        ({"left": np.array([-1, 0]), "middle": [1] * 2, "right": [1] * 2}, "codes -1 to 0, expected 0 to 2"),
        ({"left": [1], "middle": [1, 2], "right": [1, 1]}, "must have as many rows each"),
        ({"left": [1], "middle": [1, 2], "right": [1, 2, 3]}, "must have as many rows each"),
    ],
)
def test_wrong_inputs(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError) as caught:
        sums().run(inputs)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ({"totla": [2]}, "intervention 'totla' is no variable. Did you mean 'total'?"),
        ({"total": [9]}, "variable 'total' has no value 9"),
        ({"total": [2, 3]}, "must have as many rows each"),
        ({"right": [2, 3]}, "must have as many rows each"),
    ],
)
def test_wrong_interventions(do: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError) as caught:
        sums().run({"left": [1], "middle": [1], "right": [1]}, do=do)
    assert message in str(caught.value)


def test_unknown_variable_in_an_interchange() -> None:
    base = {"left": [1], "middle": [1], "right": [1]}
    model = sums()
    with pytest.raises(IITKitError, match=r"intervention 'totl' is no variable\. Did you mean 'total'\?"):
        model.interchange(base, {"totl": base})
    with pytest.raises(IITKitError, match="variable 'answr' is no variable"):
        model.values(model.run(base), "answr")
    with pytest.raises(IITKitError, match=r"source's variable 'lfet' is no variable\. Did you mean 'left'\?"):
        model.interchange(base, {"total": (base, "lfet")})


def test_a_value_of_another_variable_that_does_not_fit() -> None:
    model = sums()
    base = {"left": [1], "middle": [2], "right": [3]}
    assert model.values(model.interchange(base, {"left": (base, "total")}), "answer") == [" 8"]  # 3 + 2 + 3
    high = {"left": [3], "middle": [3], "right": [1]}
    with pytest.raises(IITKitError, match=r"'left' ← 'total' of the source: 6 is no value of 'left'\. Its"):
        model.interchange(base, {"left": (high, "total")})
