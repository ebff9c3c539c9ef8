"""Facts to trace: prompts with a subject and what should follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iitkit.analysis.prompts import short
from iitkit.errors import IITKitError


@dataclass(frozen=True)
class Fact:
    """A prompt about a subject.

    Args:
        prompt: the text that the fact's answer follows.
        subject: substring of it, which stands there once, or its first character and the one behind its last.
        answer: what should follow; a fact whose clean top-1 token is another is skipped. Without it none is.
        corrupt: a prompt with another subject and as many tokens, for corruption by ``prompt``.
        wrong: a wrong answer, for metrics that compare with one.
    """

    prompt: str
    subject: str | tuple[int, int]
    answer: str | None = None
    corrupt: str | None = None
    wrong: str | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {key: list(x) if isinstance(x, tuple) else x for key, x in vars(self).items() if x is not None}


def facts_of(
    prompts: str | Fact | Sequence[str | Fact],
    subjects: str | Sequence[str] | None = None,
    answers: str | Sequence[str] | None = None,
) -> tuple[list[Fact], bool]:
    """Return facts, and whether a single one was given, from what :func:`iitkit.trace` takes.

    Raises:
        IITKitError: no prompt, a prompt without a subject, lists of different lengths.
    """
    single = isinstance(prompts, str | Fact)
    given = [prompts] if isinstance(prompts, str | Fact) else list(prompts)
    if not given:
        raise IITKitError("no prompts: expected a prompt with a subject, or several")
    more: dict[str, list[Any]] = {}
    for name, values in (("subjects", subjects), ("answers", answers)):
        each = [values] * len(given) if values is None or (isinstance(values, str) and single) else list(values)
        if (isinstance(values, str) and not single) or len(each) != len(given):
            raise IITKitError(f"{name}: expected one for each of {len(given)} prompts, given {len(each)}")
        more[name] = each
    facts = []
    for prompt, subject, answer in zip(given, more["subjects"], more["answers"], strict=True):
        if not isinstance(prompt, str | Fact):
            raise IITKitError(f"prompts: {prompt!r}: expected text or a Fact")
        if isinstance(prompt, Fact):
            if subject is not None or answer is not None:
                raise IITKitError("subjects and answers are for prompts given as text: a Fact has its own")
            facts.append(prompt)
        elif subject is None:
            raise IITKitError(f"prompt {short(prompt)} has no subject: give subjects, or a Fact")
        else:
            facts.append(Fact(prompt, subject, answer))
    return facts, single
