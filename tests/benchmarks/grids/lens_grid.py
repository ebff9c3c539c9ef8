"""A worker that patches with TransformerLens's bridge, one run with a hook per cell: ``lens_grid.py FOLDER``."""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent / "replay"))

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformer_lens.model_bridge import TransformerBridge  # noqa: E402
from wire import Answer, serve  # noqa: E402


class Lens:
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
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        name = "HuggingFaceTB/SmolLM2-135M-Instruct"
        self.bridge = TransformerBridge.boot_transformers(
            name, hf_model=model, tokenizer=tokenizer, dtype=torch.float32
        )
        self.task, self.tokens = task, torch.tensor(task["tokens"])
        names = ("torch", "transformers", "transformer-lens")
        return {name: version(name) for name in names}

    @torch.no_grad()
    def grid(self, cells: list[tuple[int, int]], name: str) -> Answer:
        """Run cells and write their logits."""
        base, source = (torch.tensor([self.task[which]]) for which in ("base", "source"))
        _, cache = self.bridge.run_with_cache(source, names_filter=lambda name: name.endswith("hook_resid_post"))
        found = []
        start, cpu = time.perf_counter(), time.process_time()
        for layer, column in cells:
            at = f"blocks.{layer}.hook_resid_post"
            given = cache[at][:, column]

            def patched(
                activation: torch.Tensor, hook: Any, column: int = column, value: torch.Tensor = given
            ) -> torch.Tensor:
                activation[:, column] = value
                return activation

            logits = self.bridge.run_with_hooks(base, fwd_hooks=[(at, patched)])
            found.append(logits[:, -1, self.tokens])
        taken = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
        save_file({"logits": torch.stack(found).contiguous()}, self.folder / name)
        return taken


if __name__ == "__main__":
    lens = Lens(Path(sys.argv[1]))
    serve({"load": lens.load, "grid": lens.grid})
