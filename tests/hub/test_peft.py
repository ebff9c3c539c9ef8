"""LoRA adapters that PEFT 0.21.2 saved: the same logits as its own forward on the same weights."""

from __future__ import annotations

import pytest
import torch
from byhand import relative
from foreign import FOLDER, REFERENCE, network
from safetensors.torch import load_file

import iitkit


@pytest.mark.parametrize("name", ["plain", "patterns"])
def test_logits_are_pefts_own(name: str) -> None:
    expected, model, base = (
        load_file(FOLDER / "peft" / "reference.safetensors")[name],
        network("llama"),
        REFERENCE["base"],
    )
    alignment = iitkit.convert(FOLDER / "peft" / name, model)
    assert len(alignment) == 4
    with torch.no_grad():
        assert relative(model(base).logits, expected) > 0.1
        with iitkit.intervening(model, alignment, where="all"):
            assert relative(model(base).logits, expected) <= 1e-5
        iitkit.merge(model, alignment)
        assert relative(model(base).logits, expected) <= 1e-5
