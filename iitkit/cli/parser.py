"""The argument parser: jsonargparse's, whose errors become a line that says what was given and what was meant."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from iitkit.data import Sizes
from iitkit.data.base import PromptDataModule
from iitkit.errors import choices, did_you_mean
from iitkit.interventions import Intervention
from iitkit.models.scratch import Network
from iitkit.modules import InterventionModule
from iitkit.tasks import Task

_KNOWN_CLASSES: dict[str, type] = {
    "model": InterventionModule,
    "base": Network,
    "data": PromptDataModule,
    "task": Task,
    "intervention": Intervention,
    "optimizer": torch.optim.Optimizer,
    "lr_scheduler": torch.optim.lr_scheduler.LRScheduler,
    "trainer.callbacks": Callback,
    "trainer.logger": Logger,
}
"""Key → the class whose subclasses may be named there."""

_KEYS = ["ckpt_path", "data", "model", "seed_everything", "trainer"]
"""What a config may hold at its top."""

_GROUPS: dict[str, Any] = {"trainer": Trainer, "sizes": Sizes}
"""Key → what takes the keys below it."""

_OF_NO_CONFIG = {"help", "config", "print_config", "print_shtab"}

_KEY = re.compile(r'Parser key "([^"]+)"')
_NESTED = re.compile(r"NestedArg\(key='([^']+)'")
_OWNER = re.compile(r"Problem with given class_path '([^']+)'")
_TYPES = re.compile(r"Expected an? (<class '[^']+'>|typing\.\S+\[.*?\])")
_SHAPE = re.compile(r"Expected (a tuple with \d+ elements)\. Got value: (.*)")
_GIVEN = re.compile(
    r"Option '([^']+)'|Group '\w+' does not accept option '([^']+)'|Expected a dot import path string: (.*)"
    r"|Got value: (.*?)\. Got value|(?:Got|Given) value: (.*)"
)
_VALUE = re.compile(r"(?:Got value|Given value): (.*)")


class Parser(LightningArgumentParser):
    """A parser whose errors are one or two lines; no argument may be abbreviated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what was wrong and exit with 2; a parser within a parser only adds its hint."""
        message = self._hinted(message)
        if not self.exit_on_error:
            super().error(message, ex)
        print(f"iitkit: {condensed(message)}", file=sys.stderr)
        sys.exit(2)

    def _hinted(self, message: str) -> str:
        """Add the options that this parser has to its complaint about one that it has not."""
        found = re.fullmatch(r"Option '([^']+)' is not accepted", message) or re.fullmatch(
            r"unrecognized arguments: --([\w.]+)[= ]?.*", message
        )
        if found is None:
            return message
        given, _, rest = found[1].partition(".")
        options = sorted({action.dest.split(".")[0] for action in self._actions} - _OF_NO_CONFIG)
        if "subcommand" in options:  # the outermost parser: a config holds the keys of a command
            options = _KEYS
        while given in options and rest:  # a group such as trainer: the unknown key is below it
            prefix = f"{given}."
            below = {a.dest.removeprefix(prefix).split(".")[0] for a in self._actions if a.dest.startswith(prefix)}
            head, _, rest = rest.partition(".")
            if not below:
                return f"Option '{given}' has no key '{head}'"
            given, options = f"{prefix}{head}", sorted(below)
            hint = did_you_mean(head, options)
            return f"Option '{given}' is unknown.{hint or f' It has: {choices(options, 8)}'}"
        return f"Option '{given}' is unknown.{did_you_mean(given, options) or f' It has: {choices(options, 8)}'}"


def condensed(message: str) -> str:
    """Return jsonargparse's report of many lines as one: where, what was given, what was expected."""
    # a factory's complaint stands on the line of its type, with the class behind it
    message = re.sub(
        r"Type .* expects a function or a callable class: ((?:.|\n)*?)\.? Got value: Namespace\(class_path='([^']+)'.*",
        r"Problem with given class_path '\2':\n\1",
        message,
    )
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    where = _where(lines)
    for rule in (_option, _import, _class, _required, _syntax):
        said = rule(lines, where)
        if said is not None:
            return said
    if said := _value(message.splitlines(), where):
        return said
    short = " ".join(lines)
    return short if len(short) <= 400 else f"{short[:400]}…"


def buried(message: str) -> str | None:
    """Return what a network from scratch says of its sizes, or a schedule of its ends, of a report on a union.

    jsonargparse keeps the first of these complaints as its own cause: that the sizes are no string.
    """
    names = "|".join(kind.__name__ for kind in _subclasses(Network))
    found = re.search(rf"^\s*- ((?:(?:{names})[.:]|(?:exponential )?schedule ).*)$", message, re.MULTILINE)
    return found[1] if found else None


def _where(lines: list[str]) -> list[str]:
    """The keys from the outermost to the one that the first complaint is about."""
    keys: list[str] = []
    nested = next((found[1] for line in lines if (found := _NESTED.search(line))), None)
    for line in lines:
        if found := _KEY.match(line):
            keys.append(found[1])
        elif re.match(r"(Option '|Expected )", line):
            break
    if nested is not None and keys:
        keys = [keys[0], *nested.removeprefix("init_args.").split(".")]
    where = [part for key in keys for part in key.split(".") if part != "init_args"]
    if nested is None and where[:2] == ["model", "alignment"] and (name := _placement(lines)):
        where.insert(2, name)
    return where


