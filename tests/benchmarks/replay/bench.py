"""Training steps of iitkit, plain and with replay, against pyvene: seconds, memory, and the fraction of the floor.

Each cell runs every mode in a fresh process of one thread, in alternation (plain, replay, peer, plain, …), on the same
weights, pairs, labels and rank, 16 pairs a batch; a number is the median of the repeats after a warm-up.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

import cells as table
import networks
import torch
from floor import Throughput
from measuring import Measured, Setting, measure
from peer_env import python_of_peer
from report import Report

HERE = Path(__file__).resolve().parent

LEFT_OUT = """
The table of a run without options leaves out, to end within about an hour: rank 1, full rotation and boundless anywhere
but at the last token of GPT-2's layer 6 (full rotation also SmolLM2's layer 12) with 24 tokens; and of prompts of 96
tokens all but GPT-2's layer 6 at the last and the middle token, SmolLM2's layer 12 at the last token and its layer 3
at the first third. --all runs the whole product of
4 sites × 3 positions × 2 lengths × 4 interventions (hours); --cells picks from it by name.

Positions: "last"; "middle" is token n // 2 and "third" token n // 3 of n, counted from 0. Where a GPU is there it is
measured instead (bf16, CUDA events, GPT-2 small and a 1 B Llama shape, no peer); --device cpu keeps to the CPU.
"""


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=LEFT_OUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a handful of cells")
    parser.add_argument("--all", action="store_true", help="every combination (hours)")
    parser.add_argument("--cells", metavar="SUBSTRING", help="cells whose name contains this, of all there are")
    parser.add_argument("--list", action="store_true", help="print the cells' names and what they must reach, and end")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each mode (default 7)")
    parser.add_argument("--no-peer", action="store_true", help="only iitkit")
    parser.add_argument(
        "--peer-env", type=Path, metavar="FOLDER", help="the peer's environment (default: in the cache)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--no-fail", action="store_true", help="exit 0 though a bound is missed")
    parser.add_argument(
        "--out", type=Path, help="results file (default: results[-cuda].json here; none with --quick, --cells, --all)"
    )
    return parser.parse_args(arguments)


def chosen(options: argparse.Namespace, cuda: bool) -> list[table.Cell]:
    """The cells that the options ask for."""
    if options.quick:
        found = table.gpu_cells()[:3] if cuda else table.quick_cells()
    elif options.all or options.cells:
        found = table.gpu_cells() if cuda else table.all_cells()
    else:
        found = table.gpu_cells() if cuda else table.default_cells()
    return [cell for cell in found if options.cells is None or options.cells in cell.name]


def main() -> int:
    """Measure, print, write; 1 where a bound is missed or a cell fails."""
    options = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # workers and scratch folder go first
    cuda = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    if cuda and not torch.cuda.is_available():
        print("no GPU here: nothing to measure on it", file=sys.stderr)
        return 0
    picked = chosen(options, cuda)
    if options.list or not picked:
        for cell in picked:
            print(cell.name, cell.bounds())
        return 0 if picked else 2
    torch.set_num_threads(1)
    peer = None if options.no_peer or cuda else python_of_peer(options.peer_env)
    out = options.out
    if out is None and not (options.quick or options.cells or options.all):
        out = HERE / ("results-cuda.json" if cuda else "results.json")
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    throughput = Throughput(torch.device(device), dtype)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch)
        weights = {name: networks.write(name, folder) for name in dict.fromkeys(cell.model for cell in picked)}
        setting = Setting(folder, peer, options.repeats, device, str(dtype).removeprefix("torch."))
        report = Report(setting, weights, throughput)
        report.head()
        for cell in picked:
            found: Measured | Exception
            try:
                found = measure(cell, setting)
            except Exception as error:  # one cell fails: the table says so, and goes on
                found = error
            report.add(cell, found)
            if out is not None:
                report.write(out)
    failed = report.foot()
    broken = any("error" in cell for cell in report.result["cells"])  # no bound missed, but a cell not measured
    return int(broken or (failed and not options.no_fail))


if __name__ == "__main__":
    sys.exit(main())
