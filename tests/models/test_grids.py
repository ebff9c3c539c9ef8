"""A cell of a grid is one hooked forward: several families, ragged prompts, both paddings, heads, noise, windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from byhand import DTYPES, PadSide, relative, tokens
from gridhand import Edit, Pair, Place, at, embedding, everything, network, place, put, read, run
from torch import Tensor

from iitkit.interventions import Addition, LoRA, LowRankSubspace, SiteInfo, Vanilla, Zero
from iitkit.models.grids import Cell, Engine, Patch, Rows

FAMILIES = ("gpt2", "llama", "gpt_neox", "gptj", "mistral", "gemma2", "gpt_neo", "opt")
"""Among them fused QKV (gpt2, gpt_neox), parallel blocks (gpt_neox, gptj), tuples (gptj, gpt_neo), windows of 4 tokens
(mistral, gemma2, gpt_neo), grouped queries (llama, mistral, gemma2), norms behind attention and MLP (gemma2)."""

THREE = ("gpt2", "llama", "gpt_neox")
SIDES: tuple[PadSide, ...] = ("left", "right")
LAYERS = 3
STEPS = max(Pair.LENGTHS)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [*((family, torch.float32) for family in FAMILIES), *((family, torch.float64) for family in (*THREE, "mistral"))],
    ids=str,
)
def test_block_outputs_over_layers_and_positions(family: str, dtype: torch.dtype) -> None:
    grid = [(layer, step) for layer in range(LAYERS) for step in range(STEPS)]
    expected: list[Tensor] | None = None
    for side in SIDES:
        pair = Pair(family, side, dtype)
        if expected is None:
            expected = [pair.last(pair.swapped(step, pair.place(layer, "block_output"))) for layer, step in grid]
        cells = [Patch(layer, columns=pair.columns(step), source=pair.source) for layer, step in grid]
        found = pair.engine.table(pair.base, cells, everything)
        assert pair.engine.ways.checked
        assert pair.engine.ways.left[0].name == "tokens"
        assert pair.engine.ways.left[0].growing
        assert not found.failed
        assert relative(found.values, torch.stack(expected)) <= DTYPES[dtype]
        assert relative(found.base, pair.last(lambda row: [])) <= DTYPES[dtype]
        # rows are alike in their first 3, 0, 5 and 1 tokens: no cell is left out for all, but the last layer's that
        # reach no last token (those are tokens 4, 6, 7 and 8)
        assert [grid[i] for i in found.filled.nonzero()[:, 0]] == [(2, 0), (2, 1), (2, 2), (2, 3), (2, 5)]
        effects = (found.values - found.base).abs().amax(2) > 1e-4 * found.base.abs().max()
        for (layer, step), effect in zip(grid, effects, strict=True):
            if layer < LAYERS - 1 and family not in ("mistral", "gemma2", "gpt_neo"):  # windows forget
                told = [pair.SHARED[row] <= step < pair.LENGTHS[row] for row in range(4)]
                assert effect.tolist() == told


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("component", ["block_input", "attention_output", "mlp_output", "attention_value_output"])
def test_components(family: str, component: str) -> None:
    pair = Pair(family, "left")
    grid = [(layer, step) for layer in range(LAYERS) for step in (0, 3, 6, 8)]
    cells = [Patch(layer, component, pair.columns(step), source=pair.source) for layer, step in grid]
    found = pair.engine.table(pair.base, cells, everything)
    for (layer, step), values in zip(grid, found.values, strict=True):
        assert relative(values, pair.last(pair.swapped(step, pair.place(layer, component)))) <= 1e-5


@pytest.mark.parametrize("family", [*THREE, "mistral"])
@pytest.mark.parametrize("side", SIDES)
def test_heads(family: str, side: PadSide) -> None:
    pair = Pair(family, side)
    heads, size = 4, 16 // 4
    grid = [(layer, head, step) for layer in range(LAYERS) for head in range(heads) for step in (2, 6)]
    cells: list[Cell] = [
        Patch(layer, "head_attention_value_output", pair.columns(step), head, source=pair.source)
        for layer, head, step in grid
    ]
    cells.append(Patch(1, "head_attention_value_output", pair.columns(6), [3, 1], source=pair.source))
    found = pair.engine.table(pair.base, cells, everything)
    assert pair.engine.ways.checked

    def of(step: int, layer: int, head: int) -> Callable[[int], list[tuple[Place, Edit]]]:
        return pair.swapped(step, pair.place(layer, "attention_value_output"), slice(head * size, (head + 1) * size))

    expected = [pair.last(of(step, layer, head)) for layer, head, step in grid]
    expected.append(pair.last(lambda row: [*of(6, 1, 3)(row), *of(6, 1, 1)(row)]))
    assert relative(found.values, torch.stack(expected)) <= 1e-5


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gpt2"])
def test_keys_and_values_of_heads(family: str) -> None:
    """Fused projections, and as many key-value heads as there are: by reading what the projection returns."""
    pair = Pair(family, "left")
    blocks: Any = pair.model
    modules = {
        "gpt_neox": lambda i, kind: blocks.gpt_neox.layers[i].attention.query_key_value,
        "llama": lambda i, kind: getattr(blocks.model.layers[i].self_attn, f"{kind[0]}_proj"),
        "gpt2": lambda i, kind: blocks.transformer.h[i].attn.c_attn,
    }

    def entries(kind: str, head: int) -> slice:
        which = ["query", "key", "value"].index(kind)
        start = {"gpt_neox": (head * 3 + which) * 4, "llama": head * 4, "gpt2": which * 16 + head * 4}[family]
        return slice(start, start + 4)

    heads = 2 if family == "llama" else 4
    grid = [(layer, kind, head) for layer in (0, 2) for kind in ("key", "value") for head in range(heads)]
    cells = [
        Patch(layer, f"head_{kind}_output", pair.columns(2), head, source=pair.source) for layer, kind, head in grid
    ]
    found = pair.engine.table(pair.base, cells, everything)
    for (layer, kind, head), values in zip(grid, found.values, strict=True):
        spot: Place = (modules[family](layer, kind), "output")
        assert relative(values, pair.last(pair.swapped(2, spot, entries(kind, head)))) <= 1e-5
        assert relative(values, found.base) > 1e-5


@pytest.mark.parametrize("family", THREE)
def test_causal_tracing(family: str) -> None:
    """Noise on the subject's embeddings, the same draws in every cell; block outputs, and windows of both outputs."""
    model = network(family)
    engine, ids, subject, draws = Engine(model), [7, 3, 21, 9, 14, 30, 2], (2, 3), 5
    clean = engine.run(Rows(tokens([ids], "right")), keep=[(None, "embeddings")])
    embedded = clean.at(None, "embeddings")
    noised = embedded.repeat(draws, 1, 1)
    noise = 0.5 * torch.randn(draws, len(subject), 16, generator=torch.Generator().manual_seed(3))
    noised[:, list(subject)] += noise
    base = engine.run(Rows(tokens([ids] * draws, "right"), noised))
    windows = {"mlp_output": range(2), "attention_output": range(1, 3)}
    cells: list[Cell] = [Patch(layer, columns=step, source=clean) for layer in range(LAYERS) for step in range(7)]
    cells += [Patch(w, component, step, source=clean) for component, w in windows.items() for step in range(7)]
    cells.append(Patch(LAYERS - 1, source=clean))
    found = engine.table(base, cells, everything)
    assert engine.ways.checked

    def corrupted(draw: int) -> tuple[Place, Edit]:
        def edit(hidden: Tensor) -> Tensor:
            new = hidden.clone()
            new[list(subject)] += noise[draw]
            return new

        return embedding(model, family), edit

    def restored(spots: list[Place], step: int) -> Tensor:
        values = [read(model, ids, spot)[step] for spot in spots]
        edits = [(spot, put(step, value)) for spot, value in zip(spots, values, strict=True)]
        return torch.stack([run(model, ids, [corrupted(draw), *edits])[-1] for draw in range(draws)])

    expected = [
        restored([place(model, family, layer, "block_output")], step) for layer in range(LAYERS) for step in range(7)
    ]
    for component, window in windows.items():
        expected += [restored([place(model, family, i, component) for i in window], step) for step in range(7)]
    expected.append(run(model, ids)[-1].expand(draws, -1))  # what leaves the last layer is the clean run's
    assert relative(found.values, torch.stack(expected)) <= 1e-5
    assert relative(found.base, torch.stack([run(model, ids, [corrupted(d)])[-1] for d in range(draws)])) <= 1e-5
    # tokens 0 and 1 stand left of the noise; the last layer reaches the last token alone
    filled = [i for i in range(21) if i % 7 < 2 or i in (16, 17, 18, 19)] + [21, 22, 28, 29]
    assert found.filled.nonzero()[:, 0].tolist() == filled
    assert torch.equal(found.values[0], found.base)


