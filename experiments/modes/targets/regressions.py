"""Regressions: a Gaussian process's hyperparameters, an exoplanet, logistic regressions."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor
from torch.nn.functional import logsigmoid

from experiments.modes.targets.target import (
    Evidence,
    Target,
    normal,
    normal_draws,
    one_mode,
    uniform_draws,
    uniform_jacobian,
)

LOCS = torch.tensor([1.0, 0.0, -1.5], dtype=torch.float64)
SCALES = torch.tensor([1.2, 0.7, 1.2], dtype=torch.float64)
GP_X = torch.tensor(
    [-6.351, -4.2415, -2.1057, -0.6431, 0.5298, 3.0298, 5.8738], dtype=torch.float64
)
GP_Y = torch.tensor(
    [0.7713, -0.3866, 0.4945, -0.2523, -0.6246, 0.2188, -1.9183], dtype=torch.float64
)


def gaussian_process_covariance(z: Tensor) -> Tensor:
    """Covariance of the observations given logs of length, signal and noise, ``(*S, N, N)``."""
    length, signal, noise = z.exp().unsqueeze(-1).unsqueeze(-1).unbind(-3)  # (*S, 1, 1) each
    squares = (GP_X - GP_X.unsqueeze(-1)).square()
    kernel = signal.square() * (-squares / (2 * length.square())).exp()
    return kernel + (noise.square() + 1e-5) * torch.eye(len(GP_X), dtype=z.dtype)


def gaussian_process() -> Target:
    """Seven observations that a short length explains, or noise does."""

    def log_density(z: Tensor) -> Tensor:
        root, info = torch.linalg.cholesky_ex(gaussian_process_covariance(z))
        white = torch.linalg.solve_triangular(root, GP_Y.unsqueeze(-1), upper=False).squeeze(-1)
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        likelihood = -0.5 * white.square().sum(-1) - log_det
        value = normal(z, LOCS, SCALES).sum(-1) + likelihood
        value = value - 0.5 * len(GP_Y) * math.log(2 * math.pi)
        return torch.where(info == 0, value, -math.inf)

    def model() -> None:
        z: Any = pyro.sample("z", dist.Normal(LOCS, SCALES).to_event(1))
        covariance = gaussian_process_covariance(z)
        observed = dist.MultivariateNormal(torch.zeros_like(GP_Y), covariance)
        pyro.sample("y", observed, obs=GP_Y)

    return Target(
        "gaussian_process",
        3,
        log_density,
        normal_draws(LOCS, SCALES, 3),
        Evidence(-10.50088, 0.00001, "grid"),
        mode_of=lambda z: (z[:, 0] + z[:, 2] > 0.65).long(),
        mode_weights=torch.tensor([0.789, 0.211], dtype=torch.float64),
        model=model,
        plane=(0, 2),
        floors=-20.2,
    )


RV_TIMES = torch.tensor(
    [2.9989, 4.0251, 6.1317, 20.0709, 22.1654, 23.3039, 24.2163, 27.8506, 38.8394],
    dtype=torch.float64,
)
RV_VALUES = torch.tensor(
    [-0.5297, -2.0221, 2.9253, -1.8288, 3.9139, 2.3542, -0.6073, -1.1662, 1.0915],
    dtype=torch.float64,
)
RV_BOUNDS = torch.tensor([0.153, 0.274, 0.327, 0.659, 0.780], dtype=torch.float64)


def velocities(
    frequency: Tensor, a: Tensor, b: Tensor, c: Tensor, *, times: Tensor = RV_TIMES
) -> Tensor:
    """Radial velocities at these times, ``(*S, N)``, by default those of the observations."""
    angles = 2 * math.pi * frequency.unsqueeze(-1) * times
    return a.unsqueeze(-1) * angles.cos() + b.unsqueeze(-1) * angles.sin() + c.unsqueeze(-1)


def radial_velocity() -> Target:
    """Nine velocities of a star, which six frequencies of its planet explain."""
    low, high, scale, noise = 0.02, 0.98, 4.0, 1.2

    def log_density(z: Tensor) -> Tensor:
        frequency = low + (high - low) * z[:, 0].sigmoid()
        means = velocities(frequency, z[:, 1], z[:, 2], z[:, 3])
        prior = uniform_jacobian(z[:, 0]) + normal(z[:, 1:], 0.0, scale).sum(-1)
        return prior + normal(RV_VALUES, means, noise).sum(-1)

    def model() -> None:
        one = torch.tensor(1.0, dtype=torch.float64)
        frequency: Any = pyro.sample("frequency", dist.Uniform(low * one, high * one))
        a, b, c = (pyro.sample(name, dist.Normal(0 * one, scale)) for name in "abc")
        means: Any = velocities(frequency, a, b, c)
        pyro.sample("v", dist.Normal(means, noise).to_event(1), obs=RV_VALUES)

    def draws(count: int, generator: torch.Generator) -> Tensor:
        others = normal_draws(0.0, scale, 3)(count, generator)
        return torch.cat([uniform_draws(count, 1, generator), others], -1)

    return Target(
        "radial_velocity",
        4,
        log_density,
        draws,
        Evidence(-21.39935, 0.0, "grid over the frequency, the rest in closed form"),
        mode_of=lambda z: torch.bucketize(low + (high - low) * z[:, 0].sigmoid(), RV_BOUNDS),
        mode_weights=torch.tensor(
            [0.11637, 0.22907, 0.03177, 0.02715, 0.40352, 0.19212], dtype=torch.float64
        ),
        model=model,
        plane=(0, 1),
        floors=torch.tensor([-33.7, -31.2, -32.4, -34.5, -30.4, -33.0], dtype=torch.float64),
    )


def breast_cancer() -> Target:
    """A logistic regression on scikit-learn's data, set up as published for comparison.

    Features are divided by their standard deviations and not centered, coefficients and the
    intercept are N(0, 10): Arenz, Dahlinger, Ye, Volpp, Neumann (2023), "A Unified Perspective on
    Natural Gradient Variational Inference with Gaussian Mixture Models".
    """
    features, labels = (torch.from_numpy(array) for array in load_breast_cancer(return_X_y=True))
    features = features / features.std(0, correction=0)
    design = torch.cat([torch.ones(len(features), 1, dtype=torch.float64), features], -1)
    signed = design * (2.0 * labels.double() - 1).unsqueeze(-1)  # (N, D)

    def log_likelihood(z: Tensor) -> Tensor:
        return logsigmoid(z @ signed.T).sum(-1)

    def log_density(z: Tensor) -> Tensor:
        return normal(z, 0.0, 10.0).sum(-1) + log_likelihood(z)

    def model() -> None:
        zeros = torch.zeros(design.shape[-1], dtype=torch.float64)
        z: Any = pyro.sample("coefficients", dist.Normal(zeros, 10.0).to_event(1))
        pyro.factor("likelihood", log_likelihood(z))

    return Target(
        "breast_cancer",
        design.shape[-1],
        log_density,
        normal_draws(0.0, 10.0, design.shape[-1]),
        Evidence(-77.58, 0.01, "importance sampling, and annealed"),
        one_mode,
        torch.ones(1, dtype=torch.float64),
        model,
    )


def logistic_regression() -> Target:
    """A logistic regression with 99 coefficients, 400 simulated data and one mode."""
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    design = torch.cat(
        [torch.ones(400, 1, dtype=torch.float64), torch.randn(400, 99, **options)], -1
    )
    truth = 0.5 * torch.randn(100, **options)
    labels = torch.rand(400, **options) < (design @ truth).sigmoid()
    signed = design * (2.0 * labels.double() - 1).unsqueeze(-1)  # (N, D)

    def log_likelihood(z: Tensor) -> Tensor:
        return logsigmoid(z @ signed.T).sum(-1)

    def log_density(z: Tensor) -> Tensor:
        return normal(z, 0.0, 1.0).sum(-1) + log_likelihood(z)

    def model() -> None:
        zeros = torch.zeros(100, dtype=torch.float64)
        z: Any = pyro.sample("coefficients", dist.Normal(zeros, 1.0).to_event(1))
        pyro.factor("likelihood", log_likelihood(z))

    return Target(
        "logistic_regression",
        100,
        log_density,
        normal_draws(0.0, 1.0, 100),
        Evidence(-197.366, 0.016, "annealed importance sampling"),
        one_mode,
        torch.ones(1, dtype=torch.float64),
        model,
    )
