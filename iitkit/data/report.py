"""The data report: what a user should see before any training."""

from __future__ import annotations

from collections.abc import Mapping

from iitkit.data.datamodule import CounterfactualDataModule

SHOWN = 2
"""Number of pairs whose sites are shown."""


def data_report(data: CounterfactualDataModule, accuracy: Mapping[str, float]) -> str:
    """Return sizes, flipped shares, the base model's task accuracy and the tokens at the first pairs' sites.

    Args:
        data: the data module, bound to a module.
        accuracy: split → how often the base model answers its prompts right.
    """
    lines = [f"Data: {data.task.name}, prefix {data.prefix!r}, variables {', '.join(data.variables)}"]
    for split in data.splits:
        pairs, pool = data.pairs(split), data.pools[split]
        line = f"  {split:<15}{len(pairs):>6} pairs of {len(pool):>5} prompts, {pairs.flipped.mean():>4.0%} flipped"
        if split in accuracy:
            line += f", base model right on {accuracy[split]:.1%} of prompts"
        if split in data.judged:
            line += f" ({data.judged[split]:.1%} before only_correct)"
        lines.append(line)
    pool, pairs = data.pools["train"], data.pairs("train")
    for i in range(min(SHOWN, len(pairs))):
        base = int(pairs.base[i])
        answers = pairs.candidates[i]
        lines.append(f"  base   {pool.prompts[base].text!r} → {answers[pairs.base_label[i]]!r}")
        sources = pairs.sources[i].tolist()
        lines += [f"  source {pool.prompts[source].text!r}" for source in sources]
        lines[-1] += f" → label {answers[pairs.label[i]]!r}"
        for name, positions in zip(data.names, pool.positions, strict=True):
            shown = [
                " ".join(repr(data.tokenizer.decode([pool.prompts[row].ids[column]])) for column in positions[row])
                for row in (base, *sources)
            ]
            lines.append(f"         {name}: base token {shown[0]}, source token {', '.join(shown[1:])}")
    return "\n".join(lines)
