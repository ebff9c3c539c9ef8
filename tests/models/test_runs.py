"""The plain runner against hooks placed by hand: batches, padding, positions, labels of several tokens, early stop."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from byhand import (
    COMPONENTS,
    DTYPES,
    PadSide,
    Pairs,
    activation,
    cast,
    gram_schmidt,
    head_of,
    hooks_of,
    ignored,
    logits_of,
    module_of,
    prompts,
    relative,
    swap,
    tokens,
)
from tiny import FAMILIES, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from iitkit.batch import IGNORED, Tokens
from iitkit.errors import IITKitError
from iitkit.interventions import Intervention, LowRankSubspace, SiteInfo, Vanilla
from iitkit.models.anatomy import locate
from iitkit.models.placing import place
from iitkit.models.runs import PlainRunner, call, candidate_scores, head_at, label_logits, select
from iitkit.models.sites import Placement, Site

SIDES: tuple[PadSide, ...] = ("left", "right")
LAYERS, WIDTH = 4, 32


@cache
def model_of(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return cast(tiny_model(family, LAYERS), dtype)


def subspace(rank: int, dtype: torch.dtype, seed: int = 0) -> LowRankSubspace:
    return LowRankSubspace(SiteInfo(WIDTH, generator=torch.Generator().manual_seed(seed)), rank=rank).to(dtype)


def rotation_of(edit: Intervention) -> Tensor | None:
    """R by hand, differentiable; None for the full swap."""
    free = dict(edit.named_parameters()).get("space.free")
    return None if free is None else gram_schmidt(free)


def runner_of(model: PreTrainedModel, sites: list[tuple[int, str]]) -> PlainRunner:
    return PlainRunner(model, [locate(model, Site(layer, component)) for layer, component in sites])


def one_site() -> Pairs:
    """Five ragged pairs, another position in every row, one of them 0."""
    bases, sources = prompts([7, 4, 9, 5, 6], seed=1), prompts([5, 8, 4, 9, 6], seed=2)
    at = [[[3]], [[0]], [[8]], [[2]], [[4]]]
    from_ = [[[4]], [[7]], [[0]], [[3]], [[4]]]
    return Pairs(bases, sources, at, from_)


def exactly(family: str) -> PreTrainedModel:
    """The fp64 model: what is worked out on it by hand holds for the fp32 one too."""
    return model_of(family, torch.float64)


@cache
@torch.no_grad()
def plainly(family: str) -> Tensor:
    return one_site().logits(exactly(family), [], None)


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_its_rows_run_by_hand(family: str, component: str, layer: int) -> None:
    pairs = one_site()
    exact, plain = exactly(family), plainly(family)
    modules, rotations = [module_of(exact, family, layer, component)], [rotation_of(subspace(3, torch.float64))]
    with torch.no_grad():
        expected = pairs.logits(exact, modules, rotations)
    assert relative(expected, plain) > 1e-3  # the edit does something, so the check can fail
    for dtype, tolerance in DTYPES.items():
        model, edit = model_of(family, dtype), subspace(3, dtype)
        for side in SIDES:
            batch = pairs.batch(side)
            prepared = runner_of(model, [(layer, component)]).prepare(batch)
            assert relative(prepared.logits([edit], batch.labels[:, :0])[:, 0], expected) <= tolerance
            assert relative(prepared.logits(None, batch.labels[:, :0])[:, 0], plain) <= tolerance


def several() -> tuple[Pairs, list[tuple[int, str]]]:
    """Four placements at three layers, two of them at one site; ragged numbers of positions; not every row active."""
    pairs = one_site()
    pairs.base_at = [[[3, 6], [2], [3], [0, 5]], [[0, 2], [3], [0], [1, 3]], [[8, 1], [2], [8], [0, 8]]]
    pairs.base_at += [[[2, 3], [0], [2], [3, 4]], [[4, 5], [1], [4], [2, 0]]]
    pairs.source_at = [[[4, 0], [2], [3], [0, 2]], [[7, 1], [3], [0], [1, 5]], [[0, 3], [2], [1], [0, 3]]]
    pairs.source_at += [[[3, 8], [0], [2], [7, 4]], [[4, 5], [1], [4], [2, 0]]]
    pairs.active = [
        [True, True, True, True],
        [True, False, True, False],
        [False, True, False, True],
        [True, True, True, False],
        [False, False, False, False],
    ]
    return pairs, [(1, "block_output"), (2, "mlp_output"), (1, "block_output"), (3, "attention_input")]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_several_placements_in_declared_order_with_ragged_activity(family: str, side: PadSide) -> None:
    pairs, sites = several()
    for dtype, tolerance in DTYPES.items():
        model = model_of(family, dtype)
        edits = [subspace(3, dtype, 0), Vanilla(), subspace(2, dtype, 1), subspace(5, dtype, 2)]
        batch = pairs.batch(side)
        modules = [module_of(model, family, layer, component) for layer, component in sites]
        with torch.no_grad():
            expected = pairs.logits(model, modules, [rotation_of(edit) for edit in edits])
        found = runner_of(model, sites).prepare(batch).logits(edits, batch.labels[:, :0])[:, 0]
        assert relative(found, expected) <= tolerance
        # the two edits at one site do not commute: the order is what was declared
        turned = [edits[2], edits[1], edits[0], edits[3]]
        other = runner_of(model, sites).prepare(batch).logits(turned, batch.labels[:, :0])[:, 0]
        assert relative(other, expected) > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_the_free_matrix_are_those_by_hand(family: str) -> None:
    pairs = one_site()
    for dtype, tolerance in DTYPES.items():
        model, edit = model_of(family, dtype), subspace(3, dtype)
        weights = torch.randn(5, model.config.vocab_size, generator=torch.Generator().manual_seed(3)).to(dtype)
        module = module_of(model, family, 1, "block_output")
        expected = torch.autograd.grad(
            (pairs.logits(model, [module], [rotation_of(edit)]) * weights).sum(), list(edit.parameters())
        )[0]
        for side in SIDES:
            batch = pairs.batch(side)
            found = runner_of(model, [(1, "block_output")]).prepare(batch).logits([edit], batch.labels[:, :0])[:, 0]
            grad = torch.autograd.grad((found * weights).sum(), list(edit.parameters()))[0]
            assert relative(grad, expected) <= tolerance
            assert not any(parameter.grad is not None for parameter in model.parameters())


ANSWERS = [
    [[11], [12, 13], [14, 15, 16]],
    [[21, 22, 23], [24]],
    [[31, 32], [33, 34, 35], [36]],
    [[41], [42]],
    [[51, 52, 53], [54, 55], [56, 57]],
]


@torch.no_grad()
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_several_tokens_are_sums_of_log_probabilities(family: str, side: PadSide) -> None:
    pairs = one_site()
    candidates = ignored(ANSWERS)
    for dtype in DTYPES if side == "left" else [torch.float32]:
        model, edit = model_of(family, dtype), subspace(3, dtype)
        module, rotation = module_of(model, family, 1, "block_output"), rotation_of(edit)
        batch = pairs.batch(side, candidates=candidates)
        prepared = runner_of(model, [(1, "block_output")]).prepare(batch)
        for edited in (True, False):
            scores = candidate_scores(prepared, [edit] if edited else None, candidates)
            for i, answers in enumerate(ANSWERS):
                hooks = pairs.edits(model, i, [module], [rotation]) if edited else []
                for j, answer in enumerate(answers):
                    logits = logits_of(model, [*pairs.bases[i], *answer], hooks)
                    steps = logits[len(pairs.bases[i]) - 1 : -1].float().log_softmax(-1)
                    expected = sum(float(steps[k, token]) for k, token in enumerate(answer))
                    assert float(scores[i, j]) == pytest.approx(expected, rel=1e-5)
                assert bool((scores[i, len(answers) :] == -torch.inf).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_label_logits_are_rows_of_the_full_forward(family: str) -> None:
    pairs = one_site()
    model, edit = model_of(family, torch.float64), subspace(3, torch.float64)
    candidates = ignored([[answers[-1]] for answers in ANSWERS])
    labels = candidates[:, 0]
    for side in SIDES:
        batch = pairs.batch(side, candidates=candidates)
        found = label_logits(runner_of(model, [(2, "mlp_output")]).prepare(batch), [edit], labels)
        assert found.shape == (5, 3, model.config.vocab_size)
        for i, row in enumerate(ANSWERS):
            hooks = pairs.edits(model, i, [module_of(model, family, 2, "mlp_output")], [rotation_of(edit)])
            full = logits_of(model, [*pairs.bases[i], *row[-1]], hooks)
            start = len(pairs.bases[i]) - 1
            assert relative(found[i, : len(row[-1])], full[start : start + len(row[-1])]) <= 1e-10


def test_single_token_scores_use_the_logits_already_known() -> None:
    pairs = one_site()
    model = model_of("gpt2")
    batch = pairs.batch("right")
    prepared = runner_of(model, [(1, "block_output")]).prepare(batch)
    logits = prepared.logits(None, batch.labels[:, :0])
    with_hook = []
    handle = model.register_forward_hook(lambda *_: with_hook.append(1))
    try:
        scores = candidate_scores(prepared, None, batch.candidates, logits)
    finally:
        handle.remove()
    assert not with_hook
    expected = pairs.logits(model, [], None).log_softmax(-1)[:, [5, 6]]
    assert relative(scores, expected) <= 1e-5


# --- what a run costs and leaves behind ---


@pytest.mark.parametrize("family", FAMILIES)
def test_the_source_pass_stops_at_the_deepest_site(family: str) -> None:
    model = model_of(family)
    calls: dict[str, int] = {}
    watched: dict[str, nn.Module] = {f"block {i}": module_of(model, family, i, "block_output") for i in range(LAYERS)}
    watched["mlp 2"] = module_of(model, family, 2, "mlp_output")
    watched["head"] = head_of(model)
    handles = []
    for name, module in watched.items():

        def count(*_: Any, name: str = name) -> None:
            calls[name] = calls.get(name, 0) + 1

        handles.append(module.register_forward_pre_hook(count))
    try:
        batch = one_site().batch("left")
        batch = type(batch)(**{**batch.__dict__, "active": batch.active.repeat(1, 2)} | _twice(batch))
        runner_of(model, [(0, "mlp_output"), (2, "attention_output")]).prepare(batch)
    finally:
        for handle in handles:
            handle.remove()
    assert calls == {"block 0": 1, "block 1": 1, "block 2": 1}  # block 2 only up to its attention


def _twice(batch: Any) -> dict[str, Tensor]:
    names = ("base_positions", "source_positions", "position_mask", "source_of")
    return {name: getattr(batch, name).repeat(1, 2, *[1] * (getattr(batch, name).dim() - 2)) for name in names}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_sees_only_the_label_positions(family: str) -> None:
    model = model_of(family)
    shapes = []
    # pre-hooks run in order of registration: one behind ours sees what the head gets
    with head_at(model, torch.tensor([[6], [3]])):
        handle = head_of(model).register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
        rows = prompts([7, 4])
        call(model, tokens(rows, "right"))
        handle.remove()
    assert shapes == [(2, 1, WIDTH)]
    batch = one_site().batch("left")
    batch_logits = runner_of(model, [(1, "block_output")]).prepare(batch).logits(None, batch.labels[:, :0])
    assert batch_logits.shape == (5, 1, model.config.vocab_size)


def test_several_sources_each_give_their_placement() -> None:
    model = model_of("gpt2", torch.float64)
    pairs = one_site()
    others = prompts([6, 7, 5, 8, 9], seed=9)
    other_at = [1, 6, 0, 5, 8]
    for side in SIDES:
        batch = pairs.batch(side)
        second = tokens(others, side)
        wide = second.ids.shape[1]
        columns = torch.tensor(
            [at + (wide - len(row) if side == "left" else 0) for at, row in zip(other_at, others, strict=True)]
        )
        values = {**batch.__dict__, **_twice(batch), "active": batch.active.repeat(1, 2)}
        values["sources"] = (batch.sources[0], second)
        values["source_of"] = torch.tensor([[0, 1]] * 5)
        values["source_positions"] = torch.stack([batch.source_positions[:, 0], columns[:, None]], 1)
        both = type(batch)(**values)
        sites = [(1, "block_output"), (2, "mlp_output")]
        found = runner_of(model, sites).prepare(both).logits([Vanilla(), Vanilla()], both.labels[:, :0])[:, 0]
        first, deep = (module_of(model, "gpt2", layer, component) for layer, component in sites)
        for i, base in enumerate(pairs.bases):
            at = pairs.base_at[i][0][0]
            one = activation(model, pairs.sources[i], first)[pairs.source_at[i][0][0]]
            two = activation(model, others[i], deep)[other_at[i]]
            edits = [(first, [at], swap(one, None)), (deep, [at], swap(two, None))]
            assert relative(found[i], logits_of(model, base, edits)[-1]) <= 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_no_hook_is_left_also_after_exceptions(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(family)
    batch = one_site().batch("left")
    fired = []
    user = module_of(model, family, 1, "block_output").register_forward_hook(lambda *_: fired.append(1))
    try:
        before = hooks_of(model)
        plain = call(model, batch.base).logits
        runner, edit = runner_of(model, [(1, "block_output")]), subspace(2, torch.float32)
        prepared = runner.prepare(batch)
        assert hooks_of(model) == before
        fired.clear()
        prepared.logits([edit], batch.labels[:, :0])
        assert fired == [1]  # the user's own hook fires beside ours
        assert hooks_of(model) == before

        def boom(*_: object, **__: object) -> Tensor:
            raise RuntimeError("inside the intervention")

        monkeypatch.setattr(edit, "forward", boom)
        with pytest.raises(RuntimeError, match="inside the intervention"):
            prepared.logits([edit], batch.labels[:, :0])
        assert hooks_of(model) == before
        broken = type(batch)(**{**batch.__dict__, "source_positions": batch.source_positions + 99})
        with pytest.raises(IndexError):
            runner.prepare(broken)
        assert hooks_of(model) == before
        assert torch.equal(call(model, batch.base).logits, plain)
    finally:
        user.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_swap_with_base_as_source_changes_no_bit(family: str) -> None:
    model = model_of(family)
    pairs = one_site()
    same = Pairs(pairs.bases, pairs.bases, pairs.base_at, pairs.base_at)
    batch = same.batch("left")
    prepared = runner_of(model, [(1, "block_output")]).prepare(batch)
    plain = prepared.logits(None, batch.labels[:, :0])
    for edit in (Vanilla(), subspace(3, torch.float32), subspace(WIDTH, torch.float32)):
        assert torch.equal(prepared.logits([edit], batch.labels[:, :0]), plain)
    off = type(batch)(**{**batch.__dict__, "active": torch.zeros_like(batch.active)})
    prepared = runner_of(model, [(1, "block_output")]).prepare(off)
    assert torch.equal(prepared.logits([Vanilla()], batch.labels[:, :0]), plain)  # no row active


# --- parts ---


def test_selections_list_the_entries_that_a_placement_edits() -> None:
    pairs, _ = several()
    chosen = select(pairs.batch("right"))
    assert chosen[0].rows.tolist() == [0, 0, 1, 1, 3, 3]
    assert chosen[0].columns.tolist() == [3, 6, 0, 2, 2, 3]
    assert chosen[0].source_columns.tolist() == [4, 0, 7, 1, 3, 8]
    assert chosen[1].rows.tolist() == [0, 2, 3]
    twice, entries = chosen[1].repeated(2)
    assert twice.rows.tolist() == [0, 1, 4, 5, 6, 7]
    assert twice.columns.tolist() == [2, 2, 2, 2, 0, 0]
    assert entries.tolist() == [0, 0, 1, 1, 2, 2]
    both, entries = chosen[0].repeated(2)  # what is joined in a row stays together
    assert both.rows.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 6, 6, 7, 7]
    assert both.columns.tolist() == [3, 6, 3, 6, 0, 2, 0, 2, 2, 3, 2, 3]
    assert entries.tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5]


def test_tokens_number_and_extend_padded_rows() -> None:
    rows = [[5, 6, 7], [8, 9]]
    for side in SIDES:
        found = tokens(rows, side)
        assert [found.last.tolist()] == ([[2, 2]] if side == "left" else [[2, 1]])
        longer = found.extended(torch.tensor([[1, IGNORED], [2, 3]]))
        kept = [longer.ids[i][longer.mask[i].bool()].tolist() for i in range(2)]
        assert kept == [[5, 6, 7, 1], [8, 9, 2, 3]]
        assert [longer.position_ids[i][longer.mask[i].bool()].tolist() for i in range(2)] == [[0, 1, 2, 3]] * 2
    assert tokens(rows, "left", [4, 5]).repeated(2).prompts.tolist() == [4, 4, 5, 5]  # type: ignore[union-attr]


def test_place_names_the_placement_in_its_errors() -> None:
    model = model_of("gpt2")
    wide = Placement.from_plain("a", {"layer": 1, "intervention": {"rank": 40}})
    with pytest.raises(IITKitError, match=r"alignment\.a\.intervention: rank 40: expected 1 to the site's width 32"):
        place(model, {"a": wide})
    unknown = Placement.from_plain("a", {"layer": 1, "intervention": {"name": "Vanila"}})
    with pytest.raises(IITKitError, match=r"'Vanila' is not registered. Did you mean 'Vanilla'\?"):
        place(model, {"a": unknown})
    option = Placement.from_plain("a", {"layer": 1, "intervention": {"rnak": 4}})
    with pytest.raises(IITKitError, match=r"LowRankSubspace has no option 'rnak'. Did you mean 'rank'\?"):
        place(model, {"a": option})
    with pytest.raises(IITKitError, match=r"alignment\.b: layer 4 is out of range"):
        place(model, {"b": Placement(layer=4)})
    found, edits = place(model, {"a": Placement(layer=1)}, torch.Generator().manual_seed(3))
    again = place(model, {"a": Placement(layer=1)}, torch.Generator().manual_seed(3))[1]
    assert found["a"].width == WIDTH
    assert torch.equal(next(edits["a"].parameters()), next(again["a"].parameters()))


def test_place_refuses_a_site_whose_width_it_cannot_know() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    with pytest.raises(
        IITKitError,
        match=r"alignment\.a: the width of 1 \(output\) is not known or not fixed: name another component",
    ):
        place(net, {"a": Placement(module="1")})
    assert place(net, {"a": Placement(module="0")})[0]["a"].width == 4
    assert place(net, {"a": Placement(module="0", side="input")})[0]["a"].width == 3


def test_a_network_without_a_head_is_refused() -> None:
    with (
        pytest.raises(IITKitError, match="Linear has no LM head: load a causal language model"),
        head_at(nn.Linear(2, 2), None),
    ):
        pass


def test_position_ids_are_passed_only_where_they_are_taken() -> None:
    class Taker(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Tensor:
            return input_ids * attention_mask

    ids = Tokens(torch.tensor([[0, 4]]), torch.tensor([[0, 1]]))
    assert call(Taker(), ids).tolist() == [[0, 4]]
