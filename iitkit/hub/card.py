"""The README of an artifact: what it is, what was measured, a snippet that runs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from iitkit.hub.identity import is_local, name_of, without_folders

if TYPE_CHECKING:
    from iitkit.hub.artifact import Artifact

TAGS = ("iitkit", "interpretability", "causal-abstraction")
MEASURED = {
    "test": "trained",
    "full_vector": "full vector (control)",
    "random_subspace": "random subspaces (control)",
    "plain/test": "plain model (control)",
    "test_templates": "trained, unseen templates",
}
"""Groups of metrics that the card shows, and what it calls them."""
RATES = {
    "iia": "IIA",
    "iia_flipped": "IIA flipped",
    "iia_kept": "IIA kept",
    "exact": "written exactly",
    "token_accuracy": "tokens right",
}
"""Rates that it shows, where they were measured."""
_MARK = re.compile(r"\n<!-- written by iitkit; edit it and it is yours \(([0-9a-f]{16})\) -->\n\Z")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def is_generated(text: str) -> bool:
    """Return whether a README is one that iitkit wrote and nobody has changed since."""
    text = text.replace("\r\n", "\n")
    mark = _MARK.search(text)
    return mark is not None and mark[1] == _digest(text[: mark.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def card(artifact: Artifact, where: str, subfolder: str | None = None) -> str:
    """Return an artifact's README.

    Args:
        artifact: the artifact.
        where: what its snippet loads: a folder, or user/repo.
        subfolder: the folder in the repo.
    """
    import yaml

    config, base = artifact.config, artifact.config["base"]
    name = name_of(base)
    title = _cell(f"{task_of(config) or 'Interventions'} in {name}")
    results = _results(config, artifact.metrics)
    public = not is_local(base) and _HUB_ID.fullmatch(name) and base["revision"] != "unknown"
    meta: dict[str, Any] = {
        "library_name": "iitkit",
        **({"base_model": name} if public else {}),
        "tags": list(TAGS),
        **({"model-index": [{"name": title, "results": results}]} if results else {}),
    }
    front = yaml.safe_dump(meta, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    parts = [
        f"---\n{front}---\n\n# {title}",
        f"Trained interventions for `{_cell(name)}` ({_cell(base['architecture'])}), made with iitkit:",
        _sites(config["placements"]),
        _table(artifact.metrics),
        fenced(snippet(artifact, where, subfolder)),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return f"{text}\n<!-- written by iitkit; edit it and it is yours ({_digest(text)}) -->\n"


def task_of(config: Mapping[str, Any]) -> str:
    """Return what the interventions are about; of a file its name alone."""
    return without_folders(str(config.get("task") or ""))


def fenced(code: str) -> str:
    """Return Python as a block of Markdown, whatever it says."""
    fence = "```" if "```" not in code else "~" * (3 + code.count("~"))
    return f"{fence}python\n{code}\n{fence}"


def _sites(placements: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name, where in placements.items():
        place = where.get("module") or " ".join(
            str(part) for part in ("layer", where.get("layer"), where["component"]) if where.get("layer") is not None
        )
        made = f"as `{where['shared_with']}`" if "shared_with" in where else _called(where["intervention"])
        values = ", ".join(f"`{_cell(entry['value'])}`" for entry in where.get("values", ()))
        lines.append(
            f"- `{name}`: {_cell(where['variable'])} at {place or where['component']}, "
            f"position {_cell(where['position'])}: {made}" + (f"; values {values}" if values else "")
        )
    return "\n".join(lines)


def _called(spec: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key}={value!r}" for key, value in spec.items() if key != "name")
    return f"`{_cell(spec['name'])}({_cell(options)[:200]})`"


def _results(config: Mapping[str, Any], metrics: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Return the model-index: IIA on all and on flipped pairs, and the same of the controls."""
    task = task_of(config) or "interchange"
    found = [
        {"type": rate, "name": f"{RATES[rate]}, {called}", "value": round(float(value), 4)}
        for group, called in MEASURED.items()
        for rate in RATES
        if rate != "iia_kept" and (value := metrics.get(f"{group}/{rate}")) is not None
    ]
    about = {"task": {"type": "interchange-intervention"}, "dataset": {"type": task, "name": task, "split": "test"}}
    return [{**about, "metrics": found}] if found else []


def _table(metrics: Mapping[str, float | None]) -> str:
    groups = {
        group: called for group, called in MEASURED.items() if any(f"{group}/{rate}" in metrics for rate in RATES)
    }
    rates = {rate: called for rate, called in RATES.items() if any(f"{group}/{rate}" in metrics for group in groups)}
    rows = [[called, *(_shown(metrics, group, rate) for rate in rates)] for group, called in groups.items()]
    lines: list[Sequence[str]] = [["test", *rates.values()], ["---"] * (len(rates) + 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def _shown(metrics: Mapping[str, float | None], group: str, rate: str) -> str:
    value = metrics.get(f"{group}/{rate}")
    n = metrics.get(f"{group}/{rate.replace('iia', 'n') if rate.startswith('iia') else 'n'}")
    return "" if value is None else f"{value:.3f}" + ("" if n is None else f" ({n:.0f})")


def snippet(artifact: Artifact, where: str, subfolder: str | None = None) -> str:
    """Return Python that loads the artifact and uses it."""
    config = artifact.config
    base = name_of(config["base"])
    loaded = repr(where) + ("" if subfolder is None else f", subfolder={subfolder!r}")
    lines = ["import iitkit", "", f"found = iitkit.load({loaded})"]
    example = config.get("example")
    if example is None:
        return "\n".join([*lines, "print(found)"])
    local = "  # your copy of the base" if is_local(config["base"]) else ""
    lines.append(f"model, tokenizer = iitkit.load_base({base!r}){local}")
    lines.append(f"inputs = tokenizer({config.get('prefix', '') + example['prompt']!r}, return_tensors='pt')")
    return "\n".join([*lines, *_use(artifact, example)])


def _use(artifact: Artifact, example: Mapping[str, Any]) -> list[str]:
    """Return the lines that steer."""
    settings: dict[str, Any] = {}
    for name, values in artifact.values.items():
        variable = artifact.config["placements"][name]["variable"]
        said = example.get("set", {}).get(variable)
        settings.setdefault(variable, said if said in values.names else values.names[-1])
    arguments = ["model", "tokenizer"]
    takes = [name for name, made in artifact.interventions.items() if made.needs_source]
    if settings:
        arguments.append(repr(settings))
    elif takes:
        arguments.append(f"source={example['prompt']!r}")
    if example["spans"]:
        arguments.append(f"spans={dict(example['spans'])!r}")
        if takes and not settings:
            arguments.append(f"source_spans={dict(example['spans'])!r}")
    return [
        f"with found.steer({', '.join(arguments)}):",
        "    outputs = model.generate(**inputs, max_new_tokens=8)",
        "print(tokenizer.decode(outputs[0]))",
    ]


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
