"""``collect`` and ``interchange`` against hooks placed by hand, on language models and on any other module."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from byhand import (
    COMPONENTS,
    DTYPES,
    Edit,
    PadSide,
    activation,
    cast,
    gram_schmidt,
    head_of,
    hooks_of,
    logits_of,
    module_of,
    padded,
    prompts,
    relative,
    swap,
)
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

import iitkit
from iitkit.errors import IITKitError
from iitkit.interventions import Intervention, LoRA, LowRankSubspace, RotatedSubspace, SiteInfo, Skip, Vanilla
from iitkit.models.anatomy import locate
from iitkit.models.interchange import collect, interchange, interchange_stages
from iitkit.models.sites import Site

SIDES: tuple[PadSide, ...] = ("left", "right")
LAYERS, WIDTH = 4, 32
BASES, SOURCES = prompts([7, 4, 9, 5], seed=1), prompts([5, 8, 4, 9], seed=2)


@cache
def model_of(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return cast(tiny_model(family, LAYERS), dtype)


def inputs(rows: Sequence[Sequence[int]], side: PadSide, extra: int = 0) -> dict[str, Tensor]:
    ids, mask = padded(rows, side, extra)
    return {"input_ids": ids, "attention_mask": mask}


def subspace(rank: int, dtype: torch.dtype = torch.float32, seed: int = 0, width: int = WIDTH) -> LowRankSubspace:
    return LowRankSubspace(SiteInfo(width, generator=torch.Generator().manual_seed(seed)), rank=rank).to(dtype)


def rotation_of(edit: Intervention) -> Tensor | None:
    free = dict(edit.named_parameters()).get("space.free")
    return None if free is None else gram_schmidt(free)


def check_rows(logits: Tensor, mask: Tensor, expected: Sequence[Tensor], tolerance: float) -> None:
    """Compare the logits at every real token of a padded batch with those of single prompts."""
    for i, row in enumerate(expected):
        assert relative(logits[i][mask[i].bool()], row) <= tolerance


# --- collect ---


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_collect_gives_the_rows_run_by_hand(family: str, component: str) -> None:
    sites = {f"x{layer}": Site(layer, component, position=[0, -1, 2]) for layer in (0, 2, 3)}
    exact = model_of(family, torch.float64)  # what is worked out on it by hand holds for the fp32 model too
    expected = {}
    for layer in (0, 2, 3):
        module = module_of(exact, family, layer, component)
        expected[f"x{layer}"] = torch.stack([activation(exact, row, module)[[0, len(row) - 1, 2]] for row in BASES])
    for dtype, tolerance in DTYPES.items():
        model = model_of(family, dtype)
        single = collect(model, {"input_ids": torch.tensor([BASES[2]])}, sites)
        both = [collect(model, inputs(BASES, side, extra=2), sites) for side in SIDES]
        for name in sites:
            assert list(both[0]) == list(sites)
            assert relative(single[name], expected[name][2:3]) <= tolerance
            assert all(relative(found[name], expected[name]) <= tolerance for found in both)


def columns(position: Any, length: int) -> list[int]:
    table = {"last": [length - 1], "f2+l1": [0, 1, length - 1], "f1+l1": [0, length - 1]}
    if isinstance(position, str):
        return table[position]
    return [
        i % length if isinstance(i, int) else length - 1
        for i in (position if isinstance(position, list) else [position])
    ]


@pytest.mark.parametrize("position", [-1, 0, 2, -4, "last", "f2+l1", [1, 2], [0, 1], [2, "last"], [-1, -2], [3]])
def test_positions_are_counted_among_real_tokens(position: Any) -> None:
    model = model_of("gpt2")
    module = module_of(model, "gpt2", 1, "block_output")
    expected = torch.stack([activation(model, row, module)[columns(position, len(row))] for row in BASES])
    for side in SIDES:
        found = collect(model, inputs(BASES, side), {"x": Site(1, position=position)})["x"]
        assert found.shape == expected.shape  # two integers are two positions
        assert relative(found, expected) <= 1e-5


@pytest.mark.parametrize("side", SIDES)
def test_tensor_positions_are_columns_of_each_row(side: PadSide) -> None:
    model = model_of("llama")
    module = module_of(model, "llama", 1, "block_output")
    given = inputs(BASES, side)
    own = [[2, 0], [3, 1], [8, 4], [0, 0]]
    starts = [given["input_ids"].shape[1] - len(row) if side == "left" else 0 for row in BASES]
    position = torch.tensor([[start + i for i in row] for start, row in zip(starts, own, strict=True)])
    expected = torch.stack([activation(model, row, module)[at] for row, at in zip(BASES, own, strict=True)])
    assert relative(collect(model, given, {"x": Site(1, position=position)})["x"], expected) <= 1e-5
    assert relative(collect(model, given, {"x": Site(1, position=position.int())})["x"], expected) <= 1e-5


def test_all_positions() -> None:
    model = model_of("gpt2")
    module = module_of(model, "gpt2", 1, "mlp_output")
    given = inputs(BASES, "left")
    found = collect(model, given, {"x": Site(1, "mlp_output", "all")})["x"]
    assert found.shape == (4, 9, WIDTH)
    for i, row in enumerate(BASES):
        assert relative(found[i][given["attention_mask"][i].bool()], activation(model, row, module)) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_run_stops_at_the_deepest_site(family: str) -> None:
    model = model_of(family)
    calls: list[str] = []
    watched: dict[str, nn.Module] = {f"block {i}": module_of(model, family, i, "block_output") for i in range(LAYERS)}
    watched |= {"mlp 1": module_of(model, family, 1, "mlp_output"), "head": head_of(model)}
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name)) for name, module in watched.items()
    ]
    try:
        collect(model, inputs(BASES, "left"), {"x": Site(1, "attention_output"), "y": Site(0, "mlp_input")})
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["block 0", "block 1"]
    assert collect(model, inputs(BASES, "left"), {}) == {}


def test_collect_keeps_the_networks_dtype_and_no_graph() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        found = collect(cast(tiny_model("llama"), dtype), inputs(BASES, "left"), {"x": Site(1)})["x"]
        assert found.dtype == dtype
    trained = tiny_model("gpt2").requires_grad_(True)
    assert not collect(trained, inputs(BASES, "left"), {"x": Site(1)})["x"].requires_grad


def test_what_a_tokenizer_returns() -> None:
    tokenizer, model = tiny_tokenizer(), model_of("gpt2")
    texts = ["Then John went to the office", "Mary gave"]
    module = module_of(model, "gpt2", 2, "block_output")
    expected = torch.stack([activation(model, tokenizer(text)["input_ids"], module)[-1:] for text in texts])
    for side in SIDES:
        tokenizer.padding_side = side
        given = tokenizer(texts, return_tensors="pt", padding=True)
        assert bool((given["attention_mask"] == 0).any())
        kept = {key: value.clone() for key, value in given.items()}
        assert relative(iitkit.collect(model, given, {"x": iitkit.Site(2)})["x"], expected) <= 1e-5
        iitkit.interchange(model, given, given, {"x": (iitkit.Site(2), iitkit.Vanilla())})
        assert set(given) == set(kept)  # the caller's inputs are left alone
        assert all(torch.equal(given[key], value) for key, value in kept.items())


# --- interchange ---


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_interchange_is_the_edit_by_hand(family: str, component: str) -> None:
    at, layer = [1, -1], 1
    exact = model_of(family, torch.float64)  # what is worked out on it by hand holds for the fp32 model too
    module, rotation = module_of(exact, family, layer, component), rotation_of(subspace(3, torch.float64))
    expected = []
    for base, source in zip(BASES, SOURCES, strict=True):
        taken = activation(exact, source, module)
        places = [(1, 1), (len(base) - 1, len(source) - 1)]
        expected.append(logits_of(exact, base, [(module, [b], swap(taken[s], rotation)) for b, s in places]))
    assert relative(expected[0], logits_of(exact, BASES[0])) > 1e-3  # the edit does something, so the check can fail
    for dtype, tolerance in DTYPES.items():
        model, edit = model_of(family, dtype), subspace(3, dtype)
        for base_side, source_side in (("left", "left"), ("right", "right"), ("left", "right")):
            given = inputs(BASES, base_side)  # type: ignore[arg-type]
            found = interchange(
                model,
                given,
                inputs(SOURCES, source_side),  # type: ignore[arg-type]
                {"x": (Site(layer, component, at), edit)},
            )
            assert type(found) is type(model(**given))
            check_rows(found.logits, given["attention_mask"], expected, tolerance)
        one = interchange(
            model, {"input_ids": torch.tensor(BASES[:1])}, {"input_ids": torch.tensor(SOURCES[:1])},
            {"x": (Site(layer, component, at), edit)},
        )  # fmt: skip
        assert relative(one.logits[0], expected[0]) <= tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_several_sites_and_several_at_one_in_the_order_given(family: str) -> None:
    model = model_of(family, torch.float64)
    edits = [subspace(3, torch.float64, 0), Vanilla(), subspace(2, torch.float64, 1)]
    sites = [Site(1, position=-1), Site(2, "mlp_output", 1), Site(1, position=-1)]
    modules = [module_of(model, family, layer, part) for layer, part in [(1, "block_output"), (2, "mlp_output")]]
    modules.append(modules[0])
    given = inputs(BASES, "left")

    def by_hand(order: Sequence[int]) -> list[Tensor]:
        rows = []
        for base, source in zip(BASES, SOURCES, strict=True):
            hooks = []
            for i in order:
                b, s = (1, 1) if i == 1 else (len(base) - 1, len(source) - 1)
                hooks.append((modules[i], [b], swap(activation(model, source, modules[i])[s], rotation_of(edits[i]))))
            rows.append(logits_of(model, base, hooks))
        return rows

    for order in ([0, 1, 2], [2, 1, 0]):
        alignment = {f"p{i}": (sites[i], edits[i]) for i in order}
        found = interchange(model, given, inputs(SOURCES, "right"), alignment)
        check_rows(found.logits, given["attention_mask"], by_hand(order), 1e-10)
    assert relative(by_hand([0, 1, 2])[0], by_hand([2, 1, 0])[0]) > 1e-4


def test_strength() -> None:
    model, edit = model_of("gpt2", torch.float64), subspace(3, torch.float64)
    module, rotation = module_of(model, "gpt2", 1, "block_output"), rotation_of(edit)
    given = inputs(BASES, "left")

    def partly(full: Edit, strength: float) -> Edit:
        return lambda h: h + strength * (full(h) - h)

    for strength in (-1.0, 0.5, 3.0):
        expected = []
        for base, source in zip(BASES, SOURCES, strict=True):
            full = swap(activation(model, source, module)[-1], rotation)
            expected.append(logits_of(model, base, [(module, [len(base) - 1], partly(full, strength))]))
        found = interchange(model, given, inputs(SOURCES, "left"), {"x": (Site(1), edit)}, strength=strength)
        check_rows(found.logits, given["attention_mask"], expected, 1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_edited_is_the_plain_model_bit_for_bit(family: str) -> None:
    model = model_of(family)
    for side in SIDES:
        base, source = inputs(BASES, side), inputs(SOURCES, side)
        plain = model(**(_own(base) if side == "left" else base)).logits
        site = Site(1, position=[0, -1])
        assert torch.equal(interchange(model, base, source, {}).logits, plain)
        assert torch.equal(interchange(model, base, None, {}).logits, plain)
        assert torch.equal(interchange(model, base, source, {"x": (site, subspace(3))}, strength=0).logits, plain)
        for edit in (Vanilla(), subspace(3), subspace(WIDTH)):  # base = source
            assert torch.equal(interchange(model, base, base, {"x": (site, edit)}).logits, plain)
        full = interchange(model, base, source, {"x": (site, Vanilla())}).logits
        rotated = interchange(model, base, source, {"x": (site, subspace(WIDTH))}).logits
        assert relative(rotated, full) <= 1e-5
        assert relative(full, plain) > 1e-2


def _own(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**given, "position_ids": (given["attention_mask"].cumsum(1) - 1).clamp(min=0)}


def test_positions_of_one_call_do_not_leak_into_the_next() -> None:
    model = model_of("gpt2", torch.float64)
    module = module_of(model, "gpt2", 1, "block_output")
    base, source = inputs(BASES, "right"), inputs(SOURCES, "right")
    interchange(model, base, source, {"x": (Site(1, position=0), Vanilla())})
    donors = inputs(BASES[::-1], "right")
    position = torch.tensor([[1], [3], [2], [0]])
    found = interchange(model, base, donors, {"x": (Site(1, position=position), Vanilla())})
    expected = []
    for i, (row, donor) in enumerate(zip(BASES, BASES[::-1], strict=True)):
        at = int(position[i])
        expected.append(logits_of(model, row, [(module, [at], swap(activation(model, donor, module)[at], None))]))
    check_rows(found.logits, base["attention_mask"], expected, 1e-10)


def test_a_source_may_have_its_site_elsewhere() -> None:
    model = model_of("gpt2", torch.float64)
    module = module_of(model, "gpt2", 1, "block_output")
    base, source = inputs(BASES, "left"), inputs(SOURCES, "right")
    alignment = {"x": (Site(1, position=0), Vanilla())}
    found = interchange(model, base, source, alignment, source_positions={"x": -1})
    expected = [
        logits_of(model, row, [(module, [0], swap(activation(model, other, module)[-1], None))])
        for row, other in zip(BASES, SOURCES, strict=True)
    ]
    check_rows(found.logits, base["attention_mask"], expected, 1e-10)
    with pytest.raises(IITKitError, match=r"source_positions names 'y', which the alignment does not place: it has x"):
        interchange(model, base, source, alignment, source_positions={"y": -1})


def test_all_positions_are_swapped() -> None:
    model = model_of("gpt2")
    sources = prompts([len(row) for row in BASES], seed=8)
    for side in SIDES:
        base, source = inputs(BASES, side), inputs(sources, side)
        found = interchange(model, base, source, {"x": (Site(1, position="all"), Vanilla())}).logits
        # whoever takes all of the residual stream from the source, says what the source says
        check_rows(found, base["attention_mask"], [logits_of(model, row) for row in sources], 1e-5)
    for other in (inputs(SOURCES, "right"), inputs(sources, "left")):
        with pytest.raises(
            IITKitError, match="x: position 'all' needs prompts of equal lengths in base and source, padded"
        ):
            interchange(model, inputs(BASES, "right"), other, {"x": (Site(1, position="all"), Vanilla())})


@pytest.mark.parametrize("family", FAMILIES)
def test_no_hook_is_left_and_the_users_own_stay(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(family)
    fired: list[str] = []
    handles = [
        module_of(model, family, 1, "block_output").register_forward_hook(lambda *_: fired.append("after")),
        module_of(model, family, 1, "block_output").register_forward_pre_hook(lambda *_: fired.append("before")),
    ]
    base, source = inputs(BASES, "left"), inputs(SOURCES, "left")
    try:
        before = hooks_of(model)
        plain = model(**_own(base)).logits
        alignment: dict[str, tuple[Site, Intervention]] = {
            "x": (Site(1), subspace(2)),
            "y": (Site(1, "block_input"), Vanilla()),
        }
        fired.clear()
        interchange(model, base, source, alignment)
        assert fired == ["before", "after"] * 2  # in the source's run and in the base's
        assert hooks_of(model) == before

        def boom(*_: object, **__: object) -> Tensor:
            raise RuntimeError("inside the intervention")

        monkeypatch.setattr(alignment["x"][1], "forward", boom)
        with pytest.raises(RuntimeError, match="inside the intervention"):
            interchange(model, base, source, alignment)
        assert hooks_of(model) == before
        stumbling = module_of(model, family, 2, "mlp_output").register_forward_hook(boom)
        with pytest.raises(RuntimeError, match="inside the intervention"):
            collect(model, base, {"x": Site(3)})
        stumbling.remove()
        assert hooks_of(model) == before
        assert torch.equal(model(**_own(base)).logits, plain)
    finally:
        for handle in handles:
            handle.remove()


def test_gradients_reach_the_matrix_and_the_base_but_not_the_source() -> None:
    model = tiny_model("gpt2").double().requires_grad_(True)
    edit = subspace(3, torch.float64)
    module = module_of(model, "gpt2", 1, "block_output")
    weights = torch.randn(len(BASES[0]), model.config.vocab_size, dtype=torch.float64)
    taken = activation(model, SOURCES[0], module)[-1]
    rotation = rotation_of(edit)
    hooks = [(module, [len(BASES[0]) - 1], swap(taken, rotation))]
    leaves = [*edit.parameters(), *model.parameters()]
    expected = torch.autograd.grad((logits_of(model, BASES[0], hooks) * weights).sum(), leaves)
    one, other = ({"input_ids": torch.tensor(rows[:1])} for rows in (BASES, SOURCES))
    found = interchange(model, one, other, {"x": (Site(1), edit)}).logits[0]
    grads = torch.autograd.grad((found * weights).sum(), leaves)
    assert all(relative(a, b) <= 1e-10 for a, b in zip(grads, expected, strict=True) if float(b.abs().max()) > 1e-8)
    assert float(grads[0].abs().max()) > 1e-3


# --- heads, module inputs, several sources, stages ---


def test_heads_at_positions_of_ragged_rows() -> None:
    model = model_of("llama", torch.float64)  # 4 heads of 8, 2 key-value heads
    untyped: Any = model
    module = untyped.model.layers[1].self_attn.v_proj
    for side in SIDES:
        given = inputs(BASES, side)
        every = collect(model, given, {"x": Site(1, "head_value_output", [0, -1])})["x"]
        assert every.shape == (4, 2, 2, 8)
        for i, row in enumerate(BASES):
            own = activation(model, row, module).view(len(row), 2, 8)
            assert relative(every[i], own[[0, -1]]) <= 1e-10
            for head in (1, [1], [1, 0]):
                site = Site(1, "head_value_output", [0, -1], head=head)
                found = collect(model, given, {"x": site})["x"][i]
                assert relative(found, own[[0, -1]][:, head]) <= 1e-10
        where = Site(1, "head_value_output", [1, -1], head=1)
        edit = subspace(3, torch.float64, width=8)
        found = interchange(model, given, inputs(SOURCES, "right"), {"x": (where, edit)}).logits
        rotation = rotation_of(edit)
        assert rotation is not None
        expected = []
        for base, source in zip(BASES, SOURCES, strict=True):
            taken = activation(model, source, module)

            def change(b: Tensor, s: Tensor, rotation: Tensor = rotation) -> Tensor:
                return torch.cat([b[:8], swap(s[8:], rotation)(b[8:])])

            places = [(1, 1), (len(base) - 1, len(source) - 1)]
            hooks = [(module, [b], lambda h, s=taken[s]: change(h, s)) for b, s in places]
            expected.append(logits_of(model, base, hooks))
        check_rows(found, given["attention_mask"], expected, 1e-10)


def lora(width: int, entering: int, seed: int) -> LoRA:
    generator = torch.Generator().manual_seed(seed)
    made = LoRA(SiteInfo(width, input_width=entering, generator=generator), rank=2, alpha=6.0).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return made


@pytest.mark.parametrize(
    ("component", "path", "head"),
    [
        ("mlp_output", "mlp", None),
        ("mlp_activation", "mlp.act_fn", None),
        ("attention_output", "self_attn.o_proj", None),
        ("key_output", "self_attn.k_proj", None),
        ("head_key_output", "self_attn.k_proj", 1),
        ("head_key_output", "self_attn.k_proj", [1, 0]),
        ("block_output", "", None),
    ],
)
def test_the_modules_own_input_reaches_the_intervention(component: str, path: str, head: Any) -> None:
    model: Any = model_of("llama", torch.float64)
    site = Site(1, component, [1, -1], head=head)
    location = locate(model, site)
    assert location.width is not None
    assert location.input_width is not None
    edit = lora(location.width, location.input_width, seed=4)
    matrices = {tuple(parameter.shape): parameter for parameter in edit.parameters()}
    a, b = matrices[location.input_width, 2], matrices[2, location.width]
    block = model.model.layers[1]
    module = block.get_submodule(path) if path else block
    # the attention's own input is what its query projection is given
    watched = block.self_attn.q_proj if component == "attention_output" else module
    expected = []
    for row in BASES:
        seen: list[Tensor] = []
        handle = watched.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][0]))
        logits_of(model, row)
        handle.remove()

        def change(h: Tensor, update: Tensor) -> Tensor:
            if head is None:
                return h + update
            parted = h.view(-1, 8).clone()
            for one in [head] if isinstance(head, int) else head:
                parted[one] += update
            return parted.flatten()

        hooks = [
            (module, [at], lambda h, update=3.0 * (seen[0][at] @ a) @ b: change(h, update)) for at in (1, len(row) - 1)
        ]
        expected.append(logits_of(model, row, hooks))
    assert relative(expected[0], logits_of(model, BASES[0])) > 1e-3
    given = inputs(BASES, "left")
    found = interchange(model, given, None, {"x": (site, edit)})
    check_rows(found.logits, given["attention_mask"], expected, 1e-10)


def test_a_skipped_module_and_one_without_an_input() -> None:
    model: Any = model_of("llama", torch.float64)
    given, edit = inputs(BASES, "left"), Skip(SiteInfo(WIDTH, input_width=WIDTH))
    found = interchange(model, given, None, {"x": (Site(1, position="all"), edit)}).logits
    expected = []
    for row in BASES:
        entering = activation(model, row, model.model.layers[0])
        hooks = [(model.model.layers[1], [i], lambda h, i=i, entering=entering: entering[i]) for i in range(len(row))]
        expected.append(logits_of(model, row, hooks))
    check_rows(found, given["attention_mask"], expected, 1e-10)
    for site in (Site(1, "mlp_input"), Site(1, "attention_weight", head=0), Site(component="embeddings")):
        with pytest.raises(IITKitError, match=r"x: the intervention reads the module's input, and .* has none: plac"):
            interchange(model, given, None, {"x": (site, edit)})


def test_placements_may_take_different_sources() -> None:
    model = model_of("gpt2", torch.float64)
    modules = [module_of(model, "gpt2", layer, "block_output") for layer in (1, 2)]
    base, one, other = inputs(BASES, "left"), inputs(SOURCES, "right"), inputs(BASES[::-1], "left")
    alignment = {"x": (Site(1, position=0), Vanilla()), "y": (Site(2, position=-1), Vanilla())}
    found = interchange(model, base, {"x": one, "y": other}, alignment).logits
    expected = []
    for row, its, others in zip(BASES, SOURCES, BASES[::-1], strict=True):
        hooks = [
            (modules[0], [0], swap(activation(model, its, modules[0])[0], None)),
            (modules[1], [len(row) - 1], swap(activation(model, others, modules[1])[-1], None)),
        ]
        expected.append(logits_of(model, row, hooks))
    check_rows(found, base["attention_mask"], expected, 1e-10)
    assert torch.equal(
        interchange(model, base, {"x": one, "y": one}, alignment).logits,
        interchange(model, base, one, alignment).logits,
    )
    with pytest.raises(IITKitError, match="y: the intervention takes activations from a source: give it one"):
        interchange(model, base, {"x": one}, alignment)
    with pytest.raises(IITKitError, match=r"source names 'z', which the alignment does not place\. It has x, y"):
        interchange(model, base, {"x": one, "y": one, "z": one}, alignment)
    net = mlp()
    b, s, t = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    places = {"x": (Site(module="1"), Vanilla()), "y": (Site(module="3"), Vanilla())}
    with torch.no_grad():
        assert torch.equal(interchange(net, b, {"x": s, "y": t}, places), net(t))


def test_stages_pass_edited_activations_on() -> None:
    model = model_of("gpt2", torch.float64)
    low, high = (module_of(model, "gpt2", layer, "block_output") for layer in (1, 2))
    first, second, base = SOURCES, BASES[::-1], BASES
    edit = subspace(3, torch.float64)
    rotation = rotation_of(edit)
    stages: list[tuple[dict[str, Tensor], dict[str, tuple[Site, Intervention]]]] = [
        (inputs(first, "left"), {}),
        (inputs(second, "right"), {"low": (Site(1, position=0), edit)}),
        (inputs(base, "left"), {"high": (Site(2, position=[0, -1]), Vanilla())}),
    ]
    found = interchange_stages(model, stages).logits
    expected: list[Tensor] = []
    unedited: list[Tensor] = []
    for one, two, row in zip(first, second, base, strict=True):
        edited = [(low, [0], swap(activation(model, one, low)[0], rotation))]
        seen: list[Tensor] = []
        handle = high.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output[0]))
        logits_of(model, two, edited)
        logits_of(model, two)
        handle.remove()
        for taken, logits in zip(seen, (expected, unedited), strict=True):
            hooks = [(high, [b], swap(taken[s], None)) for b, s in ((0, 0), (len(row) - 1, len(two) - 1))]
            logits.append(logits_of(model, row, hooks))
    check_rows(found, stages[2][0]["attention_mask"], expected, 1e-10)
    assert relative(expected[0], unedited[0]) > 1e-3
    found.sum().backward()  # through the edited run of the second stage
    free = next(edit.parameters()).grad
    assert free is not None
    assert float(free.abs().max()) > 1e-6
    # one stage more is one source: interchange itself
    two_stages = interchange_stages(model, [stages[0], stages[2]], source_positions={"high": [-1, 0]})
    same = interchange(model, stages[2][0], stages[0][0], stages[2][1], source_positions={"high": [-1, 0]})
    assert torch.equal(two_stages.logits, same.logits)
    assert torch.equal(
        interchange_stages(model, stages, strength=0).logits, interchange(model, stages[2][0], None, {}).logits
    )


def test_a_site_that_a_stage_edits_is_taken_as_edited() -> None:
    model = model_of("gpt2", torch.float64)
    where = Site(1, position=0)
    stages: list[tuple[dict[str, Tensor], dict[str, tuple[Site, Intervention]]]] = [
        (inputs(SOURCES, "left"), {}),
        (inputs(BASES[::-1], "left"), {"x": (where, Vanilla())}),
        (inputs(BASES, "left"), {"x": (where, Vanilla())}),
    ]
    found = interchange_stages(model, stages).logits  # handed through the second run
    assert torch.equal(found, interchange(model, stages[2][0], stages[0][0], stages[2][1]).logits)


def test_stages_that_do_not_fit() -> None:
    model = model_of("gpt2")
    given, alignment = inputs(BASES, "left"), {"x": (Site(1), Vanilla())}
    with pytest.raises(IITKitError, match=r"stages: there are none: expected \(inputs, alignment\) of each run"):
        interchange_stages(model, [])
    with pytest.raises(IITKitError, match=r"stages: the first has x: expected .* the first one's empty as no run"):
        interchange_stages(model, [(given, alignment)])
    with pytest.raises(IITKitError, match="source_positions names 'y', which the alignment does not place: it has x"):
        interchange_stages(model, [(given, {}), (given, alignment)], source_positions={"y": 0})
    everywhere = {"x": (Site(1, position="all"), Vanilla())}
    with pytest.raises(IITKitError, match="x: position 'all' needs prompts of equal lengths in base and source"):
        interchange_stages(model, [(inputs(SOURCES, "left"), {}), (given, everywhere)])


def test_blocks_of_a_shared_rotation_go_by_the_placements_names() -> None:
    model = model_of("gpt2", torch.float64)
    module = module_of(model, "gpt2", 1, "block_output")
    made = RotatedSubspace(
        SiteInfo(WIDTH, generator=torch.Generator().manual_seed(0)), coordinates={"x": 2, "y": 3}
    ).double()
    matrix = next(parameter for parameter in made.parameters() if parameter.shape == (WIDTH, WIDTH))
    rotation = gram_schmidt(matrix)
    given, source = inputs(BASES, "left"), inputs(SOURCES, "left")
    for name, columns_ in (("x", [0, 1]), ("y", [2, 3, 4])):
        found = interchange(model, given, source, {name: (Site(1), made)}).logits
        expected = [
            logits_of(model, row, [(module, [len(row) - 1], swap(taken[-1], rotation[:, columns_]))])
            for row, taken in zip(BASES, (activation(model, s, module) for s in SOURCES), strict=True)
        ]
        check_rows(found, given["attention_mask"], expected, 1e-9)
    with pytest.raises(IITKitError, match="z: the intervention has a block for each of x, y: name the placement after"):
        interchange(model, given, source, {"z": (Site(1), made)})


# --- any module ---


class TupleBlock(nn.Module):
    """A block as GPT-J's: it returns (hidden, weights)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> tuple[Tensor, str]:
        return hidden + torch.tanh(self.linear(hidden)), "weights"


class TupleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 6)
        self.h = nn.ModuleList([TupleBlock(6) for _ in range(3)])
        self.said: list[str] = []

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.embed(ids)
        for block in self.h:
            hidden, weights = block(hidden)
            self.said.append(weights)
        return hidden.cumsum(1)


@torch.no_grad()
def test_blocks_that_return_tuples_and_positions_without_token_ids() -> None:
    net = TupleNet()
    base, source = torch.randint(0, 50, (2, 2, 5)).unbind(0)

    def by_hand(positions: list[int]) -> Tensor:
        hidden, other = net.embed(base), net.embed(source)
        for i, block in enumerate(net.h):
            hidden, other = block(hidden)[0], block(other)[0]
            if i == 1:
                hidden = hidden.clone()
                hidden[:, positions] = other[:, positions]
        return torch.cumsum(hidden, 1)

    table: list[tuple[Any, list[int]]] = [(-1, [4]), (1, [1]), ([0, 3], [0, 3]), ("all", [0, 1, 2, 3, 4])]
    for position, positions in [*table, (torch.tensor([[2], [2]]), [2])]:
        for site in (Site(1, position=position), Site(module="h.1", position=position)):
            net.said.clear()
            found = interchange(net, base, source, {"x": (site, Vanilla())})
            assert net.said[-3:] == ["weights"] * 3  # the rest of the tuple is the block's own
            assert torch.equal(found, by_hand(positions))
            taken = collect(net, source, {"x": site})["x"]
            hidden = net.embed(source)
            for block in net.h[:2]:
                hidden = block(hidden)[0]
            assert torch.equal(taken, hidden[:, positions])
    with pytest.raises(IITKitError, match="x: position 5 is outside a prompt of 5 tokens"):
        collect(net, source, {"x": Site(module="h.1", position=5)})


