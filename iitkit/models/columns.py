"""The columns of a site's positions among the tokens that are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from iitkit.errors import IITKitError
from iitkit.models.passes import real_tokens
from iitkit.models.sites import Site
from iitkit.models.sources import Inputs
from iitkit.positions import resolve


def given_tokens(inputs: Inputs) -> tuple[int, int] | None:
    """Rows and columns of the tokens that are given; None where the inputs are no tokens."""
    if not isinstance(inputs, Mapping):
        return None
    ids, embedded = inputs.get("input_ids"), inputs.get("inputs_embeds")
    tokens = embedded if ids is None else ids
    return (tokens.shape[0], tokens.shape[1]) if isinstance(tokens, Tensor) and tokens.dim() > 1 else None


def _mask(inputs: Inputs) -> Tensor | None:
    """Where real tokens are, [batch, sequence]; None where the inputs are no tokens."""
    given = given_tokens(inputs)
    if given is None:
        return None
    assert isinstance(inputs, Mapping)
    return real_tokens(of_given(inputs.get("attention_mask"), given[1]), *given)


def of_given(mask: Any, columns: int) -> Any:
    """Return a mask's part that is of the given tokens: it counts also what a cache holds before them."""
    return mask[:, -columns:] if isinstance(mask, Tensor) and mask.dim() == 2 else mask


def check_all(site: Site, base: Inputs, source: Inputs | None, name: str) -> None:
    """Check that ``all`` pairs each token of the base with one of the source.

    Raises:
        IITKitError: masks that differ.
    """
    if source is None or isinstance(site.position, Tensor) or site.position != "all":
        return
    ours, theirs = _mask(base), _mask(source)
    if ours is not None and theirs is not None and not torch.equal(ours, theirs):
        raise IITKitError(
            f"{name}: position 'all' needs prompts of equal lengths in base and source, padded alike: "
            "their attention masks differ"
        )


def columns_of(site: Site, inputs: Inputs, name: str) -> Tensor | None:
    """Columns of a site's positions among the tokens, [batch, k]; None for all, or where the inputs are no tokens."""
    mask = _mask(inputs)
    if isinstance(site.position, Tensor):
        return check_columns(site.position, mask, name)
    if mask is None or site.position == "all":
        return None
    rows = []
    for row in mask:
        real = row.nonzero()[:, 0]
        try:
            rows.append(real[resolve(site.position, len(real))])
        except IITKitError as error:
            raise IITKitError(f"{name}: {error}") from error
    if len({len(row) for row in rows}) > 1:
        raise IITKitError(f"{name}: position {site.position!r} has another number of tokens in different rows")
    return torch.stack(rows)


def check_columns(position: Tensor, mask: Tensor | None, name: str) -> Tensor:
    """Return a tensor of columns [batch, k], after a check that each is a real token of its row.

    Raises:
        IITKitError: another shape or type, or a column that is padding or outside the input.
    """
    wrong = position.is_floating_point() or position.is_complex() or position.dtype == torch.bool
    if position.dim() != 2 or wrong or (mask is not None and position.shape[0] != mask.shape[0]):
        rows = "batch" if mask is None else f"batch = {mask.shape[0]}"
        raise IITKitError(
            f"{name}: position of shape {tuple(position.shape)} ({position.dtype}): "
            f"expected integers of shape [{rows}, k]"
        )
    if position.numel() and int(position.min()) < 0:
        raise IITKitError(
            f"{name}: a tensor of positions names columns of the input, from 0: {int(position.min())} is none"
        )
    if mask is not None:
        inside = position < mask.shape[1]
        real = mask.to(position.device).gather(1, position.long().clamp(max=mask.shape[1] - 1)).bool() & inside
        if not real.all():
            row, k = (~real).nonzero()[0].tolist()
            raise IITKitError(f"{name}: column {int(position[row, k])} of row {row} is padding or outside the input")
    return position
