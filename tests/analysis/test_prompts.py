"""Prompts as measurements take them: answers are what follows there, spans are what their tokens say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ourtokenizers import adding, blanked, pieces
from tiny import tiny_model, tiny_tokenizer
from tokenizers import processors

from iitkit.analysis.examples import Asked, of_text, of_tokens
from iitkit.analysis.facts import Fact
from iitkit.analysis.lens import lens
from iitkit.analysis.prompts import Prompt, answer_token, distinct, encode
from iitkit.analysis.tracing import trace
from iitkit.errors import IITKitError

TEXT = "When Mary saw John , she gave to"


@pytest.mark.parametrize("legacy", [False, True], ids=["by words", "as a whole"])
@pytest.mark.parametrize(("answer", "piece"), [("the", "▁the"), (" the", "▁the"), ("park", "▁park"), (".", ".")])
def test_an_answer_is_what_follows_there(legacy: bool, answer: str, piece: str) -> None:
    """SentencePiece's kind puts a blank before a text of its own: by themselves `` the`` and ``.`` begin with ▁."""
    tokenizer = blanked(legacy)
    assert tokenizer.convert_ids_to_tokens(answer_token(tokenizer, TEXT, answer)) == piece
    base = [Prompt(TEXT, {"name": "John"}, answer), Prompt("Mary gave to", answer=answer)]
    source = [Prompt(TEXT.replace("John", "Mary"), answer=" dog"), Prompt("John gave to", answer=" dog")]
    examples = of_text(base, source, Asked(tokenizer, "last", clean="base"))
    (chunk,) = examples.chunks
    assert chunk.answers.answer is not None
    assert tokenizer.convert_ids_to_tokens(chunk.answers.answer.tolist()) == [piece] * 2
    assert chunk.answers.wrong is not None
    assert tokenizer.convert_ids_to_tokens(chunk.answers.wrong.tolist()) == ["▁dog"] * 2


@pytest.mark.parametrize("legacy", [False, True], ids=["by words", "as a whole"])
def test_answers_of_tokens(legacy: bool) -> None:
    tokenizer = blanked(legacy)
    inputs: Any = tokenizer(TEXT, return_tensors="pt")
    examples = of_tokens(inputs, inputs, Asked(tokenizer, answers="the", wrong="she"))
    answers = examples.chunks[0].answers
    assert answers.answer is not None
    assert answers.wrong is not None
    assert tokenizer.convert_ids_to_tokens([int(answers.answer), int(answers.wrong)]) == ["▁the", "▁she"]
    assert examples.names[0].endswith("Mary saw John , she gave to")  # words are not run together


def test_answers_by_the_lens_and_of_traced_facts() -> None:
    model, tokenizer = tiny_model("llama"), blanked(legacy=True)
    ids, the = tokenizer(TEXT)["input_ids"], tokenizer.convert_tokens_to_ids("▁the")
    weight: Any = model.get_output_embeddings().weight
    weight[the] = 100 * weight[the]  # so that it says so, or the opposite
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
        if logits[the] < 0:
            weight[the] *= -1
            logits[the] *= -1
    assert int(logits.argmax()) == the
    grid = lens(model, tokenizer, TEXT, "the", positions="last", metrics="log_probability")
    assert grid.references["clean"] == pytest.approx(float(logits.log_softmax(-1)[the]), abs=1e-5)
    traced = trace(model, tokenizer, [Fact(TEXT, "John", "the")], layers=[0], draws=1)
    assert traced.about["skipped"] == []


@pytest.mark.parametrize(
    ("text", "answer"),
    [("The capital city is Mary ", "John"), ("The capital city is", "")],
)
def test_an_answer_without_tokens_of_its_own(text: str, answer: str) -> None:
    with pytest.raises(IITKitError, match=r"does not stand as tokens of its own behind 'The capital.*end the prompt"):
        answer_token(tiny_tokenizer(), text, answer)


def test_an_answer_whose_blank_is_a_token_of_its_own() -> None:
    """As SmolLM2's tokenizer has it of digits: `` 5`` and `` 6`` would both be the blank."""
    tokenizer = tiny_tokenizer()
    five, blank = tokenizer("5")["input_ids"], tokenizer(" ")["input_ids"]
    assert tokenizer("2 + 3 = 5")["input_ids"][-2:] == blank + five
    with pytest.raises(IITKitError) as raised:
        answer_token(tokenizer, "2 + 3 =", "5")
    assert str(raised.value).startswith("answer '5': behind '2 + 3 =' its first token is the blank alone")
    assert [answer_token(tokenizer, "2 + 3 = ", "5")] == five
    assert [answer_token(tokenizer, "2 + 3 =", " ")] == blank  # asked for as such
    with pytest.raises(IITKitError, match="end the prompt with the blank"):
        of_text("2 + 2 =", "2 + 3 =", Asked(tokenizer, answers="5", wrong="4"))


