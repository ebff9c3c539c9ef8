"""Tiny random networks of every family, made in the tests; nothing is downloaded."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

VOCABULARY, LAYERS, WIDTH, NEURONS = 53, 3, 16, 24

_OURS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_GATED: dict[str, Any] = {**_OURS, "intermediate_size": NEURONS, "num_key_value_heads": 2}
_EXPERTS: dict[str, Any] = {**_GATED, "num_local_experts": 4, "num_experts_per_tok": 2}

DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": {**_OURS, "n_inner": NEURONS},
    "gpt_neo": {
        **{key: value for key, value in _OURS.items() if not key.startswith("num_")},
        "num_layers": LAYERS,
        "num_heads": 4,
        "intermediate_size": NEURONS,
        "attention_types": [[["global", "local", "local"], 1]],
        "window_size": 4,
    },
    "gpt_neox": {**_OURS, "intermediate_size": NEURONS},
    "gptj": {**_OURS, "n_inner": NEURONS, "rotary_dim": 2},
    "opt": {**_OURS, "ffn_dim": NEURONS, "word_embed_proj_dim": WIDTH},
    "llama": _GATED,
    "mistral": {**_GATED, "sliding_window": 4},
    "mixtral": _EXPERTS,
    "qwen2": _GATED,
    "qwen3": {**_GATED, "head_dim": 6},  # 4 heads of 6 are 24, the residual stream has 16
    "gemma": {**_GATED, "num_key_value_heads": 1, "head_dim": 6},
    "gemma2": {**_GATED, "head_dim": 6, "sliding_window": 4, "query_pre_attn_scalar": 6},
    "gemma3_text": {**_GATED, "head_dim": 6, "sliding_window": 4, "query_pre_attn_scalar": 6},
    "phi3": _GATED,
    "olmo": {**_GATED, "clip_qkv": 0.5},
    "olmo2": _GATED,
    "gpt_oss": {**_EXPERTS, "head_dim": 6, "sliding_window": 4},
}
"""``model_type`` → the sizes of a tiny network: 3 layers of width 16, 4 heads, 2 key-value heads where it can."""

TITLES = {
    "gpt2": "GPT-2",
    "gpt_neo": "GPT-Neo",
    "gpt_neox": "GPT-NeoX",
    "gptj": "GPT-J",
    "opt": "OPT",
    "llama": "LLaMA",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3",
    "phi3": "Phi-3",
    "olmo": "OLMo",
    "olmo2": "OLMo2",
    "gpt_oss": "gpt-oss",
    "mlp": "MLP",
    "gru": "GRU",
}


def build(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random network of a family, fp32, in eval mode, nothing trains."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[family](**{**DECODERS[family], **changes})
    auto: Any = AutoModelForCausalLM
    model: Any = auto.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name or name.endswith("bias"):  # so that no part is the identity or nothing
                parameter.add_(0.2 * torch.randn_like(parameter))
    found: PreTrainedModel = model.eval().requires_grad_(False)
    return found


def checkpointed(model: PreTrainedModel, reentrant: bool) -> PreTrainedModel:
    """The model with gradient checkpointing, switched on as this version of transformers calls it."""
    untyped: Any = model
    options = {"use_reentrant": reentrant}
    if hasattr(untyped, "activation_checkpointing_enable"):
        untyped.activation_checkpointing_enable(options)
    else:
        untyped.gradient_checkpointing_enable(options)
    return model


@cache
def decoder(family: str) -> PreTrainedModel:
    """The same, shared between tests."""
    return build(family)


def ids(rows: int, columns: int, seed: int) -> Tensor:
    """Random token ids, never padding."""
    return torch.randint(2, VOCABULARY, (rows, columns), generator=torch.Generator().manual_seed(seed))


class GRU(nn.Module):
    """A GRU that reads vectors and answers at every position."""

    def __init__(self, layers: int = 3, batch_first: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 8, layers, batch_first=batch_first, dropout=dropout)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(x)
        found: Tensor = self.head(states)
        return found


def mlp() -> nn.Sequential:
    """A stack of four linear maps; the last has no activation."""
    torch.manual_seed(0)
    first, second = (nn.Linear(5, 8), nn.ReLU()), (nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh())
    return nn.Sequential(*first, *second, nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4)).requires_grad_(False)


def gru(**options: Any) -> GRU:
    """A random GRU."""
    torch.manual_seed(0)
    return GRU(**options).requires_grad_(False)
