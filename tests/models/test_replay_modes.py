"""How much may be kept: layers alone, sites outside blocks, labels of several tokens, other precisions and weights."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from byhand import DTYPES, PadSide, ignored, logits_of, module_of, prompts, relative, swap
from families import DECODERS, VOCABULARY, build, decoder
from replaying import ROWS, SIDES, check_equal, draw_batch, fresh, model_of, pairs_of, pool, runners, subspace
from tiny import FAMILIES
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from iitkit.batch import Batch
from iitkit.errors import IITKitError
from iitkit.interventions import LoRA, LowRankSubspace, SiteInfo, Skip, Vanilla
from iitkit.models.anatomy import locate
from iitkit.models.replay import Keeping, Replay, ReplayPrepared, make_runner
from iitkit.models.runs import PlainRunner, candidate_scores
from iitkit.models.sites import Site

WIDTH, LAYERS = 32, 4


def made(model: Any) -> PreTrainedModel:
    """Frozen, in eval mode, with weights large enough that every edit shows."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    found: PreTrainedModel = model.eval().requires_grad_(False)
    return found


def mamba() -> PreTrainedModel:
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "state_size": 4, "num_hidden_layers": LAYERS, "vocab_size": 1100}
    return made(MambaForCausalLM(MambaConfig(**sizes)))


def bert() -> PreTrainedModel:
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    return made(BertForMaskedLM(BertConfig(**sizes, vocab_size=1100, intermediate_size=64, max_position_embeddings=64)))


def bart() -> PreTrainedModel:
    sizes: dict[str, Any] = {"d_model": WIDTH, "encoder_layers": 2, "decoder_layers": LAYERS, "vocab_size": 1100}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1}
    return made(BartForConditionalGeneration(BartConfig(**sizes, **heads, **ends, max_position_embeddings=64)))


# --- layers alone ---


