"""A split of recorded pairs: its distinct prompts, and the pairs as rows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from iitkit.causal import Text
from iitkit.causal.variables import Codes
from iitkit.data.rows import Row
from iitkit.errors import IITKitError

UNKNOWN = -1
"""The base label's index where nobody has said what the base model answers."""


@dataclass
class RecordedSplit:
    """Prompts, N of them, and pairs, n of them.

    Args:
        texts: the prompts, no two with the same text and spans.
        truths: each prompt's label without intervention, empty where the file does not say.
        template: the number of its template.
        answers: those that compete behind it: of the first pair that it is the base of, else the source.
        pairs: rows of the prompts: base and sources, [n, 1 + K].
        variables: of each pair.
        candidates: of each pair.
        label: index among them.
        base_label: the same, or :data:`UNKNOWN`.
        other: a variable to be isolated, and its label.
        flips: whether label and base label differ; False where that is unknown.
    """

    texts: list[Text] = field(default_factory=list)
    truths: list[str] = field(default_factory=list)
    template: list[int] = field(default_factory=list)
    answers: list[list[str]] = field(default_factory=list)
    pairs: list[list[int]] = field(default_factory=list)
    variables: list[tuple[str, ...]] = field(default_factory=list)
    candidates: list[list[str]] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    base_label: list[int] = field(default_factory=list)
    other: list[tuple[str, str] | None] = field(default_factory=list)
    flips: list[bool] = field(default_factory=list)

    @cached_property
    def base(self) -> Codes:
        """The pairs' bases, rows of the prompts, [n]."""
        return np.asarray(self.pairs, dtype=np.int64)[:, 0]

    @cached_property
    def sources(self) -> Codes:
        """Their sources, [n, K]."""
        return np.asarray(self.pairs, dtype=np.int64)[:, 1:]

    @cached_property
    def flipped(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Whether each pair's interchange changes the label, [n]."""
        return np.asarray(self.flips, dtype=bool)

    @cached_property
    def templates(self) -> Codes:
        """Each prompt's template, [N]."""
        return np.asarray(self.template, dtype=np.int64)

    @classmethod
    def of(cls, rows: Sequence[Row], shared: tuple[str, ...] | None, codes: dict[str | int, int]) -> RecordedSplit:
        """Make a split of its rows.

        Args:
            rows: the pairs.
            shared: the answers that compete in every pair, where the file names none.
            codes: names of templates and their numbers, which are added to.
        """
        data = cls()
        known: dict[str, int] = {}
        others: dict[tuple[str, tuple[tuple[str, tuple[int, int]], ...]], int] = {}  # the same texts with other spans
        said_at: dict[int, Row] = {}
        bases: set[int] = set()
        lists: dict[tuple[str, ...], tuple[list[str], dict[str, int]]] = {}
        for row in rows:
            answers = shared if row.candidates is None else row.candidates
            assert answers is not None
            if answers not in lists:
                lists[answers] = (list(answers), {answer: k for k, answer in enumerate(answers)})
            listed, where = lists[answers]
            numbers = []
            truths = (row.base_label or "", *(row.source_labels or [""] * len(row.sources)))
            templates = row.templates or (0,) * len(truths)
            for text, truth, template in zip((row.base, *row.sources), truths, templates, strict=True):
                number = known.setdefault(text.text, len(data.texts))
                if number < len(data.texts) and data.texts[number].spans != text.spans:
                    number = others.setdefault((text.text, tuple(sorted(text.spans.items()))), len(data.texts))
                if number == len(data.texts):
                    data.texts.append(text)
                    data.truths.append("")
                    data.answers.append(listed)
                    code = template if isinstance(template, int) else codes.setdefault(template, len(codes))
                    data.template.append(code)
                if truth:
                    earlier = data.truths[number]
                    if earlier and earlier != truth:
                        raise IITKitError(
                            f"{row.at}: {text.text!r} is answered {truth!r} without intervention, at "
                            f"{said_at[number].at} {earlier!r}: expected one answer"
                        )
                    data.truths[number] = truth
                    said_at.setdefault(number, row)
                numbers.append(number)
            if numbers[0] not in bases:
                bases.add(numbers[0])
                data.answers[numbers[0]] = listed
            data.pairs.append(numbers)
            data.variables.append(row.variables)
            data.candidates.append(listed)
            data.label.append(where[row.label])
            data.base_label.append(UNKNOWN if row.base_label is None else where[row.base_label])
            data.other.append(row.other)
            data.flips.append(bool(row.flipped) if row.base_label is None else row.label != row.base_label)
        for number, truth in enumerate(data.truths):
            if truth and truth not in data.answers[number]:
                data.answers[number] = [*data.answers[number], truth]
        return data
