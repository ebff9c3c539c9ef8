"""Rows of counterfactual pairs, read from a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from iitkit.causal import Text
from iitkit.data.cells import Cells, is_template, is_text, known_columns
from iitkit.data.numbers import are_numbers, spelled
from iitkit.data.spans import find_spans
from iitkit.data.tables import Table
from iitkit.errors import IITKitError


class Row(NamedTuple):
    """A pair."""

    table: Table
    row: int
    base: Text
    sources: tuple[Text, ...]
    label: str
    base_label: str | None
    candidates: tuple[str, ...] | None
    variables: tuple[str, ...]
    flipped: bool | None
    templates: tuple[str | int, ...]
    """The base's and the sources'; empty where the file names none."""
    source_labels: tuple[str, ...]
    other: tuple[str, str] | None
    numbers: bool
    """Whether the prompts are lists of numbers, spelled as JSON."""

    @property
    def at(self) -> str:
        """Where it stands, for messages."""
        return self.table.at(self.row)


def read_rows(table: Table, columns: Mapping[str, str | None]) -> list[Row]:
    """Return a table's pairs.

    Args:
        table: the table.
        columns: known name → the file's name.

    Raises:
        IITKitError: naming file, line and column: what was given and what was expected.
    """
    cells = known_columns(table, columns)
    if numbers := are_numbers(cells):
        cells = spelled(cells)
    n = len(table)
    base, label = cells.texts("base"), cells.texts("label")
    sources = cells.each("source", "sources", is_text, "text")
    assert sources is not None  # known_columns has looked
    lengths = [len(row) for row in sources]
    if wrong := next((row for row, k in enumerate(lengths) if k != lengths[0]), None):
        raise IITKitError(
            f"{table.at(wrong)} has {lengths[wrong]} sources, {table.at(0)} has {lengths[0]}: expected equally many"
        )
    variables = _variables(cells, lengths)
    base_labels = cells.texts("base_label") if "base_label" in cells else [None] * n
    candidates = _candidates(cells, label, base_labels) if "candidates" in cells else [None] * n
    flipped = cells.every("flipped", _is_flag, "true or false") if "flipped" in cells else [None] * n
    flipped = [cell if cell is None or type(cell) is bool else cell.lower() == "true" for cell in flipped]
    for row, (said, one, other) in enumerate(zip(flipped, label, base_labels, strict=True)):
        if said is not None and other is not None and said != (one != other):
            raise cells.wrong("flipped", row, f"{one != other}: label is {one!r}, base_label {other!r}")
    templates = _templates(cells, lengths)
    answers = cells.each("source_label", "source_labels", is_text, "text", lengths) or [()] * n
    others: list[Any] = [None] * n
    if "other_variable" in cells or "other_label" in cells:
        if "other_variable" not in cells or "other_label" not in cells:
            raise IITKitError(f"{table.name}: expected columns other_variable and other_label, or neither")
        others = list(zip(cells.texts("other_variable"), cells.texts("other_label"), strict=True))
    spans = find_spans(cells, base, sources, numbers)
    prompts = [
        (Text(text, here), tuple(map(Text, texts, there)))
        for text, texts, (here, *there) in zip(base, sources, spans, strict=True)
    ]
    return [
        Row(table, i, *prompts[i], label[i], base_labels[i], candidates[i], variables[i],
            flipped[i], templates[i], answers[i], others[i], numbers)
        for i in range(n)
    ]  # fmt: skip


def _variables(cells: Cells, lengths: Sequence[int]) -> list[Any]:
    """Return the variables of each row: one for each source, or any number from the one; none where none is named."""
    k = lengths[0]
    if "variables" in cells and k == 1:
        cells.each("variable", "variables", is_text, "text")  # not both
        variables = cells.lists("variables", is_text, "texts")
    else:
        found = cells.each("variable", "variables", is_text, "text", lengths)
        if found is None and k > 1:
            raise IITKitError(
                f"{cells.table.name} has {k} sources a pair and no column 'variables': expected a list of the "
                "variables that take their values from them"
            )
        variables = found or [()] * len(lengths)
    for row, names in enumerate(variables if k == 1 else []):  # of several sources that is a matter of stages
        if len(set(names)) < len(names):
            raise cells.wrong("variables", row, "each variable once")
    return variables


def _templates(cells: Cells, lengths: Sequence[int]) -> list[Any]:
    """Return the templates of each row's base and sources, which are the base's unless they are said; none without."""
    if "template" not in cells:
        if "source_template" in cells or "source_templates" in cells:
            raise IITKitError(f"{cells.table.name} names the sources' templates: expected a column 'template' as well")
        return [()] * len(lengths)
    expected = "text or an integer, of one kind in every row"
    kind = next(type(cell) for cell in cells.columns["template"] if cell is not None)

    def fits(cell: Any) -> bool:
        return is_template(cell) and type(cell) is kind

    of_base = cells.every("template", fits, expected)
    of_sources = cells.each("source_template", "source_templates", fits, expected, lengths)
    of_sources = of_sources or [(t,) * k for t, k in zip(of_base, lengths, strict=True)]
    return [(one, *others) for one, others in zip(of_base, of_sources, strict=True)]


def _is_flag(value: Any) -> bool:
    return type(value) is bool or (type(value) is str and value.lower() in ("true", "false"))


def _candidates(cells: Cells, label: list[str], base_label: Sequence[str | None]) -> list[Any]:
    found = cells.lists("candidates", is_text, "texts")
    fine: dict[tuple[str, ...], tuple[str, ...]] = {}
    for row, answers in enumerate(found):
        if answers not in fine:
            if len(set(answers)) < max(2, len(answers)):
                raise cells.wrong("candidates", row, "two or more different answers")
            fine[answers] = answers
        found[row] = fine[answers]
        for name, answer in (("label", label[row]), ("base_label", base_label[row])):
            if answer is not None and answer not in answers:
                raise cells.wrong("candidates", row, f"the {name} {answer!r} among them")
    return found
