"""From answers to candidates, and what the base model itself answers where a dataset does not say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from iitkit.batch import Tokens
from iitkit.data.answers import Answers, Choice, Classes, Labels
from iitkit.data.drawn import TaskPairs
from iitkit.data.loader import Collator
from iitkit.data.pairs import Pairs
from iitkit.data.source import PairSource
from iitkit.data.wording import Wording

ASKED = 64
"""Prompts in a batch of questions to the base model."""


def labels_for(source: PairSource, tokenizer: Any, wording: Wording) -> Labels:
    """Return what turns a source's answers into tokens, with their surface forms, or into classes."""
    if not isinstance(source, TaskPairs):
        return Classes() if tokenizer is None else Answers(tokenizer, wording)
    model = source.model
    values = list(dict.fromkeys(v for name in (model.output, *model.candidates) for v in model.domains[name].values))
    if model.encoding is not None:
        number = {model.forms(value)[0]: model.encoding.label(value) for value in values}
        return Classes(lambda text: number[text])
    answers = Answers(tokenizer, wording)
    forms = {texts[0]: texts for texts in model.surface.values()}  # also of values that no input has had yet
    return _Formed(answers, forms) if any(len(texts) > 1 for texts in forms.values()) else answers


def forms_of(source: PairSource, answer: str) -> tuple[str, ...]:
    """Return the texts that count as an answer, itself first."""
    if isinstance(source, TaskPairs):
        for texts in source.model.surface.values():
            if texts[0] == answer:
                return texts
    return (answer,)


class _Formed:
    """Answers, each with all its surface forms."""

    def __init__(self, answers: Answers, forms: Mapping[str, Sequence[str]]) -> None:
        self.answers, self.forms = answers, forms

    def choices(self, prompts: Any, rows: Sequence[int], answers: Sequence[Sequence[Any]]) -> list[Choice]:
        """See :class:`iitkit.data.answers.Labels`."""
        formed = [[self.forms.get(text, text) for text in row] for row in answers]
        return self.answers.choices(prompts, rows, formed)


class Asked:
    """Asks the base model for the labels without intervention; each prompt and set of candidates once.

    Args:
        answer: (tokens, candidates) → the candidate that the base model answers, [B].
    """

    def __init__(self, answer: Callable[[Tokens, Tensor], Tensor]) -> None:
        self.answer = answer
        self._known: dict[tuple[str, int, tuple[str, ...]], int] = {}

    def filled(self, pairs: Pairs, split: str, collate: Collator) -> Pairs:
        """Return pairs with the base's labels, and which of them the interchange flips."""
        keys = [
            (split, base, tuple(candidates))
            for base, candidates in zip(pairs.base.tolist(), pairs.candidates, strict=True)
        ]
        new = [key for key in dict.fromkeys(keys) if key not in self._known]
        for start in range(0, len(new), ASKED):
            part = new[start : start + ASKED]
            rows = [base for _, base, _ in part]
            candidates, winners = collate.competing(rows, [list(answers) for _, _, answers in part])
            said = winners(self.answer(collate.tokens(rows), candidates).cpu())
            self._known.update(zip(part, said.tolist(), strict=True))
        base_label = [self._known[key] for key in keys]
        return replace(pairs, base_label=base_label, flipped=np.asarray(pairs.label) != np.asarray(base_label))
