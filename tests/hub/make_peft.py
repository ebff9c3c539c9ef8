"""Makes tests/hub/peft/: LoRA adapters that PEFT 0.21.2 saves, and the logits of its own forward passes with them.

Run once, with peft 0.21.2 beside this project: ``PYTHONPATH=…/peft python tests/hub/make_peft.py``. The network is the
LLaMA of tests/hub/pyvene.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
ADAPTERS = {
    "plain": {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"]},
    "patterns": {
        "r": 2,
        "lora_alpha": 5,
        "target_modules": ["v_proj", "o_proj"],
        "use_rslora": True,
        "rank_pattern": {"v_proj": 3},
        "alpha_pattern": {"layers.1.self_attn.o_proj": 7},
    },
}


def main():
    tensors = load_file(HERE / "pyvene" / "reference.safetensors")
    weights = {key.removeprefix("llama."): value for key, value in tensors.items() if key.startswith("llama.")}
    shutil.rmtree(HERE / "peft", ignore_errors=True)
    found = {}
    for name, options in ADAPTERS.items():
        model = LlamaForCausalLM(LlamaConfig(**json.loads((HERE / "pyvene" / "llama.json").read_text())))
        model.load_state_dict(weights, strict=True)
        torch.manual_seed(0)
        made = peft.get_peft_model(model, peft.LoraConfig(**options, init_lora_weights=False, task_type="CAUSAL_LM"))
        made.eval().save_pretrained(HERE / "peft" / name)
        (HERE / "peft" / name / "README.md").unlink()
        found[name] = made(tensors["base"]).logits.detach().clone()
    save_file(found, HERE / "peft" / "reference.safetensors")


if __name__ == "__main__":
    main()
