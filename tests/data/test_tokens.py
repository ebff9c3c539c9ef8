"""From text to tokens: spans, positions and answers, against counts made by tokenising the text before them."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from iitkit.causal import Template, Text
from iitkit.data.answers import Answers
from iitkit.data.prompts import Prompt
from iitkit.data.tokens import find_positions, tokenise
from iitkit.data.wording import Wording
from iitkit.errors import IITKitError
from iitkit.positions import Position

PREFIXES = ["", "<|endoftext|>", "Well: "]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def one(tokenizer: Any, template: str, prefix: str = "", **values: str) -> tuple[Prompt, Text]:
    text = Template(template).render(values)
    return tokenise(tokenizer, [text], Wording(prefix))[0], text


def places(tokenizer: Any, text: Text, position: Position, placement: str = "x") -> list[int]:
    return find_positions(tokenizer, tokenise(tokenizer, [text]), [text], {placement: position})[0][0]


def words(*given: str) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of exactly these pieces: the longest piece that fits comes first."""
    vocabulary = {piece: i for i, piece in enumerate(["[UNK]", *given])}
    made = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made)  # type: ignore[no-untyped-call]


# --- spans ---


@pytest.mark.parametrize("prefix", PREFIXES)
def test_spans_are_where_the_text_before_them_ends(tokenizer: PreTrainedTokenizerFast, prefix: str) -> None:
    """Words begin new tokens, so the tokens of the text before a word count its first token's index."""
    values = {"name_a": "Mary", "name_b": "Johnzyx", "place": "park", "subject": "Mary", "object": "book"}
    template = "When {name_a} and {name_b} went to the {place}, {subject} gave a {object} to"
    prompt, _ = one(tokenizer, template, prefix, **values)
    before = {
        "name_a": "When",
        "name_b": "When Mary and",
        "place": "When Mary and Johnzyx went to the",
        "subject": "When Mary and Johnzyx went to the park,",  # the second Mary, not the first
        "object": "When Mary and Johnzyx went to the park, Mary gave a",
    }
    assert prompt.text == f"{prefix}When Mary and Johnzyx went to the park, Mary gave a book to"
    assert prompt.ids == tokenizer(prompt.text)["input_ids"]
    for name, text in before.items():
        start = len(tokenizer(prefix + text)["input_ids"])
        stop = len(tokenizer(f"{prefix}{text} {values[name]}")["input_ids"])
        assert prompt.spans[name] == (start, stop), name
    assert prompt.spans["name_b"][1] - prompt.spans["name_b"][0] > 1  # a word of several tokens


def test_a_space_that_is_a_token_is_no_part_of_the_span(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer(" Zy")["input_ids"]) == ["Ġ", "Z", "y"]
    prompt, text = one(tokenizer, "the {word} and", word="Zy")
    start, stop = prompt.spans["word"]
    assert tokenizer.convert_ids_to_tokens(prompt.ids[start:stop]) == ["Z", "y"]
    assert places(tokenizer, text, "word.first") == [start]


