"""Sampling the inputs of a causal model, by explicit generators."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from iitkit.causal.checks import every_input, unsatisfied
from iitkit.causal.model import CausalModel, Setting
from iitkit.causal.variables import TABULATED, Codes
from iitkit.errors import IITKitError, choices, did_you_mean

ROUNDS = 64
"""How often sampling is tried before inputs are called impossible."""

LEAST = 1000
"""Inputs drawn in a round, at least: few prompts may be wanted of a model whose constraints few inputs satisfy."""

HOPELESS = 64_000
"""Inputs drawn without one that is allowed, after which no more are drawn."""

VARIANTS = 8
"""Inputs that differ in only some variables are drawn in groups of so many."""

Where = Callable[[Setting], npt.NDArray[np.bool_]]
"""Says which rows of a full setting may be used, beside the constraints."""


def take(setting: Setting, rows: Codes) -> Setting:
    """Return the given rows of a setting."""
    return {name: codes[rows] for name, codes in setting.items()}


def joined(parts: Sequence[Setting]) -> Setting:
    """Return settings one behind the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def sample_inputs(
    model: CausalModel,
    n: int,
    generator: np.random.Generator,
    templates: Sequence[int] = (0,),
    among: Mapping[str, Codes] | None = None,
    where: Where | None = None,
    varying: Sequence[str] = (),
) -> tuple[Setting, Codes]:
    """Draw up to ``n`` inputs whose prompts all differ.

    Args:
        model: the causal model.
        n: how many; fewer are returned where there are no more different prompts.
        generator: draws them.
        templates: indices of the templates to use.
        among: variable → the codes it may take; the whole domain unless said.
        where: which rows of a setting may be used.
        varying: exogenous variables; the inputs then come in groups that differ in no others.

    Returns:
        Every variable's codes and the template of each input.

    Raises:
        IITKitError: constraints that no input satisfies, a variable in ``varying`` that is not exogenous.
    """
    model.compile()
    check_varying(model, varying)
    size = max(n, LEAST)
    parts: list[tuple[Setting, Codes]] = []
    keys: list[npt.NDArray[np.int64]] = []
    found = drawn = stale = barren = 0
    for _ in range(ROUNDS):
        setting, used = _draw(model, size, generator, templates, among, varying)
        drawn += size
        rows = _fine(model, setting, where).nonzero()[0]
        fresh = _new(keys, _keys(model, setting, used), rows)[: n - found]
        parts.append((take(setting, fresh), used[fresh]))
        found += len(fresh)
        stale = 0 if len(fresh) else stale + len(rows)
        barren = 0 if len(fresh) else barren + size
        if found == n or (found and stale >= found) or barren >= HOPELESS:
            break  # all asked for, or as many as there are were drawn again and brought nothing new
    if not found:
        parts = [_listed(model, n, generator, templates, among, where)]
    elif found < n:
        parts.append(_rest(model, n - found, generator, templates, among, where, keys))
    return joined([part for part, _ in parts]), np.concatenate([used for _, used in parts])


def check_varying(model: CausalModel, names: Sequence[str]) -> None:
    """Check that pairs can differ in only these variables.

    Raises:
        IITKitError: one that is computed, so that it cannot be varied by itself.
    """
    for name in names:
        model.check_variable(name, "differ_in")
        if name in model.mechanisms:
            raise IITKitError(
                f"differ_in: {name!r} is computed from {choices(model.mechanisms[name].parents)}: name exogenous "
                f"variables, of {choices(model.exogenous)}"
            )


def groups_of(model: CausalModel, setting: Setting, templates: Codes, varying: Sequence[str]) -> Codes:
    """Return numbers that are equal where inputs differ in ``varying`` only, [n]."""
    fixed = [setting[name] for name in model.exogenous if name not in varying]
    _, numbers = np.unique(np.stack([*fixed, templates], 1), axis=0, return_inverse=True)
    found: Codes = numbers.reshape(-1).astype(np.int64)
    return found


