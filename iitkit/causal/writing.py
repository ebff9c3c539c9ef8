"""A causal model as plain values: what ``written`` reads, from any model whose variables can be listed."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from iitkit.causal.encodings import Symbols, Vectors
from iitkit.causal.expressions import Expression
from iitkit.causal.model import CausalModel
from iitkit.causal.plain import freeze
from iitkit.causal.recognised import recognised
from iitkit.causal.tabled import Condition
from iitkit.causal.variables import Codes, Mechanism
from iitkit.errors import IITKitError, choices

LARGEST_TABLE = 50_000
"""Most entries of a mechanism that is written as a table."""

LOOKED_AT = 4_000_000
"""Most entries of a mechanism that an expression is sought for."""

SMALL = 12
"""Tables of at most this many entries are written out, larger ones as an expression where a simple one is found."""


def to_mapping(model: CausalModel) -> dict[str, Any]:
    """Return a model as plain values, which ``CausalModel.from_dict`` reads: the same labels for every input.

    Mechanisms that were written as expressions stay so, others become tables, or a simple expression that equals the
    table in every entry. How inputs are drawn (samplers, open domains) is not a matter of plain values.

    Args:
        model: a model of finite domains.

    Raises:
        IITKitError: an open variable, a value that is not plain, a mechanism too large to be listed, an encoding by a
            function.
    """
    model.compile()
    if model.open:
        raise IITKitError(f"variable {choices(model.open)} is open: a model is written with the lists of its values")
    found: dict[str, Any] = {"prompt": _prompt(model), "output": model.output}
    if model.candidates:
        found["candidates"] = list(model.candidates)
    if model.surface:
        found["surface"] = {
            _plain(value, "surface"): forms[0] if len(forms) == 1 else list(forms)
            for (_, value), forms in model.surface.items()
        }
    found["variables"] = {
        name: [_plain(value, f"variable {name!r}") for value in domain.values]
        for name, domain in model.exogenous.items()
    }
    order = [name for name, parents in model.parents.items() if parents]
    found["mechanisms"] = {name: _written(model, model.mechanisms[name], "mechanism") for name in order}
    if model.constraints:
        found["constraints"] = {name: _written(model, of, "constraint") for name, of in model.constraints.items()}
    return found


def _prompt(model: CausalModel) -> Any:
    encoding = model.encoding
    if isinstance(encoding, Symbols):
        return {"symbols": encoding.template, "vocabulary": [_plain(v, "vocabulary") for v in encoding.vocabulary]}
    if isinstance(encoding, Vectors):
        return {"vectors": encoding.slots}
    if encoding is not None:
        raise IITKitError(f"inputs of {type(encoding).__name__} are made by a function, which is no plain value")
    texts = [template.template for template in model.templates]
    return texts[0] if len(texts) == 1 else texts


def _plain(value: Any, where: str) -> Any:
    """Return a value as YAML holds it, a tuple as a list."""
    return _thawed(freeze(value, where))


def _thawed(value: Hashable) -> Any:
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value


def _written(model: CausalModel, mechanism: Mechanism, what: str) -> Any:
    """Return a mechanism or constraint as text or as a table."""
    where = f"{what} {mechanism.name!r}"
    text = _text(mechanism)
    if text is None:
        codes = _every(model, mechanism, where)
        size = codes.size
        domains = [model.domains[parent] for parent in mechanism.parents]
        text = recognised(codes, domains, mechanism.domain) if size > SMALL else None
        if text is not None and size <= LARGEST_TABLE and len(Expression("", text).parents) < len(domains):
            text = None  # a parent that does not matter is part of the hypothesis, too
        if text is None and size > LARGEST_TABLE:
            raise IITKitError(f"{where} has {size} entries, {LARGEST_TABLE} at most: write it as an expression")
    if what == "constraint":
        return _table(model, mechanism, codes, bool) if text is None else text
    result: Any = text
    if text is None:
        result = _table(model, mechanism, codes, lambda value: _plain(value, where))
    if mechanism.domain.declared:
        result = {"expression": text} if text is not None else result
        result["domain"] = [_plain(value, where) for value in mechanism.domain.values]
    return result


def _text(mechanism: Mechanism) -> str | None:
    """The expression that it was made of."""
    function = mechanism.function.function if isinstance(mechanism.function, Condition) else mechanism.function
    return function.text.strip() if isinstance(function, Expression) else None


def _every(model: CausalModel, mechanism: Mechanism, where: str) -> Codes:
    """Return the codes of all combinations of the parents' values, one axis for each parent."""
    for parent in mechanism.parents:
        if not model.domains[parent].complete:  # its values come to light as it runs
            _every(model, model.mechanisms[parent], f"mechanism {parent!r}")
    sizes = [len(model.domains[parent]) for parent in mechanism.parents]
    if math.prod(sizes) > LOOKED_AT:
        raise IITKitError(f"{where} has {math.prod(sizes)} entries, too many to list: write it as an expression")
    grid = np.unravel_index(np.arange(math.prod(sizes)), sizes)
    return mechanism.run([axis.astype(np.int64) for axis in grid], model.domains).reshape(sizes)


def _table(model: CausalModel, mechanism: Mechanism, codes: Codes, plain: Callable[[Hashable], Any]) -> dict[str, Any]:
    """Return a table by nested values, or by rows where a mapping would not tell the values apart."""
    domains = [model.domains[parent].values for parent in mechanism.parents]
    results = [plain(value) for value in mechanism.domain.values]
    of: Any = mechanism.parents[0] if len(mechanism.parents) == 1 else list(mechanism.parents)

    def nested(level: Any, axis: int) -> Any:
        if axis == len(domains):
            return results[int(level)]
        return {value: nested(level[i], axis + 1) for i, value in enumerate(domains[axis])}

    plain_keys = all(not isinstance(value, tuple) for domain in domains for value in domain)
    if plain_keys and all(len(set(domain)) == len(domain) for domain in domains):
        return {"of": of, "table": nested(codes, 0)}
    rows = [
        [*(_plain(domain[i], mechanism.name) for domain, i in zip(domains, at, strict=True)), results[int(code)]]
        for at, code in np.ndenumerate(codes)
    ]
    return {"of": of, "rows": rows}
