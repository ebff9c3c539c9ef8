"""The laws that every intervention keeps: each named one, and every space with every mask and every edit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from interventions.tables import (
    DTYPES,
    EDITS,
    MASKS,
    NAMED,
    SPACES,
    D,
    build,
    by_index,
    draw,
    far,
    fit,
    make,
    placed,
    run,
    same,
    spec_of,
)
from torch import nn

from iitkit.interventions import Intervention, SiteInfo

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


def test_no_cast_makes_it_narrower_than_fp32(rows: list[str]) -> None:
    """A network may be cast, with everything in it: in 16 bits a rotation is none, and small steps are lost."""
    for row in rows[::4]:
        for dtype in (torch.bfloat16, torch.float16):
            made, cast, given = make(row), make(row).to(dtype), draw(4, 3)
            nested = nn.Sequential(nn.Linear(2, 2), make(row)).to(dtype)
            assert nested[0].weight.dtype == dtype, row
            for one in (cast, nested[1]):
                assert isinstance(one, Intervention)
                for key, value in made.state_dict().items():
                    assert same(one.state_dict()[key], value), (row, key)
            assert same(run(cast, given), run(made, given)), row
            assert same(run(make(row).released().to(dtype), given), run(make(row).eval(), given)), row


def test_torch_s_default_dtype_does_not_matter(rows: list[str]) -> None:
    for row in rows[::4]:
        expected = make(row)
        given = draw(4, 3)
        for dtype in (torch.bfloat16, torch.float64):
            torch.set_default_dtype(dtype)
            try:
                made = make(row)
                found = run(made, given)
            finally:
                torch.set_default_dtype(torch.float32)
            for key, value in make(row).state_dict().items():
                if key.split(".")[-1] != "draws":
                    assert same(made.state_dict()[key], value), (row, key)
            assert same(found, run(expected, given)), row
            expected = make(row)


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
