"""Plain networks that iitkit makes itself, and their folders: config.json and model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from iitkit.errors import IITKitError, choices

Activation = Literal["relu", "gelu", "silu", "tanh"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
MARK = "iitkit_network"
"""Key of a config.json that says which plain network a folder holds."""


class PlainNetwork(nn.Module):
    """A network of iitkit's own.

    Args:
        sizes: what it was built from, as plain values.
    """

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.sizes = sizes

    @property
    def width(self) -> int:
        """Size of what leaves the first layer."""
        raise NotImplementedError  # abstract

    @property
    def depth(self) -> int:
        """Number of layers."""
        raise NotImplementedError  # abstract


class MLPModel(PlainNetwork):
    """Linear maps with an activation behind each but the last: vectors in, one logit for each class out.

    Args:
        sizes: of the input, of each hidden layer, and the number of classes.
        activation: what stands between the maps.
    """

    def __init__(self, sizes: Sequence[int], activation: Activation = "relu") -> None:
        super().__init__(sizes=list(sizes), activation=activation)
        modules: list[nn.Module] = []
        for entering, leaving in pairwise(sizes):
            modules += [nn.Linear(entering, leaving), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*modules[:-1])

    @property
    def width(self) -> int:
        """See :class:`PlainNetwork`."""
        return int(self.sizes["sizes"][1])

    @property
    def depth(self) -> int:
        """See :class:`PlainNetwork`."""
        return len(self.sizes["sizes"]) - 1

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits [B, classes] of vectors [B, input]."""
        found: Tensor = self.layers(inputs)
        return found


@dataclass(frozen=True)
class Logits:
    """What a network of sequences returns.

    Args:
        logits: [B, S, vocabulary].
    """

    logits: Tensor


class GRUModel(PlainNetwork):
    """Embeddings, a GRU and a linear head: integers in, the logits of the next one out.

    Args:
        vocabulary: number of symbols.
        width: size of an embedding.
        hidden: size of the state.
        layers: number of layers.
    """

    def __init__(self, vocabulary: int, width: int, hidden: int, layers: int) -> None:
        super().__init__(vocabulary=vocabulary, width=width, hidden=hidden, layers=layers)
        self.embeddings = nn.Embedding(vocabulary, width)
        self.gru = nn.GRU(width, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, vocabulary)

    @property
    def width(self) -> int:
        """See :class:`PlainNetwork`."""
        return int(self.sizes["hidden"])

    @property
    def depth(self) -> int:
        """See :class:`PlainNetwork`."""
        return int(self.sizes["layers"])

    def get_input_embeddings(self) -> nn.Module:
        """Return the embeddings."""
        return self.embeddings

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return self.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False) -> Logits:
        """Return the logits of ids [B, S].

        Raises:
            IITKitError: padding on the left, which the state would go through.
        """
        if attention_mask is not None and not bool(attention_mask[:, 0].all()):
            raise IITKitError("a GRU reads its padding on the left too: set data.padding to right")
        states, _ = self.gru(self.embeddings(input_ids))
        return Logits(self.head(states))


NETWORKS: dict[str, type[PlainNetwork]] = {"MLP": MLPModel, "GRU": GRUModel}


def plain_config(folder: Path) -> dict[str, Any] | None:
    """Return what a folder's config.json says of a plain network; None where it holds none."""
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return found if isinstance(found, dict) and MARK in found else None


def save_plain(network: PlainNetwork, folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a plain network's config.json and model.safetensors.

    Args:
        network: the network.
        folder: where; made here.
        tensors: its weights.
    """
    name = next(name for name, kind in NETWORKS.items() if type(network) is kind)
    folder.mkdir(parents=True, exist_ok=True)
    config = {MARK: name, **network.sizes}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, folder / "model.safetensors")


def load_plain(folder: Path, dtype: Any) -> PlainNetwork:
    """Read a folder that :func:`save_plain` wrote.

    Args:
        folder: the folder.
        dtype: a dtype, or ``"auto"`` for that of the weights.

    Raises:
        IITKitError: an unknown kind, sizes that fit no network, or weights that do not fit the sizes.
    """
    found = dict(plain_config(folder) or {})
    name = found.pop(MARK, None)
    if name not in NETWORKS:
        raise IITKitError(f"base {str(folder)!r}: {MARK} {name!r}: expected one of {choices(NETWORKS)}")
    try:
        network = NETWORKS[name](**found)
        tensors = load_file(folder / "model.safetensors")
        network.load_state_dict(tensors, strict=True)
    except (TypeError, ValueError, KeyError, RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise IITKitError(f"base {str(folder)!r} is no {name} that iitkit saved: {reason}") from error
    wanted = next(iter(tensors.values())).dtype if dtype == "auto" else dtype
    return network.to(wanted if isinstance(wanted, torch.dtype) else torch.float32)
