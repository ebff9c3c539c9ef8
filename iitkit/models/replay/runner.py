"""The runner that keeps what never changes, and the choice of how much of it a network lets be kept."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iitkit.batch import Runnable, Tokens
from iitkit.errors import IITKitError
from iitkit.interventions import Vanilla, Zero
from iitkit.models.anatomy import Location, blocks
from iitkit.models.editing import Stopped, stopping
from iitkit.models.placing import site_info
from iitkit.models.replay.capturing import Network, entry, keys, reading, values
from iitkit.models.replay.filling import Filler, Request, Unkept
from iitkit.models.replay.prepared import ReplayPrepared, Rows
from iitkit.models.replay.store import Store
from iitkit.models.replay.stores import Keeping, Stores, precision
from iitkit.models.replay.texts import Compact, compact
from iitkit.models.runs import PlainRunner, Prepared, Runner, call

log = logging.getLogger("iitkit")

Mode = Literal["auto", "layers", "off"]

TRIALS = 8
"""Batches after which the comparison with the plain run ends even if none of them could tell."""


def make_runner(
    model: nn.Module,
    locations: Sequence[Location],
    replay: str = "auto",
    keeping: Keeping | None = None,
    reading_input: Sequence[bool] = (),
) -> Runner:
    """Return a runner with replay where it may hold and is wanted, else a plain one.

    Args:
        model: the frozen network.
        locations: the sites.
        replay: ``auto``, ``layers`` (only the layers below the sites are skipped, all tokens are run) or ``off``.
        keeping: how much memory to use, and where files are; unless said a share of the free memory, and files that
            are deleted in the end.
        reading_input: at which of the sites an intervention reads its module's input: the block is run then.

    Raises:
        IITKitError: an unknown ``replay``.
    """
    if replay not in ("auto", "layers", "off"):
        raise IITKitError(f"replay {replay!r}: expected 'auto', 'layers' or 'off'")
    plain = PlainRunner(model, locations)
    if replay == "off":
        return plain
    reason = why_plain(model, locations)
    if reason is None:
        mode: Literal["layers"] | None = "layers" if replay == "layers" else None
        return Replay(plain, Stores.of(model, keeping or Keeping()), mode, reading_input)
    log.info("replay is off: %s", reason)
    return plain


def why_plain(model: nn.Module, locations: Sequence[Location]) -> str | None:
    """Return why a network with these sites is run plainly; None where replay may hold."""
    if not locations:
        return "there are no sites"
    try:
        there = [block for stack in stacks_of(model) for block in stack]
    except IITKitError:
        return f"{type(model).__name__} has no list of blocks"
    for location in locations:
        if first_layer(location, there) is None:
            return f"{location.label} stands outside the blocks"
        if not location.replays and location.block is not None:
            return f"{location.label} depends on how many tokens stand before it"
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return "gradient checkpointing"
    if len({parameter.device for parameter in model.parameters()}) > 1:
        return "the network is spread over several devices"
    return None


def stacks_of(model: nn.Module) -> list[list[nn.Module]]:
    """Return the network's lists of blocks, in the order in which they run: an encoder's before its decoder's."""
    untyped: Any = model
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return [list(blocks(untyped.get_encoder())), list(blocks(untyped.get_decoder()))]
    return [list(blocks(model))]


def first_layer(location: Location, there: Sequence[nn.Module], whole: bool = False) -> int | None:
    """Return the first block that a site's edit can reach, their number for none; None where that is not known.

    ``whole`` counts the block that a site is the output of: its own input is wanted.
    """
    outside = {"embeddings": 0, "final_norm": len(there)}
    if location.block is None and location.label in outside:
        return outside[location.label]
    for i, block in enumerate(there):
        if any(module is location.module for module in block.modules()):
            return i + int(location.module is block and location.side == "output" and not whole)
    return None


def _passes(stacks: Sequence[Sequence[nn.Module]], first: int) -> list[tuple[list[nn.Module], str]]:
    """Return the blocks that are skipped, stack by stack, with the item that they pass on."""
    found, start = [], 0
    for stack in stacks:
        skipped = list(stack[: max(first - start, 0)])
        if skipped:
            found.append((skipped, entry(start + len(skipped))))
        start += len(stack)
    return found


