"""Mechanisms written as text: one Python expression of a small, closed language, interpreted without eval or exec."""

from __future__ import annotations

import ast
import inspect
import operator
import re
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NoReturn

from iitkit.causal.operations import FUNCTIONS, LARGEST, LONGEST, NUMBERS, FailedError, bounded, contained, short
from iitkit.errors import IITKitError, choices, did_you_mean

Run = Callable[[Mapping[str, Any]], Any]
"""A compiled node: the parents' values by name → its value."""

LONGEST_TEXT = 2000
DEEPEST = 60
"""Most characters of an expression, and how deep it may nest: more is a table's work."""

_SPEC = re.compile(r"(?:[^{}]?[<>=^])?[-+ ]?0?\d{0,2}[,_]?(?:\.\d{1,2})?[bdeEfFgGosxX%]?")
_GRAMMAR = (
    "it has names, text, numbers, + - * / // %, comparisons, in, and, or, not, if-else, [index] and abs(), len(), …"
)
_TOO_MUCH = (MemoryError, RecursionError)

_ARITHMETIC: dict[type, tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
    ast.FloorDiv: ("//", operator.floordiv),
    ast.Mod: ("%", operator.mod),
}
_COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: contained,
    ast.NotIn: lambda item, container: not contained(item, container),
}


