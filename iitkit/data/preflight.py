"""What a tokenizer will do to prompts and answers: told before any network is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from iitkit.causal import Text
from iitkit.data.answers import Answers
from iitkit.data.prompts import Prompts
from iitkit.data.tokens import check_fast, decoded, find_positions, tokenise
from iitkit.data.wording import Wording
from iitkit.errors import IITKitError, choices

Severity = Literal["error", "warning", "note"]
SHOWN = 4
"""Number of culprits that a line names."""


@dataclass(frozen=True)
class Finding:
    """Something that a user should know before any training.

    Args:
        severity: an error stops the run, a warning may make its numbers mean something else, a note explains.
        text: one line with the culprit.
    """

    severity: Severity
    text: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.text}"


def preflight(
    tokenizer: Any,
    prompts: Sequence[Text | str],
    answers: Mapping[str, Sequence[str]],
    wording: Wording | None = None,
) -> list[Finding]:
    """Look at a sample of prompts and at all answers, as a tokenizer sees them.

    Args:
        tokenizer: the tokenizer.
        prompts: some of the prompts, with their spans.
        answers: answer → its forms, the first of which is trained on.
        wording: what stands around each prompt.

    Returns:
        What was found, errors first.
    """
    wording = wording or Wording()
    texts = [Text(prompt, {}) if isinstance(prompt, str) else prompt for prompt in prompts]
    try:
        check_fast(tokenizer)
        found = [*_settings(tokenizer, wording), *_prompts(tokenizer, texts, wording)]
        if not any(finding.severity == "error" for finding in found):
            found += _answers(tokenizer, texts, answers, wording)
    except IITKitError as error:
        found = [Finding("error", str(error))]
    order = ("error", "warning", "note")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def _settings(tokenizer: Any, wording: Wording) -> Iterator[Finding]:
    if tokenizer.pad_token_id is None:
        yield Finding("note", "the tokenizer has no pad token: token 0 fills the gaps, and nothing attends to them")
    before, _ = wording.frame(tokenizer)
    if wording.chat:
        if not wording.opens_answer(tokenizer):
            yield Finding("warning", "the chat template writes nothing in front of an answer: it ends with the prompt")
    elif wording.shots and not before[-1].isspace():
        yield Finding("warning", f"the examples end with {before[-12:]!r}, and the prompt follows without a blank")


def _prompts(tokenizer: Any, texts: Sequence[Text], wording: Wording) -> Iterator[Finding]:
    blank = [text.text for text in texts if text.text != text.text.rstrip(" ")]
    if blank and not wording.chat:
        yield Finding("warning", f"prompts end with a space, where mostly the answer begins: {_some(map(repr, blank))}")
    found = tokenise(tokenizer, texts, wording)
    for j, name in enumerate(found.slots):
        there = found.spans[:, j, 0] >= 0
        lengths = (found.spans[:, j, 1] - found.spans[:, j, 0])[there]
        own = [text for text, here in zip(texts, there.tolist(), strict=True) if here]
        words = [text.text[slice(*text.spans[name])] for text in own]
        try:
            find_positions(tokenizer, found.taken(there.nonzero()[0].astype(np.int64)), own, {"": name})
        except IITKitError as error:
            yield Finding("warning", f"span {name!r} cannot be a position: {str(error).partition(': ')[2]}")
        if lengths.max() > 1:
            several = [f"{word!r} ({n})" for word, n in zip(words, lengths.tolist(), strict=True) if n > 1]
            yield Finding(
                "note",
                f"span {name!r} has several tokens ({name!r} is its last, '{name}.first' its first): {_some(several)}",
            )
    yield from _apart(tokenizer, found)


def _apart(tokenizer: Any, found: Prompts) -> Iterator[Finding]:
    """Digits whose space is a token of its own."""
    alone = _space(tokenizer)
    if alone is not None:
        for j, name in enumerate(found.slots):
            lo = found.spans[:, j, 0]
            at = (found.ids.starts[:-1] + lo - 1)[lo > 0]
            if (found.ids.flat[at] == alone).any():
                yield Finding(
                    "note", f"the space before span {name!r} is a token of its own in some prompts: it is no part of it"
                )


def _space(tokenizer: Any) -> int | None:
    """The token that is a single space in front of a digit; None where digits take it in."""
    ids = tokenizer("a 5", add_special_tokens=False)["input_ids"]
    said = decoded(tokenizer, [[token] for token in ids])
    return ids[-2] if len(ids) > 2 and said[-2] == " " else None


def _answers(
    tokenizer: Any, texts: Sequence[Text], answers: Mapping[str, Sequence[str]], wording: Wording
) -> Iterator[Finding]:
    known, whole = Answers(tokenizer, wording), wording.apply(tokenizer, [text.text for text in texts]).texts
    ends = list({known.end(text): text for text in reversed(whole)}.values())[::-1]  # one prompt of each ending
    tokens: dict[str, tuple[int, ...]] = {}
    bad: dict[str, str] = {}
    alike = ""
    for text in ends:
        try:
            known.choice(text, list(answers.values()))
        except IITKitError as error:  # one of them alone, or two of them together
            alike = str(error)
        for form in dict.fromkeys(form for forms in answers.values() for form in forms):
            try:
                tokens[form] = known.choice(text, [form]).tokens[0]
            except IITKitError as error:
                bad.setdefault(form, str(error))
    if bad:
        many = f" (and {len(bad) - 1} more such answers)" if len(bad) > 1 else ""
        yield Finding("error", next(iter(bad.values())) + many)
        return
    if alike:
        yield Finding("warning", f"where they compete, {alike}")
    if not ends:
        return
    yield from _unread(tokenizer, tokens, wording, ends[0])
    yield from _several(tokenizer, {forms[0]: tokens[forms[0]] for forms in answers.values()})


def _unread(tokenizer: Any, tokens: Mapping[str, tuple[int, ...]], wording: Wording, text: str) -> Iterator[Finding]:
    """Answers that the tokenizer does not know, or that run into the prompt."""
    said = dict(zip(tokens, decoded(tokenizer, list(tokens.values())), strict=True))
    unknown = tokenizer.unk_token_id
    lost = [form for form, ids in tokens.items() if unknown in ids and str(tokenizer.unk_token) not in form]
    if lost:
        yield Finding(
            "error",
            f"the tokenizer does not know the answers {_some(map(repr, lost))}: it reads {tokenizer.unk_token!r}",
        )
    other = [
        f"{form!r} ({said[form]!r})"
        for form in tokens
        if form not in lost and said[form].strip() != wording.answer(form).strip()
    ]
    if other:
        yield Finding("note", f"answers are read as other text: {_some(other)}")
    joined = [form for form in tokens if form[:1].isalnum() and text[-1:].isalnum()]
    if joined and not wording.chat:
        yield Finding(
            "warning", f"answers begin without a space, right behind {text[-12:]!r}: {_some(map(repr, joined))}"
        )


def _several(tokenizer: Any, tokens: Mapping[str, tuple[int, ...]]) -> Iterator[Finding]:
    """Answers of several tokens, and those that begin alike."""
    several = [f"{answer!r} ({len(ids)})" for answer, ids in tokens.items() if len(ids) > 1]
    if several:
        uneven = len({len(ids) for ids in tokens.values()}) > 1
        yield Finding(
            "warning" if uneven else "note",
            f"{len(several)} of {len(tokens)} answers have several tokens: {_some(several)}"
            + ("; the shorter ones have it easier, since a candidate's score is a sum over its tokens" * uneven),
        )
    first: dict[int, list[str]] = {}
    for answer, ids in tokens.items():
        first.setdefault(ids[0], []).append(answer)
    for token, shared in first.items():
        if len(shared) > 1:
            said = decoded(tokenizer, [[token]])[0]
            alone = said == " "
            yield Finding(
                "warning",
                f"{len(shared)} answers begin with the same token {said!r}"
                + (", the space alone," * alone)
                + f" and are told apart later: {_some(map(repr, shared))}",
            )


def _some(culprits: Any) -> str:
    return choices(dict.fromkeys(culprits), SHOWN)
