"""``intervening``: which tokens are edited in which pass, against runs of single prompts with hooks placed by hand."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from byhand import Edit, activation, gram_schmidt, hooks_of, logits_of, module_of, padded, relative
from families import VOCABULARY, WIDTH, build, decoder, ids
from torch import Tensor, nn
from transformers import CompileConfig, DynamicCache, PreTrainedModel, StaticCache

from iitkit.errors import IITKitError
from iitkit.interventions import (
    Addition,
    Intervention,
    LoRA,
    LowRankSubspace,
    RotatedSubspace,
    SiteInfo,
    Subtraction,
    Vanilla,
    Zero,
)
from iitkit.interventions.edits import Scale
from iitkit.interventions.masks import All
from iitkit.interventions.spaces import Identity
from iitkit.models.generation import Where, intervening
from iitkit.models.interchange import collect, interchange
from iitkit.models.sites import Site
from iitkit.models.textspans import TextSpans

LAYER, STEPS = 1, 4
INFO = SiteInfo(WIDTH)
PROMPTS = [ids(1, length, seed=length)[0].tolist() for length in (6, 3, 8)]
SOURCE = ids(1, 5, seed=20)[0].tolist()
FAMILIES = ("gpt2", "llama")


def inputs(rows: Sequence[Sequence[int]], side: Any = "left") -> dict[str, Tensor]:
    tokens, mask = padded(rows, side)
    return {"input_ids": tokens, "attention_mask": mask}


def generated(model: Any, given: Mapping[str, Any], **more: Any) -> tuple[Tensor, Tensor]:
    """New tokens [B, STEPS] and the steps' raw logits [B, STEPS, V]; no token ends a sequence."""
    more = {"do_sample": False, "max_new_tokens": STEPS, "eos_token_id": VOCABULARY + 1, "pad_token_id": 0, **more}
    out = model.generate(**given, return_dict_in_generate=True, output_logits=True, **more)
    steps = torch.stack(out.logits, 1)
    return out.sequences[:, -steps.shape[1] :], steps


Edits = Sequence[tuple[nn.Module, Callable[[int, int], Sequence[int]], Edit]]
"""Modules, their columns for (length of the prompt, length so far), and edits of one vector."""


@torch.no_grad()
def loop(model: nn.Module, prompt: Sequence[int], edits: Edits) -> tuple[Tensor, Tensor]:
    """By hand: greedy tokens [STEPS] and logits [STEPS, V], the whole sequence run for each new token."""
    tokens, steps = list(prompt), []
    for _ in range(STEPS):
        now = [(module, at(len(prompt), len(tokens)), edit) for module, at, edit in edits]
        steps.append(logits_of(model, tokens, now)[-1])
        tokens.append(int(steps[-1].argmax()))
    return torch.tensor(tokens[len(prompt) :]), torch.stack(steps)


def at(*indices: int) -> Callable[[int, int], list[int]]:
    """Columns among the prompt's tokens, negative from its end."""
    return lambda prompt, now: [index % prompt for index in indices]


def after_prompt(prompt: int, now: int) -> Sequence[int]:
    return range(prompt, now)


def block(model: PreTrainedModel, layer: int = LAYER) -> nn.Module:
    return module_of(model, "llama" if model.config.model_type == "llama" else "gpt2", layer, "block_output")


def taken(model: PreTrainedModel) -> Tensor:
    """The source's activation at its last token, [width], by hand."""
    return activation(model, SOURCE, block(model))[-1]


def swapping(source: Tensor) -> Edit:
    return lambda base: source


def adding(vector: Tensor) -> Edit:
    return lambda base: base + vector


def check(found: tuple[Tensor, Tensor], expected: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Compare a batch's tokens and logits with those of single prompts."""
    assert torch.equal(found[0], torch.stack([tokens for tokens, _ in expected]))
    for row, (_, steps) in zip(found[1], expected, strict=True):
        assert relative(row, steps) <= 1e-5


VECTOR = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))


def steering(vector: Tensor = VECTOR) -> Addition:
    """An addition of a fixed vector, which takes no source."""
    found = Addition(INFO).requires_grad_(False)
    found.edit.get_parameter("vector").copy_(vector)
    return found


