"""Replay: what a frozen base computes alike in every step is computed once.

For a site in layer L at position p of a causal network, everything below L and everything left of p is the same
whatever is swapped in. For each prompt the store keeps the hidden states that enter the first layer to be run, at the
positions from the leftmost site on, the keys and values of the positions before it, and the activations at the sites.
A step runs the layers above L at the positions ≥ p, by the network's own code.

This is the in-memory store; a batch that does not fit it is run plainly.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from iitkit.batch import Batch, Tokens
from iitkit.errors import IITKitError
from iitkit.interventions import Intervention, Vanilla
from iitkit.models.anatomy import Location, blocks
from iitkit.models.editing import Visit, stopping, visiting
from iitkit.models.runs import PlainRunner, Prepared, Runner, Selection, call, editing, head_at, select

log = logging.getLogger("iitkit")

MEMORY_SHARE = 0.25
"""Share of the free memory that the store may take."""

TRIALS = 8
"""Batches after which the comparison with the plain run ends even if none of them could tell."""


def make_runner(model: nn.Module, locations: Sequence[Location], replay: str) -> Runner:
    """Return a runner with replay where it may hold and is wanted, else a plain one.

    Args:
        model: the frozen network.
        locations: the sites.
        replay: ``auto`` or ``off``.
    """
    plain = PlainRunner(model, locations)
    if replay == "off":
        return plain
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        reason = "an encoder-decoder"
    elif any(location.block is None for location in locations):
        reason = "a site outside the blocks"
    elif away := [location.label for location in locations if not location.replays]:
        reason = f"{away[0]} depends on how many tokens stand before it"
    elif any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        reason = "gradient checkpointing"
    else:
        return Replay(plain)
    log.info("replay is off: %s", reason)
    return plain


@dataclass
class _Store:
    """Activations of prompts, one slot each; a prefix stands at the right end of its columns, the rest at the left."""

    slot_of: Tensor = field(default_factory=lambda: torch.full((0,), -1))  # prompt number → slot
    used: int = 0
    lengths: Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.long))  # prefix, suffix
    past: Tensor | None = None  # [slots, layers, 2, heads, prefix, head size]
    hidden: Tensor | None = None  # [slots, suffix, width]
    features: list[Tensor] = field(default_factory=list)  # of each placement, [slots, n, width]

    def missing(self, prompts: Tensor) -> Tensor:
        """Return which prompts are not in the store."""
        highest = int(prompts.max())
        if highest >= len(self.slot_of):
            self.slot_of = F.pad(self.slot_of, (0, highest + 1 - len(self.slot_of)), value=-1)
        return self.slot_of[prompts] < 0

    def bytes(self) -> int:
        """Return the memory taken."""
        tensors = [x for x in (self.past, self.hidden, *self.features) if x is not None]
        return sum(x.numel() * x.element_size() for x in tensors)

    def add(self, prompts: Tensor, lengths: Tensor, past: Tensor, hidden: Tensor, features: list[Tensor]) -> None:
        """Put prompts into new slots."""
        start, self.used = self.used, self.used + len(prompts)
        self.slot_of[prompts] = torch.arange(start, self.used)
        self.lengths = torch.cat([self.lengths[:start], lengths])
        self.past = _put(self.past, past, start, grows=4, at_left=True)
        self.hidden = _put(self.hidden, hidden, start, grows=1)
        old = self.features or [None] * len(features)  # type: ignore[list-item]
        self.features = [_put(a, b, start, grows=1) for a, b in zip(old, features, strict=True)]


def _put(kept: Tensor | None, new: Tensor, start: int, grows: int, at_left: bool = False) -> Tensor:
    """Write ``new`` at slots from ``start`` on; slots double and the ragged dimension ``grows`` when they must."""
    if kept is None:
        return new
    width = max(kept.shape[grows], new.shape[grows])
    slots = kept.shape[0] if start + len(new) <= kept.shape[0] else max(2 * kept.shape[0], start + len(new))
    if width > kept.shape[grows] or slots > kept.shape[0]:
        shape = list(kept.shape)
        shape[0], shape[grows] = slots, width
        larger = kept.new_zeros(shape)
        larger[:start].narrow(grows, width - kept.shape[grows] if at_left else 0, kept.shape[grows]).copy_(kept[:start])
        kept = larger
    place = kept[start : start + len(new)]
    place.narrow(grows, width - new.shape[grows] if at_left else 0, new.shape[grows]).copy_(new)
    return kept


class Replay:
    """A runner that keeps what never changes; see the module's text.

    Args:
        plain: runs what the store cannot hold, and is the reference of the check on the first batch.
    """

    def __init__(self, plain: PlainRunner) -> None:
        self.plain, self.model, self.locations = plain, plain.model, plain.locations
        self.blocks = blocks(self.model)
        # first layer to be run: behind a site at a block's output, else the site's own
        self.first = min(location.block + int(location.after) for location in self.locations)  # type: ignore[operator]
        self.store = _Store()
        self.outputs: int | None = None  # length of the tuple that blocks return; None for a bare tensor
        self.limit: float | None = None
        self.reason: str | None = None
        self.checked, self.trials = False, 0

    def prepare(self, batch: Batch) -> Prepared:
        """Find (or compute and keep) what the batch needs; falls back to the plain run where replay does not hold."""
        numbered = all(tokens.prompts is not None for tokens in (batch.base, *batch.sources))
        # of a second source the batch does not say where the placements of the first would be in it
        if self.reason is None and numbered and len(batch.sources) == 1 and batch.candidates.shape[2] == 1:
            if self.store.hidden is not None and self.store.hidden.device != batch.base.ids.device:
                self.store = _Store()  # the network has moved
            with torch.inference_mode(False), torch.no_grad():  # what is kept must serve training steps too
                self._ensure(batch)
            if self.reason is None:
                prepared = ReplayPrepared.of(self, batch)
                if self.checked or self._holds(batch, prepared):
                    return prepared
        return self.plain.prepare(batch)

    def _off(self, reason: str) -> None:
        self.reason, self.store = reason, _Store()
        log.warning("replay is off: %s", reason)

    @torch.no_grad()
    def _holds(self, batch: Batch, prepared: ReplayPrepared) -> bool:
        """Compare with the plain run, unedited and with the sources' activations swapped in, on the first batches.

        The unedited run alone would not tell attention that looks ahead: what is kept of the earlier tokens then holds
        for the base, and not for an edited run. Nor would a swap that changes nothing, or sites with no token before.
        """
        none = batch.labels[:, :0]
        swaps = [Vanilla() for _ in self.locations]
        reference = self.plain.prepare(batch)
        plain, swapped = reference.logits(None, none), reference.logits(swaps, none)
        largest = plain.abs().max()
        off = torch.stack([prepared.logits(None, none) - plain, prepared.logits(swaps, none) - swapped]).abs().max()
        tolerance = 1e-4 if plain.dtype in (torch.float32, torch.float64) else 5e-2
        if not off <= tolerance * largest:
            self._off(f"logits differ from the plain run by {float(off / largest):.1g} of the largest")
            return False
        self.trials += 1
        told = bool((swapped - plain).abs().max() > tolerance * largest) and prepared.past.shape[4] > 0
        self.checked = told or self.trials == TRIALS
        return True

    def _ensure(self, batch: Batch) -> None:
        for tokens, positions in ((batch.base, batch.base_positions), *((s, None) for s in batch.sources)):
            assert tokens.prompts is not None
            if positions is None:
                positions = batch.source_positions
            numbers = tokens.prompts.cpu()
            missing = self.store.missing(numbers)
            if missing.any():
                firsts: dict[int, int] = {}
                for row in missing.nonzero()[:, 0].tolist():
                    firsts.setdefault(int(numbers[row]), row)
                rows = torch.tensor(list(firsts.values()), device=tokens.ids.device)
                part = Tokens(tokens.ids[rows], tokens.mask[rows], numbers[rows.cpu()])
                self._fill(part, positions[rows], batch.position_mask[rows])
            if self.reason is not None:
                return

    def _fill(self, tokens: Tokens, positions: Tensor, there: Tensor) -> None:
        cache = DynamicCache()
        n = torch.arange(len(tokens), device=tokens.ids.device)[:, None]
        entering: list[Tensor] = []
        features: dict[int, Tensor] = {}
        visits: list[tuple[Location, Visit]] = []
        if self.first > 0:
            below = self.blocks[self.first - 1]
            visits.append(
                (Location(below, "output", None, True, None, "entry"), lambda hidden, inputs: entering.append(hidden))
            )
        for p, location in enumerate(self.locations):
            visits.append((location, _reading(features, p, n, positions[:, p])))
        seen = below.register_forward_hook(self._note_type) if self.first > 0 else None
        try:
            with visiting(visits), head_at(self.model, None), stopping():
                call(self.model, tokens, use_cache=True, past_key_values=cache)
        finally:
            if seen is not None:
                seen.remove()
        starts = tokens.last + 1 - tokens.mask.sum(1)
        before = positions.masked_fill(~there, tokens.ids.shape[1]).flatten(1).amin(1) - starts  # length of the prefix
        after = tokens.mask.sum(1) - before
        columns = self.columns(starts + before, int(before.max()), left=True)
        past = [
            torch.stack([layer.keys[n, :, columns], layer.values[n, :, columns]], 1).transpose(2, 3)
            for layer in cache.layers[self.first :]
            if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
        ]
        if len(past) != len(self.blocks) - self.first:
            self._off("not every layer keeps keys and values")
            return
        ahead = self.columns(starts + before, int(after.max()), left=False).clamp(max=tokens.ids.shape[1] - 1)
        reference = next(iter(features.values()))
        hidden = entering[0][n, ahead] if entering else reference.new_zeros(len(tokens), 1, 1)
        kept = torch.stack(past, 1) if past else hidden.new_zeros(len(tokens), 0, 2, 1, int(before.max()), 1)
        lengths = torch.stack([before, after], 1).cpu()
        if self.limit is None:
            self.limit = MEMORY_SHARE * _free_bytes(hidden.device)
        if self.store.bytes() + kept.numel() * kept.element_size() > self.limit:
            self._off(f"its store would exceed {self.limit / 2**30:.1f} GiB, a quarter of the free memory")
            return
        assert tokens.prompts is not None
        self.store.add(tokens.prompts, lengths, kept, hidden, [features[p] for p in range(len(self.locations))])

    def _note_type(self, module: nn.Module, args: object, output: object) -> None:
        self.outputs = len(output) if isinstance(output, tuple) else None

    @staticmethod
    def columns(middle: Tensor, width: int, left: bool) -> Tensor:
        """Return the ``width`` columns left of, or from ``middle`` [B] on, [B, width], none below 0."""
        steps = torch.arange(width, device=middle.device)
        return (middle[:, None] + (steps - width if left else steps)).clamp(min=0)

    @contextmanager
    def entering(self, hidden: Tensor) -> Iterator[None]:
        """Let the blocks below the first one to be run pass ``hidden`` on instead of computing it."""
        given = hidden if self.outputs is None else (hidden, *[None] * (self.outputs - 1))

        def passed(*args: object, **kwargs: object) -> object:
            return given

        skipped = list(self.blocks[: self.first])
        had = [block.__dict__.get("forward") for block in skipped]  # accelerate wraps a block's forward like this
        try:
            for block in skipped:
                block.forward = passed
            yield
        finally:
            for block, forward in zip(skipped, had, strict=True):
                if forward is None:
                    block.__dict__.pop("forward", None)
                else:
                    block.forward = forward


def _reading(features: dict[int, Tensor], p: int, rows: Tensor, columns: Tensor) -> Visit:
    def visit(hidden: Tensor, inputs: Tensor | None) -> None:
        features[p] = hidden[rows, columns]

    return visit


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return float(2**33)


@dataclass(frozen=True)
class ReplayPrepared:
    """See :class:`~iitkit.models.runs.Prepared`; runs the layers above the site at the positions from the site on."""

    replay: Replay
    tokens: Tokens  # the suffix: layout prefix | suffix in its mask
    position_ids: Tensor
    past: Tensor
    hidden: Tensor
    last: Tensor
    selections: list[Selection]
    features: list[Tensor]

    @staticmethod
    def of(replay: Replay, batch: Batch) -> ReplayPrepared:
        """Gather a batch's activations from the store."""
        store, device = replay.store, batch.base.ids.device
        assert batch.base.prompts is not None
        assert store.past is not None
        assert store.hidden is not None
        slots = store.slot_of[batch.base.prompts.cpu()]
        before, after = (x.to(device) for x in store.lengths[slots].unbind(1))
        p, s = int(before.max()), int(after.max())
        starts = batch.base.last + 1 - batch.base.mask.sum(1)
        ahead = replay.columns(starts + before, s, left=False)
        ids = batch.base.ids.gather(1, ahead.clamp(max=batch.base.ids.shape[1] - 1))
        steps = torch.arange(p + s, device=device)
        mask = ((steps >= (p - before)[:, None]) & (steps < (p + after)[:, None])).to(batch.base.mask.dtype)
        kept = slots.to(store.past.device)
        sources = torch.stack(
            [store.slot_of[source.prompts.cpu()] for source in batch.sources if source.prompts is not None]
        )
        selections, features = [], []
        for i, chosen in enumerate(select(batch)):
            of_row = (batch.position_mask[:, i] & batch.active[:, i, None]).nonzero()[:, 1]
            columns = chosen.columns - (starts + before)[chosen.rows]
            selections.append(Selection(chosen.rows, columns, chosen.source_columns, chosen.source_of))
            source = sources[chosen.source_of.cpu(), chosen.rows.cpu()].to(store.features[i].device)
            features.append(store.features[i][source, of_row.to(source.device)])
        return ReplayPrepared(
            replay,
            Tokens(ids, mask),
            before[:, None] + torch.arange(s, device=device),
            store.past[kept][..., store.past.shape[4] - p :, :],
            store.hidden[kept][:, :s],
            after - 1,
            selections,
            features,
        )

    def logits(self, interventions: Sequence[Intervention] | None, continuation: Tensor, copies: int = 1) -> Tensor:
        """See :meth:`~iitkit.models.runs.Prepared.logits`; only what a single label token needs."""
        if continuation.shape[1] or copies != 1:
            raise IITKitError("replay holds no continuation of several tokens: run the batch plainly")
        replay = self.replay
        visits: list[tuple[Location, Visit]] = []
        if interventions is not None:
            together = zip(replay.locations, interventions, self.selections, self.features, strict=True)
            visits = [(location, editing(location, chosen, edit, given)) for location, edit, chosen, given in together]
        cache = self._cache()
        with (
            replay.entering(self.hidden),
            visiting(visits),
            head_at(replay.model, self.last[:, None]),
        ):
            run = call(
                replay.model,
                self.tokens,
                position_ids=self.position_ids,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        logits: Tensor = run.logits
        return logits

    def _cache(self) -> DynamicCache | None:
        """A cache of the prefix: stubs of its length for skipped layers (layer 0 sizes the mask), keys and values."""
        length = self.past.shape[4]
        if length == 0:
            return None
        cache = DynamicCache()
        stub = self.past.new_zeros(1, 1, 1, 1).expand(len(self.tokens), 1, length, 1)
        for i in range(len(self.replay.blocks)):
            layer = DynamicLayer()  # type: ignore[no-untyped-call]
            above = i - self.replay.first
            keys, values = self.past[:, above].unbind(1) if above >= 0 else (stub, stub)
            layer.keys, layer.values, layer.is_initialized = keys, values, True
            layer.dtype, layer.device = keys.dtype, keys.device
            cache.layers.append(layer)
        return cache
