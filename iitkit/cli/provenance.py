"""What an artifact says of how it was made: digests of settings and data, and an example of the prompts."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from lightning.pytorch.cli import SaveConfigCallback

from iitkit.data import CounterfactualDataModule
from iitkit.data.known import known_values
from iitkit.hub.values import MOST, plain_value
from iitkit.models.fingerprint import digest_of
from iitkit.modules import InterventionModule
from iitkit.positions import listed, span_name

ELSEWHERE = ("default_root_dir", "callbacks", "logger", "enable_progress_bar", "enable_model_summary")
"""Options of the trainer that change where and what is told of a run, not the run."""


def trained_on(module: InterventionModule, data: CounterfactualDataModule) -> dict[str, str]:
    """Return digests of the resolved settings of a run and of the pairs that it was trained and tested on."""
    return {"settings": digest_of(_settings(module)), "data": _data(data)}


def _settings(module: InterventionModule) -> Any:
    """Return the resolved config of a run of the command line; of another the module's own settings."""
    callbacks = module.trainer.callbacks if module._trainer is not None else []  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, SaveConfigCallback):
            config = json.loads(callback.parser.dump(callback.config, format="json", skip_none=False))
            trainer = {key: value for key, value in (config.get("trainer") or {}).items() if key not in ELSEWHERE}
            return {"seed": config.get("seed_everything"), **_parts(config), "trainer": trainer}
    return module.plain()


def _parts(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("model", "data", "optimizer", "lr_scheduler") if key in config}


def _data(data: CounterfactualDataModule) -> str:
    """Return what stands for every split's prompts and first pairs."""
    digest = hashlib.sha256()
    for split in data.splits:
        pool, pairs = data.pools[split], data.pairs(split, 0)
        texts = [text.text for text in pool.texts]
        inputs = getattr(pool.prompts, "inputs", None)
        answers = [row[label] for row, label in zip(pairs.candidates, pairs.label, strict=True)]
        digest.update(json.dumps([split, texts, answers]).encode())
        for array in (inputs, pairs.base, pairs.sources, pairs.variables):
            digest.update(b"" if array is None else array.tobytes())
    return f"sha256:{digest.hexdigest()[:16]}"


def example_of(module: InterventionModule, data: CounterfactualDataModule) -> dict[str, Any] | None:
    """Return a prompt of the data, what the spans are in it that positions name, and values that it does not have.

    Each span's text stands once in it. Chats are left out: their turns are not a text.

    Returns:
        None where there is none to show.
    """
    if module.tokenizer is None or data.wording.chat:
        return None
    named = [span_name(item) for placement in module.alignment.values() for item in listed(placement.position)]
    spans = list(dict.fromkeys(name for name in named if name))
    for row, text in enumerate(data.pools["train"].texts):
        parts = {name: text.text[slice(*text.spans[name])] for name in spans}
        if all(text.text.count(part) == 1 for part in parts.values()):
            others = {name: _other(data, name, row) for name in data.variables}
            return {"prompt": text.text, "spans": parts, "set": {n: v for n, v in others.items() if v is not None}}
    return None


def _other(data: CounterfactualDataModule, variable: str, row: int) -> Any:
    """Return the first value of a variable that a training prompt does not have; None where nobody knows its own."""
    known = known_values(data, variable)
    if known is None or known.codes[row] < 0 or len(known.names) > MOST:
        return None
    return next((plain_value(name) for code, name in enumerate(known.names) if code != known.codes[row]), None)
