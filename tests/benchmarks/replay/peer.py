"""A worker that runs the same steps with pyvene 0.1.8, in an environment of its own: ``peer.py FOLDER``.

Its plainest use, as its documentation shows it: one representation at a block's output, integer positions (its quick
path), the network's gradients off. ``use_cache=False`` spares it a cache that nobody reads.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pyvene
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from wire import Answer, memory, reset_peak, serve

TYPES = {"full": pyvene.RotatedSpaceIntervention, "boundless": pyvene.BoundlessRotatedSpaceIntervention}


class Peer:
    """One network and one cell, as the bench asks for them.

    Args:
        folder: holds the networks' weights; logits are written there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model: Any = None

    def load(self, name: str, threads: int = 1) -> Answer:
        """Load a network."""
        torch.set_num_threads(threads)
        wanted = json.loads((self.folder / f"{name}.json").read_text())
        config, kind = {
            "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
            "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        }[wanted["family"]]
        self.model = kind(config(**wanted["options"])).eval()
        state = load_file(self.folder / f"{name}.safetensors")
        absent, unexpected = self.model.load_state_dict(state, strict=False)
        if unexpected or set(absent) - {"lm_head.weight"}:
            raise RuntimeError(f"{name}: weights missing {absent}, unexpected {unexpected}")
        self.model.tie_weights()
        del state
        found = {module.__name__: module.__version__ for module in (torch, transformers)}
        return {**found, "pyvene": "0.1.8", **memory()}

    def cell(self, cell: dict[str, Any], plan: dict[str, Any]) -> Answer:
        """Take up a cell."""
        pool = torch.tensor(plan["pool"])
        self.batches = [
            ({"input_ids": pool[rows["base"]]}, {"input_ids": pool[rows["source"]]}, torch.tensor(rows["labels"]))
            for rows in plan["batches"]
        ]
        self.position = cell["position"]
        kind = TYPES.get(cell["kind"], pyvene.LowRankRotatedSpaceIntervention)
        where = {"layer": cell["layer"], "component": "block_output", "low_rank_dimension": cell["rank"] or 1}
        self.run = pyvene.IntervenableModel(
            pyvene.IntervenableConfig([{**where, "intervention_type": kind}]), model=self.model
        )
        self.run.disable_model_gradients()
        self.edit = next(iter(self.run.interventions.values()))
        self.optimizer = torch.optim.Adam(self.run.get_trainable_parameters(), lr=1e-3)
        reset_peak()
        return {}

    def logits(self, name: str, like: str) -> Answer:
        """Write the logits of the first batch, unedited and edited in the basis that the file ``like`` holds."""
        base, source, _ = self.batches[0]
        own = {key: value.clone() for key, value in self.edit.state_dict().items()}
        with torch.no_grad():
            self.edit.rotate_layer.weight = load_file(self.folder / like)["basis"]
            found = {"plain": self.model(**base).logits[:, -1], "edited": self._intervened(base, source)[:, -1]}
            self.edit.load_state_dict(own)
        save_file({key: value.contiguous() for key, value in found.items()}, self.folder / name)
        return {}

    def step(self, first: int, steps: int) -> Answer:
        """Train on ``steps`` batches from the ``first`` on; seconds per step, by the clock and of the CPU."""
        loss = torch.zeros(())
        start, cpu = time.perf_counter(), time.process_time()
        for i in range(first, first + steps):
            base, source, labels = self.batches[i % len(self.batches)]
            loss = cross_entropy(self._intervened(base, source)[:, -1], labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        taken = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
        return {**{name: value / steps for name, value in taken.items()}, "loss": float(loss)}

    def end(self) -> Answer:
        """What the cell took."""
        return memory()

    def _intervened(self, base: dict[str, torch.Tensor], source: dict[str, torch.Tensor]) -> torch.Tensor:
        _, output = self.run(base, [source], {"sources->base": self.position}, use_cache=False)
        logits: torch.Tensor = output.logits
        return logits


if __name__ == "__main__":
    peer = Peer(Path(sys.argv[1]))
    serve({"load": peer.load, "cell": peer.cell, "logits": peer.logits, "step": peer.step, "end": peer.end})