class Expression:
    """A mechanism's or constraint's computation, written as one Python expression.

    What is accepted means what it means in Python, but that a list is a tuple, and that of ``{…}[x]`` only the chosen
    value is computed. The names in it are the parents, in the order in which they first stand. It is called with the
    parents' values, by position or by name.

    >>> total = Expression("total", "left + right if carry else 0")
    >>> total.parents, total(left=2, carry=True, right=3)
    (['left', 'right', 'carry'], 5)

    Args:
        name: what it computes, for messages and for the graph.
        text: the expression.
        what: how messages call it.

    Raises:
        IITKitError: what is no expression, or is not of the language; it names the column.
    """

    def __init__(self, name: str, text: str, what: str = "mechanism") -> None:
        self.__name__, self.text, self._what = name, text, what
        if not isinstance(text, str):
            raise IITKitError(f"{what} {name!r}: given {text!r}, expected an expression in quotes")
        self._source = _one_line(text)
        self.parents: list[str] = []
        tree = self._parse()
        self._run = self._compile(tree)
        if not self.parents:
            raise IITKitError(f"{what} {name!r}: {text.strip()!r} names no variable, so it has no parents")
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self.__signature__ = inspect.Signature([inspect.Parameter(parent, kind) for parent in self.parents])

    def __repr__(self) -> str:
        return f"Expression({self.__name__!r}, {self.text!r})"

    def __call__(self, /, *values: Hashable, **named: Hashable) -> Any:
        """Return the value for the parents' values.

        Raises:
            ValueError: an operation that these values do not allow; it names the column.
        """
        try:
            return self._run(dict(zip(self.parents, values, strict=True)) if values else named)
        except FailedError as failure:
            raise ValueError(f"{failure} ({self._place(failure.column)})") from None

    # --- reading it ---

    def _parse(self) -> ast.expr:
        if len(self._source) > LONGEST_TEXT:
            self._refuse(0, f"it has {len(self._source)} characters, {LONGEST_TEXT} at most: write a table instead")
        try:
            with warnings.catch_warnings(action="error"):  # an escape that is none, say
                tree = ast.parse(self._source, mode="eval").body
            self._check_depth(tree)
        except _TOO_MUCH:
            self._refuse(0, "it nests too deep: write a table, or variables in between")
        except SyntaxError as error:
            column = max((error.offset or 1) - 1, 0) if error.lineno == 1 else 0
            self._refuse(column, f"{error.msg}: expected one Python expression")
        except (ValueError, Warning) as error:  # a null character
            self._refuse(0, f"{error}: expected one Python expression")
        return tree

    def _check_depth(self, tree: ast.expr) -> None:
        level: list[ast.AST] = [tree]
        for _ in range(DEEPEST):
            level = [child for node in level for child in ast.iter_child_nodes(node)]
            if not level:
                return
        raise RecursionError

    def _compile(self, node: ast.expr) -> Run:
        if isinstance(node, ast.Constant):
            return self._constant(node)
        if isinstance(node, ast.Name):
            if node.id not in self.parents:
                self.parents.append(node.id)
            return operator.itemgetter(node.id)
        make = {
            ast.JoinedStr: self._joined,
            ast.BinOp: self._binary,
            ast.UnaryOp: self._unary,
            ast.Compare: self._compare,
            ast.BoolOp: self._boolean,
            ast.IfExp: self._conditional,
            ast.Tuple: self._tuple,
            ast.List: self._tuple,
            ast.Subscript: self._subscript,
            ast.Call: self._call,
        }.get(type(node))
        if make is None:
            self._unknown(node, _named(node))
        run: Run = make(node)  # type: ignore[operator]
        return run

    def _refuse(self, node: ast.AST | int, why: str) -> NoReturn:
        column = node if isinstance(node, int) else self._column(node)
        raise IITKitError(f"{self._what} {self.__name__!r}, {self._place(column)}: {why}")

    def _unknown(self, node: ast.AST, what: str) -> NoReturn:
        self._refuse(node, f"{what} is not of the language: {_GRAMMAR}")

    def _column(self, node: ast.AST) -> int:
        """A node's place in characters; the parser counts bytes."""
        return len(self._source.encode()[: getattr(node, "col_offset", 0)].decode(errors="ignore"))

    def _place(self, column: int) -> str:
        start = max(0, min(column - 20, len(self._source) - 60))
        part = self._source[start : start + 60]
        shown = f"{'…' if start else ''}{part}{'…' if start + 60 < len(self._source) else ''}"
        return f"{shown!r}, column {column + 1}"

    # --- its parts ---

    def _constant(self, node: ast.Constant) -> Run:
        value = node.value
        if type(value) not in (str, int, float, bool):
            self._refuse(node, f"{value!r} can be no value: expected text, a number, True or False")
        try:
            bounded(value)
        except FailedError as failure:
            self._refuse(node, str(failure))
        return lambda _: value

    def _joined(self, node: ast.JoinedStr) -> Run:
        parts: list[Run] = []
        for part in node.values:
            if isinstance(part, ast.Constant):
                parts.append(self._constant(part))
                continue
            assert isinstance(part, ast.FormattedValue)
            run, convert, spec = self._compile(part.value), {114: repr, 97: ascii}.get(part.conversion), ""
            if part.conversion == 115 or (part.conversion < 0 and part.format_spec is None):
                convert = str
            if isinstance(part.format_spec, ast.JoinedStr):
                pieces = part.format_spec.values
                if any(not isinstance(piece, ast.Constant) for piece in pieces):
                    self._refuse(part, "a format that is computed is not of the language: write it out")
                spec = "".join(str(piece.value) for piece in pieces if isinstance(piece, ast.Constant))
                if not _SPEC.fullmatch(spec):
                    self._refuse(part, f"format {spec!r}: expected one such as 02d or .2f, of two digits at most")
            parts.append(self._formatted(part, run, convert, spec))

        def joined(env: Mapping[str, Any]) -> str:
            text = ""
            for part in parts:
                text += part(env)
                if len(text) > LONGEST:
                    raise FailedError(column, f"text of more than {LONGEST} characters")
            return text

        column = self._column(node)
        return joined

    def _formatted(self, node: ast.AST, run: Run, convert: Callable[[Any], str] | None, spec: str) -> Run:
        def formatted(value: Any) -> str:
            return format(value if convert is None else convert(value), spec)

        if convert is not None and not spec:
            return self._guarded(node, convert, [run])
        return self._guarded(node, formatted, [run])

    def _binary(self, node: ast.BinOp) -> Run:
        sign, operate = _ARITHMETIC.get(type(node.op), ("", operator.add))
        if not sign:
            self._unknown(node, _sign(node.op))
        left, right, column = self._compile(node.left), self._compile(node.right), self._column(node)

        def binary(env: Mapping[str, Any]) -> Any:
            a, b = left(env), right(env)
            if type(a) in NUMBERS and type(b) in NUMBERS:
                try:
                    result = operate(a, b)
                except ArithmeticError as error:
                    raise FailedError(column, str(error)) from None
                if type(result) is int and -LARGEST < result < LARGEST:
                    return result
                return bounded(result, column)
            if sign == "+" and type(a) is str and type(b) is str:
                return bounded(a + b, column)
            wanted = "two numbers or two texts" if sign == "+" else "two numbers"
            raise FailedError(column, f"{sign} of {short(a)} and {short(b)}: expected {wanted}")

        return binary

    def _unary(self, node: ast.UnaryOp) -> Run:
        run, column = self._compile(node.operand), self._column(node)
        if isinstance(node.op, ast.Not):
            return lambda env: not run(env)
        if isinstance(node.op, ast.Invert):
            self._refuse(node, "~ is not of the language: write not")
        operate = operator.neg if isinstance(node.op, ast.USub) else operator.pos

        def unary(env: Mapping[str, Any]) -> Any:
            value = run(env)
            if type(value) not in NUMBERS:
                raise FailedError(column, f"a sign before {short(value)}: expected a number")
            return operate(value)

        return unary

    def _compare(self, node: ast.Compare) -> Run:
        if any(type(op) not in _COMPARISONS for op in node.ops):
            self._refuse(node, "`is` is not of the language: write == or !=")
        tests = [_COMPARISONS[type(op)] for op in node.ops]
        runs, column = [self._compile(part) for part in (node.left, *node.comparators)], self._column(node)
        first, second, only = runs[0], runs[1], tests[0]

        def one(env: Mapping[str, Any]) -> bool:
            try:
                return only(first(env), second(env))
            except TypeError as error:
                raise FailedError(column, str(error)) from None

        def chained(env: Mapping[str, Any]) -> bool:
            left = first(env)
            for test, run in zip(tests, runs[1:], strict=True):
                right = run(env)
                try:
                    if not test(left, right):
                        return False
                except TypeError as error:
                    raise FailedError(column, str(error)) from None
                left = right
            return True

        return one if len(tests) == 1 else chained

    def _boolean(self, node: ast.BoolOp) -> Run:
        runs, stops_at = [self._compile(part) for part in node.values], isinstance(node.op, ast.Or)

        def boolean(env: Mapping[str, Any]) -> Any:
            value: Any = None
            for run in runs:
                value = run(env)
                if bool(value) is stops_at:
                    break
            return value

        return boolean

    def _conditional(self, node: ast.IfExp) -> Run:
        then, test, other = self._compile(node.body), self._compile(node.test), self._compile(node.orelse)
        return lambda env: then(env) if test(env) else other(env)

    def _tuple(self, node: ast.Tuple | ast.List) -> Run:
        runs, column = [self._compile(part) for part in node.elts], self._column(node)
        if all(isinstance(part, ast.Constant) for part in node.elts):
            value = tuple(run({}) for run in runs)
            return lambda _: value
        return lambda env: bounded(tuple([run(env) for run in runs]), column)

    def _subscript(self, node: ast.Subscript) -> Run:
        if isinstance(node.value, ast.Dict):
            return self._lookup(node, node.value)
        run = self._compile(node.value)
        if isinstance(node.slice, ast.Slice):
            bounds = (node.slice.lower, node.slice.upper, node.slice.step)
            parts = [(lambda _: None) if part is None else self._compile(part) for part in bounds]
            return self._guarded(node, lambda value, *ends: value[slice(*ends)], [run, *parts])
        return self._guarded(node, operator.getitem, [run, self._compile(node.slice)])

    def _lookup(self, node: ast.Subscript, entries: ast.Dict) -> Run:
        """``{key: value, …}[x]``, of which only the chosen value is computed."""
        table: dict[Hashable, Run] = {}
        for key, value in zip(entries.keys, entries.values, strict=True):
            parts = key.elts if isinstance(key, ast.Tuple) else [key]
            if key is None or not all(isinstance(part, ast.Constant) for part in parts):
                self._refuse(
                    key or entries, "a key of the dict must be written out: text, a number or a tuple of these"
                )
            constant = self._compile(key)({})
            if constant in table:
                self._refuse(key, f"key {constant!r} stands twice in the dict")
            table[constant] = self._compile(value)
        index, column = self._compile(node.slice), self._column(node)

        def lookup(env: Mapping[str, Any]) -> Any:
            key = index(env)
            if key not in table:
                hint = did_you_mean(key, table)
                raise FailedError(column, f"the dict has no key {short(key)}.{hint} It has {choices(table, 6)}")
            return table[key](env)

        return lookup

    def _call(self, node: ast.Call) -> Run:
        if not isinstance(node.func, ast.Name):
            self._unknown(node, f"a call of {_named(node.func)}")
        name = node.func.id
        if name not in FUNCTIONS:
            hint = did_you_mean(name, FUNCTIONS)
            self._refuse(node, f"{name}() is not of the language.{hint} It has {choices(FUNCTIONS)}")
        function, most = FUNCTIONS[name]
        if node.keywords or not 1 <= len(node.args) <= most:
            self._refuse(node, f"{name}() takes {'1 value' if most == 1 else 'values'}, without a name")
        return self._guarded(node, function, [self._compile(part) for part in node.args])

    def _guarded(self, node: ast.AST, function: Callable[..., Any], runs: Sequence[Run]) -> Run:
        """A call whose complaint becomes a line with its column, and whose result is bounded."""
        column = self._column(node)

        def guarded(env: Mapping[str, Any]) -> Any:
            values = [run(env) for run in runs]
            try:
                return bounded(function(*values), column)
            except (TypeError, ValueError, ArithmeticError, LookupError) as error:
                raise FailedError(column, str(error)) from None

        return guarded


