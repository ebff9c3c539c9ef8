"""The walls between rooms, the sizes of files, what imports cost, and that the examples in docstrings run."""

from __future__ import annotations

import ast
import doctest
import importlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "iitkit"
LEAVES = {"errors", "batch", "positions", "folders"}
ROOMS: dict[str, set[str]] = {
    "causal": set(),
    "tasks": {"causal"},
    "data": {"causal", "tasks", "metrics"},
    "interventions": set(),
    "models": {"interventions"},
    "modules": {"models", "interventions", "metrics"},
    "analysis": {"models", "interventions", "metrics"},
    "hub": {"models", "interventions"},
    "metrics": set(),
}
FREE = {"cli", "__main__"}
"""May import all; nobody imports them."""
ONLY = {
    "lightning": {"data", "modules", "cli"},
    "lightning_fabric": set(),
    "pytorch_lightning": set(),
    "transformers": {"models"},
}
PUBLIC = {"__version__"}
"""Names of the package itself that belong to no room."""


def files() -> list[Path]:
    """Every file of the package but its own ``__init__``."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imported(tree: ast.AST, package: list[str]) -> Iterator[str]:
    """Every module or name that a file imports, as ``room.module.name``; wherever it stands in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def trespasses(text: str, path: Path) -> list[str]:
    """What a file at ``path`` (inside the package) may not import, and does."""
    room = path.parts[0].removesuffix(".py")
    found = []
    for name in imported(ast.parse(text), ["iitkit", *path.parts[:-1]]):
        top, _, rest = name.partition(".")
        if top in ONLY and room not in ONLY[top]:
            found.append(f"{room} imports {name}")
        if top == "iitkit" and room not in FREE:
            target = rest.partition(".")[0]
            allowed = LEAVES if room in LEAVES else LEAVES | ROOMS[room] | {room} | PUBLIC
            if target not in allowed:
                found.append(f"{room} imports {name}")
    return found


@pytest.mark.parametrize("path", [path.relative_to(PACKAGE) for path in files()], ids=str)
def test_imports_run_one_way(path: Path) -> None:
    assert trespasses((PACKAGE / path).read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    ("text", "path", "bad"),
    [
        ("from iitkit.models.sites import Site", "data/loader.py", True),
        ("if TYPE_CHECKING:\n    from iitkit.models.sites import Site", "data/loader.py", True),
        ("def f():\n    import iitkit.modules", "models/runs.py", True),
        ("from iitkit import DAS", "models/runs.py", True),
        ("from iitkit import cli", "modules/das.py", True),
        ("import iitkit", "tasks/base.py", True),
        ("from ..data import pool", "causal/model.py", True),
        ("from . import variables", "causal/model.py", False),
        ("from .variables import Codes", "causal/model.py", False),
        ("from iitkit.causal import CausalModel", "tasks/base.py", False),
        ("from iitkit.causal import CausalModel", "positions.py", True),
        ("from iitkit import __version__", "hub/artifact.py", False),
        ("import lightning.pytorch as pl", "models/runs.py", True),
        ("from lightning import Trainer", "hub/artifact.py", True),
        ("import lightning", "data/loader.py", False),
        ("import pytorch_lightning", "data/loader.py", True),
        ("from transformers.cache_utils import DynamicCache", "modules/base.py", True),
        ("from transformers import DynamicCache", "models/replay.py", False),
        ("from iitkit.modules import DAS", "cli/fit.py", False),
        ("import transformers", "cli/fit.py", True),
    ],
)
def test_the_check_can_fail(text: str, path: str, bad: bool) -> None:
    assert bool(trespasses(text, Path(path))) == bad


def test_every_room_is_known() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in files()}
    assert rooms <= {*ROOMS, *LEAVES, *FREE}
    assert {"causal", "tasks", "data", "models"} <= rooms  # the walk found the package


def test_files_are_short() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files()}
    assert {path: n for path, n in lines.items() if n > 400} == {}
    assert statistics.median(n for path, n in lines.items() if not path.endswith("__init__.py")) <= 150


def test_datasets_holds_no_code() -> None:
    assert (ROOT / "datasets" / "README.md").is_file()
    assert list((ROOT / "datasets").rglob("*.py")) == []


def test_tests_are_no_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_importing_iitkit_is_lazy() -> None:
    code = (
        "import sys, iitkit; heavy = {'torch', 'lightning', 'transformers', 'numpy', 'datasets'} & set(sys.modules); "
        "print(sorted(heavy)); iitkit.CausalModel; print('numpy' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "True False"]  # what is used is imported, and no more


def with_examples() -> list[str]:
    found = [path.relative_to(ROOT) for path in files() if ">>> " in path.read_text(encoding="utf-8")]
    return [".".join(path.with_suffix("").parts) for path in found]


@pytest.mark.parametrize("name", with_examples())
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted >= 1
    assert result.failed == 0


def test_some_modules_have_examples() -> None:
    assert {"iitkit.errors", "iitkit.causal.model", "iitkit.metrics.iia"} <= set(with_examples())