# --- which tokens ---


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    ("position", "columns"),
    [
        (0, at(0)),
        (-2, at(-2)),
        ("last", at(-1)),
        ("all", lambda prompt, now: range(prompt)),
        ("f2+l1", at(0, 1, -1)),
        ([1, "last"], at(1, -1)),
        (torch.tensor([[2], [5], [7]]), None),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_positions_count_among_the_prompts_own_tokens(
    family: str, position: Any, columns: Any, use_cache: bool
) -> None:
    model = decoder(family)
    own = [at(0), at(0), at(7)] if columns is None else [columns] * 3  # columns 2, 5 and 7 of rows padded to 8
    expected = [loop(model, row, [(block(model), own[i], adding(VECTOR))]) for i, row in enumerate(PROMPTS)]
    assert relative(torch.stack([steps for _, steps in expected]), generated(model, inputs(PROMPTS))[1]) > 1e-3
    with intervening(model, {"x": (Site(LAYER, position=position), steering())}):
        check(generated(model, inputs(PROMPTS), use_cache=use_cache), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_right_padded_prompts_are_edited_at_their_own_tokens(family: str) -> None:
    model, given = decoder(family), inputs(PROMPTS, "right")
    numbers = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), intervening(model, {"x": (Site(LAYER, position=-2), steering())}):
        logits = model(**given, position_ids=numbers).logits
    for i, row in enumerate(PROMPTS):
        expected = logits_of(model, row, [(block(model), [len(row) - 2], adding(VECTOR))])
        assert relative(logits[i, : len(row)], expected) <= 1e-5


class Counting(Addition):
    """Counts the vectors that it edits in each call."""

    def __init__(self, site: SiteInfo) -> None:
        super().__init__(site)
        self.seen: list[int] = []

    def forward(self, base: Tensor, *args: Any, **more: Any) -> Tensor:
        self.seen.append(len(base))
        return super().forward(base, *args, **more)


@pytest.mark.parametrize(
    ("where", "use_cache", "seen"),
    [
        ("prompt", True, [3]),
        ("generated", True, [3] * (STEPS - 1)),
        ("all", True, [3] * STEPS),
        ("prompt", False, [3] * STEPS),
        ("generated", False, [3, 6, 9]),
        ("all", False, [3, 6, 9, 12]),
    ],
)
def test_of_n_new_tokens_n_minus_1_are_edited(where: Where, use_cache: bool, seen: list[int]) -> None:
    model, edit = decoder("gpt2"), Counting(INFO)
    with intervening(model, {"x": (Site(LAYER, position="last"), edit)}, where=where):
        generated(model, inputs(PROMPTS), use_cache=use_cache)
    assert edit.seen == seen


@pytest.mark.parametrize("family", FAMILIES)
def test_where_edits_the_prompt_the_generated_tokens_or_both(family: str) -> None:
    model = decoder(family)
    on_prompt, on_generated = ((block(model), columns, adding(VECTOR)) for columns in (at(1), after_prompt))
    plain = generated(model, inputs(PROMPTS))[1]
    kinds: dict[Where, Edits] = {"prompt": [on_prompt], "generated": [on_generated], "all": [on_prompt, on_generated]}
    for where, edits in kinds.items():
        with intervening(model, {"x": (Site(LAYER, position=1), steering())}, where=where):
            found = generated(model, inputs(PROMPTS))
        check(found, [loop(model, row, edits) for row in PROMPTS])
        assert relative(found[1][:, 1], plain[:, 1]) > 1e-3
        assert (relative(found[1][:, 0], plain[:, 0]) < 1e-6) == (where == "generated")  # the prefill chose it


@pytest.mark.parametrize("where", ["prompt", "generated", "all"])
def test_prompts_of_one_token_and_of_none(where: Where) -> None:
    model = decoder("gpt2")
    edits: Edits = [(block(model), at(0), adding(VECTOR))] if where != "generated" else []
    edits = [*edits, *([(block(model), after_prompt, adding(VECTOR))] if where != "prompt" else [])]
    expected = [loop(model, [token], edits) for token in (7, 9, 1)]
    with intervening(model, {"x": (Site(LAYER, position="last"), steering())}, where=where):
        check(generated(model, inputs([[7], [9]])), expected[:2])
        check(generated(model, {}, bos_token_id=1), expected[2:])  # generate begins with its own token


def test_several_prompts_in_one_context_are_each_a_prompt() -> None:
    model = decoder("llama")
    edits: Edits = [(block(model), at(-2), adding(VECTOR)), (block(model), after_prompt, adding(VECTOR))]
    batches = [PROMPTS, PROMPTS[1:], [[5, 6]], PROMPTS[:1]]
    expected = [[loop(model, row, edits) for row in rows] for rows in batches]
    alone = [logits_of(model, rows[0], [(block(model), [len(rows[0]) - 2], adding(VECTOR))]) for rows in batches]
    with torch.no_grad(), intervening(model, {"x": (Site(LAYER, position=-2), steering())}, where="all"):
        for rows, loops, logits in zip(batches, expected, alone, strict=True):
            check(generated(model, inputs(rows)), loops)
            assert relative(model(torch.tensor(rows[:1])).logits[0], logits) <= 1e-5  # a plain pass between them


def test_a_loop_of_the_callers_own_goes_on_with_the_prompt_it_began() -> None:
    model = decoder("llama")
    edits: Edits = [(block(model), at(0), adding(VECTOR)), (block(model), after_prompt, adding(VECTOR))]
    *expected, (tokens, steps) = [loop(model, row, edits) for row in PROMPTS]
    with torch.no_grad(), intervening(model, {"x": (Site(LAYER, position=0), steering())}, where="all"):
        outs = [model(torch.tensor([row]), use_cache=True) for row in PROMPTS[:2]]
        for step in range(STEPS):  # two conversations by turns
            for i, (chosen, logits) in enumerate(expected):
                assert relative(outs[i].logits[0, -1], logits[step]) <= 1e-5
                outs[i] = model(chosen[None, step : step + 1], past_key_values=outs[i].past_key_values)
        cache = model(torch.tensor([PROMPTS[2]]), use_cache=True, return_dict=False)[1]
        assert isinstance(cache, DynamicCache)
        assert relative(model(tokens[None, :1], past_key_values=cache).logits[0, -1], steps[1]) <= 1e-5


def test_a_chat_goes_on_with_its_cache() -> None:
    model = decoder("llama")
    turn = [PROMPTS[0], [*PROMPTS[0], 9, 8, 7]]
    expected = [loop(model, turn[1], [(block(model), at(-1), adding(VECTOR))])]
    for only_new in (True, False):
        cache = DynamicCache()
        with torch.no_grad():
            model(torch.tensor(turn[:1]), past_key_values=cache)
        given = inputs(turn[1:])
        if only_new:
            given["input_ids"] = given["input_ids"][:, len(turn[0]) :]
        with intervening(model, {"x": (Site(LAYER, position="last"), steering())}):
            check(generated(model, {**given, "past_key_values": cache}), expected)
    with torch.no_grad():
        model(torch.tensor(turn[:1]), past_key_values=(cache := DynamicCache()))
    message = "position 0 is among the prompt's first 6 columns, which the cache holds"
    with pytest.raises(IITKitError, match=message), intervening(model, {"x": (Site(LAYER, position=0), steering())}):
        generated(model, {**inputs(turn[1:]), "past_key_values": cache})


# --- the ways of generate() ---


EVERYWHERE: Where = "all"


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("masked", [True, False])
def test_static_caches(family: str, masked: bool) -> None:
    model, given = decoder(family), inputs(PROMPTS)
    if not masked:
        del given["attention_mask"]  # generate takes it from the padding, and shows the model a mask of four dimensions
    alignment = {"x": (Site(LAYER, position=1), steering())}
    with intervening(model, alignment, where=EVERYWHERE):
        expected = generated(model, inputs(PROMPTS))
        found = generated(model, given, cache_implementation="static")
    assert torch.equal(found[0], expected[0])
    assert relative(found[1], expected[1]) <= 1e-5
    assert relative(found[1], generated(model, inputs(PROMPTS))[1]) > 1e-3
    if family == "llama":
        edits: Edits = [(block(model), at(1), adding(VECTOR)), (block(model), after_prompt, adding(VECTOR))]
        check(found, [loop(model, row, edits) for row in PROMPTS])
        tokens, steps = loop(model, PROMPTS[0], edits)
        cache = StaticCache(model.config, max_cache_len=16)
        with torch.no_grad(), intervening(model, alignment, where=EVERYWHERE):
            model(torch.tensor([PROMPTS[0]]), past_key_values=cache)
            assert relative(model(tokens[None, :1], past_key_values=cache).logits[0, -1], steps[1]) <= 1e-5


def test_generation_is_not_compiled_while_it_is_edited() -> None:
    model = build("llama")
    compiling: Any = CompileConfig(backend="eager")
    compiling._compile_all_devices = True
    called: list[str] = []
    untyped: Any = model

    def compiled(*args: Any, **kwargs: Any) -> Any:
        called.append("compiled")
        return model(*args, **kwargs)

    untyped._compiled_call = compiled
    untyped._last_compile_config = compiling
    options: dict[str, Any] = {"cache_implementation": "static", "compile_config": compiling}
    generated(model, inputs(PROMPTS), **options)
    assert len(called) == STEPS - 1  # transformers would
    called.clear()
    with intervening(model, {"x": (Site(LAYER, position=0), steering())}, where="generated"):
        found = generated(model, inputs(PROMPTS), **options)
    assert called == []
    check(found, [loop(model, row, [(block(model), after_prompt, adding(VECTOR))]) for row in PROMPTS])


def test_the_prompt_in_chunks_in_embeddings_and_by_position() -> None:
    model: Any = decoder("llama")
    edits: Edits = [(block(model), at(1, -1), adding(VECTOR)), (block(model), after_prompt, adding(VECTOR))]
    expected = [loop(model, row, edits) for row in PROMPTS]
    alignment = {"x": (Site(LAYER, position=[1, -1]), steering())}
    with intervening(model, alignment, where=EVERYWHERE):
        check(generated(model, inputs(PROMPTS), prefill_chunk_size=3), expected)
        embedded = {"inputs_embeds": model.model.embed_tokens(inputs(PROMPTS)["input_ids"])}
        check(generated(model, {**embedded, "attention_mask": inputs(PROMPTS)["attention_mask"]}), expected)
        tokens = torch.tensor(PROMPTS[:1])
        out = model.generate(tokens, max_new_tokens=STEPS, do_sample=False, eos_token_id=99, pad_token_id=0)
        assert torch.equal(out[:, tokens.shape[1] :], expected[0][0][None])


@pytest.mark.parametrize("way", ["assistant", "lookup", "early exit"])
def test_assisted_decoding_gives_the_same_tokens(way: str) -> None:
    model = build("llama", pad_token_id=0)
    prompt = [*PROMPTS[0], *PROMPTS[0][:4]]  # repeats, so that looking up finds something
    edits: Edits = [(block(model), at(1), adding(VECTOR)), (block(model), after_prompt, adding(VECTOR))]
    expected = loop(model, prompt, edits)
    options: dict[str, Any] = {"assistant_model": build("llama", seed=4)}
    if way != "assistant":
        options = {"prompt_lookup_num_tokens": 3} if way == "lookup" else {"assistant_early_exit": 1}
    with intervening(model, {"x": (Site(LAYER, position=1), steering())}, where=EVERYWHERE):
        found = generated(model, inputs([prompt]), **options)
    check(found, [expected])


@pytest.mark.parametrize("position", [1, torch.tensor([[3], [1]])])  # token 1 of 6 and of 8, padded to 8 columns
def test_beams_take_each_examples_own_source(position: Any) -> None:
    model = decoder("gpt2")
    sources = torch.stack([activation(model, [token, 5, token], block(model))[1] for token in (3, 30)])
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2}
    rows = [PROMPTS[0], PROMPTS[2]]
    for use_cache in (True, False):
        site = Site(LAYER, position=position)
        with intervening(model, {"x": (site, Vanilla())}, features={"x": sources[:, None]}):
            together = generated(model, inputs(rows), use_cache=use_cache, **options)
        alone = []
        for row, source in zip(rows, sources, strict=True):
            alignment = {"x": (Site(LAYER, position=1), Vanilla())}
            with intervening(model, alignment, features={"x": source[None, None]}):
                alone.append(generated(model, inputs([row]), use_cache=use_cache, **options))
            first = loop(model, row, [(block(model), at(1), swapping(source))])[1][0]  # all beams begin alike
            assert relative(alone[-1][1][:, 0], first.expand(len(alone[-1][1]), -1)) <= 1e-5
        assert torch.equal(together[0], torch.cat([tokens for tokens, _ in alone]))
        assert relative(together[1], torch.cat([steps for _, steps in alone])) <= 1e-5


