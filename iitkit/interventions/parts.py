"""What spaces, masks and edits have in common: names, one fit on data, results, and values held for a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from iitkit.interventions.registered import Registered

T = TypeVar("T")


class Part(Registered):
    """A part of an intervention: its space, its mask or its edit."""

    kind = "part"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._depth = 0
        self._held: dict[tuple[str, bool], Any] = {}

    @property
    def unfitted(self) -> bool:
        """Whether data must be seen first."""
        return False

    def finish(self) -> None:
        """End a pass over the data; nothing to do for a part that needs none or has seen it."""

    def freeze(self, tensors: dict[str, Tensor] | None = None) -> None:
        """Replace what trains by its result, as an artifact stores it; ``tensors`` are results read from one."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Compute what :meth:`once` gives only once inside this context."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._held.clear()

    def once(self, key: str, make: Callable[[], T], graph: bool = True) -> T:
        """Return ``make()``, inside :meth:`held` the first one.

        Args:
            key: what it is.
            make: computes it.
            graph: it may carry gradients, so that one made without them must not serve where they are wanted.
        """
        if not self._depth:
            return make()
        at = (key, graph and torch.is_grad_enabled())
        if at not in self._held:
            self._held[at] = make()
        found: T = self._held[at]
        return found

    def __getstate__(self) -> dict[str, Any]:
        # what is held belongs to a step's graph, which no copy can follow
        return {**self.__dict__, "_held": {}, "_depth": 0}
