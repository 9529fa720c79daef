"""Posteriors of posteriordb: eight schools, and mixtures whose labels can be exchanged."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from experiments.lab.datasets import data_file
from experiments.modes.targets.target import (
    Evidence,
    Target,
    normal,
    normal_draws,
    one_mode,
    simplex,
    uniform_draws,
    uniform_jacobian,
)


def observations(name: str, key: str) -> Tensor:
    """An array of a data file of posteriordb."""
    content = json.loads(data_file(f"posteriordb/{name}.data.json").read_text())
    return torch.tensor(content[key], dtype=torch.float64)


def half_cauchy(log_x: Tensor, scale: float) -> Tensor:
    """The log density of the logarithm of a half-Cauchy."""
    ratio = log_x - math.log(scale)
    return math.log(2 / math.pi) + ratio - torch.nn.functional.softplus(2 * ratio)


def half_normal(log_x: Tensor, scale: float) -> Tensor:
    """The log density of the logarithm of a half-Normal."""
    return normal(log_x.exp(), 0.0, scale) + math.log(2) + log_x


def half_cauchy_draws(count: int, scale: float, generator: torch.Generator) -> Tensor:
    """Draws of the logarithm of a half-Cauchy, ``(count, 1)``."""
    share = torch.rand(count, 1, generator=generator, dtype=torch.float64)
    return (scale * (0.5 * math.pi * share).tan()).log()


def eight_schools(*, centered: bool) -> Target:
    """A hierarchical Normal of eight schools; centered it is a funnel."""
    y, sigma = observations("eight_schools", "y"), observations("eight_schools", "sigma")

    def log_density(z: Tensor) -> Tensor:
        mu, log_tau, effects = z[:, :1], z[:, 1:2], z[:, 2:]
        prior = (normal(mu, 0.0, 5.0) + half_cauchy(log_tau, 5.0)).squeeze(-1)
        if centered:
            theta, within = effects, normal(effects, mu, log_tau.exp())
        else:
            theta, within = mu + log_tau.exp() * effects, normal(effects, 0.0, 1.0)
        return prior + (within + normal(y, theta, sigma)).sum(-1)

    def model() -> None:
        zero = torch.tensor(0.0, dtype=torch.float64)
        mu: Any = pyro.sample("mu", dist.Normal(zero, 5.0)).unsqueeze(-1)
        tau: Any = pyro.sample("tau", dist.HalfCauchy(zero + 5)).unsqueeze(-1)
        ones = torch.ones(8, dtype=torch.float64)
        if centered:
            theta: Any = pyro.sample("theta", dist.Normal(mu * ones, tau).to_event(1))
        else:
            theta = mu + tau * pyro.sample("effects", dist.Normal(0 * ones, ones).to_event(1))
        pyro.sample("y", dist.Normal(theta, sigma).to_event(1), obs=y)

    def draws(count: int, generator: torch.Generator) -> Tensor:
        mu = normal_draws(0.0, 5.0, 1)(count, generator)
        log_tau = half_cauchy_draws(count, 5.0, generator)
        effects = normal_draws(0.0, 1.0, 8)(count, generator)
        if centered:
            effects = mu + log_tau.exp() * effects
        return torch.cat([mu, log_tau, effects], -1)

    return Target(
        "eight_schools" if centered else "eight_schools_noncentered",
        10,
        log_density,
        draws,
        Evidence(-31.31135, 0.0, "grid, effects in closed form"),
        one_mode,
        torch.ones(1, dtype=torch.float64),
        model,
        plane=(1, 2),
    )


def normal_2() -> Target:
    """Two Normals of known scale with an unknown weight."""
    y = observations("normal_2", "y")

    def log_likelihood(theta: Tensor, mu: Tensor) -> Tensor:
        logs = torch.stack([theta.log(), (-theta).log1p()], -1).unsqueeze(-2)  # (*S, 1, 2)
        parts = logs + normal(y.unsqueeze(-1), mu.unsqueeze(-2), 1.0)  # (*S, N, 2)
        return parts.logsumexp(-1).sum(-1)  # logaddexp has no finite second derivative far out

    def log_density(z: Tensor) -> Tensor:
        prior = uniform_jacobian(z[:, 0]) + normal(z[:, 1:], 0.0, 10.0).sum(-1)
        logs = torch.nn.functional.logsigmoid(torch.stack([z[:, 0], -z[:, 0]], -1))  # (S, 2)
        parts = logs.unsqueeze(1) + normal(y.unsqueeze(-1), z[:, None, 1:], 1.0)  # (S, N, 2)
        return prior + parts.logsumexp(-1).sum(-1)

    def model() -> None:
        zeros = torch.zeros(2, dtype=torch.float64)
        theta: Any = pyro.sample("theta", dist.Uniform(zeros[0], zeros[0] + 1))
        mu: Any = pyro.sample("mu", dist.Normal(zeros, 10.0).to_event(1))
        pyro.factor("likelihood", log_likelihood(theta, mu))

    def draws(count: int, generator: torch.Generator) -> Tensor:
        mu = normal_draws(0.0, 10.0, 2)(count, generator)
        return torch.cat([uniform_draws(count, 1, generator), mu], -1)

    return Target(
        "normal_2",
        3,
        log_density,
        draws,
        Evidence(-2071.0358, 0.0006, "importance sampling"),
        lambda z: (z[:, 1] > z[:, 2]).long(),
        torch.full((2,), 0.5, dtype=torch.float64),
        model,
        plane=(1, 2),
        floors=-2073.8,
    )


def two_normals_likelihood(y: Tensor, mu: Tensor, sigma: Tensor, theta: Tensor) -> Tensor:
    """Of two Normals of unknown scales and weight, ``(*S, 2), (*S, 2), (*S,) -> (*S,)``."""
    weights = torch.stack([theta, 1 - theta], -1).log().unsqueeze(-2)  # (*S, 1, 2)
    parts = weights + normal(y.unsqueeze(-1), mu.unsqueeze(-2), sigma.unsqueeze(-2))
    return parts.logsumexp(-1).sum(-1)


class Sorted(dist.TorchDistribution):
    """Two independent Normals ``N(0, scale)`` in ascending order."""

    arg_constraints: dict[str, Any] = {}
    support = dist.constraints.ordered_vector

    def __init__(self, scale: Tensor, *, validate_args: bool | None = None) -> None:
        self.scale = scale
        super().__init__(scale.shape, torch.Size([2]), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        """The same with another batch shape."""
        return Sorted(self.scale.expand(batch_shape), validate_args=False)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Sorted draws."""
        shape = self._extended_shape(sample_shape)
        return (self.scale.unsqueeze(-1) * torch.randn(shape, dtype=self.scale.dtype)).sort(-1)[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Twice the density of the unordered pair."""
        return normal(value, 0.0, self.scale.unsqueeze(-1)).sum(-1) + math.log(2)


def low_dim_gauss_mix(*, ordered: bool) -> Target:
    """Two Normals of unknown scales and weight, with and without an order of the locations."""
    name = "low_dim_gauss_mix" if ordered else "low_dim_gauss_mix_collapse"
    y = observations(name, "y")

    def log_density(z: Tensor) -> Tensor:
        mu, log_sigma, logit = z[:, :2], z[:, 2:4], z[:, 4]
        jacobian = torch.zeros_like(logit)
        if ordered:
            jacobian = math.log(2) + mu[:, 1]
            mu = torch.stack([mu[:, 0], mu[:, 0] + mu[:, 1].exp()], -1)
        prior = normal(mu, 0.0, 2.0).sum(-1) + half_normal(log_sigma, 2.0).sum(-1)
        beta = 5 * uniform_jacobian(logit) + math.lgamma(10) - 2 * math.lgamma(5)
        likelihood = two_normals_likelihood(y, mu, log_sigma.exp(), logit.sigmoid())
        return prior + jacobian + beta + likelihood

    def model() -> None:
        zeros = torch.zeros(2, dtype=torch.float64)
        free = dist.Normal(zeros, 2.0).to_event(1)
        mu: Any = pyro.sample("mu", Sorted(zeros[0] + 2) if ordered else free)
        sigma: Any = pyro.sample("sigma", dist.HalfNormal(zeros + 2).to_event(1))
        theta: Any = pyro.sample("theta", dist.Beta(zeros[0] + 5, zeros[0] + 5))
        pyro.factor("likelihood", two_normals_likelihood(y, mu, sigma, theta))

    def draws(count: int, generator: torch.Generator) -> Tensor:
        mu = normal_draws(0.0, 2.0, 2)(count, generator)
        if ordered:
            mu = mu.sort(-1)[0]
            mu = torch.stack([mu[:, 0], (mu[:, 1] - mu[:, 0]).log()], -1)
        log_sigma = normal_draws(0.0, 2.0, 2)(count, generator).abs().log()
        # the fifth of nine uniform draws in ascending order is Beta(5, 5)
        share = torch.rand(count, 9, generator=generator, dtype=torch.float64).sort(-1)[0][:, 4:5]
        return torch.cat([mu, log_sigma, share.logit()], -1)

    weights = torch.ones(1) if ordered else torch.full((2,), 0.5)
    return Target(
        name,
        5,
        log_density,
        draws,
        Evidence(-2114.9903 if ordered else -1673.6658, 0.0013, "importance sampling"),
        one_mode if ordered else lambda z: (z[:, 0] > z[:, 1]).long(),
        weights.double(),
        model,
        plane=(0, 1),
        floors=-math.inf if ordered else -1679.3,
    )


PERMUTATIONS = torch.tensor(list(itertools.permutations(range(5))))  # (120, 5)
NORMAL_5 = torch.tensor(
    [[-9.591, 2.164], [-3.965, 1.364], [-0.251, 2.332], [3.101, 0.521], [4.925, 2.264]],
    dtype=torch.float64,
)
"""Location and scale of each of the five Normals, at one of the highest optima."""


def five_normals_likelihood(y: Tensor, weights: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """Of K Normals, ``(*S, K)`` each ``-> (*S,)``."""
    constants = (weights.log() - sigma.log()).unsqueeze(-2)  # (*S, 1, K)
    white = (y.unsqueeze(-1) - mu.unsqueeze(-2)) / sigma.unsqueeze(-2)  # (*S, N, K)
    parts = constants - 0.5 * white.square()
    return parts.logsumexp(-1).sum(-1) - 0.5 * len(y) * math.log(2 * math.pi)


def normal_5() -> Target:
    """Five Normals, whose labels can be exchanged in 120 ways."""
    y = observations("normal_5", "y")

    def log_density(z: Tensor) -> Tensor:
        weights, jacobian = simplex(z[:, :4])
        mu, scaled = z[:, 4:9], z[:, 9:]
        prior = jacobian + math.lgamma(5) + uniform_jacobian(scaled).sum(-1)
        prior = prior + normal(mu, 0.0, 10.0).sum(-1)
        return prior + five_normals_likelihood(y, weights, mu, 10 * scaled.sigmoid())

    def mode_of(z: Tensor) -> Tensor:
        """The permutation by which the Normals are nearest to those of :data:`NORMAL_5`."""
        found = torch.stack([z[:, 4:9], (10 * z[:, 9:].sigmoid()).log()], -1)  # (S, 5, 2)
        known = torch.stack([NORMAL_5[:, 0], NORMAL_5[:, 1].log()], -1)
        steps = (found.unsqueeze(2) - known) / torch.tensor([0.5, 0.15], dtype=z.dtype)
        cost = steps.square().sum(-1).clamp(max=100.0)  # (S, 5, 5)
        return cost[:, torch.arange(5), PERMUTATIONS].sum(-1).argmin(-1)

    def model() -> None:
        zeros = torch.zeros(5, dtype=torch.float64)
        theta: Any = pyro.sample("theta", dist.Dirichlet(zeros + 1))
        mu: Any = pyro.sample("mu", dist.Normal(zeros, 10.0).to_event(1))
        sigma: Any = pyro.sample("sigma", dist.Uniform(zeros, zeros + 10).to_event(1))
        pyro.factor("likelihood", five_normals_likelihood(y, theta, mu, sigma))

    def draws(count: int, generator: torch.Generator) -> Tensor:
        exponential = -torch.rand(count, 5, generator=generator, dtype=torch.float64).log()
        theta = exponential / exponential.sum(-1, keepdim=True)
        free = dist.transforms.StickBreakingTransform().inv(theta)
        mu = normal_draws(0.0, 10.0, 5)(count, generator)
        return torch.cat([free, mu, uniform_draws(count, 5, generator)], -1)

    return Target(
        "normal_5",
        14,
        log_density,
        draws,
        Evidence(-5113.655, 0.02, "importance sampling from a mixture fitted to chains"),
        mode_of,
        torch.full((120,), 1 / 120, dtype=torch.float64),
        model,
        plane=(4, 5),
        floors=-5125.0,
    )


POSTERIORDB: dict[str, Callable[[], Target]] = {
    "eight_schools": lambda: eight_schools(centered=True),
    "eight_schools_noncentered": lambda: eight_schools(centered=False),
    "normal_2": normal_2,
    "low_dim_gauss_mix": lambda: low_dim_gauss_mix(ordered=True),
    "low_dim_gauss_mix_collapse": lambda: low_dim_gauss_mix(ordered=False),
    "normal_5": normal_5,
}
