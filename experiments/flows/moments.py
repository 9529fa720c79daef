"""Densities of maximum entropy under given moments, whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Dirichlet

ALPHA = (1.0, 2.0, 3.0)
"""Of the Dirichlet distribution (Loaiza-Ganem, Gao and Cunningham 2017)."""
DEPTH = 8.0
"""Nats of the barrier between the two modes, at 2 and -2."""
TILT = 0.1
"""Slope of their log density: the right one has the greater weight."""


@dataclass(frozen=True)
class Moments:
    """Constraints, and the density of maximum entropy that has them.

    Attributes:
        features: of latents ``(*S, 2)``: the statistics ``(*S, M)``, in units of their standard
            deviations under the truth.
        expected: of these, ``(M,)``.
        white: their map to units in which their covariance under the truth is the identity,
            ``(M, M)``: multipliers then converge alike in all directions.
        log_volume: what the map from the latents to the support multiplies areas by, ``(*S)``.
        points: on the support, in the plane, of latents ``(*S, 2)``.
        entropy: of the truth.
        draw: of a count and a generator, points of the truth, ``(count, 2)``.
        spread: of the first means.
    """

    features: Callable[[Tensor], Tensor]
    expected: Tensor
    white: Tensor
    log_volume: Callable[[Tensor], Tensor]
    points: Callable[[Tensor], Tensor]
    entropy: float
    draw: Callable[[int, torch.Generator], Tensor]
    spread: float


def whitening(covariance: Tensor) -> Tensor:
    """A matrix W, in single precision, with ``W C W^T`` the identity."""
    return torch.linalg.inv(torch.linalg.cholesky(covariance)).float()


def log_simplex(latents: Tensor) -> Tensor:
    """Logarithms of points of the simplex, ``(*S, 2) -> (*S, 3)``."""
    last = torch.zeros_like(latents[..., :1])
    return torch.cat([latents, last], -1).log_softmax(-1)


def dirichlet() -> Moments:
    """Dirichlet(1, 2, 3) by the means of the logarithms; densities are of two coordinates."""
    alpha = torch.tensor(ALPHA, dtype=torch.float64)
    total = alpha.sum()
    covariance = torch.polygamma(1, alpha).diag() - torch.polygamma(1, total)
    scale = covariance.diagonal().sqrt()
    expected = (alpha.digamma() - total.digamma()) / scale

    def draw(count: int, generator: torch.Generator) -> Tensor:
        with torch.random.fork_rng([]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            return Dirichlet(alpha).sample((count,))[:, :2].float()

    return Moments(
        features=lambda latents: log_simplex(latents) / scale.to(latents),
        expected=expected.float(),
        white=whitening(covariance / scale / scale.unsqueeze(-1)),
        log_volume=lambda latents: log_simplex(latents).sum(-1),
        points=lambda latents: log_simplex(latents).exp()[..., :2],
        entropy=Dirichlet(alpha).entropy().item(),
        draw=draw,
        spread=1.0,
    )


def two_modes() -> Moments:
    r"""Means of x, x^2, x^4, y and y^2 of a double well in x and a standard Normal in y.

    .. math:: \log p = -\tfrac{1}{2} (x^2 - 4)^2 + 0.1 \, x - \tfrac{1}{2} y^2 + \text{const}
    """
    line = torch.linspace(-5, 5, 200_001, dtype=torch.float64)
    well = -DEPTH / 16 * (line.square() - 4).square() + TILT * line
    step = float(line[1] - line[0])
    log_density = well - well.logsumexp(0) - math.log(step)
    mass = log_density.exp() * step
    powers = torch.stack([line, line.square(), line.pow(4)], -1)
    mean = mass @ powers  # (3,)
    apart = powers - mean
    covariance = torch.block_diag((apart.T * mass) @ apart, torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    scales = covariance.diagonal().sqrt()
    expected = torch.cat([mean, torch.tensor([0.0, 1.0]).double()]) / scales

    def features(latents: Tensor) -> Tensor:
        x, y = latents.unbind(-1)
        statistics = torch.stack([x, x.square(), x.pow(4), y, y.square()], -1)
        return statistics / scales.to(latents)

    def draw(count: int, generator: torch.Generator) -> Tensor:
        index = mass.multinomial(count, replacement=True, generator=generator)
        return torch.stack([line[index].float(), torch.randn(count, generator=generator)], -1)

    own = -float(mass @ log_density)
    return Moments(
        features=features,
        expected=expected.float(),
        white=whitening(covariance / scales / scales.unsqueeze(-1)),
        log_volume=lambda latents: torch.zeros_like(latents[..., 0]),
        points=lambda latents: latents,
        entropy=own + 0.5 * math.log(2 * math.pi * math.e),
        draw=draw,
        spread=1.5,
    )


PROBLEMS: dict[str, Callable[[], Moments]] = {"Dirichlet": dirichlet, "two modes": two_modes}
"""By name."""


@torch.no_grad()
def mmd_p_value(first: Tensor, second: Tensor, generator: torch.Generator) -> float:
    """Of a permutation test of the maximum mean discrepancy, of as many points ``(N, 2)`` of each.

    The kernel is Gaussian, of the median distance; there are 1,000 permutations.
    """
    points = torch.cat([first, second]).double()
    squared = torch.cdist(points, points).square()
    kernel = (-squared / squared[squared > 0].median()).exp()  # (2N, 2N)
    kernel.fill_diagonal_(0)  # the same for all permutations
    signs = torch.ones(2 * len(first), dtype=torch.float64)
    signs[len(first) :] = -1
    orders = [torch.randperm(len(signs), generator=generator) for _ in range(1000)]
    all_signs = torch.stack([signs, *(signs[order] for order in orders)])  # (1001, 2N)
    found = ((all_signs @ kernel) * all_signs).sum(-1)
    return float((found >= found[0] * (1 - 1e-12)).double().mean())
