"""Planted variables and DAS's way back to them, over seeds: ``python tests/benchmarks/iit/bench.py equality planted``.

Writes ``results.json`` and ``results.md`` beside this file; suites that are not named stay as they are there.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from runs import Setting, measure, plant, search

from iitkit.models.scratch import GPT2, MLP
from iitkit.tasks import BooleanTree, HierarchicalEquality, ModularAddition, PriceTagging

HERE = Path(__file__).resolve().parent
Row = dict[str, float]
Rows = dict[str, Row]


def neurons(layer: int, start: int, stop: int, position: str = "last") -> dict[str, Any]:
    """A placement of a variable in some entries of a layer's output."""
    features = {"name": "Vanilla", "features": list(range(start, stop))}
    return {"layer": layer, "position": position, "intervention": features}


def subspace(layer: int, rank: int, position: str = "last", **options: Any) -> dict[str, Any]:
    """A placement of a variable in a subspace that DAS looks for."""
    return {"layer": layer, "position": position, "intervention": {"rank": rank, **options}}


def equality(seed: int, folder: Path) -> Rows:
    """The IIT tutorial's setting (600 000 pairs): no IIT, IIT on one variable, on both; two neurons for each.

    One neuron for each is dead at the start of one network in twelve, and nothing brings it back.
    """
    network = MLP([16, 16, 16, 16, 2])
    setting = Setting(HierarchicalEquality("vectors"), network, (50000, 1000, 2000), 256, epochs=12, lr=3e-3)
    both = {"left_equal": neurons(1, 0, 2), "right_equal": neurons(1, 2, 4)}
    left = {"left_equal": both["left_equal"]}
    rows: Rows = {}
    for name, alignment, options in (
        ("no IIT", both, {"w_iit": 0.0}),
        ("IIT on left_equal", left, {}),
        ("IIT on both", both, {}),
    ):
        base, fit = plant(setting, alignment, seed, folder / name, **options)
        found = measure(setting, base, both, seed, folder / name)
        rows[name] = {
            "accuracy": found["test/task_accuracy"],
            "IIA left_equal": found["test/left_equal/iia"],
            "IIA right_equal": found["test/right_equal/iia"],
            "CPU seconds": fit["seconds"],
        }
    return rows


def iia(found: Row, group: str = "test") -> Row:
    """The IIA of a group of metrics."""
    return {"IIA": found[f"{group}/iia"], "flipped": found[f"{group}/iia_flipped"], "kept": found[f"{group}/iia_kept"]}


def planted(seed: int, folder: Path) -> Rows:
    """One variable planted in 8 of 64 neurons, and what DAS finds of it, with its controls."""
    network = MLP([16, 64, 64, 64, 2])
    setting = Setting(HierarchicalEquality("vectors"), network, (20000, 1000, 2000), 128, epochs=8)
    base, fit = plant(setting, {"left_equal": neurons(1, 0, 8)}, seed, folder)
    rows = {"IIT": {**iia(fit), "accuracy": fit["test/task_accuracy"]}}
    module, eight = search(setting, base, {"left_equal": subspace(1, 8)}, seed, folder / "8", draws=5)
    _, one = search(setting, base, {"left_equal": subspace(1, 1)}, seed, folder / "1")
    rows |= {"DAS k=1": iia(one), "DAS k=8": iia(eight), "random 8-dim": iia(eight, "random_subspace")}
    found = module.edits[0]
    basis = folder / "basis.safetensors"
    save_basis(basis, found)
    other = {"right_equal": subspace(1, 8, start=f"{basis}#basis", frozen=True)}
    rows["wrong variable"] = iia(measure(setting, base, other, seed, folder))
    untrained = replace_seed(network, seed)
    rows["untrained"] = iia(search(setting, untrained, {"left_equal": subspace(1, 8)}, seed, folder)[1])
    return rows


def save_basis(file: Path, edit: Any) -> None:
    """Write a found basis as a file that ``start`` reads."""
    from safetensors.torch import save_file

    save_file({"basis": edit.rotation.detach().contiguous()}, file)