def test_a_source_of_other_lengths_at_named_columns() -> None:
    pair = Pair("llama", "left")
    other = pair.engine.run(Rows(tokens([[5, 9, 11, 3, 8, 40]], "right")))  # one row, for all of the base's
    cell = Patch(0, "mlp_output", pair.columns(3), source=other, source_columns=[5])
    found = pair.engine.table(pair.base, [cell], everything).values[0]
    spot = pair.place(0, "mlp_output")
    value = read(pair.model, [5, 9, 11, 3, 8, 40], spot)[5]
    assert relative(found, pair.last(lambda row: [(spot, put(3, value))])) <= 1e-5


@pytest.mark.parametrize("family", THREE)
def test_values_that_are_given(family: str) -> None:
    pair = Pair(family, "right")
    mean = torch.randn(16)
    each = torch.randn(4, 2, 16)
    two = torch.cat([pair.columns(4), pair.columns(2)], 1)
    by_layer = {1: torch.randn(16), 2: torch.randn(16)}
    cells: list[Cell] = [
        Patch(1, columns=pair.columns(3), values=0.0),
        Patch(1, "mlp_output", pair.columns(3), values=mean),
        Patch(0, "attention_output", two, values=each),
        Patch([1, 2], "mlp_output", pair.columns(3), values=by_layer),
        Patch(1, "head_attention_value_output", pair.columns(3), 2, values=mean[:4]),
        Patch(1, "head_attention_value_output", pair.columns(3), values=0),
    ]
    found = pair.engine.table(pair.base, cells, everything)
    spots = {c: pair.place(1, c) for c in ("block_output", "mlp_output", "attention_value_output")}
    first, second = pair.place(0, "attention_output"), pair.place(2, "mlp_output")
    expected = [
        pair.last(lambda row: [(spots["block_output"], put(3, torch.zeros(16)))]),
        pair.last(lambda row: [(spots["mlp_output"], put(3, mean))]),
        pair.last(lambda row: [(first, put(4, each[row, 0])), (first, put(2, each[row, 1]))]),
        pair.last(lambda row: [(spots["mlp_output"], put(3, by_layer[1])), (second, put(3, by_layer[2]))]),
        pair.last(lambda row: [(spots["attention_value_output"], put(3, mean[:4], slice(8, 12)))]),
        pair.last(lambda row: [(spots["attention_value_output"], put(3, torch.zeros(16)))]),
    ]
    assert relative(found.values, torch.stack(expected)) <= 1e-5


