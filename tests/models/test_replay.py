"""Replay against the plain run: logits, gradients, padding, a growing store, and where it must not be used."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from byhand import (
    COMPONENTS,
    DTYPES,
    PadSide,
    cast,
    gram_schmidt,
    hooks_of,
    module_of,
    prompts,
    relative,
)
from replaying import LAYERS, ROWS, SIDES, check_equal, draw_batch, fresh, model_of, pairs_of, pool, runners, subspace
from tiny import FAMILIES
from torch import Tensor

from iitkit.interventions import Vanilla
from iitkit.models.anatomy import locate
from iitkit.models.replay import Replay, ReplayPrepared, make_runner
from iitkit.models.runs import PlainRunner
from iitkit.models.sites import Site


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_replay_is_the_plain_run_at_every_site(family: str, component: str, layer: int) -> None:
    texts, at = pool(6, seed=layer)
    positions = [[[p]] for p in at]
    for dtype, tolerance in DTYPES.items():
        replay, plain = runners(model_of(family, dtype), [(layer, component)])
        edit = subspace(3, dtype)
        left, right = (
            check_equal(replay, plain, draw_batch(ROWS, texts, positions, side), [edit], tolerance) for side in SIDES
        )
        assert relative(left, right) <= tolerance


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_replay_is_the_run_by_hand(family: str, side: PadSide) -> None:
    texts, at = pool(6, seed=4)
    for dtype, tolerance in DTYPES.items():
        model, edit = model_of(family, dtype), subspace(3, dtype)
        replay, _ = runners(model, [(1, "block_output")])
        batch = draw_batch(ROWS, texts, [[[p]] for p in at], side)
        pairs = pairs_of(ROWS, texts, [[[p]] for p in at])
        module = module_of(model, family, 1, "block_output")
        expected = pairs.logits(model, [module], [gram_schmidt(next(edit.parameters()))])
        prepared = replay.prepare(batch)
        assert isinstance(prepared, ReplayPrepared)
        assert relative(prepared.logits([edit], batch.labels[:, :0])[:, 0], expected) <= tolerance


SEVERAL = {
    "layers and one site twice": [(1, "block_output"), (3, "mlp_output"), (1, "block_output"), (2, "attention_input")],
    "below the first": [(2, "block_output"), (2, "mlp_output"), (3, "block_input"), (2, "block_output")],
    "first and last": [(0, "block_input"), (3, "block_output"), (3, "attention_output"), (0, "mlp_input")],
    "the last output only": [(3, "block_output")] * 4,
}


@pytest.mark.parametrize("sites", SEVERAL.values(), ids=list(SEVERAL))
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_several_placements_at_several_positions(family: str, side: PadSide, sites: list[tuple[int, str]]) -> None:
    texts, at = pool(6, seed=7)
    last = [len(text) - 1 for text in texts]
    # two positions, one, one or two, all of them as many in every prompt as its partners have
    positions = [[[p, last[i]] if p != last[i] else [0, p], [1], [last[i]], [2, 0]] for i, p in enumerate(at)]
    draw = torch.Generator().manual_seed(1)
    active = (torch.rand(len(ROWS), 4, generator=draw) < 0.7).tolist()
    for dtype, tolerance in DTYPES.items():
        replay, plain = runners(model_of(family, dtype), sites)
        edits = [subspace(3, dtype, 0), Vanilla(), subspace(2, dtype, 1), subspace(5, dtype, 2)]
        batch = draw_batch(ROWS, texts, positions, side, active)
        # behind the last block nothing carries an edit from one token to the next
        found = check_equal(replay, plain, batch, edits, tolerance, effect=sites[3] != (3, "block_output"))
        if sites[0] == sites[2]:  # in the order declared
            turned = [edits[2], edits[1], edits[0], edits[3]]
            effect = sites[3] != (3, "block_output")
            assert relative(check_equal(replay, plain, batch, turned, tolerance, effect), found) > 1e-5


@pytest.mark.parametrize("family", [*FAMILIES, "gptj"])
def test_the_store_grows_over_batches_with_longer_prompts(family: str) -> None:
    model = fresh(family)
    texts = prompts([4, 5, 6, 3, 9, 7, 14, 5, 8, 20, 3, 4, 11], seed=3)
    at = [2, 1, 5, 0, 8, 3, 6, 4, 7, 11, 2, 0, 9]
    sites = [(1, "block_output"), (2, "mlp_output")]
    positions = [[[p], [len(text) - 1]] for p, text in zip(at, texts, strict=True)]
    replay, plain = runners(model, sites)
    edits = [subspace(3, torch.float32), subspace(2, torch.float32, 1)]
    batches = [
        [(0, 1), (1, 0)],
        [(2, 3), (0, 2), (0, 2), (2, 2), (0, 0)],  # repeated prompts, and a prompt that is its own source
        [(4, 5), (1, 6)],
        [(6, 0), (7, 3)],
        [(9, 8), (3, 9), (10, 11), (12, 12)],
        [(0, 12), (9, 0)],  # all known
    ]
    for turn, rows in enumerate([*batches, *batches]):
        side = SIDES[turn % 2]
        check_equal(replay, plain, draw_batch(rows, texts, positions, side), edits, 1e-5)
    assert len(replay.store.texts) == len(texts)  # every prompt is kept once


def test_kept_prompts_cost_no_run_of_the_layers_below() -> None:
    model = model_of("llama")
    texts, at = pool(6, seed=2)
    replay, _ = runners(model, [(1, "block_output")])
    batch = draw_batch(ROWS, texts, [[[p]] for p in at], "left")
    replay.prepare(batch).logits(None, batch.labels[:, :0])
    seen: list[tuple[str, Any]] = []
    places = {
        "mlp 0": (0, "mlp_output"),
        "mlp 1": (1, "mlp_output"),
        "mlp 2": (2, "mlp_output"),
        "mlp 3": (3, "mlp_output"),
    }
    handles = [
        module_of(model, "llama", *place).register_forward_hook(
            lambda _, __, output, name=name: seen.append((name, output.shape[1]))
        )
        for name, place in places.items()
    ]
    try:
        replay.prepare(batch)  # a network with other hooks is compared with the plain run anew
        seen.clear()
        replay.prepare(batch).logits([subspace(1, torch.float32)], batch.labels[:, :0])
    finally:
        for handle in handles:
            handle.remove()
    longest = max(len(texts[b]) - at[b] for b, _ in ROWS)
    assert seen == [("mlp 2", longest), ("mlp 3", longest)]


def test_blocks_that_return_tuples() -> None:
    texts, at = pool(6, seed=6)
    model = model_of("gptj")  # computes attention in fp32 also as an fp64 model
    for layer, component in ((1, "block_output"), (3, "block_output"), (0, "mlp_output"), (2, "attention_output")):
        replay, plain = runners(model, [(layer, component)])
        for side in SIDES:
            batch = draw_batch(ROWS, texts, [[[p]] for p in at], side)
            check_equal(replay, plain, batch, [subspace(2, torch.float32)], 1e-5)
        assert list(replay.outputs.values()) == ([2] if replay.first else [])


def test_inference_mode_first_and_training_after() -> None:
    texts, at = pool(8, seed=8)
    positions = [[[p]] for p in at]
    replay, plain = runners(model_of("gpt2"), [(1, "block_output")])
    edit = subspace(2, torch.float32)
    with torch.inference_mode():
        batch = draw_batch([(2, 3), (0, 1)], texts, positions, "left")
        replay.prepare(batch).logits([edit], batch.labels[:, :0])
    for rows in ([(2, 0), (3, 1)], [(4, 5)], [(6, 7), (5, 2)]):
        check_equal(replay, plain, draw_batch(rows, texts, positions, "left"), [edit], 1e-5)
    with torch.inference_mode():
        batch = draw_batch(ROWS, texts, positions, "left")
        found = replay.prepare(batch).logits([edit], batch.labels[:, :0])
    assert relative(found, plain.prepare(batch).logits([edit], batch.labels[:, :0])) <= 1e-5


def test_sixteen_bit_bases() -> None:
    texts, at = pool(6, seed=9)
    for dtype in (torch.bfloat16, torch.float16):
        model = cast(fresh("llama"), dtype)
        replay, plain = runners(model, [(1, "block_output")])
        batch = draw_batch(ROWS, texts, [[[p]] for p in at], "left")
        edit = subspace(3, torch.float32)
        prepared = replay.prepare(batch)
        assert isinstance(prepared, ReplayPrepared)
        none = batch.labels[:, :0]
        found, expected = prepared.logits([edit], none), plain.prepare(batch).logits([edit], none)
        assert found.dtype == dtype
        assert relative(found.float(), expected.float()) <= (5e-2 if dtype == torch.bfloat16 else 1e-2)


# --- what is left behind ---


@pytest.mark.parametrize("family", [*FAMILIES, "gptj"])
def test_nothing_is_left_behind_also_after_exceptions(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(family)
    texts, at = pool(6, seed=2)
    batch = draw_batch(ROWS, texts, [[[p]] for p in at], "left")
    fired = []
    wrapped = module_of(model, family, 0, "block_output")
    user = module_of(model, family, 2, "block_output").register_forward_hook(lambda *_: fired.append(1))
    wrapped.forward = wrapped.forward  # as accelerate leaves it: in the instance's own dict
    try:
        before = hooks_of(model)
        ids = torch.tensor([texts[2]])
        plain = model(ids).logits
        replay, _ = runners(model, [(1, "block_output")])
        prepared = replay.prepare(batch)
        edit = subspace(2, torch.float32)
        fired.clear()
        prepared.logits([edit], batch.labels[:, :0])
        assert fired == [1]  # the user's own hook fires beside ours
        assert hooks_of(model) == before
        assert torch.equal(model(ids).logits, plain)

        def boom(*_: object, **__: object) -> Tensor:
            raise RuntimeError("inside the intervention")

        monkeypatch.setattr(edit, "forward", boom)
        with pytest.raises(RuntimeError, match="inside the intervention"):
            prepared.logits([edit], batch.labels[:, :0])
        assert hooks_of(model) == before
        last = module_of(model, family, LAYERS - 1, "mlp_output")
        stumbling = last.register_forward_hook(boom)
        try:
            other, _ = runners(model, [(1, "block_output")])
            with pytest.raises(RuntimeError, match="inside the intervention"):
                other.prepare(batch)  # while the store is filled
        finally:
            stumbling.remove()
        assert hooks_of(model) == before
        assert torch.equal(model(ids).logits, plain)
        # the runner that stumbled goes on
        again = other.prepare(batch).logits([subspace(2, torch.float32)], batch.labels[:, :0])
        assert relative(again, prepared.logits([subspace(2, torch.float32)], batch.labels[:, :0])) <= 1e-6
    finally:
        user.remove()
        del wrapped.forward


# --- where replay must not be used ---


def test_replay_off_and_sites_it_cannot_hold_give_the_plain_runner() -> None:
    model = model_of("gpt2")
    inside = locate(model, Site(1))
    outside = locate(model, Site(module="transformer.ln_f"))
    assert isinstance(make_runner(model, [inside], "auto"), Replay)
    assert isinstance(make_runner(model, [inside], "off"), PlainRunner)
    assert isinstance(make_runner(model, [inside, outside], "auto"), PlainRunner)
    training = fresh("gpt2")
    training.activation_checkpointing_enable()
    assert isinstance(make_runner(training, [locate(training, Site(1))], "auto"), PlainRunner)


@pytest.mark.parametrize("at_last", [False, True], ids=["in the middle", "last token"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_that_looks_ahead_is_found_out(family: str, at_last: bool, caplog: pytest.LogCaptureFixture) -> None:
    model = fresh(family)
    model.config.is_causal = False
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False  # type: ignore[assignment]
    ids = torch.tensor(prompts([6]))
    changed = torch.cat([ids[:, :-1], ids[:, -1:] + 1], 1)
    assert not torch.allclose(model(ids).logits[0, 0], model(changed).logits[0, 0])  # it does look ahead
    texts, at = pool(6, seed=3)
    at = [len(text) - 1 for text in texts] if at_last else at
    replay, plain = runners(model, [(0, "block_output")])
    edit = subspace(3, torch.float32)
    batch = draw_batch(ROWS, texts, [[[p]] for p in at], "left")
    with caplog.at_level(logging.WARNING, logger="iitkit"):
        prepared = replay.prepare(batch)
    assert isinstance(prepared, ReplayPrepared)
    assert replay.mode == "layers"  # what the layers below compute of a whole text does not depend on the edit
    assert "replay skips layers only, not tokens: logits differ from the plain run" in caplog.text
    check_equal(replay, plain, batch, [edit], 1e-5)


def test_a_first_batch_that_shows_nothing_does_not_settle_it() -> None:
    model = fresh("gpt2")
    model.config.is_causal = False
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False  # type: ignore[assignment]
    texts, at = pool(6, seed=3)
    positions = [[[p]] for p in at]
    replay, plain = runners(model, [(0, "block_output")])
    for first in ([(2, 2), (3, 3)], [(0, 2)]):  # swaps that change nothing; a site without a token before it
        replay.prepare(draw_batch(first, texts, positions, "left"))
        assert replay.mode == "tokens"
        assert not replay.checked
    batch = draw_batch(ROWS, texts, positions, "left")
    replay.prepare(batch)
    assert replay.mode == "layers"
    assert replay.checked
    check_equal(replay, plain, batch, [subspace(3, torch.float32)], 1e-5)


def test_a_users_hook_that_edits_below_the_site_is_found_out() -> None:
    model = fresh("gpt2")
    texts, at = pool(6, seed=3)
    batch = draw_batch(ROWS, texts, [[[p]] for p in at], "left")
    module_of(model, "gpt2", 0, "block_output").register_forward_hook(lambda _, __, output: output + 1.0)
    replay, plain = runners(model, [(1, "block_output")])
    none, edit = batch.labels[:, :0], subspace(3, torch.float32)
    found = replay.prepare(batch).logits([edit], none)
    assert relative(found, plain.prepare(batch).logits([edit], none)) <= 1e-5


def test_prompts_need_no_numbers() -> None:
    texts, at = pool(6, seed=2)
    replay, plain = runners(model_of("gpt2"), [(1, "block_output")])
    batch = draw_batch(ROWS, texts, [[[p]] for p in at], "left")
    nameless = replace(batch.base, prompts=None), replace(batch.sources[0], prompts=None)
    check_equal(
        replay, plain, replace(batch, base=nameless[0], sources=(nameless[1],)), [subspace(2, torch.float32)], 1e-5
    )


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_several_sources(family: str, side: PadSide) -> None:
    # a source is asked for the placements that take from it, and for no others
    texts, at = pool(9, seed=2)
    sites = [(1, "block_output"), (2, "mlp_output")]
    positions = [[[p], [len(text) - 1]] for p, text in zip(at, texts, strict=True)]
    rows = [(0, 3), (1, 4), (2, 5), (1, 3)]
    first = draw_batch(rows, texts, positions, side)
    second = draw_batch([(b, 8 - s) for b, s in rows], texts, positions, side)
    source_of = torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1]])
    taken = torch.stack([first.source_positions, second.source_positions])
    both = replace(
        first,
        sources=(first.sources[0], second.sources[0]),
        source_of=source_of,
        source_positions=taken[source_of, torch.arange(4)[:, None], torch.arange(2)],
    )
    for dtype, tolerance in DTYPES.items():
        replay, plain = runners(model_of(family, dtype), sites)
        edits = [subspace(3, dtype), Vanilla()]
        found = check_equal(replay, plain, both, edits, tolerance)
        assert relative(found, check_equal(replay, plain, first, edits, tolerance)) > 1e-3  # it is another run
        check_equal(replay, plain, second, edits, tolerance)
