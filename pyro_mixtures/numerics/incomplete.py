"""Tails and implicit velocities of Gamma and Beta; see :mod:`.quadrature`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.numerics.pathwise_function import needs_gradient
from pyro_mixtures.numerics.precision import at_least_single, double
from pyro_mixtures.numerics.quadrature import (
    CUT,
    LogTails,
    gauss_legendre,
    integrate,
    log1p_minus,
    log_tails,
    sliced,
    swap,
    tails_and_velocities,
    with_slopes,
)

GAMMA_RULES = {torch.float32: gauss_legendre(9), torch.float64: gauss_legendre(28)}

BETA_RULES = {torch.float32: gauss_legendre(12, 0.3), torch.float64: gauss_legendre(40, 1.0)}
"""Bent, for the density has poles beside the path of integration."""


def gamma_tails(concentration: Tensor, x: Tensor) -> LogTails:
    r"""Of Gamma distributions with rate one.

    Args:
        concentration: :math:`a > 0`.
        x: positive points; those beyond the dtype's tiniest number or its inverse's root count
            as these.

    Returns:
        Log tails, and the velocity :math:`dx / da`.
    """
    concentration, x = at_least_single(concentration, x)
    bounds = torch.finfo(x.dtype)
    x = x.clamp(bounds.tiny, bounds.tiny**-0.5)
    moving = needs_gradient(x, concentration)
    values = _gamma(moving, x, concentration, *_stirling(concentration))
    return with_slopes(values, x, concentration)


def beta_tails(a: Tensor, b: Tensor, log_x: Tensor, log_complement: Tensor) -> LogTails:
    r"""Of Beta distributions, at points x given by :math:`\log x` and :math:`\log(1 - x)`.

    Args:
        a: the density is proportional to :math:`x^{a-1} (1 - x)^{b-1}`.
        b: see ``a``.
        log_x: both are needed: the smaller one is exact, and tells what the other is.
        log_complement: see ``log_x``; below -1e20 they count as that.

    Returns:
        Log tails, and the velocities :math:`dy / da` and :math:`dy / db` of the logit
        :math:`y = \log x - \log(1 - x)`.
    """
    a, b, log_x, log_complement = at_least_single(a, b, log_x, log_complement)
    log_x, log_complement = log_x.clamp(min=-1e20), log_complement.clamp(min=-1e20)
    a_constant, a_excess = _stirling(a)
    b_constant, b_excess = _stirling(b)
    a64, b64 = double(a, b)
    n_constant, n_excess = _stirling(a64 + b64)
    constant = a_constant + b_constant - n_constant.to(a.dtype)
    excesses = a_excess, b_excess, n_excess.to(a.dtype)
    moving = needs_gradient(a, b, log_x, log_complement)
    values = _beta(moving, *_BetaPoints(log_x, log_complement, a, b, constant, *excesses))
    return with_slopes(values, log_x - log_complement, a, b)


@sliced
def _gamma(
    moving: bool, x: Tensor, a: Tensor, constant: Tensor, excess: Tensor
) -> tuple[Tensor, ...]:
    """In the coordinate log x, where exponents are ``x expm1(u) - a u``."""
    d = (x - a) / a
    log_ratio = _log1p(d, (x / a).log())  # log(x / a)
    lower = (x < a).to(x.dtype)
    slope = x - a - lower  # of the exponent; to the left by parts, with a + 1 in place of a
    # Upper bounds for where the exponent is the cut: by expm1(-s) >= -2 s / (2 + s) to the left,
    # and to the right by its square and once more with that in the linear term.
    cut = CUT[x.dtype]
    gap = 2 * slope.abs() - cut * lower
    end = 4 * cut / (gap + (gap.square() + 8 * cut * torch.maximum(x, a + lower)).sqrt())
    end = ((cut + a * end) / torch.maximum(x, a)).log1p().lerp(-end, lower)

    def exponent(u: Tensor) -> Tensor:
        return u.expm1().sub_(u).mul_(x).add_(slope * u)

    def integrands(u: Tensor) -> tuple[Tensor, ...]:
        density = exponent(u).neg_().exp_()
        return (density, u * density) if moving else (density,)

    end = end - (exponent(end) - cut) / (x * end.expm1() + slope)
    mass, *moments = integrate(integrands, end, GAMMA_RULES)
    mills = mass.lerp((1 - x * mass) / a, lower)
    log_pdf = a * log1p_minus(d, log_ratio) + constant
    if not moving:
        return log_tails(lower, log_pdf, mills)
    (moment,) = moments
    velocity = mills * (log_ratio - excess).lerp(excess - log_ratio, lower)
    velocity = velocity + (mills / a + moment).lerp(x / a * moment, lower)
    return tails_and_velocities(lower, log_pdf, mills, x, velocity)


class _BetaPoints(NamedTuple):
    """Points, and what Stirling's series gives for a, b and their sum n."""

    log_x: Tensor
    log_complement: Tensor
    a: Tensor
    b: Tensor
    constant: Tensor
    a_excess: Tensor
    b_excess: Tensor
    n_excess: Tensor


