"""A worker that runs a grid with iitkit, or by hand with one hooked forward per cell: ``own.py MODE FOLDER``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent / "replay"))

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402
from wire import Answer, serve  # noqa: E402

from iitkit.batch import Tokens  # noqa: E402
from iitkit.models.grids import Engine, Patch, Rows  # noqa: E402


class Own:
    """One network and one grid.

    Args:
        mode: ``iitkit``, ``layers`` for cells that do not join a batch on its way, or ``hooked``.
        folder: holds the network; logits are written there.
    """

    def __init__(self, mode: str, folder: Path) -> None:
        self.mode, self.folder = mode, folder

    def load(self, task: dict[str, Any]) -> Answer:
        """Load the network and take up a grid."""
        torch.set_num_threads(1)
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            self.folder / "network", dtype=torch.float32
        ).eval()
        self.model.requires_grad_(False)
        self.task, self.noise = task, load_file(self.folder / "task")["noise"]
        self.tokens = torch.tensor(task["tokens"])
        return {"torch": torch.__version__, "transformers": transformers.__version__}

    @torch.no_grad()
    def grid(self, cells: list[tuple[int, int]], name: str) -> Answer:
        """Run cells and write their logits; iitkit's seconds are all from the two prompts on."""
        self._start()
        logits = self._hooked(cells) if self.mode == "hooked" else self._engine(cells)
        taken = {"seconds": time.perf_counter() - self.begun[0], "cpu": time.process_time() - self.begun[1]}
        save_file({"logits": logits.contiguous()}, self.folder / name)
        return taken

    def _start(self) -> None:
        self.begun = time.perf_counter(), time.process_time()

    def _engine(self, cells: list[tuple[int, int]]) -> Tensor:
        engine = Engine(self.model)
        if self.mode == "layers":
            engine.ways.left = engine.ways.left[1:]
        trace = self.task["kind"] == "trace"
        base = torch.tensor([self.task["base"]])
        given = base if trace else torch.tensor([self.task["source"]])
        source = engine.run(
            Rows(Tokens(given, torch.ones_like(given))),
            keep=["block_output", *(["embeddings"] if trace else [])],
            start=False,
        )
        embeddings = None
        if trace:
            rows = self.task["draws"]
            base = base.expand(rows, -1)
            embeddings = source.at(None, "embeddings").repeat(rows, 1, 1)
            embeddings[:, self.task["subject"]] += self.noise
        started = engine.run(Rows(Tokens(base, torch.ones_like(base)), embeddings))
        patches = [Patch(layer, columns=column, source=source) for layer, column in cells]
        found = engine.table(started, patches, lambda logits: logits[..., self.tokens])
        assert not found.failed
        return found.values

    def _hooked(self, cells: list[tuple[int, int]]) -> Tensor:
        model, trace = self.model, self.task["kind"] == "trace"
        blocks, base = model.model.layers, torch.tensor([self.task["base"]])
        given = base if trace else torch.tensor([self.task["source"]])
        kept: dict[int, Tensor] = {}

        def keeping(layer: int) -> Any:
            return blocks[layer].register_forward_hook(lambda m, args, out: kept.update({layer: out}))

        handles = [keeping(layer) for layer in range(len(blocks))]
        model(given)
        for handle in handles:
            handle.remove()
        handles = []
        if trace:
            base = base.expand(self.task["draws"], -1)

            def noised(module: Any, args: Any, output: Tensor) -> Tensor:
                new = output.clone()
                new[:, self.task["subject"]] += self.noise
                return new

            handles = [model.model.embed_tokens.register_forward_hook(noised)]
        found = []
        self._start()
        for layer, column in cells:

            def patched(module: Any, args: Any, output: Tensor, layer: int = layer, column: int = column) -> Tensor:
                new = output.clone()
                new[:, column] = kept[layer][:, column]
                return new

            handle = blocks[layer].register_forward_hook(patched)
            found.append(model(base).logits[:, -1, self.tokens])
            handle.remove()
        for handle in handles:
            handle.remove()
        return torch.stack(found)


if __name__ == "__main__":
    own = Own(sys.argv[1], Path(sys.argv[2]))
    serve({"load": own.load, "grid": own.grid})
