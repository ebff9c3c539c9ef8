"""The README of a dataset: what its columns hold, which hypothesis its labels come from, how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from iitkit import __version__
from iitkit.causal import CausalModel
from iitkit.data.cells import COLUMNS
from iitkit.data.source import Split
from iitkit.errors import choices

TAGS = ("iitkit", "counterfactual")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

ABOUT = """\
Pairs of prompts for interchange interventions. Each row asks: if a variable (or a place in a network) took the value \
that it has in `source` while the network reads `base`, what would the answer be? `label` says."""

USE = """\
## Use

```python
from datasets import load_dataset

pairs = load_dataset("WHERE", split="SPLIT")
```

With iitkit, in an experiment's YAML:

```yaml
data:
  class_path: CounterfactualDataModule
  init_args:
    dataset: {path: "WHERE"}
```"""


@dataclass(frozen=True)
class Card:
    """What a dataset's README says.

    Args:
        title: its name.
        description: what it is about, in Markdown.
        license: an identifier of the Hub's, e.g. ``cc0-1.0``; none unless said.
        language: code of the prompts' language, or several.
        hypothesis: where the labels come from, in Markdown; see :func:`hypothesis`.
        seed: that the pairs were drawn from.
        settings: what else they were made by, name → value.
        repo_id: where it will be on the Hub, user/name.
    """

    title: str = "Counterfactual pairs"
    description: str = ""
    license: str | None = None
    language: str | Sequence[str] | None = "en"
    hypothesis: str = ""
    seed: int | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    repo_id: str | None = None


def hypothesis(model: CausalModel) -> str:
    """Return a causal model's variables as a table, its templates and, where the model can draw it, its graph."""
    lines = ["The labels are computed by this causal model, never by a network.", ""]
    lines += ["| variable | computed from | values |", "| --- | --- | --- |"]
    for name in [*model.exogenous, *model.mechanisms]:
        domain = model.domains[name]
        values = choices([repr(value) for value in domain.values], 8) if domain.complete else "many"
        parents = ", ".join(f"`{p}`" for p in model.mechanisms[name].parents) if name in model.mechanisms else "drawn"
        answer = " (the answer)" if name == model.output else ""
        lines.append(f"| `{name}`{answer} | {parents} | {_cell(values)} |")
    templates = [str(template.template) for template in getattr(model, "templates", [])]
    if templates:
        lines += ["", "Templates, by number:", ""]
        lines += [f"{i}. `{template}`" for i, template in enumerate(templates)]
    drawn = getattr(model, "mermaid", None)
    if callable(drawn):
        lines += ["", "```mermaid", str(drawn()).strip(), "```"]
    return "\n".join(lines)


def readme(
    card: Card, files: Mapping[Split, str], columns: Mapping[Split, Mapping[str, list[Any]]], folder: str
) -> str:
    """Return a dataset's README.md.

    Args:
        card: what it says.
        files: split → its file.
        columns: split → column name → cells.
        folder: name of the dataset's folder.
    """
    import yaml

    sizes = {split: len(next(iter(named.values()))) for split, named in columns.items()}
    total = sum(sizes.values())
    meta = {
        "license": card.license,
        "language": [card.language] if isinstance(card.language, str) else list(card.language or ()),
        "pretty_name": card.title,
        "size_categories": [next((name for most, name in _SIZES if total < most), "n>1M")],
        "tags": list(TAGS),
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": file} for split, file in files.items()],
            }
        ],
    }
    front = yaml.safe_dump({key: value for key, value in meta.items() if value}, sort_keys=False, allow_unicode=True)
    where = card.repo_id or f"path/to/{folder}"
    made = {
        "iitkit": __version__,
        "numpy": np.__version__,
        **({} if card.seed is None else {"seed": card.seed}),
        **card.settings,
    }
    parts = [
        f"---\n{front}---\n\n# {card.title}",
        card.description.strip(),
        ABOUT,
        _table(("split", "pairs", "label changed"), [(f"`{s}`", n, _share(columns[s])) for s, n in sizes.items()]),
        USE.replace("WHERE", where).replace("SPLIT", next(iter(files))),
        "## Columns\n\n" + _table(("column", "holds"), _described(columns)),
        f"## Hypothesis\n\n{card.hypothesis}" if card.hypothesis else "",
        "## How it was made\n\n" + _table(("", ""), [(key, f"`{_cell(value)}`") for key, value in made.items()]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _described(columns: Mapping[Split, Mapping[str, list[Any]]]) -> list[tuple[object, ...]]:
    there = dict.fromkeys(name for named in columns.values() for name in named)
    return [(f"`{name}`", COLUMNS.get(name, "")) for name in there]


def _share(named: Mapping[str, list[Any]]) -> str:
    if "base_label" not in named:
        return "unknown"
    changed = [a != b for a, b in zip(named["label"], named["base_label"], strict=True)]
    return f"{sum(changed) / len(changed):.0%}"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
