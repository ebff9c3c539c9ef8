"""The data report: what a user should see before any training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from iitkit.causal.hypotheses import COPY, NO_CHANGE
from iitkit.data.datamodule import CounterfactualDataModule
from iitkit.data.drawn import TaskPairs
from iitkit.data.pairs import Pairs

SHOWN = 2
"""Number of pairs whose sites are shown."""

FEW = 12
"""Variables of at most so many values have a line of their own in the report."""

Judged = Mapping[str, npt.NDArray[np.bool_]]
"""Split → on which of its first prompts the base model is right."""


def data_report(data: CounterfactualDataModule, judged: Judged | None = None) -> str:
    """Return what a user should know of the data before anything is trained.

    Sizes, flipped shares and the base model's accuracy; what the splits share; how often labels and values occur; which
    hypotheses the pairs can tell apart, with a warning where they cannot; the tokens at the first pairs' sites.

    Args:
        data: the data module, bound to a module.
        judged: split → on which of its first prompts the base model is right.
    """
    judged = judged or {}
    lines = [f"Data: {data.source.name}, prefix {data.prefix!r}, variables {', '.join(data.variables)}"]
    if isinstance(data.source, TaskPairs):
        graph = [f"{name} ← {', '.join(above)}" for name, above in data.source.model.parents.items() if above]
        lines.append(f"  hypothesis: {'; '.join(graph)}")
    for split in data.splits:
        pairs, pool = data.pairs(split), data.pools[split]
        share = f"{pairs.flipped.mean():>4.0%} flipped" if min(pairs.base_label) >= 0 else "flipped: unknown"
        line = f"  {split:<15}{len(pairs):>6} pairs of {len(pool):>5} prompts, {share}"
        if split in judged:
            line += f", base model right on {judged[split].mean():.1%} of prompts"
        if split in data.judged:
            line += f" ({data.judged[split]:.1%} before only_correct)"
        lines.append(line)
    lines += [f"  {line}" for part in (_splits, _occurrences, _hypotheses) for line in part(data)]
    lines += [f"  {line}" for line in (*data.preflight(), *_accuracies(data, judged))]
    return "\n".join([*lines, *_examples(data)])


def _splits(data: CounterfactualDataModule) -> Iterator[str]:
    if isinstance(data.source, TaskPairs):
        yield from (f"splits: {line}" for line in data.source.audit())
    else:
        for (one, other), n in data.source.shared_prompts().items():
            yield f"warning: {one} and {other} share {n} prompts: the test is then no test of what is new"


def _shares(values: Sequence[Hashable]) -> str:
    counted = Counter(values)
    shown = ", ".join(f"{value!r} {n / len(values):.0%}" for value, n in counted.most_common(6))
    return shown + (f", … ({len(counted)} in all)" if len(counted) > 6 else "")


def _occurrences(data: CounterfactualDataModule) -> Iterator[str]:
    """How often labels occur, and the values that variables take from sources."""
    pairs = data.pairs("train")
    yield f"labels: {_shares([row[i] for row, i in zip(pairs.candidates, pairs.label, strict=True)])}"
    if not isinstance(data.source, TaskPairs) or data.design.stages:
        return
    setting, model = data.pools["train"].setting, data.source.model
    for v, name in enumerate(data.variables):
        rows, k = (pairs.variables == v).nonzero()
        if len(rows):
            sources = pairs.sources[rows, np.minimum(k, pairs.sources.shape[1] - 1)]
            yield f"{name} of the source: {_shares(model.values({name: setting[name][sources]}, name))}"


def _hypotheses(data: CounterfactualDataModule) -> Iterator[str]:
    """Which hypotheses the training pairs tell apart."""
    if not isinstance(data.source, TaskPairs) or data.design.stages:
        return
    pairs, setting = data.pairs("train"), data.pools["train"].setting
    yield from str(data.source.distinguish(setting, pairs, data.variables)).splitlines()
    yield from (f"warning: {line}" for line in confounded(data, pairs))


def confounded(data: CounterfactualDataModule, pairs: Pairs) -> list[str]:
    """Return what pairs of a task cannot tell: variables whose labels a simpler rival predicts as well."""
    source = data.source
    assert isinstance(source, TaskPairs)
    answers, lines = source.truths("train"), []
    kept = data.kept("train")
    answers = answers if kept is None else [answers[i] for i in kept.tolist()]
    for v, name in enumerate(data.variables):
        rows, k = (pairs.variables == v).nonzero()
        if not len(rows):
            continue
        sources = pairs.sources[rows, np.minimum(k, pairs.sources.shape[1] - 1)].tolist()
        labels = [pairs.candidates[i][pairs.label[i]] for i in rows.tolist()]
        copied = labels == [answers[i] for i in sources]
        for rival, same, says in (
            (COPY, copied, "takes over the source's answer as a whole"),
            (NO_CHANGE, not pairs.flipped[rows].any(), "does nothing"),
        ):
            if same:
                lines.append(
                    f"on all {len(rows)} pairs {name} predicts what {rival!r} predicts: they are no evidence for the "
                    f"variable against a site that {says}"
                )
    return lines


def _accuracies(data: CounterfactualDataModule, judged: Judged) -> Iterator[str]:
    """The base model's accuracy by template and by value, where it differs."""
    for split, right in judged.items():
        for what, groups in accuracies(data, split, right).items():
            shares = [f"{value} {share:.0%} of {n}" for value, (share, n) in groups.items()]
            if len(groups) > 1:
                yield f"{split}, right by {what}: {', '.join(shares)}"