@pytest.mark.parametrize("component", ["block_output", "mlp_output", "block_input"])
def test_interventions_in_cells(component: str) -> None:
    pair = Pair("llama", "left")
    site = SiteInfo(16, generator=torch.Generator().manual_seed(5))
    subspace, vector = LowRankSubspace(site, rank=3), Addition(site)
    with torch.no_grad():
        vector.edit.vector.copy_(torch.randn(16))  # type: ignore[operator, union-attr]
    joint = LowRankSubspace(SiteInfo(32, generator=torch.Generator().manual_seed(6)), rank=4)
    spot, columns = pair.place(1, component), pair.columns(3)
    two = torch.cat([pair.columns(2), pair.columns(4)], 1)
    cells: list[Cell] = [
        Patch(1, component, columns, source=pair.source, intervention=subspace),
        Patch(1, component, columns, intervention=vector, strength=0.5),
        Patch(1, component, columns, intervention=Zero(site)),
        Patch(1, component, columns, source=pair.source, intervention=Vanilla(site, features=[2, 5])),
        Patch(1, component, two, source=pair.source, intervention=joint, joint=True),
    ]
    found = pair.engine.table(pair.base, cells, everything)
    assert not found.failed
    r, joined = subspace.rotation.detach(), joint.rotation.detach()
    assert r.shape == (16, 3)

    def by_hand(row: int, number: int) -> list[tuple[Place, Edit]]:
        source = read(pair.model, pair.sources[row], spot)

        def edit(hidden: Tensor) -> Tensor:
            new, delta = hidden.clone(), source - hidden
            if number == 0:
                new[3] += r @ (r.T @ delta[3])
            elif number == 1:
                new[3] += 0.5 * vector.edit.vector.detach()  # type: ignore[union-attr, operator]
            elif number == 2:
                new[3] = 0
            elif number == 3:
                new[3, [2, 5]] = source[3, [2, 5]]
            else:
                moved = joined @ (joined.T @ torch.cat([delta[2], delta[4]]))
                new[2], new[4] = new[2] + moved[:16], new[4] + moved[16:]
            return new

        return [(spot, edit)]

    expected = [pair.last(lambda row, n=number: by_hand(row, n)) for number in range(5)]
    assert relative(found.values, torch.stack(expected)) <= 1e-5


