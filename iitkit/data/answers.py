"""Answers as tokens behind a prompt: surface forms, and which candidates compete."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from iitkit.batch import IGNORED
from iitkit.causal.variables import Codes
from iitkit.data.prompts import Prompt, Prompts
from iitkit.data.wording import Wording
from iitkit.errors import IITKitError

Forms = str | Sequence[str]
"""An answer: its text, or all the texts that count as it, the first of which is trained on."""

_SIGN = r"(?:[^\w\s]|_)"
# of a text read backwards: what stands at its end
_WORD = re.compile(r"\s*\S*\s?")
_RUN = re.compile(rf"\s*(?:[^\W\d_]+{_SIGN}*|\d+|{_SIGN}+)?.?", re.DOTALL)  # signs before letters: dog's
_NEAR = 64
"""Characters in which most prompts' ends lie."""


@dataclass(frozen=True)
class Choice:
    """Candidates that compete in a row.

    Args:
        tokens: of each candidate, [C].
        answer_of: which answer each is a form of, [C].
        first: candidate that is the first form of each answer, [answers].
    """

    tokens: list[tuple[int, ...]]
    answer_of: Codes
    first: Codes

    @cached_property
    def ids(self) -> npt.NDArray[np.int64]:
        """The tokens, [C, T], ``IGNORED`` behind the last of each."""
        width = max(map(len, self.tokens))
        return np.asarray([[*tokens, *[IGNORED] * (width - len(tokens))] for tokens in self.tokens], dtype=np.int64)

    @property
    def formed(self) -> bool:
        """Whether an answer has several forms."""
        return len(self.first) < len(self.tokens)


class Labels(Protocol):
    """Turns a row's answers into candidates: :class:`Answers` of a text, :class:`Classes` of anything else."""

    def choices(self, prompts: Any, rows: Sequence[int], answers: Sequence[Sequence[Any]]) -> list[Choice]:
        """Return the candidates behind each of these rows of a pool's prompts."""


class Answers:
    """Answers as tokens that follow a prompt; tokenised with it, because a tokenizer may treat a start differently.

    Args:
        tokenizer: a fast tokenizer.
        wording: what stands around the prompts.
    """

    def __init__(self, tokenizer: Any, wording: Wording | None = None) -> None:
        self.tokenizer, self.wording = tokenizer, wording or Wording()
        self._end = _RUN if _splits_runs(tokenizer) else _WORD
        self._known: dict[tuple[str, str], tuple[int, ...]] = {}
        self._choices: dict[tuple[str, tuple[Forms, ...]], Choice] = {}

    def end(self, text: str) -> str:
        """Return as much of a prompt's end as decides on the tokens behind it; tokenizers do not look beyond a word."""
        found = self._end.match(text[: -_NEAR - 1 : -1])
        if found is None or found.end() == _NEAR:  # a longer word
            found = self._end.match(text[::-1])
        return found[0][::-1] if found else text

    def tokens(self, prompt: Prompt, answer: Forms) -> tuple[int, ...]:
        """Return an answer's (first form's) tokens behind a prompt.

        Raises:
            IITKitError: an empty answer, or one that merges with the prompt's end.
        """
        form = answer if isinstance(answer, str) else answer[0]
        self._learn(prompt.text, [form])
        return self._known[self.end(prompt.text), form]

    def candidates(self, prompt: Prompt, answers: Sequence[Forms]) -> list[tuple[int, ...]]:
        """Return the tokens of all forms of answers that compete; see :meth:`choice`."""
        return self.choice(prompt.text, answers).tokens

    def choices(self, prompts: Prompts, rows: Sequence[int], answers: Sequence[Sequence[Forms]]) -> list[Choice]:
        """See :class:`Labels`."""
        return [self.choice(prompts.texts[i], row) for i, row in zip(rows, answers, strict=True)]

    def choice(self, text: str, answers: Sequence[Forms]) -> Choice:
        """Return the candidates that compete.

        Args:
            text: what they stand behind.
            answers: each one text or several forms.

        Raises:
            IITKitError: two answers with equal tokens, or one that begins with all of another.
        """
        given = tuple(answer if isinstance(answer, str) else tuple(answer) for answer in answers)
        key = (self.end(text), given)
        if key not in self._choices:
            forms = [(answer,) if isinstance(answer, str) else tuple(dict.fromkeys(answer)) for answer in given]
            for answer, named in zip(given, forms, strict=True):
                if not named:
                    raise IITKitError(f"answers {list(given)}: {answer!r} has no form: give one text or more")
            self._learn(text, [form for named in forms for form in named])
            found: dict[tuple[int, ...], tuple[int, str]] = {}
            first = []
            for i, named in enumerate(forms):
                first.append(len(found))
                for form in named:
                    tokens = self._known[key[0], form]
                    other, said = found.setdefault(tokens, (i, form))
                    if other != i:
                        raise IITKitError(
                            f"candidates {said!r} and {form!r} have the same tokens ({list(tokens)}, {list(tokens)}): "
                            "choose answers that differ before the shorter one ends"
                        )
            _told_apart(found)
            of = np.asarray([i for i, _ in found.values()], dtype=np.int64)
            self._choices[key] = Choice(list(found), of, np.asarray(first, dtype=np.int64))
        return self._choices[key]

    def _learn(self, text: str, forms: Sequence[str]) -> None:
        """Tokenise the forms that are not known yet."""
        end = self.end(text)
        new = [form for form in dict.fromkeys(forms) if (end, form) not in self._known]
        if not new:
            return
        texts = [text, *(text + self.wording.answer(form) for form in new)]
        special = self.wording.adds_special_tokens
        ids, *joints = self.tokenizer(texts, add_special_tokens=special)["input_ids"]
        n = len(ids)
        for form, joint in zip(new, joints, strict=True):
            if len(joint) <= n or joint[:n] != ids:
                if special and (behind := self._behind(text, ids)):
                    raise IITKitError(
                        f"label {form!r} cannot follow {text!r}: the tokenizer puts {behind!r} behind it; set "
                        "data.special_tokens to false"
                    )
                raise IITKitError(
                    f"label {form!r} does not stand as tokens of its own behind {text!r}: "
                    "begin it with a space, and end the prompt without one"
                )
            self._known[end, form] = tuple(joint[n:])

    def _behind(self, text: str, ids: list[int]) -> str:
        """What the tokenizer adds behind a text, such as a closing token."""
        plain = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == len(plain) or ids[-len(plain) :] == plain:
            return ""
        return str(self.tokenizer.decode(ids[-1:]))