def _draw(
    model: CausalModel,
    n: int,
    generator: np.random.Generator,
    templates: Sequence[int],
    among: Mapping[str, Codes] | None,
    varying: Sequence[str],
) -> tuple[Setting, Codes]:
    """Draw inputs and templates, whatever the constraints say."""
    inputs = _inputs(model, n, generator, among)
    used = np.asarray(templates, dtype=np.int64)[generator.integers(len(templates), size=n)]
    if varying:
        of = np.arange(n) // VARIANTS
        fixed = {name: codes[of] for name, codes in inputs.items() if name not in varying}
        inputs, used = {**inputs, **fixed}, used[of]
    return model.run(inputs), used


def _inputs(
    model: CausalModel, n: int, generator: np.random.Generator, among: Mapping[str, Codes] | None
) -> dict[str, Codes]:
    together: dict[str, Codes] = {}
    for sampler in model.samplers:
        for name, codes in _sampled(model, sampler, n, generator, among).items():
            if name in together:
                raise IITKitError(f"two samplers draw {name!r}: leave it to one")
            together[name] = codes
    inputs = {}
    for name, domain in model.exogenous.items():
        if name in together:
            inputs[name] = together[name]
        elif name in model.open:
            values = list(model.open[name].draw(generator, n))
            if len(values) != n:
                raise IITKitError(f"open variable {name!r}: draw returned {len(values)} values, expected {n}")
            inputs[name] = np.asarray([domain.add(value) for value in values], dtype=np.int64)
        elif among and name in among:
            inputs[name] = generator.choice(among[name], n)
        else:
            inputs[name] = generator.integers(len(domain), size=n)
        inputs[name] = inputs[name].astype(np.int64)
    return inputs


def _sampled(
    model: CausalModel,
    sampler: Callable[..., Mapping[str, Sequence[object]]],
    n: int,
    generator: np.random.Generator,
    among: Mapping[str, Codes] | None,
) -> dict[str, Codes]:
    """What one sampler draws, as codes."""
    name = getattr(sampler, "__name__", "sampler")
    arguments: list[object] = [generator, n]
    if len(inspect.signature(sampler).parameters) == 3:
        arguments.append(
            {
                variable: [domain.values[i] for i in (among or {}).get(variable, np.arange(len(domain)))]
                for variable, domain in model.exogenous.items()
                if variable not in model.open
            }
        )
    drawn = sampler(*arguments)
    found: dict[str, Codes] = {}
    for variable, values in drawn.items():
        if variable not in model.exogenous:
            raise IITKitError(
                f"sampler {name!r} draws {variable!r}, which is no exogenous variable."
                f"{did_you_mean(variable, model.exogenous)} They are {choices(model.exogenous)}"
            )
        listed: list[Any] = getattr(values, "tolist", lambda values=values: list(values))()
        if len(listed) != n:
            raise IITKitError(f"sampler {name!r} draws {len(listed)} values of {variable!r}, expected {n}")
        domain = model.exogenous[variable]
        codes = [domain.add(value) if variable in model.open else domain.find(value) for value in listed]
        if None in codes:
            raise IITKitError(
                f"sampler {name!r} draws {listed[codes.index(None)]!r}, which is no value of {variable!r}: its domain "
                f"is {choices(map(repr, domain.values))}"
            )
        found[variable] = np.asarray(codes, dtype=np.int64)
    fits = np.ones(n, dtype=bool)
    for variable, drawn_codes in found.items():
        if among and variable in among:
            fits &= np.isin(drawn_codes, among[variable])
    if not fits.any():
        raise IITKitError(
            f"sampler {name!r} draws nothing that this split may use: give it a third argument, among, and draw from it"
        )
    # rows stay as they were drawn: what belongs together stays together
    kept = np.where(fits, np.arange(n), generator.choice(fits.nonzero()[0], n) if not fits.all() else 0)
    return {variable: drawn_codes[kept] for variable, drawn_codes in found.items()}


