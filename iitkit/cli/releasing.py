"""Releasing what was trained: the artifact, with what each variable's values look like at its site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iitkit.batch import Batch
from iitkit.cli.provenance import example_of, trained_on
from iitkit.data import CompletionDataModule, CounterfactualDataModule
from iitkit.data.known import Known, known_answers, known_values
from iitkit.hub import Values, write_artifact
from iitkit.hub.values import MOST, plain_value
from iitkit.models.fingerprint import tokenizer_digests, weights_digest
from iitkit.models.placing import site_info
from iitkit.models.runs import Selection, grouped, select
from iitkit.modules import InterventionModule, ReFT
from iitkit.modules.fitting import first_sight


def release(
    folder: Path, module: InterventionModule, data: CounterfactualDataModule, metrics: Mapping[str, Any]
) -> Path:
    """Write a module's interventions as an artifact."""
    known = data.task.model.domains if data.task is not None else {}
    domains = {name: known[name] for name in data.variables if name in known}
    variables = {name: [str(value) for value in domain.values] for name, domain in domains.items() if domain.complete}
    values, largest = mean_features(module, data)
    answers: dict[str, Mapping[str, Any]] = {}
    for name, placement in module.alignment.items():
        variable = module.locations[name].variable or name
        if placement.value is not None:
            answers[name] = {"answer": answer} if (answer := known_answers(data, variable).get(placement.value)) else {}
        elif name in values:
            answers[name] = said(data, variable, values[name])
    told = {"training": trained_on(module, data)}
    if (example := example_of(module, data)) is not None:
        told["example"] = example
    return _saved(folder, module, metrics, values, largest, data.source.name, variables, data.prefix, answers, **told)


def said(data: CounterfactualDataModule, variable: str, values: Values) -> dict[str, list[str | None]]:
    """Return the answer that each value leads to, None where it is not the same in all training prompts."""
    known = {plain_value(value): answer for value, answer in known_answers(data, variable).items()}
    return {"answers": [known.get(name) for name in values.names]} if known else {}


def release_trained(folder: Path, module: ReFT, data: CompletionDataModule, metrics: Mapping[str, Any]) -> Path:
    """Write interventions that were trained on completions as an artifact; ``where`` says which tokens they edit."""
    chat: dict[str, Any] = {"chat": True} if data.is_chat else {}
    if data.telling.system is not None:
        chat["system"] = data.telling.system
    return _saved(folder, module, metrics, {}, {}, data.name, {}, data.prefix, None, where=module.where, **chat)


def _saved(
    folder: Path,
    module: InterventionModule,
    metrics: Mapping[str, Any],
    values: Mapping[str, Values],
    largest: Mapping[str, float],
    task: str | None,
    variables: Mapping[str, list[str]],
    prefix: str,
    answers: Mapping[str, Mapping[str, Any]] | None = None,
    **more: Any,
) -> Path:
    tokenizer = module.tokenizer
    if tokenizer is not None:
        more["tokenizer"] = tokenizer_digests(tokenizer)
    return write_artifact(
        folder,
        dict(zip(module.alignment, module.edits, strict=True)),
        {name: {**placement.where(), **(answers or {}).get(name, {})} for name, placement in module.alignment.items()},
        {**module.identity, "weights": weights_digest(module.base_model)},
        {name: site_info(location) for name, location in module.locations.items()},
        values,
        largest,
        metrics,
        task=task,
        variables=dict(variables),
        prefix=prefix,
        versions={name: version(name) for name in ("iitkit", "torch", "transformers")},
        **more,
    )


@torch.no_grad()
def mean_features(
    module: InterventionModule, data: CounterfactualDataModule
) -> tuple[dict[str, Values], dict[str, float]]:
    """Return the mean coordinates of the training sources under each value of each placement's variable.

    Each source prompt of the training pairs counts once, at the placement's own positions; of several positions that
    are edited each by itself it is their mean. Placements that take nothing from a source have none.

    Returns:
        Placement → its variable's values, where they are known and not more than 64; placement → the largest norm of
        the coordinates of one source vector.
    """
    found = {
        name: _Means(module, name, known_values(data, location.variable or name))
        for name, location in module.locations.items()
        if module.intervention(name).needs_source
    }
    order, first = list(module.alignment), data.pools["train"].first
    for batch in data.every_pair("train") if found else ():
        everywhere = replace(batch.to(module.device), active=torch.ones_like(batch.active, device=module.device))
        with module.trainer.precision_plugin.forward_context():
            features = module.runner.prepare(everywhere).features
        selections = select(everywhere)
        for name, means in found.items():
            p = order.index(name)
            means.add(everywhere, selections[p], features[p], first)
    values = {name: means.values() for name, means in found.items()}
    return {name: v for name, v in values.items() if v is not None}, {name: m.largest for name, m in found.items()}


class _Means:
    """What one placement's sources look like."""

    def __init__(self, module: InterventionModule, name: str, known: Known | None) -> None:
        self.edit, self.location = module.intervention(name), module.locations[name]
        self.known = known if known is not None and len(known.names) <= MOST else None
        self.largest = 0.0
        self.seen: set[int] = set()
        self.sums: dict[int, Tensor] = {}
        self.counts: dict[int, int] = {}

    def add(self, batch: Batch, chosen: Selection, features: Tensor, first: int) -> None:
        """Take in the sources of a batch that were not seen before; ``first`` is the number of the pool's first."""
        fresh = first_sight(batch, chosen.rows, chosen.source_of, self.seen)
        if not len(fresh):
            return
        joined = self.location.joined
        vectors = grouped(self.location, features[fresh]) if joined else features[fresh]  # the heads kept apart
        coordinates = self.edit.coordinates(vectors).cpu()
        self.largest = max(self.largest, float(coordinates.norm(dim=-1).max()))
        if self.known is None:
            return
        numbers = torch.stack([source.prompts for source in batch.sources if source.prompts is not None])
        of_vector = numbers[chosen.source_of[fresh], chosen.rows[fresh]][:: max(joined, 1)].cpu().numpy() - first
        for row in np.unique(of_vector).tolist():
            if (code := int(self.known.codes[row])) >= 0:
                mean = coordinates[torch.from_numpy(of_vector == row)].double().mean(0)
                self.sums[code] = self.sums[code] + mean if code in self.sums else mean
                self.counts[code] = self.counts.get(code, 0) + 1

    def values(self) -> Values | None:
        """Return the values that were seen; None where nobody knows any."""
        if self.known is None or not self.sums:
            return None
        codes = sorted(self.sums)
        return Values(
            tuple(plain_value(self.known.names[code]) for code in codes),
            torch.stack([(self.sums[code] / self.counts[code]).float() for code in codes]),
            tuple(self.counts[code] for code in codes),
        )
