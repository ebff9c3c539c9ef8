"""A worker that patches with pyvene, one IntervenableModel per cell as its README does: ``pyvene_grid.py FOLDER``."""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent / "replay"))

import pyvene  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from wire import Answer, serve  # noqa: E402


class Peer:
    """One network and one grid.

    Args:
        folder: holds the network; logits are written there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, task: dict[str, Any]) -> Answer:
        """Load the network and take up a grid."""
        torch.set_num_threads(1)
        path = self.folder / "network"
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float32).eval()
        self.task, self.tokens = task, torch.tensor(task["tokens"])
        return {name: version(name) for name in ("torch", "transformers", "pyvene")}

    @torch.no_grad()
    def grid(self, cells: list[tuple[int, int]], name: str) -> Answer:
        """Run cells, each with its source as the README has it, and write their logits."""
        start, cpu = time.perf_counter(), time.process_time()
        base, source = ({"input_ids": torch.tensor([self.task[which]])} for which in ("base", "source"))
        found = []
        for layer, column in cells:
            where = {"layer": layer, "component": "block_output", "intervention_type": pyvene.VanillaIntervention}
            model = pyvene.IntervenableModel(pyvene.IntervenableConfig([where]), model=self.model)
            _, output = model(base, [source], {"sources->base": column})
            found.append(output.logits[:, -1, self.tokens])
        taken = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
        save_file({"logits": torch.stack(found).contiguous()}, self.folder / name)
        return taken


if __name__ == "__main__":
    peer = Peer(Path(sys.argv[1]))
    serve({"load": peer.load, "grid": peer.grid})