def mlp(inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=inplace), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


@torch.no_grad()
def test_a_plain_network_without_a_sequence() -> None:
    net = mlp()
    base, source = torch.randn(2, 7, 4).unbind(0)
    edit = subspace(3, width=8)
    rotation = rotation_of(edit)
    assert rotation is not None
    first, second = torch.relu(net[0](base)), torch.relu(net[0](source))
    mixed = first + (second - first) @ rotation @ rotation.T
    for module, side in (("1", "output"), ("2", "input")):
        site = Site(module=module, side=side)  # type: ignore[arg-type]
        found = interchange(net, base, source, {"x": (site, edit)})
        assert relative(found, net[4](net[3](net[2](mixed)))) <= 1e-5
        assert torch.equal(collect(net, base, {"x": site})["x"], first[:, None])
        assert relative(interchange(net, base, source, {"x": (site, Vanilla())}), net(source)) <= 1e-6
        assert torch.equal(interchange(net, base, base, {"x": (site, edit)}), net(base))
    with pytest.raises(IITKitError, match="x: position 3 is outside a prompt of 1 tokens"):
        collect(net, base, {"x": Site(module="1", position=3)})


def test_modules_that_change_their_input_in_place() -> None:
    plain, inplace = mlp(), mlp(inplace=True)
    base, source = torch.randn(2, 7, 4).unbind(0)
    sites = {"x": Site(module="0"), "y": Site(module="2")}
    found, expected = collect(inplace, base, sites), collect(plain, base, sites)
    with torch.no_grad():
        assert torch.equal(expected["x"], plain[0](base)[:, None])
    assert float(expected["x"].min()) < 0
    assert all(torch.equal(found[name], expected[name]) for name in sites)
    for edit in (Vanilla(), subspace(3, width=8)):
        alignment = {"x": (sites["x"], edit)}
        one, other = (interchange(net, base, source, alignment) for net in (plain, inplace))
        assert torch.equal(one, other)
        other.sum().backward()


