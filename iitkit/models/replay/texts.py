"""Texts, known by their token ids: what replay keeps is kept of a text."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from iitkit.batch import Tokens


@dataclass(frozen=True)
class Compact:
    """Rows of tokens without what pads them on the left; on the CPU.

    Args:
        ids: token ids, [B, longest], 0 behind a row's last token.
        lengths: number of tokens, [B].
        starts: column in which each row began, [B].
    """

    ids: Tensor
    lengths: Tensor
    starts: Tensor


def compact(tokens: Tokens) -> Compact:
    """Move every row's tokens to the left."""
    ids, mask = tokens.ids.cpu(), tokens.mask.cpu()
    lengths = mask.long().sum(1)
    starts = (mask.long() * torch.arange(mask.shape[1])).argmax(1) + 1 - lengths
    steps = torch.arange(int(lengths.max()) if len(lengths) else 0)
    columns = (starts[:, None] + steps).clamp(0, max(ids.shape[1] - 1, 0))
    return Compact(ids.gather(1, columns).masked_fill(steps >= lengths[:, None], 0), lengths, starts)


class Texts:
    """Numbers texts in the order in which they come; the same token ids have the same number.

    A text is found by a 64-bit hash in a sorted table and then compared token by token, so that another text is never
    taken for it.
    """

    def __init__(self) -> None:
        self._factors = torch.zeros(0, dtype=torch.long)
        self._hashes = torch.zeros(0, dtype=torch.long)  # sorted
        self._numbers = torch.zeros(0, dtype=torch.long)  # of the hashes
        self._flat = torch.zeros(0, dtype=torch.long)
        self._used = 0
        self.starts = torch.zeros(0, dtype=torch.long)
        self.lengths = torch.zeros(0, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.lengths)

    def numbers(self, rows: Compact) -> Tensor:
        """Return each row's number, [B]; texts that are new get one."""
        hashes = self._hash(rows)
        found = self._find(rows, hashes)
        unknown = found < 0
        if unknown.any():
            self._add(rows, hashes, unknown)
            found = self._find(rows, hashes)
            assert bool((found >= 0).all()), "two texts of one batch have one 64-bit hash"
        return found

    def ids(self, number: int) -> Tensor:
        """Return a text's token ids."""
        start = int(self.starts[number])
        return self._flat[start : start + int(self.lengths[number])]

    def digest(self, number: int) -> bytes:
        """Return 16 bytes that stand for a text in files."""
        return hashlib.blake2b(self.ids(number).numpy().tobytes(), digest_size=16).digest()

    def _hash(self, rows: Compact) -> Tensor:
        width = rows.ids.shape[1]
        if width > len(self._factors):
            draw = torch.Generator().manual_seed(0)
            self._factors = torch.randint(-(2**62), 2**62, (2 * width,), generator=draw) * 2 + 1
        # wraps around; the length tells apart what ends in token 0
        terms = (rows.ids + 1) * self._factors[:width] * (torch.arange(width) < rows.lengths[:, None])
        return terms.sum(1) + rows.lengths

    def _find(self, rows: Compact, hashes: Tensor) -> Tensor:
        if not len(self._hashes):
            return torch.full_like(hashes, -1)
        at = torch.searchsorted(self._hashes, hashes).clamp(max=len(self._hashes) - 1)
        number = self._numbers[at]
        steps = torch.arange(rows.ids.shape[1])
        kept = self._flat[(self.starts[number][:, None] + steps).clamp(max=len(self._flat) - 1)]
        same = ((kept == rows.ids) | (steps >= rows.lengths[:, None])).all(1)
        same &= (self._hashes[at] == hashes) & (self.lengths[number] == rows.lengths)
        return number.where(same, -1)

    def _add(self, rows: Compact, hashes: Tensor, unknown: Tensor) -> None:
        firsts: dict[int, int] = {}
        for row in unknown.nonzero()[:, 0].tolist():
            firsts.setdefault(int(hashes[row]), row)
        new = torch.tensor(list(firsts.values()))
        lengths = rows.lengths[new]
        real = torch.arange(rows.ids.shape[1]) < lengths[:, None]
        flat = rows.ids[new][real]
        if self._used + len(flat) > len(self._flat):
            self._flat = F.pad(self._flat, (0, max(len(self._flat), len(flat))))
        self._flat[self._used : self._used + len(flat)] = flat
        numbers = torch.arange(len(self), len(self) + len(new))
        self.starts = torch.cat([self.starts, self._used + lengths.cumsum(0) - lengths])
        self.lengths = torch.cat([self.lengths, lengths])
        self._used += len(flat)
        # of two texts with one hash the newer one is found
        old = ~torch.isin(self._hashes, hashes[new])
        together = torch.cat([self._hashes[old], hashes[new]])
        self._hashes, order = together.sort()
        self._numbers = torch.cat([self._numbers[old], numbers])[order]
