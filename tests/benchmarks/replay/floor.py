"""The floor of a training step: FLOPs that must be done over the matrix products' throughput, measured here and now.

Must be done: the layers above the site, at the positions from the site on, with attention over every kept key; the
same again for the gradient of the activations (no weight's gradient; attention's twice, for queries and keys); the LM
head at the label's position, forward and backward; the rotation's QR and its products. Norms, softmaxes, copies and
Adam count nothing, and neither does that the last layer needs no more than keys and values at most positions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from cells import BATCH, Cell
from networks import Shape

_SPAN = 192 * 2**20  # bytes of weights to go through: more than caches hold, as a network's are


@dataclass(frozen=True)
class Work:
    """FLOPs of one training step on a batch."""

    layers: float
    head: float
    rotation: float

    @property
    def total(self) -> float:
        return self.layers + self.head + self.rotation


def work(cell: Cell, shape: Shape) -> Work:
    """Count what must be done."""
    above, run = shape.layers - cell.layer - 1, cell.tokens - cell.position
    linear = 2.0 * shape.block_weights * run
    keys = sum(range(cell.position + 1, cell.tokens + 1))
    attention = 4.0 * shape.attention_width * keys
    d, r = shape.width, cell.rank or shape.width
    qr = 9.0 * d * r * r  # Householder forward and its Q about 4, backward about 5
    edit = 2 * 4.0 * BATCH * d * r
    return Work(BATCH * above * (2 * linear + 3 * attention), BATCH * 4.0 * d * shape.vocabulary, qr + edit)


@dataclass
class Throughput:
    """Measured FLOP/s of matrix products by shape: the best of all measurements, as a busy machine only takes away."""

    device: torch.device
    dtype: torch.dtype
    known: dict[str, float] = field(default_factory=dict)
    _fresh: set[str] = field(default_factory=set)

    def rows(self, rows: int, width: int) -> float:
        """FLOP/s of [rows, width] × [width, 4 · width], each with other weights than the last."""
        name = f"[{rows}, {width}] x [{width}, {4 * width}]"
        if self._due(name):
            size = 4 * width * width * torch.empty(0, dtype=self.dtype).element_size()
            weights = [self._draw(width, 4 * width) for _ in range(max(2, min(32, -(-_SPAN // size))))]
            self._measure(name, self._draw(rows, width), weights)
        return self.known[name]

    def square(self) -> float:
        """FLOP/s of a large square product."""
        size = 8192 if self.device.type == "cuda" else 1536
        name = f"[{size}, {size}] x [{size}, {size}]"
        if self._due(name):
            self._measure(name, self._draw(size, size), [self._draw(size, size)])
        return self.known[name]

    def seconds(self, cell: Cell, shape: Shape) -> float:
        """The floor: layers at the rate of the cell's own number of rows, head at that of [16, d], QR at the best.

        The label stands at one position of each row: the head sees [16, d], and so do the layers of a last-token site.
        """
        done = work(cell, shape)
        layers = done.layers / self.rows(BATCH * (cell.tokens - cell.position), shape.width)
        return layers + done.head / self.rows(BATCH, shape.width) + done.rotation / self.square()

    def _draw(self, rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, device=self.device).to(self.dtype)

    def again(self) -> None:
        """Measure each shape anew when it is next asked for."""
        self._fresh.clear()

    def _due(self, name: str) -> bool:
        return name not in self._fresh

    def _measure(self, name: str, left: torch.Tensor, weights: list[torch.Tensor]) -> None:
        out = torch.empty(left.shape[0], weights[0].shape[1], device=self.device, dtype=self.dtype)

        def run() -> float:
            self._wait()
            start = time.perf_counter()
            for weight in weights:
                torch.mm(left, weight, out=out)
            self._wait()
            return time.perf_counter() - start

        run()
        quickest = min(run() for _ in range(5))
        rate = 2.0 * left.numel() * weights[0].shape[1] * len(weights) / quickest
        self.known[name] = max(rate, self.known.get(name, 0.0))
        self._fresh.add(name)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