def _placement(lines: list[str]) -> str | None:
    """The placement that the complaint is about: jsonargparse does not say which value of a dict it means."""
    given = next((found for line in lines if (found := _GIVEN.search(line))), None)
    _, _, alignment = lines[-1].partition("'alignment': {")
    about = next(filter(None, given.groups()), None) if given else None
    depth, entry = 0, ""
    for char in alignment:
        depth += (char in "{[(") - (char in "}])")
        if (depth == 0 and char == ",") or depth < 0:
            name, _, plain = entry.partition(":")
            if about and about in plain:
                return name.strip(" '")
            entry = ""
        else:
            entry += char
        if depth < 0:
            break
    return None


def _owner(lines: list[str]) -> str:
    owners = [found[1].rsplit(".", 1)[-1] for line in lines if (found := _OWNER.search(line))]
    return owners[-1] if owners else ""


def _option(lines: list[str], where: list[str]) -> str | None:
    for line in lines:
        if found := re.match(r"Group '(\w+)' does not accept option '([^']+)'", line):
            return _unknown([*where, found[1]] if where[-1:] != [found[1]] else where, found[2])
        if found := re.match(r"Subcommand '\w+' does not accept option '([^']+)'", line):
            head, *rest = found[1].split(".")
            return _unknown([head], rest[0]) if rest and head in _GROUPS else _unknown([], head)
    for i, line in enumerate(lines):
        if found := re.match(r"Option '([^']+)' (is unknown\.|has no key)(.*)", line):
            key, owner = found[1], _owner(lines[:i])
            if "." in key:  # of a group: sizes.trian
                where, key = [*where[: 1 if where else 0], *key.split(".")], key.rpartition(".")[2]
                owner = ""
            if where and where[-1] == key.split(".")[-1]:
                where = where[:-1]
            place = ".".join(where)
            who = f"{owner} has no key {key!r}" if owner else f"no key {key!r}"
            if found[2] != "is unknown.":
                who = line
            return f"{place}: {who}.{found[3]}" if place else f"the config has no key {key!r}.{found[3]}"
    return None


def _unknown(where: list[str], key: str) -> str:
    """What to say of a key below a group, or at the top."""
    known = list(inspect.signature(_GROUPS[where[-1]].__init__).parameters)[1:] if where else _KEYS
    start = f"{'.'.join(where)}: no key" if where else "the config has no key"
    return f"{start} {key!r}.{did_you_mean(key, known) or f' It has: {choices(known, 8)}'}"


def _import(lines: list[str], where: list[str]) -> str | None:
    for line in lines:
        if found := re.search(r"Importing '([^']+)' is not allowed", line):
            package = found[1].split(".")[0]
            return (
                f"{'.'.join(where) or 'config'}: importing {found[1]!r} is not allowed, because a config may come from "
                f"anywhere. If you trust that package, add --allow {package}"
            )
    return None


def _class(lines: list[str], where: list[str]) -> str | None:
    for line in lines:
        if found := re.match(r"Expected a dot import path string: (.*)", line):
            keys = [key for key in where if key != "class_path"]
            base = _KNOWN_CLASSES.get(".".join(keys)) or (_KNOWN_CLASSES.get(keys[-1]) if keys else None)
            if base is None:  # a value that might also have been an object, as Adam's lr might be a tensor
                return None
            names = sorted({kind.__name__ for kind in _subclasses(base)})
            return f"{'.'.join(keys)}: no class {found[1]!r}.{did_you_mean(found[1], names)} Known: {choices(names)}"
    return None


def _subclasses(kind: type) -> Iterator[type]:
    children: list[type] = kind.__subclasses__()
    for child in children:
        if not child.__name__.startswith("_"):
            yield child
        yield from _subclasses(child)


def _required(lines: list[str], where: list[str]) -> str | None:
    for line in lines:
        if found := re.search(r'Key "([^"]+)" is required', line):
            key = found[1].replace("init_args.", "")
            return f"{'.'.join([*where, key])} is missing: {_owner(lines) or 'the command'} needs it"
        if found := re.search(r"the following arguments are required: (.*)", line):
            names = [name.rpartition(".")[2] for name in found[1].split(", ")]
            missing = choices(".".join([*where, name]) for name in names)
            return f"{missing} {'is' if len(names) == 1 else 'are'} missing: {_owner(lines) or 'the command'} needs it"
    return None


def _syntax(lines: list[str], where: list[str]) -> str | None:
    if any(line.startswith("Problems parsing config") for line in lines):
        text = " ".join(lines).removeprefix("Problems parsing config: ")
        return f"the config is not valid YAML: {text[:300]}"
    if lines and lines[0].startswith("Unexpected config:"):
        given = " ".join(lines).removeprefix("Unexpected config:").strip()
        return f"the config holds no keys: given {given[:80]!r}, expected {choices(_KEYS)} with what belongs to them"
    return None


def _value(lines: list[str], where: list[str]) -> str | None:
    for line in lines:
        if found := _SHAPE.search(line):
            return f"{'.'.join(where)}: given {found[2]!r}, expected {found[1]}"
    complaints = [(found.start(), found[1]) for line in lines if (found := _TYPES.search(line))]
    values = [found[1] for line in lines if (found := _VALUE.search(line)) and "NestedArg" not in found[1]]
    if not complaints or not values:
        return None
    names = {"NoneType": "null", "str": "a string", "int": "an integer", "float": "a number", "bool": "true or false"}
    wanted: list[str] = []
    for depth, kind in complaints:
        inner = re.fullmatch(r"<class '(?:.*\.)?(\w+)'>", kind)
        literal = re.fullmatch(r"typing\.Literal\[(.*)\]", kind)
        name = names.get(inner[1], inner[1]) if inner else literal[1].replace(", ", " or ") if literal else kind
        if depth == complaints[0][0] and name not in wanted:  # those further left are said of outer keys
            wanted.append(name)
    return f"{'.'.join(where)}: given {values[0]!r}, expected {' or '.join(wanted)}"
