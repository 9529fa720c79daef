r"""The integrals over time of a displacement, by all nodes or by few terms of a series.

A sample that flows back along the path of a component for a time t is at
:math:`y_t = y + (e^{-\lambda t} - 1) (y + \gamma)` in units of the hub, and the log density of
:math:`N_{jt}` there is :math:`-|y_t|^2 / 2 - t \sum_i \lambda_i` but for a constant: a smooth
function of time, whose derivatives are of the order :math:`\lambda^n`, however long the path.
So for long paths few of its values or derivatives tell those at the many nodes:

- Of many samples it is computed at the zeros of a Chebyshev polynomial, by matrix products, and
  interpolated.
- Of one sample, for which a node costs an exponential of each coordinate, it is a power series.
  With the place b and the speed :math:`u = \lambda (b + \gamma)` at :math:`t = 1/2`, and
  :math:`\tau = t - 1/2`,

  .. math::
      \frac{|y_t|^2}2 = \frac{|b|^2}2 - \tau \, b \cdot u + \sum_{n \geq 2} \frac{(-\tau)^n}{n!}
      \sum_i \lambda_i^{n-2} u_i (2^{n-1} u_i - \lambda_i \gamma_i)

Rounding is that of the largest square along the path, as with expanded squares. For fast paths,
beyond ``SERIES_RATE``, there are no series.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from pyro_mixtures.numerics import chunks
from pyro_mixtures.numerics.chunks import CACHED, map_chunks
from pyro_mixtures.numerics.precision import LEAST_EXPONENT

SERIES_RATE = 2.0
"""Squares at one end of a path may be exp(2 rate) of those at the other, and lose as much."""

REMAINDER = {torch.float32: 1e-7, torch.float64: 1e-12}
"""What is left out of a log density at samples of the path: a tenth of what the nodes leave out of
the integral (tests/velocity/test_displacement_integrals.py)."""

WORTHWHILE = 2**17
"""Exponentials that take as long as the calls for a power series."""

MULTIPLICATIONS = 2**22
"""As many, in matrix products, take as long as the calls for an interpolation."""


NEARBY = 45.0
"""Squared length of paths on which hardly a density is zero to rounding."""


class Path(NamedTuple):
    r"""The flow from the hub to each component.

    Args:
        hub_loc: ``(*B, K or 1, D)``, as is the next.
        hub_scale: standard deviations.
        rate: :math:`\lambda`, ``(*B, K, D)``, as are the next two.
        drift: :math:`\gamma`.
        shift: :math:`\lambda \gamma`.
        volume: the logarithm of the hub's normalization, ``(*B, 1, K or 1)``.
        growth: sums of the rates, ``(*B, 1, K)``.
    """

    hub_loc: Tensor
    hub_scale: Tensor
    rate: Tensor
    drift: Tensor
    shift: Tensor
    volume: Tensor
    growth: Tensor


class Rule(NamedTuple):
    r"""Nodes of the time and, where a series may serve, what its length is taken from.

    Args:
        nodes: of the time t, ``(T, 1)``.
        log_weights: logarithms of their weights, ``(T, 1)``.
        longest: the largest :math:`\sum_i \lambda_i^2 (\gamma_i^2 + 2)` and :math:`\lambda_i^2` of
            the paths, and the dtype to whose rounding the integral is exact.
    """

    nodes: Tensor
    log_weights: Tensor
    longest: tuple[float, float, torch.dtype] | None = None

    @property
    def exp_(self) -> Callable[[Tensor], Tensor]:
        """The exponential, with a bound where densities may be zero."""
        return Tensor.exp_ if self.longest is not None and self.longest[0] < NEARBY else exp_


def at_one_sample(path: Path, rule: Rule, standard: Tensor, log_prob: Tensor) -> Tensor:
    r""":math:`\int_0^1 N_{jt}(z) \, dt / q(z)` at a single sample of each mixture.

    Args:
        path: of all components.
        rule: of the integral.
        standard: the sample y in units of the hub, ``(*B, K or 1, D)``.
        log_prob: :math:`\log q(z)`, ``(*B, 1, 1)``.

    Returns:
        ``(*B, K)``.
    """
    _, _, rate, drift, _, volume, growth = path
    if rule.longest is not None and len(rule.nodes) * rate.numel() > WORTHWHILE:
        return _by_power_series(path, rule, standard, log_prob)
    place = (standard + drift).unsqueeze(-3)  # (*B, 1, K, D)
    standard, rate = standard.unsqueeze(-3), rate.unsqueeze(-3)
    constant, exp_ = volume + log_prob, rule.exp_  # (*B, 1, K or 1)

    def densities(nodes: Tensor, log_weights: Tensor) -> Tensor:
        times = -nodes
        change = (rate * times.unsqueeze(-1)).expm1_()  # (*B, T, K, D)
        back = torch.addcmul(standard, change, place, out=change)
        exponent = torch.addcmul(log_weights - constant, growth, times)  # (*B, T, K)
        return exp_(exponent.sub_(back.square_().sum(-1), alpha=0.5)).sum(-2)

    return sum_over_nodes(densities, rule.nodes, rule.log_weights, rate.numel())


def at_samples(path: Path, rule: Rule, z: Tensor, hub_loc: Tensor, log_prob: Tensor) -> Tensor:
    r""":math:`\int_0^1 N_{jt}(z) \, dt / q(z)` at several samples, by matrix products.

    Args:
        path: of all components.
        rule: of the integral.
        z: about some center, ``(*B, S, D)``.
        hub_loc: of the hubs, about the same one, ``(*B, K or 1, D)``.
        log_prob: :math:`\log q(z)`, ``(*B, S, 1)``.

    Returns:
        ``(*B, K, S)``.
    """
    _, hub_scale, rate, drift, _, volume, growth = path
    features = torch.cat([z, z.square(), torch.full_like(log_prob, -1), -log_prob], -1)
    offset, growth, exp_ = volume.unsqueeze(-1), growth.unsqueeze(-1), rule.exp_
    components = rate[..., 0].numel()

    def coefficients(nodes: Tensor, log_weights: Tensor | None = None) -> Tensor:
        """Of the features in the exponents at some nodes, ``(*B, T K, 2 D + 2)``."""
        change, place = standardization(nodes, rate, drift, hub_loc, hub_scale)
        here = offset if log_weights is None else offset - log_weights.unsqueeze(-1)
        constant = torch.addcmul(here, growth, nodes.unsqueeze(-1))  # (*B, T, K, 1)
        constant = constant.add_(place.square().sum(-1, keepdim=True), alpha=0.5)
        place *= change
        change.square_().mul_(-0.5)
        columns = [place, change, constant, torch.ones_like(constant)]
        return torch.cat(columns, -1).flatten(-3, -2)

    def densities(nodes: Tensor, log_weights: Tensor) -> Tensor:
        exponent = coefficients(nodes, log_weights) @ features.mT  # (*B, T K, S)
        return exp_(exponent).unflatten(-2, (len(nodes), -1)).sum(-3)

    count, size = len(rule.nodes), features.shape[-1]
    terms = _chebyshev_terms(rule, size, components * z.shape[-2])
    elements = (terms or 0) * components * size
    if terms is None or 2 * elements * z.element_size() > chunks.MEMORY_BUDGET:
        rows = max(z.shape[-2], size)
        return sum_over_nodes(densities, rule.nodes, rule.log_weights, components * rows)
    nodes, to_rule = interpolation(count, terms, rate.dtype, rate.device)
    at_nodes, weights = coefficients(nodes), rule.log_weights.mT.exp()  # (*B, N K, .), (1, T)

    def integrals(features: Tensor) -> Tensor:
        exponent = (at_nodes @ features.mT).unflatten(-2, (terms, -1))  # (*B, N, K, S)
        density = exp_(to_rule @ exponent.flatten(-2))  # (*B, T, K S)
        return (weights @ density).unflatten(-1, exponent.shape[-2:]).squeeze(-3).mT

    return map_chunks(integrals, (features,), count * components, CACHED).mT


def _chebyshev_terms(rule: Rule, features: int, exponents: int) -> int | None:
    """Values to interpolate, if these and the interpolation are fewer multiplications."""
    count = len(rule.nodes)
    if rule.longest is None or count * features * exponents < MULTIPLICATIONS:
        return None
    terms = series_length(*rule.longest, radius=0.5)
    saved = (count - terms) * features - count * terms
    return terms if saved * exponents > MULTIPLICATIONS else None


def _by_power_series(path: Path, rule: Rule, standard: Tensor, log_prob: Tensor) -> Tensor:
    """As :func:`at_one_sample`, in slices of the paths."""
    assert rule.longest is not None
    _, _, rate, drift, shift, volume, growth = path
    terms, size = series_length(*rule.longest), rate.shape[-1]
    powers, factors = _power_series(terms, rate.dtype, rate.device)
    table = (((0.5 - rule.nodes) ** powers).unsqueeze(-1) * factors).flatten(1)  # (T, 2 N)
    constant = torch.add(volume + log_prob, growth, alpha=0.5)  # (*B, 1, K)
    ones = rate.new_ones(size)  # a product with it is a faster sum

    def integrals(standard, rate, drift, shift, constant, growth):
        place = torch.addcmul(standard, (rate * -0.5).expm1_(), standard + drift)  # b, (R, D)
        pair = torch.stack([place, torch.addcmul(shift, rate, place)])  # b and u, (2, R, D)
        speed = pair[1]
        first, second = ((pair * place) @ ones).unsqueeze(-2)  # (1, R)
        moments = [first, constant.mT, second, growth.mT]
        pair = torch.stack([speed, shift]).mul_(speed)
        moments.append(pair @ ones)
        for _ in range(3, terms):
            moments.append(pair.mul_(rate) @ ones)
        exponent = torch.addmm(rule.log_weights, table, torch.cat(moments))  # (T, R)
        return rule.exp_(exponent).sum(0).unsqueeze(-1)

    rows = [x.expand_as(rate).reshape(-1, size) for x in (standard, rate, drift, shift)]
    rows += [constant.reshape(-1, 1), growth.reshape(-1, 1)]
    return map_chunks(integrals, tuple(rows), 4 * size, CACHED).reshape(rate.shape[:-1])


def series_length(
    square_length: float, square_rate: float, precision: torch.dtype, radius: float = 1.0
) -> int:
    """Number of terms for paths as long and as fast as ``Rule.longest`` says.

    Args:
        square_length: the first of ``Rule.longest``, as are the next two.
        square_rate: of the fastest coordinate.
        precision: the dtype to whose rounding the sum shall be exact.
        radius: one for a power series, 1/2 for Chebyshev polynomials, which converge faster.
    """
    rate = math.sqrt(square_rate)
    term, n = square_length * math.exp(rate) * radius / 4, 2
    while term > REMAINDER[precision]:
        n += 1
        term *= radius * rate / n
    return max(n, 3)


@functools.lru_cache(maxsize=256)
def _power_series(terms: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    r"""Powers of :math:`-\tau`, ``(N,)``, and factors of the two sums of each term, ``(N, 2)``."""
    factors = [
        [-(2.0 ** (n - 1)) / math.factorial(n), 1 / math.factorial(n)] for n in range(terms)
    ]
    factors[0][1] = -1.0  # the constant; that of n = 1 is the growth
    with torch.inference_mode(False):  # what is kept has to serve everywhere
        powers = torch.arange(terms, dtype=dtype, device=device)
        return powers, torch.tensor(factors, dtype=dtype, device=device)


@functools.lru_cache(maxsize=256)
def interpolation(
    count: int, terms: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Chebyshev's nodes in [0, 1], and what carries values there to Gauss and Legendre's.

    Returns:
        ``(N, 1)`` and ``(T, N)``.
    """
    chebvander = numpy.polynomial.chebyshev.chebvander
    nodes = numpy.cos((numpy.arange(terms) + 0.5) * (math.pi / terms))
    transform = chebvander(nodes, terms - 1) * (2 / terms)
    transform[:, 0] /= 2
    matrix = chebvander(numpy.polynomial.legendre.leggauss(count)[0], terms - 1) @ transform.T
    with torch.inference_mode(False):
        both = torch.from_numpy((nodes[:, None] + 1) / 2), torch.from_numpy(matrix)
        first, second = (x.to(dtype).to(device) for x in both)
    return first, second


def exp_(x: Tensor) -> Tensor:
    """``x.exp_()`` but for what is zero to rounding, which takes a processor thirty times as long.

    The bound of exp(-80), or exp(-701) in float64, counts as little beside the other densities.
    """
    return x.clamp_min_(LEAST_EXPONENT[x.dtype]).exp_()


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