def replace_seed(network: MLP, seed: int) -> MLP:
    """A network of other weights than those that were trained."""
    return MLP(network.sizes, network.activation, seed=1000 + seed)


def price(seed: int, folder: Path) -> Rows:
    """Price tags in a tiny GPT-2: the left boundary at the last token.

    DAS's pairs are pairs whose label is not the source's answer, but in the rows of ordinary pairs. Random subspaces
    are drawn from the activations' covariance, or (uniform) alike in all directions.
    """
    task, network = PriceTagging("symbols", step=10), GPT2(103, width=64, layers=3, heads=4, positions=8)
    setting = Setting(task, network, (20000, 1000, 2000), 128, epochs=12, tell_apart=("output",))
    both = {"left_boundary": neurons(1, 0, 8), "right_boundary": neurons(1, 8, 16)}
    base, fit = plant(setting, both, seed, folder)
    rows = {"IIT": {**iia(fit), "accuracy": fit["test/task_accuracy"]}}
    one, sixteen = ({"left_boundary": subspace(1, rank)} for rank in (1, 16))
    for pairs, told in (("", setting), (", ordinary pairs", replace(setting, tell_apart=()))):
        rows[f"DAS k=1{pairs}"] = iia(search(told, base, one, seed, folder / f"1{pairs}")[1])
        wide = search(told, base, sixteen, seed, folder / f"16{pairs}", draws=5)[1]
        rows |= {f"DAS k=16{pairs}": iia(wide), f"random 16-dim{pairs}": iia(wide, "random_subspace")}
        alike = search(told, base, sixteen, seed, folder / f"16{pairs} uniform", draws=5, uniform=True)[1]
        rows[f"random 16-dim, uniform{pairs}"] = iia(alike, "random_subspace")
    return rows


def modular(seed: int, folder: Path) -> Rows:
    """Modular addition, p = 7: the first sum at the last token."""
    setting = Setting(
        ModularAddition(7),
        GPT2(9, width=64, layers=3, heads=4, positions=8),
        (10000, 500, 1000),
        128,
        epochs=20,
        flipped=None,
        decay=0.1,
    )
    base, fit = plant(setting, {"ab": neurons(1, 0, 16)}, seed, folder)
    rows = {"IIT": {**iia(fit), "accuracy": fit["test/task_accuracy"]}}
    for rank in (1, 2, 6, 16):
        rows[f"DAS k={rank}"] = iia(search(setting, base, {"ab": subspace(1, rank)}, seed, folder / str(rank))[1])
    return rows


def factual(seed: int, folder: Path) -> Rows:
    """Equality learnt from behaviour alone: 8 of 16 dimensions of layer 0 for each variable."""
    setting = Setting(
        HierarchicalEquality("vectors"),
        MLP([16, 16, 16, 2]),
        (40000, 1000, 2000),
        128,
        epochs=12,
        lr=3e-3,
        das_sizes=(40000, 1000, 2000),
        das_epochs=8,
    )
    two = {"left_equal": neurons(0, 0, 8), "right_equal": neurons(0, 8, 16)}
    base, fit = plant(setting, two, seed, folder, w_iit=0.0)
    blocks = {"name": "RotatedSubspace", "coordinates": {"left_equal": 8, "right_equal": 8}}
    where: dict[str, Any] = {
        "left_equal": {"layer": 0, "intervention": blocks},
        "right_equal": {"layer": 0, "shared_with": "left_equal"},
    }
    _, found = search(replace(setting, batch=256), base, where, seed, folder / "das")
    return {"behaviour alone": {"accuracy": fit["test/task_accuracy"]}, "DAS k=8": iia(found)}