def accuracies(
    data: CounterfactualDataModule, split: str, right: npt.NDArray[np.bool_]
) -> dict[str, dict[str, tuple[float, int]]]:
    """Return the base model's accuracy on a split's first prompts, by template and by every variable of few values.

    Returns:
        What → value → share that is right, number of prompts.
    """
    pool, n = data.pools[split], len(right)
    columns: dict[str, Sequence[Any]] = {"template": pool.templates[:n].tolist()}
    if isinstance(data.source, TaskPairs):
        model = data.source.model
        for name, domain in model.domains.items():
            codes = pool.setting[name][:n]
            if 1 < len(np.unique(codes)) <= FEW and len(domain) <= FEW:
                columns[name] = model.values({name: codes}, name)
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for what, column in columns.items():
        for value in sorted(set(column), key=str):
            rows = np.asarray([i for i, other in enumerate(column) if other == value])
            found.setdefault(what, {})[str(value)] = (float(right[rows].mean()), len(rows))
    return found


def as_plain(data: CounterfactualDataModule, judged: Judged | None = None) -> dict[str, Any]:
    """Return the report's numbers as plain values, for a file."""
    judged = judged or {}
    splits: dict[str, Any] = {}
    for split in data.splits:
        pairs = data.pairs(split)
        known = min(pairs.base_label) >= 0
        splits[split] = {
            "pairs": len(pairs),
            "prompts": len(data.pools[split]),
            "flipped": float(pairs.flipped.mean()) if known else None,
        }
        if split in judged:
            splits[split]["accuracy"] = float(judged[split].mean())
            splits[split]["accuracy_by"] = {
                what: {value: {"accuracy": share, "n": n} for value, (share, n) in groups.items()}
                for what, groups in accuracies(data, split, judged[split]).items()
            }
    found: dict[str, Any] = {"data": data.source.name, "variables": data.variables, "splits": splits}
    found["preflight"] = data.preflight()
    if isinstance(data.source, TaskPairs) and not data.design.stages:
        pairs = data.pairs("train")
        matrix = data.source.distinguish(data.pools["train"].setting, pairs, data.variables)
        found["disagreement"] = {"hypotheses": matrix.names, "matrix": matrix.matrix.tolist(), "pairs": matrix.pairs}
        found["warnings"] = confounded(data, pairs)
    return found


def _examples(data: CounterfactualDataModule) -> Iterator[str]:
    """The first pairs, with the tokens at their sites."""
    pool, pairs = data.pools["train"], data.pairs("train")
    for i in range(min(SHOWN, len(pairs))):
        base = int(pairs.base[i])
        answers = pairs.candidates[i]
        own = repr(answers[pairs.base_label[i]]) if pairs.base_label[i] >= 0 else "unknown"
        yield f"  base   {pool.prompts[base].text!r} → {own}"
        sources = pairs.sources[i].tolist()
        for number, source in enumerate(sources, 1):
            last = f" → label {answers[pairs.label[i]]!r}" if number == len(sources) else ""
            yield f"  source {pool.prompts[source].text!r}{last}"
        if data.tokenizer is None:
            continue
        for name, positions in zip(data.names, pool.positions, strict=True):
            shown = [
                " ".join(repr(data.tokenizer.decode([pool.prompts[row].ids[column]])) for column in positions[row])
                for row in (base, *sources)
            ]
            yield f"         {name}: base token {shown[0]}, source token {', '.join(shown[1:])}"
