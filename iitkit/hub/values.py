"""What a causal variable's values look like at a site: the mean of the sources' coordinates under each value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iitkit.errors import IITKitError, choices

MOST = 64
"""Values of a variable that are stored at most."""

Value = bool | int | float | str


@dataclass(frozen=True, eq=False)
class Values:
    """The values of a placement's variable and their mean features.

    Args:
        names: the values, in the order of the variable's domain.
        features: each value's mean coordinates over the training prompts that have it, fp32 [V, (heads,) k].
        counts: number of these prompts.
    """

    names: tuple[Value, ...]
    features: Tensor
    counts: tuple[int, ...]

    def plain(self) -> list[dict[str, Any]]:
        """Return what config.json says of them."""
        return [{"value": name, "n": n} for name, n in zip(self.names, self.counts, strict=True)]

    @staticmethod
    def stored(plain: Any, features: Tensor | None, heads: int, size: int) -> Values:
        """Return values as an artifact holds them.

        Args:
            plain: what config.json says.
            features: the tensor of the safetensors file, None where it has none.
            heads: number of heads at the site that are edited each by itself, 1 for none.
            size: number of coordinates.

        Raises:
            IITKitError: a list of another form, or features that are missing, not finite or of another shape or dtype.
        """
        if not isinstance(plain, list) or not 0 < len(plain) <= MOST or not all(map(_is_entry, plain)):
            raise IITKitError(f"values: expected a list of up to {MOST} values, each {{value: …, n: 1 or more}}")
        names = tuple(entry["value"] for entry in plain)
        if len({(type(name), name) for name in names}) < len(names):
            raise IITKitError(f"values: a value stands twice in {choices(map(repr, names))}")
        if features is None:
            raise IITKitError(f"values: the features of {choices(map(repr, names))} are not there")
        expected = (len(names), heads, size) if heads > 1 else (len(names), size)
        if tuple(features.shape) != expected:
            raise IITKitError(f"values of shape {tuple(features.shape)}: expected {expected}")
        if features.dtype != torch.float32 or not bool(torch.isfinite(features).all()):
            raise IITKitError(f"values of {features.dtype}: expected finite numbers of torch.float32")
        return Values(names, features, tuple(entry["n"] for entry in plain))


def plain_value(value: Any) -> Value:
    """Return a value as JSON can hold it: as it is, or its text."""
    if isinstance(value, list):  # JSON has no tuples
        value = tuple(value)
    fine = isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
    return value if fine else str(value)


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or set(entry) != {"value", "n"} or type(entry["n"]) is not int or entry["n"] < 1:
        return False
    value = entry["value"]
    return type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))
