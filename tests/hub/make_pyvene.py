"""Makes tests/hub/pyvene/: folders that pyvene 0.1.8 saves, and the logits of its own forward passes with them.

Run once, in an environment of its own: ``python tests/hub/make_pyvene.py`` with pyvene 0.1.8 and transformers 4.45.
The networks are a GPT-2 and a LLaMA of 2 layers and width 8; their weights and the logits are in reference.safetensors.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyvene as pv
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent / "pyvene"
BASE, SOURCE = [[3, 9, 4, 11, 7], [5, 2, 8, 6, 10]], [[6, 3, 12, 5, 2], [9, 7, 2, 4, 13]]
GPT2 = {"vocab_size": 17, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, "initializer_range": 0.4}
LLAMA = {
    "vocab_size": 17,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "initializer_range": 0.4,
}


def networks():
    torch.manual_seed(0)
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    yield "gpt2", GPT2LMHeadModel(GPT2Config(**GPT2, **off)).eval()
    yield "llama", LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()


def constant(width, seed):
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


FOLDERS = {
    # name → representations, unit locations (base and source alike) of each
    "low_rank": (
        [
            {
                "layer": 1,
                "component": "block_output",
                "low_rank_dimension": 3,
                "intervention_type": pv.LowRankRotatedSpaceIntervention,
            }
        ],
        [4],
    ),
    "rotated": ([{"layer": 0, "component": "block_output", "intervention_type": pv.RotatedSpaceIntervention}], [2]),
    "boundless": (
        [{"layer": 0, "component": "mlp_output", "intervention_type": pv.BoundlessRotatedSpaceIntervention}],
        [4],
    ),
    "addition": (
        [
            {
                "layer": layer,
                "component": "attention_value_output",
                "source_representation": constant(8, layer),
                "intervention_type": pv.AdditionIntervention,
            }
            for layer in (0, 1)
        ],
        [None, None],
    ),
    "addition_source": ([{"layer": 0, "component": "block_output", "intervention_type": pv.AdditionIntervention}], [3]),
    "vanilla": ([{"layer": 1, "component": "mlp_input", "intervention_type": pv.VanillaIntervention}], [4]),
    "linked": (
        [
            {
                "layer": layer,
                "component": "block_output",
                "low_rank_dimension": 1,
                "intervention_link_key": 0,
                "intervention_type": pv.LowRankRotatedSpaceIntervention,
            }
            for layer in (0, 1)
        ],
        [4, 4],
    ),
    "joint": (
        [
            {
                "layer": 0,
                "component": "block_output",
                "max_number_of_units": 2,
                "low_rank_dimension": 4,
                "intervention_type": pv.LowRankRotatedSpaceIntervention,
            }
        ],
        [[1, 3]],
    ),
    "heads": (
        [
            {
                "layer": 1,
                "component": "head_attention_value_output",
                "unit": "h",
                "low_rank_dimension": 2,
                "intervention_type": pv.LowRankRotatedSpaceIntervention,
            }
        ],
        [1],
    ),
    "sigmoid": ([{"layer": 1, "component": "block_input", "intervention_type": pv.SigmoidMaskIntervention}], [4]),
}


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    tensors = {"base": torch.tensor(BASE), "source": torch.tensor(SOURCE)}
    for family, model in networks():
        (HERE / f"{family}.json").write_text(json.dumps({"gpt2": GPT2, "llama": LLAMA}[family]) + "\n")
        tensors |= {f"{family}.{key}": value.clone() for key, value in model.state_dict().items()}
        tensors[f"{family}/plain"] = model(torch.tensor(BASE)).logits.detach()
        for name, (representations, places) in FOLDERS.items():
            if family == "llama" and name not in ("low_rank", "boundless", "addition"):
                continue
            torch.manual_seed(1)
            made = pv.IntervenableModel([dict(r) for r in representations], model=model)
            for intervention in made.interventions.values():
                for key, parameter in intervention.named_parameters():
                    if "original" in key or key == "mask":
                        noise = 0.3 * torch.randn_like(parameter)
                        parameter.data += noise if parameter.dim() == 1 else noise.tril(-1)  # as training moves it
                if name == "boundless":
                    intervention.set_temperature(torch.tensor(2.0))
                    intervention.set_intervention_boundaries(0.4)
                if name == "sigmoid":
                    intervention.set_temperature(torch.tensor(0.7))
                if name == "rotated":
                    intervention.set_interchange_dim(5)
            folder = HERE / f"{family}_{name}"
            made.save(str(folder))
            everywhere = list(range(5))
            lists = [everywhere if p is None else p if isinstance(p, list) else [p] for p in places]
            where = [[each] * 2 for each in lists]
            sources = None if name == "addition" else [{"input_ids": torch.tensor(SOURCE)}] * len(places)
            _, out = made(
                {"input_ids": torch.tensor(BASE)},
                sources,
                {"sources->base": (None if sources is None else where, where)},
            )
            tensors[f"{family}/{name}"] = out.logits.detach().clone()
    save_file({key: value.contiguous() for key, value in tensors.items()}, HERE / "reference.safetensors")
    size = sum(file.stat().st_size for file in HERE.rglob("*") if file.is_file())
    print(f"{size} bytes, {sorted(tensors)[:3]} …")


if __name__ == "__main__":
    main()
