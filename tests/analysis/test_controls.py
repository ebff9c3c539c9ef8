"""Random subspaces: orthonormal, frozen, and drawn from the activations' own covariance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from iitkit.analysis.controls import random_subspaces
from iitkit.errors import IITKitError
from iitkit.interventions import LowRankSubspace


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def basis(control: LowRankSubspace) -> Tensor:
    found = control.space.basis
    assert isinstance(found, Tensor)
    return found


def orthonormal(matrix: Tensor) -> bool:
    wide = matrix.double()
    return bool((wide.T @ wide - torch.eye(wide.shape[1], dtype=torch.float64)).abs().max() < 1e-6)


@pytest.mark.parametrize(("n", "rank"), [(200, 1), (200, 5), (200, 16), (4, 5), (5, 5), (6, 5), (2, 16)])
def test_orthonormal_whatever_the_number_of_samples(n: int, rank: int) -> None:
    controls = random_subspaces(normal(n, 16), rank, 3, generator(1))
    assert len(controls) == 3
    for control in controls:
        assert tuple(basis(control).shape) == (16, rank)
        assert orthonormal(basis(control))


@pytest.mark.parametrize("rank", [2, 3, 5])
def test_activations_that_vary_along_fewer_directions(rank: int) -> None:
    activations = torch.zeros(30, 8)
    activations[:, :2] = normal(30, 2)
    for control in random_subspaces(activations, rank, 5, generator(1)):
        assert orthonormal(basis(control))
        assert basis(control)[:2].norm() == pytest.approx(math.sqrt(2), abs=1e-5)  # both directions are in it


def test_activations_that_do_not_vary() -> None:
    for control in random_subspaces(torch.full((10, 8), 3.0), 2, 2, generator(1)):
        assert orthonormal(basis(control))


def test_directions_lie_where_the_activations_vary() -> None:
    plane, _ = torch.linalg.qr(normal(20, 3))
    mean = 100 * normal(1, 20, seed=2)  # a large mean is no variance
    activations = normal(500, 3, seed=3) @ plane.T + mean
    for control in random_subspaces(activations, 2, 10, generator(1)):
        inside = plane.T @ basis(control)
        assert (inside.norm(dim=0) - 1).abs().max() < 1e-3
    whole = basis(random_subspaces(activations, 3, 1, generator(1))[0])
    assert (whole @ whole.T - plane @ plane.T).abs().max() < 1e-3  # rank 3: the subspace itself


def test_directions_follow_the_covariance() -> None:
    """With standard deviations 3 and 1, a direction is (3 g, g′): the median of |3 g / g′| is 3."""
    activations = normal(4000, 2) * torch.tensor([3.0, 1.0])
    expected = float(activations.std(0)[0] / activations.std(0)[1])
    directions = torch.stack([basis(c)[:, 0] for c in random_subspaces(activations, 1, 1500, generator(1))])
    ratio = (directions[:, 0] / directions[:, 1]).abs()
    assert float(ratio.median()) == pytest.approx(expected, rel=0.15)
    # a Cauchy variable of scale s is below s · tan(π/8) a quarter of the time
    assert float((ratio < expected * math.tan(math.pi / 8)).float().mean()) == pytest.approx(0.25, abs=0.04)
    assert float((directions[:, 0] * directions[:, 1] > 0).float().mean()) == pytest.approx(0.5, abs=0.05)


def test_fewer_samples_than_rank_keep_what_there_is() -> None:
    activations = 50 * normal(3, 16)
    centred = activations - activations.mean(0)
    for control in random_subspaces(activations, 6, 4, generator(1)):
        matrix = basis(control)
        assert orthonormal(matrix)
        outside = centred - centred @ matrix @ matrix.T
        assert outside.norm() < 0.02 * centred.norm()  # the samples' own differences are swapped


def test_draws_differ_and_follow_the_generator() -> None:
    activations = normal(50, 8)
    one = [basis(c) for c in random_subspaces(activations, 2, 3, generator(1))]
    again = [basis(c) for c in random_subspaces(activations, 2, 3, generator(1))]
    other = [basis(c) for c in random_subspaces(activations, 2, 3, generator(2))]
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert (one[0] - one[1]).abs().max() > 0.01
    assert (one[0] - other[0]).abs().max() > 0.01


def test_controls_are_frozen_and_swap() -> None:
    (control,) = random_subspaces(normal(50, 8).to(torch.bfloat16), 2, 1, generator(1))
    assert [p for p in control.parameters() if p.requires_grad] == []
    R, base, source = basis(control), normal(4, 8, seed=5), normal(4, 8, seed=6)
    assert R.dtype == torch.float32
    assert torch.allclose(control(base, source), base + (source - base) @ R @ R.T, atol=1e-6)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_activations(n: int) -> None:
    with pytest.raises(IITKitError, match=f"random subspaces need two activations or more, given {n}"):
        random_subspaces(torch.zeros(n, 8), 2, 1, generator())


def test_rank_beyond_the_width() -> None:
    with pytest.raises(IITKitError, match="rank 9"):
        random_subspaces(normal(20, 8), 9, 1, generator())