_NAMED: dict[type, str] = {
    ast.Lambda: "a lambda",
    ast.NamedExpr: "an assignment (:=)",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.Dict: "a dict that is not indexed",
    ast.Set: "a set",
    ast.Starred: "a star (*)",
    ast.Slice: "a slice",
    ast.Await: "await",
    ast.Yield: "yield",
    ast.YieldFrom: "yield",
    ast.Call: "a call's result",
    ast.Subscript: "an item",
}


def _named(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"attribute .{node.attr}"
    return _NAMED.get(type(node), type(node).__name__)


def _sign(op: ast.operator) -> str:
    signs = {ast.Pow: "**", ast.MatMult: "@", ast.BitAnd: "& (write and)", ast.BitOr: "| (write or)"}
    return {**signs, ast.BitXor: "^ (write !=)", ast.LShift: "<<", ast.RShift: ">>"}.get(type(op), "that operator")


def _one_line(text: str) -> str:
    """A YAML block's lines as one, where that cannot change what they mean: no line ends within quotes."""
    lines = text.strip().splitlines() if "\n" in text.strip() else []
    odd = any(line.count(mark) % 2 for line in lines for mark in "'\"")
    if not lines or odd or any(mark in text for mark in "#\\\u2028\u2029\x0b\x0c\x1c\x1d\x1e\x85"):
        return text.strip()
    return " ".join(line.strip() for line in lines)
