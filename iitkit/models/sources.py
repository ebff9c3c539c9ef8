"""Which placement takes its activation from which source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from iitkit.errors import IITKitError, choices, did_you_mean

Inputs = Mapping[str, Any] | Tensor
"""What a tokenizer returns (a mapping of tensors, padded on either side), or a tensor for a plain module."""


def by_placement(
    source: Inputs | Mapping[str, Inputs] | None, base: Inputs, placements: Sequence[str], needing: Sequence[str]
) -> list[tuple[Inputs, list[str]]]:
    """Return each source with the placements that take their activations from it.

    Args:
        source: one source for all, placement name → source, or None.
        base: the base, which says what inputs look like.
        placements: all placements.
        needing: those that take something from a source.

    Returns:
        Sources and names of placements; a source that several name stands once.

    Raises:
        IITKitError: no source, none for a placement that needs one, or one for a placement that is not there.
    """
    if not needing:
        return []
    if source is None:
        raise IITKitError(f"{choices(needing)}: the intervention takes activations from a source: give one")
    if not _several(source, base):
        return [(source, list(needing))]
    assert isinstance(source, Mapping)
    if unknown := [name for name in source if name not in placements]:
        raise IITKitError(
            f"source names {unknown[0]!r}, which the alignment does not place."
            f"{did_you_mean(unknown[0], placements)} It has {choices(placements)}"
        )
    if missing := [name for name in needing if source.get(name) is None]:
        raise IITKitError(f"{choices(missing)}: the intervention takes activations from a source: give it one")
    found: dict[int, tuple[Inputs, list[str]]] = {}
    for name in needing:
        found.setdefault(id(source[name]), (source[name], []))[1].append(name)
    return list(found.values())


def _several(source: Inputs | Mapping[str, Inputs], base: Inputs) -> bool:
    """Return whether ``source`` is a mapping of inputs such as the base, rather than such inputs itself."""
    if not isinstance(source, Mapping):
        return False
    kind = Mapping if isinstance(base, Mapping) else Tensor
    return bool(source) and all(value is None or isinstance(value, kind) for value in source.values())
