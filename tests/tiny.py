"""Tiny random networks and a tokenizer, made in the tests; nothing is downloaded."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from iitkit.tasks import words

FAMILIES = ("gpt2", "llama")


@cache
def _trained() -> Tokenizer:
    rows = [row for name in ("names", "nouns", "places", "objects") for row in words(name)]
    known = sorted({value for row in rows for value in row.values()})
    text = [f" {word}" for word in known for _ in range(3)]
    text += ["Yesterday, This morning, Today, On Monday, walked home was happy stayed late because he she is are"] * 50
    text += ["When and went to the After gave a to While were at the handed a Then The near behind beside"] * 50
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that knows the tasks' words; ``<|endoftext|>`` (id 0) pads and ends."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained().to_str()), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def tiny_model(family: str = "gpt2", layers: int = 4, seed: int = 0, dropout: float = 0.1) -> PreTrainedModel:
    """A random network of width 32 (GPT-2: 4 heads; LLaMA: 4 heads on 2 kv heads of 8), fp32, in eval mode."""
    vocabulary = len(tiny_tokenizer())
    torch.manual_seed(seed)
    if family == "gpt2":
        drop = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
        model: PreTrainedModel = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary,
                n_embd=32,
                n_layer=layers,
                n_head=4,
                n_positions=128,
                initializer_range=0.2,
                bos_token_id=0,
                eos_token_id=0,
                **drop,
            )
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=128,
                initializer_range=0.2,
                attention_dropout=dropout,
                bos_token_id=0,
                eos_token_id=0,
                pad_token_id=0,
            )
        )
    return model.eval().requires_grad_(False)


def save_tiny(folder: Path, family: str = "gpt2", layers: int = 4, seed: int = 0) -> Path:
    """Write a tiny base model with its tokenizer as a local folder."""
    tiny_model(family, layers, seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
