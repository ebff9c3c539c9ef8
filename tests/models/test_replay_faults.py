"""What would make replay silently wrong, or fail where the plain run does not; each was found by probing."""

from __future__ import annotations

import errno
import gc
import logging
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from byhand import ignored, module_of, prompts, relative
from replaying import ROWS, check_equal, draw_batch, fresh, model_of, pool, runners, subspace
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from iitkit.interventions import LowRankSubspace, SiteInfo, Vanilla
from iitkit.models.anatomy import locate
from iitkit.models.replay import Keeping, Replay, ReplayPrepared, make_runner, shards
from iitkit.models.runs import PlainRunner, candidate_scores
from iitkit.models.sites import Site

SITE = [(1, "block_output")]
EDIT = subspace(3, torch.float32)


@pytest.fixture
def _nan_where_nothing_was_written() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_nan_where_nothing_was_written")
def test_what_was_never_written_is_never_read() -> None:
    texts = prompts([5, 6, 7])
    replay, plain = runners(fresh("gpt2"), SITE)
    batch = draw_batch([(0, 0), (1, 2)], texts, [[[0]], [[3]], [[4]]], "right")
    check_equal(replay, plain, batch, [EDIT], 1e-5)
    assert replay.mode == "tokens"


# --- a network that is no longer what was kept of it ---


def one_row_of_the_embedding(model: Any) -> None:
    with torch.no_grad():
        model.get_input_embeddings().weight[700].mul_(-3.0)


def new_data(model: Any) -> None:
    weight = module_of(model, "llama", 0, "mlp_output").weight
    weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))  # type: ignore[arg-type]