class Replay:
    """A runner that keeps what never changes.

    It begins with the most that may be kept (``tokens``: layers below the sites, and keys and values left of them) and
    compares itself with the plain run on the first batches. What differs is filled anew, then tried with less
    (``layers``), then run plainly; the log says so.

    Args:
        plain: runs what the store cannot hold, and is the reference of the comparison.
        stores: what is kept of the network, by precision.
        mode: ``layers`` to keep only the layers below the sites; None for the most that holds.
        reading_input: at which of the sites an intervention reads its module's input; none unless said.
    """

    def __init__(
        self,
        plain: PlainRunner,
        stores: Stores,
        mode: Literal["layers"] | None = None,
        reading_input: Sequence[bool] = (),
    ) -> None:
        self.plain, self.model, self.locations = plain, plain.model, plain.locations
        stacks = stacks_of(self.model)
        self.blocks = [block for stack in stacks for block in stack]
        reads = reading_input or [False] * len(self.locations)
        together = zip(self.locations, reads, strict=True)
        firsts = [first_layer(location, self.blocks, whole) for location, whole in together]
        self.first = min(first for first in firsts if first is not None)
        self.passes = _passes(stacks, self.first)
        self.stores, self.wanted = stores, mode
        self.sites = [reading(location) for location in self.locations]
        self.longest = _steady(getattr(self.model, "config", None))
        self.network = Network(self.model, self.blocks, dict(zip(self.sites, self.locations, strict=True)))
        self._filler: Filler | None = None
        self._inherited, self._changes = False, 0
        self._begin()

    def _begin(self) -> None:
        """Forget what was found out: of a network that is new, or has changed."""
        self.mode: Literal["tokens", "layers"] | None = self.wanted or "tokens"
        if getattr(getattr(self.model, "config", None), "is_encoder_decoder", False):
            self.mode = "layers"
        self.reason: str | None = None
        self.checked, self.trials = False, 0
        self._outputs: dict[str, int | None] | None = None

    @property
    def filler(self) -> Filler:
        """Fills the store of the precision of now."""
        if self._filler is None:
            self._follow()
        assert self._filler is not None
        return self._filler

    @property
    def store(self) -> Store:
        """What is kept in the precision of now."""
        return self.filler.store

    @property
    def past_items(self) -> list[str]:
        """Keys and values of the layers that are run."""
        return [make(i) for i in range(self.first, len(self.blocks)) for make in (keys, values)]

    @property
    def outputs(self) -> dict[str, int | None]:
        """Length of the tuple that the skipped blocks return, None for a bare tensor; for each of ``passes``."""
        if self._outputs is None:
            self._outputs = self._look()
        return self._outputs

    @torch.no_grad()
    def _look(self) -> dict[str, int | None]:
        seen: dict[str, int | None] = {}
        with ExitStack() as stack:
            for skipped, item in self.passes:

                def note(module: nn.Module, args: object, output: object, item: str = item) -> None:
                    seen[item] = len(output) if isinstance(output, tuple) else None
                    if len(seen) == len(self.passes):
                        raise Stopped

                stack.callback(skipped[-1].register_forward_hook(note).remove)
            if self.passes:
                with stopping():
                    one = torch.zeros(1, 1, dtype=torch.long, device=self.store.device)
                    call(self.model, Tokens(one, torch.ones_like(one)))
        return seen

    def skips(self, location: Location) -> bool:
        """Return whether the block that a site is the output of is skipped: what enters it is not known then."""
        return any(location.module is block for skipped, _ in self.passes for block in skipped)

    # --- batches ---

    def prepare(self, batch: Runnable) -> Prepared:
        """Find (or compute and keep) what the batch needs; falls back to the plain run where replay does not hold."""
        self._follow()
        if self.longest is not None and batch.base.ids.shape[1] > self.longest:
            return self.plain.prepare(batch)  # its positions depend on how long the longest row is
        while self.mode is not None:
            try:
                prepared = self._prepare(batch)
                if self.checked or self._holds(batch, prepared):
                    return prepared
            except Unkept as unkept:
                self.less(str(unkept))
        return self.plain.prepare(batch)

    def fill(self, prompts: Iterable[tuple[Tokens, Tensor, Tensor]], progress: bool = False) -> None:
        """Keep what prompts will need as bases and as sources, in one pass.

        Args:
            prompts: rows of prompts, columns of every placement's site [B, P, n], and which of them exist [B, P, n].
            progress: whether to show a progress bar, on a terminal.
        """
        self._follow()
        known = [(compact(tokens), positions.cpu(), there.cpu()) for tokens, positions, there in prompts]
        with torch.inference_mode(False), torch.no_grad():
            while self.mode is not None:
                requests: list[Request] = []
                for found, positions, there in known:
                    texts = self.store.texts.numbers(found)
                    requests += self._of_bases(self._rows(found, texts, positions, there))
                    requests += self._of_sources(found, texts, positions, there)
                try:
                    self.filler.fill(requests, progress)
                    log.info("replay: %s", self.told())
                    return
                except Unkept as unkept:
                    self.less(str(unkept))

    def keep(self, batches: Iterable[Runnable]) -> None:
        """Keep what batches without sources will need, labels and all, in the order in which they come."""
        for batch in batches:
            prepared = self.prepare(batch)
            if not isinstance(prepared, ReplayPrepared):
                return
            prepared.keep()
        log.info("replay: %s", self.told())

    def told(self) -> str:
        """Say in one line what is run and what is kept."""
        first, last, store = self.first, len(self.blocks) - 1, self.store
        tokens = "at the tokens from the sites on" if self.mode == "tokens" else "at all tokens"
        layers = f"layers {first} to {last} are run, {tokens}" if first <= last else "no layer is run"
        kept = f"{len(store.computed | store.found)} prompts are kept, {_size(store.memory)} in memory"
        files = f" and {_size(store.mapped)} in files" if store.mapped else ""
        found = f"; an earlier run left {len(store.found)} of them" if store.found else ""
        return f"{layers}; {kept}{files}{found}"

    def _follow(self) -> None:
        """Compare anew with the plain run where the network's weights, device or precision may be others."""
        store = self.stores.now()
        if self._filler is None or self._filler.store is not store:
            self._begin()
            self._filler = Filler(self.network, store)
            # another runner, before a change that was not seen, may have left what is there
            self._inherited = len(store.texts) > 0
        elif self._changes != self.stores.changes:
            self._begin()
            self._inherited = True
        self._changes = self.stores.changes

    def _prepare(self, batch: Runnable) -> ReplayPrepared:
        base = compact(batch.base)
        with torch.inference_mode(False), torch.no_grad():  # what is kept must serve training steps too
            texts = self.store.texts.numbers(base)
            rows = self._rows(base, texts, batch.base_positions, batch.position_mask)
            requests = self._of_bases(rows)
            positions, source_of = batch.source_positions.cpu(), batch.source_of.cpu()
            there = batch.position_mask.cpu() & batch.active.cpu()[..., None]
            sources = []
            for k, tokens in enumerate(batch.sources):
                found = compact(tokens)
                numbers = self.store.texts.numbers(found)
                sources.append((numbers, found.starts))
                requests += self._of_sources(found, numbers, positions, there & (source_of == k)[..., None])
            self.filler.fill(requests)
            features = []
            for p, item in enumerate(self.sites):
                row, slot = there[:, p].nonzero(as_tuple=True)
                if not len(row) or not sources:
                    features.append(torch.empty(0, 0, device=self.store.device))
                    continue
                of = source_of[row, p]
                numbers, starts = (torch.stack(x)[of, row] for x in zip(*sources, strict=True))
                features.append(self.store.take([item], numbers, positions[row, p, slot] - starts, 1)[item][:, 0])
            return ReplayPrepared(self, batch, base, rows, features)

    def _rows(self, base: Compact, texts: Tensor, positions: Tensor, there: Tensor) -> Rows:
        if self.mode == "layers":
            before = torch.zeros_like(base.lengths)
        else:
            columns = positions.cpu().masked_fill(~there.cpu(), torch.iinfo(torch.long).max)
            # the last token at least is run, also of a row without a site
            before = torch.minimum(columns.flatten(1).amin(1) - base.starts, base.lengths - 1)
        return Rows(texts, base.lengths, before)

    def _of_bases(self, rows: Rows) -> list[Request]:
        found = [Request((item,), rows.texts, (rows.before, rows.lengths)) for _, item in self.passes]
        if self.mode == "tokens" and self.past_items:
            found.append(Request(tuple(self.past_items), rows.texts, (torch.zeros_like(rows.before), rows.before)))
        return found

    def _of_sources(self, source: Compact, texts: Tensor, positions: Tensor, wanted: Tensor) -> list[Request]:
        """Request each placement's site in the rows whose positions are ``wanted`` [B, P, n]."""
        within = positions - source.starts[:, None, None]
        lo = within.masked_fill(~wanted, torch.iinfo(torch.long).max).amin(2)
        hi = within.masked_fill(~wanted, -1).amax(2) + 1
        found = []
        for p, item in enumerate(self.sites):
            some = wanted[:, p].any(1)
            if some.any():
                found.append(Request((item,), texts[some], (lo[some, p], hi[some, p])))
        return found

    # --- whether it holds ---

    @torch.no_grad()
    def _holds(self, batch: Runnable, prepared: ReplayPrepared) -> bool:
        """Compare with the plain run, unedited and with the sources' activations (or 0) put in, on the first batches.

        The unedited run alone would not tell attention that looks ahead: what is kept of the earlier tokens then holds
        for the base, and not for an edited run. Nor would a swap that changes nothing, or sites with no token before.
        """
        label = batch.labels[:, :-1]
        # without a source there is nothing to swap in, so what is there is taken away
        swaps = [Vanilla() if batch.sources else Zero(site_info(location)) for location in self.locations]
        reference = self.plain.prepare(batch)
        plain, swapped = reference.logits(None, label), reference.logits(swaps, label)
        found = [prepared.logits(None, label), prepared.logits(swaps, label)]
        real = torch.cat([torch.ones_like(batch.labels[:, :1], dtype=torch.bool), label >= 0], 1)
        tolerance = 1e-4 if precision(self.model)[1] in ("float32", "float64") else 5e-2
        for what, ours, theirs in (
            ("logits differ", torch.stack(found)[:, real], torch.stack([plain, swapped])[:, real]),
            *(("sources differ", *pair) for pair in zip(prepared.features, reference.features, strict=True)),
        ):
            same = torch.equal(ours, theirs)  # 0 is as far from 0
            off = 0.0 if same else float((ours - theirs).abs().max() / theirs.abs().max())
            if not off <= tolerance:
                self._differs(f"{what} from the plain run by {off:.1g} of the largest")
                return False
        self.trials += 1
        before = bool((prepared.rows.before > 0).any())
        changed = (swapped - plain)[real].abs().max() > tolerance * plain[real].abs().max()
        told = bool(changed) and (before or self.mode == "layers")
        self.checked = told or self.trials == TRIALS
        return True

    def _differs(self, reason: str) -> None:
        """Try again with what is kept made anew, where an earlier run or another network may have left it."""
        if self._inherited or self.store.found:
            self._inherited = False
            self.store.clear()
            log.warning("replay: %s: what was kept is made anew", reason)
        else:
            self.less(reason)

    def less(self, reason: str) -> None:
        """Keep less: only what the layers below compute, and where that does not hold either, nothing."""
        if self.mode == "tokens":
            self.mode, self.checked, self.trials = "layers", False, 0
            log.warning("replay skips layers only, not tokens: %s", reason)
        else:
            self.mode, self.reason = None, reason
            log.warning("replay is off: %s", reason)


def _steady(config: Any) -> int | None:
    """Return up to how many tokens the rotary embedding is the same for texts of all lengths; None for any number."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)]
    if not any(kind in ("dynamic", "longrope") for kind in kinds):
        return None
    return int(getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings)


def _size(count: int) -> str:
    return f"{count / 2**20:.0f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"
