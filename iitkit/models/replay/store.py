"""The store: activations of texts, token by token, in memory up to a limit and then in memory-mapped files."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from iitkit.models.replay.shards import Part, Shard, ShardFolder
from iitkit.models.replay.texts import Texts

MEMORY_SHARE = 0.25
"""Share of the free memory that a store may take unless said."""

Range = tuple[Tensor, Tensor]
"""First token and one behind the last, of each of some texts."""


MERGED = 64 * 2**20
"""Bytes of an item up to which small chunks in memory are joined: a gather goes over the chunks one by one."""


@dataclass(eq=False)
class Group:
    """Items that are kept of the same tokens of the same texts, e.g. the keys and values of all layers above a site.

    Args:
        items: their names.
        chunks: item → [tokens, …], each chunk in memory or in a memory-mapped file.
        chunk: in which chunk each text is, −1 for none, [texts].
        offset: where in it the text begins, [texts].
        lo: the first token of the text that is kept, [texts].
        hi: one behind the last, [texts].
        mergeable: which chunks may be joined with others.
        parts: parts of files that are chunks here, with their chunk's number.
    """

    items: tuple[str, ...]
    chunks: list[dict[str, Tensor]] = field(default_factory=list)
    chunk: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    offset: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    lo: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    hi: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    mergeable: list[bool] = field(default_factory=list)
    parts: list[tuple[Part, int]] = field(default_factory=list)

    def holds(self, texts: Tensor, wanted: Range) -> Tensor:
        """Return of which texts the wanted tokens are kept; where none are wanted, all are."""
        self._grow(texts)
        lo, hi = wanted
        return (hi <= lo) | ((self.chunk[texts] >= 0) & (self.lo[texts] <= lo) & (self.hi[texts] >= hi))

    def put(self, texts: Tensor, wanted: Range, chunk: dict[str, Tensor], offset: Tensor, merge: bool = False) -> None:
        """Note that a chunk holds these tokens of these texts; ``merge`` where it may be joined with others."""
        self._grow(texts)
        self.chunks.append(chunk)
        self.mergeable.append(merge)
        self.chunk[texts] = len(self.chunks) - 1
        self.offset[texts], self.lo[texts], self.hi[texts] = offset, *wanted
        while self._worth_joining():
            self._join()

    def adopt(self, texts: Tensor, rows: Tensor, part: Part, chunk: dict[str, Tensor]) -> None:
        """Note that rows of a file's part hold these texts; a part becomes one chunk, however often it is asked."""
        known = next((number for other, number in self.parts if other is part), None)
        if known is None:
            self.put(texts, (part.lo[rows], part.hi[rows]), chunk, part.offset[rows])
            self.parts.append((part, len(self.chunks) - 1))
            return
        self._grow(texts)
        self.chunk[texts], self.offset[texts] = known, part.offset[rows]
        self.lo[texts], self.hi[texts] = part.lo[rows], part.hi[rows]

    def has(self, part: Part) -> bool:
        """Return whether a file's part is a chunk here."""
        return any(other is part for other, _ in self.parts)

    def _worth_joining(self) -> bool:
        """Return whether the last two chunks are small and alike in size: each is then copied a few times at most."""
        if len(self.chunks) < 2 or not all(self.mergeable[-2:]):
            return False
        before, last = (self.chunks[i][self.items[0]] for i in (-2, -1))
        return len(before) <= 2 * len(last) and before.nbytes + last.nbytes <= MERGED

    def _join(self) -> None:
        last, before = self.chunks.pop(), self.chunks[-1]
        self.mergeable.pop()
        moved = self.chunk == len(self.chunks)
        self.offset[moved] += len(before[self.items[0]])
        self.chunk[moved] -= 1
        for item in self.items:  # one by one: both copies of one item are the most that memory must hold
            before[item] = torch.cat([before[item], last.pop(item)])

    def take(
        self, items: Sequence[str], texts: Tensor, start: Tensor, width: int, device: torch.device
    ) -> dict[str, Tensor]:
        """Return ``width`` tokens of each text from ``start`` [B] on: item → [B, width, …].

        Tokens that are not kept come as some that are: the caller masks them.
        """
        last = (self.hi[texts] - self.lo[texts] - 1)[:, None]
        steps = torch.minimum((start - self.lo[texts])[:, None] + torch.arange(width), last).clamp(min=0)
        index, of_row = self.offset[texts][:, None] + steps, self.chunk[texts].clamp(min=0)
        used: list[int] = torch.unique(of_row).tolist()
        if len(used) == 1:
            chunk = self.chunks[used[0]]
            return {item: _at(chunk[item], index).to(device, non_blocking=True) for item in items}
        rows = [(of_row == c).nonzero()[:, 0] for c in used]
        found = {}
        for item in items:
            some = self.chunks[used[0]][item]
            out = torch.empty(*index.shape, *some.shape[1:], dtype=some.dtype, device=device)
            for c, part in zip(used, rows, strict=True):
                out[part.to(device)] = _at(self.chunks[c][item], index[part]).to(device, non_blocking=True)
            found[item] = out
        return found

    def _grow(self, texts: Tensor) -> None:
        more = int(texts.max()) + 1 - len(self.chunk) if len(texts) else 0
        if more > 0:
            more = max(more, len(self.chunk))
            self.chunk = F.pad(self.chunk, (0, more), value=-1)
            self.offset, self.lo, self.hi = (F.pad(x, (0, more)) for x in (self.offset, self.lo, self.hi))


