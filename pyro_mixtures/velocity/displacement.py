"""Displacement: each component flows to a Normal hub by a constant change of place and scale."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy
import torch
from torch import Tensor

from pyro_mixtures.numerics.opaque import opaque
from pyro_mixtures.numerics.precision import double, double_dtype
from pyro_mixtures.velocity.displacement_integrals import (
    SERIES_RATE,
    Path,
    Rule,
    at_one_sample,
    at_samples,
)

NODES = {torch.float32: (4, 1.3, 3.0), torch.float64: (6, 2.0, 6.2)}
"""Least number of nodes, and more for each unit of length and of the largest rate: found to
integrate to 1e-6 and 1e-11 (tests/velocity/test_displacement.py), with at least a node to spare.
That is what rounding leaves of float32: the logarithms of densities, whose sizes are the squared
length of the path, have errors of 1e-6 to 1e-4 themselves."""

MAX_NODES = 64

TINY = 1e-30
"""Relative difference of scales that are equal: without one there is no finite gamma."""

FARTHEST = 0.7
"""Bound of a hub's departure, in its standard deviations and logarithms of scales together: a hub
that is wide in many coordinates has heavy tails."""

LARGEST_RATE = 5.0
"""Rounding grows with the ratio of scales: beyond exp(5) in float64 only."""

SMALL_PRODUCT = 400
"""Multiplications of a product of matrices that torch does not hand to a library."""

APART = 2**12
"""Coordinates of paths, times samples, that are worth the calls for two parts."""


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

    Each of the T nodes of the integral costs one exponential, and two matrix products where a few
    of them do not tell those of all (:mod:`~pyro_mixtures.velocity.displacement_integrals`).

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
    samples, parameters = [z, grad, log_prob], [within, locs, scales]
    parameters += [] if control_var is None else [control_var]
    path = path_of(*parameters)
    sizes = path_sizes(path.shift, path.rate, within)
    longest = largest_sizes(sizes)
    if not is_short(*longest, precision):
        if path.rate.numel() * z.shape[-2] > APART:
            short = is_short(sizes[0], sizes[1], precision)  # (*B, K)
            if z.shape[-2] > 1:
                short = short.reshape(-1, short.shape[-1]).all(0)  # (K,)
            if bool(short.any()) and not bool(short.all()):
                return _apart(short, path, sizes, samples, parameters, precision)
        if asks_double(*longest, precision) and z.dtype != double_dtype(z):
            samples, path = double(*samples), path_of(*double(*parameters))
    return _along(path, quadrature_rule(*longest, precision, path.rate), *samples)


def path_of(
    within: Tensor, locs: Tensor, scales: Tensor, control_var: Tensor | None = None
) -> Path:
    """The flow from each component's hub, by arguments of :func:`displacement`."""
    hub_loc, offset, hub_scale = moment_matched(within, locs, scales)
    if control_var is not None:
        hub_loc, offset, hub_scale = departed(hub_loc, offset, hub_scale, within, control_var)
    # never zero: where the scales agree the flow is a translation to rounding
    excess = (scales - hub_scale).div_(hub_scale).add_(TINY)  # (*B, K, D)
    rate = excess.log1p()
    drift = offset.div_(excess.mul_(hub_scale))
    volume = hub_scale.log().sum(-1) + hub_scale.shape[-1] / 2 * math.log(2 * math.pi)
    volume, growth = volume.unsqueeze(-2), rate.sum(-1).unsqueeze(-2)  # (*B, 1, K or 1)
    return Path(hub_loc, hub_scale, rate, drift, rate * drift, volume, growth)


