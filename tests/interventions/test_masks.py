"""Masks: which coordinates, how soft, what they cost, and what they refuse."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from iitkit.errors import IITKitError
from iitkit.interventions import BoundlessSubspace, Intervention, MaskedNeurons, RotatedSubspace, SiteInfo, Vanilla
from iitkit.interventions.edits import Add, Constant, Swap
from iitkit.interventions.gates import COLDEST, HOTTEST, Boundary, HardConcrete, Sigmoid
from iitkit.interventions.masks import All, Blocks, Indices, Mask
from iitkit.interventions.rotations import LowRankRotation, Rotation
from iitkit.interventions.spaces import Identity


def weights(mask: Mask, block: str | None = None) -> list[float]:
    found = mask.weights(block)
    assert isinstance(found, Tensor)
    return found.float().tolist()


def share_of(mask: Mask) -> torch.nn.Parameter:
    (parameter,) = mask.parameters()
    return parameter


def test_blocks_are_disjoint_and_in_order() -> None:
    mask = Blocks(8, {"a": 2, "b": [0, 7], "c": 3})
    assert mask.blocks == ("a", "b", "c")
    sets = {name: [i for i, w in enumerate(weights(mask, name)) if w] for name in mask.blocks}
    assert sets == {"a": [1, 2], "b": [0, 7], "c": [3, 4, 5]}  # integers take what no list claims
    assert mask.effective_size() == 7


def test_rows_of_other_blocks_get_their_own_and_never_the_union() -> None:
    made = RotatedSubspace(SiteInfo(6), coordinates={"a": 2, "b": 3})
    base, source = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
    w = made.rotation.detach()
    for block, own in (("a", slice(0, 2)), ("b", slice(2, 5))):
        r = w[:, own]
        expected = base + ((source - base) @ r) @ r.T
        assert (made(base, source, block=block) - expected).abs().max() < 1e-5


REFUSED: dict[str, tuple[Any, str]] = {
    "negative": (lambda: Indices(4, [0, -1]), "indices: coordinate -1: expected 0 to 3"),
    "out of range": (lambda: Indices(4, [4]), "indices: coordinate 4: expected 0 to 3"),
    "twice": (lambda: Indices(4, [1, 3, 1]), "indices: coordinate 1 is given twice"),
    "too many": (lambda: Indices(4, 5), "indices 5: expected 1 to the number of coordinates 4"),
    "none": (lambda: Indices(4, 0), "indices 0: expected 1 to the number of coordinates 4"),
    "a bool": (lambda: Indices(4, True), "indices True: expected a number of coordinates or a list of their indices"),
    "text": (lambda: Indices(4, "12"), "indices '12': expected a number of coordinates or a list of their indices"),  # type: ignore[arg-type]
    "floats": (lambda: Indices(4, [1.0]), "indices [1.0]: expected a number of coordinates or a list of their indices"),  # type: ignore[list-item]
    "overlap": (
        lambda: Blocks(8, {"a": [1, 2], "b": [2, 3]}),
        "blocks 'a' and 'b' overlap at coordinate 2",
    ),
    "blocks too large": (
        lambda: Blocks(8, {"a": 6, "b": 3}),
        "block 'b' asks for 3 coordinates, 2 of 8 are left",
    ),
    "an empty block": (lambda: Blocks(8, {"a": []}), "block 'a' is empty: give it a coordinate"),
    "a block of 0": (lambda: Blocks(8, {"a": 0}), "block 'a' 0: expected 1 or more"),
    "no blocks": (lambda: Blocks(8, {}), "blocks {}: expected names with"),
    "features without a site": (lambda: Vanilla(features=2), "features 2 need a site: build it with SiteInfo"),
    "temperature 0": (lambda: Sigmoid(4, 0.0), "temperature 0.0: expected a number above 0"),
    "temperature < 0": (lambda: Boundary(4, temperature=-1.0), "temperature -1.0: expected a number above 0"),
    "temperature that fp32 makes 0": (lambda: Sigmoid(4, 1e-46), "temperature 1e-46: expected a number from 1e-30 to"),
    "temperature that fp32 makes infinite": (
        lambda: Boundary(4, temperature=1e39),
        "temperature 1e+39: expected a number from 1e-30 to",
    ),
    "temperature inf": (lambda: HardConcrete(4, float("inf")), "temperature inf: expected a number above 0"),
    "share 0": (lambda: Boundary(4, share=0.0), "share 0.0: expected a number above 0 and below 1"),
    "share 2": (lambda: Boundary(4, share=2.0), "share 2.0: expected a number above 0 and below 1"),
    "gate": (lambda: MaskedNeurons(SiteInfo(4), gate="sigmoyd"), "gate 'sigmoyd': expected one of"),  # type: ignore[arg-type]
    "edit": (lambda: MaskedNeurons(SiteInfo(4), edit="swop"), "edit 'swop': expected one of"),  # type: ignore[arg-type]
    "mask of another length": (
        lambda: Intervention(LowRankRotation(SiteInfo(8), 3), Sigmoid(5), Swap()),
        "mask Sigmoid for 5 coordinates: the space LowRankRotation has 3",
    ),
    "edit of another length": (
        lambda: Intervention(Rotation(SiteInfo(8)), All(8), Add(5)),
        "edit Add for 5 coordinates: the space Rotation has 8",
    ),
    "mask without a site": (
        lambda: Intervention(Identity(), Indices(4, 2), Swap()),
        "mask Indices for 4 coordinates: the space Identity takes any number",
    ),
    "values of another length": (
        lambda: Constant(3, None, [1.0, 2.0]),
        "value has 2 numbers: expected one for each of 3 coordinates",
    ),
    "rank above the width": (lambda: LowRankRotation(SiteInfo(8), 9), "rank 9: expected 1 to the site's width 8"),
    "rank as a bool": (lambda: LowRankRotation(SiteInfo(8), True), "rank True: expected 1 to the site's width 8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(IITKitError, match=f"^{re.escape(message)}"):
        call()


def test_a_stored_mask_of_another_length_is_refused() -> None:
    made = MaskedNeurons(SiteInfo(4)).released()
    for kept in (torch.ones(5, dtype=torch.bool), torch.ones(4)):
        with pytest.raises(IITKitError, match=r"mask of (bool \(5,\)|float32 \(4,\)): expected bool \(4,\)"):
            Intervention.from_spec(made.spec(), SiteInfo(4), {"mask.kept": kept})


# --- temperatures ---


def test_a_temperature_is_set_checked_saved_and_never_trained() -> None:
    for made in (
        BoundlessSubspace(SiteInfo(4)),
        MaskedNeurons(SiteInfo(4)),
        MaskedNeurons(SiteInfo(4), "hard_concrete"),
    ):
        assert made.temperature == pytest.approx({0: 50.0, 1: 1.0, 2: 2 / 3}[KINDS.index(type(made.mask))])
        made.temperature = 0.25
        assert made.temperature == 0.25
        assert not any("heat" in name for name, _ in made.named_parameters())
        other = Intervention.from_spec(made.spec(), SiteInfo(4))
        other.load_state_dict(made.state_dict())
        assert other.temperature == 0.25
        for bad in (0.0, -1.0, float("nan"), float("inf"), 1e-46, 1e39):
            with pytest.raises(IITKitError, match=r"temperature .*: expected a number (above 0|from 1e-30)"):
                made.temperature = bad
        assert made.temperature == 0.25
        base, source = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
        out = made(base, source)
        made.temperature = 0.5  # between forward and backward: the graph keeps its own
        out.sum().backward()
        released = made.released()
        assert released.temperature is None
        with pytest.raises(IITKitError, match=r"temperature 1\.0: the mask is released and stays hard"):
            released.temperature = 1.0
    with pytest.raises(IITKitError, match=r"temperature 1\.0: the mask All has none"):
        Vanilla().temperature = 1.0
    assert Vanilla().temperature is None


KINDS: list[type[Mask]] = [Boundary, Sigmoid, HardConcrete]


def test_the_coldest_and_the_hottest_mask_have_numbers() -> None:
    for make in (lambda t: Boundary(4, temperature=t), lambda t: Sigmoid(4, t), lambda t: HardConcrete(4, t)):
        for temperature in (COLDEST, HOTTEST):
            mask = make(temperature)
            found = mask.weights()
            assert isinstance(found, Tensor)
            (found.sum() + mask.penalty()).backward()  # type: ignore[no-untyped-call]
            gradient = share_of(mask).grad
            assert gradient is not None
            assert bool(torch.isfinite(found).all())
            assert bool(torch.isfinite(gradient).all())


def test_a_softer_mask_is_closer_to_a_half() -> None:
    mask = Sigmoid(2)
    with torch.no_grad():
        share_of(mask).copy_(torch.tensor([1.0, -1.0]))
    spread = []
    for temperature in (10.0, 1.0, 0.01):
        mask.temperature = temperature
        spread.append(weights(mask)[0] - weights(mask)[1])
    assert spread[0] < 0.11
    assert 0.4 < spread[1] < 0.5
    assert spread[2] == pytest.approx(1.0)


# --- sizes and penalties ---


def test_effective_sizes() -> None:
    site = SiteInfo(6)
    assert Vanilla().effective_size() is None
    assert Vanilla(site).effective_size() is None
    assert Vanilla(site, features=[1, 4]).effective_size() == 2.0
    assert Intervention.from_spec({"name": "LowRankSubspace", "rank": 3}, site).effective_size() == 3.0
    assert Intervention.from_spec({"name": "LoReFT", "rank": 2}, site).effective_size() == 2.0
    assert RotatedSubspace(site, coordinates={"a": 2, "b": [5]}).effective_size() == 3.0
    for share, size in ((0.5, 3), (0.51, 4), (1.0, 6), (0.001, 1)):
        assert BoundlessSubspace(site, share=share).effective_size() == size


def test_a_share_of_n_of_k_is_n_coordinates() -> None:
    for k in (7, 13, 19, 21, 64, 768):
        for n in range(1, k):
            assert Boundary(k, share=n / k).effective_size() == n  # and not n + 1, where fp32 rounds n / k up


def test_a_penalty_is_on_the_mask_s_device() -> None:
    # as those of several placements are added up
    for made in (Vanilla(), MaskedNeurons(SiteInfo(4)), MaskedNeurons(SiteInfo(4)).released()):
        assert made.to("meta").penalty().device.type == "meta"


def test_penalties_are_differentiable_and_charged_once() -> None:
    plain = Vanilla().penalty()
    assert plain.shape == ()
    assert plain.item() == 0.0
    for mask in (Boundary(5, share=0.3), Sigmoid(5), HardConcrete(5)):
        found = mask.penalty()
        assert found.shape == ()
        found.backward()  # type: ignore[no-untyped-call]
        gradient = share_of(mask).grad
        assert gradient is not None
        expected = {Boundary: 1.0, Sigmoid: 0.25, HardConcrete: None}[type(mask)]
        if expected is None:
            p = found.item() / 5
            expected = p * (1 - p)
        assert gradient.flatten().tolist() == pytest.approx([expected] * gradient.numel())
    # 0.4 times the penalty is 0.4 times the penalty, in training and in evaluation
    mask = Sigmoid(5)
    assert (0.4 * mask.penalty()).item() == pytest.approx(0.4 * 2.5)
    assert mask.eval().penalty().item() == pytest.approx(2.5)


# --- the boundary ---


def test_a_boundary_that_ran_out_comes_back() -> None:
    for start, up in ((-0.5, True), (1.7, False)):
        mask = Boundary(10, temperature=1.0)
        share = share_of(mask)
        with torch.no_grad():
            share.fill_(start)
        assert mask.penalty().item() == pytest.approx(1e-3 if up else 1.0)
        assert mask.effective_size() == (1 if up else 10)  # never empty, never more than there are
        # the gradient that leads back inside arrives whole, the one that leads away not at all
        (mask.penalty() * (-3.0 if up else 3.0)).backward()  # type: ignore[no-untyped-call]
        assert share.grad is not None
        assert share.grad.item() == (-3.0 if up else 3.0)
        share.grad = None
        (mask.penalty() * (3.0 if up else -3.0)).backward()  # type: ignore[no-untyped-call]
        assert share.grad.item() == 0.0  # type: ignore[attr-defined]
        optimizer = torch.optim.SGD([share], lr=0.1)
        target = torch.tensor(0.6)
        for _ in range(200):
            optimizer.zero_grad()
            (mask.penalty() - target).square().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        assert share.item() == pytest.approx(0.6, abs=1e-3)


# --- draws of hard-concrete gates ---


def test_placements_of_one_alignment_draw_different_gates() -> None:
    def alignment() -> list[Mask]:
        site = SiteInfo(200, generator=torch.Generator().manual_seed(0))
        composed = {"name": "Composed", "mask": {"name": "HardConcrete"}}
        named = {"name": "MaskedNeurons", "gate": "hard_concrete"}
        return [Intervention.from_spec(spec, site).mask for spec in (named, named, composed, composed)]

    draws, again = ([weights(mask) for mask in alignment()] for _ in range(2))
    assert draws == again
    both = torch.corrcoef(torch.tensor(draws)).fill_diagonal_(0)
    assert float(both.abs().max()) < 0.3


def test_gates_are_drawn_anew_each_step_without_the_global_generator() -> None:
    mask = HardConcrete(200)
    state = torch.get_rng_state()
    first, second = weights(mask), weights(mask)
    assert torch.equal(torch.get_rng_state(), state)
    assert first != second
    with mask.held():
        inside = [weights(mask) for _ in range(3)]
        with torch.no_grad():
            inside.append(weights(mask))
    assert all(found == inside[0] for found in inside)
    assert weights(mask) != inside[0]
    assert int(mask.state_dict()["draws"]) == 4
    # the same seed draws the same, another another; a resumed run goes on where it was
    again = HardConcrete(200)
    assert weights(again) == first
    assert weights(HardConcrete(200, seed=1)) != first
    resumed = HardConcrete(200)
    resumed.load_state_dict(mask.state_dict())
    assert weights(resumed) == weights(mask)
    mask.eval()
    weights(mask)
    assert int(mask.state_dict()["draws"]) == 5  # evaluation draws nothing
