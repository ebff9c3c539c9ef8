"""``iitkit plot FILE``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from running import files, iitkit, said

from iitkit import Grid

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A trace of two components, as the command leaves it."""
    values = np.linspace(0, 1, 2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    grid = Grid(
        values,
        ("component", "layer", "position", "example"),
        {"component": ["block_output", "mlp_output"], "position": ["last subject token", "last token"]},
        {"clean": np.array([0.9, 0.8]), "corrupt": np.array([0.1, 0.0])},
        {},
        {"kind": "causal tracing", "metric": "probability", "model": "tiny"},
    )
    return grid.save(tmp_path / "run" / "trace")


def test_a_run_is_drawn_again(saved: Path) -> None:
    ran = iitkit("plot", saved.parent)
    assert ran.code == 0, ran.err
    assert ran.out == f"drawn: {saved}.png, .html\n"
    assert files(saved.parent) == ["trace.html", "trace.json", "trace.parquet", "trace.png"]
    first = (saved.parent / "trace.png").read_bytes()
    assert first.startswith(PNG)
    assert "effect on probability" in (saved.parent / "trace.html").read_text(encoding="utf-8")
    ran = iitkit("plot", f"{saved}.parquet", "--effects", "false", "--theme", "dark", "--title", "My title")
    assert ran.code == 0, ran.err
    assert (saved.parent / "trace.png").read_bytes() != first
    text = (saved.parent / "trace.html").read_text(encoding="utf-8")
    assert "effect on probability" not in text
    assert "My title" in text


def test_parts_of_it_elsewhere(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures" / "mlp"
    ran = iitkit("plot", f"--file={saved}.json", "--select", "{component: mlp_output, layer: [1, 2]}", "--out", out)
    assert ran.code == 0, ran.err
    assert files(tmp_path / "pictures") == ["mlp.html", "mlp.png"]
    assert "trace.png" not in files(saved.parent)


def test_mistakes(saved: Path, tmp_path: Path) -> None:
    for arguments, says in (
        ([tmp_path], f"{tmp_path} holds no grid: expected the .parquet file of one"),
        ([tmp_path / "nowhere.parquet"], f"no grid at {tmp_path / 'nowhere'}: nowhere.json is missing"),
        ([saved, "--x", "head"], "no picture: the grid has no axis 'head'"),
        ([saved, "--select", "{component: mlp}"], "component has no label 'mlp'"),
        ([saved, "--theme", "blue"], "theme: given 'blue', expected 'light' or 'dark'"),
        ([saved, "--colour", "blue"], "the config has no key 'colour'"),
        ([], "file is missing"),
        (
            [saved, "--select", "{component: mlp_output, layer: 1, position: last token}"],
            "no p",
        ),
    ):
        assert said(iitkit("plot", *arguments)).startswith(f"iitkit: {says}"), arguments
    Grid.load(saved).save(saved.with_name("patch"))
    assert "2 grids (trace, patch)" in said(iitkit("plot", saved.parent))
    other = Grid(np.zeros((2, 2)), ("layer", "position"), {}, {}, {}, {"kind": "logit lens"}).save(tmp_path / "lens")
    assert said(iitkit("plot", other, "--effects", "true")) == f"iitkit: effects: {other} is no trace, but logit lens"