def _fine(model: CausalModel, setting: Setting, where: Where | None) -> npt.NDArray[np.bool_]:
    fine = model.allowed(setting)
    return fine if where is None else fine & where(setting)


def _keys(model: CausalModel, setting: Setting, used: Codes) -> npt.NDArray[np.int64]:
    """Return what is equal where prompts are, [n] or [n, slots + 1]."""
    domains = [model.domains[slot] for slot in model.slots]
    columns = [*(setting[slot] for slot in model.slots), used]
    sizes = [*(len(domain) for domain in domains), max(len(model.templates), 1)]
    if all(domain.complete for domain in domains) and math.prod(sizes) < 2**62:
        return np.ravel_multi_index(columns, sizes)  # numbers are sorted many times faster than rows
    return np.stack(columns, 1)


def _new(seen: list[npt.NDArray[np.int64]], keys: npt.NDArray[np.int64], rows: Codes) -> Codes:
    """Return the first of the given rows with each key that was not there before; remember the keys."""
    before = sum(len(part) for part in seen)
    seen.append(keys[rows])
    _, first = np.unique(np.concatenate(seen), axis=0, return_index=True)
    fresh: Codes = rows[np.sort(first[first >= before]) - before]
    return fresh


def _listed(
    model: CausalModel,
    n: int,
    generator: np.random.Generator,
    templates: Sequence[int],
    among: Mapping[str, Codes] | None,
    where: Where | None,
) -> tuple[Setting, Codes]:
    """Look for allowed inputs among all there are, where drawing has found none.

    Raises:
        IITKitError: there is none, or the inputs are too many to look at.
    """
    inputs = None if model.samplers else every_input(model, TABULATED, among)
    if inputs is None:
        inputs = _inputs(model, LEAST, generator, among)
        setting = model.run(inputs)
        raise IITKitError(unsatisfied(model, setting) if not model.allowed(setting).any() else _nothing_left(where))
    setting = model.run(inputs)
    rows = _fine(model, setting, where).nonzero()[0]
    if not len(rows):
        raise IITKitError(unsatisfied(model, setting) if not model.allowed(setting).any() else _nothing_left(where))
    used = np.asarray(templates, dtype=np.int64)[generator.integers(len(templates), size=len(rows))]
    order = generator.permutation(len(rows))
    keys = _keys(model, take(setting, rows), used)
    fresh = _new([], keys[order], np.arange(len(rows)))[:n]
    return take(setting, rows[order[fresh]]), used[order[fresh]]


def _rest(
    model: CausalModel,
    n: int,
    generator: np.random.Generator,
    templates: Sequence[int],
    among: Mapping[str, Codes] | None,
    where: Where | None,
    seen: list[npt.NDArray[np.int64]],
) -> tuple[Setting, Codes]:
    """Return up to ``n`` more inputs, of all there are, where drawing has met only some: none where they are too many.

    What a sampler leaves out is left out: then drawing must do.
    """
    inputs = None if model.samplers else every_input(model, TABULATED // len(templates), among)
    setting = model.run(inputs or {name: np.zeros(0, dtype=np.int64) for name in model.exogenous})
    rows = np.tile(_fine(model, setting, where).nonzero()[0], len(templates))
    used = np.repeat(np.asarray(templates, dtype=np.int64), len(rows) // len(templates))
    order = generator.permutation(len(rows))
    setting, used = take(setting, rows[order]), used[order]
    fresh = _new(seen, _keys(model, setting, used), np.arange(len(rows)))[:n]
    return take(setting, fresh), used[fresh]


def _nothing_left(where: Where | None) -> str:
    return (
        "no input that the constraints allow belongs to this split: choose other variables for split_by or other shares"
        if where is not None
        else "no input that the constraints allow was found among the values of this split: enlarge the word lists"
    )
