"""The step: the layers above the sites, at the tokens from the leftmost site on, by the network's own code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from iitkit.batch import IGNORED, Runnable, Tokens
from iitkit.interventions import Intervention
from iitkit.models.editing import Visit, visiting
from iitkit.models.location import Location
from iitkit.models.replay.capturing import keys, values
from iitkit.models.replay.filling import Request, Unkept
from iitkit.models.replay.texts import Compact, compact
from iitkit.models.runs import Selection, call, editing, head_at, select

if TYPE_CHECKING:
    from iitkit.models.replay.runner import Replay


@dataclass(frozen=True)
class Rows:
    """The rows of a base as they are run: what is kept of the earlier tokens, then the tokens that are run.

    Args:
        texts: number of each row's prompt, [B].
        lengths: number of its tokens, [B].
        before: number of tokens whose keys and values come from the store, [B].
    """

    texts: Tensor
    lengths: Tensor
    before: Tensor

    def repeated(self, times: int) -> Rows:
        """Return every row ``times`` times, copies side by side."""
        return Rows(*(x.repeat_interleave(times, 0) for x in (self.texts, self.lengths, self.before)))


class ReplayPrepared:
    """See :class:`~iitkit.models.runs.Prepared`.

    Args:
        replay: the runner, whose store holds what the batch needs.
        batch: the batch.
        base: its base without padding.
        rows: its rows as they are run.
        features: the source activations of each placement, [M, (heads,) width].
    """

    def __init__(self, replay: Replay, batch: Runnable, base: Compact, rows: Rows, features: list[Tensor]) -> None:
        self.replay, self.batch, self.base, self.rows, self.features = replay, batch, base, rows, features
        self.store, self.generation = replay.store, replay.store.generation
        device = batch.base.ids.device
        shift = (base.starts + rows.before).to(device)
        self.selections = [
            Selection(s.rows, s.columns - shift[s.rows], s.source_columns, s.source_of) for s in select(batch)
        ]

    @cached_property
    def _alone(self) -> Run:
        return self._made(self.batch.labels[:, :0], 1)

    def logits(self, interventions: Sequence[Intervention] | None, continuation: Tensor, copies: int = 1) -> Tensor:
        """See :meth:`~iitkit.models.runs.Prepared.logits`."""
        placed = list(zip(self.replay.locations, interventions or (), strict=False))
        if any(edit.needs_input and self.replay.skips(location) for location, edit in placed):
            return self.replay.plain.prepare(self.batch).logits(interventions, continuation, copies)
        store = self.replay.store
        if store is not self.store or store.generation != self.generation:  # its texts have other numbers now
            return self.replay.prepare(self.batch).logits(interventions, continuation, copies)
        try:
            run = self._alone if continuation.shape[1] == 0 and copies == 1 else self._made(continuation, copies)
        except Unkept as unkept:
            self.replay.less(str(unkept))
            return self.replay.plain.prepare(self.batch).logits(interventions, continuation, copies)
        visits: list[tuple[Location, Visit]] = []
        if interventions is not None:
            together = zip(self.replay.locations, interventions, self.selections, self.features, strict=True)
            for location, edit, chosen, given in together:
                if copies > 1:
                    chosen, entries = chosen.repeated(copies)
                    given = given[entries]
                visits.append((location, editing(location, chosen, edit, given)))
        cache, replay = run.cache(), self.replay
        with (
            passing([(skipped, run.hidden[item], replay.outputs[item]) for skipped, item in replay.passes]),
            visiting(visits),
            head_at(self.replay.model, run.columns),
        ):
            logits: Tensor = call(
                self.replay.model,
                run.tokens,
                position_ids=run.position_ids,
                past_key_values=cache,
                use_cache=cache is not None,
            ).logits
        return logits

    def keep(self) -> None:
        """Keep what the run with the batch's labels will need."""
        try:
            self._made(self.batch.labels[:, :-1], 1)
        except Unkept as unkept:
            self.replay.less(str(unkept))

    def _made(self, continuation: Tensor, copies: int) -> Run:
        # what is kept, or taken for a batch that is measured and trained on, must serve outside inference mode too
        with torch.inference_mode(False), torch.no_grad():
            return self._run(continuation, copies)

    def _run(self, continuation: Tensor, copies: int) -> Run:
        replay, device = self.replay, self.batch.base.ids.device
        store = replay.store
        rows = self.rows if copies == 1 else self.rows.repeated(copies)
        base = self.batch.base if copies == 1 else self.batch.base.repeated(copies)
        whole = compact(base.extended(continuation))
        more = (continuation != IGNORED).sum(1).cpu()
        texts = store.texts.numbers(whole) if continuation.shape[1] and replay.passes else rows.texts
        before, total = rows.before, rows.lengths + more
        width = int((total - before).max())
        steps = before[:, None] + torch.arange(width)
        # the label's own tokens are kept as the end of the text with them; a network that looks ahead sees them from
        # the start
        whole_text = replay.mode == "layers"
        hidden: dict[str, Tensor] = {}
        for _, item in replay.passes:
            if continuation.shape[1]:
                since = torch.zeros_like(total) if whole_text else rows.lengths
                replay.filler.fill([Request((item,), texts, (since, total))])
            hidden |= store.take([item], texts if whole_text else rows.texts, before, width)
            if continuation.shape[1] and not whole_text:
                behind = (steps >= rows.lengths[:, None]).to(device)
                ends = store.take([item], texts, before, width)[item]
                hidden[item] = ends.where(behind[..., None], hidden[item])
        past, length = None, int(before.max())
        if length:
            items = replay.past_items
            past = store.take(items, rows.texts, before - length, length) if items else {}
        index = torch.arange(length + width)
        mask = (index >= (length - before)[:, None]) & (index < (length - before + total)[:, None])
        at = (rows.lengths - before - 1)[:, None] + torch.arange(continuation.shape[1] + 1)
        ids = whole.ids.gather(1, steps.clamp(max=whole.ids.shape[1] - 1))
        return Run(
            replay,
            Tokens(ids.to(device), mask.long().to(device)),
            torch.minimum(steps, total[:, None] - 1).to(device),
            hidden,
            past,
            length,
            at.clamp(max=width - 1).to(device),
        )


