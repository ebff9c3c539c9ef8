"""Replay against the plain run: logits, gradients, padding, a growing store, and where it must not be used."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from byhand import (
    COMPONENTS,
    DTYPES,
    PadSide,
    Pairs,
    cast,
    gram_schmidt,
    hooks_of,
    ignored,
    module_of,
    prompts,
    relative,
)
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import GPTJConfig, GPTJForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

from iitkit.batch import Batch
from iitkit.errors import IITKitError
from iitkit.interventions import Intervention, LowRankSubspace, SiteInfo, Vanilla
from iitkit.models import replay as replaying
from iitkit.models.anatomy import locate
from iitkit.models.replay import Replay, ReplayPrepared, make_runner
from iitkit.models.runs import PlainRunner, candidate_scores
from iitkit.models.sites import Site

SIDES: tuple[PadSide, ...] = ("left", "right")
LAYERS, WIDTH = 4, 32


@cache
def model_of(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return cast(fresh(family), dtype)


def fresh(family: str) -> PreTrainedModel:
    if family != "gptj":
        return tiny_model(family, LAYERS)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "rotary_dim": 4, "n_positions": 64}
    untyped: Any = GPTJForCausalLM(
        GPTJConfig(vocab_size=len(tiny_tokenizer()), initializer_range=0.2, bos_token_id=0, eos_token_id=0, **sizes)
    )
    found: PreTrainedModel = untyped.eval().requires_grad_(False)
    return found


def subspace(rank: int, dtype: torch.dtype, seed: int = 0) -> LowRankSubspace:
    return LowRankSubspace(SiteInfo(WIDTH, generator=torch.Generator().manual_seed(seed)), rank=rank).to(dtype)


def runners(model: nn.Module, sites: Sequence[tuple[int, str]]) -> tuple[Replay, PlainRunner]:
    locations = [locate(model, Site(layer, component)) for layer, component in sites]
    runner = make_runner(model, locations, "auto")
    assert isinstance(runner, Replay)
    return runner, PlainRunner(model, locations)


def pool(count: int, seed: int = 0, shortest: int = 4) -> tuple[list[list[int]], list[int]]:
    """Prompts of ragged length and, for each, a position: one prompt has it at 0, one at its last token."""
    draw = torch.Generator().manual_seed(seed)
    lengths = (torch.randint(0, 6, (count,), generator=draw) + shortest).tolist()
    positions = [int(torch.randint(0, length, (1,), generator=draw)) for length in lengths]
    positions[0], positions[1] = 0, lengths[1] - 1
    return prompts(lengths, seed), positions


def draw_batch(
    rows: Sequence[tuple[int, int]],
    texts: Sequence[list[int]],
    positions: Sequence[Sequence[Sequence[int]]],
    side: PadSide,
    active: list[list[bool]] | None = None,
    candidates: Tensor | None = None,
) -> Batch:
    """The batch of pairs of prompt numbers; ``positions[prompt][placement]`` are lists."""
    at = [[list(p) for p in placements] for placements in positions]
    bases, sources = [b for b, _ in rows], [s for _, s in rows]
    pairs = Pairs(
        [texts[b] for b in bases],
        [texts[s] for s in sources],
        [at[b] for b in bases],
        [at[s] for s in sources],
        active,
    )
    return pairs.batch(side, (bases, sources), candidates)


def check_equal(
    replay: Replay,
    plain: PlainRunner,
    batch: Batch,
    edits: Sequence[Intervention],
    tolerance: float,
    effect: bool = True,
) -> Tensor:
    """Replay and the plain run give the same logits and the same gradients; return the plain run's logits."""
    none = batch.labels[:, :0]
    trained = [parameter for edit in edits for parameter in edit.parameters() if parameter.requires_grad]
    found, unedited, grads = [], [], []
    for runner in (replay, plain):
        prepared = runner.prepare(batch)
        assert isinstance(prepared, ReplayPrepared) == (runner is replay), replay.reason
        unedited.append(prepared.logits(None, none))
        found.append(prepared.logits(edits, none))
        if trained:
            weights = torch.randn(found[-1].shape, generator=torch.Generator().manual_seed(5))
            grads.append(torch.autograd.grad((found[-1] * weights.to(found[-1])).sum(), trained))
    assert relative(unedited[0], unedited[1]) <= tolerance
    assert relative(found[0], found[1]) <= tolerance
    if effect:  # every edit does something, so the check can fail
        assert relative(found[1], unedited[1]) > 1e-3
    for one, other in zip(*grads, strict=True) if grads else ():
        if effect or float(other.abs().max()) > 0:
            assert float(other.abs().max()) > 1e-4
            assert relative(one, other) <= tolerance
        else:
            assert float(one.abs().max()) == 0
    return found[1].detach()


ROWS = [(2, 3), (0, 1), (1, 0), (4, 5), (5, 2), (3, 4), (2, 0)]


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
        pairs = Pairs(
            [texts[b] for b, _ in ROWS],
            [texts[s] for _, s in ROWS],
            [[[at[b]]] for b, _ in ROWS],
            [[[at[s]]] for _, s in ROWS],
        )
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
    model = model_of(family)
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
    assert replay.store.used == len(texts)  # every prompt is kept once


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
        assert replay.outputs == (2 if replay.first else None)


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
    none = batch.labels[:, :0]
    assert not isinstance(prepared, ReplayPrepared)
    assert replay.reason is not None
    assert "replay is off: logits differ from the plain run" in caplog.text
    assert torch.equal(prepared.logits([edit], none), plain.prepare(batch).logits([edit], none))


