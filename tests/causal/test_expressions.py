"""Expressions against Python itself, against values worked by hand, and against those who would break out of them."""

from __future__ import annotations

import inspect
import itertools
import math
import random
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from iitkit.causal.expressions import DEEPEST, Expression
from iitkit.errors import IITKitError

VALUES: dict[str, Any] = {
    "a": 7,
    "b": -3,
    "flag": True,
    "off": False,
    "half": 0.5,
    "noun": "dog",
    "empty": "",
    "digits": "012",
    "pair": (2, "x"),
    "row": (3, 1, 2),
}


def value(text: str) -> Any:
    """What an expression says of :data:`VALUES`."""
    expression = Expression("v", text)
    return expression(**{name: VALUES[name] for name in expression.parents})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a + b", 4),
        ("a - b * 2", 13),
        ("(a - b) * 2", 20),
        ("a // 2 + a % 2", 4),
        ("b // 2", -2),
        ("a / 2", 3.5),
        ("-a + +b", -10),
        ("flag + flag", 2),
        ("half * 3", 1.5),
        ("noun + 's'", "dogs"),
        ("f' {noun}'", " dog"),
        ("f'{a:03d}|{half:.2f}|{noun:>5}|{noun!r}|{pair}'", "007|0.50|  dog|'dog'|(2, 'x')"),
        ("f'{{{a + b}}}'", "{4}"),
        ("f'{a=}'", "a=7"),
        ("'are' if flag else 'is'", "are"),
        ("1 if off else 2 if off else a", 7),
        ("b < 0 <= a < 10", True),
        ("b < 0 <= a < 7", False),
        ("a == 7 and noun != 'cat'", True),
        ("off or noun", "dog"),
        ("empty and noun", ""),
        ("not off", True),
        ("'o' in noun", True),
        ("noun not in ('cat', 'dog')", False),
        ("a in [1, 7]", True),
        ("noun[0] + noun[-1]", "dg"),
        ("digits[1:]", "12"),
        ("digits[::-1]", "210"),
        ("pair[1]", "x"),
        ("row[:2]", (3, 1)),
        ("(a, noun, (b,))", (7, "dog", (-3,))),
        ("[a, [b]]", (7, (-3,))),
        ("{'dog': 'dogs', 'ox': 'oxen'}[noun]", "dogs"),
        ("{(7, True): 1, (7, False): a / 0}[(a, flag)]", 1),
        ("{True: 'yes', False: 'no'}[a > b]", "yes"),
        ("max(a, b) - min(row)", 6),
        ("abs(b) + len(noun)", 6),
        ("int(digits) + int(half)", 12),
        ("str(a) + str(flag)", "7True"),
        ("sum(row) + sum([a, half])", 13.5),
        ("sorted(row)", (1, 2, 3)),
        ("bool(empty), float(a)", (False, 7.0)),
        ("  a + b\n", 4),
        ("a +\n  b", 4),
        ("noun + 'a\u2028b'", "doga\u2028b"),
        ('noun +\n\n "it is" +\n "x"', "dogit isx"),
    ],
)
def test_by_hand(text: str, expected: object) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_only_the_branch_that_is_taken_is_computed() -> None:
    half = Expression("half", "a / b if b != 0 else 0")
    assert [half(a=6, b=4), half(a=6, b=0)] == [1.5, 0]
    assert Expression("v", "b == 0 or a / b > 1")(a=6, b=0) is True


def test_the_names_are_the_parents_in_order() -> None:
    expression = Expression("verb", "f' {b}' if max(c, a) > a and {1: d}[1] else b")
    assert expression.parents == ["b", "c", "a", "d"]
    assert list(inspect.signature(expression).parameters) == ["b", "c", "a", "d"]
    assert expression.__name__ == "verb"
    assert expression(" is", 1, 2, True) == " is"
    assert Expression("total", "sum + self")(sum=1, self=2) == 3  # a variable may be called so


# --- the same as Python ---


ARITHMETIC = ["+", "+", "-", "*", "/", "//", "%"]
COMPARISONS = ["==", "!=", "<", "<=", ">", ">=", "in", "not in"]
CALLED = ["abs", "bool", "float", "int", "len", "max", "min", "str", "sum"]
STRICTER = ("no variable", "two numbers", "63 bits", "that is", "tuple of numbers")
"""What we say where Python has a value: of constants, repeated texts and tuples, and large numbers."""