def test_a_module_called_by_keywords_and_a_model_of_dicts() -> None:
    class Inner(nn.Module):
        def forward(self, *, scale: float, hidden: Tensor) -> Tensor:
            return hidden * scale

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"y": self.inner(scale=2.0, hidden=x)}

    base, source = torch.randn(2, 3, 4).unbind(0)
    site = Site(module="inner", side="input")
    found = interchange(Outer(), {"x": base}, {"x": source}, {"x": (site, Vanilla())})
    assert torch.equal(found["y"], source * 2)
    with pytest.raises(IITKitError, match=": expected a tensor at the site, found dict"):
        collect(Outer(), {"x": base}, {"x": Site(module="")})


# --- what does not fit ---


def test_mistakes_are_named() -> None:
    model = model_of("gpt2")
    base, source = inputs(BASES, "left"), inputs(SOURCES, "left")

    def run(site: Site, other: dict[str, Tensor] | None = source, edit: Intervention | None = None) -> Any:
        return interchange(model, base, other, {"x": (site, edit or Vanilla())})

    before = hooks_of(model)
    with pytest.raises(IITKitError, match="x: the intervention takes activations from a source: give one"):
        run(Site(1), None)
    with pytest.raises(
        IITKitError, match=r"x: the source's activation is \(3, 1, 32\), the base's \(4, 1, 32\): give as"
    ):
        run(Site(1), inputs(SOURCES[:3], "left"))
    with pytest.raises(IITKitError, match=r"x: component 'blok_output' is unknown\. Did you mean 'block_output'"):
        run(Site(1, "blok_output"))
    with pytest.raises(IITKitError, match="x: layer 9 is out of range: GPT2LMHeadModel has layers 0 to 3"):
        run(Site(9))
    for position in (4, -5, [0, 4]):
        outside = position if isinstance(position, int) else 4
        with pytest.raises(IITKitError, match=f"x: position {outside} is outside a prompt of 4 tokens"):
            run(Site(1, position=position))
    with pytest.raises(
        IITKitError, match="x: position 'subject' names a span, and this text has none: give an integer"
    ):
        run(Site(1, position="subject"))
    with pytest.raises(IITKitError, match=r"x: position 'f5\+l1' has another number of tokens in different rows"):
        run(Site(1, position="f5+l1"))
    assert hooks_of(model) == before


