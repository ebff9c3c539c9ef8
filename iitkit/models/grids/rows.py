"""What is run: rows of tokens, perhaps with embeddings of their own, and where their logits are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iitkit.batch import Tokens
from iitkit.errors import IITKitError


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a run.

    Args:
        tokens: ragged prompts, padded on either side; the real tokens of a row stand side by side.
        embeddings: what the token embedding returns in place of its own output, [B, S, width] (noised embeddings, of
            causal tracing); None for its own. What stands at padding is not looked at.
        read: columns of ``tokens`` whose logits are wanted, [B] or [B, T]; each row's last token unless said.
    """

    tokens: Tokens
    embeddings: Tensor | None = None
    read: Tensor | None = None

    def __post_init__(self) -> None:
        b, s = self.tokens.ids.shape
        real = self.tokens.mask.bool()
        if not bool(real.any(1).all()):
            raise IITKitError(f"row {int((~real.any(1)).nonzero()[0])} has no token: leave it out")
        if bool((real.sum(1) != self.stops - self.starts).any()):
            raise IITKitError("the tokens of a row have padding between them: pad on the left or on the right")
        if self.embeddings is not None and self.embeddings.shape[:2] != (b, s):
            raise IITKitError(
                f"embeddings {tuple(self.embeddings.shape)}: expected one vector for each of {b} × {s} tokens"
            )
        read = self.read
        if read is None:
            return
        if read.is_floating_point() or read.dim() not in (1, 2) or read.shape[0] != b:
            raise IITKitError(f"read {tuple(read.shape)} ({read.dtype}): expected columns, [{b}] or [{b}, T]")
        inside = (read >= self.starts.view(-1, *[1] * (read.dim() - 1))) & (
            read < self.stops.view(-1, *[1] * (read.dim() - 1))
        )
        if not bool(inside.all()):
            row = int((~inside).nonzero()[0, 0])
            raise IITKitError(f"read column {read[row].tolist()} of row {row} is padding or outside the row")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def starts(self) -> Tensor:
        """Column of each row's first token, [B]."""
        return self.tokens.mask.long().argmax(1)

    @property
    def stops(self) -> Tensor:
        """Column behind each row's last token, [B]."""
        return self.tokens.last + 1

    @property
    def reading(self) -> Tensor:
        """Columns whose logits are wanted, [B, T]."""
        read = self.tokens.last if self.read is None else self.read
        return read[:, None] if read.dim() == 1 else read

    @property
    def alone(self) -> bool:
        """Whether one column of each row is read, so that logits have no axis of their own for it."""
        return self.read is None or self.read.dim() == 1

    def to(self, device: torch.device) -> Rows:
        """Return the rows on a device."""
        if self.tokens.ids.device == device:
            return self
        given, read = (None if x is None else x.to(device) for x in (self.embeddings, self.read))
        return Rows(self.tokens.to(device), given, read)

    def take(self, rows: Tensor) -> Rows:
        """Return some of the rows, by index."""
        tokens = Tokens(self.tokens.ids[rows], self.tokens.mask[rows])
        given = None if self.embeddings is None else self.embeddings[rows]
        return Rows(tokens, given, None if self.read is None else self.read[rows])

    def columns(self, given: Tensor | int | Sequence[int]) -> Tensor:
        """Return columns [B, n] from what a patch names: an integer, or integers [n] or [B, n]; −1 for none.

        Raises:
            IITKitError: another shape, or a column that is no token of its row.
        """
        said = f"expected integers, [n] or [{len(self)}, n]"
        try:
            found = torch.as_tensor(given, device=self.tokens.ids.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise IITKitError(f"columns {given!r}: {said}") from error
        if found.is_floating_point() or found.dtype == torch.bool or found.dim() > 2:
            raise IITKitError(f"columns {tuple(found.shape)} ({found.dtype}): {said}")
        found = found.long()
        if found.dim() < 2:
            found = found.reshape(1, -1).expand(len(self), -1)
        if found.shape[0] != len(self):
            raise IITKitError(f"columns {tuple(found.shape)}: expected [n] or [{len(self)}, n]")
        wrong = ((found < self.starts[:, None]) | (found >= self.stops[:, None])) & (found != -1)
        if bool(wrong.any()):
            row, k = wrong.nonzero()[0].tolist()
            start, stop = int(self.starts[row]), int(self.stops[row])
            raise IITKitError(
                f"column {int(found[row, k])} is no token of row {row}: its tokens are columns {start} to {stop - 1}"
            )
        return found
