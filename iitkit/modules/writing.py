"""Greedy decoding of a batch's prompts, plain or edited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from iitkit.batch import Completions
from iitkit.interventions import Intervention
from iitkit.models.generation import intervening
from iitkit.models.placed import Where
from iitkit.models.sites import Site


@torch.no_grad()
def written(
    model: nn.Module,
    tokenizer: Any,
    batch: Completions,
    placed: Mapping[str, tuple[Site, Intervention]],
    where: Where,
    most: int,
    context: int | None = None,
) -> list[list[int]]:
    """Return what greedy decoding writes behind each prompt, up to the end of text.

    Args:
        model: the network.
        tokenizer: its tokenizer.
        batch: the prompts, and in each the columns of every placement's site.
        placed: placement name → site and intervention, in the batch's order; none for the plain network.
        where: which tokens are edited.
        most: most tokens to write.
        context: most tokens of prompt and answer that the network takes; None for any number.
    """
    found: list[list[int]] = [[] for _ in range(len(batch))]
    within = batch.position_mask & (batch.base_positions <= batch.base.last[:, None, None])  # the prompt's own
    limit = torch.full_like(batch.rows, most)
    if context is not None:
        limit = limit.minimum(context - batch.base.mask.sum(1))
    # rows with equally many positions together, for a site's columns are one tensor, that may write as much
    kinds = torch.cat([limit[:, None], within.sum(2)[:, : len(placed)]], 1)
    for kind in torch.unique(kinds, dim=0):
        rows = (kinds == kind).all(1).nonzero()[:, 0]
        ids, mask, shift = _left(batch, rows.to(batch.rows.device))
        alignment = {}
        for p, (name, (site, edit)) in enumerate(placed.items()):
            columns = batch.base_positions[rows, p][within[rows, p]].reshape(len(rows), -1) - shift[:, None]
            alignment[name] = (site if where == "generated" else replace(site, position=columns), edit)
        untyped: Any = model
        with intervening(model, alignment, where=where):
            whole = untyped.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=int(kind[0]),
                do_sample=False,
                num_beams=1,
                pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        for row, tokens in zip(rows.tolist(), whole[:, ids.shape[1] :].tolist(), strict=True):
            stop = tokens.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in tokens else len(tokens)
            found[row] = tokens[:stop]
    return found


def _left(batch: Completions, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return prompts padded on the left, their mask, and by how much their columns have moved to the left."""
    mask = batch.base.mask[rows]
    width = int(mask.sum(1).max())
    shift = batch.base.last[rows] + 1 - width
    columns = shift[:, None] + torch.arange(width, device=mask.device)
    there = columns >= 0
    columns = columns.clamp(min=0)
    ids = batch.base.ids[rows].gather(1, columns)
    return ids, mask.gather(1, columns) * there, shift