@pytest.mark.parametrize("component", ["block_output", "attention_input", "mlp_output"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_alone_are_the_plain_run(family: str, component: str) -> None:
    texts, at = pool(6, seed=5)
    for dtype, tolerance in DTYPES.items():
        replay, plain = runners(model_of(family, dtype), [(2, component)], "layers")
        assert replay.mode == "layers"
        for side in SIDES:
            check_equal(
                replay, plain, draw_batch(ROWS, texts, [[[p]] for p in at], side), [subspace(3, dtype)], tolerance
            )


@pytest.mark.parametrize("network", [mamba, bert, bart])
@pytest.mark.parametrize("side", SIDES)
def test_networks_that_keep_layers_alone(network: Any, side: PadSide, caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    texts, at = (prompts([6] * 6) if network is not mamba else prompts([6, 8, 5, 7, 6, 9])), [1, 2, 3, 4, 4, 2]
    site = Site(module="model.decoder.layers.1") if network is bart else Site(1)
    locations = [locate(model, site)]
    runner, plain = make_runner(model, locations), PlainRunner(model, locations)
    assert isinstance(runner, Replay)
    batch = draw_batch(ROWS, texts, [[[p]] for p in at], side)
    with caplog.at_level(logging.INFO, logger="iitkit"):
        prepared = runner.prepare(batch)
    assert isinstance(prepared, ReplayPrepared), caplog.text
    assert runner.mode == "layers"
    check_equal(runner, plain, batch, [subspace(3, torch.float32)], 1e-5)
    # a skipped block passes on what is kept: nothing in it runs, be it of the decoder or of its encoder
    inside = [part for block in runner.blocks for part in block.modules() if not list(part.children())]
    ran: list[object] = []
    handles = [part.register_forward_hook(lambda module, *_: ran.append(module)) for part in inside]
    runner.prepare(batch)  # a network with other hooks is compared with the plain run anew
    ran.clear()
    runner.prepare(batch).logits([Vanilla()], batch.labels[:, :0])
    for handle in handles:
        handle.remove()
    above = {part for block in runner.blocks[runner.first :] for part in block.modules()}
    assert runner.first == (4 if network is bart else 2)
    assert ran
    assert all(module in above for module in ran)


# --- sites outside the blocks ---


@pytest.mark.parametrize("component", ["embeddings", "final_norm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sites_outside_the_blocks(family: str, component: str) -> None:
    texts, _ = pool(6, seed=6)
    at = [len(text) - 1 for text in texts]
    for dtype, tolerance in DTYPES.items():
        replay, plain = runners(model_of(family, dtype), [(None, component)])
        assert replay.first == (0 if component == "embeddings" else LAYERS)
        for side in SIDES:
            batch = draw_batch(ROWS, texts, [[[p]] for p in at], side)
            check_equal(replay, plain, batch, [subspace(3, dtype)], tolerance)
            assert isinstance(replay.prepare(batch), ReplayPrepared)


# --- labels of several tokens ---

CANDIDATES = [[[11, 12, 13], [14]], [[21], [22, 23]], [[31, 32], [33, 34, 35]], [[41], [42]]]


def several(side: PadSide) -> tuple[Batch, list[list[int]], list[int]]:
    texts, at = pool(6, seed=2)
    candidates = ignored([CANDIDATES[i % 4] for i in range(len(ROWS))])
    return draw_batch(ROWS, texts, [[[p]] for p in at], side, candidates=candidates), texts, at


@pytest.mark.parametrize("replayed", ["auto", "layers"])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_of_several_tokens(family: str, side: PadSide, replayed: str) -> None:
    batch, _, _ = several(side)
    for dtype, tolerance in DTYPES.items():
        replay, plain = runners(model_of(family, dtype), [(1, "block_output")], replayed)
        edit = subspace(2, dtype)
        check_equal(replay, plain, batch, [edit], tolerance, label=True)
        prepared = replay.prepare(batch)
        assert isinstance(prepared, ReplayPrepared)
        found = candidate_scores(prepared, [edit], batch.candidates)
        expected = candidate_scores(plain.prepare(batch), [edit], batch.candidates)
        finite = expected.isfinite()
        assert torch.equal(finite, found.isfinite())
        assert relative(found[finite], expected[finite]) <= tolerance * 10  # of log-probabilities


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_of_several_tokens_by_hand(family: str, side: PadSide) -> None:
    batch, texts, at = several(side)
    model = model_of(family)
    replay, _ = runners(model, [(1, "block_output")])
    pairs = pairs_of(ROWS, texts, [[[p]] for p in at])
    module = module_of(model, family, 1, "block_output")
    found = candidate_scores(replay.prepare(batch), [Vanilla()], batch.candidates)
    for row, (base, _) in enumerate(ROWS):
        for c, answer in enumerate(CANDIDATES[row % 4]):
            edits = pairs.edits(model, row, [module], [None])
            logits = logits_of(model, [*texts[base], *answer[:-1]], edits).log_softmax(-1)
            first = len(texts[base]) - 1
            score = sum(logits[first + t, token] for t, token in enumerate(answer))
            assert abs(float(found[row, c] - score)) <= 1e-4


def test_labels_of_several_tokens_measured_first_and_trained_after() -> None:
    batch, texts, at = several("left")
    first = draw_batch(ROWS[:1], texts, [[[p]] for p in at], "left", candidates=batch.candidates[:1])
    replay, plain = runners(fresh("llama"), [(1, "block_output")])
    edit = subspace(2, torch.float32)
    with torch.inference_mode():
        candidate_scores(replay.prepare(first), [edit], first.candidates)
    check_equal(replay, plain, batch, [edit], 1e-5, label=True)


# --- rows of all kinds ---


def test_a_row_without_a_site_runs_as_it_is() -> None:
    texts, at = pool(6, seed=3)
    replay, plain = runners(model_of("gpt2"), [(1, "block_output")])
    batch = draw_batch(ROWS, texts, [[[p]] for p in at], "left")
    there = batch.position_mask.clone()
    there[2] = False
    check_equal(replay, plain, replace(batch, position_mask=there), [subspace(3, torch.float32)], 1e-5)


def test_a_placement_that_no_row_is_at() -> None:
    texts, at = pool(6, seed=3)
    replay, plain = runners(model_of("llama"), [(1, "block_output"), (2, "mlp_output")])
    active = [[True, False]] * len(ROWS)
    batch = draw_batch(ROWS, texts, [[[p], [0]] for p in at], "right", active)
    check_equal(replay, plain, batch, [subspace(3, torch.float32), Vanilla()], 1e-5)
    assert replay.prepare(batch).features[1].numel() == 0


def test_positions_behind_a_short_prompt_stay_within_what_the_network_has() -> None:
    # padding of a short row whose site is late, beside a long one whose site is early: 128 learned positions
    texts = prompts([128, 127, 126])
    replay, plain = runners(model_of("gpt2"), [(1, "block_output")])
    batch = draw_batch([(0, 1), (1, 2), (2, 0)], texts, [[[2]], [[126]], [[125]]], "right")
    check_equal(replay, plain, batch, [subspace(3, torch.float32)], 1e-5)


# Gemma2's own attention is NaN there: an fp32 softmax of fp64's masks
@pytest.mark.parametrize("family", [family for family in DECODERS if family != "gemma2"])
def test_every_family_in_fp64_beyond_its_window(family: str) -> None:
    # torch has no grouped product in fp64
    model = build(family, **({"experts_implementation": "eager"} if family in ("mixtral", "gpt_oss") else {})).double()
    # these compute attention, its softmax or the router's in fp32 whatever the dtype
    tolerance = 1e-6 if family in ("gpt_neo", "gptj", "mixtral", "gpt_oss") else 1e-10
    draws = prompts([9, 14, 6, 12], seed=1, vocabulary=VOCABULARY)  # windows are of 4 tokens
    positions = [[[8], [2]], [[13], [1]], [[3], [5]], [[7], [11]]]
    rows = [(0, 1), (1, 2), (2, 3), (3, 0)]
    locations = [locate(model, Site(1)), locate(model, Site(1, "attention_value_output"))]
    edits = [
        LowRankSubspace(SiteInfo(location.width or 0, generator=torch.Generator().manual_seed(i)), rank=2).double()
        for i, location in enumerate(locations)
    ]
    runner, plain = make_runner(model, locations), PlainRunner(model, locations)
    assert isinstance(runner, Replay)
    for side in SIDES:
        check_equal(runner, plain, draw_batch(rows, draws, positions, side), edits, tolerance)
        assert runner.mode == "tokens"


def test_eager_and_sdpa_attention() -> None:
    texts, at = pool(6, seed=3)
    for attention in ("eager", "sdpa"):
        model = fresh("llama")
        model.set_attn_implementation(attention)
        replay, plain = runners(model, [(1, "block_output")])
        for side in SIDES:
            batch = draw_batch(ROWS, texts, [[[p]] for p in at], side)
            check_equal(replay, plain, batch, [subspace(3, torch.float32)], 1e-5)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("component", ["block_output", "mlp_output"])
def test_an_edit_that_reads_its_modules_input(component: str, told: bool) -> None:
    # the block that a site is the output of is skipped, so that nothing enters it
    model = fresh("llama")
    locations = [locate(model, Site(1, component))]
    runner, plain = make_runner(model, locations, reading_input=[told]), PlainRunner(model, locations)
    assert isinstance(runner, Replay)
    assert runner.first == (2 if component == "block_output" and not told else 1)
    draw = torch.Generator().manual_seed(0)
    lora = LoRA(SiteInfo(WIDTH, input_width=locations[0].input_width or WIDTH, generator=draw), rank=2)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    texts, at = pool(6, seed=3)
    for side in SIDES:
        batch = draw_batch(ROWS, texts, [[[p]] for p in at], side)
        check_equal(runner, plain, batch, [lora], 1e-5)
        if component == "block_output":
            check_equal(runner, plain, batch, [Skip(SiteInfo(WIDTH, input_width=WIDTH))], 1e-5)


# --- what is kept is of these weights and this precision ---


def test_weights_changed_in_place_are_noticed() -> None:
    model = fresh("gpt2")
    texts, at = pool(6, seed=3)
    batch = draw_batch(ROWS, texts, [[[p]] for p in at], "left")
    replay, plain = runners(model, [(1, "block_output")])
    edit = subspace(3, torch.float32)
    before = check_equal(replay, plain, batch, [edit], 1e-5)
    with torch.no_grad():
        module_of(model, "gpt2", 0, "mlp_output").weight.mul_(-1.0)  # type: ignore[operator, union-attr]
    after = check_equal(replay, plain, batch, [edit], 1e-5)
    assert relative(after, before) > 1e-3
    assert replay.mode == "tokens"


def test_a_change_that_cannot_be_seen_is_found_out_by_the_next_runner() -> None:
    model = fresh("gpt2")
    texts, at = pool(6, seed=3)
    batch = draw_batch(ROWS, texts, [[[p]] for p in at], "left")
    first, plain = runners(model, [(1, "block_output")])
    edit = subspace(3, torch.float32)
    check_equal(first, plain, batch, [edit], 1e-5)
    module_of(model, "gpt2", 0, "mlp_output").weight.data.mul_(-1.0)  # type: ignore[operator, union-attr]
    second, _ = runners(model, [(1, "block_output")])
    assert second.store is first.store
    check_equal(second, plain, batch, [edit], 1e-5)
    assert second.mode == "tokens"


def test_each_precision_has_a_store_of_its_own() -> None:
    model = fresh("llama")
    texts, at = pool(6, seed=3)
    batch = draw_batch(ROWS, texts, [[[p]] for p in at], "left")
    replay, plain = runners(model, [(1, "block_output")])
    edit, none = subspace(3, torch.float32), batch.labels[:, :0]
    full = check_equal(replay, plain, batch, [edit], 1e-5)
    store = replay.store

    def mixed() -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            found = replay.prepare(batch)
            assert isinstance(found, ReplayPrepared)
            return found.logits([edit], none), plain.prepare(batch).logits([edit], none)

    found, expected = mixed()
    assert replay.store is not store
    assert replay.store.shapes["values 2"][1] == torch.bfloat16
    assert relative(found.float(), expected.float()) <= 2e-2
    assert 1e-4 < relative(expected.float()[:, 0], full[: len(ROWS)]) < 0.2
    check_equal(replay, plain, batch, [edit], 1e-5)
    assert replay.store is store


def test_runners_of_one_network_share_a_store() -> None:
    model = fresh("llama")
    texts, at = pool(6, seed=3)
    edit = subspace(3, torch.float32)
    for layer, expected in ((0, 6), (1, 6), (2, 6)):
        replay, plain = runners(model, [(layer, "block_output")])
        check_equal(replay, plain, draw_batch(ROWS, texts, [[[p]] for p in at], "right"), [edit], 1e-5)
        assert len(replay.store.texts) == expected
    # keys and values of the layers above the first site served the others: only what enters a layer was added
    kinds = sorted(item for group in replay.store.groups for item in group.items if len(group.items) == 1)
    assert kinds == sorted([f"entry {i}" for i in (1, 2, 3)] + [f"at layer {i} block_output" for i in (0, 1, 2)])
    assert len([group for group in replay.store.groups if len(group.items) > 1]) == 1


def test_a_new_position_of_a_kept_prompt_adds_what_is_missing() -> None:
    model = fresh("gpt2")
    texts = prompts([8, 8, 8, 8])
    replay, plain = runners(model, [(1, "block_output")])
    edit = subspace(3, torch.float32)
    for at in ([7, 7, 7, 7], [2, 3, 4, 5], [5, 6, 7, 1], [7, 7, 7, 7]):
        check_equal(replay, plain, draw_batch([(0, 1), (2, 3)], texts, [[[p]] for p in at], "left"), [edit], 1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_keeps_in_its_own_memory_and_takes_from_files() -> None:
    texts, at = pool(6, seed=3)
    for memory in (None, 0.0):
        model: Any = fresh("llama")
        replay, plain = runners(model.to("cuda"), [(1, "block_output")], keeping=Keeping(memory))
        batch = draw_batch(ROWS, texts, [[[p]] for p in at], "left").to("cuda")
        check_equal(replay, plain, batch, [subspace(3, torch.float32).to("cuda")], 1e-4)
        assert (replay.store.memory > 0) == (memory is None)
        assert (replay.store.mapped > 0) == (memory == 0)


def test_unknown_replay_is_refused() -> None:
    model = decoder("gpt2")
    with pytest.raises(IITKitError, match="replay 'on': expected 'auto', 'layers' or 'off'"):
        make_runner(model, [locate(model, Site(1))], "on")


def test_by_hand_with_a_swap_of_two_placements() -> None:
    # an independent reference for what several placements share: the prefix up to the first, one row at a time
    texts, at = pool(6, seed=9)
    model = model_of("llama")
    replay, _ = runners(model, [(1, "block_output"), (2, "mlp_output")])
    last = [len(text) - 1 for text in texts]
    batch = draw_batch(ROWS, texts, [[[p], [q]] for p, q in zip(at, last, strict=True)], "left")
    found = replay.prepare(batch).logits([Vanilla(), Vanilla()], batch.labels[:, :0])[:, 0]
    pairs = pairs_of(ROWS, texts, [[[p], [q]] for p, q in zip(at, last, strict=True)])
    modules = [module_of(model, "llama", 1, "block_output"), module_of(model, "llama", 2, "mlp_output")]
    assert relative(found, pairs.logits(model, modules, [None, None])) <= 1e-5
    assert swap(torch.ones(2), None)(torch.zeros(2)).tolist() == [1, 1]
