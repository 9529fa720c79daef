"""Displacement: each component flows to a Normal hub by a constant change of place and scale."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy
import torch
from torch import Tensor

from pyro_mixtures.velocity import chunks
from pyro_mixtures.velocity.precision import double, double_dtype

NODES = {torch.float32: (4, 1.3, 3.0), torch.float64: (6, 2.0, 6.2)}
"""Least number of nodes, and more for each unit of length and of the largest rate: found to
integrate to 1e-6 and 1e-11 (tests/velocity/test_displacement.py)."""

MAX_NODES = 64

LARGEST_RATE = 5.0
"""Rounding grows with the ratio of scales: beyond exp(5) in float64 only."""


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

    The hub is the Normal with the mean and variance of the component's group. In its units,
    :math:`y = (z - \mu_h) / \sigma_h`, the linear flow

    .. math::
        \dot y = \lambda (y + \gamma), \qquad \lambda = \log \frac{\sigma_j}{\sigma_h}, \qquad
        \gamma = \frac{(\mu_j - \mu_h) / \sigma_h}{\sigma_j / \sigma_h - 1}

    (coordinate by coordinate) carries the hub at t = 0 to component j at t = 1, over Normals
    :math:`N_{jt}` whose scales change geometrically. Its velocity depends on the place alone, so
    the current is the velocity times one integral of densities:

    .. math:: w^j(z) = v_j(z) \int_0^1 N_{jt}(z) \, dt, \qquad \nabla \cdot w^j = -(q_j - N_{j0})

    Each of the T nodes of the integral costs two matrix products and one exponential.

    Args:
        z: samples, ``(*B, S, D)``.
        grad: gradient g at the samples, ``(*B, S, D)``.
        log_prob: :math:`\log q(z)`, ``(*B, S, 1)``.
        within: weights :math:`\pi_k / \pi_C` of k in the group C of j, zero outside it,
            ``(*B, K, K)``, or ``(*B, 1, K)`` when all components are one group.
        locs: ``(*B, K, D)``.
        scales: ``(*B, K, D)``.
        precision: the dtype to whose rounding the integral is exact; the arithmetic is done in
            that of ``z`` or, for long paths, in float64.

    Returns:
        ``(*B, S, K)``.
    """
    hub_loc, offset, hub_scale = moment_matched(within, locs, scales)
    ratio = scales / hub_scale  # (*B, K, D)
    ratio.masked_fill_(ratio == 1, 1 + torch.finfo(ratio.dtype).eps)  # a change within rounding
    rate = ratio.log()
    drift = offset.div_(ratio.sub_(1).mul_(hub_scale))
    shift = rate * drift
    alive = within.amax(-2) > 0  # no need to resolve the path of a component without weight
    nodes, weights, rounds = quadrature(rate, shift, alive, precision)
    if rounds and z.dtype != double_dtype(z):
        tensors = double(z, grad, log_prob, within, locs, scales)
        return displacement(*tensors, precision=precision)
    volume = hub_scale.log().sum(-1) + hub_scale.shape[-1] / 2 * math.log(2 * math.pi)
    path = (
        hub_loc,
        hub_scale,
        rate,
        drift,
        shift,
        volume.unsqueeze(-2),
        rate.sum(-1).unsqueeze(-2),
    )
    transport = _one_sample if z.shape[-2] == 1 else _samples
    return transport(z, grad, log_prob, nodes.to(z), weights.to(z), *path)


def _one_sample(
    z, grad, log_prob, nodes, weights, hub_loc, hub_scale, rate, drift, shift, volume, growth
):
    """Without expanding squares: arrays of shape ``(*B, T, K, D)``, some nodes at a time."""
    standard = (z - hub_loc) / hub_scale  # y, (*B, K or 1, D)
    place = (standard + drift).unsqueeze(-3)  # (*B, 1, K, D)
    speed = torch.addcmul(shift, rate, standard).mul_(grad * hub_scale).sum(-1)  # g . v, (*B, K)
    standard, rate = standard.unsqueeze(-3), rate.unsqueeze(-3)

    def densities(nodes: Tensor, weights: Tensor) -> Tensor:
        change = (rate * -nodes).expm1_()  # (*B, T, K, D)
        back = torch.addcmul(standard, change, place, out=change)
        exponent = back.square_().sum(-1).mul_(-0.5)  # (*B, T, K)
        nodes, weights = nodes.squeeze(-1), weights.squeeze(-1)  # (T, 1)
        exponent -= torch.addcmul(volume + log_prob - weights.log(), growth, nodes)
        return exponent.exp_().sum(-2)

    integral = _sum_over_nodes(densities, nodes, weights, rate.numel())
    return (integral * speed).unsqueeze(-2)