@sliced
def _beta(moving: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
    """In the coordinate logit x, where exponents are ``(a + b) log1p(x expm1(u)) - a u``.

    Args:
        moving: whether velocities are wanted.
        tensors: those of ``_BetaPoints``, or slices of them.
    """
    log_x, log_complement, a, b, constant, a_excess, b_excess, n_excess = _BetaPoints(*tensors)
    dtype = log_x.dtype
    small = (log_x < log_complement).to(dtype)
    log_m = torch.minimum(log_x, log_complement)
    log_m64, a64, b64 = double(log_m, a, b)
    m64 = log_m64.exp()
    # From the mode a / n, where float32 would have no digits of the difference left.
    gap = ((a64 + b64) * m64 - b64.lerp(a64, small.to(m64.dtype))).to(dtype)
    gap = (-gap).lerp(gap, small)  # n x - a

    # From here on the tail is that to the left of x, if need be in the mirror image.
    lower = (gap < 0).to(dtype)
    gap, small = gap.abs(), (1 - small).lerp(small, lower)
    a, b = swap(a, b, lower)
    a_excess, b_excess = swap(a_excess, b_excess, lower)
    n, m = a + b, m64.to(dtype)
    x, c = swap(m, 1 - m, small)
    x_log_ratio = _log1p(-gap / a, log_m - (a / n).log())  # log of x by the mode
    c_log_ratio = (gap / b).log1p()
    log_pdf = a * log1p_minus(-gap / a, x_log_ratio) + b * log1p_minus(gap / b, c_log_ratio)

    # By parts, with a + 1 in place of a. The end is bounded as for Gamma.
    cut, size = CUT[dtype], n + 1
    slope = gap + c
    half = slope - cut / 2 * c
    end = 2 * cut / (half + (half.square() + 2 * cut * c * (a + 1)).sqrt())
    end = (((cut + b * end) / size).expm1() / c).log1p()
    sign = 1 - 2 * small  # to the left from a small x, to the right from its small mirror image
    end, slope = sign * end, sign * slope
    growth = m * end.expm1()
    exponent = size * (growth.log1p() - m * end) + slope * end
    end = end - (exponent - cut) / (size * growth * (1 - m) / (1 + growth) + slope)

    def integrands(u: Tensor) -> tuple[Tensor, ...]:
        log_growth = u.expm1().mul_(m).log1p_()
        density = (m * u).sub_(log_growth).mul_(size).sub_(slope * u).exp_()
        if not moving:
            return (density,)
        return density, log_growth * density, (log_growth - u).mul_(density)

    mass, *moments = (total.abs() for total in integrate(integrands, end, BETA_RULES))
    mills = (1 + n * x * mass) / a
    log_pdf = log_pdf + constant
    if not moving:
        return log_tails(lower, log_pdf, mills)
    x_excess = a_excess - n_excess - x_log_ratio
    c_excess = b_excess - n_excess - c_log_ratio - a / (b * n)
    other, own = moments
    a_moment, b_moment = swap(own, other, small)
    a_velocity = mills * x_excess + (1 / n + n * x * a_moment) / a
    b_velocity = mills * c_excess - x * (mass + n * b_moment) / a
    a_velocity, b_velocity = swap(a_velocity, b_velocity, lower)
    return tails_and_velocities(lower, log_pdf, mills, 2 * lower - 1, a_velocity, b_velocity)


def _log1p(d: Tensor, near_zero: Tensor) -> Tensor:
    """``log(1 + d)``, by the value given where 1 + d is nearly zero."""
    return d.clamp(min=-0.8).log1p().lerp(near_zero, (-4 * d).sub_(2).clamp(0, 1))


@torch.no_grad()
def _stirling(a: Tensor) -> tuple[Tensor, Tensor]:
    """``a log(a) - a - lgamma(a)`` and ``digamma(a + 1) - log(a)``, which would cancel."""
    (a64,) = double(a)
    inverse = 1 / a64.clamp(min=16)
    y = inverse.square()
    rest = inverse * (1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y / 1188))))
    series = (a64 / (2 * math.pi)).log() / 2 - rest
    constant = torch.where(a64 > 16, series, a64 * a64.log() - a64 - a64.lgamma())
    series = y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y / 132))))
    excess = torch.where(a64 > 16, inverse / 2 - series, (a64 + 1).digamma() - a64.log())
    return constant.to(a.dtype), excess.to(a.dtype)
