"""Fig. 1c: means on the unit circle, and the variances by samples and by a grid."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from experiments.logit_gradients import costs, estimators
from experiments.logit_gradients.costs import Cost, exact_gradient
from experiments.logit_gradients.draws import Draws, mean_cost
from experiments.logit_gradients.moments import THRESHOLD, moments
from experiments.logit_gradients.paper import PaperSharedCovariance

REACH = 5.0
"""The grid ends so many standard deviations outside the means."""

SPACING = 0.25
"""Of the grid's points, in standard deviations."""

WIDEST = 0.1
"""Largest spacing, for the costs' sake."""

TRANSPORTS = ("displacement", "telescoping", "pairwise", "implicit")


def ring(components: int, sigma: float) -> PaperSharedCovariance:
    """Means at equal distances on the unit circle, equal weights, covariance sigma^2."""
    angle = torch.arange(components, dtype=torch.float64) * (math.tau / components)
    locs = torch.stack([angle.cos(), angle.sin()], -1)
    scale = torch.full((2,), sigma, dtype=torch.float64)
    return PaperSharedCovariance(locs, scale, torch.zeros(components, dtype=torch.float64))


def by_samples(mixture: PaperSharedCovariance, draws: int, pilot: int) -> dict[str, Any]:
    """Variances for f = |z|^2, and the z-scores of the means.

    The gradient of this f is zero, which a field that never gets across a gap meets as well: so
    the z-scores are those for two linear costs, of the same samples and fields.
    """
    cost = costs.quadratic(mixture)
    baseline = mean_cost(mixture, cost, pilot)
    trial = Draws.draw(mixture, cost, pilot, baseline)
    found = Draws.draw(mixture, cost, draws, baseline)
    exact = exact_gradient(mixture, cost)
    result = {}
    guards = [_along(mixture, found, trial, axis) for axis in torch.eye(2, dtype=torch.float64)]
    for name, values in estimators.single(found, trial).items():
        square = sum(guard[name] ** 2 for guard in guards) / len(guards)
        result[name] = {
            "variance": moments(values, exact).variance,
            "rms_z": math.sqrt(square),
            "reliable": math.sqrt(square) <= THRESHOLD,
        }
    return result


def _along(
    mixture: PaperSharedCovariance, found: Draws, trial: Draws, axis: Tensor
) -> dict[str, float]:
    """z-scores for f = axis . z."""
    cost = costs.linear(axis)
    exact = exact_gradient(mixture, cost)
    found, trial = (
        Draws.of(mixture, cost, each.record.z, torch.zeros((), dtype=torch.float64))
        for each in (found, trial)
    )
    every = estimators.single(found, trial)
    return {name: moments(values, exact).rms_z for name, values in every.items()}


def by_grid(mixture: PaperSharedCovariance, sigma: float) -> dict[str, float]:
    """Variances for f = |z|^2 by integration: what samples miss, a grid does not."""
    cost: Cost = costs.quadratic(mixture)
    end = 1 + REACH * sigma
    count = math.ceil(2 * end / min(SPACING * sigma, WIDEST)) + 1
    side = torch.linspace(-end, end, count, dtype=torch.float64)
    z = torch.cartesian_prod(side, side)
    exact = exact_gradient(mixture, cost).gradient
    baseline = 1 + torch.tensor(2 * sigma**2, dtype=torch.float64)  # the mean cost
    points = Draws.of(mixture, cost, z, baseline)
    mass = points.record.log_prob.exp() * (side[1] - side[0]) ** 2  # (N, 1)
    every = {"score": estimators.score(points)}
    every |= {name: estimators.transported(points, name) for name in TRANSPORTS}
    return {
        name: (mass * (values - exact).square()).sum().item() for name, values in every.items()
    }


def cell(components: int, sigma: float, draws: int, pilot: int, seed: int) -> dict[str, Any]:
    """Variances of one ring by both ways."""
    torch.manual_seed(seed)
    mixture = ring(components, sigma)
    return {"samples": by_samples(mixture, draws, pilot), "grid": by_grid(mixture, sigma)}
