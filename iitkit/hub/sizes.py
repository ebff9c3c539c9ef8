"""A limit on what building an intervention may take: its options may come from anybody."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from iitkit.errors import IITKitError

ALWAYS = 2**24
"""Numbers that one tensor may always have: 64 MiB of fp32."""
_MADE = {
    getattr(torch, name)
    for name in ("empty", "zeros", "ones", "full", "rand", "randn", "randint", "randperm", "eye", "arange", "linspace")
}


class _Limit(TorchFunctionMode):
    """Refuses to make larger tensors than a limit, before they are made."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _MADE and _numbers(func, args, kwargs or {}) > self.most:
            raise IITKitError(f"its options ask for a tensor of more than {self.most} numbers: too large to be true")
        return func(*args, **(kwargs or {}))


def _numbers(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return how many numbers the tensor has that a function of torch would make."""
    shapes = [shape for shape in (kwargs.get("size"), *args) if isinstance(shape, tuple | list)]
    whole = [number for number in (shapes[0] if shapes else args) if isinstance(number, int)]
    if func in (torch.arange, torch.linspace):
        return max(map(abs, whole), default=0)
    return whole[0] ** 2 if func is torch.eye and len(whole) == 1 else math.prod(whole)


@contextmanager
def limited(stored: int) -> Iterator[None]:
    """Let no tensor be made inside this context that is much larger than all that is stored.

    Args:
        stored: numbers of the stored tensors.
    """
    with _Limit(max(ALWAYS, 4 * stored)):
        yield
