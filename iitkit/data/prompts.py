"""A split's tokenised prompts, as columns; and inputs that are no text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from iitkit.batch import Tokens, Values
from iitkit.causal.variables import Codes
from iitkit.data.ragged import Integers, Padding, Ragged
from iitkit.errors import IITKitError
from iitkit.positions import Position, Span, listed, resolve, span_name


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Args:
        text: what the network reads, as text.
        ids: its tokens; fewer than the text's where some were cut.
        spans: slot name → first token and one behind the last.
    """

    text: str
    ids: list[int]
    spans: dict[str, Span]


class Texts(Protocol):
    """Texts that need not lie in memory one by one."""

    def __getitem__(self, row: int) -> str:
        """Return a text."""

    def taken(self, rows: Codes) -> Texts:
        """Return the given texts."""


class Inputs(Protocol):
    """What a pool's prompts are to the network: :class:`Prompts` or :class:`Arrays`."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, row: int) -> Prompt:
        """Return one, for messages and reports."""

    def taken(self, rows: Codes) -> Inputs:
        """Return the given rows."""

    def batch(self, rows: Sequence[int], first: int, pad_id: int, side: Padding) -> Tokens | Values:
        """Return rows as a network takes them, numbered from ``first``."""

    def find(self, position: Position, where: str) -> Ragged:
        """Return the places of a position in each prompt, without padding."""


class Prompts:
    """Tokenised prompts.

    Args:
        ids: the tokens, N rows.
        slots: names of the spans.
        spans: first token and one behind the last of each slot, [N, slots, 2]; −1 where a prompt lacks the slot.
        texts: the texts that were tokenised.
    """

    def __init__(self, ids: Ragged, slots: Sequence[str], spans: Integers, texts: Texts) -> None:
        self.ids, self.slots, self.spans, self.texts = ids, list(slots), spans, texts

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Prompt:
        bounds = self.spans[row].tolist()
        spans = {slot: (lo, hi) for slot, (lo, hi) in zip(self.slots, bounds, strict=True) if lo >= 0}
        return Prompt(self.texts[row], self.ids[row], spans)

    def taken(self, rows: Codes) -> Prompts:
        """See :class:`Inputs`."""
        return Prompts(self.ids.taken(rows), self.slots, self.spans[rows], self.texts.taken(rows))

    def batch(self, rows: Sequence[int], first: int, pad_id: int, side: Padding) -> Tokens:
        """See :class:`Inputs`."""
        ids, real = self.ids.padded(rows, pad_id, side)
        numbers = torch.tensor(rows, dtype=torch.long) + first
        return Tokens(torch.from_numpy(ids), torch.from_numpy(real).long(), numbers)

    def find(self, position: Position, where: str) -> Ragged:
        """See :class:`Inputs`.

        Raises:
            IITKitError: a name that a prompt has no span for, an index outside a prompt, a token named twice.
        """
        items = listed(position)
        parts = [self._ranges(item) for item in items]
        wrong = np.zeros(len(self), dtype=bool)
        for lo, hi in parts:
            wrong |= (lo < 0).any(1) | (hi > self.ids.lengths[:, None]).any(1)
        lo, hi = (np.concatenate(part, 1).astype(np.int64) for part in zip(*parts, strict=True))
        wrong |= (hi - lo).clip(min=0).sum(1) == 0
        for i in range(lo.shape[1]):
            for j in range(i):  # two ranges that share a token
                wrong |= np.maximum(lo[:, i], lo[:, j]) < np.minimum(hi[:, i], hi[:, j])
        for row in wrong.nonzero()[0].tolist():
            prompt = self[row]
            try:
                resolve(position, len(prompt.ids), prompt.spans)
            except IITKitError as error:
                raise IITKitError(f"{where}: {error}, in {prompt.text!r}") from error
        return Ragged.between(lo, hi)

    def _ranges(self, item: int | str) -> tuple[Codes, Codes]:
        """First token and one behind the last of a position's ranges, [N, R] each; a negative one is wrong."""
        n = self.ids.lengths[:, None]
        if isinstance(item, int):
            at = np.full_like(n, item) if item >= 0 else n + item
            return at, at + 1
        if item == "last":
            return n - 1, n
        if item == "all":
            return np.zeros_like(n), n
        name = span_name(item)
        if name is None:
            first, last = (int(number) for number in item[1:].split("+l"))
            middle = np.minimum(first, n)  # a prompt shorter than first + last: each token once
            return np.hstack([np.zeros_like(n), np.maximum(middle, n - last)]), np.hstack([middle, n])
        if name not in self.slots:
            return np.full_like(n, -1), np.zeros_like(n)
        lo, hi = self.spans[:, self.slots.index(name), :, None].astype(np.int64).swapaxes(0, 1)
        part = item.rpartition(".")[2] if item != name else "last"
        return {"first": (lo, lo + 1), "last": (hi - 1, hi), "all": (lo, hi)}[part]


class _Spelled:
    """The texts of symbols, spelled out when they are asked for."""

    def __init__(self, ids: Integers, names: Sequence[object] | None) -> None:
        self.ids, self.names = ids, names

    def __getitem__(self, row: int) -> str:
        found = self.ids[row].tolist()
        return " ".join(str(i if self.names is None else self.names[i]) for i in found)

    def taken(self, rows: Codes) -> _Spelled:
        """See :class:`Texts`."""
        return _Spelled(self.ids[rows], self.names)


def symbols(ids: Integers, spans: Mapping[str, Span | Integers], names: Sequence[object] | None = None) -> Prompts:
    """Return sequences of integers as prompts: no tokenizer is needed.

    Args:
        ids: [N, S].
        spans: slot name → its first place and one behind the last; or these of every row, [N, 2].
        names: what each integer stands for, for messages.
    """
    n, width = ids.shape
    rows = [np.broadcast_to(np.asarray(span, dtype=np.int32), (n, 2)) for span in spans.values()]
    bounds = np.stack(rows, 1) if rows else np.zeros((n, 0, 2), dtype=np.int32)
    ragged = Ragged(ids.astype(np.int32).ravel(), np.arange(n + 1, dtype=np.int64) * width)
    return Prompts(ragged, list(spans), bounds, _Spelled(ids, names))


class Arrays:
    """Vectors or images: each is one place, column 0.

    Args:
        inputs: [N, …].
    """

    def __init__(self, inputs: npt.NDArray[Any]) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> Prompt:
        return Prompt(np.array2string(self.inputs[row], threshold=8, precision=3, separator=", "), [], {})

    def taken(self, rows: Codes) -> Arrays:
        """See :class:`Inputs`."""
        return Arrays(self.inputs[rows])

    def batch(self, rows: Sequence[int], first: int, pad_id: int, side: Padding) -> Values:
        """See :class:`Inputs`; there is nothing to pad."""
        chosen = np.asarray(rows, dtype=np.int64)
        return Values(torch.from_numpy(self.inputs[chosen]), torch.from_numpy(chosen) + first)

    def find(self, position: Position, where: str) -> Ragged:
        """See :class:`Inputs`.

        Raises:
            IITKitError: any position but the only one.
        """
        try:
            places = resolve(position, 1)
        except IITKitError as error:
            raise IITKitError(
                f"{where}: position {position!r}: an input of numbers has one place, which is called 'last' or 0"
            ) from error
        return Ragged.of([places] * len(self))
