"""Pairs of a pool as rows of a dataset, complete: what is read back makes the very same pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from iitkit.causal import CausalModel, Setting, Text
from iitkit.causal.variables import Codes
from iitkit.data.cells import COLUMNS
from iitkit.data.pairs import Pairs
from iitkit.errors import IITKitError

SEVERAL = {name: f"{name}s" for name in COLUMNS if f"{name}s" in COLUMNS}
"""Columns that have another for several sources; the rest then hold lists."""


class Prompted(Protocol):
    """What a pool must have for its pairs to be written."""

    @property
    def texts(self) -> Sequence[Text]:
        """The prompts; empty where they are no text."""

    @property
    def prompts(self) -> Any:
        """What they are to the network."""

    @property
    def templates(self) -> Codes:
        """Each prompt's template."""

    @property
    def setting(self) -> Setting:
        """Every variable's codes; empty without a causal model."""


def rows_of(
    pool: Prompted,
    pairs: Pairs,
    variables: Sequence[str],
    model: CausalModel | None = None,
    truths: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Return pairs as rows of a dataset, see :data:`iitkit.data.cells.COLUMNS`.

    Args:
        pool: the prompts.
        pairs: the pairs, as rows of the pool.
        variables: names of the variables that the pairs number.
        model: the causal model, for the variables' values.
        truths: each prompt's label without intervention, empty where it is unknown.
    """
    k, n = pairs.sources.shape[1], len(pairs)
    base, sources = pairs.base.tolist(), pairs.sources.tolist()
    columns: dict[str, list[Any]] = {}

    def put(name: str, cells: Sequence[Any]) -> None:
        """Put what each prompt of the pool has: the base's, and the source's or a list of the sources'."""
        if name != "label":
            columns["base" if name == "" else f"base_{name}"] = [cells[row] for row in base]
        one = f"source_{name}" if name else "source"
        columns[SEVERAL.get(one, one) if k > 1 else one] = [
            cells[rows[0]] if k == 1 else [cells[row] for row in rows] for rows in sources
        ]

    prompts, spans = _inputs(pool)
    answer = _classes(model) if not pool.texts else str
    put("", prompts)
    columns["label"] = [answer(row[i]) for row, i in zip(pairs.candidates, pairs.label, strict=True)]
    if all(label >= 0 for label in pairs.base_label):
        columns["base_label"] = [answer(row[i]) for row, i in zip(pairs.candidates, pairs.base_label, strict=True)]
        columns["flipped"] = pairs.flipped.tolist()
    if truths is not None and all(truths[row] for row in np.unique(pairs.sources).tolist()):
        put("label", [truth and answer(truth) for truth in truths])
    columns["candidates"] = [[answer(text) for text in row] for row in pairs.candidates]
    named = [[variables[v] for v in row] for row in pairs.variables.tolist()]
    several = pairs.variables.shape[1] > 1
    columns["variables" if several else "variable"] = [row if several else row[0] for row in named]
    if pairs.other is not None and pairs.other_label is not None:
        columns["other_variable"] = [variables[v] for v in pairs.other.tolist()]
        columns["other_label"] = [answer(label) for label in pairs.other_label]
    put("template", pool.templates.tolist())
    columns["template"] = columns.pop("base_template")
    put("positions", spans)
    if model is not None and pool.setting:
        put("values", _values(pool, model))
    names = list(columns)
    assert all(len(cells) == n for cells in columns.values())
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _inputs(pool: Prompted) -> tuple[Sequence[Any], list[dict[str, list[int]]]]:
    """Return each prompt, as text or as numbers, and its spans."""
    if pool.texts:
        spans = [{name: list(place) for name, place in text.spans.items()} for text in pool.texts]
        return [text.text for text in pool.texts], spans
    arrays = getattr(pool.prompts, "inputs", None)
    if arrays is not None:
        return arrays.tolist(), [{}] * len(arrays)
    found = [pool.prompts[row] for row in range(len(pool.prompts))]
    return [prompt.ids for prompt in found], [{name: list(at) for name, at in p.spans.items()} for p in found]


def _classes(model: CausalModel | None) -> Callable[[str], int]:
    """Return what gives an answer's class or symbol, where the network reads no text."""
    if model is None or model.encoding is None:
        return int
    classes: dict[str, int] = {}
    for value in model.domains[model.output].values:
        text, number = model.forms(value)[0], model.encoding.label(value)
        if classes.setdefault(text, number) != number:
            raise IITKitError(
                f"answer {text!r} stands for two values of {model.output!r}: give them a surface form each"
            )
    return classes.__getitem__


def _values(pool: Prompted, model: CausalModel) -> list[dict[str, Any]]:
    """Return every variable's value in each prompt, as JSON has it."""
    columns = {name: [_plain(value) for value in model.values(pool.setting, name)] for name in pool.setting}
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, tuple | list | np.ndarray):
        return [_plain(part) for part in value]
    finite = isinstance(value, float) and np.isfinite(value)
    return value if finite or isinstance(value, bool | int | str) else str(value)
