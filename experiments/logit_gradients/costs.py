"""Costs, and their expectations under the components."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.distributions.parametric_mixture import ParametricMixture
from pyro_mixtures.estimators.strata import component_samples

MODE = 2.0
"""Distance from the origin of the target's two modes."""

PAIRS = 2000
"""Antithetic pairs of random numbers, common to the components, for what has no closed form."""


@dataclass(frozen=True)
class Cost:
    """A function of samples.

    Args:
        value: f, ``(*X, D) -> (*X)``.
        means: exact expectations under the components, ``(1, K)``, of means and standard
            deviations ``(K, D)``; None where there is no closed form.
    """

    value: Callable[[Tensor], Tensor]
    means: Callable[[Tensor, Tensor], Tensor] | None = None


def linear(weights: Tensor) -> Cost:
    """f(z) = w . z."""
    return Cost(lambda z: z @ weights, lambda locs, _: (locs @ weights)[None])


def quadratic(_: ParametricMixture) -> Cost:
    """f(z) = |z|^2."""
    return Cost(
        lambda z: z.square().sum(-1),
        lambda locs, scales: (locs.square() + scales.square()).sum(-1)[None],
    )


def cosine(mixture: ParametricMixture) -> Cost:
    """f(z) = cos(w . z) with w of length about 1, the same for all mixtures of that D."""
    dim = mixture.event_shape[0]
    generator = torch.Generator().manual_seed(dim)
    w = torch.randn(dim, dtype=torch.float64, generator=generator) / math.sqrt(dim)

    def means(locs: Tensor, scales: Tensor) -> Tensor:
        return ((locs @ w).cos() * (-(scales.square() @ w.square()) / 2).exp())[None]

    return Cost(lambda z: (z @ w).cos(), means)


def ragged(_: ParametricMixture) -> Cost:
    """f(z) = |z|^2 / 2 + sum_i sin(5 z_i), whose slope says little about its differences."""

    def means(locs: Tensor, scales: Tensor) -> Tensor:
        waves = (5 * locs).sin() * (-12.5 * scales.square()).exp()
        return ((locs.square() + scales.square()) / 2 + waves).sum(-1)[None]

    return Cost(lambda z: z.square().sum(-1) / 2 + (5 * z).sin().sum(-1), means)


def elbo(mixture: ParametricMixture) -> Cost:
    """f(z) = log q(z) - log p(z) for a target of two unit Normals, 4 standard deviations apart.

    The q within is held fixed: its own gradient has the expectation zero.
    """

    def value(z: Tensor) -> Tensor:
        along = MODE * z[..., 0]
        square = z.square().sum(-1) + MODE**2 + z.shape[-1] * math.log(2 * math.pi)
        log_target = torch.logaddexp(along, -along) - math.log(2) - square / 2
        return mixture.log_prob(z) - log_target

    return Cost(value)


COSTS: dict[str, Callable[[ParametricMixture], Cost]] = {
    "quadratic": quadratic,
    "cosine": cosine,
    "ragged": ragged,
    "ELBO": elbo,
}
"""The costs of a mixture's samples, by name."""


class Exact(NamedTuple):
    """The gradient of the logits, its standard error, and the weights, each ``(K,)``."""

    gradient: Tensor
    error: Tensor
    weights: Tensor


def of_components(mixture: ParametricMixture, costs: Tensor) -> Tensor:
    r"""Gradients :math:`\pi_j (f_j - \sum_k \pi_k f_k)` by the components' costs, ``(N, K)``."""
    weights = mixture.log_weights.exp()
    return weights * (costs - costs @ weights[:, None])


@torch.no_grad()
def exact_gradient(mixture: ParametricMixture, cost: Cost) -> Exact:
    r"""Gradient of the logits, :math:`\pi_j (E_j f - E_q f)`.

    Without a closed form each component is sampled, with common random numbers.
    """
    locs, scales = mixture.components.spread()
    if cost.means is not None:
        means = cost.means(locs, scales)  # (1, K)
    else:
        z = component_samples(mixture, (PAIRS,))  # (PAIRS, K, D)
        means = (cost.value(z) + cost.value(2 * locs - z)) / 2  # (PAIRS, K)
    gradients = of_components(mixture, means)
    count = len(gradients)
    error = gradients.std(0) / math.sqrt(count) if count > 1 else torch.zeros_like(gradients[0])
    return Exact(gradients.mean(0), error, mixture.log_weights.exp())
