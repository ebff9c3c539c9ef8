"""The stores of a network: one for each precision, shared by all that run it frozen."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

from iitkit.models.cache import cache_folder
from iitkit.models.replay.shards import ShardFolder
from iitkit.models.replay.store import Store


@dataclass(frozen=True)
class Keeping:
    """Where what is kept may lie.

    Args:
        memory: bytes of memory at most; a share of what is free unless said.
        folder: folder of files that later runs find again; iitkit's cache unless said.
        base: what says which weights a network has, e.g. its revision; files for later runs are written only with it.
    """

    memory: float | None = None
    folder: str | None = None
    base: str | None = None


def precision(model: nn.Module) -> tuple[str, str]:
    """Return a network's kind of device, and the type in which it computes."""
    parameter = next(model.parameters())
    kind = parameter.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else parameter.dtype
    return kind, str(dtype).removeprefix("torch.")


class Stores:
    """A network's stores.

    Args:
        model: the network.
        keeping: where what is kept may lie.
    """

    def __init__(self, model: nn.Module, keeping: Keeping) -> None:
        self._model, self.keeping = weakref.ref(model), keeping
        self._stores: dict[tuple[str, ...], Store] = {}
        self._parts: list[nn.Module] = []
        self._seen: list[int] | None = None
        self._contents: list[float] = []
        self.changes = 0
        """How often the network was seen to be other than before: written to, hooked, moved, put in another mode."""

    @classmethod
    def of(cls, model: nn.Module, keeping: Keeping) -> Stores:
        """Return the stores of a network; all who ask with the same ``keeping`` share them."""
        known = _KNOWN.setdefault(model, {})
        if keeping not in known:
            known[keeping] = cls(model, keeping)
        return known[keeping]

    @property
    def model(self) -> nn.Module:
        """The network."""
        found = self._model()
        assert found is not None
        return found

    def now(self) -> Store:
        """Return the store for the network's device and precision of now; a new one where its weights have changed."""
        state = _state([self.model, *self._parts])
        if state != self._seen:
            self._parts = list(self.model.modules())[1:]  # not the network itself: it must be free to go
            state = _state([self.model, *self._parts])
            contents = _contents(self.model)
            if self._seen is not None and contents != self._contents:
                # what is kept is of other weights, and so is the name under which files would be found
                self._stores, self.keeping = {}, replace(self.keeping, base=None)
            self._seen, self._contents = state, contents
            self.changes += 1
        key = self._key()
        named = tuple(key.values())
        if named not in self._stores:
            device = next(self.model.parameters()).device
            root = Path(self.keeping.folder).expanduser() if self.keeping.folder else cache_folder() / "replay"
            folder = None if self.keeping.base is None else ShardFolder(root, {"base": self.keeping.base, **key})
            self._stores[named] = Store(device, self.keeping.memory, folder, self.keeping.folder)
        return self._stores[named]

    def _key(self) -> Mapping[str, str]:
        model = self.model
        device, dtype = precision(model)
        parameter = next(model.parameters())
        return {
            "architecture": type(model).__name__,
            "device": str(parameter.device) if device != "cpu" else "cpu",
            "weights": str(parameter.dtype).removeprefix("torch."),
            "dtype": dtype,
            "attention": str(getattr(getattr(model, "config", None), "_attn_implementation", None)),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[Keeping, Stores]] = weakref.WeakKeyDictionary()


def _state(modules: Sequence[nn.Module]) -> list[int]:
    """Return what changes when weights or buffers are written to in place or are others, with hooks, modes and parts.

    Called in every step: it goes over the modules' own dictionaries.
    """
    found = []
    for module in modules:
        said = sum(module._forward_hooks) + sum(module._forward_pre_hooks) + module.training
        for part in module._modules.values():
            said ^= id(part)
        for held in (module._parameters, module._buffers):
            for tensor in held.values():
                if tensor is not None:
                    said ^= tensor.data_ptr()
                    said += 0 if tensor.is_inference() else tensor._version
        found.append(said)
    return found


@torch.no_grad()
def _contents(model: nn.Module) -> list[float]:
    """Return a sum of the bits of each parameter and buffer: an edit of any of them changes it, a copy does not."""
    return [_bits(tensor.detach()) for tensor in (*model.parameters(), *model.buffers())]


def _bits(tensor: Tensor) -> float:
    kind = _BITS.get(tensor.element_size())
    if kind is None or tensor.is_quantized or not tensor.numel():
        return 0.0
    # in pieces: a sum of integers makes wider ones of all that it is given
    pieces = torch.split(tensor.contiguous().flatten().view(kind), 2**22)
    return float(torch.stack([piece.sum() for piece in pieces]).sum())


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
