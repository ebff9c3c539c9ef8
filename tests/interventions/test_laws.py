"""The laws that every intervention keeps: each named one, and every space with every mask and every edit.

A new intervention is one row of ``NAMED``, a new space, mask or edit one row of its table.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from iitkit.errors import IITKitError
from iitkit.interventions import Intervention, SiteInfo
from iitkit.interventions.edits import Edit
from iitkit.interventions.masks import Mask
from iitkit.interventions.spaces import Space

D = 10
HEADS = 4  # no divisor of the width
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Spec = dict[str, Any]

SPACES: dict[str, tuple[Spec, set[str]]] = {
    "Identity": ({"name": "Identity"}, set()),
    "Rotation": ({"name": "Rotation"}, {"free"}),
    "LowRankRotation": ({"name": "LowRankRotation", "rank": 4}, {"free"}),
    "frozen": ({"name": "LowRankRotation", "rank": 4, "frozen": True}, set()),
    "FreeProjection": ({"name": "FreeProjection", "rank": 4}, {"weight"}),
    "PCA": ({"name": "PCA", "rank": 4}, set()),
    "PCA standardised": ({"name": "PCA", "rank": 10, "standardise": True}, set()),
    "SAE relu": ({"name": "SAE", "file": "relu"}, set()),
    "SAE jumprelu": ({"name": "SAE", "file": "jumprelu"}, set()),
    "SAE topk": ({"name": "SAE", "file": "topk"}, set()),
}
"""name: its spec and what trains in it."""
MASKS: dict[str, tuple[Spec, set[str]]] = {
    "All": ({"name": "All"}, set()),
    "Indices": ({"name": "Indices", "indices": [3, 0]}, set()),
    "Blocks": ({"name": "Blocks", "blocks": {"a": 2, "b": [1]}}, set()),
    "Boundary": ({"name": "Boundary", "temperature": 1.5}, {"share"}),
    "Sigmoid": ({"name": "Sigmoid"}, {"gates"}),
    "HardConcrete": ({"name": "HardConcrete"}, {"gates"}),
}
EDITS: dict[str, tuple[Spec, set[str]]] = {
    "Swap": ({"name": "Swap"}, set()),
    "Add a vector": ({"name": "Add"}, {"vector"}),
    "Add the source": ({"name": "Add", "take": "source"}, set()),
    "Subtract a vector": ({"name": "Subtract"}, {"vector"}),
    "Subtract the source": ({"name": "Subtract", "take": "source"}, set()),
    "Scale": ({"name": "Scale", "factor": 3.0}, set()),
    "Zero": ({"name": "Zero"}, set()),
    "Constant": ({"name": "Constant", "value": 0.7}, set()),
    "Mean": ({"name": "Mean"}, set()),
    "Resample": ({"name": "Resample", "samples": 5}, set()),
    "Noise": ({"name": "Noise", "sigma": 2.0}, set()),
    "Noise of data": ({"name": "Noise", "times_std": 3.0}, set()),
    "Collect": ({"name": "Collect"}, set()),
    "Skip": ({"name": "Skip"}, set()),
    "Affine": ({"name": "Affine", "activation": "tanh"}, {"weight", "bias"}),
    "Affine constant": ({"name": "Affine", "constant": True, "add": True}, {"bias"}),
    "LowRankUpdate": ({"name": "LowRankUpdate", "rank": 2}, {"A", "B"}),
    "LowRankUpdate dropout": ({"name": "LowRankUpdate", "rank": 2, "dropout": 0.4}, {"A", "B"}),
}
NAMED: dict[str, tuple[Spec, set[str]]] = {
    "Vanilla": ({}, set()),
    "Vanilla features": ({"features": [0, 4]}, set()),
    "RotatedSubspace": ({"coordinates": 3}, {"space.free"}),
    "RotatedSubspace blocks": ({"coordinates": {"a": 2, "b": [9, 4]}}, {"space.free"}),
    "RotatedSubspace frozen": ({"coordinates": [1, 5], "frozen": True}, set()),
    "LowRankSubspace": ({"rank": 1}, {"space.free"}),
    "LowRankSubspace rank 5": ({"rank": 5}, {"space.free"}),
    "LowRankSubspace rank = width": ({"rank": D}, {"space.free"}),
    "LowRankSubspace frozen": ({"rank": 3, "frozen": True}, set()),
    "BoundlessSubspace": ({"temperature": 1.5}, {"space.free", "mask.share"}),
    "MaskedNeurons": ({}, {"mask.gates"}),
    "MaskedNeurons hard concrete": ({"gate": "hard_concrete", "temperature": 0.5}, {"mask.gates"}),
    "MaskedNeurons zero": ({"edit": "zero"}, {"mask.gates"}),
    "MaskedNeurons mean": ({"edit": "mean"}, {"mask.gates"}),
    "MaskedSubspace": ({}, {"space.free", "mask.gates"}),
    "MaskedSubspace rank 4": ({"rank": 4, "gate": "hard_concrete"}, {"space.free", "mask.gates"}),
    "MaskedSubspace frozen": ({"rank": 4, "frozen": True, "edit": "mean"}, {"mask.gates"}),
    "PCASubspace": ({"rank": 4}, set()),
    "PCASubspace some": ({"rank": 6, "standardise": True, "components": [5, 1]}, set()),
    "SAEFeatures": ({"file": "relu"}, set()),
    "SAEFeatures some": ({"file": "jumprelu", "features": [6, 2], "edit": "zero"}, set()),
    "SAEFeatures gated": ({"file": "topk", "gate": "sigmoid"}, {"mask.gates"}),
    "Addition": ({}, {"edit.vector"}),
    "Addition source": ({"take": "source", "features": 4}, set()),
    "Subtraction": ({}, set()),
    "Subtraction vector": ({"take": "vector"}, {"edit.vector"}),
    "Zero": ({"features": 3}, set()),
    "Mean": ({}, set()),
    "Scale": ({"factor": -1.0}, set()),
    "Constant": ({"value": [0.5 * i for i in range(D)]}, set()),
    "Resample": ({"samples": 4, "seed": 3}, set()),
    "Noise": ({"sigma": 0.5}, set()),
    "Noise of data": ({"times_std": 3.0}, set()),
    "Collect": ({"features": [2]}, set()),
    "Skip": ({}, set()),
    "LoRA": ({}, {"edit.A", "edit.B"}),
    "LoRA dropout": ({"rank": 2, "alpha": 16.0, "dropout": 0.3}, {"edit.A", "edit.B"}),
    "LoReFT": ({}, {"space.free", "edit.weight", "edit.bias"}),
    "LoReFT gelu": ({"rank": 2, "activation": "gelu"}, {"space.free", "edit.weight", "edit.bias"}),
    "NoReFT": ({}, {"space.weight", "edit.weight", "edit.bias"}),
    "ConsReFT": ({}, {"space.free", "edit.bias"}),
    "LoBiReFT": ({"rank": 1}, {"space.free", "edit.bias"}),
    "DiReFT": ({}, {"space.free", "edit.weight", "edit.bias"}),
    "NoDiReFT": ({"activation": "sigmoid"}, {"space.weight", "edit.weight", "edit.bias"}),
    "Composed": ({}, set()),
}
"""name of the class (and what is special): its options and what trains in it."""


def spec_of(row: str) -> Spec:
    """A row's spec; ``space | mask | edit`` is a row of each table."""
    if "|" not in row:
        return {"name": row.split(" ")[0], **NAMED[row][0]}
    space, mask, edit = row.split(" | ")
    return {"name": "Composed", "space": SPACES[space][0], "mask": MASKS[mask][0], "edit": EDITS[edit][0]}


