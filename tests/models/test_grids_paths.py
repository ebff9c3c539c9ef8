"""Path patching and patched attention patterns, against hooks placed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from byhand import relative, tokens
from gridhand import Edit, Pair, Place, everything, put, read, run
from torch import Tensor

from iitkit.errors import IITKitError
from iitkit.models.grids import Cell, Engine, Patch, Receiver, Rows

SIZE = 4
"""Of a head."""


def part(head: int) -> slice:
    return slice(head * SIZE, (head + 1) * SIZE)


def held(pair: Pair, row: int, hold: tuple[str, ...], since: int, but: dict[tuple[int, str], Edit]) -> list[Any]:
    """Edits that put what a row's own run has into all layers from ``since`` on, changed by ``but``."""
    edits: list[tuple[Place, Edit]] = []
    for layer in range(since, 3):
        for component in hold:
            spot = pair.place(layer, component)
            value = read(pair.model, pair.bases[row], spot)
            edits.append((spot, lambda hidden, value=value: value))
            if (change := but.get((layer, component))) is not None:
                edits.append((spot, change))
    return edits


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("hold", [("attention",), ("attention", "mlp")])
@pytest.mark.parametrize("mode", ["auto", "plain"])
def test_heads_to_queries(family: str, hold: tuple[str, ...], mode: Any) -> None:
    pair = Pair(family, "left", mode=mode)
    blocks: Any = pair.model
    query: Place = {
        "gpt2": lambda: (blocks.transformer.h[2].attn.c_attn, "output"),
        "llama": lambda: (blocks.model.layers[2].self_attn.q_proj, "output"),
        "gpt_neox": lambda: (blocks.gpt_neox.layers[2].attention.query_key_value, "output"),
    }[family]()
    start = {"gpt2": 1 * SIZE, "llama": 1 * SIZE, "gpt_neox": 1 * 3 * SIZE}[family]
    entries = slice(start, start + SIZE)  # of the queries of head 1
    senders: list[Cell] = [
        Patch(layer, "head_attention_value_output", pair.columns(step), head, source=pair.source)
        for layer, head, step in ((0, 1, 3), (0, 3, 4), (1, 2, 3))
    ]
    receiver = Receiver(2, "head_query_output", head=1)
    found = pair.engine.paths(pair.base, senders, [receiver], everything, hold)
    holding = tuple({"attention": "attention_value_output", "mlp": "mlp_output"}[what] for what in hold)

    def by_hand(row: int, layer: int, head: int, step: int) -> list[tuple[Place, Edit]]:
        if step >= len(pair.bases[row]):
            return []
        sender = pair.place(layer, "attention_value_output")
        source = read(pair.model, pair.sources[row], sender)
        change = put(step, source[step, part(head)], part(head))
        edits = held(pair, row, holding, layer, {(layer, "attention_value_output"): change})
        value = read(pair.model, pair.bases[row], query, edits)

        def received(hidden: Tensor) -> Tensor:
            new = hidden.clone()
            new[:, entries] = value[:, entries]
            return new

        return [(query, received)]

    asked = [(0, 1, 3), (0, 3, 4), (1, 2, 3)]
    expected = [pair.last(lambda row, a=a: by_hand(row, *a)) for a in asked]
    assert relative(found.values, torch.stack(expected)) <= 1e-5
    assert relative(found.values, found.base.expand(3, -1, -1)) > 1e-4
    assert found.done.all()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_direct_effect_on_the_logits(family: str) -> None:
    pair = Pair(family, "right")
    senders: list[Cell] = [
        Patch(0, "mlp_output", pair.columns(4), source=pair.source),
        Patch(1, "head_attention_value_output", pair.columns(4), 0, source=pair.source),
        Patch(0, columns=pair.columns(4), source=pair.source),
    ]
    found = pair.engine.paths(pair.base, senders, [], everything)
    both = ("attention_value_output", "mlp_output")

    def by_hand(row: int, number: int) -> list[tuple[Place, Edit]]:
        layer, component = [(0, "mlp_output"), (1, "attention_value_output"), (0, "block_output")][number]
        spot = pair.place(layer, component)
        value = read(pair.model, pair.sources[row], spot)[4]
        change = put(4, value[part(0)], part(0)) if number == 1 else put(4, value)
        if number == 2:
            return [(spot, change), *held(pair, row, both, 1, {})]
        return held(pair, row, both, layer, {(layer, component): change})

    expected = [pair.last(lambda row, n=number: by_hand(row, n)) for number in range(3)]
    assert relative(found.values, torch.stack(expected)) <= 1e-5
    # token 4 is the last of row 1 alone: elsewhere what is held keeps it from the last token
    assert relative(found.values[:, [0, 2, 3]], found.base[[0, 2, 3]].expand(3, -1, -1)) <= 1e-5
    assert relative(found.values[:, 1], found.base[1].expand(3, -1)) > 1e-3