def test_answers_that_begin_alike_are_refused() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer(" Maryxq")["input_ids"][0] == tokenizer(" Maryzz")["input_ids"][0]
    asked = Asked(tokenizer, answers="Maryxq", wrong="Maryzz")
    with pytest.raises(IITKitError) as raised:
        of_text("John was", "Mary was", asked)
    assert str(raised.value).startswith(
        "the answer and the wrong answer of 'Mary was' begin with the same token, ' Mary', and only first tokens"
    )


def test_a_fact_whose_answer_is_its_wrong_one_is_skipped() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    prompt = "Yesterday, Mary walked home because"
    says = trace(model, tokenizer, prompt, "Mary", layers=[0], draws=1).about["answer"]
    facts = [Fact(prompt, "Mary", wrong=says), Fact(prompt, "Mary", wrong=" she")]
    grid = trace(model, tokenizer, facts, layers=[0], draws=1, metrics="logit_difference")
    assert grid.about["skipped"] == [f"after {prompt!r} it says {says!r}, with which the wrong {says!r} begins"]
    assert grid.sizes["example"] == 1


@pytest.mark.parametrize(
    ("text", "span", "says"),
    [
        ("Then Maryland walked", "Mary", "'Maryland'"),  # a prefix of another word
        ("Then Mary walked home", "alke", "'walked'"),
        ("Then Mary walked home", (5, 12), "'Mary walked'"),
    ],
)
def test_a_span_that_shares_a_token_with_its_neighbours(text: str, span: Any, says: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([" Maryland", "Maryland"])
    word = span if isinstance(span, str) else text[slice(*span)]
    with pytest.raises(IITKitError) as raised:
        trace(tiny_model("gpt2"), tokenizer, [Fact(text, span)])
    assert str(raised.value) == (
        f"subject: the tokens of {word!r} in {text!r} say {says}: give all of the word that it is part of"
    )


@pytest.mark.parametrize("text", ["Zoë 😀 was", "a 😀 b", "日本 was", "Mary's home", "Mary, home", "(Mary) was"])
def test_spans_in_any_script(text: str) -> None:
    word = next(part for part in ("Zoë 😀", "😀", "日本", "Mary") if part in text)
    tokenizer = tiny_tokenizer()
    found = encode(tokenizer, Prompt(text, {"x": word}), "<|endoftext|>")
    assert tokenizer.decode(found.ids[slice(*found.spans["x"])]).strip() == word


def test_spans_of_other_tokenizers() -> None:
    lower = pieces("mary", "was", "sick", "maryland", lowercase=True)
    assert encode(lower, Prompt("Mary was sick", {"x": "Mary"})).spans == {"x": (0, 1)}
    with pytest.raises(IITKitError, match=r"x: the tokens of 'Tom' in 'Tom was' say '\[UNK\]': the tokenizer does not"):
        encode(lower, Prompt("Tom was", {"x": "Tom"}))
    for legacy in (False, True):
        found = encode(blanked(legacy), Prompt(TEXT, {"x": "John", "y": "When Mary"}), "")
        assert [word.strip() for word in found.tokens[slice(*found.spans["x"])]] == ["John"]
        assert found.spans["y"] == (1, 3)


def test_a_tokenizer_that_closes_texts() -> None:
    with pytest.raises(IITKitError) as raised:
        encode(adding(behind="<|endoftext|>"), Prompt("Mary was"))
    assert str(raised.value).startswith("the tokenizer puts '<|endoftext|>' behind 'Mary was', and nothing follows")
    # what the user writes is the user's
    assert encode(tiny_tokenizer(), Prompt("Mary was<|endoftext|>")).tokens[-1] == "<|endoftext|>"
    assert encode(adding("<|endoftext|>"), Prompt("Mary was")).tokens[0] == "<|endoftext|>"
    trimming = tiny_tokenizer()
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    offsets = trimming("Mary was ", return_offsets_mapping=True)["offset_mapping"]
    assert offsets[-1][0] == offsets[-1][1]
    assert encode(trimming, Prompt("Mary was ")).tokens[-1] == " "


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["a", "b", "a", "a"], ["a", "b", "a (2)", "a (3)"]),
        (["a", "a (2)", "a"], ["a", "a (2)", "a (3)"]),
        (["a", "a", "a (2)"], ["a", "a (3)", "a (2)"]),
        ([], []),
    ],
)
def test_labels_are_told_apart(labels: list[str], expected: list[str]) -> None:
    assert distinct(labels) == expected
