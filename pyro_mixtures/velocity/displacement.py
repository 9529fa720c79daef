"""Displacement: each component flows to a Normal hub by a constant change of place and scale."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from pyro_mixtures.numerics import chunks
from pyro_mixtures.numerics.opaque import opaque
from pyro_mixtures.numerics.precision import double, double_dtype

NODES = {torch.float32: (4, 1.3, 3.0), torch.float64: (6, 2.0, 6.2)}
"""Least number of nodes, and more for each unit of length and of the largest rate: found to
integrate to 1e-6 and 1e-11 (tests/velocity/test_displacement.py)."""

MAX_NODES = 64

TINY = 1e-30
"""Relative difference of scales that are equal: without one there is no finite gamma."""

FARTHEST = 0.7
"""Bound of a hub's departure, in its standard deviations and logarithms of scales together: a hub
that is wide in many coordinates has heavy tails."""

LARGEST_RATE = 5.0
"""Rounding grows with the ratio of scales: beyond exp(5) in float64 only."""


@opaque
def displacement(
    z: Tensor,
    grad: Tensor,
    log_prob: Tensor,
    within: Tensor,
    locs: Tensor,
    scales: Tensor,
    control_var: Tensor | None = None,
    *,
    precision: torch.dtype,
) -> Tensor:
    r"""Weight contributions :math:`A_j(z) = g \cdot w^j(z) / q(z)` of diagonal Normals.

    The hub is the Normal with the mean and variance of the component's group, or one at some
    distance from that (:func:`departed`). In its units,
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
        control_var: the hub's departure, averaged over the group, ``(*B, 2, K, D)``.
        precision: the dtype to whose rounding the integral is exact; the arithmetic is done in
            that of ``z`` or, for long paths, in float64.

    Returns:
        ``(*B, S, K)``.
    """
    hub_loc, offset, hub_scale = moment_matched(within, locs, scales)
    if control_var is not None:
        hub_loc, offset, hub_scale = departed(hub_loc, offset, hub_scale, within, control_var)
    # never zero: where the scales agree the flow is a translation to rounding
    excess = (scales - hub_scale).div_(hub_scale).add_(TINY)  # (*B, K, D)
    rate = excess.log1p()
    drift = offset.div_(excess.mul_(hub_scale))
    shift = rate * drift
    nodes, log_weights, needs_double = quadrature(shift, rate, within, precision)
    if needs_double and z.dtype != double_dtype(z):
        tensors = [z, grad, log_prob, within, locs, scales]
        tensors += [] if control_var is None else [control_var]
        return displacement(*double(*tensors), precision=precision)
    volume = hub_scale.log().sum(-1) + hub_scale.shape[-1] / 2 * math.log(2 * math.pi)
    volume, growth = volume.unsqueeze(-2), rate.sum(-1).unsqueeze(-2)  # (*B, 1, K or 1)
    path = Path(nodes, log_weights, hub_loc, hub_scale, rate, drift, shift, volume, growth)
    transport = _one_sample if z.shape[-2] == 1 else _samples
    return transport(z, grad, log_prob, path)


class Path(NamedTuple):
    r"""The flow from the hub to each component, and the nodes of the integral along it.

    Args:
        nodes: of the time t, ``(T, 1)``.
        log_weights: logarithms of their weights, ``(T, 1)``.
        hub_loc: ``(*B, K or 1, D)``, as is the next.
        hub_scale: standard deviations.
        rate: :math:`\lambda`, ``(*B, K, D)``, as are the next two.
        drift: :math:`\gamma`.
        shift: :math:`\lambda \gamma`.
        volume: the logarithm of the hub's normalization, ``(*B, 1, K or 1)``.
        growth: sums of the rates, ``(*B, 1, K)``.
    """

    nodes: Tensor
    log_weights: Tensor
    hub_loc: Tensor
    hub_scale: Tensor
    rate: Tensor
    drift: Tensor
    shift: Tensor
    volume: Tensor
    growth: Tensor


def _one_sample(z: Tensor, grad: Tensor, log_prob: Tensor, path: Path) -> Tensor:
    """Without expanding squares: arrays of shape ``(*B, T, K, D)``, some nodes at a time."""
    nodes, log_weights, hub_loc, hub_scale, rate, drift, shift, volume, growth = path
    standard = (z - hub_loc).div_(hub_scale)  # y, (*B, K or 1, D)
    speed = torch.addcmul(shift, rate, standard).mul_(grad * hub_scale).sum(-1)  # g . v, (*B, K)
    place = (standard + drift).unsqueeze(-3)  # (*B, 1, K, D)
    standard, rate = standard.unsqueeze(-3), rate.unsqueeze(-3)
    constant = volume + log_prob  # (*B, 1, K or 1)

    def densities(nodes: Tensor, log_weights: Tensor) -> Tensor:
        change = (rate * -nodes.unsqueeze(-1)).expm1_()  # (*B, T, K, D)
        back = torch.addcmul(standard, change, place, out=change)
        exponent = back.square_().sum(-1).mul_(-0.5)  # (*B, T, K)
        exponent -= torch.addcmul(constant - log_weights, growth, nodes)
        return exponent.exp_().sum(-2)

    integral = sum_over_nodes(densities, nodes, log_weights, rate.numel())
    return (integral * speed).unsqueeze(-2)


def _samples(z: Tensor, grad: Tensor, log_prob: Tensor, path: Path) -> Tensor:
    """By matrix products: squares are expanded about the hub of the first component."""
    nodes, log_weights, hub_loc, hub_scale, rate, drift, shift, volume, growth = path
    center = hub_loc[..., :1, :]  # (*B, 1, D)
    z, hub_loc = z - center, hub_loc - center
    features = torch.cat([z, z.square(), torch.ones_like(log_prob), log_prob], -1)
    offset = volume.unsqueeze(-1)

    def densities(nodes: Tensor, log_weights: Tensor) -> Tensor:
        change, place = standardization(nodes, rate, drift, hub_loc, hub_scale)
        nodes = nodes.unsqueeze(-1)
        constant = place.square().sum(-1, keepdim=True) / 2
        constant += torch.addcmul(offset - log_weights.unsqueeze(-1), growth.unsqueeze(-1), nodes)
        place *= change
        change.square_().mul_(-0.5)
        coefficients = torch.cat([place, change, -constant, -torch.ones_like(constant)], -1)
        exponent = coefficients.flatten(-3, -2) @ features.mT  # (*B, T K, S)
        return exponent.exp_().unflatten(-2, coefficients.shape[-3:-1]).sum(-3).mT

    rows = max(z.shape[-2], 2 * z.shape[-1])
    integral = sum_over_nodes(densities, nodes, log_weights, rate[..., 0].numel() * rows)
    velocity = torch.cat([rate, shift * hub_scale - rate * hub_loc], -1)
    speed = velocity @ torch.cat([grad * z, grad], -1).mT  # g . v, (*B, K, S)
    return integral * speed.mT


def standardization(
    nodes: Tensor, rate: Tensor, drift: Tensor, hub_loc: Tensor, hub_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """What carries a sample z back along the path and standardizes it: ``factor * z - offset``.

    Returns:
        The factor and the offset, each ``(*B, T, K, D)``.
    """
    factor = (rate.unsqueeze(-3) * -nodes.unsqueeze(-1)).expm1_()
    offset = drift.unsqueeze(-3) * factor
    factor += 1
    offset = ((hub_loc / hub_scale).unsqueeze(-3) * factor).sub_(offset)
    factor *= hub_scale.reciprocal().unsqueeze(-3)
    return factor, offset


def sum_over_nodes(
    function: Callable[[Tensor, Tensor], Tensor],
    nodes: Tensor,
    log_weights: Tensor,
    elements: int,
) -> Tensor:
    """Sum of a function over the nodes, as many at once as the memory budget allows.

    Args:
        function: maps nodes and logarithms of their weights to the sum over them.
        nodes: ``(T, 1)``.
        log_weights: ``(T, 1)``.
        elements: elements of the largest intermediate array for each node.
    """
    count = max(1, chunks.MEMORY_BUDGET // (2 * elements * nodes.element_size() + 1))
    if count >= len(nodes):
        return function(nodes, log_weights)
    parts = zip(nodes.split(count), log_weights.split(count), strict=True)
    return functools.reduce(Tensor.add_, (function(*part) for part in parts))


def moment_matched(within: Tensor, locs: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of each component's group, the distance from it, and the group's standard deviation.

    Returns:
        ``(*B, K or 1, D)``, ``(*B, K, D)`` and ``(*B, K or 1, D)``.
    """
    if within.shape[-2] == 1:
        mean = within @ locs
        offset = locs - mean
        return mean, offset, (within @ torch.addcmul(offset.square(), scales, scales)).sqrt_()
    dtype = locs.dtype
    within, locs, scales = double(within, locs, scales)  # the groups may be far apart
    center = within[..., :1, :] @ locs
    offset = locs - center
    moments = within @ torch.cat([offset, offset.square(), scales.square()], -1)
    mean, square, variance = moments.split(locs.shape[-1], -1)  # (*B, K, D)
    stddev = (square - mean.square()).clamp_min_(0).add_(variance).sqrt_()
    mean = mean + center
    return mean.to(dtype), (locs - mean).to(dtype), stddev.to(dtype)


