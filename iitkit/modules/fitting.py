"""What must see data before training: PCA, means, the scale of noise."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from iitkit.batch import Batch
from iitkit.interventions import Intervention
from iitkit.models.anatomy import Location
from iitkit.models.runs import Runner, grouped, select

log = logging.getLogger("iitkit")


@torch.no_grad()
def fit_to_data(
    interventions: Sequence[Intervention],
    locations: Sequence[Location],
    runner: Runner,
    batches: Iterable[Batch],
    device: torch.device,
) -> None:
    """Show unfitted interventions the activations at their sites, each prompt once, and let them finish.

    Args:
        interventions: one for each placement; an object that several share sees the activations of all.
        locations: the placements' locations.
        runner: finds the activations.
        batches: pairs whose sources are looked at; iterated once a pass, so alike each time.
        device: where the network is.
    """
    passes = 0
    while open_ := {id(i): i for i in interventions if i.unfitted}:
        passes += 1
        shown = 0
        seen: list[set[int]] = [set() for _ in interventions]
        for batch in batches:
            everywhere = replace(batch.to(device), active=torch.ones_like(batch.active, device=device))
            prepared = runner.prepare(everywhere)
            for p, (chosen, features) in enumerate(zip(select(everywhere), prepared.features, strict=True)):
                if id(interventions[p]) not in open_:
                    continue
                fresh = first_sight(everywhere, chosen.rows, chosen.source_of, seen[p])
                given = grouped(locations[p], features[fresh])
                interventions[p].observe(given)
                shown += len(given)
        for intervention in open_.values():
            intervention.finish()
        log.info("fitted %s to %d activations", ", ".join(i.title for i in open_.values()), shown)


def first_sight(batch: Batch, rows: torch.Tensor, source_of: torch.Tensor, seen: set[int]) -> torch.Tensor:
    """Return which entries are of source prompts not seen before, and note them; unnumbered prompts all are."""
    if any(source.prompts is None for source in batch.sources):
        return torch.arange(len(rows), device=rows.device)
    numbers = torch.stack([source.prompts for source in batch.sources if source.prompts is not None])
    of_entry = numbers[source_of.cpu(), rows.cpu()].tolist() if len(rows) else []
    entry_row = rows.tolist()
    kept: list[int] = []
    here: dict[int, int] = {}  # prompt → the row that shows it: all its positions are shown together
    for i, (number, row) in enumerate(zip(of_entry, entry_row, strict=True)):
        if number not in seen and here.setdefault(number, row) == row:
            kept.append(i)
    seen.update(here)
    return torch.tensor(kept, dtype=torch.long, device=rows.device)
