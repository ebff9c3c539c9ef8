"""Grids of iitkit against one hooked forward per cell, TransformerLens and pyvene: seconds a cell.

Two grids of SmolLM2-135M, block outputs over all layers and positions: ``pair`` patches one prompt's run with
another's, ``trace`` restores a clean run in ten rows whose subject is noised. Each tool is a process of one thread and,
where it is a peer, of an environment of its own; the first turn runs every cell and compares the logits, the others
take turns on all cells (iitkit) or a sample of them (the others). A number is the median over the turns; of iitkit it
counts all that a grid takes, of the others the cells alone, without the source's run.

A third measurement, ``facts``, is the whole of ``configs/trace_smollm2.yaml`` on one core: 20 facts, 10 draws, block
outputs over all 30 layers and all positions.

Seconds are the process's own (CPU) time, which on an idle machine is the clock's: it tells a slow grid from a busy
machine. Both are printed and written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent / "replay"))

import task as tasks  # noqa: E402
import torch  # noqa: E402
from envs import python_of_lens  # noqa: E402
from peer_env import python_of_peer  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from wire import Worker, WorkerError  # noqa: E402

BOUNDS = {
    ("pair", "hooked"): 12.0,
    ("pair", "transformer-lens"): 14.0,
    ("pair", "pyvene"): 24.0,
    ("trace", "hooked"): 8.0,
}
"""How many times quicker iitkit must be."""
MOST_FACTS = 8 * 60.0
"""Seconds that the facts may take; asked of two cores, measured on one."""

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_ENVIRONMENT = {**_ONE_THREAD, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
KINDS = (*tasks.KINDS, "facts")
TOLERANCE = 1e-4
"""Most that logits may differ between tools, of the largest."""


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", nargs="+", choices=KINDS, default=list(KINDS), help="which grids")
    parser.add_argument("--repeats", type=int, default=5, help="turns after the first (default 5)")
    parser.add_argument("--sample", type=int, default=18, help="cells of the others' later turns (default 18)")
    parser.add_argument("--no-peer", action="store_true", help="only iitkit and one hooked forward per cell")
    parser.add_argument(
        "--pyvene-env", type=Path, metavar="FOLDER", help="pyvene's environment (default: in the cache)"
    )
    parser.add_argument("--lens-env", type=Path, metavar="FOLDER", help="TransformerLens's (default: in the cache)")
    parser.add_argument("--no-fail", action="store_true", help="exit 0 though a bound is missed")
    parser.add_argument("--out", type=Path, help="results file (default: none)")
    return parser.parse_args()


def commands(kind: str, options: argparse.Namespace) -> dict[str, list[str]]:
    """Return what starts each tool."""
    own = [sys.executable, str(HERE / "own.py")]
    found = {"iitkit": [*own, "iitkit"], "iitkit layer by layer": [*own, "layers"], "hooked": [*own, "hooked"]}
    if kind == "pair" and not options.no_peer:
        found["transformer-lens"] = [str(python_of_lens(options.lens_env)), str(HERE / "lens_grid.py")]
        found["pyvene"] = [str(python_of_peer(options.pyvene_env)), str(HERE / "pyvene_grid.py")]
    return found


def measure(kind: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a grid with each tool.

    Raises:
        WorkerError: a tool failed.
        RuntimeError: logits differ between tools.
    """
    task = tasks.make(kind, folder)
    cells = [(layer, column) for layer in range(task["layers"]) for column in range(len(task["base"]))]
    found: dict[str, Any] = {"cells": len(cells), "load": [], "tools": {}}
    logits: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        workers = {}
        for name, command in commands(kind, options).items():
            workers[name] = Worker(name, [*command, str(folder)], folder / f"{kind}-{name}.log", _ENVIRONMENT)
            stack.callback(workers[name].close)
            said = workers[name].ask("load", task=task)
            found["tools"][name] = {"versions": said, "seconds": [], "cpu": []}
        for turn in range(options.repeats + 1):
            found["load"].append(round(os.getloadavg()[0], 1))
            for name, worker in workers.items():
                whole = turn == 0 or name.startswith("iitkit")
                some = cells if whole else cells[turn % 7 :: max(1, len(cells) // options.sample)]
                answer = worker.ask("grid", cells=some, name=f"{kind}-{name}.safetensors")
                if turn == 0:
                    logits[name] = load_file(folder / f"{kind}-{name}.safetensors")["logits"]
                else:
                    for key in ("seconds", "cpu"):
                        found["tools"][name][key].append(answer[key] / len(some))
                found["tools"][name]["about"] = answer.get("about")
    largest = logits["hooked"].abs().max()
    for name, values in logits.items():
        off = float((values - logits["hooked"]).abs().max() / largest)
        found["tools"][name]["off"] = float(f"{off:.1e}")
        if not off <= TOLERANCE:
            raise RuntimeError(f"{kind}: logits of {name} differ from the hooked run's by {off:.2g} of the largest")
    return found


def floor(kind: str, folder: Path) -> dict[str, float]:
    """Return the least that a cell takes: FLOPs that must be done, over the throughput of matrix products here."""
    from floor import Throughput

    torch.set_num_threads(1)
    steps, reads, task = tasks.steps(kind, folder)
    flop = 2.0 * steps * task["block"] + 2.0 * reads * task["head"]
    rate = Throughput(torch.device("cpu"), torch.float32).rows(300, task["width"])
    cells = task["layers"] * len(task["base"])
    return {"gflop": round(flop / 1e9, 1), "gflops": round(rate / 1e9, 1), "seconds": flop / rate / cells}


def facts(folder: Path) -> dict[str, Any]:
    """Trace the facts of the config in a process of one thread.

    Raises:
        WorkerError: it failed.
    """
    load = os.getloadavg()[0]
    command = [sys.executable, str(HERE / "facts.py"), str(folder)]
    ran = subprocess.run(command, env={**os.environ, **_ENVIRONMENT}, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise WorkerError(f"facts failed:\n{ran.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    seconds = found["cpu"]
    verdict = "PASS" if seconds <= MOST_FACTS else "FAIL"
    print(
        f"\nfacts: {found['facts']} facts, {found['cells']} cells of {found['draws']} rows, load {load:.1f}: "
        f"{seconds:.0f} CPU s, {found['seconds']:.0f} s by the clock  (≤ {MOST_FACTS:g}) {verdict}"
    )
    return {**found, "load": round(load, 1)}


def told(kind: str, found: dict[str, Any]) -> list[str]:
    """Print a grid's table; return what was missed."""
    missed = []
    ours = {key: statistics.median(found["tools"]["iitkit"][key]) for key in ("cpu", "seconds")}
    print(f"\n{kind}: {found['cells']} cells, load {min(found['load'])}–{max(found['load'])}")
    print(f"{'tool':<24}{'CPU s/cell':>12}{'clock s/cell':>14}{'times iitkit':>14}{'logits off':>12}")
    for name, tool in found["tools"].items():
        cpu, clock = (statistics.median(tool[key]) for key in ("cpu", "seconds"))
        ratio = cpu / ours["cpu"]
        tool["ratio"], tool["median_cpu"], tool["median_s"] = (
            round(ratio, 2),
            float(f"{cpu:.4g}"),
            float(f"{clock:.4g}"),
        )
        bound = BOUNDS.get((kind, name))
        verdict = "" if bound is None else f"  (≥ {bound:g}) {'PASS' if ratio >= bound else 'FAIL'}"
        if bound is not None and ratio < bound:
            missed.append(f"{kind}: {ratio:.1f} times quicker than {name}, must be {bound:g}")
        print(f"{name:<24}{cpu:>12.5f}{clock:>14.5f}{ratio:>14.1f}{tool['off']:>12.1e}{verdict}")
    least = found["floor"]["seconds"]
    print(
        f"{'floor':<24}{least:>12.5f}   reached: {least / ours['cpu']:.2f} of it at {found['floor']['gflops']} GFLOP/s"
    )
    return missed


def write(result: dict[str, Any], options: argparse.Namespace) -> None:
    """Write what was measured so far."""
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def main() -> int:
    """Measure, print, write; 1 where a bound is missed or a tool fails."""
    options = parsed()
    result: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"device": _cpu(), "cores": os.cpu_count(), "threads": 1},
        "python": platform.python_version(),
        "grids": {},
    }
    missed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch)
        tasks.write(folder)
        for kind in options.grids:
            try:
                if kind == "facts":
                    result["facts"] = facts(folder)
                    if result["facts"]["cpu"] > MOST_FACTS:
                        missed.append(f"facts: {result['facts']['cpu']:.0f} s, must be {MOST_FACTS:g}")
                    write(result, options)
                    continue
                found = measure(kind, folder, options)
                found["floor"] = floor(kind, folder)
            except (WorkerError, RuntimeError) as error:  # one grid fails: the table says so, and goes on
                missed.append(f"{kind}: {error}")
                continue
            missed += told(kind, found)
            for tool in found["tools"].values():
                tool["seconds"], tool["cpu"] = ([float(f"{x:.4g}") for x in tool[key]] for key in ("seconds", "cpu"))
            result["grids"][kind] = found
            write(result, options)
    for miss in missed:
        print("MISSED", miss)
    return int(bool(missed) and not options.no_fail)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    found = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
