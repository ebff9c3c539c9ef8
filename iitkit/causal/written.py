"""Causal models written as plain values: in YAML, in a config, or as a mapping in Python."""

from __future__ import annotations

import keyword
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from iitkit.causal.encodings import Encoding, Symbols, Vectors
from iitkit.causal.expressions import Expression
from iitkit.causal.model import CausalModel
from iitkit.causal.operations import short
from iitkit.causal.plain import freeze, read_yaml
from iitkit.causal.tabled import Condition, Table
from iitkit.causal.writing import to_mapping
from iitkit.errors import IITKitError, choices, did_you_mean

__all__ = ["KEYS", "from_mapping", "from_yaml", "to_mapping"]

KEYS = ("prompt", "output", "variables", "mechanisms", "constraints", "candidates", "surface")
REQUIRED = KEYS[:4]
ENTRIES = ("of", "table", "rows", "expression", "domain")


def from_yaml(path: str | Path) -> CausalModel:
    """Return the causal model of a YAML file.

    Args:
        path: the file; its keys are those of :func:`from_mapping`.

    Raises:
        IITKitError: what :func:`from_mapping` refuses, and what YAML would read as something else than it looks.
    """
    written = read_yaml(path)
    try:
        return from_mapping(written)
    except IITKitError as error:
        raise IITKitError(f"{path}: {error}") from error


def from_mapping(written: Mapping[str, Any]) -> CausalModel:
    """Return the causal model that plain values say.

    >>> model = from_mapping({
    ...     "prompt": "The {subject} near the table",
    ...     "output": "verb",
    ...     "variables": {"noun": ["dog", "ox"], "plural": [False, True]},
    ...     "mechanisms": {
    ...         "many": {"of": "noun", "table": {"dog": "dogs", "ox": "oxen"}},
    ...         "subject": "many if plural else noun",
    ...         "verb": "' are' if plural else ' is'",
    ...     },
    ... })
    >>> setting = model.run({"noun": ["ox"], "plural": [True]})
    >>> model.values(setting, "subject"), model.values(setting, "verb")
    (['oxen'], [' are'])

    Args:
        written: ``prompt`` (a template, several, ``{symbols: template, vocabulary: […]}`` or ``{vectors: [slots]}``),
            ``output``, ``variables`` (name → its values) and ``mechanisms`` (name → an expression, of which the names
            are the parents, or ``{of: parents, table: {value: … result}}``, or ``{of: parents, rows: [[value, …,
            result], …]}``, or ``{expression: …}``; with these ``domain`` lists the values it may take); if need be
            ``constraints`` (name → the like, true or false), ``candidates`` (names) and ``surface`` (answer → its text
            or texts).

    Raises:
        IITKitError: an unknown or missing key, a value of the wrong kind, an expression that is none, a table with
            entries missing or too many, and all that ``CausalModel.compile`` checks.
    """
    model = declared(written)
    tables = written_tables(model)
    _check_entries(model, tables)  # first: a misspelt entry would be called a missing one
    model.compile()
    _check_entries(model, tables)
    return model


def declared(written: Mapping[str, Any]) -> CausalModel:
    """Return the model that plain values declare, not compiled yet; see :func:`from_mapping`."""
    if not isinstance(written, Mapping):
        raise IITKitError(f"a causal model: given {short(written)}, expected the keys {choices(KEYS)}")
    for key in written:
        if key not in KEYS:
            raise IITKitError(f"a causal model has no key {key!r}.{did_you_mean(key, KEYS)} It has {choices(KEYS)}")
    for key in REQUIRED:
        if written.get(key) is None:
            raise IITKitError(f"a causal model needs {key}: it is missing")
    output = written["output"]
    if not isinstance(output, str):
        raise IITKitError(f"output: given {short(output)}, expected the name of a variable")
    model = CausalModel(
        _prompt(written["prompt"]), output, _names(written.get("candidates"), "candidates"), _surface(written)
    )
    variables = _mapping(written, "variables", "its values")
    model.variables(**{name: _values(values, f"variables.{name}") for name, values in variables.items()})
    for name, said in _mapping(written, "mechanisms", "an expression or a table").items():
        function, domain = _computation(name, said, "mechanism")
        model.mechanism(domain=domain)(function)
    for name, said in _mapping(written, "constraints", "an expression or a table").items():
        function, _ = _computation(name, said, "constraint")
        model.constraint(Condition(function))
    return model


def written_tables(model: CausalModel) -> list[Table]:
    """Return the tables that a model's mechanisms and constraints were written as."""
    functions = [mechanism.function for mechanism in [*model.mechanisms.values(), *model.constraints.values()]]
    functions = [function.function if isinstance(function, Condition) else function for function in functions]
    return [function for function in functions if isinstance(function, Table)]


