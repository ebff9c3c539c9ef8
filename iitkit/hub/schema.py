"""What config.json of an artifact says, checked: it may come from anybody."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from iitkit.errors import IITKitError, choices, did_you_mean

SCHEMA = 2
SIZES = ("width", "input_width", "heads", "positions")
CONFIG, WEIGHTS, METRICS, README = "config.json", "interventions.safetensors", "metrics.json", "README.md"
FILES = (CONFIG, WEIGHTS, METRICS, README)
"""The files of an artifact; nothing else is pushed, fetched or read."""
RUNNABLE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npz", ".npy", ".h5", ".py", ".so")
"""Suffixes of files that can run code when they are loaded, or may hold pickles."""

Check = tuple[Callable[[Any], bool], str]
TOKENIZER = ("vocabulary", "chat_template")
"""What is known of a tokenizer."""
DIGEST = re.compile(r"[0-9a-f]{64}")


def is_text(value: Any) -> bool:
    """Return whether a value is text of a length that a name or a sentence may have."""
    return isinstance(value, str) and len(value) <= 10_000


def _text(value: Any) -> bool:
    return is_text(value) and bool(value)


def _whole(value: Any, least: int = 0, most: int = 2**24) -> bool:
    return type(value) is int and least <= value < most


def _size(value: Any) -> bool:
    return _whole(value, 1)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(check, value))


def _integer(value: Any) -> bool:
    return _whole(value, -(2**24))


def _position(value: Any) -> bool:
    return _text(value) or _integer(value)


def _mapping_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(is_text(key) and check(item) for key, item in value.items())


def _scalar(value: Any) -> bool:
    return is_text(value) or type(value) is bool or (type(value) in (int, float) and -math.inf < value < math.inf)


_texts, _scalars = _mapping_of(is_text), _mapping_of(_scalar)
TEXT: Check = (_text, "text")
BASE: dict[str, Check] = {
    "id": TEXT,
    "revision": TEXT,
    "architecture": TEXT,
    "width": (_or_none(_size), "an integer from 1, or null"),
    "layers": (_or_none(_size), "an integer from 1, or null"),
    "dtype": TEXT,
    "weights": (_or_none(_text), "text or null"),
}
"""What must be known of a base model."""
TOP: dict[str, Check] = {
    "task": (_or_none(is_text), "text or null"),
    "variables": (_mapping_of(lambda value: isinstance(value, list)), "a mapping of names to lists of values"),
    "prefix": (is_text, "text"),
    "where": (lambda value: value in ("prompt", "generated", "all"), "prompt, generated or all"),
    "chat": (lambda value: type(value) is bool, "true or false"),
    "system": TEXT,
    "tokenizer": (
        lambda value: isinstance(value, dict) and all(_or_none(_text)(value.get(k)) for k in TOKENIZER),
        "a mapping of vocabulary and chat_template to digests",
    ),
    "training": (_mapping_of(_or_none(is_text)), "a mapping of names to digests"),
    "versions": (_mapping_of(is_text), "a mapping of packages to versions"),
    "example": (
        lambda value: (
            isinstance(value, dict)
            and is_text(value.get("prompt"))
            and _texts(value.get("spans"))
            and _scalars(value.get("set", {}))
        ),
        "a prompt, its spans and what is set",
    ),
}
"""What may be said besides."""
WHERE: dict[str, Check] = {
    "layer": (_or_none(_integer), "an integer or null"),
    "component": TEXT,
    "module": (_or_none(_text), "text"),
    "side": (lambda value: value in ("input", "output"), "input or output"),
    "head": (lambda value: _integer(value) or _list_of(_integer)(value), "an integer or a list of them"),
    "joint": (lambda value: type(value) is bool, "true or false"),
    "position": (lambda value: _position(value) or _list_of(_position)(value), "an integer, a name or a list of these"),
    "variable": (_or_none(_text), "text or null"),
    "shared_with": TEXT,
    "value": (_scalar, "text, a number, true or false"),
    "largest": (_number, "a number from 0"),
    "answer": TEXT,
    "answers": (_list_of(_or_none(is_text)), "a list of texts"),
    "intervention": (lambda value: isinstance(value, dict), "a name and options"),
    "packages": (_list_of(_text), "a list of names"),
    **dict.fromkeys(SIZES, (_size, f"an integer from 1 to {2**24 - 1}")),
}
"""What may be said of a placement."""


def strict_json(text: str, where: str) -> Any:
    """Read JSON in which no key stands twice and every number is finite.

    Args:
        text: the file's text.
        where: the file, for messages.

    Raises:
        IITKitError: anything else.
    """

    def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)[:80]!r} stands twice")
        return found

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise IITKitError(f"{where} is not valid JSON: {error}") from error


def checked_config(text: str, where: str) -> dict[str, Any]:
    """Return what config.json says.

    Args:
        text: the file's text.
        where: the file, for messages.

    Raises:
        IITKitError: no config of an artifact, one of another schema, or a part that is missing or of another kind.
    """
    try:
        return _checked_config(strict_json(text, where), where)
    except RecursionError as error:
        raise IITKitError(f"{where} is nested too deeply for the config of an artifact") from error


def _checked_config(config: Any, where: str) -> dict[str, Any]:
    if not isinstance(config, dict) or config.get("library") != "iitkit":
        raise IITKitError(f"{where} is not the config of an iitkit artifact")
    schema = config.get("schema")
    if schema != SCHEMA or type(schema) is not int:
        newer = type(schema) is int and schema > SCHEMA
        todo = "install a newer iitkit" if newer else "fit again, or install the iitkit that wrote it"
        raise IITKitError(f"{where} has schema {short(schema)}, this iitkit reads {SCHEMA}: {todo}")
    _checked(config.get("base"), "base", BASE, list(BASE), where)
    _checked(config, "", TOP, (), where)
    _check_files(config.get("sha256"), where)
    placements = config.get("placements")
    if not isinstance(placements, dict) or not placements:
        raise IITKitError(f"{where}: placements is {short(placements)}: expected a mapping of at least one placement")
    for name, placement in placements.items():
        _check_placement(name, placement, placements, where)
    return config


def _checked(found: Any, name: str, known: Mapping[str, Check], needed: Sequence[str], where: str) -> None:
    if not isinstance(found, dict):
        raise IITKitError(f"{where}: {name} is {short(found)}: expected a mapping")
    inside = f"{name}." if name else ""
    if missing := [key for key in needed if key not in found]:
        raise IITKitError(f"{where}: {inside}{missing[0]} is missing")
    for key, (check, expected) in known.items():
        if key in found and not check(found[key]):
            raise IITKitError(f"{where}: {inside}{key} is {short(found[key])}: expected {expected}")


def _check_files(digests: Any, where: str) -> None:
    """Check which files are named: by plain names, of tensors alone."""
    if not isinstance(digests, dict):
        raise IITKitError(f"{where}: sha256 is {short(digests)}: expected a mapping of files to digests")
    for name in digests:
        if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name):
            raise IITKitError(f"{where} names the file {short(name)}: expected a plain name, no path")
        if name.endswith(RUNNABLE):
            raise IITKitError(f"{where} names {short(name)}, which can run code when it is loaded: it is not read")
    if set(digests) != {WEIGHTS}:
        raise IITKitError(f"{where}: sha256 names {choices(sorted(digests)) or 'no file'}: expected {WEIGHTS}")
    if not isinstance(digests[WEIGHTS], str) or not DIGEST.fullmatch(digests[WEIGHTS]):
        raise IITKitError(f"{where}: sha256 of {WEIGHTS} is {short(digests[WEIGHTS])}: expected 64 hex digits")


def _check_placement(name: str, placement: Any, placements: Mapping[str, Any], where: str) -> None:
    path = f"placement {short(name)}"
    if not name.isidentifier() or len(name) > 200:
        raise IITKitError(f"{where}: {path}: expected a plain name")
    _checked(placement, path, WHERE, ("position", "variable", "width"), where)
    if unknown := [key for key in placement if key not in WHERE and key != "values"]:
        raise IITKitError(f"{where}: {path} has no {short(unknown[0])}.{did_you_mean(unknown[0], [*WHERE, 'values'])}")
    if placement.get("module") is None and "component" not in placement:
        raise IITKitError(f"{where}: {path} has neither layer and component nor module")
    if placement.get("module") is not None and "component" in placement:
        raise IITKitError(f"{where}: {path} has a component and a module: expected one of them")
    if ("intervention" in placement) == ("shared_with" in placement):
        raise IITKitError(f"{where}: {path}: expected either an intervention or shared_with")
    if "shared_with" in placement:
        owner = placements.get(placement["shared_with"])
        if not isinstance(owner, dict) or "shared_with" in owner:
            raise IITKitError(
                f"{where}: {path} shares with {short(placement['shared_with'])}, which has no intervention of its own"
            )
        if any(owner.get(size, 1) != placement.get(size, 1) for size in ("width", "positions")):
            raise IITKitError(f"{where}: {path} shares with {placement['shared_with']!r}, whose site has another width")
    _check_names(placement.get("intervention", {}), f"{where}: {path}")
    if "answers" in placement and len(placement["answers"]) != len(placement.get("values") or ()):
        raise IITKitError(f"{where}: {path}: answers: expected one for each of its values")


def _check_names(spec: Any, where: str) -> None:
    """Check that a spec names what is registered, never what would be imported."""
    if isinstance(spec, list):
        for part in spec:
            _check_names(part, where)
    if not isinstance(spec, dict):
        return
    for key in ("class_path", "target", "_target_", "import_path"):
        if key in spec:
            raise IITKitError(
                f"{where}: the intervention has {key} {short(spec[key])}, a Python path: artifacts name registered "
                "interventions, and nothing is imported"
            )
    name = spec.get("name")
    if isinstance(name, str) and re.search(r"[.:/\\]", name):
        raise IITKitError(
            f"{where}: intervention {short(name)} is a Python path: artifacts name registered interventions, and "
            "nothing is imported"
        )
    for part in spec.values():
        _check_names(part, where)


def short(value: Any) -> str:
    """Return a value as messages show it."""
    text = repr(value) if not isinstance(value, dict | list) or len(str(value)) <= 80 else f"{str(value)[:79]}…"
    return text if len(text) <= 80 else f"{text[:79]}…"
