"""What sees data first: PCA, mean, resample, noise. One pass, in fp64, the same however the data are cut."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from iitkit.errors import IITKitError
from iitkit.interventions import Composed, Intervention, MaskedSubspace, Mean, Noise, PCASubspace, Resample, SiteInfo
from iitkit.interventions.charts import Chart
from iitkit.interventions.edits import Zero
from iitkit.interventions.from_data import Mean as MeanEdit
from iitkit.interventions.masks import All
from iitkit.interventions.spaces import Space
from iitkit.interventions.statistics import Moments

D = 6
SITE = SiteInfo(D)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(n: int = 200) -> Tensor:
    """Correlated, of different scales, far from 0."""
    scales = torch.tensor([30.0, 10.0, 5.0, 2.0, 1.0, 0.3], dtype=torch.float64)
    return (normal(n, D, seed=1) * scales) @ normal(D, D, seed=2) + 100 * normal(1, D, seed=3)


def fitted(made: Intervention, activations: Tensor, cuts: int = 37) -> int:
    """Fit; return the number of passes."""
    passes = 0
    while made.unfitted:
        for part in activations.split(cuts):  # type: ignore[no-untyped-call]
            made.observe(part)
        made.finish()
        passes += 1
        assert passes < 4
    return passes


def buffer(made: Intervention, name: str) -> Tensor:
    found: Tensor = made.state_dict()[name]
    return found


# --- statistics ---


def test_moments_in_one_pass_are_numpy_s_of_the_whole() -> None:
    x = data() + 1e6  # a large mean must not eat the variance
    for full in (True, False):
        for cuts in (1, 7, 200):
            moments = Moments(full)
            for part in x.split(cuts):  # type: ignore[no-untyped-call]
                moments.update(part)
            moments.update(x[:0])
            array = x.numpy()
            assert moments.count == 200
            assert np.abs(moments.mean.numpy() - array.mean(0)).max() < 1e-8
            scatter = np.cov(array.T) * 199
            assert np.abs(moments.scatter.numpy() - (scatter if full else np.diag(scatter))).max() < 1e-5
            if not full:
                assert moments.pooled_std().item() == pytest.approx(array.std(ddof=1), rel=1e-9)


# --- PCA ---


@pytest.mark.parametrize("standardise", [False, True])
def test_pca_is_the_singular_value_decomposition(standardise: bool) -> None:
    x, rank = data(), 3
    made = PCASubspace(SITE, rank=rank, standardise=standardise)
    assert fitted(made, x) == 1
    array = x.numpy()
    scale = array.std(0, ddof=1) if standardise else np.ones(D)
    centred = (array - array.mean(0)) / scale
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    r = rows[:rank].T
    r = r * np.sign(r[np.abs(r).argmax(0), range(rank)])
    assert np.abs(buffer(made, "space.basis").numpy() - r).max() < 1e-5
    assert np.allclose(buffer(made, "space.mean").numpy(), array.mean(0), rtol=1e-6)
    share = singular[:rank] ** 2 / (singular**2).sum()
    assert np.allclose(buffer(made, "space.explained").numpy(), share, rtol=1e-5)
    base, source = x[:5], x[5:10]
    expected = base.numpy() + ((source - base).numpy() / scale) @ r @ r.T * scale
    assert np.abs(made(base, source).numpy() - expected).max() < 1e-4
    some = PCASubspace(SITE, rank=rank, standardise=standardise, components=[2])
    fitted(some, x)
    expected = base.numpy() + ((source - base).numpy() / scale) @ r[:, 2:] @ r[:, 2:].T * scale
    assert np.abs(some(base, source).numpy() - expected).max() < 1e-4
    # coordinates are around the mean: setting all of them to 0 gives the mean
    zero = Composed(SITE, {"name": "PCA", "rank": D, "standardise": standardise}, edit={"name": "Zero"})
    fitted(zero, x)
    assert np.abs(zero(base).numpy() - array.mean(0)).max() < 1e-3


def test_how_the_data_are_cut_does_not_matter() -> None:
    for name, options in (("PCASubspace", {"rank": 3}), ("Mean", {}), ("Noise", {"times_std": 2.0}), ("Resample", {})):
        whole, cut = (Intervention.from_spec({"name": name, **options}, SITE) for _ in range(2))
        fitted(whole, data(), 200)
        fitted(cut, data(), 7)
        for key, value in whole.state_dict().items():
            assert torch.allclose(value, cut.state_dict()[key], rtol=1e-5, atol=1e-6), key


def test_an_entry_that_never_varies_keeps_its_unit() -> None:
    x = data()
    x[:, 2] = 4.0
    made = PCASubspace(SITE, rank=D, standardise=True)
    fitted(made, x)
    assert buffer(made, "space.scale")[2] == 1.0
    assert torch.allclose(made(x[:5], x[5:10]), x[5:10], rtol=1e-5)


def test_too_few_activations_are_refused() -> None:
    cases: list[tuple[Intervention, int, str]] = [
        (PCASubspace(SITE, rank=3), 3, "PCA of rank 3 needs 4 activations or more, 3 were observed: give more data"),
        (Mean(SITE), 0, "Mean needs 1 activations or more, 0 were observed"),
        (Noise(SITE, times_std=1.0), 1, "Noise needs 2 activations or more, 1 were observed"),
        (
            Resample(SITE, samples=9),
            8,
            "Resample keeps 9 activations, 8 were observed: give more data, or fewer samples",
        ),
    ]
    for made, n, message in cases:
        made.observe(data(n))
        with pytest.raises(IITKitError, match=re.escape(message)):
            made.finish()
        made.observe(data(20))  # nothing is lost: go on
        made.finish()
        assert not made.unfitted


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
@pytest.mark.parametrize(
    "spec",
    [
        {"name": "Mean"},
        {"name": "Resample", "samples": 200},
        {"name": "Noise", "times_std": 1.0},
        {"name": "PCASubspace", "rank": 2},
    ],
    ids=str,
)
def test_activations_that_are_not_finite_are_refused(spec: dict[str, Any], bad: float) -> None:
    # NaN says that the data have not been seen: `while made.unfitted` would never end
    made = Intervention.from_spec(spec, SITE)
    x = data()
    x[77, 3] = bad
    for part in x.split(7):  # type: ignore[no-untyped-call]
        made.observe(part)
    with pytest.raises(IITKitError, match=r"observed activations that are not finite \(NaN, or beyond fp32\): run the"):
        made.finish()


def test_components_of_data_that_never_vary() -> None:
    made = PCASubspace(SITE, rank=2)
    fitted(made, torch.full((50, D), 3.0))
    assert bool(torch.isfinite(buffer(made, "space.explained")).all())
    basis = buffer(made, "space.basis")
    assert (basis.T @ basis - torch.eye(2)).abs().max() < 1e-6


def test_stored_results_that_are_none_are_refused() -> None:
    made = PCASubspace(SITE, rank=2)
    fitted(made, data())
    tensors = made.released().state_dict()
    with pytest.raises(IITKitError, match="basis is not orthonormal"):
        Intervention.from_spec(made.spec(), SITE, {**tensors, "space.basis": tensors["space.basis"] * 1.1})
    with pytest.raises(IITKitError, match=r"Mean: stored tensors edit\.mean do not fit: they hold NaN"):
        Intervention.from_spec({"name": "Mean"}, SITE, {"edit.mean": torch.full((D,), math.nan)})


def test_once_fitted_more_data_change_nothing() -> None:
    for made in (PCASubspace(SITE, rank=2), Mean(SITE), Resample(SITE, samples=4), Noise(SITE, times_std=1.0)):
        fitted(made, data())
        before = {key: value.clone() for key, value in made.state_dict().items()}
        made.observe(data() * 2)  # e.g. another placement that shares the object
        made.finish()
        assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())


def test_a_checkpoint_of_a_fitted_one_fits_a_fresh_one_and_the_other_way_round() -> None:
    made, fresh = PCASubspace(SITE, rank=2), PCASubspace(SITE, rank=2)
    unfitted = {key: value.clone() for key, value in fresh.state_dict().items()}
    fitted(made, data())
    fresh.load_state_dict(made.state_dict())
    assert not fresh.unfitted
    assert torch.equal(fresh(data(4), data(8)[4:]), made(data(4), data(8)[4:]))
    made.load_state_dict(unfitted)
    assert made.unfitted


# --- mean ---


def test_mean_by_hand() -> None:
    made = Mean(SiteInfo(2))
    for rows in ([[1.0, 10.0], [3.0, 20.0]], [[5.0, 0.0]]):
        made.observe(torch.tensor(rows))
    made.finish()
    assert made(torch.tensor([[7.0, 8.0], [0.0, 0.0]])).tolist() == [[3.0, 10.0], [3.0, 10.0]]
    assert made(torch.tensor([7.0, 8.0]), strength=0.5).tolist() == [5.0, 9.0]


def test_the_mean_follows_a_rotation_that_trains_on() -> None:
    x = data()
    made = MaskedSubspace(SITE, rank=2, edit="mean")
    assert fitted(made, x) == 1
    base = data(5)
    for seed in (1, 2):
        with torch.no_grad():
            made.space.free.copy_(normal(D, 2, seed=seed))  # type: ignore[operator]
            made.mask.gates.fill_(1.0)  # type: ignore[operator]
        r = made.rotation.detach().double()
        expected = base + (x.mean(0) - base) @ r @ r.T
        assert (made.eval()(base) - expected).abs().max() < 1e-4


def test_pca_and_mean_need_one_pass() -> None:
    made = Composed(SITE, {"name": "PCA", "rank": 2}, edit={"name": "Mean"})
    assert fitted(made, data()) == 1
    zero = Composed(SITE, {"name": "PCA", "rank": 2}, edit={"name": "Zero"})
    fitted(zero, data())
    assert (made(data(5)) - zero(data(5))).abs().max() < 1e-4  # the mean is the origin


class _Cubes(Chart):
    def __init__(self, scale: Tensor) -> None:
        self.scale = scale

    def encode(self, x: Tensor) -> Tensor:
        return (x / self.scale.to(x.dtype)) ** 3


class _Curved(Space):
    """A curved space that is itself fitted."""

    affine = False

    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        self.register_buffer("scale", torch.full((width,), math.nan))
        self.seen: list[Tensor] = []

    @property
    def unfitted(self) -> bool:
        return bool(torch.isnan(self.scale).any())

    def observe(self, activations: Tensor) -> None:
        if self.unfitted:
            self.seen.append(activations)

    def finish(self) -> None:
        if self.seen:
            self.scale = torch.cat(self.seen).abs().amax(0).float()
            self.seen = []

    def chart(self) -> Chart:
        assert isinstance(self.scale, Tensor)
        return _Cubes(self.scale)


def test_the_mean_of_curved_coordinates_needs_a_second_pass() -> None:
    made = Intervention(_Curved(D), All(D), MeanEdit(D, SITE))
    x = data()
    assert fitted(made, x) == 2
    cubes = (x / x.abs().amax(0).float().double()) ** 3
    assert torch.allclose(buffer(made, "edit.mean").double(), cubes.mean(0), rtol=1e-5)
    assert fitted(Intervention(_Curved(D), All(D), Zero(D, SITE)), x) == 1


# --- resample ---


def test_resample_takes_activations_of_the_data_and_the_same_in_every_call() -> None:
    x = data().float()
    made = Resample(SITE, samples=16, seed=3)
    fitted(made, x)
    base = torch.zeros(300, D)
    found = made(base)
    assert all(bool((row == x).all(1).any()) for row in found)
    assert torch.equal(made(base), found)
    assert torch.equal(made(base[:5].reshape(5, 1, D)).flatten(0, 1), found[:5])
    assert len({tuple(row) for row in found.tolist()}) == 16  # all that are kept come up
    other = Resample(SITE, samples=16, seed=4)
    fitted(other, x)
    assert not torch.equal(other(base), found)
    whole = Resample(SITE, samples=200)
    fitted(whole, x)
    assert torch.equal(buffer(whole, "edit.kept"), x)


def test_the_reservoir_is_a_uniform_sample() -> None:
    counts = torch.zeros(40)
    x = torch.arange(40.0)[:, None].expand(40, D)
    for seed in range(400):
        made = Resample(SITE, samples=10, seed=seed)
        fitted(made, x, 9)
        counts[buffer(made, "edit.kept")[:, 0].long()] += 1
    # 400 draws of 10 of 40: 100 each, standard deviation √(400 · ¼ · ¾) = 8.7
    assert counts.sum() == 4000
    assert (counts - 100).abs().max() < 4 * 8.7
    assert counts[:10].mean().item() == pytest.approx(100, abs=10)
    assert counts[-10:].mean().item() == pytest.approx(100, abs=10)


# --- noise ---


def test_noise_has_the_standard_deviation_that_is_asked_for() -> None:
    x = data()
    known, measured = Noise(SITE, sigma=2.5, seed=7), Noise(SITE, times_std=3.0, seed=7)
    fitted(measured, x)
    base = torch.zeros(20000, D)
    drawn = known(base)
    assert drawn.std().item() == pytest.approx(2.5, rel=0.01)
    assert drawn.mean(0).abs().max() < 0.08
    assert torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max() < 0.03
    # k times the standard deviation of all entries of the data together, and the same draws
    factor = 3 * x.numpy().std(ddof=1) / 2.5
    assert torch.allclose(measured(base), drawn * factor, rtol=1e-5)


def test_row_i_gets_draw_i_in_every_call_batch_and_process() -> None:
    made = Noise(SITE, sigma=1.0)
    state = torch.get_rng_state()
    base = torch.zeros(4, 50, D)
    whole = made(base).flatten(0, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(made(torch.zeros(200, D)), whole)
    for n in (1, 5, 63, 64, 65, 130):
        assert torch.equal(made(torch.zeros(n, D)), whole[:n])
        assert torch.equal(Noise(SITE, sigma=1.0)(torch.zeros(n, D)), whole[:n])  # asked for in any order
    assert not torch.equal(Noise(SITE, sigma=1.0, seed=1)(torch.zeros(5, D)), whole[:5])
    assert len({tuple(row) for row in whole.tolist()}) == 200
    # ROME's protocol: one clean row and ten noised ones, the same ten in every run
    assert torch.equal(made(base[0, :10] + 3.0), whole[:10] + 3.0)


def test_noise_in_a_subspace_is_the_noise_projected() -> None:
    made = Composed(SITE, {"name": "LowRankRotation", "rank": 2}, edit={"name": "Noise", "sigma": 1.0})
    plain = Noise(SITE, sigma=1.0)(torch.zeros(50, D))
    r = made.space.rotation().detach()  # type: ignore[operator]
    assert (made(torch.zeros(50, D)) - plain @ r @ r.T).abs().max() < 1e-5


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({}, "Noise: give either sigma, or times_std"),
    "both": ({"sigma": 1.0, "times_std": 1.0}, "Noise: give either sigma, or times_std"),
    "negative": ({"sigma": -1.0}, "sigma -1.0: expected a number of 0 or more"),
    "a negative multiple": ({"times_std": -1.0}, "times_std -1.0: expected a number of 0 or more"),
    "text": ({"sigma": "1"}, "sigma '1': expected a number"),
    "seed": ({"sigma": 1.0, "seed": -1}, "seed -1: expected 0 or more"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_noise_is_refused(case: str) -> None:
    options, message = BAD[case]
    with pytest.raises(IITKitError, match=f"^{re.escape(message)}"):
        Noise(SITE, **options)


def test_what_is_observed_keeps_no_graph_and_no_data() -> None:
    made = PCASubspace(SITE, rank=2)
    layer = nn.Linear(D, D)
    made.observe(layer(data(50).float()))
    made.finish()
    assert not any(value.requires_grad for value in made.state_dict().values())
    assert layer.weight.grad is None