def boolean(seed: int, folder: Path) -> Rows:
    """A boolean tree in a GPT-2 of 151 296 parameters: the best single site for ab before and after IIT.

    A site that hands on the source's whole answer is no site of ab, and right by chance on most pairs: those measured
    are pairs whose label is not the source's answer, but in the last column.
    """
    setting = Setting(
        BooleanTree(["and", "or"], "symbols"),
        GPT2(3, width=64, layers=3, heads=4, positions=16),
        (10000, 500, 1000),
        128,
        epochs=6,
        das_sizes=(2000, 500, 1000),
        das_epochs=3,
        tell_apart=("output",),
    )
    both = {"ab": neurons(1, 0, 8), "cd": neurons(1, 8, 16)}
    rows: Rows = {}
    for name, options in (("before", {"w_iit": 0.0}), ("after", {})):
        base, fit = plant(setting, both, seed, folder / name, **options)
        places = [(layer, position) for layer in range(3) for position in ("a", "b", "c", "d", "last")]
        full = [
            {"layer": layer, "position": position, "intervention": {"name": "Vanilla"}} for layer, position in places
        ]
        parts = [subspace(layer, 8, position) for layer, position in places]
        swaps, ordinary = (
            [measure(told, base, {"ab": site}, seed, folder) for site in full]
            for told in (setting, replace(setting, tell_apart=()))
        )
        found = [search(setting, base, {"ab": site}, seed, folder / "das")[1] for site in parts]
        best: Row = {"accuracy": fit["test/task_accuracy"]}
        for kind, runs in (("full swap", swaps), ("DAS k=8", found), ("full swap, ordinary pairs", ordinary)):
            best[f"best flipped, {kind}"] = max(run["test/iia_flipped"] for run in runs)
        rows[f"{name} IIT"] = best
    return rows


SUITES: dict[str, tuple[Callable[[int, Path], Rows], int]] = {
    "equality": (equality, 10),
    "planted": (planted, 3),
    "price": (price, 3),
    "modular": (modular, 3),
    "factual": (factual, 5),
    "boolean": (boolean, 3),
}


def table(name: str, runs: list[Rows]) -> str:
    """A suite's table: mean ± standard deviation over seeds, with the median and the least and largest value."""
    function = SUITES[name][0]
    about = " ".join((function.__doc__ or "").split())
    lines = [f"## {name}", "", f"{about} {len(runs)} {'seed' if len(runs) == 1 else 'seeds'}.", ""]
    columns = list(dict.fromkeys(column for row in runs[0].values() for column in row))
    lines += [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for row in runs[0]:
        cells = []
        for column in columns:
            values = [run[row][column] for run in runs if column in run[row]]
            if not values:
                cells.append("")
                continue
            digits = 1 if column == "CPU seconds" else 3
            text = f"{statistics.mean(values):.{digits}f}"
            if len(values) > 1:
                text += f" ± {statistics.stdev(values):.{digits}f}"
            if len(values) > 3:
                text += f" (median {statistics.median(values):.3f}, {min(values):.3f} to {max(values):.3f})"
            cells.append(text)
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Run the suites that are named, and write the tables of all there are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="+", choices=list(SUITES))
    parser.add_argument("--seeds", type=int, help="number of seeds, from 0; what a suite needs unless said")
    parser.add_argument("--first", type=int, default=0, help="the first seed; results of those before it are kept")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    file = HERE / "results.json"
    for name in given.suites:
        function, seeds = SUITES[name]
        runs: list[Rows] = []
        if given.first:
            runs = json.loads(file.read_text(encoding="utf-8"))[name][: given.first]
        for seed in range(given.first, given.seeds or seeds):
            with tempfile.TemporaryDirectory() as scratch:
                runs.append(function(seed, Path(scratch)))
            print(name, seed, json.dumps(runs[-1]), flush=True)
        known: dict[str, list[Rows]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        known[name] = [
            {row: {k: round(v, 4) for k, v in row_of.items()} for row, row_of in run.items()} for run in runs
        ]
        file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        text = "\n".join(table(suite, known[suite]) for suite in SUITES if suite in known)
        (HERE / "results.md").write_text(
            f"# Planted variables\n\n`python tests/benchmarks/iit/bench.py {' '.join(SUITES)}`, one thread.\n\n{text}",
            encoding="utf-8",
        )
        print(table(name, runs), flush=True)


if __name__ == "__main__":
    main()