def outcome(compute: Callable[[], Any]) -> Any:
    """A value, or the exception in its place."""
    try:
        return compute()
    except Exception as error:
        return error


def grown(rng: random.Random, depth: int) -> str:
    """A random expression of the language, most of which have a value."""
    if depth == 0 or rng.random() < 0.1:
        leaves = [*VALUES, "0", "1", "2", "10", "0.25", "True", "'dog'", "'x'", "''", "(1, 2)", "' {'"]
        return rng.choice(leaves)
    part = [grown(rng, depth - 1) for _ in range(3)]
    shapes = [
        f"({part[0]} {rng.choice(ARITHMETIC)} {part[1]})",
        f"({part[0]} {rng.choice(COMPARISONS)} {part[1]})",
        f"({part[0]} < {part[1]} <= {part[2]})",
        f"({part[0]} {rng.choice(['and', 'or'])} {part[1]})",
        f"(not {part[0]})",
        f"(-{part[0]})",
        f"({part[0]} if {part[1]} else {part[2]})",
        f"({part[0]}, {part[1]})",
        f"{part[0]}[{rng.choice(['0', '-1', '1:', ':2', '::-1', part[1]])}]",
        f"{rng.choice(CALLED)}({part[0]})",
        f"max({part[0]}, {part[1]})",
        f"tuple(sorted({part[0]}))",
        f"{{1: a, 'dog': noun, (1, 2): 'x', 0.5: row}}[{part[2]}]",
    ]
    return rng.choice(shapes)


@pytest.mark.filterwarnings("ignore")  # Python's, of constants that are indexed
def test_random_expressions_mean_what_they_mean_in_python() -> None:
    rng = random.Random(0)
    agreed = failed = stricter = 0
    for _ in range(6_000):
        text = grown(rng, rng.randint(1, 4))
        expected = outcome(lambda text=text: eval(text, dict(VALUES)))
        found = outcome(lambda text=text: value(text.replace("tuple(sorted", "(sorted")))
        if not isinstance(found, Exception):
            assert found == expected, text
            assert type(found) is type(expected), text
            agreed += 1
            continue
        assert isinstance(found, IITKitError | ValueError), text
        if isinstance(expected, Exception):
            failed += 1
        else:
            assert any(word in str(found) for word in STRICTER), (text, found)
            stricter += 1
    assert agreed > 1200
    assert failed > 600
    assert stricter < 1000


# --- what is refused when it is read ---