def test_samples_of_an_example_take_its_source() -> None:
    model = decoder("llama")
    sources = torch.stack([activation(model, [token, 5], block(model))[-1] for token in (3, 30)])
    with intervening(model, {"x": (Site(LAYER, position="last"), Vanilla())}, features={"x": sources[:, None]}):
        _, steps = generated(model, inputs(PROMPTS[:2]), do_sample=True, num_return_sequences=3)
    for i in range(2):
        first = loop(model, PROMPTS[i], [(block(model), at(-1), swapping(sources[i]))])[1][0]
        assert relative(steps[3 * i : 3 * i + 3, 0], first.expand(3, -1)) <= 1e-5


# --- sources, strength, sites ---


def test_sources_are_collected_once_at_the_sites() -> None:
    model = decoder("gpt2")
    other = ids(1, 7, seed=21)[0].tolist()
    deep, edit = block(model, 2), LowRankSubspace(INFO, rank=2).requires_grad_(False)
    basis = gram_schmidt(dict(edit.named_parameters())["space.free"])
    low, high = activation(model, SOURCE, block(model))[-2], activation(model, other, deep)[-1]
    edits: Edits = [
        (block(model), at(-2), lambda base: base + basis @ (basis.T @ (low - base))),
        (deep, at(-1), swapping(high)),
    ]
    expected = [loop(model, row, edits) for row in PROMPTS]
    alignment = {"a": (Site(LAYER, position=-2), edit), "b": (Site(2, position="last"), Vanilla())}
    runs: list[int] = []
    counter = model.register_forward_hook(lambda *_: runs.append(1), always_call=True)
    try:
        sources = {"a": inputs([SOURCE]), "b": inputs([other])}
        with intervening(model, alignment, source=sources):
            check(generated(model, inputs(PROMPTS)), expected)
            check(generated(model, inputs(PROMPTS)), expected)
    finally:
        counter.remove()
    assert len(runs) == 2 + 2 * STEPS
    with intervening(model, alignment, source=inputs([SOURCE]), features={"b": high[None, None]}):
        check(generated(model, inputs(PROMPTS)), expected)


