"""Mixtures and other densities whose normalizer is known by construction."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from scipy.stats import chi2, f
from torch import Tensor
from torch.nn.functional import softplus

from experiments.modes.targets.target import (
    Evidence,
    Target,
    normal,
    normal_draws,
    one_mode,
)

EXACT = Evidence(0.0, 0.0, "by construction")

DRAWS = 10_000
"""Of each Normal in the plane, by which the masses of regions are had."""


def factor_model(
    log_density: Callable[[Tensor], Tensor], dimension: int, scale: float
) -> Callable[[], None]:
    """A Pyro model of a density: a wide Normal, which a factor takes away again."""

    def model() -> None:
        prior = dist.Normal(torch.zeros(dimension, dtype=torch.float64), scale).to_event(1)
        z: Any = pyro.sample("z", prior)
        value = log_density(z.reshape(-1, dimension)).reshape(z.shape[:-1])
        pyro.factor("target", value - prior.log_prob(z))

    return model


def normal_mixture(
    name: str, weights: Tensor, locs: Tensor, covariances: Tensor, *, spread: float
) -> Target:
    """A mixture of Normals; starts are drawn from ``N(0, spread^2)``."""
    modes, dimension = locs.shape
    roots = torch.linalg.cholesky(covariances)
    whitening = torch.linalg.inv(roots)  # (K, D, D)
    columns = whitening.reshape(-1, dimension).T  # (D, K D)
    origins = (whitening @ locs.unsqueeze(-1)).flatten()  # (K D,)
    log_dets = roots.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constants = weights.log() - log_dets - 0.5 * dimension * math.log(2 * math.pi)

    def parts(z: Tensor) -> Tensor:
        white = (z @ columns - origins).unflatten(-1, (modes, dimension))  # (S, K, D)
        return constants - 0.5 * white.square().sum(-1)

    def log_density(z: Tensor) -> Tensor:
        return parts(z).logsumexp(-1)

    masses = weights
    if dimension == 2:  # in the plane they overlap, and a region's mass is not its Normal's weight
        noise = torch.randn(
            modes, DRAWS, 2, generator=torch.Generator().manual_seed(0), dtype=weights.dtype
        )
        regions = parts((locs.unsqueeze(1) + noise @ roots.mT).flatten(0, 1)).argmax(-1)
        shares = (weights / DRAWS).repeat_interleave(DRAWS)
        masses = torch.zeros_like(weights).index_add(0, regions, shares)
    return Target(
        name,
        dimension,
        log_density,
        normal_draws(0.0, spread, dimension),
        EXACT,
        mode_of=lambda z: parts(z).argmax(-1),
        mode_weights=masses,
        model=factor_model(log_density, dimension, spread),
        plane=(0, 1),
        floors=constants - 0.5 * float(chi2.ppf(0.999, dimension)),
    )


def random_normals(
    name: str, dimension: int, box: float, *, noise: float, equal: bool = False, seed: int = 0
) -> Target:
    """Ten Normals at random places of the box ``(-box, box)^D``."""
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    locs = box * (2 * torch.rand(10, dimension, **options) - 1)
    roots = 0.1 * dimension * box / 50 * torch.randn(10, dimension, dimension, **options)
    covariances = roots.mT @ roots + noise * torch.eye(dimension, dtype=torch.float64)
    ranks = torch.arange(1.0, 11.0, dtype=torch.float64)
    weights = torch.full_like(ranks, 0.1) if equal else ranks / 55
    return normal_mixture(name, weights, locs, covariances, spread=math.sqrt(0.4) * box)


def ten_normals(dimension: int, box: float = 50.0) -> Target:
    """Ten Normals of weights k / 55 in a box of +-50 or +-10."""
    noise = 1.0 if box == 50 else 0.25
    name = f"ten_normals_{dimension}" + ("" if box == 50 else "_near")
    return random_normals(name, dimension, box, noise=noise)


def published_normals(dimension: int) -> Target:
    """GMM20 and GMM100: ten Normals of equal weights."""
    return random_normals(f"gmm{dimension}", dimension, 50.0, noise=1.0, equal=True)


def forty_normals() -> Target:
    """Forty Normals of one size in the plane."""
    generator = torch.Generator().manual_seed(0)
    locs = 80 * torch.rand(40, 2, generator=generator, dtype=torch.float64) - 40
    weights = torch.full((40,), 1 / 40, dtype=torch.float64)
    variance = softplus(torch.tensor(1.0, dtype=torch.float64)).square()
    covariances = (variance * torch.eye(2, dtype=torch.float64)).expand(40, 2, 2)
    return normal_mixture("forty_normals", weights, locs, covariances, spread=math.sqrt(0.4) * 40)


def needle() -> Target:
    """A Normal, and half of the mass in a needle that no start comes near to."""
    locs = torch.zeros(2, 10, dtype=torch.float64)
    locs[1] = 25.0
    scales = torch.tensor([1.0, 1e-4], dtype=torch.float64).square()
    covariances = scales.reshape(2, 1, 1) * torch.eye(10, dtype=torch.float64)
    weights = torch.full((2,), 0.5, dtype=torch.float64)
    return normal_mixture("needle", weights, locs, covariances, spread=3.0)


def student(x: Tensor, degrees: float) -> Tensor:
    """The log density of a Student t."""
    constant = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    power = (degrees + 1) / 2
    return constant - 0.5 * math.log(degrees * math.pi) - power * (x.square() / degrees).log1p()


def star() -> Target:
    """Five curved arms with heavy tails in the plane."""
    weights = torch.tensor([0.1, 0.15, 0.2, 0.25, 0.3], dtype=torch.float64)
    angles = 2 * math.pi / 5 * torch.arange(5, dtype=torch.float64)

    def parts(z: Tensor) -> Tensor:
        x, y = z[:, :1], z[:, 1:]
        along = x * angles.cos() + y * angles.sin() - 3  # (S, 5)
        across = y * angles.cos() - x * angles.sin() - 0.2 * along.clamp(-6, 6).square()
        return weights.log() + student(along, 4) + student(across / 0.1, 4) - math.log(0.1)

    def log_density(z: Tensor) -> Tensor:
        return parts(z).logsumexp(-1)

    return Target(
        "star",
        2,
        log_density,
        normal_draws(0.0, 5.0, 2),
        EXACT,
        mode_of=lambda z: parts(z).argmax(-1),
        mode_weights=weights,
        model=factor_model(log_density, 2, 5.0),
        plane=(0, 1),
        floors=-11.0,
    )


def student_mixture(dimension: int, modes: int, box: float) -> Target:
    """Student t with two degrees of freedom, of random covariances as Lin et al. draw them."""
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    locs = box * (2 * torch.rand(modes, dimension, **options) - 1)
    roots = 0.1 * dimension * torch.randn(modes, dimension, dimension, **options)
    precisions = roots.mT @ roots + torch.eye(dimension, dtype=torch.float64)
    whitening = torch.linalg.cholesky(precisions).mT  # (K, D, D)
    columns = whitening.reshape(-1, dimension).T  # (D, K D)
    origins = (whitening @ locs.unsqueeze(-1)).flatten()  # (K D,)
    weights = torch.full((modes,), 1 / modes, dtype=torch.float64)
    power = (2 + dimension) / 2
    constants = weights.log() + whitening.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constants = constants + math.lgamma(power) - 0.5 * dimension * math.log(2 * math.pi)

    def parts(z: Tensor) -> Tensor:
        white = (z @ columns - origins).unflatten(-1, (modes, dimension))  # (S, K, D)
        return constants - power * (white.square().sum(-1) / 2).log1p()

    def log_density(z: Tensor) -> Tensor:
        return parts(z).logsumexp(-1)

    return Target(
        f"student_{dimension}",
        dimension,
        log_density,
        normal_draws(0.0, math.sqrt(0.4) * box, dimension),
        EXACT,
        mode_of=lambda z: parts(z).argmax(-1),
        mode_weights=weights,
        model=factor_model(log_density, dimension, math.sqrt(0.4) * box),
        plane=(0, 1),
        floors=constants - power * math.log1p(dimension / 2 * float(f.ppf(0.999, dimension, 2))),
    )


def funnel() -> Target:
    """Nine Normals whose scale is latent."""

    def log_density(z: Tensor) -> Tensor:
        return normal(z[:, 0], 0.0, 3.0) + normal(z[:, 1:], 0.0, (z[:, :1] / 2).exp()).sum(-1)

    def model() -> None:
        zero = torch.zeros(9, dtype=torch.float64)
        x: Any = pyro.sample("x", dist.Normal(zero[0], 3.0))
        pyro.sample("y", dist.Normal(zero, (x / 2).exp().unsqueeze(-1)).to_event(1))

    def draws(count: int, generator: torch.Generator) -> Tensor:
        x = normal_draws(0.0, 3.0, 1)(count, generator)
        return torch.cat([x, (x / 2).exp() * normal_draws(0.0, 1.0, 9)(count, generator)], -1)

    one = torch.ones(1, dtype=torch.float64)
    return Target("funnel", 10, log_density, draws, EXACT, one_mode, one, model, plane=(0, 1))


def many_well() -> Target:
    """Sixteen pairs of a double well and a Normal."""
    points = 20.0 * (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 - 10
    well = -points.pow(4) + 6 * points.square() + points / 2
    total = well.logsumexp(0)
    right = (well[points > 0].logsumexp(0) - total).exp()
    value = 16 * (total.item() + math.log(20.0 / 200_000) + 0.5 * math.log(2 * math.pi))
    bits = 2 ** torch.arange(16)
    rights = (torch.arange(2**16).unsqueeze(-1) // bits % 2).sum(-1)  # (2^16,)

    def log_density(z: Tensor) -> Tensor:
        x, y = z[:, :16], z[:, 16:]
        return (-x.pow(4) + 6 * x.square() + x / 2 - y.square() / 2).sum(-1)

    return Target(
        "many_well",
        32,
        log_density,
        normal_draws(0.0, 2.0, 32),
        Evidence(value, 0.0, "quadrature"),
        mode_of=lambda z: ((z[:, :16] > 0) * bits).sum(-1),
        mode_weights=right**rights * (1 - right) ** (16 - rights),
        model=factor_model(log_density, 32, 2.0),
        plane=(0, 1),
        floors=119.2,
    )
