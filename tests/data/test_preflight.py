"""What the preflight finds, with its culprits; and that it finds nothing where nothing is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from ourtokenizers import CHATML, adding, chatting, pieces
from tiny import tiny_tokenizer

from iitkit.causal import Template, Text
from iitkit.data.preflight import Finding, preflight
from iitkit.data.wording import Wording

AGREE = Template("The {subject} near the {attractor}").render({"subject": "dog", "attractor": "park"})
VERBS = {" is": [" is"], " are": [" are"]}


def found(
    tokenizer: Any,
    prompts: Sequence[Text | str],
    answers: Mapping[str, Sequence[str]] = VERBS,
    wording: Wording | None = None,
) -> list[str]:
    said = [str(finding) for finding in preflight(tokenizer, prompts, answers, wording)]
    assert all("\n" not in line for line in said)
    return said


def test_nothing_to_find() -> None:
    for wording in (None, Wording("<|endoftext|>"), Wording(shots=[("The dog", " is")])):
        assert found(tiny_tokenizer(), [AGREE, "The dog"], VERBS, wording) == []
    assert found(tiny_tokenizer(), [], VERBS) == []
    assert found(chatting(), [AGREE], {" Mary": [" Mary"]}, Wording(chat=True)) != []  # "Mary" has several tokens


def test_a_finding_prints_as_a_line() -> None:
    assert str(Finding("note", "the tokenizer has no pad token")) == "note: the tokenizer has no pad token"


# --- the tokenizer ---


def test_a_slow_tokenizer() -> None:
    class Slow:
        is_fast = False

    assert found(Slow(), [AGREE]) == ["error: Slow gives no character offsets: load the model's fast tokenizer"]


def test_no_pad_token() -> None:
    tokenizer = pieces("The", "dog", "is", "are")
    assert found(tokenizer, ["The dog"]) == [
        "note: the tokenizer has no pad token: token 0 fills the gaps, and nothing attends to them"
    ]


def test_no_chat_template() -> None:
    (line,) = found(tiny_tokenizer(), [AGREE], VERBS, Wording(chat=True))
    assert line.startswith("error: data.chat: the tokenizer has no chat template")


def test_a_chat_template_that_does_not_open_the_answer() -> None:
    lines = found(chatting(CHATML.partition("{% if")[0]), [AGREE], VERBS, Wording(chat=True))
    assert "warning: the chat template writes nothing in front of an answer: it ends with the prompt" in lines


def test_a_closing_token() -> None:
    (line,) = found(adding(behind="<|endoftext|>"), [AGREE])
    assert line.startswith("error: label ' is' cannot follow 'The dog near the park': the tokenizer puts")
    assert line.endswith("(and 1 more such answers)")


# --- prompts ---


def test_a_prompt_that_ends_with_a_space() -> None:
    warned = "warning: prompts end with a space, where mostly the answer begins: 'The dog '"
    assert found(tiny_tokenizer(), ["The dog ", "The park"]) == [warned]  # two spaces, then " is": it can be
    lines = found(tiny_tokenizer(), ["The dog ", "The park"], {"is": ["is"], "are": ["are"]})
    assert lines[0].startswith("error: label 'is' does not stand as tokens of its own behind 'The dog '")
    assert lines[1] == warned
    assert len(lines) == 2


def test_words_of_several_tokens() -> None:
    texts = [
        Template("The {subject} near the {attractor}").render({"subject": a, "attractor": "park"})
        for a in ("dog", "Wednesdayish", "Zzyzx")
    ]
    n = [len(tiny_tokenizer()(f" {word}")["input_ids"]) for word in ("Wednesdayish", "Zzyzx")]
    # the blank before Zzyzx is a token of its own, and no part of the span
    assert tiny_tokenizer().convert_ids_to_tokens(tiny_tokenizer()(" Zzyzx")["input_ids"])[0] == "Ġ"
    assert found(tiny_tokenizer(), texts) == [
        "note: span 'subject' has several tokens ('subject' is its last, 'subject.first' its first): "
        f"'Wednesdayish' ({n[0]}), 'Zzyzx' ({n[1] - 1})",
        "note: the space before span 'subject' is a token of its own in some prompts: it is no part of it",
    ]


def test_a_word_that_merges_with_its_neighbour() -> None:
    (line,) = found(tiny_tokenizer(), [Template("The {noun}s near the park").render({"noun": "dog"})])
    assert line.startswith("warning: span 'noun' cannot be a position: the tokens of span 'noun' decode to ' dogs'")


def test_a_word_that_the_tokenizer_does_not_know() -> None:
    tokenizer = pieces("The", "dog", "is", "are")
    lines = found(tokenizer, [Template("The {noun}").render({"noun": "zebra"})])
    assert any("span 'noun' cannot be a position" in line and "does not know it" in line for line in lines)


def test_capitals_that_a_tokenizer_drops_are_no_fault() -> None:
    tokenizer = pieces("the", "dog", "is", "are", lowercase=True)
    lines = found(tokenizer, [Template("The {noun}").render({"noun": "Dog"})], {" Is": [" Is"], " are": [" are"]})
    assert lines == [
        "note: the tokenizer has no pad token: token 0 fills the gaps, and nothing attends to them",
        "note: answers are read as other text: ' Is' ('is')",
    ]


def test_digits_with_a_space_of_their_own() -> None:
    sums = [Template("Mary and {a} and").render({"a": a}) for a in (5, 12)]
    lines = found(tiny_tokenizer(), sums, {" 3": [" 3"], " 4": [" 4"]})
    assert lines == [
        "warning: 2 answers begin with the same token ' ', the space alone, and are told apart later: ' 3', ' 4'",
        "note: span 'a' has several tokens ('a' is its last, 'a.first' its first): '12' (2)",
        "note: the space before span 'a' is a token of its own in some prompts: it is no part of it",
        "note: 2 of 2 answers have several tokens: ' 3' (2), ' 4' (2)",
    ]


# --- answers ---


def test_answers_of_several_tokens_that_begin_alike() -> None:
    lines = found(tiny_tokenizer(), [AGREE], {" a": [" Johnzyx"], " b": [" Johnzyq"], " c": [" Mary"]})
    n = len(tiny_tokenizer()(" Johnzyx")["input_ids"])
    assert lines == [
        f"warning: 2 of 3 answers have several tokens: ' Johnzyx' ({n}), ' Johnzyq' ({n}); the shorter ones have it "
        "easier, since a candidate's score is a sum over its tokens",
        "warning: 2 answers begin with the same token ' John' and are told apart later: ' Johnzyx', ' Johnzyq'",
    ]


def test_many_culprits_are_counted() -> None:
    answers = {f" John{letter}": [f" John{letter}"] for letter in "bcdfghk"}
    lines = found(tiny_tokenizer(), [AGREE], answers)
    assert lines[0].endswith("' Johnb', ' Johnc', ' Johnd', ' Johnf', … (7 in all)")
    assert lines[1].startswith("note: 7 of 7 answers have several tokens: ")
    assert lines[1].endswith("' Johnf' (2), … (7 in all)")


def test_a_lost_space() -> None:
    lines = found(tiny_tokenizer(), ["The dog"], {"s": ["s"], " is": [" is"]})
    assert len(lines) == 1
    assert lines[0].startswith("error: label 's' does not stand as tokens of its own behind 'The dog'")
    mary = found(tiny_tokenizer(), ["The dog"], {"Mary": ["Mary"], " is": [" is"]})
    assert "warning: answers begin without a space, right behind 'The dog': 'Mary'" in mary


@pytest.mark.parametrize("forms", [[" are", " is"], [" are", " isx"]])
def test_answers_that_no_token_tells_apart(forms: list[str]) -> None:
    tokenizer = pieces("The", "dog", "is", "are", "##x")
    tokenizer.pad_token = "dog"
    lines = found(tokenizer, ["The dog"], {" is": [" is"], " are": forms})
    assert lines[0].startswith(f"warning: where they compete, candidates ' is' and {forms[1]!r} ")


def test_unknown_answers() -> None:
    tokenizer = pieces("The", "dog", "is", "are")
    tokenizer.pad_token = "dog"
    assert found(tokenizer, ["The dog"], {" is": [" is"], " runs": [" runs"]}) == [
        "error: the tokenizer does not know the answers ' runs': it reads '[UNK]'"
    ]


def test_examples_that_run_into_the_prompt() -> None:
    (line,) = found(tiny_tokenizer(), [AGREE], VERBS, Wording(shots=[("The dog", " is")], separator="."))
    assert line == "warning: the examples end with 'The dog is.', and the prompt follows without a blank"
    assert found(tiny_tokenizer(), [AGREE], VERBS, Wording(shots=[("The dog", " is")], separator=". ")) == []


def test_what_cannot_be_tokenised_is_one_error() -> None:
    lines = found(tiny_tokenizer(), [AGREE], VERBS, Wording(max_tokens=2))
    assert len(lines) == 1
    assert lines[0].startswith("error: data.max_tokens: 2: span 'subject' would be cut from 'The dog near the park'")