def test_tensors_that_are_no_columns_are_refused() -> None:
    model = model_of("gpt2")
    given = inputs(BASES, "left")  # lengths 7, 4, 9, 5 in 9 columns

    def run(position: Tensor) -> Tensor:
        return collect(model, given, {"x": Site(1, position=position)})["x"]

    for wrong in (
        torch.zeros(4, 1),  # floats
        torch.zeros(4, dtype=torch.long),
        torch.zeros(4, 1, 1, dtype=torch.long),
        torch.ones(4, 1, dtype=torch.bool),
        torch.full((1, 1), 8),  # would be written to every row
        torch.full((5, 1), 8),
    ):
        with pytest.raises(
            IITKitError, match=r"x: position of shape \(.*\) \(torch\.\w+\): expected integers of shape \[b"
        ):
            run(wrong)
    with pytest.raises(IITKitError, match="x: column 9 of row 2 is padding or outside the input"):
        run(torch.tensor([[8], [8], [9], [8]]))
    with pytest.raises(IITKitError, match="x: column 4 of row 1 is padding or outside the input"):
        run(torch.tensor([[8, 2], [8, 4], [8, 0], [8, 4]]))
    with pytest.raises(IITKitError, match="x: a tensor of positions names columns of the input, from 0: -1 is none"):
        run(torch.tensor([[8], [8], [-1], [8]]))
    assert run(torch.tensor([[8, 2], [8, 5], [8, 0], [8, 4]])).shape == (4, 2, WIDTH)


