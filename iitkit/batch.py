"""What passes between data, modules and analysis: token rows, and typed batches of pairs or of completions."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Generic, Self

import torch
from torch import Tensor
from typing_extensions import TypeVar

IGNORED = -100
"""Marks the empty places of ragged token ids, as in ``torch.nn.functional.cross_entropy``."""


class _Transferable:
    """Moves every tensor of a dataclass between devices."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return a copy whose tensors are on ``device``."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=non_blocking)
            if isinstance(value, _Transferable):
                return value.to(device, non_blocking)
            if isinstance(value, tuple):
                return tuple(move(item) for item in value)
            return value

        changes = {field.name: move(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        return replace(self, **changes)  # type: ignore[type-var]


@dataclass(frozen=True)
class Tokens(_Transferable):
    """Padded rows of tokens; the padding may stand on either side.

    Args:
        ids: token ids, [B, S].
        mask: 1 at real tokens, 0 at padding, [B, S].
        prompts: which prompt of the fixed pool each row is, [B]; the key under which replay keeps its activations.
    """

    ids: Tensor
    mask: Tensor
    prompts: Tensor | None = None

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def position_ids(self) -> Tensor:
        """Index of each token among its row's real tokens, [B, S] (padding counts as 0)."""
        return (self.mask.long().cumsum(1) - 1).clamp(min=0)

    @property
    def last(self) -> Tensor:
        """Column of each row's last real token, [B]."""
        columns = torch.arange(self.mask.shape[1], device=self.mask.device)
        return (self.mask.long() * columns).argmax(1)

    def extended(self, continuation: Tensor) -> Tokens:
        """Return the rows with ``continuation`` [B, T] (``IGNORED`` = none) after each row's last token."""
        if continuation.shape[1] == 0:
            return self
        real = continuation != IGNORED
        columns = self.last[:, None] + 1 + torch.arange(continuation.shape[1], device=continuation.device)
        empty = torch.zeros_like(continuation)
        ids = torch.cat([self.ids, empty], 1).scatter(1, columns, continuation.where(real, empty))
        mask = torch.cat([self.mask, empty.to(self.mask.dtype)], 1).scatter(1, columns, real.to(self.mask.dtype))
        return Tokens(ids, mask)

    def repeated(self, times: int) -> Tokens:
        """Return every row ``times`` times, copies side by side."""
        prompts = None if self.prompts is None else self.prompts.repeat_interleave(times, 0)
        return Tokens(self.ids.repeat_interleave(times, 0), self.mask.repeat_interleave(times, 0), prompts)


@dataclass(frozen=True)
class Values(_Transferable):
    """Rows of inputs that are no tokens: vectors or images.

    Args:
        inputs: what the network takes, [B, …].
        prompts: which row of the fixed pool each is, [B].
    """

    inputs: Tensor
    prompts: Tensor | None = None

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def repeated(self, times: int) -> Values:
        """Return every row ``times`` times, copies side by side."""
        prompts = None if self.prompts is None else self.prompts.repeat_interleave(times, 0)
        return Values(self.inputs.repeat_interleave(times, 0), prompts)


Rows = TypeVar("Rows", Tokens, Values, default=Tokens)
"""What a batch is made of: tokens, unless said."""


@dataclass(frozen=True)
class Runnable(_Transferable, Generic[Rows]):
    """What a runner is given: B rows, K sources, P placements, n positions, T label tokens.

    Args:
        base: the prompts that are run.
        sources: K sets of prompts that activations are taken from, each [B, S_k].
        active: which placements a row intervenes on, [B, P].
        source_of: which source a placement takes its activation from, [B, P].
        base_positions: columns of the sites in ``base`` (of an earlier stage: in the next source; behind a
            prompt's last token: in the label that follows it), [B, P, n].
        source_positions: columns of the sites in the placement's source, [B, P, n].
        position_mask: which of the n positions exist, [B, P, n].
        labels: label tokens, which follow the prompt, [B, T], ``IGNORED`` behind the last.
    """

    base: Rows
    sources: tuple[Rows, ...]
    active: Tensor
    source_of: Tensor
    base_positions: Tensor
    source_positions: Tensor
    position_mask: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.base)


@dataclass(frozen=True)
class Completions(Runnable[Tokens]):
    """Prompts and what the network should say behind them: its labels. There are no sources.

    Args:
        rows: index of the example in its split, [B].
        share: what the sum of the tokens' losses is multiplied by, such that an optimizer's step is the mean over the
            tokens of all batches that it accumulates; see :class:`iitkit.data.completions.CompletionDataModule`.
    """

    rows: Tensor
    share: float = 1.0


@dataclass(frozen=True)
class Batch(Runnable[Rows]):
    """Counterfactual pairs, tokenised: B rows, K sources, P placements, n positions, C candidates, T label tokens.

    The labels are the counterfactual labels. Several candidates may be forms of one answer (``" Paris"`` and
    ``" paris"``): then ``answer_of`` says which, and ``label`` and ``base_label`` number answers, not candidates.

    Args:
        candidates: answers that compete, [B, C, T], ``IGNORED`` behind the last token, all ``IGNORED`` for none.
        label: index of the counterfactual label among the answers, [B].
        base_label: index of the label without intervention among the answers, [B].
        flipped: whether the interchange changes the label, [B].
        variable: index of the variable that the row intervenes on, [B].
        rows: index of the pair in its split's epoch, [B].
        stage: of source 0 → source 1 → … → base, the stage of each placement, P numbers; empty for one stage.
        isolate_active: placements of another variable than the row's, to be isolated from it, [B, P], or None.
        isolate_labels: the label's tokens under that variable's interchange, [B, T], or None.
        answer_of: which answer each candidate is a form of, [B, C], −1 for no candidate; None where each candidate is
            an answer of its own.
    """

    candidates: Tensor
    label: Tensor
    base_label: Tensor
    flipped: Tensor
    variable: Tensor
    rows: Tensor
    stage: tuple[int, ...] = ()
    isolate_active: Tensor | None = None
    isolate_labels: Tensor | None = None
    answer_of: Tensor | None = None

    def winners(self, scores: Tensor) -> Tensor:
        """Return the answer whose best form scores best, [B], from the candidates' scores, [B, C]."""
        best = scores.argmax(1)
        return best if self.answer_of is None else self.answer_of.gather(1, best[:, None])[:, 0]
