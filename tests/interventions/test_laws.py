"""The laws that every intervention keeps. A new intervention is one row of ``ROWS``."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError
from iitkit.interventions import Intervention, LowRankSubspace, SiteInfo, Vanilla

D = 12
SITE = SiteInfo(D)
Make = Callable[[], Intervention]

# name: (how it is made, names of the parameters that train, whether it is the full swap)
ROWS: dict[str, tuple[Make, set[str], bool]] = {
    "Vanilla": (Vanilla, set(), True),
    "LowRankSubspace rank 1": (lambda: LowRankSubspace(SITE), {"space.free"}, False),
    "LowRankSubspace rank 5": (lambda: LowRankSubspace(SITE, rank=5), {"space.free"}, False),
    "LowRankSubspace rank = width": (lambda: LowRankSubspace(SITE, rank=D), {"space.free"}, True),
}


@pytest.fixture(params=ROWS.values(), ids=list(ROWS))
def row(request: pytest.FixtureRequest) -> tuple[Make, set[str], bool]:
    found: tuple[Make, set[str], bool] = request.param
    return found


@pytest.fixture
def made(row: tuple[Make, set[str], bool]) -> Intervention:
    return row[0]()


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base, source = (torch.randn(*shape, D, generator=generator, dtype=torch.float64) for _ in range(2))
    return (3 * base + 5).to(dtype), (3 * source + 5).to(dtype)


def far(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    with torch.no_grad():
        return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def test_strength_0_is_the_base_bit_for_bit(made: Intervention) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        base, source = draw(4, 3, dtype=dtype)
        assert torch.equal(made(base, source, strength=0.0), base)
        assert torch.equal(made(base, source, strength=0), base)


def test_strength_scales_the_edit(made: Intervention) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        base, source = draw(4, 3, dtype=dtype)
        edit = (made.to(dtype)(base, source) - base).detach()
        assert float(edit.abs().max()) > 0.1
        for strength in (-1.0, 0.25, 2.0):
            assert far(made(base, source, strength=strength), base + strength * edit) <= tolerance


def test_base_as_source_is_the_base_bit_for_bit(made: Intervention) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        base, _ = draw(4, 3, dtype=dtype)
        assert torch.equal(made(base, base.clone()), base)


def test_the_full_swap_is_the_source(row: tuple[Make, set[str], bool]) -> None:
    make, _, full = row
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        base, source = draw(4, 3, dtype=dtype)
        off = far(make().to(dtype)(base, source), source)
        assert off <= tolerance if full else off > 0.01


def test_a_batch_is_its_singles(made: Intervention) -> None:
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        base, source = draw(4, 3, dtype=dtype)
        whole = made.to(dtype)(base, source)
        for i, j in itertools.product(range(4), range(3)):
            assert far(made(base[i, j], source[i, j]), whole[i, j]) <= tolerance


def test_inputs_are_left_alone(made: Intervention) -> None:
    base, source = draw(4, 3)
    kept = base.clone(), source.clone()
    made(base, source, strength=0.5)
    made(base, source)
    assert torch.equal(base, kept[0])
    assert torch.equal(source, kept[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_activations_are_edited_in_fp32(made: Intervention, dtype: torch.dtype) -> None:
    base, source = draw(4, 3, dtype=dtype)
    found = made(base, source)
    assert found.dtype == dtype
    assert torch.equal(found, made(base.float(), source.float()).to(dtype))  # rounded once, at the end
    assert made(base, source.float()).dtype == dtype


def test_fp64_activations_stay_fp64(made: Intervention) -> None:
    base, source = draw(4, 3, dtype=torch.float64)
    found = made.double()(base, source)
    assert found.dtype == torch.float64
    assert not torch.equal(found.float().double(), found)  # no detour through fp32


def test_autocast_changes_nothing(made: Intervention) -> None:
    base, source = draw(4, 3)
    plain = made(base, source)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(made(base, source), plain)
        assert (base @ base[0].T).dtype == torch.bfloat16  # autocast was on


def test_gradients_are_finite_differences(made: Intervention) -> None:
    made.double()
    base, source = draw(3, dtype=torch.float64)
    names = [name for name, _ in made.named_parameters()]

    def run(base: Tensor, source: Tensor, *values: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(
            made, dict(zip(names, values, strict=True)), (base, source), {"strength": 0.7}
        )
        return found

    values = [parameter.detach().clone().requires_grad_() for parameter in made.parameters()]
    assert torch.autograd.gradcheck(run, (base.requires_grad_(), source.requires_grad_(), *values))


def test_what_trains_is_what_is_said(row: tuple[Make, set[str], bool]) -> None:
    make, trains, _ = row
    made = make()
    assert {name for name, parameter in made.named_parameters() if parameter.requires_grad} == trains
    assert {name for name, _ in made.named_parameters()} == trains
    assert set(made.state_dict()) == trains
    base, source = draw(4, 3)
    if trains:
        made(base, source).square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in made.parameters() if p.grad is not None)
    assert {name for name, p in made.named_parameters() if p.grad is not None} == trains


def test_a_checkpoint_holds_what_trains_bit_for_bit(row: tuple[Make, set[str], bool]) -> None:
    make, _, _ = row
    made, other = make(), make()
    base, source = draw(4, 3)
    other(base, source)
    other.load_state_dict(made.state_dict(), strict=True)
    assert torch.equal(other(base, source), made(base, source))
    with torch.no_grad():
        assert torch.equal(other(base, source), made(base, source))


def test_the_spec_rebuilds_it(made: Intervention) -> None:
    spec = made.spec()
    assert spec["name"] == type(made).__name__
    again = Intervention.from_spec(spec, SITE)
    assert type(again) is type(made)
    assert again.spec() == spec
    assert {name: p.shape for name, p in again.named_parameters()} == {
        name: p.shape for name, p in made.named_parameters()
    }


def test_release_and_rebuild_are_bit_identical(made: Intervention) -> None:
    base, source = draw(4, 3)
    expected = made(base, source).detach()
    state = copy.deepcopy(made.state_dict())
    released = made.released()
    tensors = released.state_dict()
    rebuilt = Intervention.from_spec(made.spec(), SITE, {key: value.clone() for key, value in tensors.items()})
    for one in (released, rebuilt):
        assert torch.equal(one(base, source), expected)
        assert torch.equal(one(base, source, strength=0.5), made(base, source, strength=0.5))
        assert not any(parameter.requires_grad for parameter in one.parameters())
    assert set(rebuilt.state_dict()) == set(tensors)
    assert all(torch.equal(value, tensors[key]) for key, value in rebuilt.state_dict().items())
    # the original trains on
    assert set(made.state_dict()) == set(state)
    assert all(torch.equal(value, state[key]) for key, value in made.state_dict().items())


def test_a_release_in_inference_mode_serves_outside_it(made: Intervention) -> None:
    base, source = draw(4, 3)
    expected = made(base, source).detach()
    with torch.inference_mode():
        assert torch.equal(made(base, source), expected)
        released = made.released()
    made.requires_grad_(False)
    for one in (released, made):
        assert torch.equal(one(base.requires_grad_(), source), expected)
        one(base, source, strength=0.5).sum().backward()  # gradients flow through it to what lies below


def test_it_follows_its_module_to_other_dtypes(made: Intervention) -> None:
    base, source = draw(4, 3)
    with torch.no_grad():
        before = made(base, source)
        wide = made.double()(base.double(), source.double())
        assert far(before, wide) <= 1e-6
        assert far(made.float()(base, source), before) <= 1e-6


def test_dropout_and_training_mode_change_nothing(made: Intervention) -> None:
    base, source = draw(4, 3)
    assert torch.equal(made.train()(base, source), made.eval()(base, source))


def test_a_swap_needs_a_source_of_the_same_shape(made: Intervention) -> None:
    assert made.needs_source
    base, source = draw(4, 3)
    name = type(made).__name__
    with pytest.raises(IITKitError, match=rf"^{name} needs a source activation of shape \(4, 3, 12\), given none$"):
        made(base)
    with pytest.raises(IITKitError, match=rf"{name} needs a source .* \(4, 3, 12\), given shape \(4, 12\)"):
        made(base, source[:, 0])


def test_foreign_tensors_are_refused(made: Intervention) -> None:
    tensors: dict[str, Any] = {**made.released().state_dict(), "space.other": torch.zeros(2)}
    with pytest.raises(IITKitError, match=rf"{type(made).__name__}: stored tensors .*space.other do not fit"):
        Intervention.from_spec(made.spec(), SITE, tensors)


def test_unknown_names_and_options_are_refused(made: Intervention) -> None:
    spec = made.spec()
    name = spec["name"]
    with pytest.raises(IITKitError, match=rf"intervention '{name}x' is not registered. Did you mean '{name}'\? Known:"):
        Intervention.from_spec({**spec, "name": f"{name}x"}, SITE)
    with pytest.raises(IITKitError, match=f"{name} has no option 'ranq'"):
        Intervention.from_spec({**spec, "ranq": 2}, SITE)
    with pytest.raises(IITKitError, match="intervention None is not registered"):
        Intervention.from_spec({}, SITE)


def test_every_registered_intervention_has_a_row() -> None:
    ours = {name for name, kind in Intervention.registry.items() if kind.__module__.startswith("iitkit.")}
    assert {type(make()).__name__ for make, _, _ in ROWS.values()} == ours
    assert isinstance(ROWS["Vanilla"][0](), nn.Module)