def _along(path: Path, rule: Rule, z: Tensor, grad: Tensor, log_prob: Tensor) -> Tensor:
    """The velocities times the integrals, ``(*B, S, K)``."""
    hub_loc, hub_scale, rate, _, shift, *_ = path
    if z.shape[-2] == 1:
        standard = (z - hub_loc).div_(hub_scale)  # y, (*B, K or 1, D)
        speed = torch.addcmul(shift, rate, standard).mul_(grad * hub_scale).sum(-1)  # g . v
        return (at_one_sample(path, rule, standard, log_prob) * speed).unsqueeze(-2)
    center = hub_loc[..., :1, :]  # squares are expanded about it, (*B, 1, D)
    z, hub_loc = z - center, hub_loc - center
    integral = at_samples(path, rule, z, hub_loc, log_prob)  # (*B, K, S)
    velocity = torch.cat([rate, shift * hub_scale - rate * hub_loc], -1)
    speed = velocity @ torch.cat([grad * z, grad], -1).mT  # g . v, (*B, K, S)
    return integral.mT * speed.mT


def _apart(
    short: Tensor,
    path: Path,
    sizes: Tensor,
    samples: list[Tensor],
    parameters: list[Tensor],
    precision: torch.dtype,
) -> Tensor:
    """Short paths do not pay for the others: they are a part by themselves.

    Args:
        short: which ones, ``(*B, K)`` for single samples, ``(K,)`` for several.
        path: of all components.
        sizes: what :func:`path_sizes` returns.
        samples: the first arguments of :func:`displacement`.
        parameters: those of :func:`path_of`.
        precision: the dtype to whose rounding the integral is exact.

    Returns:
        ``(*B, S, K)``.
    """
    shape = *samples[0].shape[:-1], path.rate.shape[-2]
    one = shape[-2] == 1
    results, order = [], []
    for chosen in (short, ~short):
        index = chosen.flatten().nonzero().squeeze(-1)
        longest = largest_sizes((sizes.flatten(1) if one else sizes)[..., index])
        if asks_double(*longest, precision):
            samples, path = double(*samples), path_of(*double(*parameters))
        rule = quadrature_rule(*longest, precision, path.rate)
        part = _single_paths(path, samples, index) if one else (_some_paths(path, index), samples)
        result = _along(part[0], rule, *part[1])
        results.append(result.flatten() if one else result)
        order.append(index)
    return torch.cat(results, -1)[..., torch.cat(order).argsort()].reshape(shape)


def _single_paths(path: Path, samples: list[Tensor], index: Tensor) -> tuple[Path, list[Tensor]]:
    """Some of the B K paths with their samples, as of R mixtures of one component each."""
    batch = path.rate.shape[:-1]

    def rows(x: Tensor) -> Tensor:  # (*B, K or 1, X) -> (R, 1, X)
        return x.expand(*batch, x.shape[-1]).reshape(-1, 1, x.shape[-1])[index]

    hub_loc, hub_scale, rate, drift, shift = (rows(x) for x in path[:5])
    volume, growth = rows(path.volume.mT), rows(path.growth.mT)
    chosen = Path(hub_loc, hub_scale, rate, drift, shift, volume, growth)
    return chosen, [rows(x) for x in samples]


def _some_paths(path: Path, index: Tensor) -> Path:
    """Those of some components."""

    def chosen(x: Tensor) -> Tensor:  # (*B, K or 1, X)
        return x if x.shape[-2] == 1 else x.index_select(-2, index)

    hub_loc, hub_scale, rate, drift, shift = (chosen(x) for x in path[:5])
    volume, growth = chosen(path.volume.mT).mT, path.growth[..., index]
    return Path(hub_loc, hub_scale, rate, drift, shift, volume, growth)