REFUSED = {
    "noun.upper()": (1, "a call of attribute .upper is not of the language: it has names, text, numbers"),
    "a + noun.real": (5, "attribute .real"),
    "().__class__": (1, "attribute .__class__"),
    "f'{noun.upper}'": (4, "attribute .upper"),
    "lambda: a": (1, "a lambda"),
    "(lambda: a)()": (1, "a call of a lambda"),
    "[x for x in row]": (1, "a comprehension"),
    "sum(x for x in row)": (4, "a comprehension"),
    "{x: x for x in row}[a]": (1, "a comprehension"),
    "(b := a)": (2, "an assignment (:=)"),
    "await a": (1, "await"),
    "a ** 9": (1, "**"),
    "a @ b": (1, "@"),
    "a << 99": (1, "<<"),
    "a & b": (1, "& (write and)"),
    "a | b": (1, "| (write or)"),
    "a ^ b": (1, "^ (write !=)"),
    "~a": (1, "~ is not of the language: write not"),
    "a is b": (1, "`is` is not of the language: write == or !="),
    "{a, b}": (1, "a set"),
    "{'x': a}": (1, "a dict that is not indexed"),
    "(*row,)": (2, "a star (*)"),
    "max(*row)": (5, "a star (*)"),
    "{**a}[b]": (1, "a key of the dict must be written out"),
    "{a: 1}[b]": (2, "a key of the dict must be written out"),
    "{1: a, True: b}[a]": (8, "key True stands twice in the dict"),
    "row[1:2, 3]": (5, "a slice"),
    "open(noun)": (1, "open() is not of the language. It has abs, bool,"),
    "eval(noun)": (1, "eval() is not of the language."),
    "__import__('os')": (1, "__import__() is not of the language."),
    "leng(noun)": (1, "leng() is not of the language. Did you mean 'len'?"),
    "a(b)": (1, "a() is not of the language."),
    "row[0](b)": (1, "a call of an item"),
    "abs(a)(b)": (1, "a call of a call's result"),
    "min(row, key=a)": (1, "min() takes values, without a name"),
    "int(digits, 8)": (1, "int() takes 1 value, without a name"),
    "len()": (1, "len() takes 1 value"),
    "f'{a:>9999999}'": (1, "format '>9999999': expected one such as 02d or .2f"),
    "f'{half:.999f}'": (1, "format '.999f'"),
    "f'{a:{b}}'": (1, "a format that is computed"),
    "None or a": (1, "None can be no value"),
    "a + 1j": (5, "1j can be no value"),
    "b'x' + a": (1, "b'x' can be no value"),
    "a if b else ...": (13, "Ellipsis can be no value"),
    "a + 9223372036854775808": (5, "an integer beyond 63 bits"),
    "a + 1e999": (5, "a number that is inf"),
    "a +": (1, "invalid syntax: expected one Python expression"),
    "a; b": (2, "invalid syntax"),
    "a = b": (3, "invalid syntax"),
    "import os": (1, "invalid syntax"),
    "noun + 'two\nlines'": (8, "unterminated string literal"),
    "noun +\n'a\u2028 b'": (7, "invalid syntax"),
    "'é' + noun.real": (7, "attribute .real"),  # columns are of characters
    "'\\d' + noun": (1, "invalid escape sequence"),
    "a\0": (1, "null bytes"),
    "a # the rest\n + b": (1, "expected one Python expression"),
    "": (1, "invalid syntax"),
    "' is'": (None, "\"' is'\" names no variable, so it has no parents"),
    "'x' * 2100 + 'y'": (None, "names no variable"),
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused_in_one_line(text: str) -> None:
    column, message = REFUSED[text]
    with pytest.raises(IITKitError) as caught:
        Expression("verb", text)
    said = str(caught.value)
    assert said.startswith("mechanism 'verb'")
    assert message in said
    assert column is None or f"column {column}: " in said
    assert "\n" not in said
    assert len(said) < 300


@pytest.mark.parametrize("text", [12, True, None, ["a"]])
def test_no_text(text: Any) -> None:
    with pytest.raises(IITKitError, match=r"constraint 'v': given .*, expected an expression in quotes"):
        Expression("v", text, "constraint")


def test_a_long_expression_is_shown_where_it_is_wrong() -> None:
    text = " + ".join(f"name_{i}" for i in range(40)) + " + a.b + " + "c + " * 5 + "d"
    with pytest.raises(IITKitError) as caught:
        Expression("v", text)
    assert f"column {text.index('a.b') + 1}: attribute .b" in str(caught.value)
    assert "'…" in str(caught.value)
    assert "+ a.b +" in str(caught.value)


# --- what is refused as it runs ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a + noun", "+ of 7 and 'dog': expected two numbers or two texts ('a + noun', column 1)"),
        ("a + (noun - a)", "- of 'dog' and 7: expected two numbers ('a + (noun - a)', column 6)"),
        ("noun * a", "* of 'dog' and 7: expected two numbers"),
        ("noun % pair", "% of 'dog' and (2, 'x'): expected two numbers"),
        ("pair + row", "+ of (2, 'x') and (3, 1, 2): expected"),
        ("-noun", "a sign before 'dog': expected a number"),
        ("a // off", "by zero ('a // off', column 1)"),
        ("half % 0", "column 1"),
        ("noun < a", "'<' not supported between"),
        ("a < b < noun", None),  # Python stops at the first that is false
        ("b < a < noun", "'<' not supported between"),
        ("a in noun", "7 in 'dog': expected a text in a text, or a value in a tuple"),
        ("noun in a", "'dog' in 7: expected"),
        ("noun[9]", "out of range ('noun[9]', column 1)"),
        ("noun[::off]", "zero"),
        ("a[0]", "not subscriptable"),
        ("{'cat': 1, 'dogs': 2}[noun]", "the dict has no key 'dog'. Did you mean 'dogs'? It has cat, dogs"),
        ("int(noun)", "invalid literal"),
        ("len(a)", "has no len()"),
        ("abs(noun)", "bad operand type"),
        ("sum(pair)", "sum() of (2, 'x'): expected a tuple of numbers"),
        ("sorted(pair)", "not supported between"),
        ("max(empty)", "empty"),
        ("f'{noun:02d}'", "Unknown format code 'd'"),
        ("float(noun[:0] + 'nan')", "a number that is nan"),
        ("float('in' + 'f' + empty)", "a number that is inf"),
        ("half * 1e308 * 1e308", "a number that is inf"),
        ("a * 4611686018427387904", "an integer beyond 63 bits"),
        ("int(half * 1e308)", "an integer beyond 63 bits"),
    ],
)
def test_what_values_do_not_allow(text: str, message: str | None) -> None:
    if message is None:
        assert value(text) is False
        return
    with pytest.raises(ValueError) as caught:
        value(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


# --- bombs ---

BOMBS = [
    "[" * 900 + "a" + "]" * 900,
    "-" * 1990 + "a",
    "not " * 490 + "a",
    "a" + "[a" * 600 + "]" * 600,
    "a" + "[0]" * 600,
    "a if a else " * 160 + "a",
    "+".join("a" * 990),
    "a" * 2001,
    "'" + "x" * 1_000_000 + "' + a",
    "9" * 1_000_000 + " + a",
    "{0:" * 400 + "a" + "}[a]" * 400,
    "lambda:" * 280 + "a",
    "(" * 100_000,
    "(" * 1_999,
    "0x" + "f" * 1900 + " + a",
    "9" * 1900 + " + a",
    "a" + ".a" * 900,
    "a" + "()" * 900,
    "f'{" * 600,
    "\\" * 1999,
]


@pytest.mark.parametrize("text", BOMBS, ids=lambda text: text[:12])
def test_bombs_are_refused_at_once(text: str) -> None:
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(IITKitError) as caught:
        Expression("v", text)
    assert len(str(caught.value)) < 400
    assert time.process_time() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    [
        "f'{f\"{a}\"}'" * 150,
        "f'" + "{a}" * 600 + "'",
        "str((" + "a, " * 600 + "))",
        "sorted(a + a[:1000])",
        "a" + " + a" * 50,
    ],
    ids=lambda text: text[:12],
)
def test_long_values_are_refused_at_once(text: str) -> None:
    grow = Expression("v", text)
    tracemalloc.start()
    start = time.process_time()
    for given in ("x" * 9_000, tuple(range(900)), ("x" * 9_000,) * 900):
        found = outcome(lambda given=given: grow(a=given))
        assert type(found) is ValueError
        assert len(str(found)) < 400
    assert time.process_time() - start < 5  # 0.05 measured
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "text", ["(a, a)", "a + a", "f'{a}{a}'", "a * a", "(a, 1)", "a + 1e300 * a", "[[a]]", "(0, a)"]
)
def test_variables_that_build_on_one_another_stay_small(text: str) -> None:
    grow = Expression("v", text)
    start = time.process_time()
    for first in ("x" * 10, 3, (1, 2), 2.0):
        now: Any = first
        try:
            for _ in range(2000):
                now = grow(a=now)
        except ValueError:
            continue
        assert isinstance(now, float)
        assert math.isfinite(now)
    assert time.process_time() - start < 2


