"""Gradients of a metric with respect to activations: one forward and one backward for all components at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from iitkit.errors import IITKitError
from iitkit.models.editing import Visit, visiting
from iitkit.models.grids.network import Item, Network
from iitkit.models.grids.rows import Rows
from iitkit.models.runs import call, head_at


def slopes(
    network: Network, rows: Rows, items: Sequence[Item], metric: Callable[[Tensor], Tensor]
) -> dict[Item, Tensor]:
    """Return the gradient of a metric of an unedited run with respect to components.

    Args:
        network: the network.
        rows: what is run.
        items: the components, all heads of them.
        metric: makes of logits [B, (T,) vocabulary] one number, or one for each row: each row's depends on it alone.

    Returns:
        Item → [B, S, (heads,) width], 0 where a position reaches nothing that is read.

    Raises:
        IITKitError: a component that is not there, or a metric without a gradient.
    """
    added: dict[Item, Tensor] = {}

    def adding(item: Item) -> Visit:
        def visit(hidden: Tensor, inputs: Tensor | None) -> Tensor:
            # nothing is added, so that what is run is the unedited run; its gradient is the activation's
            added[item] = torch.zeros_like(hidden, requires_grad=True)
            return hidden + added[item]

        return visit

    visits = [(network.location(*item), adding(item)) for item in dict.fromkeys(items)]
    # not of inference: what it makes has no gradient
    with torch.inference_mode(False), torch.enable_grad():
        with visiting([*network.embedded(rows.embeddings), *visits]), head_at(network.model, rows.reading):
            logits: Tensor = call(network.model, rows.tokens).logits
        value = metric(logits[:, 0] if rows.alone else logits)
        if not value.requires_grad:
            raise IITKitError("the metric has no gradient: give one that is computed from the logits")
        found = torch.autograd.grad(value.sum(), list(added.values()), allow_unused=True)
    gradients = zip(added.items(), found, strict=True)
    return {item: torch.zeros_like(zero) if slope is None else slope for (item, zero), slope in gradients}
