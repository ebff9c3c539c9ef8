"""Tokenizers that tests make: with a BOS, with a closing token, without capitals, with a chat template."""

from __future__ import annotations

from tiny import tiny_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""Writes each turn as it is, below its role."""


def adding(before: str = "", behind: str = "") -> PreTrainedTokenizerFast:
    """The tiny tokenizer, which puts ``<|endoftext|>`` before or behind each text by itself."""
    made = tiny_tokenizer()
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(part for part in (before, "$A", behind) if part), special_tokens=[("<|endoftext|>", 0)]
    )
    return made


def chatting(template: str = CHATML) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a chat template."""
    made = tiny_tokenizer()
    made.chat_template = template
    return made


def pieces(*given: str, lowercase: bool = False) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of exactly these pieces: the longest piece that fits comes first."""
    vocabulary = {piece: i for i, piece in enumerate(["[UNK]", *given])}
    made = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if lowercase:
        made.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")  # type: ignore[no-untyped-call]
