"""What stands around a prompt: the texts, and that positions still say what their spans say, in real batches."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from ourtokenizers import CHATML, adding, blanked, chatting, pieces
from tiny import tiny_tokenizer

from iitkit.batch import Tokens
from iitkit.causal import Template, Text
from iitkit.data.answers import Answers
from iitkit.data.loader import Collator, Padding
from iitkit.data.pool import text_pool
from iitkit.data.tokens import tokenise
from iitkit.data.wording import Wording
from iitkit.errors import IITKitError
from iitkit.positions import Position

SIDES: list[Padding] = ["left", "right"]
TWICE = Template("When {one} saw {other}, {two} gave {other_thing} to the {last_word}")
PROMPTS = [
    TWICE.render({"one": "Mary", "other": "John", "two": "Mary", "other_thing": "Mary", "last_word": "park"}),
    TWICE.render(
        {"one": "Wednesdayish", "other": "Zy", "two": "Zy", "other_thing": "Wednesdayish", "last_word": "dog"}
    ),
    TWICE.render({"one": "dog", "other": "big Zzyzx park", "two": "dog", "other_thing": "é dog", "last_word": "é"}),
]
"""The same word stands at several slots; lengths differ; words have one token or many."""

SHOTS = [("The dog near the park", " is"), ("Mary and John", " are")]


def row(tokens: Tokens, b: int) -> list[int]:
    return [t for t, real in zip(tokens.ids[b].tolist(), tokens.mask[b].tolist(), strict=True) if real]


def check(tokenizer: Any, wording: Wording, side: Padding, prompts: list[Text] = PROMPTS) -> list[list[int]]:
    """Decode every span's tokens in the padded batch; return the rows' own tokens."""
    slots = list(prompts[0].spans)
    positions: dict[str, Position] = {
        f"{slot}.{part}": f"{slot}.{part}" for slot in slots for part in ("all", "first", "last")
    }
    pool = text_pool(prompts, tokenizer, {**positions, "end": "last", "start": 0}, wording, first=50)
    collate = Collator(pool, Answers(tokenizer, wording), [0] * len(pool.positions), 0, side)
    rows = [2, 0, 1, 2]
    tokens = collate.tokens(rows)
    columns, there = collate.positions(rows, tokens)
    assert tokens.prompts.tolist() == [52, 50, 51, 52]
    assert columns.shape[:2] == (4, 3 * len(slots) + 2)
    for b, i in enumerate(rows):
        own = row(tokens, b)
        begins = tokens.mask[b].tolist().index(1)
        assert begins == (tokens.ids.shape[1] - len(own) if side == "left" else 0)
        for p, name in enumerate([*positions, "end", "start"]):
            at = columns[b, p][there[b, p]].tolist()
            said = tokenizer.decode(tokens.ids[b, at].tolist())
            if name in ("end", "start"):
                assert at == [begins + len(own) - 1 if name == "end" else begins]
                continue
            slot, part = name.split(".")
            word = prompts[i].text[slice(*prompts[i].spans[slot])]
            if part == "all":
                assert said.strip() == word
                # by its place, not by a search: the text before it comes before it
                before = tokenizer.decode(tokens.ids[b, begins : at[0]].tolist())
                head = prompts[i].text[: prompts[i].spans[slot][0]]
                assert before.rstrip(" ").endswith(head.rstrip(" "))
            else:
                whole = columns[b, 3 * slots.index(slot)][there[b, 3 * slots.index(slot)]].tolist()
                assert at == [whole[0] if part == "first" else whole[-1]]
    return [row(tokens, b) for b in (1, 2, 0)]


# --- plain text ---


@pytest.mark.parametrize(
    ("side", "prefix", "shots"),
    [*product(SIDES, ["", "<|endoftext|>", "Well: ", "Well:"], [[], SHOTS])],
)
def test_prefix_and_examples(side: Padding, prefix: str, shots: list[tuple[str, str]]) -> None:
    tokenizer = tiny_tokenizer()
    rows = check(tokenizer, Wording(prefix, shots=shots), side)
    before = prefix + ("The dog near the park is\nMary and John are\n" if shots else "")
    for ids, prompt in zip(rows, PROMPTS, strict=True):
        assert ids == tokenizer(before + prompt.text)["input_ids"]


def test_separator() -> None:
    found = Wording("A ", shots=SHOTS, separator=" | ").apply(tiny_tokenizer(), ["The", "a"])
    assert found.texts == [f"A The dog near the park is | Mary and John are | {end}" for end in ("The", "a")]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("prefix", ["", "<|endoftext|>", "Well: "])
@pytest.mark.parametrize("special", [None, True, False])
def test_bos_on_and_off(side: Padding, prefix: str, special: bool | None) -> None:
    tokenizer, plain = adding("<|endoftext|>"), tiny_tokenizer()
    rows = check(tokenizer, Wording(prefix, special_tokens=special), side)
    for ids, prompt in zip(rows, PROMPTS, strict=True):
        expected = plain(prefix + prompt.text)["input_ids"]
        assert ids == (expected if special is False else [0, *expected])


def test_answers_behind_a_bos() -> None:
    tokenizer = adding("<|endoftext|>")
    for special in (True, False):
        wording = Wording(special_tokens=special)
        prompt = tokenise(tokenizer, [PROMPTS[0]], wording)[0]
        answers = Answers(tokenizer, wording).candidates(prompt, [" Mary", " he"])
        assert [tokenizer.decode(ids) for ids in answers] == [" Mary", " he"]


def test_a_token_behind_the_prompt_is_in_the_answer_s_place() -> None:
    tokenizer = adding(behind="<|endoftext|>")
    prompt = tokenise(tokenizer, [PROMPTS[0]])[0]
    assert prompt.ids[-1] == 0
    with pytest.raises(IITKitError, match=r"puts '<\|endoftext\|>' behind it; set data.special_tokens to false"):
        Answers(tokenizer).candidates(prompt, [" Mary", " he"])
    wording = Wording(special_tokens=False)
    prompt = tokenise(tokenizer, [PROMPTS[0]], wording)[0]
    assert len(Answers(tokenizer, wording).candidates(prompt, [" Mary", " he"])) == 2


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("wording", [Wording(), Wording("Well: ", special_tokens=False), Wording(shots=SHOTS)], ids=str)
def test_pieces_that_begin_with_their_blank(side: Padding, legacy: bool, wording: Wording) -> None:
    tokenizer = blanked(legacy)
    before, _ = wording.frame(tokenizer)
    for ids, prompt in zip(check(tokenizer, wording, side), PROMPTS, strict=True):
        assert ids == tokenizer(before + prompt.text, add_special_tokens=wording.adds_special_tokens)["input_ids"]
    prompt = tokenise(tokenizer, [PROMPTS[0]], wording)[0]
    assert [tokenizer.decode(ids) for ids in Answers(tokenizer, wording).candidates(prompt, [" Mary", " he"])] == [
        "Mary",
        "he",
    ]


# --- chats ---


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("system", [None, "Be short."])
@pytest.mark.parametrize("shots", [[], SHOTS])
def test_chats(side: Padding, system: str | None, shots: list[tuple[str, str]]) -> None:
    tokenizer = chatting()
    wording = Wording(chat=True, system=system, shots=shots)
    rows = check(tokenizer, wording, side)
    before = "<|system|>\nBe short.\n" if system else ""
    if shots:
        before += "<|user|>\nThe dog near the park\n<|assistant|>\nis\n<|user|>\nMary and John\n<|assistant|>\nare\n"
    for ids, prompt in zip(rows, PROMPTS, strict=True):
        assert ids == tokenizer(f"{before}<|user|>\n{prompt.text}\n<|assistant|>\n")["input_ids"]


def test_a_prefix_stands_before_the_chat() -> None:
    assert Wording("<|endoftext|>", chat=True).apply(chatting(), ["Hi"]).texts == [
        "<|endoftext|><|user|>\nHi\n<|assistant|>\n"
    ]


def test_a_chat_s_template_writes_the_bos_itself() -> None:
    tokenizer = adding("<|endoftext|>")
    tokenizer.chat_template = "<|endoftext|>" + CHATML
    ids = tokenise(tokenizer, PROMPTS[:1], Wording(chat=True))[0].ids
    assert ids.count(0) == 1
    twice = tokenise(tokenizer, PROMPTS[:1], Wording(chat=True, special_tokens=True))[0].ids
    assert twice == [0, *ids]


def test_answers_in_a_chat_begin_without_their_space() -> None:
    tokenizer = chatting()
    for wording, said in ((Wording(chat=True), "Mary"), (Wording(), " Mary")):
        prompt = tokenise(tokenizer, PROMPTS[:1], wording)[0]
        (ids, _) = Answers(tokenizer, wording).candidates(prompt, [" Mary", " he"])
        assert tokenizer.decode(ids) == said
        assert [*prompt.ids, *ids] == tokenizer(prompt.text + said)["input_ids"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "data.chat: the tokenizer has no chat template"),
        (CHATML.replace("['content']", "['content'] | upper"), "writes the prompt as it is 0 times, not once"),
        (CHATML.replace("['content']", "['content'] | replace('Mary', 'Ma ry')"), "alters the prompt 'When Mary saw"),
        (CHATML.replace("['content'] }}", "['content'] }}{{ message['content'] }}"), "the prompt as it is 2 times"),
        ("{{ 'nothing' }}", "writes the prompt as it is 0 times"),
        ("{{ raise_exception('No users here') }}", "template refuses these turns: No users here"),
    ],
)
def test_chats_that_cannot_be(template: str | None, message: str) -> None:
    with pytest.raises(IITKitError) as caught:
        tokenise(chatting(template) if template else tiny_tokenizer(), PROMPTS, Wording(chat=True))
    assert message in str(caught.value)


def test_a_template_that_trims_is_harmless_unless_there_is_something_to_trim() -> None:
    tokenizer = chatting(CHATML.replace("['content']", "['content'] | trim"))
    check(tokenizer, Wording(chat=True), "left")
    with pytest.raises(IITKitError, match="template alters the prompt 'the park '"):
        tokenise(tokenizer, [Text("the park ", {})], Wording(chat=True))


def test_whether_a_template_opens_the_answer() -> None:
    assert Wording(chat=True).opens_answer(chatting())
    assert not Wording(chat=True).opens_answer(chatting(CHATML.partition("{% if")[0]))


# --- truncation ---

LONG = Template("Yesterday and On Monday and Today the {word} was happy because the {word_again}")
FILLER = ["Yesterday", " and", " On", " Monday", " and", " Today", " the"]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("prefix", ["", "<|endoftext|>", "Well: "])
def test_long_prompts_lose_tokens_behind_bos_and_prefix(side: Padding, bos: bool, prefix: str) -> None:
    tokenizer, plain = adding("<|endoftext|>"), tiny_tokenizer()
    prompts = [LONG.render({"word": "dog", "word_again": "dog"}), LONG.render({"word": "park", "word_again": "Zy"})]
    whole = [([0] if bos else []) + plain(prefix + prompt.text)["input_ids"] for prompt in prompts]
    # "Well: " is the tokens W ell :, and its blank begins the first word's token
    head = int(bos) + {"": 0, "<|endoftext|>": 1, "Well: ": 4 if plain("Well: Y")["input_ids"][3:4] else 3}[prefix]
    most = min(map(len, whole)) - 4
    pool = text_pool(
        prompts,
        tokenizer,
        {"a": "word.all", "b": "word_again.all", "first": 0, "end": -1},
        Wording(prefix, special_tokens=bos, max_tokens=most),
    )
    collate = Collator(pool, Answers(tokenizer), [0, 0, 0, 0], 0, side)
    tokens = collate.tokens([0, 1])
    columns, there = collate.positions([0, 1], tokens)
    for b, words in enumerate((("dog", "dog"), ("park", "Zy"))):
        kept = row(tokens, b)
        assert len(kept) == most
        cut = len(whole[b]) - most
        heads = [n for n in range(len(whole[b])) if whole[b][:n] + whole[b][n + cut :] == kept]
        assert heads  # a run of tokens is missing, and nothing else
        if prefix != "Well: ":
            assert head in heads
        else:
            assert plain.decode(kept[int(bos) :]).startswith("Well:")
        for p, word in enumerate(words):
            assert plain.decode(tokens.ids[b, columns[b, p][there[b, p]]].tolist()).strip() == word
        assert tokens.ids[b, columns[b, 2, 0]] == whole[b][0 if head else cut]
        assert tokens.ids[b, columns[b, 3, 0]] == whole[b][-1]


def test_truncation_by_hand() -> None:
    tokenizer = pieces(*"PQabcdxy")
    text = Template("a b c {word} d {other}").render({"word": "x", "other": "y"})
    short = Template("{word} d {other}").render({"word": "x", "other": "y"})
    for most, expected, spans in (
        (7, "P a b c x d y", {"word": (4, 5), "other": (6, 7)}),
        (6, "P b c x d y", {"word": (3, 4), "other": (5, 6)}),
        (4, "P x d y", {"word": (1, 2), "other": (3, 4)}),
    ):
        one, two = (tokenise(tokenizer, [text, short], Wording("P ", max_tokens=most))[i] for i in (0, 1))
        assert tokenizer.convert_ids_to_tokens(one.ids) == expected.split()
        assert one.spans == spans
        assert one.text == "P a b c x d y"
        assert tokenizer.convert_ids_to_tokens(two.ids) == ["P", "x", "d", "y"]
        assert two.spans == {"word": (1, 2), "other": (3, 4)}
    with pytest.raises(IITKitError, match=r"max_tokens: 3: span 'word' would be cut from 'P a b c x d y', .* allow 4$"):
        tokenise(tokenizer, [text], Wording("P ", max_tokens=3))
    with pytest.raises(IITKitError, match=r"span 'word' would be cut from 'P x d y', which has 4 tokens: allow 4$"):
        tokenise(tokenizer, [short], Wording("P ", max_tokens=3))
    free = Text("a b c", {})
    with pytest.raises(IITKitError, match="no token of the prompt itself would be left of 'P a b c'"):
        tokenise(tokenizer, [free], Wording("P ", max_tokens=1))
    assert tokenizer.decode(tokenise(tokenizer, [free], Wording("P ", max_tokens=2))[0].ids) == "P c"


def test_a_span_of_several_tokens_is_not_cut_in_its_middle() -> None:
    tokenizer = pieces(*"PQabcdxy")
    text = Template("a {word} d").render({"word": "x y b"})
    assert tokenise(tokenizer, [text], Wording(max_tokens=4))[0].spans == {"word": (0, 3)}
    for most in (1, 2, 3):
        with pytest.raises(IITKitError, match=r"span 'word' would be cut .* allow 4"):
            tokenise(tokenizer, [text], Wording(max_tokens=most))


def test_examples_lose_tokens_before_the_prompt_does() -> None:
    tokenizer = pieces(*"PQabcdxy")
    text = Template("a {word} d").render({"word": "x"})
    shots = Wording("P ", shots=[("b", " c"), ("c", " b")], separator=" ", max_tokens=6)
    assert tokenizer.decode(tokenise(tokenizer, [text], shots)[0].ids) == "P c b a x d"


def test_a_chat_loses_tokens_of_the_prompt_only() -> None:
    tokenizer = pieces(*"PQabcdxy")
    tokenizer.chat_template = (
        "P {% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}Q{% endif %}"
    )
    text = Template("a b {word} d").render({"word": "x"})
    whole = tokenise(tokenizer, [text], Wording(chat=True))[0]
    assert tokenizer.decode(whole.ids) == "P a b x d Q"
    cut = tokenise(tokenizer, [text], Wording(chat=True, max_tokens=4))[0]
    assert tokenizer.decode(cut.ids) == "P x d Q"
    assert cut.spans == {"word": (1, 2)}
    with pytest.raises(IITKitError, match="no token of the prompt itself would be left"):
        tokenise(tokenizer, [Text("a b", {})], Wording(chat=True, max_tokens=2))


# --- options ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"system": "Be short."}, "data.system: there is a system turn only in a chat"),
        ({"shots": ["The dog is"]}, r"data.shots[0]: 'The dog is': expected two texts"),
        ({"shots": [("a", "b"), ("a", "b", "c")]}, r"data.shots[1]: ('a', 'b', 'c'): expected two texts"),
        ({"shots": [("a", 1)]}, r"data.shots[0]: ('a', 1): expected two texts"),
        ({"max_tokens": 0}, "data.max_tokens: 0: expected 1 or more"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(IITKitError) as caught:
        Wording(**options)
    assert message in str(caught.value)