def _at(kept: Tensor, index: Tensor) -> Tensor:
    # a text without a token may stand behind the last one
    flat = index.flatten().clamp(max=len(kept) - 1).to(kept.device)
    return kept.index_select(0, flat).reshape(*index.shape, *kept.shape[1:])


class Store:
    """What is kept of texts for one network in one precision; sites, runs and cells of a sweep share it.

    Args:
        device: where the network is; what is in memory lies there.
        limit: bytes of memory at most; a share of what is free unless said.
        folder: files that later runs find again; None where nothing says which network this is.
        spill: where files without a folder are put.
    """

    def __init__(
        self,
        device: torch.device,
        limit: float | None = None,
        folder: ShardFolder | None = None,
        spill: str | None = None,
    ) -> None:
        self.device, self.folder, self.spill = device, folder, spill
        self._temporary: ShardFolder | None = None
        self.limit = MEMORY_SHARE * free_bytes(device) if limit is None else limit
        self.generation = 0
        """How often everything was forgotten."""
        self.texts = Texts()
        self.groups: list[Group] = []
        self.of_item: dict[str, Group] = {}
        self.shapes: dict[str, tuple[torch.Size, torch.dtype]] = {}
        """Of one token, item by item, as a run has shown."""
        self.memory = self.mapped = 0
        """Bytes in memory and in memory-mapped files."""
        self.computed: set[int] = set()
        """Texts that were run."""
        self.found: set[int] = set()
        """Texts of which something was found in files."""

    def grouped(self, items: Sequence[str]) -> list[Group]:
        """Return the groups that together keep these items; what no group keeps yet becomes a new one."""
        new = tuple(item for item in items if item not in self.of_item)
        if new:
            group = Group(new)
            self.groups.append(group)
            self.of_item.update(dict.fromkeys(new, group))
        found: list[Group] = []
        for item in items:
            if all(self.of_item[item] is not group for group in found):
                found.append(self.of_item[item])
        return found

    def take(self, items: Sequence[str], texts: Tensor, start: Tensor, width: int) -> dict[str, Tensor]:
        """Return some tokens of each text: item → [B, width, …]; see :meth:`Group.take`."""
        found: dict[str, Tensor] = {}
        for group in self.grouped(items):
            wanted = [item for item in items if self.of_item[item] is group]
            found |= group.take(wanted, texts, start, width, self.device)
        return found

    def token_bytes(self, items: Sequence[str]) -> int:
        """Return the size of one token's items."""
        return sum(self.shapes[item][0].numel() * self.shapes[item][1].itemsize for item in items)

    def fits(self, size: int) -> bool:
        """Return whether so many bytes more may be kept in memory."""
        return self.memory + size <= self.limit

    def allocate(self, items: Sequence[str], tokens: int, in_memory: bool) -> dict[str, Tensor]:
        """Return an empty chunk; one that is to become a file lies in the CPU's memory meanwhile."""
        device = self.device if in_memory else torch.device("cpu")
        # of texts without a token one is kept nevertheless, to be masked: never what memory happened to hold
        make, count = (torch.empty, tokens) if tokens else (torch.zeros, 1)
        return {item: make(count, *self.shapes[item][0], dtype=self.shapes[item][1], device=device) for item in items}

    def written(self, shard: Shard) -> Shard:
        """Write a shard to the folder, or to a temporary one where there is none; return it as memory-mapped.

        Raises:
            OSError: where it cannot be written.
        """
        if self.folder is not None:
            return self.folder.write(shard)
        if self._temporary is None:
            if self.spill is not None:
                Path(self.spill).mkdir(parents=True, exist_ok=True)
            root = tempfile.mkdtemp(prefix="iitkit-replay-", dir=self.spill)
            self._temporary = ShardFolder(Path(root), {})
            weakref.finalize(self, shutil.rmtree, root, ignore_errors=True)
        return self._temporary.write(shard)

    def clear(self) -> None:
        """Forget everything, files included."""
        self.generation += 1
        self.texts, self.groups, self.of_item, self.shapes = Texts(), [], {}, {}
        self.memory, self.mapped, self.computed, self.found = 0, 0, set(), set()
        for folder in (self.folder, self._temporary):
            if folder is not None:
                folder.clear()


def free_bytes(device: torch.device) -> float:
    """Return how much memory is free on a device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with Path("/proc/meminfo").open() as lines:  # with what the system would give back from its caches
            found = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
        return float(found["MemAvailable"] * 1024)
    except (OSError, KeyError, ValueError):
        return float(2**33)
