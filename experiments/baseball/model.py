"""Data and model: partial pooling of batting averages (Efron and Morris 1975)."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

AT_BATS = 45
HITS = {
    "Clemente": 18,
    "F. Robinson": 17,
    "F. Howard": 16,
    "Johnstone": 15,
    "Berry": 14,
    "Spencer": 14,
    "Kessinger": 13,
    "L. Alvarado": 12,
    "Santo": 11,
    "Swoboda": 11,
    "Petrocelli": 10,
    "E. Rodriguez": 10,
    "Scott": 10,
    "Unser": 10,
    "Williams": 10,
    "Campaneris": 9,
    "Munson": 8,
    "Alvis": 7,
}
"""Hits of 18 players in their first 45 at-bats of the season 1970."""

COORDINATES = ("logit phi", "log(kappa - 1)", *(f"logit theta [{name}]" for name in HITS))
"""The 20 coordinates of the unconstrained space."""


def model() -> None:
    """Partial pooling of 18 batting averages.

    phi ~ Uniform(0, 1), kappa ~ Pareto(1, 1.5), theta_i ~ Beta(phi kappa, (1 - phi) kappa), and 45
    Bernoulli trials for each player.
    """
    hits = torch.tensor(list(HITS.values()), dtype=torch.get_default_dtype())
    phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
    kappa = pyro.sample("kappa", dist.Pareto(1.0, 1.5))
    with pyro.plate("players", len(HITS)):
        theta = pyro.sample("theta", dist.Beta(phi * kappa, (1 - phi) * kappa))
        # 45 Bernoulli trials: a Binomial without its coefficient
        pyro.factor("trials", hits * theta.log() + (AT_BATS - hits) * torch.log1p(-theta))


def log_joint(z: Tensor) -> Tensor:
    """Log density of :func:`model` in the unconstrained space, ``(*X, 20) -> (*X,)``."""
    hits = torch.tensor(list(HITS.values()), dtype=z.dtype, device=z.device)
    phi, excess, theta = z[..., 0], z[..., 1], z[..., 2:]
    kappa = 1 + excess.exp()
    alpha, beta = phi.sigmoid() * kappa, (-phi).sigmoid() * kappa
    log_phi = logsigmoid(phi) + logsigmoid(-phi)  # uniform, times the Jacobian
    log_kappa = math.log(1.5) - 2.5 * kappa.log() + excess
    normalizer = torch.lgamma(kappa) - torch.lgamma(alpha) - torch.lgamma(beta)
    # prior, Jacobian and trials are all powers of theta and 1 - theta
    powers = (alpha.unsqueeze(-1) + hits) * logsigmoid(theta)
    powers = powers + (beta.unsqueeze(-1) + AT_BATS - hits) * logsigmoid(-theta)
    return log_phi + log_kappa + len(HITS) * normalizer + powers.sum(-1)
