"""What is checked when a causal model is made."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

import numpy as np

from iitkit.causal.variables import TABULATED, Codes
from iitkit.errors import IITKitError, choices

if TYPE_CHECKING:
    from iitkit.causal.model import CausalModel

PROBED = 400
"""Inputs of a large model that are compared with their neighbours, to find two with one prompt."""

ENUMERATED = 20_000
"""A model of at most this many inputs has all of them compared."""


def surface_forms(
    surface: Mapping[Any, str | Sequence[str]] | None,
) -> dict[tuple[type, Hashable], tuple[str, ...]]:
    """Return each answer's texts by its type and value.

    Raises:
        IITKitError: an answer without a text, a text that is no string, a text of two answers.
    """
    found: dict[tuple[type, Hashable], tuple[str, ...]] = {}
    owner: dict[str, Hashable] = {}
    for value, forms in (surface or {}).items():
        texts = [forms] if isinstance(forms, str) else list(forms) if isinstance(forms, Sequence) else []
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise IITKitError(
                f"surface of {value!r}: given {forms!r}, expected a text or a list of texts (quote it: YAML reads a "
                "bare yes, no, on or 012 as a boolean or a number)"
            )
        for text in texts:
            if text in owner:
                raise IITKitError(f"surface: {text!r} stands for {owner[text]!r} and for {value!r}: each needs its own")
            owner[text] = value
        found[type(value), value] = tuple(texts)
    return found


def order_of(model: CausalModel) -> list[str]:
    """Return the mechanisms, parents before children.

    Raises:
        IITKitError: a cycle; an unknown parent, slot, output or candidate; an exogenous output.
    """
    for mechanism in [*model.mechanisms.values(), *model.constraints.values()]:
        for parent in mechanism.parents:
            kind = "constraint" if model.constraints.get(mechanism.name) is mechanism else "mechanism"
            model.check_variable(parent, f"{kind} {mechanism.name!r}: parent")
    for slot in model.slots:
        model.check_variable(slot, "prompt: slot")
    for name in [model.output, *model.candidates]:
        model.check_variable(name, "output or candidate")
    try:
        order = list(TopologicalSorter({name: m.parents for name, m in model.mechanisms.items()}).static_order())
    except CycleError as error:
        raise IITKitError(f"the causal graph has a cycle: {' → '.join(error.args[1])}") from error
    for name in [model.output, *model.candidates]:
        if name in model.exogenous:
            raise IITKitError(f"output or candidate {name!r} is exogenous: an answer needs a mechanism")
    return [name for name in order if name in model.mechanisms]


def check_answers(model: CausalModel) -> None:
    """Check that answers and their surface forms belong together.

    Raises:
        IITKitError: an answer without a surface form, a surface form of no answer, a candidate that is never one.
    """
    domains = [model.domains[name] for name in (model.output, *model.candidates)]
    if model.surface:
        for domain in domains:
            for value in domain.values:
                model.forms(value)
        known = {(type(value), value) for domain in domains for value in domain.values}
        unused = [value for kind, value in model.surface if (kind, value) not in known]
        if unused and all(domain.complete for domain in domains):
            raise IITKitError(
                f"surface has {choices(map(repr, unused))}, which {model.output!r} never is: its values are "
                f"{choices(map(repr, domains[0].values))}"
            )
    elif model.encoding is not None:  # answers are told apart by their texts until they are classes
        owner: dict[str, Hashable] = {}
        for value in dict.fromkeys(value for domain in domains for value in domain.values):
            if not _same(owner.setdefault(str(value), value), value):
                raise IITKitError(
                    f"output {model.output!r} has the values {owner[str(value)]!r} and {value!r}, which have one text: "
                    "give each its own with surface"
                )
    for domain in domains[1:]:
        if domain.complete and domains[0].complete and not set(domain.codes) & set(domains[0].codes):
            raise IITKitError(
                f"candidate {domain.name!r} is {choices(map(repr, domain.values), 4)}, output {model.output!r} is "
                f"{choices(map(repr, domains[0].values), 4)}: they have no value in common"
            )


def every_input(model: CausalModel, most: int, among: Mapping[str, Codes] | None = None) -> dict[str, Codes] | None:
    """Return all inputs as codes, or None where they are more than ``most`` or not known."""
    domains = model.exogenous
    if any(not domain.complete for domain in domains.values()):
        return None
    axes = [np.asarray((among or {}).get(name, np.arange(len(domain)))) for name, domain in domains.items()]
    if math.prod(len(axis) for axis in axes) > most:
        return None
    grid = np.meshgrid(*axes, indexing="ij") if axes else []
    return {name: axis.reshape(-1).astype(np.int64) for name, axis in zip(domains, grid, strict=True)}


def unsatisfied(model: CausalModel, setting: Mapping[str, Codes]) -> str:
    """Say which constraints rule out every row of a setting."""
    alone = [name for name in model.constraints if not model.satisfied(setting, name).any()]
    if alone:
        return f"no input satisfies the constraint{'s' if len(alone) > 1 else ''} {choices(alone)}: loosen it"
    return f"no input satisfies the constraints {choices(model.constraints)} together: loosen one"


def _constrained(model: CausalModel) -> list[str]:
    """The variables that constraints read."""
    return [parent for constraint in model.constraints.values() for parent in constraint.parents]


def check_inputs(model: CausalModel) -> None:
    """Check the inputs as far as they can be listed or probed.

    Raises:
        IITKitError: constraints that no input satisfies.

    Warns:
        UserWarning: two inputs that have one prompt.
    """
    inputs = every_input(model, TABULATED)
    if inputs is not None and model.constraints:
        setting = model.reached(inputs, _constrained(model))
        allowed = model.allowed(setting)
        if not allowed.any():
            raise IITKitError(unsatisfied(model, setting))
    _warn_of_one_prompt(model, inputs)


def _warn_of_one_prompt(model: CausalModel, inputs: dict[str, Codes] | None) -> None:
    """Warn of the first two inputs found that a network cannot tell apart."""
    if any(not domain.complete for domain in model.exogenous.values()):
        return
    if inputs is None or len(next(iter(inputs.values()))) > ENUMERATED:
        inputs = _neighbours(model)
    inputs = {name: codes for name, codes in inputs.items() if name in model.exogenous}
    setting = model.reached(inputs, [*model.slots, *_constrained(model)])  # a large answer is not run for this
    rows = model.allowed(setting).nonzero()[0]
    setting = {name: codes[rows] for name, codes in setting.items()}
    seen: dict[Hashable, int] = {}
    if model.encoding is None:
        n = len(rows)
        keys: Sequence[Hashable] = [text.text for text in model.render(setting, np.zeros(n, dtype=np.int64))]
    else:
        keys = [tuple(row) for row in np.stack([setting[slot] for slot in model.slots], 1).tolist()]
    columns = np.stack([setting[name] for name in model.exogenous], 1)
    for row, key in enumerate(keys):
        first = seen.setdefault(key, row)
        if first != row and (columns[first] != columns[row]).any():
            one, other = (
                {name: model.domains[name].values[int(setting[name][r])] for name in model.exogenous}
                for r in (first, row)
            )
            differ = {name: (one[name], other[name]) for name in one if not _same(one[name], other[name])}
            two = np.asarray([first, row])
            answers = model.values(model.run({name: setting[name][two] for name in model.exogenous}), model.output)
            shown = f"{key!r}" if isinstance(key, str) else choices(f"{slot}" for slot in model.slots)
            says = "with different answers" if answers[0] != answers[1] else "with the same answer"
            inputs_differ = "; ".join(f"{name} {a!r} or {b!r}" for name, (a, b) in differ.items())
            warnings.warn(
                f"two inputs have one prompt, {shown}, {says} ({answers[0]!r}, {answers[1]!r}): {inputs_differ}. "
                "A network cannot tell them apart: put the variable into the prompt",
                stacklevel=5,
            )
            return


def _same(one: Hashable, other: Hashable) -> bool:
    return type(one) is type(other) and one == other


def _neighbours(model: CausalModel) -> dict[str, Codes]:
    """Return some inputs and, for each, its neighbours: one variable has another value."""
    generator = np.random.default_rng(0)  # the same warning in every process
    sizes = {name: len(domain) for name, domain in model.exogenous.items()}
    start = {name: generator.integers(size, size=PROBED) for name, size in sizes.items()}
    parts = [start]
    for name, size in sizes.items():
        if size > 1:
            moved = (start[name] + 1 + generator.integers(size - 1, size=PROBED)) % size
            parts.append({**start, name: moved})
    return {name: np.concatenate([part[name] for part in parts]).astype(np.int64) for name in sizes}
