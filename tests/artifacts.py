"""A small artifact on disk, and what can be done to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from iitkit.hub import Values, write_artifact
from iitkit.interventions import Intervention, LowRankSubspace, SiteInfo

BASE = {
    "id": "user/model",
    "revision": "0123456789abcdef",
    "architecture": "GPT2LMHeadModel",
    "width": 32,
    "layers": 4,
    "dtype": "float32",
    "weights": "sha256:00",
}
WHERE: dict[str, dict[str, Any]] = {
    "gender": {"layer": 2, "component": "block_output", "position": "name", "variable": "gender"},
    "number": {"module": "transformer.h.1.mlp", "side": "output", "position": -1, "variable": "number"},
}
SITES = {"gender": SiteInfo(32), "number": SiteInfo(32)}
CONFIG, WEIGHTS = "config.json", "interventions.safetensors"


def trained(width: int = 32, rank: int = 1) -> dict[str, Intervention]:
    generator = torch.Generator().manual_seed(3)
    made = {
        "gender": LowRankSubspace(SiteInfo(width=width, generator=generator), rank=rank),
        "number": LowRankSubspace(SiteInfo(width=width, generator=generator), rank=3),
    }
    for intervention in made.values():  # as after some steps: no column has unit length
        with torch.no_grad():
            intervention.space.free.mul_(1.7).add_(0.1)  # type: ignore[union-attr]
    return dict(made)


def values(rank: int = 1) -> dict[str, Values]:
    features = torch.randn(2, rank, generator=torch.Generator().manual_seed(4))
    return {"gender": Values(("female", "male"), features, (14, 16))}


def write(folder: Path, **more: Any) -> Path:
    """The whole of an artifact: values, metrics, what is known of its making."""
    given: dict[str, Any] = {
        "values": values(),
        "largest": {"gender": 3.5},
        "metrics": {
            "test/iia": 0.9,
            "test/iia_flipped": 0.8,
            "test/n": 40,
            "test/n_flipped": 20,
            "test/iia_kept": None,
        },
        "task": "PronounGender",
        "variables": {"gender": ["female", "male"]},
        "prefix": "",
        "tokenizer": {"vocabulary": "sha256:01", "chat_template": None},
        "training": {"settings": "sha256:02", "data": "sha256:03"},
        "example": {
            "prompt": "Yesterday, Anna walked home because",
            "spans": {"name": "Anna"},
            "set": {"gender": "male"},
        },
    }
    return write_artifact(folder, trained(), WHERE, BASE, SITES, **{**given, **more})


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    change(config)
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")


def put_weights(folder: Path, data: bytes) -> None:
    """Other bytes, with a digest that fits them."""
    (folder / WEIGHTS).write_bytes(data)
    rewrite(folder, lambda config: config.update(sha256={WEIGHTS: hashlib.sha256(data).hexdigest()}))


def weigh(folder: Path, tensors: dict[str, Tensor]) -> None:
    put_weights(folder, save(tensors))


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / WEIGHTS)
