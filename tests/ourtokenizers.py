"""Tokenizers that tests make: with a BOS, with a closing token, without capitals, with a chat template."""

from __future__ import annotations

from tiny import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
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


def blanked(legacy: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of SentencePiece's kind, whose pieces begin with ▁ for a blank, as Llama's and Gemma's do.

    Args:
        legacy: whether blanks are replaced in the whole text at once instead of word by word.
    """
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    if legacy:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace()
    unblanked = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(unblanked)  # type: ignore[arg-type]
    text = ["When Mary saw John , gave to the park dog gave is are he she and The near"] * 3
    alphabet = list("▁abcdefghijklmnopqrstuvwxyzWMJTZB.,:|<>\n")
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=pieces, initial_alphabet=alphabet, show_progress=False, max_token_length=6
    )
    made.train_from_iterator([word for line in text for word in line.split()], trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="<unk>")  # type: ignore[no-untyped-call]