def test_all_pairs_each_token_of_the_prompt_with_the_sources() -> None:
    model = decoder("gpt2")
    lengths = [len(row) for row in PROMPTS]
    rows = [ids(1, length, seed=30 + length)[0].tolist() for length in lengths]
    alignment = {"x": (Site(LAYER, position="all"), Subtraction(INFO))}
    given, found = inputs(PROMPTS), []
    numbers = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), intervening(model, alignment, source=inputs(rows)):
        found = list(model(**given, position_ids=numbers).logits)
    for row, prompt, logits in zip(rows, PROMPTS, found, strict=True):
        source = activation(model, row, block(model))
        edits = [(block(model), [i], adding(-vector)) for i, vector in enumerate(source)]
        assert relative(logits[-len(prompt) :], logits_of(model, prompt, edits)) <= 1e-5
    with torch.no_grad(), intervening(model, alignment, source=inputs(rows, "right")):  # however it is padded
        again = model(**given, position_ids=numbers).logits
    for one, other, prompt in zip(found, again, PROMPTS, strict=True):
        assert relative(other[-len(prompt) :], one[-len(prompt) :]) <= 1e-5
    for wrong, said in (([rows[0], rows[0], rows[2]], "6 tokens, row 1 of the prompts 3"), (rows[:1], "6 tokens")):
        with (
            pytest.raises(
                IITKitError,
                match=f"x: position 'all' needs prompts of equal lengths in base and source: source . has {said}",
            ),
            intervening(model, alignment, source=inputs(wrong)),
        ):
            generated(model, given)