def test_a_first_batch_that_shows_nothing_does_not_settle_it() -> None:
    model = fresh("gpt2")
    model.config.is_causal = False
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False  # type: ignore[assignment]
    texts, at = pool(6, seed=3)
    positions = [[[p]] for p in at]
    replay, _ = runners(model, [(0, "block_output")])
    for first in ([(2, 2), (3, 3)], [(0, 2)]):  # swaps that change nothing; a site without a token before it
        replay.prepare(draw_batch(first, texts, positions, "left"))
    assert not isinstance(replay.prepare(draw_batch(ROWS, texts, positions, "left")), ReplayPrepared)


def test_a_network_without_keys_and_values_runs_plainly(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "state_size": 4, "num_hidden_layers": LAYERS, "vocab_size": 1100}
    untyped: Any = MambaForCausalLM(MambaConfig(**sizes))
    model: PreTrainedModel = untyped.eval().requires_grad_(False)
    texts, at = prompts([6] * 6), [1, 2, 3, 4, 5, 2]
    replay, plain = runners(model, [(1, "block_output")])
    batch = draw_batch(ROWS, texts, [[[p]] for p in at], "right")
    with caplog.at_level(logging.WARNING, logger="iitkit"):
        prepared = replay.prepare(batch)
    assert "replay is off: not every layer keeps keys and values" in caplog.text
    edit, none = subspace(3, torch.float32), batch.labels[:, :0]
    assert torch.equal(prepared.logits([edit], none), plain.prepare(batch).logits([edit], none))


def test_a_users_hook_that_edits_below_the_site_is_found_out() -> None:
    model = fresh("gpt2")
    texts, at = pool(6, seed=3)
    batch = draw_batch(ROWS, texts, [[[p]] for p in at], "left")
    module_of(model, "gpt2", 0, "block_output").register_forward_hook(lambda _, __, output: output + 1.0)
    replay, plain = runners(model, [(1, "block_output")])
    none, edit = batch.labels[:, :0], subspace(3, torch.float32)
    found = replay.prepare(batch).logits([edit], none)
    assert relative(found, plain.prepare(batch).logits([edit], none)) <= 1e-5


@pytest.mark.parametrize("side", SIDES)
def test_labels_of_several_tokens_run_plainly(side: PadSide) -> None:
    model = model_of("llama")
    texts, at = pool(6, seed=2)
    candidates = ignored([[[11], [12, 13]]] * len(ROWS))
    batch = draw_batch(ROWS, texts, [[[p]] for p in at], side, candidates=candidates)
    replay, plain = runners(model, [(1, "block_output")])
    edit = subspace(2, torch.float32)
    prepared = replay.prepare(batch)
    assert not isinstance(prepared, ReplayPrepared)
    found = candidate_scores(prepared, [edit], candidates)
    assert torch.equal(found, candidate_scores(plain.prepare(batch), [edit], candidates))
    single = draw_batch(ROWS, texts, [[[p]] for p in at], side)
    with pytest.raises(IITKitError, match="replay holds no continuation of several tokens: run the batch plainly"):
        replay.prepare(single).logits([edit], batch.labels[:, :1])


def test_prompts_without_numbers_run_plainly() -> None:
    texts, at = pool(6, seed=2)
    replay, plain = runners(model_of("gpt2"), [(1, "block_output")])
    batch = draw_batch(ROWS, texts, [[[p]] for p in at], "left")
    nameless = replace(batch.base, prompts=None), replace(batch.sources[0], prompts=None)
    for other in (replace(batch, base=nameless[0]), replace(batch, sources=(nameless[1],))):
        prepared = replay.prepare(other)
        assert not isinstance(prepared, ReplayPrepared)
        assert torch.equal(
            prepared.logits([Vanilla()], batch.labels[:, :0]),
            plain.prepare(batch).logits([Vanilla()], batch.labels[:, :0]),
        )


def test_several_sources_run_as_the_plain_run() -> None:
    # what a source's columns are for placements of another source, nobody says
    texts, at = pool(9, seed=2)
    sites = [(1, "block_output"), (2, "mlp_output")]
    replay, plain = runners(model_of("gpt2"), sites)
    positions = [[[p], [len(text) - 1]] for p, text in zip(at, texts, strict=True)]
    rows = [(0, 3), (1, 4), (2, 5), (1, 3)]
    first = draw_batch(rows, texts, positions, "right")
    second = draw_batch([(b, 8 - s) for b, s in rows], texts, positions, "right")
    both = replace(
        first,
        sources=(first.sources[0], second.sources[0]),
        source_of=torch.tensor([[0, 1]] * len(rows)),
        source_positions=torch.stack([first.source_positions[:, 0], second.source_positions[:, 1]], 1),
    )
    edits = [subspace(3, torch.float32), Vanilla()]
    ordinary = draw_batch([(6, 7), (7, 8), (8, 6)], texts, positions, "right")  # settles that replay holds
    for batch in (ordinary, both, first, second, both):
        none = batch.labels[:, :0]
        found = replay.prepare(batch).logits(edits, none)
        assert relative(found, plain.prepare(batch).logits(edits, none)) <= 1e-5


def test_a_store_that_would_not_fit_gives_the_plain_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    texts, at = pool(6, seed=2)
    replay, plain = runners(model_of("gpt2"), [(1, "block_output")])
    batch = draw_batch(ROWS, texts, [[[p]] for p in at], "left")
    monkeypatch.setattr(replaying, "_free_bytes", lambda _: 1000.0)
    with caplog.at_level(logging.WARNING, logger="iitkit"):
        prepared = replay.prepare(batch)
    assert "its store would exceed 0.0 GiB, a quarter of the free memory" in caplog.text
    none = batch.labels[:, :0]
    assert torch.equal(prepared.logits(None, none), plain.prepare(batch).logits(None, none))
    assert replay.store.bytes() == 0
