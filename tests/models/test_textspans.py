"""Spans of text among tokens: worked by hand, of tokenizers of every kind."""

from __future__ import annotations

from typing import Any

import pytest
from ourtokenizers import adding
from tiny import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from iitkit.errors import IITKitError
from iitkit.models.textspans import TextSpans


def blanks() -> PreTrainedTokenizerFast:
    """As SentencePiece's: ▁ for a blank, which the text's first word does not show, and bytes for what is unknown."""
    merges = [("▁", "M"), ("▁M", "a"), ("▁Ma", "r"), ("▁Mar", "y"), ("▁", "s"), ("▁s", "a"), ("▁sa", "w")]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁Marysawhteo"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, *("".join(pair) for pair in merges)]))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    unblanked = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(unblanked)  # type: ignore[arg-type]
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize(
    ("text", "span", "expected"),
    [
        ("Mary saw", "Mary", ["▁Mary"]),
        ("Mary saw", "saw", ["▁saw"]),
        ("Mary saw", "Mary saw", ["▁Mary", "▁saw"]),
        ("<s>Mary</s> saw", "Mary", ["M", "a", "r", "y"]),  # no first word: no blank
        ("saw</s><s> Mary", "Mary", ["▁Mary"]),
        ("Mary é saw", "é", ["<0xC3>", "<0xA9>"]),
        ("Mary e\u0301", "\u0301", ["<0xCC>", "<0x81>"]),  # a combining mark by itself
        ("日本", "本", ["<0xE6>", "<0x9C>", "<0xAC>"]),
        ("של", "ש", ["<0xD7>", "<0xA9>"]),
        ("😀😀saw", "saw", ["s", "a", "w"]),
    ],
)
def test_spans_of_tokenizers_with_blanks_and_bytes(text: str, span: str, expected: list[str]) -> None:
    tokenizer: Any = blanks()
    ids = tokenizer(text)["input_ids"]
    start, stop = TextSpans(tokenizer, {"x": span}).find(ids)["x"]
    assert tokenizer.convert_ids_to_tokens(ids[start:stop]) == expected


def test_offsets_count_without_special_tokens() -> None:
    for tokenizer in (tiny_tokenizer(), adding("<|endoftext|>")):
        ids = tokenizer("<|endoftext|>Anna<|endoftext|> was happy")["input_ids"]
        found = TextSpans(tokenizer, {"who": (0, 4), "how": (9, 14), "both": "Anna was"}).find(ids)
        said = {name: tokenizer.decode(ids[slice(*span)], skip_special_tokens=True) for name, span in found.items()}
        assert said == {"who": "Anna", "how": " happy", "both": "Anna was"}
        assert tokenizer.decode(ids[slice(*found["who"])]) == "Anna"  # none of them beside it


def test_what_overlaps_itself_stands_twice() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(IITKitError, match=r"'ana' stands more than once in the prompt 'banana': .* e\.g\. \(1, 4\)"):
        TextSpans(tokenizer, {"x": "ana"}).find(tokenizer("banana")["input_ids"])
