"""Every notebook is clean, runs from top to bottom, and computes the numbers that its text speaks of."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("**/*.ipynb"))
MACHINE_PATH = re.compile(r"(?<![\w.<])/(home|root|Users|work|tmp|mnt|usr|opt|var|content|kaggle)\b|\b[A-Z]:\\")


def quickstart(found: dict[str, Any]) -> None:
    (he_john, she_john), (he_mary, she_mary) = found["answers"]
    assert min(he_john, she_mary) > 0.5
    assert max(she_john, he_mary) < 0.01
    layers = found["full_vector_by_layer"]["layers"]
    early, late = layers.index(24), layers.index(26)
    for where, before, after in (("name", 1, 0), ("last token", 0, 1)):
        rates = found["full_vector_by_layer"][where]
        assert rates[: early + 1] == pytest.approx([before] * (early + 1), abs=0.13)
        assert rates[late:] == pytest.approx([after] * (len(layers) - late), abs=0.13)
    first, last = found["loss"]
    assert last < first / 2
    flipped = found["iia_flipped"]
    assert flipped["trained direction"] >= 0.9
    assert flipped["full-vector swap"] >= 0.9
    assert flipped["random directions"] <= 0.1
    assert found["iia_flipped_new_templates"] >= 0.9
    assert found["separation"]["trained"] > 4 > 2 * found["separation"]["random"]
    strengths, he, she = found["strength"]
    plain, trained = strengths.index(0), strengths.index(1)
    assert she[plain] > 0.5 > 0.1 > he[plain]
    assert he[trained] > 5 * she[trained]


CHECKS: dict[str, tuple[int, Callable[[dict[str, Any]], None]]] = {"quickstart": (6, quickstart)}
"""Notebook → number of its figures, and what its last cell's numbers must satisfy."""


def machine_paths(text: str) -> list[str]:
    return [match.group() for match in MACHINE_PATH.finditer(text)]


def kernel(folder: Path) -> AsyncKernelManager:
    """A kernel of this interpreter that imports this checkout, whatever kernels the user has installed."""
    spec = folder / "kernels" / "this"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    # one thread: two that share a busy core wait for each other
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    made = {"argv": argv, "env": env, "display_name": "this", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(made), encoding="utf-8")
    specs = KernelSpecManager(kernel_dirs=[str(spec.parent)], ensure_native_kernel=False)
    return AsyncKernelManager(kernel_name="this", kernel_spec_manager=specs)


def test_every_notebook_has_a_check() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(CHECKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert machine_paths(text) == []
    notebook = nbformat.reads(text, as_version=nbformat.NO_CONVERT)
    assert notebook.nbformat == 4
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].cell_type == "markdown"
    for cell in notebook.cells:
        assert cell.source.strip()
        assert cell.metadata == {}
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('load(\\"/home/me/base\\")', ["/home"]),
        ("cd /tmp/x", ["/tmp"]),
        ("C:\\Users", ["C:\\"]),
        ("runs/tmp/x <b></b> 1/2 https://x.org/home/me", []),
    ],
)
def test_the_path_check_can_fail(text: str, found: list[str]) -> None:
    assert machine_paths(text) == found


@pytest.mark.real
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    client = NotebookClient(notebook, km=kernel(tmp_path), timeout=900, resources={"metadata": {"path": str(cwd)}})
    client.execute(cleanup_kc=True)  # raises at the first cell that fails; shuts the kernel down in any case
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    assert [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"] == []
    figures, check = CHECKS[path.stem]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == figures
    check(json.loads(notebook.cells[-1].outputs[0].text))
    assert (cwd / "runs" / path.stem / "artifact" / "config.json").is_file()
