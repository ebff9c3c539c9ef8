"""Plain values, as YAML and JSON hold them: what may be one, and reading a file of them without YAML's traps."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from iitkit.causal.operations import LARGEST, LONGEST, MOST_ITEMS, items, short
from iitkit.errors import IITKitError

DEEPEST = 60
"""How deep a file may nest: a table has a level for each parent."""

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
SYNTAX = " (text with brackets in it and an expression that begins with a quote stand in quotes of their own)"


def freeze(value: Any, where: str) -> Hashable:
    """Return a plain value as one that a variable can have: lists become tuples.

    Args:
        value: text, a number, a boolean, or a list of such.
        where: for messages.

    Raises:
        IITKitError: what is none of these, or too large.
    """
    if type(value) in (list, tuple):
        if items(value) > MOST_ITEMS:
            raise IITKitError(f"{where}: given a list of more than {MOST_ITEMS} items, or more than 12 deep")
        return tuple(freeze(item, where) for item in value)
    if value is None:
        raise IITKitError(f"{where}: given null: every variable needs a value (quote it if it is text)")
    if isinstance(value, str):
        if len(value) > LONGEST:
            raise IITKitError(f"{where}: given text of {len(value)} characters, {LONGEST} at most")
        return str(value)
    if type(value) not in (int, float, bool):
        raise IITKitError(f"{where}: given {short(value)} ({type(value).__name__}), expected text, a number or a list")
    if not math.isfinite(value) or (type(value) is int and abs(value) >= LARGEST):
        raise IITKitError(f"{where}: given {short(value)}, expected a number that is finite and below 2**63")
    found: Hashable = value
    return found


def read_yaml(path: str | Path) -> Any:
    """Return what a YAML file holds; what YAML would silently read as something else is refused.

    Args:
        path: the file.

    Raises:
        IITKitError: no such file, no valid YAML, a key that stands twice, a bare yes, no, on, off, 012, 1:30 or date.
    """
    import yaml

    file = Path(path).expanduser()
    if not file.is_file():
        raise IITKitError(f"no file {file}: give a YAML file with the causal model")
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=_loader())  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        hint = SYNTAX if isinstance(error, yaml.parser.ParserError) else ""
        raise IITKitError(f"{file}{line}: {str(error.problem or error.context)[:200]}{hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise IITKitError(f"{file} is no valid YAML: {str(error).splitlines()[0][:200]}") from None
    except RecursionError:
        raise IITKitError(f"{file} nests too deep") from None


@cache
def _loader() -> Any:
    import yaml

    def refuse(node: Any, problem: str) -> Any:
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    def careful(tag: str, sure: re.Pattern[str], reads: str, make: Any) -> None:
        def construct(loader: Any, node: Any) -> Any:
            if not sure.fullmatch(node.value):
                refuse(node, f"bare {node.value} is {reads} to YAML: quote it if it is text")
            return make(loader, node)

        Strict.add_constructor(f"tag:yaml.org,2002:{tag}", construct)

    class Strict(yaml.SafeLoader):
        def fetch_flow_collection_start(self, kind: Any) -> None:
            self._check_depth(self.flow_level)
            super().fetch_flow_collection_start(kind)

        def add_indent(self, column: int) -> bool:
            self._check_depth(len(self.indents))
            return bool(super().add_indent(column))

        def _check_depth(self, depth: int) -> None:
            if depth > DEEPEST:  # PyYAML would take minutes before it ran out of stack
                raise yaml.scanner.ScannerError(None, None, f"nested more than {DEEPEST} deep", self.get_mark())

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            self.flatten_mapping(node)
            found: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, Hashable) or isinstance(key, Mapping):
                    refuse(key_node, "a key must be text, a number or a boolean")
                if key in found:
                    other = next(known for known in found if known == key)
                    same = type(other) is type(key)
                    refuse(
                        key_node,
                        f"key {key!r} stands twice"
                        if same
                        else f"keys {other!r} and {key!r} are one to a mapping: write the table as rows",
                    )
                found[key] = self.construct_object(value_node, deep=deep)
            return found

    safe = yaml.SafeLoader
    careful("bool", re.compile("true|false|True|False"), "a boolean", safe.construct_yaml_bool)
    careful("int", _INTEGER, "a number, and maybe another than it looks", safe.construct_yaml_int)
    careful("float", _FLOAT, "a number, and maybe another than it looks", safe.construct_yaml_float)
    careful("timestamp", re.compile("(?!)"), "a date", safe.construct_yaml_timestamp)
    return Strict