@pytest.mark.parametrize("where", ["prompt", "all"])
def test_strength_scales_the_edit(where: Where) -> None:
    model = decoder("llama")
    source = taken(model)
    edits: Edits = [(block(model), at(-1), lambda base: base + 0.25 * (source - base))]
    if where == "all":
        edits = [*edits, (block(model), after_prompt, edits[0][2])]
    alignment = {"x": (Site(LAYER, position="last"), Vanilla())}
    with intervening(model, alignment, features={"x": source[None, None]}, strength=0.25, where=where):
        found = generated(model, inputs(PROMPTS))
    check(found, [loop(model, row, edits) for row in PROMPTS])


def test_one_head_and_all_heads_of_generated_tokens() -> None:
    model = build("gpt2")
    attention = model.get_submodule("transformer.h.1.attn.c_proj")
    for head, chosen in ((2, [2]), ([0, 2], [0, 2]), (None, [0, 1, 2, 3])):

        def alone(row: list[int], chosen: list[int] = chosen) -> tuple[Tensor, Tensor]:
            def silence(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
                heads = args[0].reshape(*args[0].shape[:2], 4, 4).clone()
                heads[:, len(row) :, chosen] = 0
                return (heads.flatten(2),)

            handle = attention.register_forward_pre_hook(silence)
            found = loop(model, row, [])
            handle.remove()
            return found

        site = Site(LAYER, "head_attention_value_output", position="last", head=head)
        expected = [alone(row) for row in PROMPTS]
        with intervening(model, {"x": (site, Zero(SiteInfo(4)))}, where="generated"):
            check(generated(model, inputs(PROMPTS)), expected)


def test_a_joint_site_is_one_vector_of_the_rows_positions() -> None:
    model = decoder("gpt2")
    info = SiteInfo(2 * WIDTH, positions=2, generator=torch.Generator().manual_seed(2))
    edit = LowRankSubspace(info, rank=3).requires_grad_(False)
    basis = gram_schmidt(dict(edit.named_parameters())["space.free"])
    source = activation(model, SOURCE, block(model))[[0, -1]].flatten()
    site = Site(LAYER, position=[0, -1], joint=True)
    expected = []
    for row in PROMPTS:
        before = activation(model, row, block(model))[[0, -1]].flatten()
        first, last = (before + basis @ (basis.T @ (source - before))).reshape(2, WIDTH)
        edits: Edits = [(block(model), at(0), swapping(first)), (block(model), at(-1), swapping(last))]
        expected.append(loop(model, row, edits))
    with intervening(model, {"x": (site, edit)}, source=inputs([SOURCE])):
        check(generated(model, inputs(PROMPTS)), expected)
        with pytest.raises(IITKitError, match="prefill the prompt in one chunk"):
            generated(model, inputs(PROMPTS), prefill_chunk_size=4)


def test_blocks_of_a_shared_rotation() -> None:
    model = decoder("llama")
    shared = RotatedSubspace(INFO, coordinates={"a": 3, "b": 5}).requires_grad_(False)
    source, basis = taken(model), gram_schmidt(dict(shared.named_parameters())["space.free"])[:, 3:8]
    edits: Edits = [(block(model), at(-1), lambda base: base + basis @ (basis.T @ (source - base)))]
    expected = [loop(model, row, edits) for row in PROMPTS]
    for name, variable in (("b", None), ("x", "b")):
        site = Site(LAYER, position="last", variable=variable)
        with intervening(model, {name: (site, shared)}, features={name: source[None, None]}):
            check(generated(model, inputs(PROMPTS)), expected)
    refused("x: variable 'x' has no block of its own in the rotation: it has a, b", run, edit=shared,
            features={"x": source[None, None]})  # fmt: skip


def test_edits_that_read_the_modules_input() -> None:
    model = decoder("llama")
    update = LoRA(SiteInfo(WIDTH, input_width=WIDTH), rank=2).requires_grad_(False)
    for part in update.parameters():
        part.copy_(0.3 * torch.randn(part.shape, generator=torch.Generator().manual_seed(part.shape[0])))
    mlp = model.get_submodule("model.layers.1.mlp")

    def alone(row: list[int]) -> tuple[Tensor, Tensor]:
        def updated(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            return torch.cat([output[:, : len(row)], update(output, inputs=args[0])[:, len(row) :]], 1)

        handle = mlp.register_forward_hook(updated)
        found = loop(model, row, [])
        handle.remove()
        return found

    expected = [alone(row) for row in PROMPTS]
    assert relative(expected[0][1][1], loop(model, PROMPTS[0], [])[1][1]) > 1e-3
    with intervening(model, {"x": (Site(LAYER, "mlp_output"), update)}, where="generated"):
        check(generated(model, inputs(PROMPTS)), expected)


def test_logits_are_edited_though_generate_keeps_the_last_alone() -> None:
    model = decoder("gpt2")
    push = torch.zeros(VOCABULARY)
    push[9] = 100.0
    vector = Addition(SiteInfo(VOCABULARY)).requires_grad_(False)
    vector.edit.get_parameter("vector").copy_(push)
    site = Site(component="logits", position="last")
    with intervening(model, {"x": (site, vector)}):
        tokens, _ = generated(model, inputs(PROMPTS))
    assert tokens[:, 0].tolist() == [9, 9, 9]
    assert 9 not in tokens[:, 1:]
    with intervening(model, {"x": (site, vector)}, where="all"):
        assert generated(model, inputs(PROMPTS))[0].tolist() == [[9] * STEPS] * 3


def test_forward_in_the_context_is_interchange_and_gradients_flow() -> None:
    model = decoder("llama")
    edit = LowRankSubspace(INFO, rank=3)
    alignment = {"x": (Site(LAYER, position=-2), edit)}
    base, source = inputs(PROMPTS), inputs([SOURCE] * 3)
    numbers = (base["attention_mask"].cumsum(1) - 1).clamp(min=0)
    expected = interchange(model, base, source, alignment).logits
    with intervening(model, alignment, source=source):
        found = model(**base, position_ids=numbers).logits
    assert torch.equal(found, expected)
    ours, theirs = (torch.autograd.grad(x.square().sum(), list(edit.parameters()))[0] for x in (found, expected))
    assert relative(ours, theirs) <= 1e-5
    assert float(theirs.abs().max()) > 1e-3


# --- contexts ---


def test_nested_contexts_and_placements_apply_in_the_order_declared() -> None:
    model = decoder("gpt2")
    zero, add = Zero(INFO, features=8), steering()

    def one_of(first: str) -> Edit:
        mask = torch.arange(WIDTH) >= 8
        return lambda base: base * mask + VECTOR if first == "zero" else (base + VECTOR) * mask

    site = Site(LAYER, position="last")
    for first in ("zero", "add"):
        edits: Edits = [(block(model), at(-1), one_of(first))]
        expected = [loop(model, row, edits) for row in PROMPTS]
        order: list[Intervention] = [zero, add] if first == "zero" else [add, zero]
        with intervening(model, {"x": (site, order[0])}), intervening(model, {"x": (site, order[1])}):
            check(generated(model, inputs(PROMPTS)), expected)
        with intervening(model, {"x": (site, order[0]), "y": (site, order[1])}):
            check(generated(model, inputs(PROMPTS)), expected)
    assert relative(expected[0][1], loop(model, PROMPTS[0], [(block(model), at(-1), adding(VECTOR))])[1]) > 1e-3


def test_a_nested_contexts_source_is_collected_unedited() -> None:
    model = decoder("gpt2")
    source = activation(model, SOURCE, block(model))[0]
    edits: Edits = [
        (block(model, 0), lambda prompt, now: range(prompt), adding(VECTOR)),
        (block(model), at(0), swapping(source)),
    ]
    expected = [loop(model, row, edits) for row in PROMPTS]
    outer, inner = {"x": (Site(0, position="all"), steering())}, {"y": (Site(LAYER, position=0), Vanilla())}
    with intervening(model, outer), intervening(model, inner, source=inputs([SOURCE])):
        check(generated(model, inputs(PROMPTS)), expected)


def test_two_models_at_once_do_not_disturb_each_other() -> None:
    one, two = decoder("gpt2"), decoder("llama")
    expected = {
        model: [loop(model, row, [(block(model), at(-1), adding(VECTOR))]) for row in PROMPTS] for model in (one, two)
    }
    site = Site(LAYER, position="last")
    with intervening(one, {"x": (site, steering())}), intervening(two, {"x": (site, steering())}):
        for model in (one, two, one):
            check(generated(model, inputs(PROMPTS)), expected[model])
    plain = [loop(two, row, []) for row in PROMPTS]
    with intervening(one, {"x": (site, steering())}):
        check(generated(two, inputs(PROMPTS)), plain)


def test_contexts_may_end_in_any_order() -> None:
    model = decoder("gpt2")
    before, plain = hooks_of(model), generated(model, inputs(PROMPTS))
    expected = [loop(model, row, [(block(model, 2), at(-1), adding(VECTOR))]) for row in PROMPTS]
    first, second = ExitStack(), ExitStack()
    first.enter_context(intervening(model, {"x": (Site(LAYER, position="last"), steering())}))
    second.enter_context(intervening(model, {"x": (Site(2, position="last"), steering())}))
    first.close()
    check(generated(model, inputs(PROMPTS)), expected)
    second.close()
    assert hooks_of(model) == before
    assert "generate" not in vars(model)
    assert torch.equal(generated(model, inputs(PROMPTS))[1], plain[1])


def test_contexts_that_change_how_the_network_computes_may_end_in_any_order() -> None:
    """Attention's probabilities are computed as long as any context edits them, and blocks are kept."""
    model = decoder("llama")
    assert model.config._attn_implementation == "sdpa"
    plain = generated(model, inputs(PROMPTS))[1]
    halved = Intervention(Identity(), All(), Scale(factor=0.5))
    alignment = [{"x": (Site(layer, "attention_weight", position="last"), halved)} for layer in (0, 1)]
    alone = []
    for each in alignment:
        with intervening(model, each):
            alone.append(generated(model, inputs(PROMPTS))[1])
    assert relative(alone[1], plain) > 1e-3
    for last in (0, 1):
        first, second = ExitStack(), ExitStack()
        first.enter_context(intervening(model, alignment[1 - last]))
        second.enter_context(intervening(model, alignment[last]))
        first.close()
        assert torch.equal(generated(model, inputs(PROMPTS))[1], alone[last])
        second.close()
        assert model.config._attn_implementation == "sdpa"
    model = build("llama")  # the other is every test's
    checkpointed: Any = block(model.train())
    checkpointed.gradient_checkpointing = True
    first, second = ExitStack(), ExitStack()
    for stack in (first, second):
        stack.enter_context(intervening(model, {"x": (Site(LAYER, position="last"), steering())}))
    first.close()
    assert not checkpointed.gradient_checkpointing
    second.close()
    assert checkpointed.gradient_checkpointing


def test_the_callers_hooks_and_generate_stay() -> None:
    model: Any = build("gpt2")
    fired: list[str] = []
    original = model.generate

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        fired.append("generate")
        return original(*args, **kwargs)

    model.generate = wrapped
    user = block(model).register_forward_hook(lambda *_: fired.append("hook"))
    before = hooks_of(model)
    for failing in (False, True):
        fired.clear()
        try:
            with intervening(model, {"x": (Site(LAYER, position="last"), steering())}):
                assert model.generate is not wrapped
                generated(model, inputs(PROMPTS))
                if failing:
                    raise RuntimeError("inside the context")
        except RuntimeError:
            assert failing
        assert fired == ["generate", *["hook"] * STEPS]
        assert model.generate is wrapped
        assert hooks_of(model) == before
        assert not {"init_continuous_batching", "get_compiled_call"} & set(vars(model))
    user.remove()


def test_500_calls_do_not_grow_memory() -> None:
    model = build("gpt2")

    def calls(times: int) -> tuple[int, int]:
        for i in range(times):
            out = model(torch.tensor([PROMPTS[i % 3]]), use_cache=True)
            model(torch.tensor([[3]]), past_key_values=out.past_key_values)
        del out
        gc.collect()
        tensors = sum(issubclass(type(each), Tensor) for each in gc.get_objects())
        return tensors, sum(len(own[0]) + len(own[1]) for own in hooks_of(model).values())

    alignment = {"x": (Site(LAYER, position="last"), steering())}
    with torch.no_grad(), intervening(model, alignment, where="all"):
        before = calls(6)
        assert calls(250) == before
    for _ in range(3):
        with torch.no_grad(), intervening(model, alignment, where="all"):
            assert calls(3) == before


def test_collect_inside_a_context_sees_the_edits() -> None:
    model = decoder("gpt2")
    with intervening(model, {"x": (Site(LAYER, position=0), steering())}):
        found = collect(model, inputs([SOURCE]), {"here": Site(LAYER, position=[0, 1]), "before": Site(0, position=0)})
        generated(model, inputs(PROMPTS))
    expected = activation(model, SOURCE, block(model))[:2]
    expected[0] += VECTOR
    assert relative(found["here"][0], expected) <= 1e-5


# --- what is refused ---


def refused(message: str, act: Callable[[Any], Any], model: Any = None, **given: Any) -> None:
    model = decoder("gpt2") if model is None else model
    alignment = given.pop(
        "alignment", {"x": (given.pop("site", Site(LAYER, position="last")), given.pop("edit", Vanilla()))}
    )
    before = hooks_of(model)
    with pytest.raises(IITKitError, match=message), intervening(model, alignment, **given):
        act(model)
    assert hooks_of(model) == before


def run(model: Any) -> None:
    generated(model, inputs(PROMPTS))


def test_sources_that_do_not_fit_are_refused() -> None:
    features = torch.zeros(2, 1, WIDTH)
    refused("x: the source has 2 rows, the batch 3: give one for each row of the prompts, or one for all", run,
            features={"x": features})  # fmt: skip
    refused("x: the intervention takes activations from a source: give one", run)
    refused(r"features name 'y', which the alignment does not place. It has x", run, features={"y": features})
    refused(
        r"x: the features have shape \(2, 16\): expected \[examples, positions, 16\]",
        run,
        features={"x": features[:, 0]},
    )
    refused(r"shape \(2, 1, 15\)", run, features={"x": features[..., 1:]})
    refused(
        "x: the features have 2 positions, position 'last' has 1 in row 0",
        run,
        features={"x": torch.zeros(3, 2, WIDTH)},
    )
    refused("x: the features have 6 positions, position 'all' has 8 in row 0", run, site=Site(LAYER, position="all"),
            features={"x": torch.zeros(3, 6, WIDTH)})  # fmt: skip
    refused("the features have 2 positions, a generated token takes one", run, where="all",
            features={"x": torch.zeros(1, 2, WIDTH)})  # fmt: skip
    refused(
        r"where 'promt': Did you mean 'prompt'\? expected prompt, generated, all", run, where="promt", edit=Zero(INFO)
    )


@pytest.mark.parametrize("strength", ["1", True, None, float("nan"), [1.0], {"x": "1"}, {"x": None}])
def test_a_strength_is_a_number(strength: Any) -> None:
    with (
        pytest.raises(IITKitError, match=r"strength .*: expected a number"),
        intervening(decoder("gpt2"), {"x": (Site(LAYER, position="last"), steering())}, strength=strength),
    ):
        pass


def test_rows_and_spans_that_nothing_reads_are_refused() -> None:
    """A span that is misspelt would else be one that no prompt has."""
    alignment = {"x": (Site(LAYER, position=["name", "last"]), steering())}
    given: list[tuple[dict[str, Any], str]] = [
        ({"active": {"y": torch.tensor([True])}}, "active names 'y', which the alignment does not place"),
        ({"spans": TextSpans(object(), {"nmae": "Anna"})}, "'name' is no span of the prompt. Did you mean 'nmae'"),
    ]
    for more, message in given:
        with pytest.raises(IITKitError, match=message), intervening(decoder("gpt2"), alignment, **more):
            pass


def test_positions_that_are_not_there_are_refused() -> None:
    zero: dict[str, Any] = {"edit": Zero(INFO)}
    refused("x: position 5 is outside a prompt of 3 tokens", run, site=Site(LAYER, position=5), **zero)
    refused("x: position 'name' names a span", run, site=Site(LAYER, position="name"), **zero)
    refused("x: column 2 of row 1 is padding", run, site=Site(LAYER, position=torch.tensor([[2], [2], [2]])), **zero)
    refused("x: the position has 2 rows, the batch 3", run, site=Site(LAYER, position=torch.tensor([[2], [5]])), **zero)
    refused(r"x: position of shape \(3,\)", run, site=Site(LAYER, position=torch.tensor([2, 5, 5])), **zero)
    refused("a joint site edits a fixed number", run, site=Site(LAYER, position="all", joint=True), **zero)
    refused("a joint site .* where='generated'", run, site=Site(LAYER, joint=True), where="generated", **zero)
    refused("x: layer 9 is out of range", run, site=Site(9), **zero)


def test_what_has_no_positions_is_refused() -> None:
    zero: dict[str, Any] = {"edit": Zero(INFO)}
    refused("continuous batching packs several prompts", lambda model: model.generate_batch([[3, 4], [5]]), **zero)
    refused("continuous batching", lambda model: model(**inputs(PROMPTS), cu_seq_lens_q=torch.ones(1)), **zero)
    refused(
        r"x: the activation at lm_head \(output\) is \(3, 1, 53\): expected \[3, 8, …\]",
        run,
        site=Site(module="lm_head"),
        edit=Zero(SiteInfo(VOCABULARY)),
    )
    refused("was called without input_ids", lambda model: model(), **zero)

    def inner(model: Any, first: bool = False) -> None:
        if first:
            run(model)
        model.transformer(**inputs(PROMPTS))

    refused("layer 1 block_output ran outside the model's own forward pass", inner, **zero)
    refused("ran outside", lambda model: inner(model, first=True), **zero)
    free: Any = {"guidance_scale": 2.0, "negative_prompt_ids": torch.tensor(PROMPTS[:1])}
    refused("do not begin with its prompt", lambda model: generated(model, inputs(PROMPTS[1:2]), **free), **zero)

    def stranger(model: Any) -> Any:
        return model(torch.tensor([[3]]), past_key_values=cache)

    cache = DynamicCache()
    decoder("gpt2")(torch.tensor(PROMPTS[:1]), past_key_values=cache)
    refused("goes on with a cache whose prompt was run outside the context", stranger, **zero)
    with torch.no_grad(), intervening(decoder("gpt2"), {"x": (Site(LAYER), steering())}, where="generated"):
        logits = stranger(decoder("gpt2")).logits[0, -1]
    tokens = [*PROMPTS[0], 3]
    expected = logits_of(decoder("gpt2"), tokens, [(block(decoder("gpt2")), [6], adding(VECTOR))])[-1]
    assert relative(logits, expected) <= 1e-5


def test_compiled_models_and_encoder_decoders_are_refused() -> None:
    model: Any = build("gpt2")
    model.transformer.h[1].compile(backend="eager")
    refused("is compiled and would not see the edits", run, model, edit=Zero(INFO))
    model = build("gpt2")
    model.config.is_encoder_decoder = True
    refused("is an encoder-decoder", run, model, edit=Zero(INFO))


def test_an_edit_that_never_ran_is_an_error() -> None:
    model = build("gpt2")
    block(model).forward = lambda hidden, *_, **__: hidden  # passes through, and so skips what is inside it
    site = Site(LAYER, "mlp_output", position="last")
    refused("x: the model ran and never came by layer 1 mlp_output", run, model, site=site, edit=Zero(INFO))

    def once(model: Any) -> None:
        model(**inputs(PROMPTS))

    refused("never came by layer 1 mlp_output", once, model, site=site, edit=Zero(INFO))
    path = {"x": (Site(module="transformer.h.1.mlp"), Zero(INFO))}  # a module by path may be one that is seldom run
    with intervening(model, path):
        once(model)