def moment_matched(within: Tensor, locs: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of each component's group, the distance from it, and the group's standard deviation.

    Returns:
        ``(*B, K or 1, D)``, ``(*B, K, D)`` and ``(*B, K or 1, D)``.
    """
    if within.shape[-2] == 1:
        mean = _average(within, locs)
        offset = locs - mean
        square = torch.addcmul(offset.square(), scales, scales)
        return mean, offset, _average(within, square).sqrt_()
    dtype = locs.dtype
    within, locs, scales = double(within, locs, scales)  # the groups may be far apart
    center = within[..., :1, :] @ locs
    offset = locs - center
    moments = within @ torch.cat([offset, offset.square(), scales.square()], -1)
    mean, square, variance = moments.split(locs.shape[-1], -1)  # (*B, K, D)
    stddev = (square - mean.square()).clamp_min_(0).add_(variance).sqrt_()
    mean = mean + center
    return mean.to(dtype), (locs - mean).to(dtype), stddev.to(dtype)


def _average(within: Tensor, x: Tensor) -> Tensor:
    """``within @ x`` for one group, ``(*B, 1, D)``."""
    if x.numel() > 2**13 and x.shape[-2] * x.shape[-1] < SMALL_PRODUCT:  # many, and torch is slow
        return (within.mT * x).sum(-2, keepdim=True)
    return within @ x


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

    Args:
        shift: :math:`\lambda \gamma`, ``(*B, K, D)``.
        rate: :math:`\lambda`, ``(*B, K, D)``.
        within: as for :func:`displacement`.
        precision: the dtype to whose rounding the integral shall be exact.

    Returns:
        What :func:`quadrature_rule` says, each ``(T, 1)``, and whether the path asks for float64.
    """
    longest = largest_sizes(path_sizes(shift, rate, within))
    rule = quadrature_rule(*longest, precision, rate)
    return rule.nodes, rule.log_weights, asks_double(*longest, precision)


def quadrature_rule(
    square_length: float, square_rate: float, precision: torch.dtype, like: Tensor
) -> Rule:
    r"""Nodes for the longest and the fastest of some paths.

    In the Fisher metric a path has the constant speed
    :math:`\sqrt{\sum_i \lambda_i^2 (\gamma_i^2 + 2)}`, and the integrand is a bump as wide as the
    inverse of that: the lengths and the rates of the components that have weight set the number
    of nodes. Beyond ``MAX_NODES`` these get a random offset, which keeps the integral unbiased
    (and takes a number from torch's generator in the backward pass).
    """
    count = node_count(square_length, square_rate, precision)
    if not count <= MAX_NODES:
        return Rule(*shifted_trapezoid(like, MAX_NODES))
    longest = square_length, square_rate, precision
    series = longest if square_rate <= SERIES_RATE**2 else None
    return Rule(*gauss_legendre(math.ceil(count), like.dtype, like.device), series)


def path_sizes(shift: Tensor, rate: Tensor, within: Tensor) -> Tensor:
    """Squared lengths of the paths and their largest squared rates, ``(2, *B, K)``.

    They are zero for a component without weight: there is no need to resolve its path.
    """
    square = rate.square()
    if rate.shape[-1] == 0:
        return torch.zeros_like(square.sum(-1).expand(2, *rate.shape[:-1]))
    length = torch.addcmul(2 * square, shift, shift).sum(-1)
    alive = (within.squeeze(-2) if within.shape[-2] == 1 else within.amax(-2)).sign()
    return torch.stack([length, square.amax(-1)]) * alive


def largest_sizes(sizes: Tensor) -> tuple[float, float]:
    """Of some paths, or zeros if there are none."""
    if sizes.numel() == 0:
        return 0.0, 0.0
    length, rate = sizes.flatten(1).amax(-1).tolist()
    return length, rate


def node_count(square_length: Any, square_rate: Any, precision: torch.dtype) -> Any:
    """Nodes for paths of these sizes, which are numbers or tensors."""
    base, slope, bend = NODES[precision]
    return base + slope * square_length**0.5 + bend * square_rate**0.5


def is_short(square_length: Any, square_rate: Any, precision: torch.dtype) -> Any:
    """Whether no path of these sizes asks for more than others; NaN does."""
    few = node_count(square_length, square_rate, precision) <= MAX_NODES
    return few & (square_rate <= SERIES_RATE**2)


def asks_double(square_length: float, square_rate: float, precision: torch.dtype) -> bool:
    """Whether a path of these sizes asks for float64; that of NaN does."""
    few = node_count(square_length, square_rate, precision) <= MAX_NODES
    return not (few and square_rate <= LARGEST_RATE**2)


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