def test_an_intervention_on_heads() -> None:
    pair = Pair("llama", "left")
    edit = LowRankSubspace(SiteInfo(4, generator=torch.Generator().manual_seed(5)), rank=2)
    cells: list[Cell] = [
        Patch(1, "head_attention_value_output", pair.columns(3), 2, source=pair.source, intervention=edit),
        Patch(1, "head_attention_value_output", pair.columns(3), [0, 2], source=pair.source, intervention=edit),
    ]
    found = pair.engine.table(pair.base, cells, everything)
    spot, r = pair.place(1, "attention_value_output"), edit.rotation.detach()

    def by_hand(row: int, heads: list[int]) -> list[tuple[Place, Edit]]:
        source = read(pair.model, pair.sources[row], spot)

        def change(hidden: Tensor) -> Tensor:
            new = hidden.clone()
            for head in heads:
                part = slice(4 * head, 4 * head + 4)
                new[3, part] += r @ (r.T @ (source[3, part] - hidden[3, part]))
            return new

        return [(spot, change)]

    expected = torch.stack([pair.last(lambda row: by_hand(row, [2])), pair.last(lambda row: by_hand(row, [0, 2]))])
    assert relative(found.values, expected) <= 1e-5


def test_an_intervention_that_reads_its_modules_input() -> None:
    """LoRA: ``h + α/r · x A B`` at a module's output, x its input; also at a block's output, whose input is edited."""
    pair = Pair("llama", "left")
    edit = LoRA(SiteInfo(16, input_width=16, generator=torch.Generator().manual_seed(5)), rank=2)
    with torch.no_grad():
        for parameter in edit.parameters():
            parameter.copy_(torch.randn_like(parameter))
    cells: list[Cell] = [
        Patch(1, columns=pair.columns(3), intervention=edit),
        [Patch(0, columns=pair.columns(3), source=pair.source), Patch(1, columns=pair.columns(3), intervention=edit)],
    ]
    found = pair.engine.table(pair.base, cells, everything)
    assert not found.failed
    first, second = pair.place(0, "block_output"), pair.place(1, "block_output")

    def by_hand(row: int, both: bool) -> list[tuple[Place, Edit]]:
        before = pair.swapped(3, first)(row) if both else []
        entering = read(pair.model, pair.bases[row], first, before)  # what leaves block 0 enters block 1

        def change(hidden: Tensor) -> Tensor:
            new = hidden.clone()
            new[3] = edit(hidden[3:4], inputs=entering[3:4])[0].detach()
            return new

        return [*before, (second, change)]

    expected = torch.stack([pair.last(lambda row: by_hand(row, False)), pair.last(lambda row: by_hand(row, True))])
    assert relative(found.values, expected) <= 1e-5
    assert relative(found.values[0], found.base) > 1e-3


