"""The stores of a network: one for each precision, shared by all that run it frozen."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from torch import nn

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
        self._versions: tuple[int, ...] | None = None
        self._sample: list[float] = []
        self.changes = 0
        """How often the network's parameters were written to, as far as was seen."""

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
        versions = _versions(self.model)
        if versions != self._versions:
            sample = _sample(self.model)
            if self._versions is not None and sample != self._sample:
                # what is kept is of other weights, and so is the name under which files would be found
                self._stores, self.keeping = {}, replace(self.keeping, base=None)
            self._versions, self._sample = versions, sample
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


def _versions(model: nn.Module) -> tuple[int, ...]:
    """Return what changes whenever parameters are written to in place, or are others."""
    return tuple(id(p) if p.is_inference() else p._version ^ id(p) for p in model.parameters())


@torch.no_grad()
def _sample(model: nn.Module) -> list[float]:
    """Return sums of some of each parameter's entries: an optimizer's step changes them, a copy of itself does not."""
    sums = [p.detach().flatten()[:: max(p.numel() // 1024, 1)].double().sum() for p in model.parameters()]
    return torch.stack([x.cpu() for x in sums]).tolist()