@pytest.mark.parametrize("mode", ["auto", "plain"])
def test_senders_within_attention_and_mlp(mode: Any) -> None:
    """What a head's queries change leaves through its own attention, which is not held; the MLP behind it is."""
    pair = Pair("llama", "left", mode=mode)
    model: Any = pair.model
    block = model.model.layers[1]
    places: list[tuple[str, int | None, Place, slice, tuple[str, ...]]] = [
        ("head_query_output", 2, (block.self_attn.q_proj, "output"), part(2), ("mlp_output",)),
        ("mlp_activation", None, (block.mlp.act_fn, "output"), slice(None), ()),
    ]
    receiver = Receiver(2, "mlp_input")
    spot: Place = (model.model.layers[2].post_attention_layernorm, "output")
    for component, head, place, entries, own in places:
        sender: Cell = Patch(1, component, pair.columns(4), head, source=pair.source)

        def edits(row: int, place: Any = place, entries: slice = entries, own: Any = own) -> list[tuple[Place, Edit]]:
            behind = held(pair, row, ("attention_value_output", "mlp_output"), 2, {})
            for name in own:
                at = pair.place(1, name)
                value = read(pair.model, pair.bases[row], at)
                behind.append((at, lambda hidden, value=value: value))
            return [*pair.swapped(4, place, entries)(row), *behind]

        def received(row: int, edits: Any = edits) -> list[tuple[Place, Edit]]:
            value = read(pair.model, pair.bases[row], spot, edits(row))
            return [(spot, lambda hidden: value)]

        found = pair.engine.paths(pair.base, [sender], [receiver], everything)
        assert relative(found.values[0], pair.last(received)) <= 1e-5
        direct = pair.engine.paths(pair.base, [sender], [], everything)
        assert relative(direct.values[0], pair.last(edits)) <= 1e-5
        assert relative(direct.values[0], found.values[0]) > 1e-4
        assert relative(direct.values[0], direct.base) > 1e-3


def test_several_receivers_and_columns() -> None:
    pair = Pair("llama", "left")
    sender: Cell = Patch(0, columns=pair.columns(3), source=pair.source)
    receivers = [Receiver(1, "mlp_input", columns=pair.columns(3)), Receiver(2, "attention_input")]
    found = pair.engine.paths(pair.base, [sender], receivers, everything)
    model: Any = pair.model
    first: Place = (model.model.layers[1].post_attention_layernorm, "output")
    second: Place = (model.model.layers[2].input_layernorm, "output")

    def by_hand(row: int) -> list[tuple[Place, Edit]]:
        change = pair.swapped(3, pair.place(0, "block_output"))(row)
        edits = [*change, *held(pair, row, ("attention_value_output", "mlp_output"), 1, {})]
        one, two = (read(pair.model, pair.bases[row], spot, edits) for spot in (first, second))
        return [(first, put(3, one[3])), (second, lambda hidden: two)]

    assert relative(found.values[0], pair.last(by_hand)) <= 1e-5


