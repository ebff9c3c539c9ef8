"""Formulas worked by hand, what the rotation costs, and that training finds a planted subspace."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from byhand import gram_schmidt
from torch import Tensor

from iitkit.errors import IITKitError
from iitkit.interventions import Intervention, LowRankSubspace, SiteInfo, Vanilla
from iitkit.interventions.charts import LinearChart
from iitkit.interventions.spaces import orthonormal


def subspace(free: list[list[float]]) -> LowRankSubspace:
    """A subspace whose free matrix is given."""
    made = LowRankSubspace(SiteInfo(len(free)), rank=len(free[0]))
    made.load_state_dict({"space.free": torch.tensor(free)})
    return made


def free_of(made: LowRankSubspace) -> Tensor:
    return dict(made.named_parameters())["space.free"]


@pytest.fixture
def qr_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    real = torch.linalg.qr

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.linalg, "qr", counted)
    return calls


# --- by hand ---


def test_vanilla() -> None:
    base, source = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([0.1, -7.0, 1e8])
    assert torch.equal(Vanilla()(base, source), source)
    assert Vanilla()(base, torch.tensor([5.0, 2.0, 1.0]), strength=0.5).tolist() == [3.0, 2.0, -1.0]
    # b + (s − b) would round the source to the base's last digit
    assert torch.equal(Vanilla()(torch.tensor([1e8]), torch.tensor([0.1])), torch.tensor([0.1]))


def test_one_direction() -> None:
    # along (3, 4)/5: (s − b) = (10, −5) has the coordinate (30 − 20)/5 = 2, so b moves by 2 · (3, 4)/5
    made = subspace([[3.0], [4.0]])
    assert made.rotation.flatten().tolist() == pytest.approx([0.6, 0.8])
    found = made(torch.tensor([1.0, 1.0]), torch.tensor([11.0, -4.0]))
    assert found.tolist() == pytest.approx([1 + 1.2, 1 + 1.6])
    half = made(torch.tensor([1.0, 1.0]), torch.tensor([11.0, -4.0]), strength=0.5)
    assert half.tolist() == pytest.approx([1.6, 1.8])


def test_two_directions_of_three() -> None:
    # columns (1, 1, 0) and (0, 2, 0) span the first two axes; the third coordinate is the base's
    made = subspace([[1.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    root = math.sqrt(0.5)
    assert made.rotation.tolist() == [pytest.approx(row, abs=1e-7) for row in [[root, -root], [root, root], [0, 0]]]
    found = made(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[7.0, 8.0, 9.0]]))
    assert found.tolist() == [pytest.approx([7.0, 8.0, 3.0])]


def test_the_basis_is_gram_schmidt_with_a_positive_diagonal() -> None:
    for width, rank in ((3, 1), (8, 3), (8, 8), (40, 16)):
        free = torch.randn(width, rank, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
        basis = orthonormal(free)
        assert (basis - gram_schmidt(free)).abs().max() < 1e-10
        assert bool(((basis.T @ free).diagonal() > 0).all())  # diag(R) > 0
        assert basis.is_contiguous()  # safetensors and FSDP refuse QR's own layout
        narrow = orthonormal(free.float())
        assert narrow.dtype == torch.float32
        assert orthonormal(free.bfloat16()).dtype == torch.float32


def test_the_rotation_moves_little_when_the_matrix_does() -> None:
    # LAPACK's own signs turn round where a column's leading entry changes its sign
    free = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = 0
    for step in range(-20, 21):
        near, far = free.clone(), free.clone()
        near[0, 0], far[0, 0] = step * 1e-4, (step + 1) * 1e-4
        assert (orthonormal(near) - orthonormal(far)).abs().max() < 1e-3
        turned += int((torch.linalg.qr(near)[0] - torch.linalg.qr(far)[0]).abs().max() > 0.1)
    assert turned > 0


def test_a_large_part_that_both_share_costs_no_digits() -> None:
    # residual streams have entries of tens of thousands: (s − b) R, and not s R − b R
    generator = torch.Generator().manual_seed(0)
    shared = torch.full((64,), 1e6)
    base, source = (shared + torch.randint(-9, 9, (5, 64), generator=generator) for _ in range(2))  # exact in fp32
    matrix = orthonormal(torch.randn(64, 3, generator=generator))
    expected = (source - base).double() @ matrix.double()
    for mean in (None, shared):
        found = LinearChart(matrix, mean).difference(source, base)
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


# --- errors ---


@pytest.mark.parametrize("rank", [0, -1, 9])
def test_a_rank_outside_the_width_is_refused(rank: int) -> None:
    with pytest.raises(IITKitError, match=f"^rank {rank}: expected 1 to the site's width 8$"):
        LowRankSubspace(SiteInfo(8), rank=rank)


def test_damaged_tensors_are_refused() -> None:
    made = LowRankSubspace(SiteInfo(6), rank=2)
    basis = made.released().state_dict()["space.basis"]

    def fill(tensors: dict[str, Tensor]) -> Intervention:
        return Intervention.from_spec(made.spec(), SiteInfo(6), tensors)

    with pytest.raises(
        IITKitError, match=r"basis is not orthonormal \(RᵀR differs from I by 0\.\d+\): the file is dam"
    ):
        fill({"space.basis": basis * 1.1})
    for bad in (float("nan"), float("inf")):
        broken = basis.clone()
        broken[0, 0] = bad
        with pytest.raises(IITKitError, match="basis is not orthonormal"):
            fill({"space.basis": broken})
    with pytest.raises(IITKitError, match=r"basis of shape \(6, 1\): expected \(6, 2\)"):
        fill({"space.basis": basis[:, :1]})
    with pytest.raises(IITKitError, match=r"basis of shape \(6, 2\): expected \(5, 2\)"):
        Intervention.from_spec(made.spec(), SiteInfo(5), {"space.basis": basis})
    for dtype in (torch.int64, torch.complex64):
        with pytest.raises(IITKitError, match=rf"basis of {str(dtype)[6:]} numbers: expected float32 or wider"):
            fill({"space.basis": torch.eye(6, 2).to(dtype)})
    half = torch.eye(6, 2).half()
    assert fill({"space.basis": half}).state_dict()["space.basis"].dtype == torch.float32
    with pytest.raises(IITKitError, match=r"LowRankSubspace: stored tensors space\.free do not fit"):
        fill({"space.free": torch.zeros(6, 2)})
    with pytest.raises(IITKitError, match="LowRankSubspace: stored tensors  do not fit"):
        fill({})


# --- what it costs, and that it stays orthonormal ---


def test_one_qr_per_training_step_and_none_when_nothing_changed(qr_calls: list[int]) -> None:
    made = LowRankSubspace(SiteInfo(6), rank=2)
    base, source = torch.randn(2, 40, 3, 6).unbind(0)
    assert len(qr_calls) <= 1  # of the start
    qr_calls.clear()
    for step in range(3):
        made(base, source)  # however many rows
        assert len(qr_calls) == step + 1
    qr_calls.clear()
    optimizer = torch.optim.SGD(made.parameters(), lr=1.0)
    with torch.no_grad():
        for _ in range(5):
            made(base, source)
    assert len(qr_calls) == 1
    made(base, source).sum().backward()
    optimizer.step()
    qr_calls.clear()
    with torch.inference_mode():
        for _ in range(5):
            made(base, source)
    with torch.no_grad():
        made(base, source)
    assert len(qr_calls) == 1
    made.requires_grad_(False)(base, source)
    assert len(qr_calls) == 1
    released = made.released()
    rebuilt = Intervention.from_spec(made.spec(), SiteInfo(6), released.state_dict())
    assert torch.equal(rebuilt(base, source), made(base, source))
    qr_calls.clear()
    for one in (released, rebuilt):
        one(base, source)
        with torch.no_grad():
            one(base, source)
    assert not qr_calls


def test_every_way_of_changing_the_matrix_is_seen() -> None:
    made = LowRankSubspace(SiteInfo(64), rank=8)
    free = free_of(made)

    def check() -> None:
        with torch.no_grad():
            assert torch.equal(made.rotation, orthonormal(free))

    check()
    with torch.no_grad():
        free.add_(1.0)
        check()
        free.copy_(torch.randn(64, 8))
        check()
        free[0, 0] = 5.0
        check()
    made.load_state_dict({"space.free": torch.randn(64, 8)})
    check()
    for _ in range(20):  # a new matrix may come to lie where an old one lay
        free.data = torch.randn(64, 8)
        free.data = torch.randn(64, 8)
        check()
    for _ in range(3):  # leaves no trace but the numbers, e.g. an optimizer or a broadcast that writes so
        free.data.copy_(torch.randn(64, 8))
        check()
        free.data[0, 0] += 1.0
        check()
    made.double()
    check()
    made.float()
    check()


def test_orthonormal_after_fifty_fierce_steps() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        made = LowRankSubspace(SiteInfo(24), rank=8)
        optimizer = torch.optim.Adam(made.parameters(), lr=1e-1)
        generator = torch.Generator().manual_seed(2)
        start = made.rotation.detach().clone()
        for _ in range(50):
            base, source, goal = torch.randn(3, 32, 24, generator=generator).to(dtype).unbind(0)
            optimizer.zero_grad()
            (made(base, source) - goal).float().square().mean().backward()
            optimizer.step()
        rotation = made.released().state_dict()["space.basis"]
        assert rotation.dtype == torch.float32
        assert (rotation.T @ rotation - torch.eye(8)).abs().max() <= 1e-5
        assert (rotation - start).abs().max() > 0.1
        assert set(made.released().state_dict()) == {"space.basis"}
        assert rotation.shape == (24, 8)


def test_the_same_generator_gives_the_same_start() -> None:
    first, second, third = (
        LowRankSubspace(SiteInfo(6, generator=torch.Generator().manual_seed(seed)), rank=2) for seed in (7, 7, 8)
    )
    assert torch.equal(free_of(first), free_of(second))
    assert not torch.equal(free_of(first), free_of(third))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    made = LowRankSubspace(SiteInfo(16), rank=4).cuda()
    base, source = torch.randn(2, 5, 16, device="cuda").unbind(0)
    expected = made(base, source).detach()
    released = made.released()
    assert released.state_dict()["space.basis"].device.type == "cpu"
    assert torch.equal(released.cuda()(base, source), expected)
    there = {key: value.cuda() for key, value in released.state_dict().items()}
    assert torch.equal(Intervention.from_spec(made.spec(), SiteInfo(16), there)(base, source), expected)


# --- it finds what is there ---


def overlap(rotation: Tensor, planted: Tensor) -> float:
    """Share of the planted subspace that R spans: ‖Rᵀ P‖² / k; chance is k / d."""
    return float((rotation.T @ planted).square().sum() / planted.shape[1])


def test_a_planted_subspace_is_found_and_a_random_one_is_at_chance() -> None:
    width, k = 16, 2
    generator = torch.Generator().manual_seed(0)
    planted = gram_schmidt(torch.randn(width, k, generator=generator))
    readout, weights = torch.randn(k, 24, generator=generator), torch.randn(24, 6, generator=generator)

    def network(hidden: Tensor) -> Tensor:
        return torch.tanh(hidden @ planted @ readout) @ weights

    made = LowRankSubspace(SiteInfo(width, generator=generator), rank=k)
    assert overlap(made.rotation.detach(), planted) < 0.6
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-2)
    for _ in range(400):
        base, source = torch.randn(2, 128, width, generator=generator).unbind(0)
        optimizer.zero_grad()
        # nothing but the network's own answers: under the interchange it says what it says for the source
        target = network(source).argmax(1)
        torch.nn.functional.cross_entropy(network(made(base, source)), target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert overlap(made.released().state_dict()["space.basis"], planted) > 0.98
    base, source = torch.randn(2, 4000, width, generator=generator).unbind(0)
    with torch.no_grad():
        target, kept = network(source).argmax(1), network(base).argmax(1)
        flipped = target != kept
        iia = float((network(made(base, source)).argmax(1) == target)[flipped].float().mean())
        others = [LowRankSubspace(SiteInfo(width, generator=generator), rank=k) for _ in range(40)]
        random = float(
            torch.stack([(network(o(base, source)).argmax(1) == target)[flipped].float().mean() for o in others]).mean()
        )
        spans = sum(overlap(other.rotation, planted) for other in others) / len(others)
    assert iia > 0.9
    assert random < 0.35
    assert spans == pytest.approx(k / width, abs=0.04)