def _samples(
    z, grad, log_prob, nodes, weights, hub_loc, hub_scale, rate, drift, shift, volume, growth
):
    """By matrix products: squares are expanded about the hub of the first component."""
    center = hub_loc[..., :1, :]  # (*B, 1, D)
    z, hub_loc = z - center, hub_loc - center
    features = torch.cat([z, z.square(), torch.ones_like(log_prob), log_prob], -1)
    inverse = hub_scale.reciprocal().unsqueeze(-3)  # (*B, 1, K or 1, D)
    start = (hub_loc / hub_scale).unsqueeze(-3)

    def densities(nodes: Tensor, weights: Tensor) -> Tensor:
        change = (-rate.unsqueeze(-3) * nodes).expm1_()  # (*B, T, K, D)
        place = drift.unsqueeze(-3) * change
        change += 1
        place = (start * change).sub_(place)
        change *= inverse  # the sample, carried back and standardized, is change * z - place
        constant = place.square().sum(-1, keepdim=True) / 2
        constant += (growth.unsqueeze(-1) * nodes + volume.unsqueeze(-1)) - weights.log()
        place *= change
        change.square_().mul_(-0.5)
        coefficients = torch.cat([place, change, -constant, -torch.ones_like(constant)], -1)
        exponent = coefficients.flatten(-3, -2) @ features.mT  # (*B, T K, S)
        return exponent.exp_().unflatten(-2, coefficients.shape[-3:-1]).sum(-3).mT

    rows = max(z.shape[-2], 2 * z.shape[-1])
    integral = _sum_over_nodes(densities, nodes, weights, rate[..., 0].numel() * rows)
    velocity = torch.cat([rate, shift * hub_scale - rate * hub_loc], -1)
    speed = velocity @ torch.cat([grad * z, grad], -1).mT  # g . v, (*B, K, S)
    return integral * speed.mT


def _sum_over_nodes(
    function: Callable[[Tensor, Tensor], Tensor], nodes: Tensor, weights: Tensor, elements: int
) -> Tensor:
    """Sum of a function over the nodes, as many at once as the memory budget allows."""
    count = max(1, chunks.MEMORY_BUDGET // (2 * elements * nodes.element_size() + 1))
    parts = zip(nodes.split(count), weights.split(count), strict=True)
    return functools.reduce(Tensor.add_, (function(*part) for part in parts))


def moment_matched(within: Tensor, locs: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of each component's group, the distance from it, and the group's standard deviation.

    Returns:
        ``(*B, K or 1, D)``, ``(*B, K, D)`` and ``(*B, K or 1, D)``.
    """
    if within.shape[-2] == 1:
        mean = within @ locs
        offset = locs - mean
        return mean, offset, (within @ offset.square().addcmul_(scales, scales)).sqrt_()
    dtype = locs.dtype
    within, locs, scales = double(within, locs, scales)  # the groups may be far apart
    center = within[..., :1, :] @ locs
    offset = locs - center
    mean = within @ offset
    between = (within @ offset.square()).sub_(mean.square()).clamp_min_(0)
    stddev = between.add_(within @ scales.square()).sqrt_()
    mean += center
    return mean.to(dtype), (locs - mean).to(dtype), stddev.to(dtype)


def quadrature(
    rate: Tensor, shift: Tensor, alive: Tensor, precision: torch.dtype
) -> tuple[Tensor, Tensor, bool]:
    r"""Nodes in [0, 1] and positive weights for the integrals along all paths.

    In the Fisher metric a path has the constant speed
    :math:`\sqrt{\sum_i \lambda_i^2 (\gamma_i^2 + 2)}`, and the integrand is a bump as wide as the
    inverse of that: the lengths and the rates of the components that are ``alive`` set the number
    of nodes. Beyond ``MAX_NODES`` these get a random offset, which keeps the integral unbiased.

    Args:
        rate: :math:`\lambda`, ``(*B, K, D)``.
        shift: :math:`\lambda \gamma`, ``(*B, K, D)``.
        alive: ``(*B, K)``.
        precision: the dtype to whose rounding the integral shall be exact.

    Returns:
        Nodes and weights, each ``(T, 1, 1)``, and whether the path asks for float64.
    """
    if rate.numel() == 0:
        return *_gauss_legendre(1), False
    norm = torch.linalg.vector_norm
    largest = norm(rate, math.inf, -1)
    length = torch.hypot(norm(shift, dim=-1), norm(rate, dim=-1).mul_(math.sqrt(2)))
    ends = torch.stack([length, largest], -1).mul_(alive.unsqueeze(-1)).flatten(0, -2)
    length, largest = ends.amax(0).tolist()
    base, slope, bend = NODES[precision]
    count = base + slope * length + bend * largest
    if count <= MAX_NODES:
        return *_gauss_legendre(math.ceil(count)), largest > LARGEST_RATE
    return *_shifted_trapezoid(), True


@functools.lru_cache
def _legendre(count: int) -> tuple[Tensor, Tensor]:
    nodes, weights = numpy.polynomial.legendre.leggauss(count)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def _gauss_legendre(count: int) -> tuple[Tensor, Tensor]:
    nodes, weights = _legendre(count)
    return nodes[:, None, None], weights[:, None, None]


def _shifted_trapezoid() -> tuple[Tensor, Tensor]:
    """A randomly shifted trapezoidal rule in a variable that makes the integrand periodic."""
    angle = torch.arange(MAX_NODES, dtype=torch.float64) + torch.rand(())
    angle = (angle * (math.tau / MAX_NODES))[:, None, None]
    return (angle - angle.sin()) / math.tau, (1 - angle.cos()) / MAX_NODES