def a_buffer(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(0.2)


def a_hook_below_the_site(model: Any) -> None:
    module_of(model, "llama", 0, "block_output").register_forward_hook(lambda _, __, output: output * 1.5)


@pytest.mark.parametrize("change", [one_row_of_the_embedding, new_data, a_buffer, a_hook_below_the_site])
def test_a_network_that_changes_is_looked_at_anew(change: Any) -> None:
    model = fresh("llama")
    texts, at = pool(6, seed=3)
    texts[1][0] = texts[3][1] = 700
    batches = [draw_batch(rows, texts, [[[p]] for p in at], "left") for rows in ([(0, 2), (2, 4)], ROWS)]
    replay, plain = runners(model, SITE)
    before = [check_equal(replay, plain, batch, [EDIT], 1e-5) for batch in batches]
    change(model)
    after = [check_equal(replay, plain, batch, [EDIT], 1e-5) for batch in batches]
    assert relative(after[1], before[1]) > 1e-2
    assert replay.mode == "tokens"


def test_a_batch_that_was_prepared_before_the_store_was_emptied() -> None:
    texts, at = pool(6, seed=3)
    replay, plain = runners(fresh("llama"), SITE)
    batch = draw_batch(ROWS, texts, [[[p]] for p in at], "left")
    other = draw_batch([(5, 4), (4, 1), (3, 2)], texts, [[[p]] for p in at], "left")
    prepared, none = replay.prepare(batch), batch.labels[:, :0]
    replay.store.clear()
    replay.prepare(other)
    assert relative(prepared.logits([EDIT], none), plain.prepare(batch).logits([EDIT], none)) <= 1e-5


def test_a_network_that_is_no_longer_wanted_goes_with_its_store() -> None:
    model = fresh("llama")
    texts, at = pool(6, seed=3)
    replay, plain = runners(model, SITE)
    check_equal(replay, plain, draw_batch(ROWS, texts, [[[p]] for p in at], "left"), [EDIT], 1e-5)
    gone = weakref.ref(model), weakref.ref(replay.store)
    del model, replay, plain
    gc.collect()
    assert [found() for found in gone] == [None, None]


# --- joined positions, several tokens ---


@pytest.mark.parametrize("side", ["left", "right"])
def test_joined_positions_and_candidates_of_several_tokens(side: Any) -> None:
    model = model_of("llama")
    location = replace(locate(model, Site(1)), joined=2)
    texts = prompts([6, 7, 5, 8])
    candidates = ignored([[[11, 12, 13], [14, 15]], [[21], [22, 23]], [[31, 32], [33]], [[41, 42], [43]]])
    positions = [[[1, 4]], [[0, 3]], [[2, 4]], [[5, 7]]]
    batch = draw_batch([(0, 1), (1, 2), (2, 3), (3, 0)], texts, positions, side, candidates=candidates)
    edit = LowRankSubspace(SiteInfo(64, positions=2, generator=torch.Generator().manual_seed(0)), rank=9)
    for runner in (make_runner(model, [location]), PlainRunner(model, [location])):
        prepared = runner.prepare(batch)
        found = candidate_scores(prepared, [edit], candidates)
        for c in range(2):  # one candidate at a time, no copies
            logits = prepared.logits([edit], candidates[:, c, :-1]).log_softmax(-1)
            real = candidates[:, c] >= 0
            scores = logits.gather(2, candidates[:, c].clamp(min=0)[..., None])[..., 0].masked_fill(~real, 0.0)
            assert relative(found[:, c], scores.sum(1)) <= 1e-5


# --- where replay does not hold ---


def lfm2() -> nn.Module:
    """Convolutions between attention: its cache is of a kind of its own."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    more: dict[str, Any] = {"num_key_value_heads": 2, "vocab_size": 1100, "initializer_range": 0.3}
    config = CONFIG_MAPPING["lfm2"](**sizes, **more, layer_types=kinds, max_position_embeddings=64)
    untyped: Any = AutoModelForCausalLM
    found: nn.Module = untyped.from_config(config).eval().requires_grad_(False)
    return found


def test_a_network_with_a_cache_of_its_own_replays_layers(caplog: pytest.LogCaptureFixture) -> None:
    texts, at = prompts([6] * 6), [1, 2, 3, 4, 5, 2]
    replay, plain = runners(lfm2(), SITE)
    batch = draw_batch(ROWS, texts, [[[p]] for p in at], "right")
    with caplog.at_level(logging.WARNING, logger="iitkit"):
        check_equal(replay, plain, batch, [EDIT], 1e-5)
    assert replay.mode == "layers"
    assert "replay skips layers only, not tokens: the network does not take a plain cache" in caplog.text


def test_activations_that_are_nothing_are_equal() -> None:
    model = fresh("gpt2")
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(module_of(model, "gpt2", 1, "mlp_output"), name).zero_()
    texts, at = pool(6, seed=3)
    replay, _ = runners(model, [(1, "mlp_output")])
    assert isinstance(replay.prepare(draw_batch(ROWS, texts, [[[p]] for p in at], "left")), ReplayPrepared)
    assert replay.mode == "tokens"


def test_a_rotary_embedding_that_depends_on_the_longest_row_is_not_kept() -> None:
    torch.manual_seed(0)
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    more: dict[str, Any] = {"num_attention_heads": 4, "vocab_size": 1100, "initializer_range": 0.3}
    untyped: Any = LlamaForCausalLM(LlamaConfig(**sizes, **more, max_position_embeddings=10, rope_parameters=rope))
    model = untyped.eval().requires_grad_(False)
    texts = prompts([6, 7, 8, 5, 14, 12])
    replay, plain = runners(model, SITE)
    positions = [[[2]], [[3]], [[4]], [[1]], [[6]], [[8]]]
    check_equal(replay, plain, draw_batch([(0, 1), (1, 2), (3, 0)], texts, positions, "left"), [EDIT], 1e-5)
    long = draw_batch([(4, 1), (0, 2), (5, 0)], texts, positions, "left")
    none = long.labels[:, :0]
    found = replay.prepare(long)
    assert not isinstance(found, ReplayPrepared)
    assert torch.equal(found.logits([EDIT], none), plain.prepare(long).logits([EDIT], none))


# --- files ---


def test_a_cache_that_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    texts, at = prompts([5 + i % 4 for i in range(70)]), [[[1 + i % 4]] for i in range(70)]
    replay, plain = runners(fresh("gpt2"), SITE, keeping=Keeping(None, str(file), "weights"))
    batch = draw_batch([(i, (i + 1) % 70) for i in range(70)], texts, at, "left")
    replay.fill([(batch.base, batch.base_positions, batch.position_mask)])
    check_equal(replay, plain, batch, [EDIT], 1e-5)
    assert replay.store.memory > 0
    assert file.read_text() == "not a folder"


def test_a_full_disk_at_the_labels_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, at = pool(6, seed=3)
    candidates = ignored([[[11, 12], [13]]] * len(ROWS))
    batch = draw_batch(ROWS, texts, [[[p]] for p in at], "left", candidates=candidates)
    short = draw_batch(ROWS, texts, [[[p]] for p in at], "left")
    replay, plain = runners(fresh("gpt2"), SITE, keeping=Keeping(0.0, str(tmp_path), None))
    prepared = replay.prepare(short)
    assert isinstance(prepared, ReplayPrepared)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "save_file", full)
    label = batch.labels[:, :-1]
    assert torch.equal(prepared.logits([Vanilla()], label), plain.prepare(batch).logits([Vanilla()], label))


def test_a_part_of_a_file_is_one_chunk_however_often_it_is_asked(tmp_path: Path) -> None:
    texts, at = prompts([5 + i % 4 for i in range(80)]), [[[1 + i % 4]] for i in range(80)]
    whole = draw_batch([(i, (i + 1) % 80) for i in range(80)], texts, at, "left")
    first, _ = runners(fresh("gpt2"), SITE, keeping=Keeping(None, str(tmp_path), "weights"))
    first.fill([(whole.base, whole.base_positions, whole.position_mask)])
    second, plain = runners(fresh("gpt2"), SITE, keeping=Keeping(None, str(tmp_path), "weights"))
    for start in range(0, 80, 8):
        rows = [(i, (i + 1) % 80) for i in range(start, start + 8)]
        check_equal(second, plain, draw_batch(rows, texts, at, "left"), [EDIT], 1e-5)
    assert isinstance(second, Replay)
    assert not second.store.computed
    assert second.store.mapped == first.store.memory
    assert [len(group.chunks) for group in second.store.groups] == [1] * len(second.store.groups)
