"""Filling the store: what is missing is found in files, or computed in batches, each text once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from iitkit.batch import Tokens
from iitkit.models.replay.capturing import Network
from iitkit.models.replay.shards import Part, Shard
from iitkit.models.replay.store import Group, Range, Store
from iitkit.models.runs import call

log = logging.getLogger("iitkit")

SHARD_BYTES = 256 * 2**20
"""Size of a file at most, and of what is on its way to one."""

WORTH = 64
"""Texts that a file must hold to be worth one; fewer are kept in memory alone."""

BATCH_TOKENS = {"cpu": 512, "cuda": 16384}
"""Tokens that are run at once; on a CPU more no longer fit its caches."""


class Unkept(Exception):  # noqa: N818 - says that replay does not hold, not that something failed
    """The network does not make what was to be kept, or there is no room for it."""


@dataclass(frozen=True)
class Request:
    """Tokens of texts that must be kept.

    Args:
        items: what of them.
        texts: numbers of texts, [n], perhaps repeated.
        wanted: the tokens, [n] each.
    """

    items: tuple[str, ...]
    texts: Tensor
    wanted: Range


Ranges = dict[int, tuple[int, int]]  # text → tokens


class Filler:
    """Fills a store.

    Args:
        network: computes what is missing.
        store: gets it.
        pad: token that fills the gaps.
    """

    def __init__(self, network: Network, store: Store, pad: int = 0) -> None:
        self.network, self.store, self.pad = network, store, pad

    def fill(self, requests: Sequence[Request], progress: bool = False) -> None:
        """Make sure that the store holds what is requested.

        Raises:
            Unkept: where the network does not make it, or nothing has room for it.
        """
        wanted = self._missing(requests)
        if not wanted:
            return
        self._learn_shapes(sorted({item for group in wanted for item in group.items}))
        total = len({text for ranges in wanted.values() for text in ranges})
        with tqdm(total=total, desc="replay: prompts", disable=None if progress else True, leave=False) as bar:
            self._adopt(wanted)
            parts: dict[tuple[Group, ...], list[int]] = {}  # groups that a text lacks → texts
            for text in sorted({text for ranges in wanted.values() for text in ranges}):
                parts.setdefault(tuple(group for group in wanted if text in wanted[group]), []).append(text)
            bar.update(total - sum(len(texts) for texts in parts.values()))
            for lacking, texts in parts.items():
                self._fill_part({group: wanted[group] for group in lacking}, texts, bar)

    def _missing(self, requests: Sequence[Request]) -> dict[Group, Ranges]:
        found: dict[Group, Ranges] = {}
        nothing: dict[Group, Ranges] = {}  # what was asked for no token of
        for request in requests:
            lo, hi = request.wanted
            for group in self.store.grouped(request.items):
                lost = ~group.holds(request.texts, request.wanted)
                ranges = found.setdefault(group, {}) if lost.any() else {}
                for text, first, end in zip(*(x[lost].tolist() for x in (request.texts, lo, hi)), strict=True):
                    # with what is kept already: a text stands in one chunk of a group
                    old = ranges.get(text, self._kept(group, text))
                    ranges[text] = (first, end) if old is None else (min(first, old[0]), max(end, old[1]))
                none = request.texts[hi <= lo].tolist()
                nothing.setdefault(group, {}).update(dict.fromkeys(none, (0, 0)))
        # the texts of one request stay together, in one run and one file
        lacking = {text for ranges in found.values() for text in ranges}
        for group, ranges in found.items():
            for text in lacking & nothing[group].keys():
                if int(group.chunk[text]) < 0:
                    ranges.setdefault(text, (0, 0))
        return found

    @staticmethod
    def _kept(group: Group, text: int) -> tuple[int, int] | None:
        return (int(group.lo[text]), int(group.hi[text])) if int(group.chunk[text]) >= 0 else None

    def _learn_shapes(self, items: Sequence[str]) -> None:
        """Run one token to see what items are like."""
        unknown = [item for item in items if item not in self.store.shapes]
        if not unknown:
            return

        def note(item: str, tensor: Tensor) -> None:
            self.store.shapes[item] = (tensor.shape[2:], tensor.dtype)

        ids = torch.full((1, 1), self.pad, device=self.store.device)
        one = Tokens(ids, torch.ones_like(ids))
        try:
            lost = self.network.capture(one, unknown, note)
        except Exception as error:
            call(self.network.model, one)  # what fails plainly too is not replay's to answer for
            said = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise Unkept(f"the network does not take a plain cache of keys and values ({said[0]})") from error
        if lost:
            raise Unkept("not every layer keeps keys and values" if "keys" in min(lost) else f"no {min(lost)} was made")

    # --- parts: texts that lack the same groups ---

    def _fill_part(self, wanted: Mapping[Group, Ranges], texts: list[int], bar: Any) -> None:
        folder = self.store.folder
        for some in self._shards(wanted, sorted(texts, key=lambda text: int(self.store.texts.lengths[text]))):
            if folder is None or len(some) < WORTH:
                self._compute(wanted, some, False, bar)
                continue
            with folder.locked():  # another process may have computed the same meanwhile
                lacking = {group: {text: wanted[group][text] for text in some} for group in wanted}
                self._adopt(lacking)
                left = [text for text in some if any(text in ranges for ranges in lacking.values())]
                bar.update(len(some) - len(left))
                if left:
                    self._compute(wanted, left, len(left) >= WORTH, bar)

    def _shards(self, wanted: Mapping[Group, Ranges], texts: Sequence[int]) -> Iterator[list[int]]:
        """Part texts so that each part's activations make a file of at most ``SHARD_BYTES``."""
        each = [(self.store.token_bytes(group.items), ranges) for group, ranges in wanted.items()]
        some: list[int] = []
        size = 0
        for text in texts:
            more = sum(bytes_ * (ranges[text][1] - ranges[text][0]) for bytes_, ranges in each)
            if some and size + more > SHARD_BYTES:
                yield some
                some, size = [], 0
            some.append(text)
            size += more
        if some:
            yield some

    def _adopt(self, wanted: dict[Group, Ranges]) -> None:
        """Take what files hold, and strike it off."""
        folder = self.store.folder
        if folder is None:
            return
        folder.scan()
        for group, ranges in wanted.items():
            found: dict[int, tuple[Part, list[tuple[int, int]]]] = {}  # part → (text, row)
            for text, (lo, hi) in ranges.items():
                hit = folder.find(self.store.texts.digest(text), group.items, lo, hi)
                if hit is not None:
                    found.setdefault(id(hit[0]), (hit[0], []))[1].append((text, hit[1]))
            for part, hits in found.values():
                self._adopt_part(group, part, *(torch.tensor(x) for x in zip(*hits, strict=True)))
                for text, _ in hits:
                    del ranges[text]
                self.store.found.update(text for text, _ in hits)
        for group in [group for group in wanted if not wanted[group]]:
            del wanted[group]

    def _adopt_part(self, group: Group, part: Part, texts: Tensor, rows: Tensor) -> None:
        chunk = {item: part.tensors[item] for item in group.items}
        size = sum(x.numel() * x.element_size() for x in chunk.values())
        if not group.has(part):
            if self.store.device.type != "cpu" and self.store.fits(size):
                chunk = {item: x.to(self.store.device) for item, x in chunk.items()}
                self.store.memory += size
            else:
                self.store.mapped += size
        group.adopt(texts, rows, part, chunk)

    def _compute(self, wanted: Mapping[Group, Ranges], texts: list[int], write: bool, bar: Any) -> None:
        numbers, groups = torch.tensor(texts), list(wanted)
        ends = [tuple(torch.tensor([wanted[g][text][end] for text in texts]) for end in (0, 1)) for g in groups]
        offsets = [(hi - lo).cumsum(0) - (hi - lo) for lo, hi in ends]
        tokens = [int((hi - lo).sum()) for lo, hi in ends]
        size = sum(n * self.store.token_bytes(group.items) for n, group in zip(tokens, groups, strict=True))
        in_memory = self.store.fits(size)
        chunks = [self.store.allocate(g.items, n, in_memory) for n, g in zip(tokens, groups, strict=True)]
        items = [item for group in groups for item in group.items]
        of_item = {item: i for i, group in enumerate(groups) for item in group.items}
        for rows in self._batches(numbers):
            where = []
            for (lo, hi), offset in zip(ends, offsets, strict=True):
                lengths = (hi - lo)[rows]
                row = torch.repeat_interleave(torch.arange(len(rows)), lengths)
                within = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths)[row]
                column, to = lo[rows][row] + within, offset[rows][row] + within
                where.append((row.to(self.store.device), column.to(self.store.device), to))

            def take(item: str, tensor: Tensor, where: list[tuple[Tensor, Tensor, Tensor]] = where) -> None:
                row, column, to = where[of_item[item]]
                chunk = chunks[of_item[item]][item]
                chunk.index_copy_(0, to.to(chunk.device), tensor[row, column].to(chunk.device))

            if lost := self.network.capture(self._tokens(numbers[rows]), items, take):
                raise Unkept(f"the network made no {min(lost)}")
            bar.update(len(rows))
        parts = [Part(lo, hi, chunk) for (lo, hi), chunk in zip(ends, chunks, strict=True)]
        chunks = self._placed(texts, parts, size, in_memory, write)
        for group, (lo, hi), offset, chunk in zip(groups, ends, offsets, chunks, strict=True):
            group.put(numbers, (lo, hi), chunk, offset, merge=in_memory)
        self.store.computed.update(texts)

    def _placed(
        self, texts: Sequence[int], parts: Sequence[Part], size: int, in_memory: bool, write: bool
    ) -> list[dict[str, Tensor]]:
        """Put what was computed into a file where memory has no room for it, or a later run may want it."""
        if not (write or not in_memory):
            self.store.memory += size
            return [dict(part.tensors) for part in parts]
        shard = Shard([self.store.texts.digest(text) for text in texts], parts)
        try:
            kept = self.store.written(shard)
        except OSError as error:
            if not in_memory:
                raise Unkept(
                    f"its store would exceed {self.store.limit / 2**30:.1f} GiB of memory (replay_memory), and no file "
                    f"can be written: {error.strerror or error}"
                ) from error
            log.info("replay: what is kept is not written to a file for later runs: %s", error.strerror or error)
            kept = shard
        if in_memory:
            self.store.memory += size
            return [dict(part.tensors) for part in parts]
        self.store.mapped += size
        # a shard's parts come back in the order in which they were given
        return [dict(part.tensors) for part in kept.parts]

    def _batches(self, numbers: Tensor) -> Iterator[Tensor]:
        """Part texts, which come in the order of their lengths, into batches of about equal numbers of tokens."""
        most = BATCH_TOKENS.get(self.store.device.type, BATCH_TOKENS["cpu"])
        until = self.store.texts.lengths[numbers].cumsum(0)
        count = -(-int(until[-1]) // most)
        # the batch in which each text ends; a batch of a few tokens would cost as much as a full one
        of = ((until - 1) * count).div(int(until[-1]), rounding_mode="floor")
        start = 0
        for size in torch.bincount(of).tolist():
            if size:
                yield torch.arange(start, start + size)
            start += size

    def _tokens(self, numbers: Tensor) -> Tokens:
        rows = [self.store.texts.ids(int(number)) for number in numbers]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad)
        mask = torch.arange(ids.shape[1]) < self.store.texts.lengths[numbers][:, None]
        return Tokens(ids.to(self.store.device), mask.long().to(self.store.device))
