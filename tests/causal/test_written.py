"""Models in YAML: read, refused, written down and read back."""

from __future__ import annotations

import copy
import itertools
import random
import time
import warnings
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from iitkit.causal import CausalModel, Images, Open, Symbols, Vectors
from iitkit.causal import variables as variables_module
from iitkit.causal.recognised import recognised
from iitkit.causal.variables import Domain
from iitkit.causal.written import from_mapping, from_yaml, to_mapping
from iitkit.errors import IITKitError
from iitkit.tasks import Agreement, PriceTagging, PronounGender

WRITTEN: dict[str, Any] = {
    "prompt": ["The {subject} near the {size} {other}", "By the {other} of {size}, the {subject}"],
    "output": "verb",
    "variables": {"noun": ["dog", "ox"], "plural": [False, True], "other": ["tree", "car"], "size": [1, 2, 3]},
    "mechanisms": {
        "many": {"of": "noun", "table": {"dog": "dogs", "ox": "oxen"}},
        "subject": "many if plural else noun",
        "big": "size >= 3 or noun == 'ox'",
        "verb": {
            "of": ["plural", "big"],
            "table": {False: {False: " is", True: " remains"}, True: {False: " are", True: " remain"}},
        },
    },
    "constraints": {"no_ox_by_a_car": "noun != 'ox' or other != 'car'"},
}


def answers(model: CausalModel, **inputs: list[Hashable]) -> list[str]:
    return model.answers(model.run(inputs), model.output)


# --- reading ---


def test_by_hand() -> None:
    model = CausalModel.from_dict(WRITTEN)
    inputs: dict[str, list[Hashable]] = {
        "noun": ["dog", "dog", "ox", "ox"],
        "plural": [False, True, True, False],
        "other": ["tree", "car", "car", "tree"],
        "size": [1, 3, 1, 2],
    }
    setting = model.run(inputs)
    assert model.values(setting, "subject") == ["dog", "dogs", "oxen", "ox"]
    assert model.values(setting, "big") == [False, True, True, True]
    assert model.answers(setting, "verb") == [" is", " remain", " remain", " remains"]
    assert model.allowed(setting).tolist() == [True, True, False, True]
    assert [text.text for text in model.render(setting, np.array([0, 1, 0, 1]))] == [
        "The dog near the 1 tree",
        "By the car of 3, the dogs",
        "The oxen near the 1 car",
        "By the tree of 2, the ox",
    ]
    assert model.parents["verb"] == ["plural", "big"]
    assert model.parents["big"] == ["size", "noun"]
    after = model.interchange(
        {name: values[:1] for name, values in inputs.items()},
        {"big": {name: values[1:2] for name, values in inputs.items()}},
    )
    assert model.values(after, "verb") == [" remains"]


