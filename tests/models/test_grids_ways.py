"""Which way a network's cells are run, found out by comparison; every way gives the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from byhand import hooks_of, prompts, relative, tokens
from families import build
from families import checkpointed as with_checkpoints
from gridhand import Pair, everything, network
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from iitkit.errors import IITKitError
from iitkit.interventions import Vanilla
from iitkit.models.grids import Cell, Engine, Patch, Rows, Run


def made(model: Any) -> PreTrainedModel:
    """The model with parameters of which none is nothing or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    found: PreTrainedModel = model.eval().requires_grad_(False)
    return found


def mamba() -> PreTrainedModel:
    return made(MambaForCausalLM(MambaConfig(vocab_size=53, hidden_size=16, num_hidden_layers=3, state_size=4)))


def bloom() -> PreTrainedModel:
    """Its attention is biased by a tensor of batch × heads rows, which cannot grow on the way."""
    return made(BloomForCausalLM(BloomConfig(vocab_size=53, hidden_size=16, n_layer=3, n_head=4)))


def looking_ahead() -> PreTrainedModel:
    """A LLaMA whose tokens see all others."""
    model: Any = build("llama")
    model.config.is_causal = False
    for block in model.model.layers:
        block.self_attn.is_causal = False
    found: PreTrainedModel = model
    return found


def checkpointed() -> PreTrainedModel:
    return with_checkpoints(build("llama"), reentrant=False)


def two_runs(engine: Engine) -> tuple[Run, Run]:
    base, source = prompts([7, 7, 7], seed=1, vocabulary=53), prompts([7, 7, 7], seed=2, vocabulary=53)
    source[1][:4] = base[1][:4]
    return engine.run(Rows(tokens(base, "right"))), engine.run(Rows(tokens(source, "right")))


def grid(engine: Engine, source: Run) -> list[Cell]:
    cells: list[Cell] = [Patch(i, columns=t, source=source) for i in range(len(engine.network)) for t in range(7)]
    inner = "mlp_output" if type(engine.model).__name__ != "MambaForCausalLM" else "block_input"
    return [*cells, *(Patch(i, inner, t, source=source) for i in (0, 2) for t in (2, 6))]


@pytest.mark.parametrize(
    ("make", "name", "growing"),
    [
        (lambda: build("llama"), "tokens", True),
        (bloom, "tokens", False),
        (mamba, "layers", False),
        (looking_ahead, "layers", False),
        (checkpointed, "plain", False),
    ],
)
def test_the_way_that_holds(make: Callable[[], PreTrainedModel], name: str, growing: bool) -> None:
    model = make()
    before = hooks_of(model)
    engine, plain = Engine(model), Engine(model, "plain")
    base, source = two_runs(engine)
    found = engine.table(base, grid(engine, source), everything)
    way = engine.ways.left[0]
    assert (way.name, way.growing) == (name, growing)
    assert engine.ways.checked or name == "plain"
    assert (engine.ways.reason is None) == growing
    reference, theirs = two_runs(plain)
    expected = plain.table(reference, grid(plain, theirs), everything)
    assert not found.failed
    assert not expected.failed
    assert relative(found.values, expected.values) <= 1e-5
    # where a token may see later ones, what stands left of a difference may change too
    assert bool(found.filled[21:].any()) is (name == "tokens") or not found.filled.any()
    assert not expected.filled.any()
    assert hooks_of(model) == before
    assert engine.cost(base, grid(engine, source)).mode == name


@pytest.mark.parametrize("make", [looking_ahead, lambda: build("llama")])
def test_cells_that_would_all_be_filled_in(make: Callable[[], PreTrainedModel]) -> None:
    """Edits right of what is read reach it where tokens see later ones, and no other cell could tell."""
    model = make()
    engine, plain = Engine(model), Engine(model, "plain")
    base, source = two_runs(engine)
    rows = Rows(base.rows.tokens, read=torch.tensor([3, 3, 3]))
    cells: list[Cell] = [Patch(0, columns=5, source=source), Patch(1, "mlp_output", 6, source=source)]
    found = engine.table(engine.run(rows), cells, everything)
    ahead = engine.ways.left[0].name == "layers"
    assert ahead is (make is looking_ahead)
    assert bool(found.filled.any()) is not ahead
    _, theirs = two_runs(plain)
    same: list[Cell] = [Patch(0, columns=5, source=theirs), Patch(1, "mlp_output", 6, source=theirs)]
    expected = plain.table(plain.run(rows), same, everything)
    assert relative(found.values, expected.values) <= 1e-5
    assert (relative(expected.values, expected.base.expand(2, -1, -1)) > 1e-3) is ahead