def _told_apart(found: dict[tuple[int, ...], tuple[int, str]]) -> None:
    for tokens, (i, form) in found.items():
        for stop in range(1, len(tokens)):
            other, said = found.get(tokens[:stop], (i, ""))
            if other != i:
                raise IITKitError(
                    f"candidates {said!r} and {form!r} are told apart by no token: one begins the other "
                    f"({list(tokens[:stop])}, {list(tokens)}): choose answers that differ before the shorter one ends"
                )


def _splits_runs(tokenizer: Any) -> bool:
    """Whether letters, digits and punctuation never share a token, so that a prompt's end is less than a word."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    before = getattr(backend, "pre_tokenizer", None)
    if before is None:
        return False
    return all(re.fullmatch(r"[a-z]+|\d+|=+", piece) for piece, _ in before.pre_tokenize_str("ab12=="))


class Classes:
    """Answers of a network that reads no text: each is one class (or symbol).

    Args:
        label: the class of an answer; the answer itself, a number, unless said.
    """

    def __init__(self, label: Callable[[Any], int] = int) -> None:
        self.label = label
        self._choices: dict[tuple[tuple[type, Hashable], ...], Choice] = {}

    def choices(self, prompts: Any, rows: Sequence[int], answers: Sequence[Sequence[Any]]) -> list[Choice]:
        """See :class:`Labels`."""
        return [self.choice(row) for row in answers]

    def choice(self, answers: Sequence[Any]) -> Choice:
        """Return the candidates that compete.

        Raises:
            IITKitError: two answers of one class.
        """
        key = tuple((type(answer), answer) for answer in answers)  # True is not 1
        if key not in self._choices:
            found: list[tuple[int, ...]] = [(self.label(answer),) for answer in answers]
            for i, tokens in enumerate(found):
                if (j := found.index(tokens)) < i:
                    raise IITKitError(
                        f"candidates {answers[j]!r} and {answers[i]!r} are one class ({tokens[0]}): a test needs two"
                    )
            own = np.arange(len(found))
            self._choices[key] = Choice(found, own, own)
        return self._choices[key]