def test_several_columns_are_read() -> None:
    """Also left of the edit, where the logits are the base's."""
    pair = Pair("gpt2", "left")
    read_at = torch.cat([at(pair.base, 1), at(pair.base, 4), (pair.base.starts + pair.base.lengths - 2)[:, None]], 1)
    base = pair.engine.run(Rows(pair.base.rows.tokens, read=read_at))
    cells = [Patch(layer, columns=pair.columns(3), source=pair.source) for layer in range(LAYERS)]
    found = pair.engine.table(base, cells, everything).values
    assert found.shape == (3, 4, 3, 53)
    for layer in range(LAYERS):
        spot = pair.place(layer, "block_output")
        for row, ids in enumerate(pair.bases):
            logits = run(pair.model, ids, pair.swapped(3, spot)(row))
            assert relative(found[layer, row], logits[[1, 4, len(ids) - 2]]) <= 1e-5


@pytest.mark.parametrize("family", THREE)
def test_components_outside_the_layers(family: str) -> None:
    pair = Pair(family, "left")
    cells: list[Cell] = [
        Patch(None, "embeddings", pair.columns(3), source=pair.source),
        Patch(None, "final_norm", pair.columns(6), source=pair.source),
        [Patch(None, "embeddings", pair.columns(3), values=0.0), Patch(1, "mlp_output", source=pair.base)],
    ]
    found = pair.engine.table(pair.base, cells, everything)
    model: Any = pair.model
    path = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}.get(family, "model.norm")
    norm: Place = (model.get_submodule(path), "output")
    start, mlp = embedding(model, family), pair.place(1, "mlp_output")

    def held(row: int) -> Edit:
        value = read(pair.model, pair.bases[row], mlp)
        return lambda hidden: value

    expected = [
        pair.last(pair.swapped(3, start)),
        pair.last(pair.swapped(6, norm)),
        pair.last(lambda row: [(start, put(3, torch.zeros(16))), (mlp, held(row))]),
    ]
    assert relative(found.values, torch.stack(expected)) <= 1e-5
    # token 6 is the last of row 2 alone
    assert relative(found.values[1, [0, 1, 3]], found.base[[0, 1, 3]]) <= 1e-6
    assert relative(found.values[1, 2], found.base[2]) > 1e-3