def test_positions_count_among_the_tokens_that_are_given() -> None:
    """Whatever says which of them are real: a mask of four dimensions, of embeddings, or of a cache's tokens too."""
    model: Any = model_of("llama")
    given = inputs(BASES, "left")  # lengths 7, 4, 9, 5 in 9 columns
    ids, mask = given["input_ids"], given["attention_mask"]
    sites = {"first": Site(1, position=0), "last": Site(2, "mlp_hidden", position=-1)}
    expected = collect(model, given, sites)
    square = torch.tril(torch.ones(9, 9, dtype=torch.bool)) & mask[:, None, None].bool()
    numbers = (mask.cumsum(1) - 1).clamp(min=0)
    shown = {
        "input_ids": ids,
        "attention_mask": square | torch.eye(9, dtype=torch.bool) & mask[:, None, :, None].bool(),
    }
    embedded = {"inputs_embeds": model.model.embed_tokens(ids), "attention_mask": mask}
    for other in ({**shown, "position_ids": numbers}, embedded):
        found = collect(model, other, sites)
        assert all(relative(found[name], expected[name]) <= 1e-5 for name in sites)
        edited = interchange(model, other, other, {"x": (Site(1, position=[0, -1]), Vanilla())}).logits
        assert torch.equal(edited[mask.bool()], model(**{"position_ids": numbers, **other}).logits[mask.bool()])
    with torch.no_grad():
        cache = model(ids[:, :6], attention_mask=mask[:, :6], position_ids=numbers[:, :6]).past_key_values
    rest = {"input_ids": ids[:, 6:], "attention_mask": mask, "past_key_values": cache}
    whole = collect(model, given, {"x": Site(2, position=torch.tensor([[6, 8]] * 4))})["x"]
    assert relative(collect(model, rest, {"x": Site(2, position=[0, -1])})["x"], whole) <= 1e-5