def test_senders_that_are_held_themselves_and_other_mistakes() -> None:
    pair = Pair("llama", "left")
    sender: Cell = [
        Patch(0, "mlp_output", pair.columns(3), source=pair.source),
        Patch(1, "head_query_output", pair.columns(3), 0, source=pair.source),
    ]
    with pytest.raises(IITKitError, match="sender 0: sender query_output: what it changes in layer 1 is held, as"):
        pair.engine.paths(pair.base, [sender], [], everything)
    with pytest.raises(IITKitError, match="sender 0: sender embeddings: expected a component of a layer"):
        pair.engine.paths(pair.base, [Patch(None, "embeddings", source=pair.source)], [], everything)
    good: Cell = Patch(0, "mlp_output", pair.columns(3), source=pair.source)
    with pytest.raises(IITKitError, match="hold 'mlps': expected some of attention, mlp"):
        pair.engine.paths(pair.base, [good], [], everything, hold=["mlps"])
    with pytest.raises(IITKitError, match="head 9 is out of range"):
        pair.engine.paths(pair.base, [good], [Receiver(1, "head_query_output", 9)], everything)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_attention_patterns(family: str) -> None:
    """A patched pattern mixes the base's own values: by hand from them, rows of one length and one padding."""
    pair = Pair(family, "left")
    bases, sources = [ids[-5:] for ids in pair.bases], [ids[-5:] for ids in pair.sources]
    base = pair.engine.run(Rows(tokens(bases, "left")))
    source = pair.engine.run(Rows(tokens(sources, "left")))
    grid = [(layer, head, column) for layer in (0, 2) for head in range(4) for column in (2, 4)]
    cells: list[Cell] = [Patch(layer, "attention_weight", column, head, source=source) for layer, head, column in grid]
    cells.append(Patch(1, "attention_weight", source=source))  # all heads and queries
    cells.append(Patch(1, columns=2, source=source))  # swept, beside those that are run plainly
    found = pair.engine.table(base, cells, everything)
    assert not found.failed
    model: Any = pair.model
    groups = 4 // {"gpt2": 4, "llama": 2, "mistral": 2}[family]

    def patterns(ids: list[int], layer: int) -> Tensor:
        before = model.config._attn_implementation
        model.config._attn_implementation = "eager"
        try:
            with torch.no_grad():
                found: Tensor = model(torch.tensor([ids]), output_attentions=True).attentions[layer][0]
        finally:
            model.config._attn_implementation = before
        return found  # [heads, queries, keys]

    def mixed(row: int, layer: int, head: int) -> Tensor:
        if family == "gpt2":
            made: Place = (model.transformer.h[layer].attn.c_attn, "output")
            values = read(pair.model, bases[row], made)[:, 32:][:, part(head)]
        else:
            made = (model.model.layers[layer].self_attn.v_proj, "output")
            values = read(pair.model, bases[row], made)[:, part(head // groups)]
        return patterns(sources[row], layer)[head] @ values

    expected = []
    for layer, head, column in grid:
        spot = pair.place(layer, "attention_value_output")
        rows = [
            run(pair.model, bases[row], [(spot, put(column, mixed(row, layer, head)[column], part(head)))])[-1]
            for row in range(4)
        ]
        expected.append(torch.stack(rows))
    whole = []
    for row in range(4):
        value = torch.cat([mixed(row, 1, head) for head in range(4)], 1)
        whole.append(run(pair.model, bases[row], [(pair.place(1, "attention_value_output"), lambda h, v=value: v)])[-1])
    expected.append(torch.stack(whole))
    assert relative(found.values[:-1], torch.stack(expected)) <= 1e-5
    assert pair.engine.ways.left[0].name == "tokens"


def test_paths_are_the_same_in_little_memory() -> None:
    pair = Pair("llama", "left")
    small = Engine(pair.model, memory=1)
    base, source = small.run(pair.base.rows), small.run(pair.source.rows)

    def senders(source: Any) -> list[Cell]:
        return [Patch(i, "mlp_output", pair.columns(t), source=source) for i in range(2) for t in (2, 5, 8)]

    receivers = [Receiver(2, "mlp_input"), Receiver(2, "head_key_output", [1, 0])]
    told: list[int] = []
    found = small.paths(base, senders(source), receivers, everything, progress=lambda p: told.append(p.done))
    expected = pair.engine.paths(pair.base, senders(pair.source), receivers, everything)
    assert relative(found.values, expected.values) <= 1e-5
    assert told == [1, 2, 3, 4, 5, 6]
