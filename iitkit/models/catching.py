"""Reading and replacing what a function returns inside a module's forward, while the module's own code runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from iitkit.errors import IITKitError
from iitkit.models.location import Inside
from iitkit.models.recurrence import Seen, run_layers
from iitkit.models.sites import Side


@dataclass(frozen=True, eq=False)
class Watcher:
    """Sees what a module computes inside.

    Args:
        inside: which function's result.
        side: of a layer in a module of several layers: its input or its output.
        visit: sees the module's tensor; returns a replacement.
        label: what messages call the site.
    """

    inside: Inside
    side: Side
    visit: Seen
    label: str


class _Catching(TorchFunctionMode):
    """Hands the first call of each watched function to its watchers."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        super().__init__()
        self.left = list(watchers)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        wanted = [watcher for watcher in self.left if func in watcher.inside.functions]
        if not wanted:
            return func(*args, **(kwargs or {}))
        self.left = [watcher for watcher in self.left if watcher not in wanted]
        in_layers = [(w.inside.layer, w.side, w.visit) for w in wanted if w.inside.layer is not None]
        if in_layers:
            return run_layers(func, args, in_layers)
        result: Tensor = func(*args, **(kwargs or {}))
        for watcher in wanted:
            new = watcher.visit(result, None)
            result = result if new is None else new
        return result


class _Watched:
    """A module's forward under watchers, in the order in which they came."""

    def __init__(self, forward: Callable[..., Any], own: bool, watchers: tuple[Watcher, ...]) -> None:
        self.forward, self.own, self.watchers = forward, own, watchers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Catching(self.watchers) as catching:
            result = self.forward(*args, **kwargs)
        if catching.left:
            missed = catching.left[0]
            raise IITKitError(
                f"{missed.label}: the module ran and made no {missed.inside.called} that could be seen: load the model "
                "with attn_implementation='eager', or name another component"
            )
        return result


def watch(module: nn.Module, watcher: Watcher) -> Callable[[], None]:
    """Let a watcher see what a module computes inside; returns what ends it.

    The module's ``forward`` is wrapped meanwhile. Watchers may end in any order.
    """
    there = module.__dict__.get("forward")
    if isinstance(there, _Watched):
        found = _Watched(there.forward, there.own, (*there.watchers, watcher))
    else:
        found = _Watched(module.forward, there is not None, (watcher,))
    module.forward = found

    def end() -> None:
        now = module.__dict__["forward"]
        assert isinstance(now, _Watched)
        left = tuple(other for other in now.watchers if other is not watcher)
        if left:
            module.forward = _Watched(now.forward, now.own, left)
        elif now.own:
            module.forward = now.forward
        else:
            del module.forward

    return end