def test_an_activation_of_other_positions_than_the_tokens_is_refused() -> None:
    class Prefixed(nn.Module):
        """Puts two tokens of its own before the given ones, as prompt tuning does."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layers = nn.Embedding(9, 4), nn.ModuleList([nn.Linear(4, 4)])

        def forward(self, input_ids: Tensor) -> Tensor:
            hidden = self.embed(input_ids)
            found: Tensor = self.layers[0](torch.cat([hidden[:, :2], hidden], 1))
            return found

    ids = {"input_ids": torch.ones(2, 5, dtype=torch.long)}
    for position in (0, -1, "all", torch.tensor([[1], [2]])):
        site = Site(0, position=position)
        with pytest.raises(
            IITKitError, match="x: layer 0 block_output has 7 positions, and 5 tokens were given: positi"
        ):
            collect(Prefixed(), ids, {"x": site})
        with pytest.raises(IITKitError, match="x: layer 0 block_output has 7 positions, and 5 tokens were given"):
            interchange(Prefixed(), ids, ids, {"x": (site, Vanilla())})
    model = model_of("gpt2")
    given: dict[str, Any] = {**inputs(BASES[:1], "left"), "logits_to_keep": 1}
    for position in (0, -1, "all"):
        with pytest.raises(IITKitError, match=r"x: logits has 1 positions, and 7 tokens were given: .*logits_to_keep"):
            collect(model, given, {"x": Site(component="logits", position=position)})
    found = interchange(model, given, given, {"x": (Site(1, position=0), Vanilla())}).logits
    assert torch.equal(found, model(**given).logits)  # a site elsewhere does not mind


def test_activations_without_rows_and_positions_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.unused = nn.Identity(), nn.Identity()

        def forward(self, input_ids: Tensor) -> Tensor:
            hidden: Tensor = self.heads(input_ids[:, None, :, None].float())
            return hidden

    ids = {"input_ids": torch.ones(2, 3, dtype=torch.long)}
    with pytest.raises(
        IITKitError, match=r"x: the activation at heads \(output\) is \(2, 1, 3, 1\): expected \[batch, seq"
    ):
        collect(Odd(), ids, {"x": Site(module="heads")})
    with pytest.raises(IITKitError, match=r"the network never ran unused \(output\)"):
        collect(Odd(), ids, {"x": Site(module="unused")})
