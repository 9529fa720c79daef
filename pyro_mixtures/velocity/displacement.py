"""Displacement: each component slides to a Normal hub along a straight line in parameter space."""

from __future__ import annotations

import functools
import math

import numpy
import torch
from torch import Tensor

from pyro_mixtures.velocity.chunks import map_chunks

MAX_NODES = 64


def displacement(
    z: Tensor,
    grad: Tensor,
    log_prob: Tensor,
    within: Tensor,
    locs: Tensor,
    scales: Tensor,
    *,
    precision: torch.dtype,
) -> Tensor:
    r"""Weight contributions :math:`A_j(z) = g \cdot w^j(z) / q(z)` of diagonal Normals.

    The hub is the Normal with the mean and variance of the component's group. With
    :math:`\mu_j(t)` and :math:`\sigma_j(t)` linear from the hub (t = 0) to component j (t = 1),
    and :math:`N_{jt}` the Normal with these, the current

    .. math::
        w^j = \int_0^1 N_{jt}(z) \Big[ (\mu_j - \mu_h)
              + \frac{\sigma_j - \sigma_h}{\sigma_j(t)} (z - \mu_j(t)) \Big] dt

    has :math:`\nabla \cdot w^j = -(q_j - N_{j0})`. All T nodes of the integral are handled at
    once: four matrix products and one exponential of shape ``(S, T K)``.

    Args:
        z: samples, ``(*B, S, D)``.
        grad: gradient g at the samples, ``(*B, S, D)``.
        log_prob: :math:`\log q(z)`, ``(*B, S, 1)``.
        within: weights :math:`\pi_k / \pi_C` of k in the group C of j, zero outside it,
            ``(*B, K, K)``, or ``(*B, 1, K)`` when all components are one group.
        locs: ``(*B, K, D)``.
        scales: ``(*B, K, D)``.
        precision: the dtype to whose rounding the integral is exact; the arithmetic is done in
            that of ``z``.

    Returns:
        ``(*B, S, K)``.
    """
    center = within[..., :1, :] @ locs  # (*B, 1, D)
    z, locs = z - center, locs - center
    hub_loc, hub_scale = (x.expand_as(locs) for x in moment_matched(within, locs, scales))
    alive = within.amax(-2) > 0  # no need to resolve the path of a component without weight
    time, weight = quadrature(hub_loc, hub_scale, locs, scales, alive, precision)  # (*B, T, K)
    nodes = time.shape[-2:]

    # coefficients of the log density and of the velocity at each node, (*B, T K, D)
    t = time.unsqueeze(-1)
    loc = torch.lerp(hub_loc.unsqueeze(-3), locs.unsqueeze(-3), t)
    scale = torch.lerp(hub_scale.unsqueeze(-3), scales.unsqueeze(-3), t)
    stretch = (scales - hub_scale).unsqueeze(-3) / scale  # the velocity is shift + stretch * z
    shift = (locs - hub_loc).unsqueeze(-3) - stretch * loc
    loc, scale, stretch, shift = (x.flatten(-3, -2) for x in (loc, scale, stretch, shift))
    precisions = scale.reciprocal().square()
    scaled = loc * precisions
    constant = (loc * scaled).sum(-1) / 2 + scale.log().sum(-1) - weight.log().flatten(-2)
    constant = constant.unsqueeze(-2) + loc.shape[-1] / 2 * math.log(2 * math.pi)  # (*B, 1, T K)

    def contributions(z: Tensor, grad: Tensor, log_prob: Tensor) -> Tensor:
        log_density = z @ scaled.mT - z.square() @ precisions.mT / 2 - constant
        velocity = grad @ shift.mT + (grad * z) @ stretch.mT  # g . velocity, (*B, S, T K)
        return ((log_density - log_prob).exp() * velocity).unflatten(-1, nodes).sum(-2)

    return map_chunks(contributions, (z, grad, log_prob), 4 * constant.numel())


def moment_matched(within: Tensor, locs: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each component's group, ``(*B, K or 1, D)``.

    ``locs`` should be centred: the variance is a difference of moments.
    """
    mean = within @ locs
    between = (within @ locs.square() - mean.square()).clamp_min(0)
    return mean, (within @ scales.square() + between).sqrt()


def quadrature(
    hub_loc: Tensor,
    hub_scale: Tensor,
    locs: Tensor,
    scales: Tensor,
    alive: Tensor,
    precision: torch.dtype,
) -> tuple[Tensor, Tensor]:
    r"""Times in [0, 1] and positive weights for each component's integral, each ``(*B, T, K)``.

    Equal steps of t would miss a narrow component at the end of a path that starts from a wide
    hub. The integrand, as a function of t, is a bump whose width is the inverse of the path's
    speed in the Fisher metric,
    :math:`v(t)^2 = \sum_i (\dot\mu_i^2 + 2 \dot\sigma_i^2) / \sigma_i(t)^2`.
    Now 1 / v is a power mean of linear functions, so concave, so at least the straight line
    between its ends. Nodes equally dense in the arc length of that line resolve the bump
    everywhere, and its length bounds the path's from above. For D = 1 it is exact. Lengths and
    ratios of scales, of the components that are ``alive``, set the number of nodes. Beyond
    ``MAX_NODES`` these get a random offset, which keeps the integral unbiased.
    """
    square_speed = (locs - hub_loc).square() + 2 * (scales - hub_scale).square()  # (*B, K, D)
    start = (square_speed / hub_scale.square()).sum(-1).sqrt()  # (*B, K)
    end = (square_speed / scales.square()).sum(-1).sqrt()
    bend = (start / end).log()
    bend = torch.where(bend.abs() > 1e-3, bend, 1e-3)  # any value is exact; NaN is a path at rest
    full = torch.expm1(bend)
    length = start * bend / full
    ratio = (scales / hub_scale).log().abs().amax(-1)
    u, weight = _rule(length * alive, ratio * alive, precision)  # (T, 1)
    u, weight, full = u.to(locs), weight.to(locs), full.unsqueeze(-2)
    bend = bend.unsqueeze(-2)  # (*B, 1, K)
    partial = torch.expm1(bend * u)  # (*B, T, K)
    return partial / full, weight * bend * (1 + partial) / full


def _rule(length: Tensor, ratio: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1] for paths of these lengths and logarithms of scale ratios.

    The numbers are those that were found to integrate to a relative error of 1e-11 in float64 and
    1e-6 in float32 (tests/velocity/test_displacement.py).
    """
    base, slope, bend = (8, 2.0, 5.0) if precision == torch.float64 else (4, 1.25, 2.7)
    demand = slope * length.detach() + bend * ratio.detach()
    largest = float(demand.amax()) if demand.numel() else 0.0
    if largest <= MAX_NODES - base:
        return _gauss_legendre(base + math.ceil(largest))
    return _shifted_trapezoid()


@functools.lru_cache
def _legendre(count: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    nodes, weights = numpy.polynomial.legendre.leggauss(count)
    return (nodes[:, None] + 1) / 2, weights[:, None] / 2


def _gauss_legendre(count: int) -> tuple[Tensor, Tensor]:
    nodes, weights = _legendre(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights)


def _shifted_trapezoid() -> tuple[Tensor, Tensor]:
    """A randomly shifted trapezoidal rule in a variable that makes the integrand periodic."""
    angle = torch.arange(MAX_NODES, dtype=torch.float64).unsqueeze(-1) + torch.rand(())
    angle = angle * (math.tau / MAX_NODES)
    return (angle - angle.sin()) / math.tau, (1 - angle.cos()) / MAX_NODES