@dataclass(frozen=True)
class Run:
    """What one run of the layers above is given.

    Args:
        replay: the runner.
        tokens: the tokens that are run [B, S], and the mask of what stands before them too [B, P + S].
        position_ids: index of each token in its text, [B, S].
        hidden: what the skipped blocks pass on, [B, S, width], for each of the runner's ``passes``.
        past: keys and values of the earlier tokens, item → [B, P, heads, size]; None where there are none.
        length: P.
        columns: where the logits are wanted, [B, T].
    """

    replay: Replay
    tokens: Tokens
    position_ids: Tensor
    hidden: dict[str, Tensor]
    past: dict[str, Tensor] | None
    length: int
    columns: Tensor

    def cache(self) -> DynamicCache | None:
        """A cache of the earlier tokens: their number for skipped layers (the first sizes the mask), then the rest."""
        if self.past is None:
            return None
        # without the model's config: the cache of a sliding window would drop what it cannot know to be needed
        cache = DynamicCache()
        like = next(iter((*self.past.values(), *self.hidden.values())))
        stub = like.new_zeros(1, 1, 1, 1).expand(len(self.tokens), 1, self.length, 1)
        for i in range(len(self.replay.blocks)):
            layer = DynamicLayer()  # type: ignore[no-untyped-call]
            above = i >= self.replay.first
            layer.keys = self.past[keys(i)].transpose(1, 2) if above else stub
            layer.values = self.past[values(i)].transpose(1, 2) if above else stub
            layer.is_initialized, layer.dtype, layer.device = True, layer.keys.dtype, layer.keys.device
            cache.layers.append(layer)
        return cache


@contextmanager
def passing(passes: Sequence[tuple[Sequence[nn.Module], Tensor, int | None]]) -> Iterator[None]:
    """Let blocks pass on what is given instead of computing it.

    Args:
        passes: the blocks, what they pass on [B, S, width], and the length of the tuple that they return, None for a
            bare tensor.
    """
    with ExitStack() as stack:
        for skipped, hidden, outputs in passes:
            given = hidden if outputs is None else (hidden, *[None] * (outputs - 1))

            def passed(*args: object, given: object = given, **kwargs: object) -> object:
                return given

            for block in skipped:
                stack.callback(_restore, block, block.__dict__.get("forward"))
                block.forward = passed
        yield


def _restore(block: nn.Module, forward: object) -> None:
    """Give a block its forward back; accelerate wraps a block's forward in the instance itself."""
    if forward is None:
        block.__dict__.pop("forward", None)
    else:
        block.__dict__["forward"] = forward
