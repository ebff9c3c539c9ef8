"""Laws 1 to 3 on every family that generates: padding, cache, beams, sampling, and a loop written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from byhand import cast, gram_schmidt, hooks_of, padded, relative
from families import DECODERS, VOCABULARY, WIDTH, build, checkpointed, ids
from taps import TAPS, hooked, values
from torch import Tensor
from transformers import PreTrainedModel

from iitkit.interventions import (
    Addition,
    Intervention,
    LowRankSubspace,
    MaskedNeurons,
    RotatedSubspace,
    SiteInfo,
    Vanilla,
    Zero,
)
from iitkit.models.generation import Where, intervening
from iitkit.models.interchange import collect, interchange
from iitkit.models.passes import Pass
from iitkit.models.placed import Placed
from iitkit.models.sites import Site

FAMILIES = list(DECODERS)
EXACT = ("gpt2", "gpt_neox", "opt", "llama", "qwen3")
"""Families whose fp64 runs are compared too. Eager attention (Gemma2's) has an fp32 softmax, NaN at fp64's masks."""

LAYER, STEPS = 1, 5
LENGTHS = (6, 1, 9)  # longer than the sliding windows of 4; one prompt of one token
PROMPTS = [ids(1, length, seed=10 + length)[0].tolist() for length in LENGTHS]
SOURCES = ids(3, 4, seed=3)
INFO = SiteInfo(WIDTH)
Edit = Callable[[Tensor], Tensor]


@cache
def model_of(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return cast(build(family), dtype)


@cache
def source_of(family: str, component: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """The source's activations at its last token, [3, width], by a hook placed by hand."""
    taps = {"x": TAPS[family][component]}
    return values(model_of(family, dtype), taps, LAYER, SOURCES)["x"][:, -1]


def inputs(rows: Sequence[Sequence[int]], side: Any = "left") -> dict[str, Tensor]:
    tokens, mask = padded(rows, side)
    return {"input_ids": tokens, "attention_mask": mask}


def subspace(dtype: torch.dtype = torch.float32) -> tuple[Intervention, Callable[[Tensor], Edit]]:
    """A random subspace of rank 3, and the same by hand for a source's vector."""
    info = SiteInfo(WIDTH, generator=torch.Generator().manual_seed(0))
    edit = LowRankSubspace(info, rank=3).to(dtype).requires_grad_(False)
    basis = gram_schmidt(dict(edit.named_parameters())["space.free"].detach())
    return edit, lambda source: lambda base: base + basis @ (basis.T @ (source - base))


def edits(dtype: torch.dtype) -> dict[str, tuple[Intervention, Callable[[Tensor], Edit]]]:
    return {
        "subspace": subspace(dtype),
        "swap": (Vanilla(), lambda source: lambda base: source),
        "zero": (Zero(INFO), lambda source: torch.zeros_like),
        "add": (Addition(INFO, take="source"), lambda source: lambda base: base + source),
    }


@torch.no_grad()
def run_by_hand(
    model: PreTrainedModel, family: str, component: str, tokens: list[int], at: set[int], edit: Edit
) -> Tensor:
    """Logits [S, V] of one unpadded prompt, edited at columns by a hook placed by hand."""

    def change(hidden: Tensor) -> Tensor:
        rows = [edit(hidden[0, i]) if i in at else hidden[0, i] for i in range(hidden.shape[1])]
        return torch.stack(rows)[None]

    with hooked(model, TAPS[family][component], LAYER, (1, len(tokens)), change):
        logits: Tensor = model(torch.tensor([tokens]), use_cache=False).logits
    return logits[0]


def loop_by_hand(
    model: PreTrainedModel, family: str, component: str, prompt: list[int], where: Where, edit: Edit
) -> tuple[list[int], Tensor]:
    """Greedy tokens and step logits [STEPS, V]: the whole sequence is run for each new token."""
    tokens, steps = list(prompt), []
    for _ in range(STEPS):
        at = set() if where == "generated" else {len(prompt) - 1}
        if where != "prompt":
            at |= set(range(len(prompt), len(tokens)))
        steps.append(run_by_hand(model, family, component, tokens, at, edit)[-1])
        tokens.append(int(steps[-1].argmax()))
    return tokens[len(prompt) :], torch.stack(steps)


def generated(model: Any, given: dict[str, Tensor], **more: Any) -> tuple[Tensor, Tensor]:
    """New tokens [B, STEPS] and the steps' raw logits [B, STEPS, V]; no token ends a sequence."""
    more = {"do_sample": False, "max_new_tokens": STEPS, "eos_token_id": VOCABULARY + 1, "pad_token_id": 0, **more}
    out = model.generate(**given, return_dict_in_generate=True, output_logits=True, **more)
    return out.sequences[:, given["input_ids"].shape[1] :], torch.stack(out.logits, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_either_side_is_each_prompt_alone(family: str) -> None:
    for dtype, tolerance in {torch.float32: 1e-5, torch.float64: 1e-10}.items():
        if dtype == torch.float64 and family not in EXACT:
            continue
        model, source = model_of(family, dtype), source_of(family, "mlp_output", dtype)
        for edit, by_hand in edits(dtype).values():
            expected = [
                run_by_hand(model, family, "mlp_output", row, {0, len(row) - 1}, by_hand(source[i]))
                for i, row in enumerate(PROMPTS)
            ]
            plain = [
                run_by_hand(model, family, "mlp_output", row, set(), by_hand(source[i]))
                for i, row in enumerate(PROMPTS)
            ]
            assert min(relative(a, b) for a, b in zip(expected, plain, strict=True)) > 1e-3
            for side in ("left", "right"):
                given = inputs(PROMPTS, side)
                numbers = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
                site = Site(LAYER, "mlp_output", position="f1+l1")
                features = {"x": source[:, None]}
                with torch.no_grad(), intervening(model, {"x": (site, edit)}, features=features):
                    logits = model(**given, position_ids=numbers).logits
                for i, row in enumerate(expected):
                    assert relative(logits[i][given["attention_mask"][i].bool()], row) <= tolerance


@pytest.mark.parametrize("where", ["prompt", "generated", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_edited_generation_is_the_loop_by_hand_with_and_without_cache(family: str, where: Where) -> None:
    model, source = model_of(family), source_of(family, "block_output")
    edit, by_hand = subspace()
    expected = [
        loop_by_hand(model, family, "block_output", row, where, by_hand(source[i])) for i, row in enumerate(PROMPTS)
    ]
    tokens, logits = torch.tensor([row for row, _ in expected]), torch.stack([steps for _, steps in expected])
    plain_tokens, plain = generated(model, inputs(PROMPTS))
    first = 1 if where == "generated" else 0  # the prefill chooses the first token
    assert relative(plain[:, first], logits[:, first]) > 1e-3
    site = Site(LAYER, position="last")
    with intervening(model, {"x": (site, edit)}, features={"x": source[:, None]}, where=where):
        for use_cache in (True, False):
            found, steps = generated(model, inputs(PROMPTS), use_cache=use_cache)
            assert torch.equal(found, tokens)
            assert relative(steps, logits) <= 1e-5
    again_tokens, again = generated(model, inputs(PROMPTS))
    assert torch.equal(again_tokens, plain_tokens)
    assert torch.equal(again, plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_and_samples_with_a_zero_edit_are_plain(family: str) -> None:
    model = model_of(family)
    nothing = {"x": (Site(LAYER, position="all"), Addition(INFO))}
    for options in (
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 3, "top_k": 0},
    ):
        results = []
        for alignment in ({}, nothing):
            torch.manual_seed(5)
            with intervening(model, alignment, where="all"):
                results.append(generated(model, inputs(PROMPTS), **options))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_of_examples_with_sources_of_their_own_are_each_alone(family: str) -> None:
    model, source = model_of(family), source_of(family, "block_output")
    # 4 beams: row % examples names the wrong source
    options = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 4, "output_scores": True}
    site = Site(LAYER, position="last")

    def beams(rows: list[int], taken: list[int]) -> tuple[Tensor, Tensor]:
        given = inputs([PROMPTS[row] for row in rows])
        with intervening(model, {"x": (site, Vanilla())}, features={"x": source[taken][:, None]}):
            untyped: Any = model
            out = untyped.generate(
                **given, do_sample=False, eos_token_id=99, pad_token_id=0, return_dict_in_generate=True, **options
            )
        return out.sequences[:, given["input_ids"].shape[1] :], out.sequences_scores

    tokens, scores = beams([0, 2], [0, 1])
    alone = [beams([0], [0]), beams([2], [1])]
    assert torch.equal(tokens, torch.cat([found for found, _ in alone]))
    assert relative(scores, torch.cat([found for _, found in alone])) <= 1e-5
    assert relative(beams([0, 2], [1, 0])[1], scores) > 1e-3  # whose source it is shows


@pytest.mark.parametrize("family", FAMILIES)
def test_strength_0_the_end_and_an_exception_leave_the_plain_model(family: str) -> None:
    model, source = model_of(family), source_of(family, "block_output")[:, None]
    alignment = {"x": (Site(LAYER, position="last"), Vanilla())}
    before, (tokens, logits) = hooks_of(model), generated(model, inputs(PROMPTS))

    def check() -> None:
        found, steps = generated(model, inputs(PROMPTS))
        assert torch.equal(found, tokens)
        assert torch.equal(steps, logits)
        assert hooks_of(model) == before
        assert "generate" not in vars(model)

    with intervening(model, alignment, features={"x": source}, strength=0):
        check()
    with intervening(model, alignment, features={"x": source}):
        assert relative(generated(model, inputs(PROMPTS))[1], logits) > 1e-3
    check()

    def boom(module: Any, args: Any, output: Any) -> None:
        if "deeper" in armed:
            raise RuntimeError("in the middle of a decode pass")
        armed.append("deeper" if len(armed) == 1 else "once")

    armed: list[str] = []
    users = model.get_submodule(TAPS[family]["block_output"].paths[0].format(i=2)).register_forward_hook(boom)
    try:
        held = hooks_of(model)
        with pytest.raises(RuntimeError, match="decode pass"), intervening(model, alignment, features={"x": source}):
            generated(model, inputs(PROMPTS))
        assert hooks_of(model) == held  # the user's own is still there
    finally:
        users.remove()
    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_base_as_source_and_an_empty_mask_change_no_bit_and_full_rank_is_the_full_swap(family: str) -> None:
    model = model_of(family)
    plain = generated(model, inputs(PROMPTS))
    info = SiteInfo(WIDTH, generator=torch.Generator().manual_seed(1))
    exact: list[Intervention] = [Vanilla(), LowRankSubspace(info, rank=3), RotatedSubspace(info, coordinates=5)]
    for component in ("block_output", "mlp_input"):
        site = Site(LAYER, component, position="last")
        sources = {"itself": inputs(PROMPTS), "other": inputs(PROMPTS[::-1])}
        for edit in exact:
            with intervening(model, {"x": (site, edit)}, source=sources["itself"]):
                tokens, logits = generated(model, inputs(PROMPTS))
            assert torch.equal(tokens, plain[0])
            assert torch.equal(logits, plain[1])
        whole = [Vanilla(), RotatedSubspace(info, coordinates=WIDTH), LowRankSubspace(info, rank=WIDTH)]
        steps = []
        for edit in [MaskedNeurons(info), *whole]:
            if isinstance(edit, MaskedNeurons):
                edit.eval()  # the mask is hard, and empty
                dict(edit.named_parameters())["mask.gates"].data.fill_(-1.0)
            with intervening(model, {"x": (site, edit)}, source=sources["other"]):
                steps.append(generated(model, inputs(PROMPTS), max_new_tokens=1)[1])
        assert torch.equal(steps[0], plain[1][:, :1])
        assert relative(steps[1], plain[1][:, :1]) > 1e-3
        assert all(relative(found, steps[1]) <= 1e-5 for found in steps[2:])


NO_DROPOUT = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "attention_dropout", "hidden_dropout")
NO_DROPOUT += ("embed_dropout", "resid_dropout")


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_in_train_mode_on_is_off(family: str) -> None:
    known = build(family).config
    dropout = {key: 0.0 for key in NO_DROPOUT if hasattr(known, key)}
    for component in ("block_output", "mlp_input", "attention_value_output"):
        logits, gradients, calls = [], [], []
        for on in (False, True):
            model: Any = build(family, **dropout).train().requires_grad_(True)
            if on:
                checkpointed(model, reentrant=False)
            ran: list[int] = []
            below = model.get_submodule(TAPS[family]["query_output"].paths[0].format(i=0))
            handle = below.register_forward_hook(lambda *_, ran=ran: ran.append(0))
            where = Site(LAYER, component, [1, -1])
            width = collect(model, {"input_ids": SOURCES}, {"x": where})["x"].shape[-1]
            edit = LowRankSubspace(SiteInfo(width, generator=torch.Generator().manual_seed(2)), rank=2)
            base = {"input_ids": SOURCES, "use_cache": False}
            found = interchange(model, base, {"input_ids": SOURCES.flip(0)}, {"x": (where, edit)}).logits
            before = len(ran)
            (found * torch.linspace(-1, 1, VOCABULARY)).sum().backward()
            calls.append(len(ran) - before)
            handle.remove()
            logits.append(found.detach())
            gradients.append([p.grad for p in (*edit.parameters(), *model.parameters())])
        assert calls == [0, 1]  # with it the layer below is run again in backward
        assert relative(logits[1], logits[0]) <= 1e-5
        assert relative(logits[0], model_of(family)(SOURCES).logits) > 1e-4
        assert gradients[0][0] is not None
        assert float(gradients[0][0].abs().max()) > 0
        for off, on_ in zip(*gradients, strict=True):
            assert (off is None) == (on_ is None)
            assert off is None or relative(on_, off) <= 1e-5 or float(off.abs().max()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_are_worked_out_once_a_pass(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[int, int]] = []
    begin = Placed.begin

    def noting(self: Placed, now: Pass) -> None:
        begun.append((now.start, now.stop))
        begin(self, now)

    monkeypatch.setattr(Placed, "begin", noting)
    alignment = {"x": (Site(LAYER, position="last"), Zero(INFO))}  # seen in the prefill and in each decode pass
    model = model_of(family)
    width = max(LENGTHS)
    with intervening(model, alignment, where="all"):
        for rows in (PROMPTS, PROMPTS[1:2]):  # left-padded; a prompt of one token
            for options in ({}, {"num_beams": 2}):
                begun.clear()
                generated(model, inputs(rows), **options)
                long = width if len(rows) > 1 else 1
                assert begun == [(0, long), *((long + i, long + i + 1) for i in range(STEPS - 1))]
                begun.clear()
                generated(model, inputs(rows), use_cache=False, **options)
                assert begun == [(0, long + i) for i in range(STEPS)]
