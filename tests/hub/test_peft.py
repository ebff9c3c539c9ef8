"""LoRA adapters that PEFT 0.21.2 saved: the same logits as its own forward on the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from byhand import relative
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import iitkit

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize(("name", "modules"), [("plain", 4), ("patterns", 4)])
def test_logits_are_pefts_own(name: str, modules: int) -> None:
    tensors, found = (
        load_file(HERE / "pyvene" / "reference.safetensors"),
        load_file(HERE / "peft" / "reference.safetensors"),
    )
    model: Any = LlamaForCausalLM(LlamaConfig(**json.loads((HERE / "pyvene" / "llama.json").read_text()))).eval()
    own = {key.removeprefix("llama."): value for key, value in tensors.items() if key.startswith("llama.")}
    model.load_state_dict(own, strict=True)
    alignment = iitkit.convert(HERE / "peft" / name, model)
    assert len(alignment) == modules
    with torch.no_grad():
        assert relative(model(tensors["base"]).logits, found[name]) > 0.1
        with iitkit.intervening(model, alignment, where="all"):
            assert relative(model(tensors["base"]).logits, found[name]) <= 1e-5
        iitkit.merge(model, alignment)
        assert relative(model(tensors["base"]).logits, found[name]) <= 1e-5