def _check_entries(model: CausalModel, tables: Sequence[Table]) -> None:
    """Check that every entry of the tables is of values that its parents may take, as far as these are known."""
    for table in tables:
        for parent in table.parents:
            domain = model.domains.get(parent)
            known = domain is not None and (domain.declared or (domain.complete and len(domain)))
            if domain is not None and known and (stray := table.unused(parent, domain.values)):
                raise IITKitError(stray)


def _mapping(written: Mapping[str, Any], key: str, of: str) -> Mapping[str, Any]:
    said = written.get(key)
    if said is None:
        return {}
    if not isinstance(said, Mapping):
        raise IITKitError(f"{key}: given {short(said)}, expected names, each with {of}")
    for name in said:
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name == "self":
            raise IITKitError(f"{key}: {name!r} is no name: expected one of letters, digits and _, as in Python")
    return said


def _names(said: Any, where: str) -> list[str]:
    if said is None:
        return []
    if not isinstance(said, list | tuple) or any(not isinstance(name, str) for name in said):
        raise IITKitError(f"{where}: given {short(said)}, expected a list of variables' names")
    return list(said)


def _values(said: Any, where: str) -> list[Hashable]:
    if not isinstance(said, list | tuple):
        raise IITKitError(f"{where}: given {short(said)}, expected the list of its values")
    return [freeze(value, where) for value in said]


def _prompt(said: Any) -> str | list[str] | Encoding:
    if isinstance(said, str):
        return said
    if isinstance(said, list | tuple) and all(isinstance(template, str) for template in said):
        return list(said)
    if isinstance(said, Mapping) and set(said) in ({"symbols"}, {"symbols", "vocabulary"}):
        vocabulary = said.get("vocabulary")
        if not isinstance(said["symbols"], str):
            raise IITKitError(f"prompt.symbols: given {short(said['symbols'])}, expected a template")
        return Symbols(said["symbols"], None if vocabulary is None else _values(vocabulary, "prompt.vocabulary"))
    if isinstance(said, Mapping) and set(said) == {"vectors"}:
        return Vectors(*_names(said["vectors"], "prompt.vectors"))
    raise IITKitError(
        f"prompt: given {short(said)}, expected a template or several, {{symbols: template}} or {{vectors: [slots]}}"
    )


def _surface(written: Mapping[str, Any]) -> Mapping[Any, Any] | None:
    said = written.get("surface")
    if said is None or isinstance(said, Mapping):
        return None if said is None else {freeze(key, "surface"): forms for key, forms in said.items()}
    raise IITKitError(f"surface: given {short(said)}, expected each answer with its text or texts")


def _computation(name: str, said: Any, what: str) -> tuple[Expression | Table, list[Hashable] | None]:
    if isinstance(said, str):
        return Expression(name, said, what), None
    where = f"{what} {name!r}"
    if not isinstance(said, Mapping):
        raise IITKitError(f"{where}: given {short(said)}, expected an expression (in quotes) or {{of: …, table: …}}")
    for key in said:
        if "." in str(key):  # from the command line
            raise IITKitError(f"{where}: {key!r} cannot be set by itself: give the whole mechanism")
        if key not in ENTRIES:
            raise IITKitError(f"{where} has no key {key!r}.{did_you_mean(key, ENTRIES)} It has {choices(ENTRIES)}")
    domain = None if said.get("domain") is None else _values(said["domain"], f"{where}: domain")
    if domain is not None and what == "constraint":
        raise IITKitError(f"{where}: a constraint is true or false and has no domain")
    ways = [way for way in ("expression", "table", "rows") if said.get(way) is not None]
    if len(ways) != 1:
        raise IITKitError(f"{where}: given {choices(ways) or 'none'} of expression, table and rows: give one")
    if ways == ["expression"]:
        if "of" in said:
            raise IITKitError(f"{where}: `of` belongs to a table; an expression's parents are the names in it")
        return Expression(name, said["expression"], what), domain
    of = [said["of"]] if isinstance(said.get("of"), str) else _names(said.get("of"), f"{where}: of")
    if not of:
        raise IITKitError(f"{where}: its table needs `of`, the variable or variables that it is of")
    for parent in of:
        if not parent.isidentifier() or keyword.iskeyword(parent):
            raise IITKitError(f"{where}: of: {parent!r} is no variable's name")
    table, kind = said[ways[0]], Mapping if ways == ["table"] else list | tuple
    if not isinstance(table, kind):
        expected = "value: result entries" if ways == ["table"] else "a list of rows"
        raise IITKitError(f"{where}: {ways[0]}: given {short(table)}, expected {expected}")
    return Table(name, of, table, what), domain
