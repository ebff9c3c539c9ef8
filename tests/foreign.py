"""The networks on which other tools' reference tensors were made, and the folders that they saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

FOLDER = Path(__file__).resolve().parent / "hub"
REFERENCE = load_file(FOLDER / "pyvene" / "reference.safetensors")


def network(family: str) -> Any:
    """The GPT-2 or LLaMA of tests/hub/make_pyvene.py: 2 layers of width 8."""
    config = CONFIG_MAPPING[family](**json.loads((FOLDER / "pyvene" / f"{family}.json").read_text()))
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config).eval().requires_grad_(False)
    own = {k.removeprefix(f"{family}."): v for k, v in REFERENCE.items() if k.startswith(f"{family}.")}
    model.load_state_dict(own, strict=True)
    return model