YAML = """\
prompt: The {subject} near the tree
output: verb
variables:
  noun: [dog, ox]
  plural: [false, true]
mechanisms:
  many: {of: noun, table: {dog: dogs, ox: oxen}}
  subject: many if plural else noun
  verb: >-
    ' are' if plural
    else ' is'
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "model.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_from_a_file(tmp_path: Path) -> None:
    model = CausalModel.from_yaml(write(tmp_path, YAML))
    assert answers(model, noun=["dog", "ox"], plural=[True, False]) == [" are", " is"]
    assert model.parents["verb"] == ["plural"]
    assert answers(from_yaml(str(tmp_path / "model.yaml")), noun=["dog"], plural=[True]) == [" are"]


def test_surface_candidates_domains_and_rows() -> None:
    model = from_mapping(
        {
            "prompt": "{left} {right}",
            "output": "larger",
            "candidates": ["left_as_answer", "right_as_answer"],
            "surface": {1: " one", 2: [" two", " Two"], 3: " three"},
            "variables": {"left": [1, 2, 3], "right": [1, 2, 3]},
            "mechanisms": {
                "larger": {"expression": "max(left, right)", "domain": [3, 2, 1]},
                "left_as_answer": "left + 0",
                "right_as_answer": {"of": ["right"], "rows": [[1, 1], [2, 2], [3, 3]], "domain": [1, 2, 3]},
            },
        }
    )
    assert model.domains["larger"].values == [3, 2, 1]
    assert answers(model, left=[1, 3], right=[2, 1]) == [" two", " three"]
    assert model.forms(2) == (" two", " Two")
    assert model.candidates == ["left_as_answer", "right_as_answer"]


@pytest.mark.filterwarnings("ignore:two inputs have one prompt")
def test_rows_tell_true_from_one() -> None:
    model = from_mapping(
        {
            "prompt": "{x}",
            "output": "answer",
            "variables": {"x": [1, True, "1", 1.0]},
            "mechanisms": {"answer": {"of": "x", "rows": [[True, " b"], [1, " i"], [1.0, " f"], ["1", " s"]]}},
        }
    )
    assert answers(model, x=[1, True, "1", 1.0]) == [" i", " b", " s", " f"]


def test_inputs_that_are_no_text() -> None:
    sums = {
        "prompt": {"symbols": "{a} + {b} ="},
        "output": "total",
        "variables": {"a": [0, 1], "b": [0, 1]},
        "mechanisms": {"total": "a + b"},
    }
    model = from_mapping(sums)
    assert model.features(model.run({"a": [0, 1], "b": [1, 1]})).tolist() == [[2, 0, 3, 1], [3, 0, 3, 1]]
    ordered = from_mapping({**sums, "prompt": {"symbols": "{a} {b}", "vocabulary": [2, 1, 0]}})
    assert ordered.features(ordered.run({"a": [0], "b": [1]})).tolist() == [[2, 1]]
    vectors = from_mapping(
        {
            "prompt": {"vectors": ["w", "x"]},
            "output": "same",
            "variables": {"w": [[0.5, 1.0], [2, 3]], "x": [[0.5, 1.0], [4, 5]]},
            "mechanisms": {"same": "w == x"},
        }
    )
    setting = vectors.run({"w": [(0.5, 1.0)], "x": [(4, 5)]})
    assert vectors.features(setting).tolist() == [[0.5, 1.0, 4.0, 5.0]]
    assert vectors.values(setting, "same") == [False]


def test_what_is_read_is_left_as_it_was() -> None:
    before = copy.deepcopy(WRITTEN)
    from_mapping(WRITTEN)
    assert before == WRITTEN


# --- refusing ---


def changed(path: str, value: Any) -> dict[str, Any]:
    """:data:`WRITTEN` with one key changed, or taken away."""
    found = copy.deepcopy(WRITTEN)
    *parents, last = path.split(".")
    level: Any = found
    for key in parents:
        level = level[key]
    if value is None:
        del level[last]
    else:
        level[last] = value
    return found


WRONG: list[tuple[str, Any, str]] = [
    ("mechanism", "x", "a causal model has no key 'mechanism'. Did you mean 'mechanisms'?"),
    ("split_by", "x", "a causal model has no key 'split_by'. It has prompt, output, variables,"),
    ("prompt", None, "a causal model needs prompt: it is missing"),
    ("output", None, "a causal model needs output: it is missing"),
    ("variables", None, "a causal model needs variables: it is missing"),
    ("mechanisms", None, "a causal model needs mechanisms: it is missing"),
    ("prompt", 3, "prompt: given 3, expected a template or several, {symbols: template} or {vectors: [slots]}"),
    ("prompt", ["a {noun}", 3], "prompt: given ['a {noun}', 3], expected a template or several"),
    ("prompt", {"symbol": "{noun}"}, "prompt: given {'symbol': '{noun}'}, expected"),
    ("prompt", {"symbols": 3}, "prompt.symbols: given 3, expected a template"),
    ("prompt", {"vectors": "w"}, "prompt.vectors: given 'w', expected a list of variables' names"),
    ("prompt", "The {nuon}", "prompt: slot 'nuon' is no variable. Did you mean 'noun'?"),
    ("output", ["verb"], "output: given ['verb'], expected the name of a variable"),
    ("output", "vreb", "'vreb' is no variable. Did you mean 'verb'?"),
    ("candidates", "verb", "candidates: given 'verb', expected a list of variables' names"),
    ("surface", [1], "surface: given [1], expected each answer with its text or texts"),
    ("surface", {" is": 3}, "surface of ' is': given 3, expected a text"),
    ("variables", ["noun"], "variables: given ['noun'], expected names, each with its values"),
    ("variables.noun", "dog", "variables.noun: given 'dog', expected the list of its values"),
    ("variables.noun", [], "variable 'noun' has an empty domain"),
    ("variables.noun", ["dog", "dog"], "variable 'noun': value 'dog' stands twice"),
    ("variables.noun", ["dog", None], "variables.noun: given null: every variable needs a value"),
    ("variables.noun", ["dog", {"a": 1}], "variables.noun: given {'a': 1} (dict), expected text, a number or a list"),
    ("variables.noun", ["dog", float("nan")], "variables.noun: given nan, expected a number that is finite"),
    ("variables.noun", ["dog", 10**30], "expected a number that is finite and below 2**63"),
    ("variables.noun", ["dog", "x" * 20_000], "variables.noun: given text of 20000 characters, 10000 at most"),
    ("variables.noun", ["dog", [0] * 2000], "variables.noun: given a list of more than 1000 items"),
    ("variables.two words", [1], "variables: 'two words' is no name: expected one of letters, digits and _"),
    ("variables.class", [1], "variables: 'class' is no name"),
    ("variables.self", [1], "variables: 'self' is no name"),
    ("mechanisms.noun", "size", "variable 'noun' is declared twice"),
    ("mechanisms.big", "size >= 3 or nuon", "mechanism 'big': parent 'nuon' is no variable. Did you mean 'noun'?"),
    ("mechanisms.big", "verb == ' is'", "the causal graph has a cycle"),
    ("mechanisms.big", "noun.upper()", "mechanism 'big', 'noun.upper()', column 1: a call of attribute .upper"),
    ("mechanisms.big", "noun > size", "mechanism 'big' failed on {'noun': 'dog', 'size': 1}: ValueError: '>' not"),
    ("mechanisms.big", True, "mechanism 'big': given True, expected an expression (in quotes) or {of: …, table: …}"),
    ("mechanisms.big", None, "parent 'big' is no variable"),
    ("mechanisms.verb", "plural", "label False of variable 'verb' is a bool, expected a string: quote it"),
    ("mechanisms.many.tabel", {}, "mechanism 'many' has no key 'tabel'. Did you mean 'table'?"),
    ("mechanisms.many.of", None, "mechanism 'many': its table needs `of`"),
    ("mechanisms.many.of", ["noun", "noun"], "mechanism 'many': `of` has noun, noun: name each parent once"),
    ("mechanisms.many.of", 3, "mechanism 'many': of: given 3, expected a list of variables' names"),
    ("mechanisms.many.of", "the noun", "mechanism 'many': of: 'the noun' is no variable's name"),
    ("mechanisms.many.of", ["noun", "plural"], "has 'dogs' for noun = 'dog': expected a table of 'plural' there"),
    ("mechanisms.many.of", "nuon", "mechanism 'many': parent 'nuon' is no variable. Did you mean 'noun'?"),
    ("mechanisms.many.table", None, "mechanism 'many': given none of expression, table and rows: give one"),
    ("mechanisms.many.expression", "noun", "mechanism 'many': given expression, table of expression, table and rows"),
    ("mechanisms.many.table", {}, "mechanism 'many': its table has no entry"),
    ("mechanisms.many.table", "dogs", "mechanism 'many': table: given 'dogs', expected value: result entries"),
    ("mechanisms.many.table", {"dog": "dogs"}, "its table has no entry for noun = 'ox'. It has 'dog'"),
    ("mechanisms.many.table.dgo", "dogs", "has an entry for noun = 'dgo', which 'noun' never is. Did you mean 'dog'?"),
    ("mechanisms.many.table.ox", None, "its table has no entry for noun = 'ox'"),
    ("mechanisms.many.table.dog", {"a": 1}, "has a table for noun = 'dog': expected a value, as `of` names noun"),
    (
        "mechanisms.verb.table.maybe",
        {False: " is", True: " is"},
        "has an entry for plural = 'maybe', which 'plural' never is. What is text: quote it (YAML reads a bare yes,",
    ),
    ("mechanisms.many.domain", ["dogs"], "mechanism 'many' returned 'oxen' (str) on {'noun': 'ox'}: outside its"),
    ("mechanisms.many.domain", "dogs", "mechanism 'many': domain: given 'dogs', expected the list of its values"),
    ("mechanisms.many", {"of": "noun", "rows": [["dog"]]}, "row ['dog']: expected 2 items, the values of noun and the"),
    ("mechanisms.many", {"of": "noun", "rows": "dog"}, "rows: given 'dog', expected a list of rows"),
    ("mechanisms.many", {"of": "noun", "rows": [["dog", 1], ["dog", 2]]}, "two rows are for 'dog': keep one"),
    ("mechanisms.many", {"of": "noun", "expression": "noun"}, "`of` belongs to a table; an expression's parents are"),
    ("constraints.no_ox_by_a_car", "noun", "'dog'}: ValueError: a constraint is true or false, this is"),
    ("constraints.no_ox_by_a_car", "noun == 'cow'", "no input satisfies the constraint no_ox_by_a_car"),
    ("constraints.no_ox_by_a_car", "nuon != 'ox'", "parent 'nuon' is no variable. Did you mean 'noun'?"),
    ("constraints.no_ox_by_a_car", "lambda: 1", "constraint 'no_ox_by_a_car', 'lambda: 1', column 1: a lambda"),
    (
        "constraints.no_ox_by_a_car",
        {"of": "noun", "table": {"dog": True, "ox": True}, "domain": [True]},
        "constraint 'no_ox_by_a_car': a constraint is true or false and has no domain",
    ),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG, ids=[f"{path}={str(to)[:30]}" for path, to, _ in WRONG])
def test_wrong_models(path: str, value: Any, message: str) -> None:
    start = time.process_time()
    with pytest.raises(IITKitError) as caught:
        from_mapping(changed(path, value))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert time.process_time() - start < 1


def test_no_mapping() -> None:
    with pytest.raises(IITKitError, match="a causal model: given 3, expected the keys prompt, output"):
        from_mapping(3)  # type: ignore[arg-type]


def test_a_table_with_an_entry_that_no_parent_gives() -> None:
    """Its parent is computed, so that its values are known once the model is compiled."""
    written = changed(
        "mechanisms.verb", {"of": "subject", "table": dict.fromkeys(("dog", "dogs", "ox", "oxen", "oxes"), " is")}
    )
    with pytest.raises(
        IITKitError, match=r"entry for subject = 'oxes', which 'subject' never is\. Did you mean 'oxen'"
    ):
        from_mapping(written)


# --- what YAML reads as something else ---

TRAPS = {
    "noun: [dog, ox]": {
        "noun: [dog, yes]": "line 4: bare yes is a boolean to YAML: quote it if it is text",
        "noun: [dog, No]": "line 4: bare No is a boolean",
        "noun: [dog, on]": "line 4: bare on is a boolean",
        "noun: [dog, 012]": "line 4: bare 012 is a number, and maybe another than it looks to YAML: quote it",
        "noun: [dog, 0x1F]": "line 4: bare 0x1F is a number",
        "noun: [dog, 1_000]": "line 4: bare 1_000 is a number",
        "noun: [dog, 1:30]": "line 4: bare 1:30 is a number",
        "noun: [dog, 2020-01-01]": "line 4: bare 2020-01-01 is a date",
        "noun: [dog, .nan]": "line 4: bare .nan is a number",
        "noun: [dog, ~]": "given null: every variable needs a value",
        "noun: [dog, ]\n  noun: [ox]": "line 5: key 'noun' stands twice",
        "noun: [dog, ox": "line 5:",
        "? [a]\n  : 3": "line 4: a key must be text, a number or a boolean",
        "noun: !!python/object/apply:os.system [ls]": "could not determine a constructor for the tag",
    },
    "{of: noun, table: {dog: dogs, ox: oxen}}": {
        "{of: noun, table: {yes: dogs, ox: oxen}}": "line 7: bare yes is a boolean",
        "{of: noun, table: {true: dogs, 1: oxen}}": "line 7: keys True and 1 are one to a mapping: write",
    },
    "many if plural else noun": {
        "'dogs' if plural else noun": "line 8: expected <block end>, but found '<scalar>' (text with brackets in",
        "[many, noun][plural]": "and an expression that begins with a quote stand in quotes of their own)",
    },
}


@pytest.mark.parametrize(("old", "new"), [(old, new) for old, news in TRAPS.items() for new in news])
def test_traps_of_yaml(old: str, new: str, tmp_path: Path) -> None:
    file = write(tmp_path, YAML.replace(old, new))
    with pytest.raises(IITKitError) as caught:
        from_yaml(file)
    assert TRAPS[old][new] in str(caught.value)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_what_is_no_trap(tmp_path: Path) -> None:
    text = YAML.replace("noun: [dog, ox]", "noun: ['yes', '012', -3, 2.5, +1, 1.e+2]")
    text = text.replace("{of: noun, table: {dog: dogs, ox: oxen}}", "f'{noun}s'")
    assert from_yaml(write(tmp_path, text)).domains["noun"].values == ["yes", "012", -3, 2.5, 1, 100.0]


@pytest.mark.parametrize("content", [b"\xff\xfe\xff", b"a: [", b"", b"- 1", b"[" * 5000, b"a: &a [*a]", b"\0"])
def test_files_that_hold_no_model(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    file.write_bytes(content)
    with pytest.raises(IITKitError) as caught:
        from_yaml(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(IITKitError, match=r"no file .*nope\.yaml: give a YAML file with the causal model"):
        from_yaml(tmp_path / "nope.yaml")


@pytest.mark.parametrize(
    ("key", "line"),
    [("variables", "variables: {noun: [*l11]}"), ("mechanisms", "mechanisms: {verb: {of: noun, table: {dog: *l11}}}")],
)
def test_aliases_of_aliases_are_refused_at_once(key: str, line: str, tmp_path: Path) -> None:
    """Ten of ten of ten …: a few lines that stand for 10^12 items."""
    bomb = ["  l0: &l0 [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]"]
    bomb += [f"  l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 12)]
    rest = {"variables": "variables: {noun: [dog]}", "mechanisms": "mechanisms: {verb: noun}", key: line}
    text = "\n".join(["prompt: '{noun}'", "output: verb", "constraints:", *bomb, *rest.values()])
    start = time.process_time()
    with pytest.raises(IITKitError, match="given a list of more than 1000 items, or more than 12 deep"):
        from_yaml(write(tmp_path, text))
    assert time.process_time() - start < 1


# --- writing, and reading what was written ---


def every_input(model: CausalModel) -> dict[str, list[Hashable]]:
    rows = list(itertools.product(*(domain.values for domain in model.exogenous.values())))
    return {name: [row[i] for row in rows] for i, name in enumerate(model.exogenous)}


def same(one: CausalModel, other: CausalModel, inputs: dict[str, list[Hashable]]) -> None:
    """Both models give every variable the same value, of the same type, on all inputs; and allow the same ones."""
    first, second = one.run(inputs), other.run(inputs)
    assert list(one.exogenous) == list(other.exogenous)
    assert set(one.mechanisms) == set(other.mechanisms)
    for name in one.domains:
        values = one.values(first, name)
        assert values == other.values(second, name), name
        assert [type(value) for value in values] == [type(value) for value in other.values(second, name)], name
    assert one.answers(first, one.output) == other.answers(second, other.output)
    assert one.allowed(first).tolist() == other.allowed(second).tolist()
    assert (one.output, one.candidates, one.slots) == (other.output, other.candidates, other.slots)


def through_yaml(model: CausalModel) -> CausalModel:
    text = yaml.safe_dump(to_mapping(model), sort_keys=False, allow_unicode=True)
    return from_mapping(yaml.safe_load(text))


def test_written_as_it_was_read() -> None:
    assert to_mapping(from_mapping(WRITTEN)) == WRITTEN


def test_tables_by_hand() -> None:
    model = CausalModel(
        prompt="{noun} {plural}", output="verb", surface={"are": [" are", " Are"], "is": " is", "were": " were"}
    )
    model.variables(noun=["dog", "ox"], plural=[False, True], flag=[1, True])

    @model.mechanism(domain=["is", "are", "were"])
    def verb(plural: bool) -> str:
        return "are" if plural else "is"

    @model.mechanism
    def which(flag: object) -> str:
        return type(flag).__name__

    @model.constraint
    def few(noun: str, plural: bool) -> bool:
        return noun == "dog" or not plural

    with warnings.catch_warnings(action="ignore"):  # that two inputs have one prompt
        assert to_mapping(model) == {
            "prompt": "{noun} {plural}",
            "output": "verb",
            "surface": {"are": [" are", " Are"], "is": " is", "were": " were"},
            "variables": {"noun": ["dog", "ox"], "plural": [False, True], "flag": [1, True]},
            "mechanisms": {
                "verb": {"of": "plural", "table": {False: "is", True: "are"}, "domain": ["is", "are", "were"]},
                "which": {"of": "flag", "rows": [[1, "int"], [True, "bool"]]},
            },
            "constraints": {
                "few": {
                    "of": ["noun", "plural"],
                    "table": {"dog": {False: True, True: True}, "ox": {False: True, True: False}},
                }
            },
        }
        same(model, through_yaml(model), every_input(model))


KINDS: list[list[Hashable]] = [
    ["a", "b", "yes"],
    [0, 1, 2, 3],
    [False, True],
    [1, True, "1", 1.0],
    ["012", " no"],
    [(1, 2), (3, 4)],
]


def random_model(rng: random.Random) -> CausalModel:
    """Tables of all kinds of values, and mechanisms that an expression could be."""
    domains: dict[str, list[Hashable]] = {f"x{i}": rng.choice(KINDS) for i in range(rng.randint(2, 4))}
    model = CausalModel(prompt=" ".join(f"{{{name}}}" for name in domains), output="m4")
    model.variables(**domains)
    for i in range(5):
        name, of = f"m{i}", rng.sample(list(domains), rng.randint(1, min(3, len(domains))))
        rows = list(itertools.product(*(domains[parent] for parent in of)))
        results: list[Hashable] = rng.choice(KINDS) if i < 4 else [" yes", " no"]
        made = [row[0] if i % 2 == 0 and i < 4 else rng.choice(results) for row in rows]
        table = {tuple(typed(row)): result for row, result in zip(rows, made, strict=True)}
        model.mechanism(named(name, of, lambda *values, table=table: table[tuple(typed(values))]))
        domains[name] = [value for _, value in dict.fromkeys(typed(made))]
    return model


def typed(values: Iterable[Hashable]) -> list[tuple[type, Hashable]]:
    """Values with their types: True is not 1."""
    return [(type(value), value) for value in values]


@pytest.mark.filterwarnings("ignore:two inputs have one prompt")
@pytest.mark.parametrize("most", [100_000, 4], ids=["tabulated", "lazy"])
@pytest.mark.parametrize("seed", range(30))
def test_random_models_come_back_the_same(seed: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variables_module, "TABULATED", most)
    model = random_model(random.Random(seed))
    same(model, through_yaml(model), every_input(model))


def named(name: str, parents: list[str], function: Callable[..., Hashable]) -> Callable[..., Hashable]:
    scope: dict[str, Any] = {"function": function}
    exec(f"def {name}({', '.join(parents)}): return function({', '.join(parents)})", scope)
    made: Callable[..., Hashable] = scope[name]
    return made


@pytest.mark.parametrize("kind", [Agreement, PronounGender, PriceTagging])
def test_tasks_come_back_the_same(kind: Any) -> None:
    model = kind().model
    start = time.process_time()
    back = through_yaml(model)
    assert time.process_time() - start < 15
    rng = random.Random(0)
    inputs = {name: rng.choices(domain.values, k=2000) for name, domain in model.exogenous.items()}
    same(model, back, inputs)
    assert [template.template for template in back.templates] == [template.template for template in model.templates]


def indirect_objects(n: int = 260) -> CausalModel:
    """Who is given something: the first or the second of two names; two tables of 135 200 entries each."""
    names = [f"Name{i}" for i in range(n)]
    model = CausalModel(
        "{name_a} and {name_b}: {subject} gave it to", output="answer", candidates=["answer_a", "answer_b"]
    )
    model.variables(io_position=["first", "second"], name_a=names, name_b=names)
    of = ["io_position", "name_a", "name_b"]
    model.mechanism(named("subject", of, lambda position, a, b: b if position == "first" else a))
    model.mechanism(named("io_name", of, lambda position, a, b: a if position == "first" else b))
    for name, parent in (("answer", "io_name"), ("answer_a", "name_a"), ("answer_b", "name_b")):
        model.mechanism(named(name, [parent], lambda value: f" {value}"))
    model.constraint(named("two_names", ["name_a", "name_b"], lambda a, b: a != b))
    return model


def test_indirect_objects_are_written_in_a_few_lines() -> None:
    model = indirect_objects()
    written = to_mapping(model)
    assert written["mechanisms"] == {
        "subject": "name_b if io_position == 'first' else name_a",
        "io_name": "name_a if io_position == 'first' else name_b",
        "answer": "f' {io_name}'",
        "answer_a": "f' {name_a}'",
        "answer_b": "f' {name_b}'",
    }
    assert written["constraints"] == {"two_names": "name_a != name_b"}
    rng = random.Random(0)
    inputs = {name: rng.choices(domain.values, k=2000) for name, domain in model.exogenous.items()}
    same(model, from_mapping(written), inputs)


def test_encodings_come_back() -> None:
    sums = CausalModel(Symbols("{a} + {b} ="), output="total")
    sums.variables(a=[0, 1], b=[1, 0])
    sums.mechanism(named("total", ["a", "b"], lambda a, b: a + b))
    back = through_yaml(sums)
    inputs = every_input(sums)
    assert sums.features(sums.run(inputs)).tolist() == back.features(back.run(inputs)).tolist()
    pairs = CausalModel(Vectors("w"), output="first")
    pairs.variables(w=[(0.5, 1.0), (2.0, 3.0)])
    pairs.mechanism(named("first", ["w"], lambda w: w[0]))
    same(pairs, through_yaml(pairs), {"w": [(0.5, 1.0), (2.0, 3.0)]})


def test_what_cannot_be_written() -> None:
    def model(prompt: Any = "{x}", **domains: Any) -> CausalModel:
        found = CausalModel(prompt, output="answer")
        found.variables(**domains)
        found.mechanism(named("answer", list(domains), lambda *values: f" {values}"))
        return found

    with pytest.raises(IITKitError, match=r"variable x is open: a model is written with the lists of its values"):
        to_mapping(model(x=Open(lambda generator, n: [0] * n)))
    with pytest.raises(IITKitError, match=r"variable 'x': given frozenset\(\) \(frozenset\), expected text, a number"):
        to_mapping(model(x=[frozenset()]))
    with pytest.raises(IITKitError, match="inputs of Images are made by a function, which is no plain value"):
        to_mapping(model(Images((1, 1, 1), lambda x: np.full((1, 1, 1), x)), x=[0, 1]))
    with pytest.raises(IITKitError, match=r"variable 'x': given inf, expected a number that is finite"):
        to_mapping(model(x=[1.0, float("inf")]))
    many = {"x": list(range(300)), "y": list(range(300))}
    with pytest.raises(IITKitError, match="'answer' has 90000 entries, 50000 at most: write it as an expression"):
        to_mapping(model("{x} {y}", **many))
    with pytest.raises(IITKitError, match="'answer' has 9000000 entries, too many to list: write it as an expression"):
        to_mapping(model("{x} {y}", x=list(range(3000)), y=list(range(3000))))


# --- expressions that equal tables ---


def domain(name: str, *values: Hashable) -> Domain:
    return Domain(name, list(values))


@pytest.mark.parametrize(
    ("text", "parents"),
    [
        ("x", {"x": [3, 1, 2]}),
        ("str(x)", {"x": [3, 1, 2]}),
        ("f' {x}'", {"x": ["a", True]}),
        ("x == y", {"x": [1, 2, 3], "y": [2, 3, 4, 1]}),
        ("x != y", {"x": [1, 2, 3], "z": [0, 1], "y": [2, 3, 4, 1]}),
        ("x < y", {"x": [3, 1, 2.5], "y": [2, 2.5]}),
        ("x >= y", {"x": ["b", "a"], "y": ["ab", "a", "b"]}),
        ("x if flag else y", {"flag": [False, True], "x": [1, 2, 3], "y": [4, 2, 3]}),
        ("x if flag == 'a' else y if flag == 'b' else 7", {"flag": ["a", "b", "c"], "x": [1, 2], "y": [4, 2]}),
        ("x if flag == 1 else f' {y}'", {"flag": [0, 1, 2], "x": [1, 2], "y": [4, 2]}),
        ("(x if one else y) if other else y", {"one": [False, True], "other": [False, True], "x": [1, 2], "y": [3, 4]}),
    ],
)
def test_recognised_by_hand(text: str, parents: dict[str, list[Hashable]]) -> None:
    """The expression that is found is that which made the table; it is found from the numbers alone."""
    domains = [domain(name, *values) for name, values in parents.items()]
    rows = list(itertools.product(*parents.values()))
    results = [eval(text, {}, dict(zip(parents, row, strict=True))) for row in rows]
    found = domain("v", *dict.fromkeys(results))
    codes = np.array([found.find(result) for result in results]).reshape([len(d) for d in domains])
    written = recognised(codes, domains, found)
    assert written is not None
    assert [eval(written, {}, dict(zip(parents, row, strict=True))) for row in rows] == results
    assert len(written) <= len(text) + 2


def test_what_is_not_recognised() -> None:
    x, v = domain("x", 1, 2, 3, 4, 5, 6, 7), domain("v", "a", "b")
    assert recognised(np.array([0, 1, 0, 0, 1, 1, 0]), [x], v) is None
    assert recognised(np.zeros(7, dtype=np.int64), [x], v) is None  # a constant has no parents
    assert recognised(np.array([0, 1]), [domain("flag", 1, True)], v) is None  # which Python takes for one


def test_a_number_that_cannot_be_written_is_no_name() -> None:
    """``inf`` would be read as a variable."""
    x, v = domain("x", *range(20)), domain("v", float("inf"), 10**30)
    flag = domain("flag", False, True)
    assert recognised(np.repeat([[0], [1]], 20, axis=1), [flag, x], v) is None


def test_warnings_are_the_models_own() -> None:
    with warnings.catch_warnings(action="error"):
        to_mapping(from_mapping(WRITTEN))