def test_a_span_at_the_start_and_at_the_end(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt, text = one(tokenizer, "{first_word} and {last_word}", first_word="Mary", last_word="John")
    n = len(prompt.ids)
    assert prompt.spans["first_word"][0] == 0
    assert prompt.spans["last_word"] == (n - 1, n)
    assert places(tokenizer, text, "last_word") == [n - 1]


def test_positions_of_a_long_span(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt, text = one(tokenizer, "the {word} and", word="big Zzyzx park")
    start, stop = prompt.spans["word"]
    assert tokenizer.decode(prompt.ids[start:stop]) == " big Zzyzx park"
    assert stop - start > 3
    found = {p: places(tokenizer, text, p) for p in ("word", "word.first", "word.last", "word.all")}
    assert found == {
        "word": [stop - 1],
        "word.last": [stop - 1],
        "word.first": [start],
        "word.all": list(range(start, stop)),
    }
    assert places(tokenizer, text, [0, -1]) == [0, len(prompt.ids) - 1]


def test_an_empty_slot(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(IITKitError, match="span 'word' of 'the  and' has no token: the slot is empty"):
        one(tokenizer, "the {word} and", word="")


def test_a_span_that_merges_with_its_neighbour(tokenizer: PreTrainedTokenizerFast) -> None:
    # " dogs" is one token: no token says "dog"
    assert len(tokenizer(" dogs")["input_ids"]) == 1
    prompt, text = one(tokenizer, "The {noun}s near", noun="dog")
    for position in ("noun", "noun.first", ["last", "noun.all"]):
        with pytest.raises(IITKitError) as caught:
            places(tokenizer, text, position, "number")
        assert "alignment.number: the tokens of span 'noun' decode to ' dogs', not to 'dog'" in str(caught.value)
    assert places(tokenizer, text, "last", "number") == [len(prompt.ids) - 1]  # elsewhere it is fine


def test_a_span_between_letters(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt, text = one(tokenizer, "a{noun}ren near", noun="child")
    start, stop = prompt.spans["noun"]
    said = tokenizer.decode(prompt.ids[start:stop])
    if said == "child":  # the pieces may happen to end with the span: then the position is right
        assert places(tokenizer, text, "noun") == [stop - 1]
    else:
        with pytest.raises(IITKitError, match="joins the span to its neighbours"):
            places(tokenizer, text, "noun")


def test_an_index_outside_the_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt, text = one(tokenizer, "the {word}", word="park")
    n = len(prompt.ids)
    with pytest.raises(
        IITKitError, match=f"alignment.x: position {n} is outside a prompt of {n} tokens, in 'the park'"
    ):
        places(tokenizer, text, n)


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(IITKitError, match="Slow gives no character offsets: load the model's fast tokenizer"):
        tokenise(Slow(), [Text("a", {})])


# --- answers ---


def test_answers_are_the_tokens_that_follow(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt, _ = one(tokenizer, "the {word} and", word="park")
    answers = Answers(tokenizer)
    for answer in (" Mary", " he", " Zzyzx"):
        ids = answers.tokens(prompt, answer)
        assert list(ids) == tokenizer(f"the park and{answer}")["input_ids"][len(prompt.ids) :]
        assert tokenizer.decode(list(ids)) == answer
    assert len(answers.tokens(prompt, " Mary")) == 1
    assert len(answers.tokens(prompt, " Zzyzx")) > 1


@pytest.mark.parametrize("answer", ["s", ""])
def test_an_answer_that_merges_with_the_prompt(tokenizer: PreTrainedTokenizerFast, answer: str) -> None:
    prompt, _ = one(tokenizer, "The {noun}", noun="dog")
    with pytest.raises(IITKitError) as caught:
        Answers(tokenizer).tokens(prompt, answer)
    assert f"label {answer!r} does not stand as tokens of its own behind 'The dog'" in str(caught.value)


def test_a_space_at_the_prompt_s_end(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt, _ = one(tokenizer, "The {noun} ", noun="dog")
    with pytest.raises(IITKitError, match="end the prompt without one"):
        Answers(tokenizer).tokens(prompt, "Mary")


def test_an_answer_may_merge_behind_one_prompt_and_not_behind_another() -> None:
    """Both prompts end with the token ``##b``; only behind the second do tokens of the prompt's own join the answer."""
    tokenizer = words("x", "a", "##b", "##c", "abc")
    answers = Answers(tokenizer)
    fine, _ = one(tokenizer, "{word}", word="xb")
    bad, _ = one(tokenizer, "{word}", word="ab")
    assert fine.ids[-1] == bad.ids[-1]
    assert tokenizer.convert_ids_to_tokens(list(answers.tokens(fine, "c"))) == ["##c"]
    with pytest.raises(IITKitError, match="label 'c' does not stand as tokens of its own behind 'ab'"):
        answers.tokens(bad, "c")


def test_candidates(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt, _ = one(tokenizer, "The {noun}", noun="dog")
    found = Answers(tokenizer).candidates(prompt, [" he", " she", " Zzyzx"])
    assert [tokenizer.decode(list(ids)) for ids in found] == [" he", " she", " Zzyzx"]


def test_candidates_that_no_token_tells_apart() -> None:
    tokenizer = words("say", "one", "two", "##teen")
    prompt, _ = one(tokenizer, "{word}", word="say")
    answers = Answers(tokenizer)
    assert answers.candidates(prompt, [" one", " two"]) == [(2,), (3,)]
    # both unknown: one token, the same
    with pytest.raises(IITKitError, match=r"candidates ' six' and ' ten' have the same tokens \(\[0\], \[0\]\)"):
        answers.candidates(prompt, [" one", " six", " ten"])
    for pair in ([" one", " oneteen"], [" oneteen", " one"]):
        with pytest.raises(IITKitError) as caught:
            answers.candidates(prompt, pair)
        assert "candidates ' one' and ' oneteen' are told apart by no token: one begins the other" in str(caught.value)
        assert "([2], [2, 4])" in str(caught.value)
    assert answers.candidates(prompt, [" oneteen", " twoteen"]) == [(2, 4), (3, 4)]
