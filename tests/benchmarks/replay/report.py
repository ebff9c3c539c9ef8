"""The printed table, the verdicts beside each ratio, and the results file."""

from __future__ import annotations

import json
import os
import platform
import statistics
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from cells import BATCH, PROMPTS, Cell
from floor import Throughput, work
from measuring import Measured, Setting
from networks import shape_of

_COLUMNS = (
    ("cell", 35),
    ("plain s", 8),
    ("replay s", 9),
    ("pyvene s", 9),
    ("of pyvene", 19),
    ("of plain", 17),
    ("fill", 16),
    ("peak MB plain/replay/pyvene", 28),
    ("of floor", 8),
)


class Report:
    """Collects cells, prints each as it comes.

    Args:
        setting: how they are measured.
        weights: what each network's weights are.
        throughput: measures the floor.
    """

    def __init__(self, setting: Setting, weights: dict[str, str], throughput: Throughput) -> None:
        self.setting, self.throughput = setting, throughput
        self.failed: list[str] = []
        self.result: dict[str, Any] = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": _machine(setting.device),
            "threads": 1,
            "versions": {"python": platform.python_version(), **_versions("iitkit", "torch", "transformers")},
            "batch": BATCH,
            "unique_prompts": PROMPTS,
            "repeats": setting.repeats,
            "dtype": setting.dtype,
            "weights": weights,
            "cells": [],
        }

    def head(self) -> None:
        """Print the heading."""
        print(f"{self.result['machine']['device']}, one thread, {self.setting.dtype}, batch {BATCH}")
        print("  ".join(f"{name:<{width}}" for name, width in _COLUMNS), flush=True)

    def add(self, cell: Cell, found: Measured | Exception) -> None:
        """Take up a cell and print its row."""
        if isinstance(found, Exception):
            self.failed.append(f"{cell.name}: {found}")
            self.result["cells"].append({"cell": cell.name, "error": str(found).strip().splitlines()[-1]})
            print(f"{cell.name:<35}  FAILED: {found}", flush=True)
            return
        if "pyvene" in found.versions:
            self.result["versions_pyvene"] = found.versions["pyvene"]
        row = self._row(cell, found)
        self.result["cells"].append(row)
        self.result["matmul_gflops"] = {name: round(v / 1e9, 1) for name, v in self.throughput.known.items()}
        seconds, checks = row["median_s"], row["checks"]
        peaks = "/".join(f"{row['memory'][mode]['peak_mb']:.0f}" for mode in row["memory"])
        texts = (
            cell.name,
            f"{seconds['plain']:.3f}",
            f"{seconds['replay']:.4f}",
            f"{seconds['pyvene']:.3f}" if "pyvene" in seconds else "–",
            _verdict(checks.get("peer"), "×"),
            _verdict(checks["plain"], "×"),
            _verdict(checks["fill"], ""),
            f"{peaks} {'PASS' if checks['memory']['pass'] else 'FAIL'}",
            f"{row['floor']['fraction']:.2f}",
        )
        print("  ".join(f"{text:<{width}}" for text, (_, width) in zip(texts, _COLUMNS, strict=True)), flush=True)

    def _row(self, cell: Cell, found: Measured) -> dict[str, Any]:
        medians = {mode: found.median(mode) for mode in found.seconds}
        ratios = {"plain": medians["plain"] / medians["replay"], "fill": found.fill["fill_ratio"]}
        if "pyvene" in medians:
            ratios["peer"] = medians["pyvene"] / medians["replay"]
        checks: dict[str, dict[str, Any]] = {}
        bounds = cell.bounds() if self.setting.device == "cpu" else {}
        for name, ratio in ratios.items():
            checks[name] = {"ratio": round(ratio, 3)}
            if name in bounds:
                bound = bounds[name]
                passed = ratio <= bound if name == "fill" else ratio >= bound
                checks[name].update(bound=bound, **{"pass": passed})
        checks["memory"] = self._memory(cell, found)
        self.failed += [f"{cell.name}: {name} {c}" for name, c in checks.items() if not c.get("pass", True)]
        return {
            "cell": cell.name,
            "median_s": {mode: _short(value) for mode, value in medians.items()},
            "repeats_s": {mode: [_short(s) for s in values] for mode, values in found.seconds.items()},
            "cpu_median_s": {mode: _short(statistics.median(values)) for mode, values in found.cpu.items()},
            "load": round(os.getloadavg()[0], 1),
            "checks": checks,
            "fill": {
                key: [_short(v) for v in found.fill[key]] if key != "fill_ratio" else _short(found.fill[key])
                for key in ("fill", "forward", "fill_ratios", "fill_ratio")
            },
            "memory": {m: {k: round(v) for k, v in values.items()} for m, values in found.memory.items()},
            "logits_off": {what: float(f"{value:.1e}") for what, value in found.differences.items()},
            "profile_s": {mode: {k: _short(v) for k, v in part.items()} for mode, part in found.profiles.items()},
            "floor": self._floor(cell, medians["replay"]),
        }

    def _memory(self, cell: Cell, found: Measured) -> dict[str, Any]:
        """The peak with replay against the plain one's and what must be kept of the prompts."""
        shape = shape_of(cell.model)
        per_token = torch.empty(0, dtype=getattr(torch, self.setting.dtype)).element_size()
        above = shape.layers - cell.layer - 1
        kept = above * 2 * shape.key_width * cell.position + shape.width * (cell.tokens - cell.position + 1)
        store = PROMPTS * kept * per_token / 1e6
        plain, replay = (found.memory[mode]["peak_mb"] for mode in ("plain", "replay"))
        bound = plain + store
        return {"store_mb": round(store, 1), "bound": round(bound), "pass": replay <= 1.02 * bound}

    def _floor(self, cell: Cell, seconds: float) -> dict[str, Any]:
        shape = shape_of(cell.model)
        self.throughput.again()
        done, least = work(cell, shape), self.throughput.seconds(cell, shape)
        rows = BATCH * (cell.tokens - cell.position)
        return {
            "gflop": {name: round(getattr(done, name) / 1e9, 3) for name in ("layers", "head", "rotation")},
            "used": f"layers [{rows}, d] x [d, 4d], head [{BATCH}, d] x [d, 4d], QR square",
            "seconds": _short(least),
            "fraction": round(least / seconds, 3),
            "fraction_by_square": round(done.total / self.throughput.square() / seconds, 3),
        }

    def foot(self) -> bool:
        """Print what was measured for the floor, and every miss; return whether there was one."""
        print("\nmatrix products, GFLOP/s:", ", ".join(f"{k} {v / 1e9:.0f}" for k, v in self.throughput.known.items()))
        print("of floor: FLOPs that must be done at these rates (layers at the cell's own number of rows), per step")
        for miss in self.failed:
            print("MISSED", miss)
        return bool(self.failed)

    def write(self, path: Path) -> None:
        """Write the results file."""
        path.write_text(json.dumps(self.result, indent=1, ensure_ascii=False) + "\n")


def _verdict(check: dict[str, Any] | None, sign: str) -> str:
    if check is None:
        return "–"
    text = f"{check['ratio']:.{2 if sign == '' else 1}f}{sign}"
    if "bound" not in check:
        return text
    return f"{text} ({'≤' if sign == '' else '≥'} {check['bound']:g}) {'PASS' if check['pass'] else 'FAIL'}"


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _versions(*names: str) -> dict[str, str]:
    return {name: version(name) for name in names}


def _machine(device: str) -> dict[str, Any]:
    if device == "cuda":
        return {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    name = platform.processor() or platform.machine()
    cpu = Path("/proc/cpuinfo")
    if cpu.is_file():
        models = [
            line.split(":", 1)[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return {"device": name, "cores": os.cpu_count(), "system": platform.system()}
