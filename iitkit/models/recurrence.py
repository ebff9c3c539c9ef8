"""Editing inside ``nn.GRU``: layer by layer by torch's own kernel, an edited state carried on to what follows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from iitkit.errors import IITKitError
from iitkit.models.sites import Side

Seen = Callable[[Tensor, Tensor | None], Tensor | None]
"""Sees a layer's inputs or states [batch, sequence, width] and, with states, its inputs; returns a replacement."""


def run_layers(
    gru: Callable[..., tuple[Tensor, Tensor]], args: Sequence[Any], visits: Sequence[tuple[int, Side, Seen]]
) -> tuple[Tensor, Tensor]:
    """Run the layers of a GRU one by one, with visits at their inputs and states.

    Args:
        gru: torch's function.
        args: what ``nn.GRU`` calls it with: input, first states [layers, batch, hidden], weights, whether there are
            biases, layers, dropout, whether it trains, whether it has two directions, whether the batch comes first.
        visits: layer, side and what sees the activation there, in order.

    Returns:
        The states of the last layer at every position, in the input's layout, and the last state of every layer.

    Raises:
        IITKitError: a packed sequence.
    """
    if len(args) != 9 or (isinstance(args[1], Tensor) and args[1].dim() == 1):
        raise IITKitError("the GRU was given a packed sequence: give a tensor [batch, sequence, width]")
    x, first, weights, bias, layers, dropout, training, _, batch_first = args
    x = x if batch_first else x.transpose(0, 1)
    per_layer, last = len(weights) // layers, []
    for layer in range(layers):
        x = _through(x, [visit for at, side, visit in visits if (at, side) == (layer, "input")], None)
        own = weights[layer * per_layer : (layer + 1) * per_layer]

        def run(entering: Tensor, state: Tensor, own: Sequence[Tensor] = own) -> Tensor:
            return gru(entering, state[None].contiguous(), own, bias, 1, 0.0, False, False, True)[0]

        seen = [visit for at, side, visit in visits if (at, side) == (layer, "output")]
        states = run(x, first[layer])
        states = _carried(states, x, run, seen) if seen else states
        last.append(states[:, -1])
        x = F.dropout(states, dropout, training) if layer + 1 < layers else states
    return x if batch_first else x.transpose(0, 1), torch.stack(last)


def _through(x: Tensor, visits: Sequence[Seen], inputs: Tensor | None) -> Tensor:
    for visit in visits:
        new = visit(x, inputs)
        x = x if new is None else new
    return x


def _carried(plain: Tensor, x: Tensor, run: Callable[[Tensor, Tensor], Tensor], visits: Sequence[Seen]) -> Tensor:
    """Return a layer's states with the visits' edits; what follows an edited position is run again from it.

    Args:
        plain: the states, [batch, sequence, hidden].
        x: the layer's inputs, [batch, sequence, width].
        run: the layer: inputs and the state before them → states.
        visits: what edits them.
    """
    edited, start = plain, 0  # ``plain`` holds each state before its own edit, ``edited`` after it
    while True:
        new = _through(plain, visits, x)
        if new is plain:
            return edited
        if new.requires_grad:  # an edit that changes nothing yet still has a gradient, so every position counts
            column = start
        else:
            changed = (new != plain)[:, start:].flatten(2).any(2).any(0).nonzero()
            if len(changed) == 0:
                return edited
            column = start + int(changed[0])
        state = new[:, column]
        edited = torch.cat([edited[:, :column], state[:, None]], 1)
        if column + 1 == plain.shape[1]:
            return edited
        after = run(x[:, column + 1 :], state)
        plain = torch.cat([plain[:, : column + 1], after], 1)
        edited, start = torch.cat([edited, after], 1), column + 1
