"""Hooks: reading and replacing what flows through a module, and leaving nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from iitkit.errors import IITKitError
from iitkit.models.anatomy import Location

Visit = Callable[[Tensor], Tensor | None]
"""Sees an activation [batch, sequence, width]; returns its replacement, or None to leave it."""


class Stopped(Exception):  # noqa: N818 - no error: the run went as far as it was needed
    """Raised by a visit to end a forward pass early; see :func:`stopping`."""


@contextmanager
def visiting(visits: Sequence[tuple[Location, Visit]]) -> Iterator[None]:
    """Run ``visits`` inside the context, several at one location in the order given; afterwards no hook is left."""
    with ExitStack() as stack:
        for location, visit in visits:
            stack.callback(_register(location, visit).remove)
        yield


@contextmanager
def stopping() -> Iterator[None]:
    """Swallow the :class:`Stopped` with which a visit ended the forward pass."""
    with suppress(Stopped):
        yield


def _register(location: Location, visit: Visit) -> RemovableHandle:
    if location.side == "output":

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            seen = visit(_first(output, location))
            return None if seen is None else with_first(output, seen)

        return location.module.register_forward_hook(after)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            seen = visit(_first(args, location))
            return None if seen is None else ((seen, *args[1:]), kwargs)
        # keyword-only calls (e.g. LLaMA's attention): the activation is hidden_states, else the first tensor
        tensors = [key for key, value in kwargs.items() if isinstance(value, Tensor)]
        key = "hidden_states" if "hidden_states" in kwargs else tensors[0] if tensors else None
        if key is None:
            raise IITKitError(f"{location.label}: the module was called without a tensor")
        seen = visit(kwargs[key])
        return None if seen is None else (args, {**kwargs, key: seen})

    return location.module.register_forward_pre_hook(before, with_kwargs=True)


def _first(value: Any, location: Location) -> Tensor:
    if isinstance(value, tuple) and value:
        value = value[0]
    if not isinstance(value, Tensor):
        raise IITKitError(f"{location.label}: expected a tensor at the site, found {type(value).__name__}")
    return value


def with_first(output: Any, tensor: Tensor) -> Any:
    """Return ``output`` with its first tensor replaced; a bare tensor is replaced whole, as the block returned it."""
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor
