"""Displacement of products of one smooth distribution by place and scale."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_mixtures.numerics.precision import LEAST_EXPONENT, largest
from pyro_mixtures.velocity.displacement import (
    MAX_NODES,
    TINY,
    gauss_legendre,
    moment_matched,
    shifted_trapezoid,
)

NODES = {torch.float32: (6, 3.2), torch.float64: (8, 6.0)}
"""Least number of nodes, and more for each unit of speed: found to integrate Logistic, Gumbel and
Cauchy distributions to 1e-6 and 1e-10 (tests/velocity/test_location_scale_displacement.py)."""


def location_scale_displacement(
    z: Tensor,
    log_prob: Tensor,
    within: Tensor,
    locs: Tensor,
    scales: Tensor,
    log_density: Callable[[Tensor], Tensor],
) -> Tensor:
    r"""Currents :math:`w^j(z) / q(z)` of components that flow to a hub of their own distribution.

    The path is that of :func:`~pyro_mixtures.velocity.displacement.displacement`, and so is the
    current, the velocity at the place times one integral of densities; but these have no expanded
    squares, so that each node costs arrays of shape ``(..., K, D)``. The distribution has to be
    smooth: a kink would leave the integral with few digits.

    Args:
        z: samples, ``(..., D)``.
        log_prob: :math:`\log q(z)`, ``(..., K or 1)``.
        within: weights :math:`\pi_k / \pi_C` of k in the group C of j, ``(*B, K or 1, K)``.
        locs: ``(*B, K, D)``.
        scales: ``(*B, K, D)``.
        log_density: of the distribution with location zero and scale one, elementwise.

    Returns:
        ``(..., K, D)``.
    """
    hub_loc, offset, hub_scale = moment_matched(within, locs, scales)
    excess = (scales - hub_scale) / hub_scale + TINY  # as in displacement
    rate = excess.log1p()  # (*B, K, D)
    drift = offset / (excess * hub_scale)
    shift = rate * drift
    standard = (z.unsqueeze(-2) - hub_loc) / hub_scale  # (..., K, D)
    place = standard + drift
    volume = hub_scale.log().sum(-1) + log_prob  # (..., K)
    growth = rate.sum(-1)
    integral = torch.zeros_like(volume + growth)
    # where no sample gets, that is, q is zero to rounding
    bound = math.log(torch.finfo(integral.dtype).max) - 10
    for node, log_weight in zip(*_rule(shift, rate, within), strict=True):
        back = torch.addcmul(standard, (rate * -node).expm1(), place)
        exponent = log_density(back).sum(-1) - node * growth - volume + log_weight
        integral = integral + exponent.clamp(LEAST_EXPONENT[exponent.dtype], bound).exp()
    return integral.unsqueeze(-1) * torch.addcmul(shift, rate, standard) * hub_scale


def _rule(shift: Tensor, rate: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and logarithms of their weights, each ``(T,)``, for the fastest path and the longest.

    A singularity of the density is as near to the path as that is slow. Where values cannot be
    looked at, the nodes have a random offset, as those of too fast a path.
    """
    alive = within.amax(-2).sign().unsqueeze(-1)
    speed = (shift.abs() + 3 * rate.abs()) * alive
    length = (shift.square() + 2 * rate.square()).sum(-1, keepdim=True).sqrt() * alive
    fastest = largest(torch.maximum(speed, length))
    base, slope = NODES[rate.dtype]
    if fastest is None:
        nodes, log_weights = shifted_trapezoid(rate, MAX_NODES)
    elif base + slope * fastest > 4 * MAX_NODES:
        nodes, log_weights = shifted_trapezoid(rate, 4 * MAX_NODES)
    else:
        count = math.ceil(base + slope * max(fastest, 0))
        nodes, log_weights = gauss_legendre(count, rate.dtype, rate.device)
    return nodes.flatten(), log_weights.flatten()