def test_later_patches_of_a_cell_see_the_earlier() -> None:
    pair = Pair("llama", "left")
    columns = pair.columns(3)
    cells: list[Cell] = [
        [Patch(0, columns=columns, values=1.0), Patch(0, columns=columns, values=2.0)],
        [
            Patch(1, "block_input", columns, values=1.0),
            Patch(0, columns=columns, values=2.0),
        ],  # it enters layer 1 later
        [Patch(2, "mlp_output", columns, source=pair.source), Patch(0, columns=pair.columns(1), source=pair.source)],
        # a layer's own value is put back: the earlier patch reaches it only around
        [Patch(0, columns=pair.columns(1), source=pair.source), Patch(1, "mlp_output", source=pair.base)],
    ]
    found = pair.engine.table(pair.base, cells, everything)
    block, entering = pair.place(0, "block_output"), pair.place(1, "block_input")
    mlp, later = pair.place(1, "mlp_output"), pair.place(2, "mlp_output")

    def held(row: int) -> Edit:
        value = read(pair.model, pair.bases[row], mlp)
        return lambda hidden: value

    expected = [
        pair.last(lambda row: [(block, put(3, torch.full((16,), 2.0)))]),
        pair.last(lambda row: [(entering, put(3, torch.full((16,), 1.0)))]),
        pair.last(lambda row: [*pair.swapped(1, block)(row), *pair.swapped(3, later)(row)]),
        pair.last(lambda row: [*pair.swapped(1, block)(row), (mlp, held(row))]),
    ]
    assert relative(found.values, torch.stack(expected)) <= 1e-5


def test_an_edited_run_is_a_source() -> None:
    pair = Pair("gpt_neox", "left")
    edited = pair.engine.edited(pair.base, Patch(0, columns=pair.columns(2), source=pair.source), keep=["mlp_output"])
    first, mlp = pair.place(0, "block_output"), pair.place(1, "mlp_output")
    assert relative(edited.logits, pair.last(lambda row: pair.swapped(2, first)(row))) <= 1e-5
    found = pair.engine.table(pair.base, [Patch(1, "mlp_output", pair.columns(4), source=edited)], everything).values[0]

    def by_hand(row: int) -> list[tuple[Place, Edit]]:
        value = read(pair.model, pair.bases[row], mlp, pair.swapped(2, first)(row))[4]
        return [(mlp, put(4, value))]

    assert relative(found, pair.last(by_hand)) <= 1e-5
    for row, ids in enumerate(pair.bases):
        start, stop = int(pair.base.starts[row]), int(pair.base.starts[row] + pair.base.lengths[row])
        expected = read(pair.model, ids, pair.place(2, "block_output"), pair.swapped(2, first)(row))
        assert relative(edited.at(2)[row, start:stop], expected) <= 1e-5


def test_the_lens_is_the_final_norm_and_the_head() -> None:
    pair = Pair("gpt2", "right")
    hidden = pair.base.at(1)
    untyped: Any = pair.model
    expected = untyped.lm_head(untyped.transformer.ln_f(hidden))
    assert relative(pair.engine.lens(hidden), expected) <= 1e-5
    assert relative(Engine(pair.model).lens(hidden), expected) <= 1e-5  # nothing was run with it before
    assert relative(pair.engine.lens(pair.base.at(2))[:, :5], pair.base.engine.lens(pair.base.at(2)[:, :5])) <= 1e-5


@pytest.mark.parametrize("component", ["block_output", "mlp_output", "head_attention_value_output"])
def test_gradients_by_differences(component: str) -> None:
    pair = Pair("gpt2", "left", torch.float64)  # LLaMA's norms compute in fp32
    rows = pair.base.rows
    found = pair.engine.slopes(rows, [component], lambda logits: logits[:, 7] - logits[:, 3])
    spot = pair.place(1, component.removeprefix("head_"))
    slope = found[(1, component)].reshape(4, rows.tokens.ids.shape[1], -1)
    direction = torch.randn(16, dtype=torch.float64)

    def metric(ids: list[int], step: int, by: float) -> float:
        def moved(hidden: Tensor) -> Tensor:
            new = hidden.clone()
            new[step] += by * direction
            return new

        logits = run(pair.model, ids, [(spot, moved)])[-1]
        return float(logits[7] - logits[3])

    for row, ids in enumerate(pair.bases):
        for step in (1, len(ids) - 1):
            expected = (metric(ids, step, 1e-5) - metric(ids, step, -1e-5)) / 2e-5
            assert float(slope[row, int(pair.base.starts[row]) + step] @ direction) == pytest.approx(expected, rel=1e-5)
