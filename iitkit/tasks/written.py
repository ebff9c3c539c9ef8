"""A task without Python: its causal model is written in the config, or in a YAML file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iitkit.causal import CausalModel
from iitkit.causal.plain import read_yaml
from iitkit.causal.tabled import QUOTE
from iitkit.causal.written import KEYS, declared, from_mapping, written_tables
from iitkit.errors import IITKitError, choices, did_you_mean
from iitkit.tasks.base import Task

OF_THE_TASK = ("split_by", "held_out_templates", "name")
"""Keys of a task's file beside those of its causal model."""


class Hypothesis(Task):
    """A hypothesis that is written down: prompt, variables and mechanisms in the config instead of in Python.

    A mechanism is an expression, of which the names are the parents (``"' are' if plural else ' is'"``), or a table
    (``{of: noun, table: {dog: dogs, ox: oxen}}``, nested where ``of`` names several). Text that YAML would read as
    something else (yes, no, on, 012) stands in quotes, and so does an expression that begins with one.

    Args:
        prompt: a template or several, ``{symbols: template}`` for sequences of integers, or ``{vectors: [slots]}``.
        output: the variable that is the answer.
        variables: each exogenous variable's values.
        mechanisms: how each other variable is computed; with ``{expression: …, domain: […]}`` and ``{of: …, table: …,
            domain: […]}`` the values it may take are listed, in order.
        constraints: conditions, as mechanisms are written, that every input satisfies.
        candidates: variables whose values, in the base, are the answers that compete; all the output's unless said.
        surface: answer's value → its text or texts; unless said, the values are the texts.
        split_by: variables whose words no two splits share; in a list of its own, variables whose combinations of
            values no two splits share.
        held_out_templates: how many of the last templates only ``test_templates`` uses.
        name: what the data report and ``tell_apart`` call it; Hypothesis unless said.
        file: a YAML file with all of these as its keys, instead.

    Raises:
        IITKitError: both a file and keys of the model, or neither; and what ``CausalModel.from_dict`` refuses.
    """

    def __init__(
        self,
        prompt: str | list[str] | dict | None = None,  # type: ignore[type-arg]  # what is typed further is read
        output: str | None = None,  #                    a second time as YAML, and "012" becomes a number
        variables: dict | None = None,  # type: ignore[type-arg]
        mechanisms: dict | None = None,  # type: ignore[type-arg]
        constraints: dict | None = None,  # type: ignore[type-arg]
        candidates: list[str] | None = None,
        surface: dict | None = None,  # type: ignore[type-arg]
        split_by: list[str | list[str]] | None = None,
        held_out_templates: int | None = None,
        name: str | None = None,
        file: str | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "prompt": prompt,
            "output": output,
            "variables": variables,
            "mechanisms": mechanisms,
            "constraints": constraints,
            "candidates": candidates,
            "surface": surface,
        }
        written = {key: value for key, value in given.items() if value is not None}
        of_task = {"split_by": split_by, "held_out_templates": held_out_templates, "name": name}
        self._file = file
        if file is not None:
            if written:
                raise IITKitError(f"Hypothesis: given file and {choices(written)}: say the model in one place")
            found = _read(file)
            written = {key: value for key, value in found.items() if key in KEYS}
            of_task = {key: found.get(key) if value is None else value for key, value in of_task.items()}
        self._written = written
        self.split_by = tuple(item if isinstance(item, str) else tuple(item) for item in _split_by(of_task["split_by"]))
        self.held_out_templates = _whole(of_task["held_out_templates"])
        self._name = of_task["name"] or type(self).__name__
        super().__init__()

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return str(self._name)

    def causal_model(self) -> CausalModel:
        """Return what is written, as a model."""
        if self._file is None:
            _check_bare(declared(self._written))
            return from_mapping(self._written)
        try:
            return from_mapping(self._written)
        except IITKitError as error:
            raise IITKitError(f"{self._file}: {error}") from error


def _read(file: str) -> dict[str, Any]:
    found, known = read_yaml(file), (*KEYS, *OF_THE_TASK)
    if not isinstance(found, dict):
        raise IITKitError(f"{file}: expected the keys {choices(known)}")
    for key in found:
        if key not in known:
            raise IITKitError(f"{file}: no key {key!r}.{did_you_mean(key, known)} A task has {choices(known)}")
    return found


def _split_by(said: Any) -> Sequence[Any]:
    fine = isinstance(said, list | tuple) and all(
        isinstance(item, str) or (isinstance(item, list | tuple) and all(isinstance(name, str) for name in item))
        for item in said
    )
    if said is not None and not fine:
        raise IITKitError(f"Hypothesis.split_by: given {said!r}, expected a list of names, or of lists of names")
    return said or ()


def _whole(said: Any) -> int:
    if said is not None and (type(said) is not int or said < 0):
        raise IITKitError(f"Hypothesis.held_out_templates: given {said!r}, expected a number of templates")
    return said or 0


def _check_bare(model: CausalModel) -> None:
    """Refuse what a bare yes, no, on or off leaves behind: a config is read before we see it.

    Raises:
        IITKitError: booleans among text, or as words of the prompt.
    """
    said = {name: domain.values for name, domain in model.exogenous.items()}
    said |= {table.__name__: list(table.entries.values()) for table in written_tables(model)}
    for name, values in said.items():
        flags = [value for value in values if type(value) is bool]
        if flags and any(isinstance(value, str) for value in values):
            raise IITKitError(f"variable {name!r} has the value {flags[0]} beside text: {QUOTE}")
        if flags and name in model.slots and model.encoding is None:
            raise IITKitError(
                f"variable {name!r} would put the word {flags[0]} into the prompt: {QUOTE}; if that word is meant, "
                f"quote '{flags[0]}', or say str({name}) in a mechanism"
            )
