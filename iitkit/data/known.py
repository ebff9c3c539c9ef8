"""Which value a causal variable has in each training prompt, as far as anybody says."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from iitkit.causal.variables import Codes, key_of
from iitkit.data.cells import UNREAD, is_text, known_columns, opened
from iitkit.data.datamodule import CounterfactualDataModule
from iitkit.data.numbers import spelled
from iitkit.data.recorded import Recorded
from iitkit.data.tables import read_table


@dataclass(frozen=True)
class Known:
    """A variable's values in the training prompts.

    Args:
        names: the values, in order.
        codes: for each prompt of the pool the index of its value, -1 where nobody says it, [N].
    """

    names: list[Any]
    codes: Codes


def known_values(data: CounterfactualDataModule, variable: str) -> Known | None:
    """Return a variable's values in the training prompts.

    Of a task they are the causal model's, in the domain's order; of recorded pairs those in the columns base_values
    and source_values, in the order in which the prompts have them.

    Returns:
        None where they are not known, or are drawn from an open domain.
    """
    pool = data.pools["train"]
    if data.task is not None:
        model = data.task.model
        if variable in model.open or variable not in pool.setting:
            return None
        return Known(list(model.domains[variable].values), pool.setting[variable])
    assert isinstance(data.source, Recorded)
    of_text = said_values(data.source, variable)
    texts, _, _ = data.source.prompts("train")
    kept = data.kept("train")
    rows = range(len(texts)) if kept is None else kept.tolist()
    names: list[Hashable] = []
    numbers: dict[tuple[Any, ...], int] = {}
    codes = np.full(len(rows), -1, dtype=np.int64)
    for i, row in enumerate(rows):
        value = of_text.get(texts[row].text)
        if value is None:
            continue
        key = key_of(value)
        if key not in numbers:
            numbers[key] = len(names)
            names.append(value)
        codes[i] = numbers[key]
    return Known(names, codes) if names else None


def known_answers(data: CounterfactualDataModule, variable: str) -> dict[Any, str]:
    """Return the answer that each of a variable's values leads to, where the training prompts that have it agree.

    The gender female leads to " she" in every prompt; the position of an indirect object to a name that varies.
    """
    known = known_values(data, variable)
    if known is None:
        return {}
    every, kept = data.source.truths("train"), data.kept("train")
    answers = every if kept is None else [every[row] for row in kept.tolist()]
    found: dict[int, set[str]] = {}
    for code, answer in zip(known.codes.tolist(), answers, strict=True):
        found.setdefault(code, set()).add(answer)
    said = {code: next(iter(each)) for code, each in found.items() if code >= 0 and len(each) == 1}
    return {known.names[code]: answer for code, answer in said.items() if answer}


def said_values(source: Recorded, variable: str) -> dict[str, Any]:
    """Return a variable's value in each recorded prompt, by the prompt's text, as base_values and source_values say.

    The files are read again for it: nothing else needs these columns. Prompts of which they say nothing, or two
    things, are left out.
    """
    found: dict[str, Any] = {}
    for file, name in (file for files in source.files.values() for file in files):
        cells = known_columns(read_table(file, name), source.columns)
        if not any(column in cells for column in UNREAD):
            continue
        cells = spelled(cells) if source.numbers else cells
        sources = cells.each("source", "sources", is_text, "text") or []
        for column, texts in (("base_values", [(text,) for text in cells.texts("base")]), ("source_values", sources)):
            said = cells.columns.get(column, [None] * len(texts))
            for prompts, cell in zip(texts, map(opened, said), strict=True):
                for text, values in zip(prompts, cell if isinstance(cell, list) else [cell], strict=False):
                    value = _hashable(values.get(variable)) if isinstance(values, dict) else None
                    if value is not None and found.setdefault(text, value) != value:
                        found[text] = None
    return {text: value for text, value in found.items() if value is not None}


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    return None if isinstance(value, dict) else value
