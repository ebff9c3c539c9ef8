"""Trace the facts of ``configs/trace_smollm2.yaml`` in one thread, and print what it took: ``facts.py FOLDER``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import yaml

import iitkit
from iitkit.cli.inputs import FACT, facts_of, rows_of

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "trace_smollm2.yaml"


def main(folder: Path) -> None:
    """Measure all that a grid takes once the network is there."""
    torch.set_num_threads(1)
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    facts = facts_of(rows_of(config["prompts"], FACT))
    model, tokenizer = iitkit.load_base(config["base"])
    clock, cpu = time.perf_counter(), time.process_time()
    grid = iitkit.trace(
        model,
        tokenizer,
        facts,
        prefix=config["prefix"],
        components=config["components"],
        draws=config["draws"],
        seed=config["seed"],
        folder=folder / "facts",
        progress=False,
    )
    seconds = {"seconds": round(time.perf_counter() - clock, 1), "cpu": round(time.process_time() - cpu, 1)}
    assert grid.sizes["example"] == len(facts)
    assert not grid.failed
    tokens = sum(len(tokenizer(config["prefix"] + fact.prompt)["input_ids"]) for fact in facts)
    cells = tokens * grid.sizes["layer"]
    print(json.dumps({"facts": len(facts), "draws": config["draws"], "cells": cells, **seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
