"""The regression: Rasmussen and Williams' kernel, the log joint density and its exact averages."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import MultivariateNormal

HYPERPARAMETERS = {
    "trend amplitude": 66.0,
    "trend years": 67.0,
    "season amplitude": 2.4,
    "season years": 90.0,
    "season smoothness": 1.3,
    "medium amplitude": 0.66,
    "medium years": 1.2,
    "medium shape": 0.78,
    "correlated noise amplitude": 0.18,
    "correlated noise years": 1.6 / 12,
    "noise amplitude": 0.19,
}
"""Values of Gaussian Processes for Machine Learning, section 5.4.3: amplitudes in ppm."""

JITTER = 1e-6
"""Added to the diagonal of the kernel matrix of standardized values, as in Pyro's GP models."""


def kernel(log_hyperparameters: Tensor, years: Tensor) -> Tensor:
    """Covariance at a distance in ``years``, of any shape, without the white noise.

    A smooth trend, a yearly cycle that slowly changes its form, irregularities of medium term
    (rational quadratic) and correlated noise.
    """
    trend, trend_years, season, season_years, smoothness, medium, medium_years, shape, *last = (
        log_hyperparameters.exp()
    )
    noise, noise_years, _ = last
    square = years.square()
    cycle = (math.pi * years).sin().square()
    scaled = square / (2 * shape * medium_years.square())
    return (
        trend.square() * (-square / (2 * trend_years.square())).exp()
        + season.square()
        * (-square / (2 * season_years.square()) - 2 * cycle / smoothness.square()).exp()
        + medium.square() * (-shape * scaled.log1p()).exp()
        + noise.square() * (-square / (2 * noise_years.square())).exp()
    )


@dataclass
class Regression:
    """Standardized values ``y = f + noise`` with ``f = C u`` a whitened Gaussian process.

    ``C C^T`` is the kernel matrix, so that the latent ``u`` are standard Normal in the prior
    whatever the hyperparameters are.

    Args:
        values: monthly values in ppm, ``(N,)``.
    """

    values: Tensor

    def __post_init__(self) -> None:
        self.scale = self.values.std()
        self.y = (self.values - self.values.mean()) / self.scale
        month = torch.arange(len(self.y))
        self.lags = (month - month.unsqueeze(-1)).abs()  # (N, N)
        self.years = month.to(self.y) / 12
        self.jitter = JITTER * torch.eye(len(self.y)).to(self.y)

    def log_hyperparameters(self) -> Tensor:
        """Logarithms of :data:`HYPERPARAMETERS` in units of ``y`` and years, ``(11,)``."""
        values = torch.tensor(list(HYPERPARAMETERS.values())).to(self.y)
        amplitude = torch.tensor([name.endswith("amplitude") for name in HYPERPARAMETERS])
        return torch.where(amplitude, values / self.scale, values).log()

    def covariance(self, log_hyperparameters: Tensor) -> Tensor:
        """Prior covariance of ``f``, ``(N, N)``: on an even grid it has N different entries."""
        return kernel(log_hyperparameters, self.years)[self.lags] + self.jitter

    def log_joint(self, u: Tensor, log_hyperparameters: Tensor) -> Tensor:
        """``log p(y, u)`` for ``u`` of shape ``(*S, N)``, ``(*S,)``."""
        return self.expected_log_joint(u, u.new_empty(*u.shape, 0), log_hyperparameters)

    def expected_log_joint(
        self, loc: Tensor, scale_tril: Tensor, log_hyperparameters: Tensor
    ) -> Tensor:
        """The mean of ``log p(y, u)`` over a Normal ``u``, exactly.

        Args:
            loc: ``(*S, N)``.
            scale_tril: a factor of the covariance, ``(*S, N, M)``.
            log_hyperparameters: in the order of :data:`HYPERPARAMETERS`.
        """
        root = torch.linalg.cholesky(self.covariance(log_hyperparameters))
        white = torch.cat([loc.unsqueeze(-1), scale_tril], -1)  # (*S, N, 1 + M)
        residual = self.y - (root @ loc.unsqueeze(-1)).squeeze(-1)
        misfit = residual.square().sum(-1) + (root @ scale_tril).square().sum((-2, -1))
        log_noise = log_hyperparameters[-1]
        squares = white.square().sum((-2, -1)) + misfit / (2 * log_noise).exp()
        return -0.5 * squares - len(self.y) * (log_noise + math.log(2 * math.pi))

    def log_evidence(self, log_hyperparameters: Tensor) -> Tensor:
        """``log p(y)``, which no ELBO exceeds."""
        noise = (2 * log_hyperparameters[-1]).exp() * torch.eye(len(self.y)).to(self.y)
        covariance = self.covariance(log_hyperparameters) + noise
        return MultivariateNormal(torch.zeros_like(self.y), covariance).log_prob(self.y)

    def largest_log_evidence(self) -> float:
        """``log p(y)`` maximized over hyperparameters within a factor of 50 of their start.

        A local maximum, by L-BFGS.
        """

        def loss(point: NDArray[numpy.float64]) -> tuple[float, NDArray[numpy.float64]]:
            parameters = torch.from_numpy(point).clone().requires_grad_()
            value = -self.log_evidence(parameters)
            return value.item(), torch.autograd.grad(value, parameters)[0].numpy()

        start = self.log_hyperparameters().double().numpy()
        width = math.log(50)
        bounds = [(value - width, value + width) for value in start]
        return -float(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).fun)
