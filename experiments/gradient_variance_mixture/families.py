"""The random mixtures of Fig. 1b: the four families of the paper's Table 3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from experiments.logit_gradients import costs, estimators
from experiments.logit_gradients.costs import Cost, exact_gradient
from experiments.logit_gradients.draws import Draws, mean_cost
from experiments.logit_gradients.moments import Moments, moments
from experiments.logit_gradients.paper import (
    PaperGaussianScaleMixture,
    PaperMixtureOfDiagNormals,
    PaperSharedCovariance,
)
from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.distributions.parametric_mixture import ParametricMixture

RADIUS = 2.0
SPREAD = 0.1
"""Standard deviation of the logarithms of all scales."""

LOGITS = 0.5
"""Standard deviation of the logits."""

STRATA = 10
"""Samples that share their strata."""

FAMILIES: dict[str, Callable[[Tensor, Tensor, Tensor], ParametricMixture]] = {
    "shared covariance": lambda locs, scales, logits: PaperSharedCovariance(
        locs, scales[0], logits
    ),
    "scale mixture, zero means": lambda _, scales, logits: PaperGaussianScaleMixture(
        scales[0], logits, scales[:, -1]
    ),
    "scale mixture with means": lambda locs, scales, logits: PaperGaussianScaleMixture(
        scales[0], logits, scales[:, -1], locs
    ),
    "diagonal covariances": PaperMixtureOfDiagNormals,
}
"""Mixtures of means ``(K, D)``, scales ``(K, D)`` and logits ``(K,)``, by name."""


def random_mixture(family: str, components: int, dim: int, seed: int) -> ParametricMixture:
    """Means on the sphere of radius 2, covariances near the identity, in double precision."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    locs = normal(components, dim)
    locs = RADIUS * locs / locs.norm(dim=-1, keepdim=True)
    scales = (SPREAD * normal(components, dim)).exp()
    return FAMILIES[family](locs, scales, LOGITS * normal(components))


def measure(
    mixture: ParametricMixture, cost: Cost, draws: int, pilot: int, hub_steps: int
) -> dict[str, Moments]:
    """Moments of all estimators that the mixture's family has.

    Args:
        mixture: of double precision, without batch shape.
        cost: of its samples.
        draws: estimates by each.
        pilot: samples of their own for the baseline and the shares of blending.
        hub_steps: of learning, of 100 samples each.
    """
    baseline = mean_cost(mixture, cost, pilot)
    trial = Draws.draw(mixture, cost, pilot, baseline)
    found = Draws.draw(mixture, cost, draws, baseline)
    exact = exact_gradient(mixture, cost)
    every = estimators.single(found, trial)
    if isinstance(mixture, MixtureOfDiagNormals):
        hub = estimators.learned_hub(mixture, cost, hub_steps, samples=100)
        every["learned hub"] = estimators.by_learned_hub(found, hub)
    result = {name: moments(values, exact) for name, values in every.items()}
    count = max(2, draws // STRATA)
    groups = estimators.stratified(mixture, cost, count, STRATA)
    result["stratified"] = moments(groups, exact).times(STRATA)
    result["marginalized"] = moments(estimators.marginalized(mixture, cost, draws), exact)
    return result


def relative(found: dict[str, Moments]) -> dict[str, Any]:
    """Variances divided by that of the score function, and whether they can be believed."""
    reference = found["score"].variance
    return {
        name: {
            "ratio": each.variance / reference,
            "ratio_error": each.error / reference,
            "rms_z": each.rms_z,
            "reliable": each.reliable,
        }
        for name, each in found.items()
    }


def ratios(
    family: str, components: int, dim: int, seed: int, draws: int, pilot: int, hub_steps: int
) -> dict[str, Any]:
    """Of one random mixture and f = |z|^2."""
    mixture = random_mixture(family, components, dim, seed)
    torch.manual_seed(seed)
    cost = costs.quadratic(mixture)
    return relative(measure(mixture, cost, draws, pilot, hub_steps))