def departed(
    hub_loc: Tensor, offset: Tensor, hub_scale: Tensor, within: Tensor, control_var: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Hubs at some distance from the moment-matched ones.

    .. math::
        \mu_h + \sigma_h \frac{a_1}{\rho}, \quad \sigma_h \exp \frac{a_2}{\rho}, \qquad
        a = \sum_{k \in C} \frac{\pi_k}{\pi_C} c_k, \quad \rho = \sqrt{1 + |a|^2 / r^2}

    Any hub will do, so that r = ``FARTHEST`` bounds how far a learned one can go astray.

    Args:
        hub_loc: what :func:`moment_matched` returns, as are the next two.
        offset: of the components from it.
        hub_scale: the group's standard deviation.
        within: as for :func:`displacement`.
        control_var: c, ``(*B, 2, K, D)``.

    Returns:
        The three for the departed hubs.
    """
    departure = within.unsqueeze(-3) @ control_var  # (*B, 2, K or 1, D)
    departure = departure * shrinkage(departure)
    shift, log_scale = departure.unbind(-3)
    shift = shift * hub_scale
    return hub_loc + shift, offset - shift, hub_scale * log_scale.exp()


def shrinkage(departure: Tensor) -> Tensor:
    r""":math:`1 / \rho` of :func:`departed`, ``(*B, 2, K or 1, D) -> (*B, 1, K or 1, 1)``."""
    square = departure.square().sum((-3, -1), keepdim=True)
    return (1 + square / FARTHEST**2).rsqrt()


def quadrature(
    shift: Tensor, rate: Tensor, within: Tensor, precision: torch.dtype
) -> tuple[Tensor, Tensor, bool]:
    r"""Nodes in [0, 1] and logarithms of their weights for the integrals along all paths.

    In the Fisher metric a path has the constant speed
    :math:`\sqrt{\sum_i \lambda_i^2 (\gamma_i^2 + 2)}`, and the integrand is a bump as wide as the
    inverse of that: the lengths and the rates of the components that have weight set the number
    of nodes. Beyond ``MAX_NODES`` these get a random offset, which keeps the integral unbiased
    (and takes a number from torch's generator in the backward pass).

    Args:
        shift: :math:`\lambda \gamma`, ``(*B, K, D)``.
        rate: :math:`\lambda`, ``(*B, K, D)``.
        within: as for :func:`displacement`.
        precision: the dtype to whose rounding the integral shall be exact.

    Returns:
        Nodes and logarithms of weights, each ``(T, 1)``, and whether the path asks for float64.
    """
    if rate.numel() == 0:
        return *gauss_legendre(1, rate.dtype, rate.device), False
    square = rate.square()
    sizes = torch.stack([shift.square().sum(-1), square.sum(-1), square.amax(-1)])
    alive = within.amax(-2).sign()  # no need to resolve the path of a component without weight
    distance, spread, largest = (sizes * alive).flatten(1).amax(-1).tolist()
    base, slope, bend = NODES[precision]
    count = base + slope * math.sqrt(distance + 2 * spread) + bend * math.sqrt(largest)
    if count <= MAX_NODES:
        rule = gauss_legendre(math.ceil(count), rate.dtype, rate.device)
        return *rule, largest > LARGEST_RATE**2
    return *shifted_trapezoid(rate, MAX_NODES), True


@functools.lru_cache(maxsize=256)
def gauss_legendre(count: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes in [0, 1] and logarithms of their weights, each ``(T, 1)``."""
    nodes, weights = numpy.polynomial.legendre.leggauss(count)
    columns = numpy.stack([(nodes + 1) / 2, numpy.log(weights / 2)])[..., None]
    with torch.inference_mode(False):  # what is kept has to serve everywhere
        nodes, log_weights = torch.from_numpy(columns).to(dtype).to(device)
    return nodes, log_weights


def shifted_trapezoid(like: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """A randomly shifted trapezoidal rule in a variable that makes the integrand periodic."""
    angle = torch.arange(count, dtype=torch.float64).unsqueeze(-1) + torch.rand(())
    angle = angle * (math.tau / count)
    nodes, weights = (angle - angle.sin()) / math.tau, (1 - angle.cos()) / count
    return nodes.to(like), weights.log().to(like)