def test_rows_that_are_wholly_alike_are_filled_in_everywhere() -> None:
    engine = Engine(looking_ahead())
    base, _ = two_runs(engine)
    found = engine.table(base, [Patch(1, columns=2, source=base), Patch(1, columns=2, values=0.0)], everything)
    assert found.filled.tolist() == [True, False]
    assert torch.equal(found.values[0], found.base)


def test_streams_that_are_no_rows_of_tokens_are_refused() -> None:
    """Gemma3n passes four streams at once, [4, batch, sequence, width]: rows would be taken for streams."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    more = {"vocab_size": 53, "intermediate_size": 24, "head_dim": 8, "vocab_size_per_layer_input": 53}
    own = {"hidden_size_per_layer_input": 8, "laurel_rank": 4, "num_kv_shared_layers": 2}
    layers = {"layer_types": ["full_attention"] * 4, "activation_sparsity_pattern": None, "pad_token_id": 0}
    config: Any = Gemma3nTextConfig
    model = made(Gemma3nForCausalLM(config(**sizes, **more, **own, **layers)))
    engine = Engine(model)
    base, source = two_runs(engine)
    cells: list[Cell] = [Patch(1, columns=2, source=source), Patch(1, columns=2, values=0.0)]
    found = engine.table(base, cells, everything)
    assert engine.ways.left[0].name == "plain"
    assert "expected [batch, sequence" in found.failed[0]
    assert "expected [batch, sequence" in found.failed[1]
    with pytest.raises(IITKitError, match=r"layer 1 block_output: the activation is \(4, 3, 7, 16\)"):
        base.at(1)


def test_hooks_of_the_user_stay_and_count() -> None:
    """A hook that edits what leaves a block: what enters is then edited twice where layers are left out."""
    model = build("llama")
    untyped: Any = model
    handle = untyped.model.layers[1].register_forward_hook(lambda module, args, output: output * 1.5)
    before = hooks_of(model)
    try:
        engine, plain = Engine(model), Engine(model, "plain")
        base, source = two_runs(engine)
        found = engine.table(base, grid(engine, source), everything)
        reference, theirs = two_runs(plain)
        expected = plain.table(reference, grid(plain, theirs), everything)
        assert relative(found.values, expected.values) <= 1e-5
        assert hooks_of(model) == before
    finally:
        handle.remove()


def test_what_the_check_cannot_tell_is_tried_again() -> None:
    """Edits at the first token say nothing of what is kept of earlier ones."""
    pair = Pair("llama", "right")
    cells = [Patch(layer, columns=pair.columns(0), source=pair.source) for layer in range(2)]
    pair.engine.table(pair.base, cells, everything)
    assert not pair.engine.ways.checked
    pair.engine.table(pair.base, [Patch(1, columns=pair.columns(3), source=pair.source)], everything)
    assert pair.engine.ways.checked


def test_a_bad_cell_does_not_decide_the_way() -> None:
    from iitkit.interventions import LowRankSubspace, SiteInfo

    pair = Pair("llama", "left")
    wrong = LowRankSubspace(SiteInfo(8), rank=2)
    cells: list[Cell] = [Patch(1, columns=pair.columns(3), source=pair.source, intervention=wrong)]
    found = pair.engine.table(pair.base, cells, everything)
    assert found.failed == {0: "LowRankSubspace was built for width 8, given 16"}
    assert pair.engine.ways.left[0].name == "tokens"
    good: list[Cell] = [*cells, Patch(1, columns=pair.columns(3), source=pair.source, intervention=Vanilla())]
    assert list(pair.engine.table(pair.base, good, everything).failed) == [0]
    assert pair.engine.ways.checked


def test_an_engine_wants_evaluation_and_blocks() -> None:
    with pytest.raises(IITKitError, match=r"training mode: call model\.eval"):
        Engine(build("gpt2").train())
    with pytest.raises(IITKitError, match="has no list of blocks"):
        Engine(torch.nn.Linear(3, 3).eval())
    with pytest.raises(IITKitError, match="mode 'fast': expected 'auto' or 'plain'"):
        Engine(network("gpt2"), "fast")  # type: ignore[arg-type]


def test_a_base_of_keys_and_values_that_were_left_out() -> None:
    pair = Pair("llama", "left")
    rows = pair.base.rows
    late = pair.engine.run(rows, start=False)
    assert not late.entries
    cells = [Patch(1, columns=pair.columns(3), source=pair.source)]
    found, expected = (pair.engine.table(base, cells, everything).values for base in (late, pair.base))
    assert torch.equal(found, expected)