def trains(row: str) -> set[str]:
    if "|" not in row:
        return NAMED[row][1]
    tables = zip(("space", "mask", "edit"), (SPACES, MASKS, EDITS), row.split(" | "), strict=True)
    return {f"{part}.{name}" for part, table, key in tables for name in table[key][1]}


GROUPS: dict[str, list[str]] = {
    **{row: [row] for row in NAMED},
    **{f"{s} | {m}": [f"{s} | {m} | {e}" for e in EDITS] for s, m in itertools.product(SPACES, MASKS)},
}
"""A named row alone, or a space and a mask with all edits."""


@pytest.fixture(params=GROUPS.values(), ids=list(GROUPS))
def rows(request: pytest.FixtureRequest) -> list[str]:
    found: list[str] = request.param
    return found


@pytest.fixture(params=list(NAMED))
def named(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Sparse autoencoders of each kind, 7 features."""
    k = 7
    for kind in ("relu", "jumprelu", "topk"):
        folder = tmp_path_factory.mktemp(kind)
        encoder = normal(D, k, seed=11)  # without the activations' large mean every feature is at times active
        tensors = {"W_enc": encoder - encoder.mean(0), "W_dec": normal(k, D, seed=12)}
        tensors |= {"b_enc": normal(k, seed=13), "b_dec": normal(D, seed=14)}
        config: Spec = {"architecture": "standard" if kind == "relu" else kind, "normalize_activations": "none"}
        if kind == "jumprelu":
            tensors["threshold"] = normal(k, seed=15).abs()
            config["apply_b_dec_to_input"] = False
        if kind == "topk":
            config["k"] = 3
        (folder / "sae.safetensors").write_bytes(save_tensors(tensors))
        (folder / "cfg.json").write_text(json.dumps(config))
        FILES[kind] = str(folder / "sae.safetensors")
    return FILES


FILES: dict[str, str] = {}


def placed(value: Any) -> Any:
    """A spec with the files' paths."""
    if isinstance(value, dict):
        return {key: FILES[x] if key == "file" else placed(x) for key, x in value.items()}
    return value


def build(row: str, seed: int = 5, site: SiteInfo | None = None) -> Intervention:
    generator = torch.Generator().manual_seed(seed)
    site = site or SiteInfo(D, input_width=D, heads=HEADS)
    return Intervention.from_spec(placed(spec_of(row)), replace(site, generator=generator))


def fit(made: Intervention) -> Intervention:
    passes = 0
    while made.unfitted:
        for part in (3 * normal(40, D, seed=21) + 5).split(7):  # type: ignore[no-untyped-call]
            made.observe(part)
        made.finish()
        passes += 1
        assert passes < 3
    return made


def make(row: str, seed: int = 5) -> Intervention:
    """Fitted, and moved away from the start, where many gradients are 0."""
    made = fit(build(row, seed))
    with torch.no_grad():
        for i, (name, parameter) in enumerate(made.named_parameters()):
            if name != "mask.share":
                step = normal(*parameter.shape, seed=30 + i + seed)
                parameter.add_(0.4 * step.sign() + 0.1 * step)
    return made


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Base, source and module input."""
    base, source, inputs = (3 * normal(*shape, D, seed=seed, dtype=torch.float64) + 5 for seed in (1, 2, 3))
    return base.to(dtype), source.to(dtype), inputs.to(dtype)


def run(made: Intervention, given: tuple[Tensor, Tensor, Tensor], strength: float = 1.0) -> Tensor:
    base, source, inputs = given
    found: Tensor = made(
        base,
        source if made.needs_source else None,
        strength,
        inputs=inputs if made.needs_input else None,
        block=made.blocks[-1] if made.blocks else None,
    )
    return found


def far(found: Tensor, expected: Tensor) -> float:
    """max |difference| over max |expected|, or over 1 where little is left: the inputs are of that size or more."""
    assert found.shape == expected.shape
    with torch.no_grad():
        return float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1.0))


def same(found: Tensor, expected: Tensor) -> bool:
    return found.dtype == expected.dtype and torch.equal(found, expected)


def by_index(row: str) -> bool:
    """Whether what a row of a batch gets depends on its index."""
    return "Noise" in row or "Resample" in row


# --- law 1: strength, and what is left alone ---


def test_strength_0_is_the_base_bit_for_bit(rows: list[str]) -> None:
    for row in rows:
        made = make(row)
        for dtype in DTYPES:
            given = draw(4, 3, dtype=dtype)
            assert same(run(made, given, 0.0), given[0]), row
        assert same(run(made, given, 0), given[0]), row
        assert run(made, given, 0.0).data_ptr() != given[0].data_ptr(), row


def test_strength_0_keeps_what_no_sum_would(named: str) -> None:
    made, (base, source, inputs) = make(named), draw(4, 3)
    base[0, 0, :4] = torch.tensor([-0.0, math.inf, -math.inf, math.nan])
    found = run(made, (base, source, inputs), 0.0)
    assert torch.equal(found.view(torch.int32), base.view(torch.int32))


def test_strength_scales_the_edit(rows: list[str]) -> None:
    for row in rows:
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
            made, given = make(row).to(dtype), draw(4, 3, dtype=dtype)
            with made.held():  # one draw of gates and dropout
                edit = (run(made, given) - given[0]).detach()
                if "Collect" in row or row == "Composed":
                    continue
                assert float(edit.abs().max()) > 0.1, (row, edit.abs().max())
                for strength in (-1.0, 0.25, 2.0):
                    expected = given[0] + strength * edit
                    assert (run(made, given, strength) - expected).abs().max() <= tolerance * (
                        given[0].abs().max() + edit.abs().max()
                    ), row


def test_inputs_are_left_alone(rows: list[str]) -> None:
    for row in rows:
        made, given = make(row), draw(4, 3)
        kept = [x.clone() for x in given]
        for strength in (0.5, 1.0):
            run(made, given, strength)
        assert all(same(x, y) for x, y in zip(given, kept, strict=True)), row


# --- law 2: base = source, the empty mask, the full swap ---


def test_base_as_source_is_the_base_bit_for_bit() -> None:
    swaps = [row for row in NAMED if NAMED[row][0].get("edit", "swap") == "swap" and build_needs(row)]
    swaps += [f"{s} | {m} | Swap" for s, m in itertools.product(SPACES, MASKS)]
    swaps = [row for row in swaps if row.split(" ")[0] not in ("Addition", "Subtraction")]
    assert len(swaps) > 70
    for row in swaps:
        made = make(row)
        for dtype in DTYPES:
            base, _, inputs = draw(4, 3, dtype=dtype)
            for mode in (True, False):
                assert same(run(made.train(mode), (base, base.clone(), inputs)), base), row


def build_needs(row: str) -> bool:
    return build(row).needs_source


@pytest.mark.parametrize("edit", EDITS)
def test_an_empty_mask_is_the_base_bit_for_bit(edit: str) -> None:
    for space, mask in itertools.product(SPACES, ("Indices", "Sigmoid", "HardConcrete")):
        spec = placed(spec_of(f"{space} | {mask} | {edit}"))
        if mask == "Indices":
            spec["mask"] = {"name": "Indices", "indices": []}
        made = fit(Intervention.from_spec(spec, SiteInfo(D, input_width=D)))
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                parameter.add_(-1.0 if name == "mask.gates" else 0.3)
        made.eval()
        assert made.effective_size() == 0
        for dtype in DTYPES:
            given = draw(4, 3, dtype=dtype)
            assert same(run(made, given), given[0])
            assert same(run(made.released(), given), given[0])


@pytest.mark.parametrize(
    "row",
    [
        "Vanilla",
        "LowRankSubspace rank = width",
        "Rotation | All | Swap",
        "PCA standardised | All | Swap",
        "Identity | All | Skip",
        "Rotation | All | Skip",
    ],
)
def test_as_many_coordinates_as_the_width_are_the_full_swap(row: str) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        given = draw(4, 3, dtype=dtype)
        made = make(row).to(dtype)
        if dtype == torch.float64 and "PCA" in row:  # its results were rounded to fp32, as they are stored
            tolerance = 1e-6
        assert far(run(made, given), given[2] if "Skip" in row else given[1]) <= tolerance


def test_fewer_coordinates_are_not_the_full_swap(rows: list[str]) -> None:
    for row in rows:
        if row in ("Vanilla", "LowRankSubspace rank = width", "Composed"):
            continue
        space, mask, edit = row.split(" | ") if "|" in row else ("", "", row)
        if (space in ("Identity", "Rotation", "PCA standardised") and mask == "All") or edit == "Skip":
            continue
        made = make(row)
        if made.needs_source:
            given = draw(4, 3)
            assert far(run(made, given), given[1]) > 0.01, row


# --- law 3: batches and shapes ---


def test_a_batch_is_its_singles(rows: list[str]) -> None:
    for row in rows:
        for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-13)):
            made, given = make(row).to(dtype).eval(), draw(4, 3, dtype=dtype)
            whole = run(made, given)
            assert whole.shape == (4, 3, D), row
            flat = run(made, tuple(x.flatten(0, 1) for x in given))  # type: ignore[arg-type]
            assert flat.shape == (12, D), row
            assert far(flat, whole.flatten(0, 1)) <= tolerance, row
            if by_index(row):
                for n in (1, 5):
                    few = run(made, tuple(x.flatten(0, 1)[:n] for x in given))  # type: ignore[arg-type]
                    assert far(few, flat[:n]) <= tolerance, row
                continue
            for i, j in ((0, 0), (1, 2), (3, 1)):
                single = run(made, tuple(x[i, j] for x in given))  # type: ignore[arg-type]
                assert far(single, whole[i, j]) <= tolerance, row


def test_a_batch_of_none(rows: list[str]) -> None:
    for row in rows:
        assert run(make(row), draw(0)).shape == (0, D), row


# --- law 4: dtypes ---


def test_sixteen_bit_activations_are_edited_in_fp32(rows: list[str]) -> None:
    for row in rows:
        made = make(row)
        for dtype in (torch.bfloat16, torch.float16):
            given = draw(4, 3, dtype=dtype)
            wide = given[0].float(), given[1].float(), given[2].float()
            with made.held():
                found = run(made, given)
                assert same(found, run(made, wide).to(dtype)), row  # rounded once
                assert run(made, (given[0], *wide[1:])).dtype == dtype, row


def test_fp64_activations_stay_fp64(rows: list[str]) -> None:
    for row in rows:
        made, given = make(row).double(), draw(4, 3, dtype=torch.float64)
        given = tuple(x / 3 for x in given)  # type: ignore[assignment]
        found = run(made, given)
        assert found.dtype == torch.float64, row
        changed = found != given[0]
        if any(word in row for word in ("Zero", "Constant", "Mean", "Resample")):  # numbers that fp32 holds too
            continue
        assert not torch.equal(found.float().double()[changed], found[changed]) or not bool(changed.any()), row


def test_it_follows_its_module_to_other_dtypes(rows: list[str]) -> None:
    for row in rows:
        made, given = make(row), draw(4, 3)
        with torch.no_grad(), made.held():
            before = run(made, given)
        made = make(row).double()
        with torch.no_grad():
            wide = run(made, tuple(x.double() for x in given))  # type: ignore[arg-type]
            assert far(before, wide) <= 2e-5, row


def test_autocast_changes_nothing(named: str) -> None:
    made, given = make(named), draw(4, 3)
    with made.held():
        plain = run(made, given)
    again = make(named)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(run(again, given), plain)
        assert (given[0] @ given[0][0].T).dtype == torch.bfloat16  # autocast was on


def test_zero_vectors_and_huge_ones_make_no_nan(rows: list[str]) -> None:
    for row in rows:
        made = make(row)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            zero = torch.zeros(4, 3, D, dtype=dtype)
            assert bool(torch.isfinite(run(made, (zero, zero.clone(), zero.clone()))).all()), row
        huge = torch.full((2, D), 60000.0, dtype=torch.float16)
        if made.needs_source and "Add" not in row and "Subtract" not in row:
            assert same(run(made, (huge, huge.clone(), huge.clone())), huge), row


# --- gradients, and what trains ---


def test_gradients_are_finite_differences(rows: list[str]) -> None:
    for row in rows:
        made = make(row).double()
        base, source, inputs = (x.requires_grad_() for x in draw(2, dtype=torch.float64))
        names = [name for name, _ in made.named_parameters()]
        buffers = {name: buffer.clone() for name, buffer in made.named_buffers()}  # of draws: the same in every call

        def call(
            base: Tensor,
            source: Tensor,
            inputs: Tensor,
            *values: Tensor,
            made: Intervention = made,
            names: list[str] = names,
            buffers: dict[str, Tensor] = buffers,
        ) -> Tensor:
            given = {**dict(zip(names, values, strict=True)), **{key: value.clone() for key, value in buffers.items()}}
            keywords = {
                "strength": 0.7,
                "inputs": inputs if made.needs_input else None,
                "block": made.blocks[0] if made.blocks else None,
            }
            found: Tensor = torch.func.functional_call(
                made, given, (base, source if made.needs_source else None), keywords
            )
            return found + 0 * (source.sum() + inputs.sum())

        values = [parameter.detach().clone().requires_grad_() for parameter in made.parameters()]
        assert torch.autograd.gradcheck(call, (base, source, inputs, *values), fast_mode=True), row


def test_what_trains_is_what_is_said(rows: list[str]) -> None:
    for row in rows:
        made = make(row)
        expected = trains(row)
        assert {name for name, _ in made.named_parameters()} == expected, row
        assert all(parameter.requires_grad for parameter in made.parameters()), row
        assert len({id(parameter) for parameter in made.parameters()}) == len(list(made.parameters())), row
        state = made.state_dict()
        assert set(state) >= expected, row
        assert {key.split(".")[0] for key in state} <= {"space", "mask", "edit"}, row


def test_everything_that_trains_gets_a_gradient(named: str) -> None:
    made, given = make(named), draw(4, 3)
    if made.parameters() and trains(named):
        run(made, given).square().sum().backward()  # type: ignore[no-untyped-call]
    assert {name for name, p in made.named_parameters() if p.grad is not None} == trains(named)
    assert all(float(p.grad.abs().max()) > 1e-4 for p in made.parameters() if p.grad is not None)


def test_nothing_changes_at_the_start() -> None:
    for row in ("LoRA", "LoRA dropout", "Addition", "Subtraction vector", "LoBiReFT"):
        given = draw(4, 3)
        assert same(run(build(row), given), given[0]), row


# --- law 6: checkpoints, specs, releases ---


def test_a_checkpoint_holds_everything_bit_for_bit(rows: list[str]) -> None:
    for row in rows:
        made, other, given = make(row), build(row, seed=6), draw(4, 3)
        for _ in range(3):  # the counters of draws move
            run(made, given)
        if not other.unfitted:
            run(other, given)
        other.load_state_dict(made.state_dict(), strict=True)
        assert same(run(other, given), run(made, given)), row
        with torch.no_grad():
            assert same(run(other, given), run(made, given)), row
        assert same(run(other.eval(), given), run(made.eval(), given)), row


def test_the_spec_rebuilds_it(rows: list[str]) -> None:
    for row in rows:
        made = make(row)
        if made.temperature is not None:
            made.temperature = 0.3  # what a schedule does is no option
        spec = made.spec()
        assert spec["name"] == type(made).__name__, row
        assert json.loads(json.dumps(spec)) == spec, row
        again = Intervention.from_spec(spec, SiteInfo(D, input_width=D))
        assert type(again) is type(made), row
        assert again.spec() == spec, row
        assert {name: x.shape for name, x in again.state_dict().items()} == {
            name: x.shape for name, x in made.state_dict().items()
        }, row
        assert made.title.startswith(f"{spec['name']}("), row


def test_release_and_rebuild_are_bit_identical(rows: list[str]) -> None:
    for row in rows:
        made, given = make(row), draw(4, 3)
        state = copy.deepcopy(made.state_dict())
        expected = run(made.eval(), given).detach()
        half = run(made, given, 0.5).detach()
        made.train()
        released = made.released()
        tensors = load_tensors(save_tensors({key: x.contiguous() for key, x in released.state_dict().items()}))
        rebuilt = Intervention.from_spec(made.spec(), SiteInfo(D), tensors)
        for one in (released, rebuilt):
            assert not one.training, row
            assert not one.unfitted, row
            assert one.temperature is None, row
            assert one.penalty() == 0, row
            assert same(run(one, given), expected), row
            assert same(run(one, given, 0.5), half), row
            assert same(run(one.train(), given), expected), row  # a released mask stays hard
            assert not any(parameter.requires_grad for parameter in one.parameters()), row
            assert one.effective_size() == made.effective_size(), row
        assert set(rebuilt.state_dict()) == set(tensors), row
        assert all(torch.equal(value, tensors[key]) for key, value in rebuilt.state_dict().items()), row
        # what trained is gone where there is a result in its place
        assert not {"space.free", "mask.gates", "mask.share", "mask.heat", "mask.draws"} & set(tensors), row
        # the original trains on
        assert set(made.state_dict()) == set(state), row
        assert all(torch.equal(value, state[key]) for key, value in made.state_dict().items()), row


def test_a_release_needs_no_file(tmp_path: Path) -> None:
    for row in ("SAEFeatures", "SAEFeatures gated", "SAE topk | Sigmoid | Mean"):
        made, given = make(row), draw(4, 3)
        spec, tensors = made.spec(), made.released().state_dict()
        text = json.dumps(spec)
        for file in FILES.values():
            text = text.replace(file, str(tmp_path / "gone.safetensors"))
        rebuilt = Intervention.from_spec(json.loads(text), SiteInfo(D), tensors)
        assert same(run(rebuilt, given), run(made.eval(), given))


def test_a_release_in_inference_mode_serves_outside_it(named: str) -> None:
    made, given = make(named).eval(), draw(4, 3)
    expected = run(made, given).detach()
    with torch.inference_mode():
        assert same(run(made, given), expected)
        released = made.released()
    made.requires_grad_(False)
    for one in (released, made):
        base = given[0].clone().requires_grad_()
        assert same(run(one, (base, *given[1:])), expected)
        run(one, (base, *given[1:]), 0.5).sum().backward()  # type: ignore[no-untyped-call]  # gradients flow through it to what lies below
        assert base.grad is not None


def test_training_mode_softens_masks_and_drops_out_and_nothing_else(rows: list[str]) -> None:
    for row in rows:
        made, given = make(row), draw(4, 3)
        soft = made.temperature is not None or "dropout" in row
        trained, evaluated = run(made.train(), given), run(made.eval(), given)
        if soft and "Collect" not in row:
            assert far(trained, evaluated) > 1e-3, row
        else:
            assert same(trained, evaluated), row
        assert same(run(made, given), evaluated), row


# --- errors ---


def test_what_is_missing_is_said(rows: list[str]) -> None:
    for row in rows:
        made, (base, source, inputs) = make(row), draw(4, 3)
        name = type(made).__name__
        block = made.blocks[0] if made.blocks else None
        if made.needs_source:
            with pytest.raises(IITKitError, match=rf"^{name} needs a source .* shape \(4, 3, 10\), given none$"):
                made(base, inputs=inputs, block=block)
            with pytest.raises(IITKitError, match=r"needs a source .* \(4, 3, 10\), given shape \(4, 10\)"):
                made(base, source[:, 0], inputs=inputs, block=block)
        if made.needs_input:
            with pytest.raises(
                IITKitError, match=rf"^{name} needs the module's input of shape \(4, 3, 10\), given none$"
            ):
                made(base, source, block=block)
            with pytest.raises(IITKitError, match=r"needs the module's input .* given shape \(4, 3, 9\)"):
                made(base, source, inputs=inputs[..., :9], block=block)
        if made.blocks is None:
            with pytest.raises(IITKitError, match=r"block 'a': it has no blocks\."):
                made(base, source, inputs=inputs, block="a")
        else:
            with pytest.raises(IITKitError, match=r"which block\? The mask has a, b: give block=…"):
                made(base, source, inputs=inputs)
            with pytest.raises(IITKitError, match=r"block 'c': it has a, b\."):
                made(base, source, inputs=inputs, block="c")
        if row != "Vanilla":
            with pytest.raises(IITKitError, match=f"{name} was built for width 10, given 9"):
                made(base[..., :9], source[..., :9], inputs=inputs, block=block)


def test_unfitted_ones_say_so(rows: list[str]) -> None:
    for row in rows:
        made = build(row)
        said = json.dumps(spec_of(row))
        assert made.unfitted == any(word in said for word in ('"PCA', '"Mean"', '"mean"', '"Resample"', "times_std")), (
            row
        )
        if made.unfitted:
            with pytest.raises(IITKitError, match="must see data first: let `iitkit fit` do it, or call observe"):
                run(made, draw(4, 3))
            with pytest.raises(IITKitError, match="must see data before there is a result to release"):
                made.released()
            with pytest.raises(IITKitError, match="were observed"):
                made.finish()


def test_foreign_tensors_are_refused(rows: list[str]) -> None:
    for row in rows[::3]:
        made = make(row)
        tensors: dict[str, Any] = {**made.released().state_dict(), "space.other": torch.zeros(2)}
        with pytest.raises(IITKitError, match=rf"{type(made).__name__}: stored tensors .* do not fit"):
            Intervention.from_spec(made.spec(), SiteInfo(D), tensors)
        for missing in list(tensors):
            fewer = {key: value for key, value in tensors.items() if key not in (missing, "space.other")}
            if missing != "space.other":
                with pytest.raises(IITKitError, match="do not fit"):
                    Intervention.from_spec(made.spec(), SiteInfo(D), fewer)
        for key, value in tensors.items():
            if key != "space.other" and value.dim():
                with pytest.raises(IITKitError):
                    Intervention.from_spec(made.spec(), SiteInfo(D), {**tensors, key: torch.cat([value, value])})


def test_unknown_names_and_options_are_refused(named: str) -> None:
    spec = make(named).spec()
    name = spec["name"]
    with pytest.raises(IITKitError, match=rf"intervention '{name}x' is not registered. Did you mean '{name}'\? Known:"):
        Intervention.from_spec({**spec, "name": f"{name}x"}, SiteInfo(D))
    with pytest.raises(IITKitError, match=f"{name} has no option 'ranq'"):
        Intervention.from_spec({**spec, "ranq": 2}, SiteInfo(D))
    with pytest.raises(IITKitError, match="intervention None is not registered"):
        Intervention.from_spec({}, SiteInfo(D))


# --- completeness ---


def ours(registry: dict[str, type[Any]]) -> set[str]:
    return {name for name, kind in registry.items() if kind.__module__.startswith("iitkit.")}


def test_everything_registered_has_a_row() -> None:
    assert {row.split(" ")[0] for row in NAMED} == ours(Intervention.registry)
    for table, kind in ((SPACES, Space), (MASKS, Mask), (EDITS, Edit)):
        assert {spec["name"] for spec, _ in table.values()} == ours(kind.registry)
    assert all(isinstance(build(row), nn.Module) for row in NAMED)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    gpu = torch.device("cuda")
    for row in itertools.chain(*GROUPS.values()):
        made, given = make(row), draw(4, 3)
        expected = run(made.eval(), given).detach()
        there = given[0].to(gpu), given[1].to(gpu), given[2].to(gpu)
        moved = made.to(gpu)
        found = run(moved, there)
        assert far(found.cpu(), expected) <= 1e-4, row
        moved.train()
        run(moved, there)
        released = moved.released()
        assert all(x.device.type == "cpu" for x in released.state_dict().values()), row
        assert same(run(released.to(gpu), there), found), row
        tensors = {key: x.to(gpu) for key, x in released.state_dict().items()}
        rebuilt = Intervention.from_spec(moved.spec(), SiteInfo(D), tensors).to(gpu)
        assert same(run(rebuilt, there), found), row
