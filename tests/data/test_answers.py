"""Answers' forms, and what of a prompt decides on the tokens behind it."""

from __future__ import annotations

import itertools

import pytest
from ourtokenizers import adding, pieces
from tiny import tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from iitkit.causal import Text
from iitkit.data.answers import Answers
from iitkit.data.tokens import tokenise
from iitkit.data.wording import Wording
from iitkit.errors import IITKitError


class Counted(Answers):
    """Counts how often it asks the tokenizer."""

    asked = 0

    def _learn(self, text: str, forms: list[str]) -> None:  # type: ignore[override]
        self.asked += any((self.end(text), form) not in self._known for form in forms)
        super()._learn(text, forms)


def test_forms() -> None:
    tokenizer = pieces("say", "one", "two", "eins", "##ling")
    answers = Answers(tokenizer)
    found = answers.choice("say", [(" one", " eins"), " two"])
    assert found.tokens == [(2,), (4,), (3,)]
    assert found.answer_of.tolist() == [0, 0, 1]
    assert found.first.tolist() == [0, 2]
    prompt = tokenise(tokenizer, [Text("say", {})])[0]
    assert answers.candidates(prompt, [[" one", " eins"], " two"]) == [(2,), (4,), (3,)]
    assert answers.tokens(prompt, [" eins", " one"]) == (4,)  # the first form is trained on


def test_forms_of_one_answer_need_not_be_told_apart() -> None:
    answers = Answers(pieces("say", "one", "two", "eins", "##ling"))
    for forms in ((" eins", " einsling"), (" einsling", " eins")):
        assert sorted(answers.choice("say", [forms, " one"]).tokens) == [(2,), (4,), (4, 5)]
    twice = answers.choice("say", [(" one", "  one"), " two"])  # the same tokens: one candidate
    assert twice.tokens == [(2,), (3,)]
    assert twice.answer_of.tolist() == [0, 1]
    # but another answer may not begin with a form, even where a longer form of that answer lies between them
    with pytest.raises(IITKitError, match=r"candidates ' eins' and ' einslingling' are told apart by no token"):
        answers.choice("say", [(" eins", " einsling"), " einslingling"])
    with pytest.raises(IITKitError, match=r"candidates ' one' and ' one' have the same tokens \(\[2\], \[2\]\)"):
        answers.choice("say", [(" two", " one"), (" eins", " one")])
    with pytest.raises(IITKitError, match=r"\(\) has no form"):
        answers.choice("say", [" one", ()])


def test_one_question_for_all_answers_of_an_ending() -> None:
    answers = Counted(tiny_tokenizer())
    answers.choice("Mary and the", [" dog", " park"])
    assert answers.asked == 1
    answers.choice("John went to the", [" dog", " park"])
    assert answers.asked == 1
    answers.choice("the", [" dog", " park"])  # without its blank it is another word
    assert answers.asked == 2


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("12 + 34 =", " ="),
        ("12+34=", "4="),
        ("sum:12", ":12"),
        ("the dog", " dog"),
        ("dog", "dog"),
        ("dog's", "g's"),
        ("(='s", "(='s"),
        ("the dog  ", " dog  "),
        ("<|assistant|>\n", "t|>\n"),
        ("a_b", "a_b"),
        ("größe", "größe"),
        ("", ""),
        ("x" * 100, "x" * 100),
        ("y " + "x" * 100, " " + "x" * 100),
    ],
)
def test_ends_where_letters_digits_and_signs_are_apart(text: str, end: str) -> None:
    assert Answers(tiny_tokenizer()).end(text) == end


@pytest.mark.parametrize(("text", "end"), [("12+34=", "12+34="), ("1 12+34=", " 12+34="), ("the dog ", " dog ")])
def test_ends_where_they_may_share_a_token(text: str, end: str) -> None:
    assert Answers(pieces("a")).end(text) == end


def byte_level() -> PreTrainedTokenizerFast:
    """Every pair of bytes that it could merge, it merges: ``11``, ``1=``, ``a=``, ``'s``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    signs = list("a1='s")
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, *(x + y for x in signs for y in signs)])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[(x, y) for x in signs for y in signs]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=made)  # type: ignore[no-untyped-call]


def test_what_is_kept_for_an_ending_is_right_behind_every_prompt_that_ends_so() -> None:
    """The tokens kept from one prompt, against a fresh tokenisation behind each other one."""
    tokenizer = byte_level()
    kept = Answers(tokenizer)
    texts = ["".join(signs) for n in (1, 2, 3) for signs in itertools.product("a1= 's", repeat=n)]
    seen = 0
    for text in texts:
        for answer in (" a", "a", "s", "1", "=", "'", "'s", " 1", " =", "\n", "11"):
            fresh, known = (said(answers, text, answer) for answers in (Answers(tokenizer), kept))
            assert fresh == known, (text, answer)
            seen += isinstance(fresh, tuple)
    assert seen > 100


def said(answers: Answers, text: str, answer: str) -> object:
    try:
        return answers.choice(text, [answer]).tokens[0]
    except IITKitError:
        return "refused"


def test_answers_do_not_bring_a_bos_along() -> None:
    for special in (True, False):
        wording = Wording(special_tokens=special)
        assert Answers(adding("<|endoftext|>"), wording).choice("the dog", [" park", " he"]).tokens == [
            tuple(tiny_tokenizer()(answer)["input_ids"]) for answer in (" park", " he")
        ]
