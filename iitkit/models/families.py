"""What families of networks call their parts.

Most families are found by structure: a block's attention and MLP, and their projections, are children of the usual
names, or the only child of their kind. A family that differs is one row of :data:`FAMILIES`. Families that are no
decoders (encoders, encoder-decoders, vision, state space models) are to get their rows here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
QUERY = ("q_proj", "query", "wq", "q_lin")
KEY = ("k_proj", "key", "wk", "k_lin")
VALUE = ("v_proj", "value", "wv", "v_lin")
FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "qkv")
PROJECTION = ("o_proj", "out_proj", "c_proj", "dense", "wo", "out_lin")
UP = ("up_proj", "fc1", "c_fc", "fc_in", "dense_h_to_4h", "w1")
DOWN = ("down_proj", "fc2", "c_proj", "fc_out", "dense_4h_to_h", "w2", "wo")
ACTIVATION = ("act_fn", "act", "activation_fn", "activation")
ROUTER = ("gate", "router")
EXPERTS = ("experts",)
FINAL_NORM = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")

Layout = Literal["parts", "heads"]


@dataclass(frozen=True)
class Family:
    """Where a family differs from what structure tells.

    Args:
        fused: name of the attention's projection that holds query, key and value in one.
        layout: how they lie in it: ``parts`` for all queries, then all keys, then all values (as many key and value
            heads as there are), ``heads`` for query, key and value of each head in turn.
        attention: path of the attention from the block.
        mlp: path of the MLP from the block; the block itself where it is empty.
        lacks: component → why it has no place, though structure would find one.
    """

    fused: str | None = None
    layout: Layout = "parts"
    attention: str | None = None
    mlp: str | None = None
    lacks: Mapping[str, str] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {
    "gpt2": Family(fused="c_attn"),
    "gpt_neox": Family(fused="query_key_value", layout="heads"),
    "phi3": Family(fused="qkv_proj"),
    "nanochat": Family(lacks={"final_norm": "its norm runs before the blocks too: name it by module path"}),
}
"""``config.model_type`` → where the family differs."""


def config_of(model: nn.Module) -> Any:
    """Return the config of a network's language model; None where it has none."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def said(config: Any, name: str) -> int | None:
    """Return a size that a config says; None where it says none, or one for each layer."""
    found: Any = None
    with suppress(Exception):  # transformers raises where layers differ in it
        found = getattr(config, name, None)
    return found if isinstance(found, int) else None


def family_of(model: nn.Module) -> Family:
    """Return a network's row of :data:`FAMILIES`, or one that leaves all to structure."""
    return FAMILIES.get(str(getattr(config_of(model), "model_type", None)), Family())


def hidden_size(model: nn.Module) -> int | None:
    """Return the width of a network's residual stream; None where no config tells."""
    return said(config_of(model), "hidden_size")


def child(module: nn.Module, names: Iterable[str]) -> nn.Module | None:
    """Return the first child of one of these names."""
    children = module._modules  # a property of the name may cost, or raise
    return next((found for name in names if (found := children.get(name)) is not None), None)


def only(found: list[nn.Module]) -> nn.Module | None:
    """Return the one module of a list of one."""
    return found[0] if len(found) == 1 else None


def sizes(module: nn.Module | None) -> tuple[int | None, int | None]:
    """Return the sizes of a linear module's (or an embedding's) input and output, quantised ones too.

    Returns:
        Input and output size; None where there is none or it is not known.
    """
    if isinstance(module, nn.Embedding):
        return None, module.embedding_dim
    for entering, leaving in (("in_features", "out_features"), ("infeatures", "outfeatures"), ("nx", "nf")):
        found = getattr(module, entering, None), getattr(module, leaving, None)
        if isinstance(found[0], int) and isinstance(found[1], int):
            return found
    return None, None


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear map, quantised or not."""
    return sizes(module)[0] is not None


def is_activation(module: nn.Module) -> bool:
    """Return whether a module is an activation function."""
    home = type(module).__module__ in ("torch.nn.modules.activation", "transformers.activations")
    return home and not isinstance(module, nn.MultiheadAttention)


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a normalisation, by its class's name."""
    return "norm" in type(module).__name__.lower()
