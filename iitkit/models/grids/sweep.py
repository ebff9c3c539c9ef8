"""One sweep through the layers, by the network's own code: units join behind their first edit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from iitkit.batch import Tokens
from iitkit.models.editing import Stopped, Visit, stopping, visiting
from iitkit.models.grids.network import RESIDUAL, Item
from iitkit.models.grids.resolve import Edit
from iitkit.models.grids.run import Run
from iitkit.models.grids.table import Table, Units
from iitkit.models.location import Location
from iitkit.models.runs import call


@dataclass
class Sweep:
    """A batch of units, sorted by the layer at which they join.

    Args:
        base: the run that is edited.
        units: the batch.
        prefix: whether keys and values of the tokens before come from the base; all tokens are run where not.
        watched: components to keep in ``seen``, of the units that have joined there; the run ends behind the last.
    """

    base: Run
    units: Units
    prefix: bool
    watched: Sequence[Item] = ()
    seen: dict[Item, Tensor] = field(default_factory=dict)
    entering: dict[int, list[Visit]] = field(default_factory=dict)
    left: dict[int, list[Visit]] = field(default_factory=dict)
    leaving: dict[int, list[Visit]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        units, base = self.units, self.base
        self.network = base.network
        self.blocks = self.network.blocks
        n = len(self.blocks)
        self.counts = [int(x) for x in torch.searchsorted(units.join, torch.arange(n + 1), right=True)]
        device = self.network.device
        self.row = units.row.to(device)
        start = base.starts[units.row] + units.before
        self.width = int((units.total - units.before).max())
        last = base.rows.tokens.ids.shape[1] - 1
        self.columns = (start[:, None] + torch.arange(self.width)).clamp(max=last).to(device)
        self.length = int(units.before.max()) if self.prefix else 0
        self.past = (start[:, None] + torch.arange(-self.length, 0)).clamp(min=0).to(device)
        self.one_past = bool((start == start[0]).all())

    def run(self, table: Table) -> Tensor:
        """Return what leaves the last layer at the columns that are read, [U, T, width]; nothing where it is watched.

        What is watched is seen before it is edited itself.
        """
        watched = dict.fromkeys(self.watched)
        inside: list[tuple[Location, Visit]] = [
            (self.network.location(*item), self._seeing(item)) for item in watched if item[1] not in RESIDUAL
        ]
        for edit, location, visit in table.visits(self.units, "run"):
            self._place(edit, location, visit, inside)
        final: list[Tensor] = []
        with self._joining(final), visiting(inside), stopping():
            call(
                self.network.model,
                self._tokens(),
                position_ids=self._position_ids(),
                past_key_values=self._cache(),
                use_cache=self.length > 0,
            )
        return final[0] if final else self.base.entries[-1][:0, :1]

    def _seeing(self, item: Item) -> Visit:
        def visit(hidden: Tensor, inputs: Tensor | None) -> None:
            self.seen[item] = hidden.clone()
            if len(self.seen) == len(set(self.watched)):
                raise Stopped

        return visit

    def _place(self, edit: Edit, location: Location, visit: Visit, inside: list[tuple[Location, Visit]]) -> None:
        layer, component = edit.item
        if layer is None or component not in RESIDUAL:
            inside.append((location, visit))
        elif component == "block_input":
            self.entering.setdefault(layer, []).append(visit)
        elif edit.reads_input:
            self.leaving.setdefault(layer, []).append(visit)
        else:
            self.left.setdefault(layer + 1, []).append(visit)

    def _tokens(self) -> Tokens:
        units, device = self.units, self.network.device
        ids = self.base.rows.tokens.ids[self.row[:, None], self.columns]
        index = torch.arange(self.length + self.width)
        start = (self.length - units.before)[:, None] if self.prefix else torch.zeros(len(units), 1, dtype=torch.long)
        mask = (index >= start) & (index < start + units.total[:, None])
        return Tokens(ids, mask.long().to(device))

    def _position_ids(self) -> Tensor:
        steps = self.units.before[:, None] + torch.arange(self.width)
        return torch.minimum(steps, self.units.total[:, None] - 1).to(self.network.device)

    def _cache(self) -> DynamicCache | None:
        if not self.length:
            return None
        # without the model's config: the cache of a sliding window would drop what it cannot know to be needed
        cache = DynamicCache()
        like = self.base.keys[0]
        stub = like.new_zeros(1, 1, 1, 1).expand(len(self.units), 1, self.length, 1)
        for i in range(len(self.blocks)):
            layer = _Layer(self, i)
            layer.keys = layer.values = stub
            layer.is_initialized, layer.dtype, layer.device = True, like.dtype, like.device
            cache.layers.append(layer)
        return cache

    def before(self, kept: Tensor, n: int) -> Tensor:
        """Return keys or values of the tokens before the first ``n`` units' own, [n, heads, P, size]."""
        if self.one_past:
            stop = int(self.past[0, -1]) + 1
            if stop >= self.length:
                found = kept[:, :, stop - self.length : stop]
                return found.expand(n, -1, -1, -1) if len(found) == 1 else found[self.row[:n]]
        return kept.transpose(1, 2)[self.row[:n, None], self.past[:n]].transpose(1, 2)

    # --- the layers ---

    @contextmanager
    def _joining(self, final: list[Tensor]) -> Iterator[None]:
        """Let each layer see the units that have joined, edited as they enter and leave."""
        first = self.blocks[0]

        def begin(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            key, hidden = _given(args, kwargs)
            new = self._joined(0, None, hidden)
            return ((new, *args[1:]), kwargs) if key is None else (args, {**kwargs, key: new})

        # before all other hooks: they see the units that are run
        handle = first.register_forward_pre_hook(begin, with_kwargs=True, prepend=True)
        restored: list[tuple[Any, Any]] = []
        try:
            for i, block in enumerate(self.blocks):
                restored.append((block, block.__dict__.get("forward")))
                block.forward = self._forward(i, block.forward, final)
            yield
        finally:
            handle.remove()
            for block, own in reversed(restored):
                if own is None:
                    block.__dict__.pop("forward", None)
                else:
                    block.__dict__["forward"] = own

    def _forward(self, layer: int, forward: Callable[..., Any], final: list[Tensor]) -> Callable[..., Any]:
        n, outputs = self.counts[layer], self.network.outputs

        def joining(*args: Any, **kwargs: Any) -> Any:
            _, hidden = _given(args, kwargs)
            rest: tuple[Any, ...] | None = None if outputs is None else (None,) * (outputs - 1)
            left: Tensor | None = None
            if n:
                total = len(self.units)
                found = forward(*_first(args, total, n), **_first(kwargs, total, n))
                rest = found[1:] if isinstance(found, tuple) else None
                left = found[0] if isinstance(found, tuple) else found
                for visit in self.leaving.get(layer, ()):
                    left = _seen(visit, left, hidden)
            new = self._joined(layer + 1, left, hidden)
            if layer + 1 == len(self.blocks):
                final.append(self._read(new))
                raise Stopped
            return new if rest is None else (new, *rest)

        return joining

    def _joined(self, layer: int, hidden: Tensor | None, like: Tensor) -> Tensor:
        """Return what enters a layer: of units that have joined before, and of those that join here."""
        old, n = 0 if hidden is None else hidden.shape[0], self.counts[layer]
        parts = [] if hidden is None else [hidden]
        if n > old:
            parts.append(self.base.entries[layer][self.row[old:n, None], self.columns[old:n]])
        if not parts:
            return like[:0]
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        # what leaves the layer before is edited first, then what enters this one
        for item, visits in (((layer - 1, "block_output"), self.left), ((layer, "block_input"), self.entering)):
            if item in self.watched:
                self._seeing(item)(found, None)
            for visit in visits.get(layer, ()):
                found = _seen(visit, found, None)
        return found

    def _read(self, hidden: Tensor) -> Tensor:
        """Return what leaves the last layer at the columns that are read; left of the edit it is the base's."""
        reading = self.base.rows.reading[self.row]
        start = (self.base.starts[self.units.row] + self.units.before).to(reading.device)
        at = reading - start[:, None]
        rows = torch.arange(len(at), device=at.device)[:, None]
        found: Tensor = hidden[rows, at.clamp(0, self.width - 1)]
        if bool((at < 0).any()):
            found = found.where((at >= 0)[..., None], self.base.entries[-1][self.row[:, None], reading])
        return found


class _Layer(DynamicLayer):
    """Puts the base's keys and values before those of the units."""

    def __init__(self, sweep: Sweep, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sweep, self.index = sweep, index

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values of all tokens; nothing is kept."""
        base, n = self.sweep.base, key_states.shape[0]
        keys, values = (self.sweep.before(kept[self.index], n) for kept in (base.keys, base.values))
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)


def _given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str | None, Tensor]:
    """Return the residual stream that a block is called with and, where it came by keyword, its name."""
    if args:
        found: Tensor = args[0]
        return None, found
    key = "hidden_states" if "hidden_states" in kwargs else next(k for k, v in kwargs.items() if isinstance(v, Tensor))
    return key, kwargs[key]


def _first(given: Any, total: int, n: int) -> Any:
    """Return what a block is given, of the first ``n`` of ``total`` rows."""
    if n == total:
        return given
    if isinstance(given, Tensor):
        return given[:n] if given.dim() > 1 and given.shape[0] == total else given
    if isinstance(given, tuple | list):
        return type(given)(_first(each, total, n) for each in given)
    if isinstance(given, dict):
        return {key: _first(each, total, n) for key, each in given.items()}
    return given


def _seen(visit: Visit, hidden: Tensor, inputs: Tensor | None) -> Tensor:
    new = visit(hidden, inputs)
    return hidden if new is None else new