def test_as_deep_as_is_allowed() -> None:
    n = DEEPEST - 2
    assert Expression("v", "+".join("a" * n))(a=2) == 2 * n
    assert Expression("v", "(" * 40 + "a" + ")" * 40)(a=2) == 2  # brackets are no depth
    chosen = Expression("v", "".join(f"{i} if a == {i} else " for i in range(n - 1)) + "-1")
    assert [chosen(a=i) for i in (0, n - 2, n)] == [0, n - 2, -1]


def test_two_of_each_character_break_nothing() -> None:
    """Every short text is an expression or an error of ours, never another one."""
    alphabet = [
        "a",
        "1",
        "'",
        '"',
        "f'",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        ":",
        ",",
        ".",
        "*",
        "-",
        "=",
        "!",
        "\\",
        "\n",
        "#",
    ]
    expressions = 0
    for size in (1, 2, 3):
        for letters in itertools.product(alphabet, repeat=size):
            found = outcome(lambda letters=letters: Expression("v", "".join(letters)).parents)
            fine = isinstance(found, list) and set("".join(found)) <= {"a", "f", "1"}
            assert fine or (isinstance(found, IITKitError) and "\n" not in str(found)), letters
            expressions += fine
    assert expressions > 10


def test_a_million_calls_are_seconds() -> None:
    expression = Expression("v", "name_b if position == 'first' else name_a")
    start = time.process_time()
    for _ in range(100_000):
        expression(name_a="Mary", name_b="John", position="first")
    assert time.process_time() - start < 1  # 0.07 measured
