"""Mutated configs of other tools: whatever they say, only our own error comes of it."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from foreign import FOLDER, network

import iitkit

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 10**9, 2**70, 0.5, float("nan"), "", "x", "../x", "a/b", "\0", "layer"),
    *([], [[]], [1], ["x"], {}, {"x": 1}, {"x": {}}, [None], "pos", "h", "block_output", "head_value_output"),
    *("mlp_output", "transformer.h[0].mlp.output", "<class 'os.system'>", "x.output", ".input", "[", "all"),
    *("<class 'pyvene.models.interventions.ZeroIntervention'>", "last", "serial", "pca", [0, 1], [[0, 2], [3]]),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a config: keys and indices."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutated(config: Any, draw: random.Random) -> Any:
    made = copy.deepcopy(config)
    for _ in range(draw.choice((1, 1, 2, 3))):
        *path, last = draw.choice(list(places(made)))
        holder = made
        for key in path:
            holder = holder[key]
        how = draw.choice(("set", "set", "set", "drop", "double"))
        if how == "drop":
            del holder[last]
        elif how == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        else:
            holder[last] = copy.deepcopy(draw.choice(VALUES))
        if not made:
            return made
    return made


@pytest.mark.parametrize(
    ("folder", "file", "family"),
    [
        *((f"pyvene/{name}", "config.json", "gpt2") for name in ("gpt2_low_rank", "gpt2_addition", "gpt2_linked")),
        ("pyvene/gpt2_boundless", "config.json", "gpt2"),
        ("peft/patterns", "adapter_config.json", "llama"),
    ],
)
def test_only_our_error(folder: str, file: str, family: str, tmp_path: Path) -> None:
    target = shutil.copytree(FOLDER / folder, tmp_path / "x")
    config = json.loads((target / file).read_text())
    said: list[str] = []
    model, draw = network(family), random.Random(folder)
    for _ in range(150):
        (target / file).write_text(json.dumps(mutated(config, draw)))
        try:
            iitkit.convert(target, model, trust=True)
        except iitkit.IITKitError as error:
            said.append(str(error))
    assert len(said) > 30
    assert max(map(len, said)) < 1500
