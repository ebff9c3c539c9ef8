"""Directions that tell two sets of activations apart, in closed form or, of the probe, by Newton's method; fp64."""

from __future__ import annotations

import torch
from torch import Tensor

from iitkit.errors import IITKitError

STEPS = 100
"""Newton steps that are more than the probe ever takes."""


def mean_difference(positive: Tensor, negative: Tensor) -> Tensor:
    """Return the mean of ``positive`` [n, d] less the mean of ``negative`` [m, d], [d].

    Raises:
        IITKitError: means that do not differ.
    """
    found = positive.double().mean(0) - negative.double().mean(0)
    if not found.norm() > 0:
        raise IITKitError("positive and negative prompts have the same mean activation: there is no direction")
    return found


def principal_difference(positive: Tensor, negative: Tensor) -> Tensor:
    """Return the direction u in which the pairs' differences [n, d] are longest, ``Σ (u·dᵢ)²``, times ``u·mean(d)``.

    It is the first principal component of the pairs, each taken from its own middle.

    Raises:
        IITKitError: no such direction: pairs that do not differ, or as much one way as the other.
    """
    differences = positive.double() - negative.double()
    _, sizes, directions = torch.linalg.svd(differences, full_matrices=False)
    if not sizes[0] > 0:
        raise IITKitError("positive and negative prompts have the same activations: there is no direction")
    return _along(directions[0], positive, negative)


def linear_probe(positive: Tensor, negative: Tensor, penalty: float) -> Tensor:
    """Return the normal u of a logistic regression, times ``u·(mean positive − mean negative)``.

    It minimises ``mean log(1 + exp(−y (w·x + b))) + penalty/2 · |w|²`` with y = ±1 and x centred and divided by the
    pooled standard deviation of all entries; the two sets count alike, however large.

    Args:
        positive: [n, d].
        negative: [m, d].
        penalty: above 0; without one the w of sets that can be told apart has no end.

    Raises:
        IITKitError: a penalty of 0 or less, or activations that do not differ.
    """
    if not penalty > 0:
        raise IITKitError(f"penalty {penalty!r}: expected a number above 0")
    rows = torch.cat([positive, negative]).double()
    signs = torch.cat([torch.ones(len(positive)), -torch.ones(len(negative))]).double()
    shares = torch.tensor([0.5 / len(part) for part in (positive, negative) for _ in part], dtype=torch.float64)
    centred = rows - shares @ rows
    spread = centred.square().mean().sqrt()
    if not spread > 0:
        raise IITKitError("positive and negative prompts have the same activations: there is no direction")
    # w lies in the span of the rows: no more unknowns than rows, however wide they are
    _, _, basis = torch.linalg.svd(centred / spread, full_matrices=False)
    weights = _logistic((centred / spread) @ basis.T, signs, shares, penalty)
    return _along(weights @ basis, positive, negative)


def _logistic(rows: Tensor, signs: Tensor, shares: Tensor, penalty: float) -> Tensor:
    """Minimise the penalised loss by damped Newton steps; return w [r]."""
    extended = torch.cat([rows, torch.ones(len(rows), 1).double()], 1)
    ridge = torch.full((extended.shape[1],), penalty).double()
    ridge[-1] = 0.0
    found = torch.zeros_like(ridge)

    def loss(at: Tensor) -> Tensor:
        return shares @ torch.nn.functional.softplus(-signs * (extended @ at)) + (ridge * at.square()).sum() / 2

    for _ in range(STEPS):
        wrong = torch.sigmoid(-signs * (extended @ found))
        slope = -extended.T @ (shares * signs * wrong) + ridge * found
        if slope.norm() < 1e-12:
            break
        curve = extended.T @ (extended * (shares * wrong * (1 - wrong))[:, None])
        step = torch.linalg.solve(curve + torch.diag(ridge + 1e-12), slope)
        length = 1.0
        while loss(found - length * step) > loss(found) and length > 1e-6:
            length /= 2
        found = found - length * step
    return found[:-1]


def _along(direction: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    unit = direction / direction.norm()
    along = unit @ (positive.double().mean(0) - negative.double().mean(0))
    scale = torch.cat([positive, negative]).double().norm(dim=1).max()
    if not along.abs() > 1e-12 * scale:
        raise IITKitError("positive and negative prompts lie alike along the direction: it points neither way")
    vector: Tensor = along * unit
    return vector
