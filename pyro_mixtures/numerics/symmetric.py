"""Tails and implicit velocities of Student t and von Mises; see :mod:`.quadrature`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_mixtures.numerics.bisection import smallest
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
    tails_and_velocities,
    with_slopes,
)

STUDENT_T_RULES = {torch.float32: gauss_legendre(9, 2.0), torch.float64: gauss_legendre(30, 2.0)}
VON_MISES_RULES = {torch.float32: gauss_legendre(9, 1.0), torch.float64: gauss_legendre(26, 1.0)}


def student_t_log_pdf(df: Tensor, x: Tensor) -> Tensor:
    """Of standard Student t distributions of D dimensions, ``(...)`` and ``(..., D) -> (...)``.

    No square of a point overflows.
    """
    dim = x.shape[-1]
    x = x / df.sqrt().unsqueeze(-1)
    size = x.detach().abs().amax(-1).clamp_min(1)  # formulas hold for any
    squares = (x / size.unsqueeze(-1)).square().sum(-1)
    far = 2 * size.log() + (size.square().reciprocal() + squares).log()
    log_growth = torch.where(size > 1, far, squares.log1p())  # log(1 + |x|^2)
    constant = ((df + dim) / 2).lgamma() - (df / 2).lgamma() - dim / 2 * (math.pi * df).log()
    return constant - (df + dim) / 2 * log_growth


def student_t_tails(df: Tensor, x: Tensor) -> LogTails:
    r"""Of standard Student t distributions.

    Args:
        df: degrees of freedom :math:`\nu > 0`.
        x: points; beyond a millionth of the dtype's largest number they count as that.

    Returns:
        Log tails, and the velocity :math:`dx / d\nu`.
    """
    df, x = at_least_single(df, x)
    largest = torch.finfo(x.dtype).max / 1e6
    x = x.clamp(-largest, largest)
    moving = needs_gradient(x, df)
    values = _student_t(moving, x, df, *_student_t_center(df))
    return with_slopes(values, x, df)


@torch.no_grad()
def student_t_icdf(value: Tensor, df: Tensor) -> Tensor:
    """Quantile of the standard Student t distribution, by bisection, without gradient.

    Args:
        value: probabilities between 0 and 1, of a shape that broadcasts with that of ``df``.
        df: degrees of freedom.
    """
    value, df = torch.broadcast_tensors(*at_least_single(torch.as_tensor(value), df))
    log_tail = torch.minimum(value, 1 - value).log()
    distance = smallest(
        lambda x: student_t_tails(df, x).log_sf <= log_tail,
        -torch.zeros_like(value),  # the number before zero
        torch.full_like(value, math.inf),
    )
    return distance.copysign(value - 0.5)


def von_mises_tails(concentration: Tensor, angle: Tensor) -> LogTails:
    r"""Of von Mises distributions about zero, counted from :math:`-\pi`.

    Args:
        concentration: :math:`\kappa \ge 0`.
        angle: in :math:`[-\pi, \pi]`.

    Returns:
        Log tails, and the velocity of the angle in :math:`\kappa`.
    """
    concentration, angle = at_least_single(concentration, angle)
    angle = angle.clamp(-math.pi, math.pi)
    moving = needs_gradient(angle, concentration)
    values = _von_mises(moving, angle, concentration, *_von_mises_center(concentration))
    return with_slopes(values, angle, concentration)


@sliced
def _student_t(
    moving: bool, x: Tensor, df: Tensor, half: Tensor, slope: Tensor
) -> tuple[Tensor, ...]:
    """In the coordinate ``w = asinh(x / sqrt(df))``, of density ``cosh(w)**-df / (2 half)``.

    The velocity is the integral of the derivative of the log density in ``df`` at fixed x, for
    in w itself large terms would cancel: from zero if x is central, else outward.
    """
    central = (x.abs() < 1).to(x.dtype)
    z = x.abs() / df.sqrt()
    cosh = z.hypot(torch.ones_like(z))
    tanh = z / cosh
    excess = z * (z / (1 + cosh))  # cosh(w) - 1
    log_cosh = excess.log1p()
    start, log_start = tanh * (1 - central), log_cosh * (1 - central)
    end = _student_t_end(df, start).lerp((z + excess).log1p(), central)
    mass, *moments = _student_t_integrals(moving, df, start, log_start, end)

    # By parts, with df + 2 in place of df.
    height = (df * log_cosh * central).exp()
    scale = cosh.square().reciprocal().lerp(-height, central)
    mills = (tanh + scale * (1 + df) * mass) / df + central * half * height
    log_pdf = -df * log_cosh - (2 * half).log()
    lower = (x < 0).to(x.dtype)
    if not moving:
        return log_tails(lower, log_pdf, mills)
    moment = moments[0] + slope * mass
    part = 2 / (df * (df + 3))
    edge = slope + _student_t_score(df, tanh.square(), -2 * log_cosh)
    edge = edge - part * (1 + (1 + df) / 2 * tanh.square())
    velocity = (tanh * edge + scale * ((1 + df) * moment - part * mass)) / df * x.sign()
    return tails_and_velocities(lower, log_pdf, mills, df.sqrt() * cosh, velocity)


@torch.no_grad()
def _student_t_center(df: Tensor) -> tuple[Tensor, Tensor]:
    """Integral of ``cosh(w)**-df`` over positive w, and d log density / d df at zero."""
    (nu,) = double(df)
    zero = torch.zeros_like(nu)
    mass, moment = _student_t_integrals(True, nu, zero, zero, _student_t_end(nu, zero))
    slope = 2 / (nu * (nu + 1) * (nu + 3)) - moment / mass  # for its integral over all x is zero
    return (mass * (1 + nu) / nu).to(df.dtype), slope.to(df.dtype)


def _student_t_end(df: Tensor, tanh: Tensor) -> Tensor:
    """Where the exponent of :func:`_student_t_integrals` is the cut."""
    excess = (CUT[df.dtype] / (df + 2)).expm1()
    square = excess * (excess + 2)
    return ((excess + square / ((tanh.square() + square).sqrt() + tanh)) / (1 + tanh)).log1p()


def _student_t_integrals(
    moving: bool, df: Tensor, tanh: Tensor, log_cosh: Tensor, end: Tensor
) -> list[Tensor]:
    """Of ``(cosh(w + s) / cosh(w))**-(df + 2)``, and if moving times the score at ``w + s``."""
    square, power, double_log = tanh.square(), -(df + 2), -2 * log_cosh

    def integrands(half: Tensor) -> tuple[Tensor, ...]:
        t = half.tanh()
        excess = (t + tanh).mul_(t).mul_(2).div_(t.square().neg_().add_(1))
        log_growth = excess.log1p()  # log(cosh(w + s) / cosh(w))
        density = (log_growth * power).exp_()
        if not moving:
            return (density,)
        square_there = (excess + 2).mul_(excess).add_(square).div_(excess.add_(1).square())
        score = _student_t_score(df, square_there, double_log.sub(log_growth, alpha=2))
        return density, score.mul_(density)

    return [2 * total for total in integrate(integrands, end / 2, STUDENT_T_RULES)]


def _student_t_score(df: Tensor, square: Tensor, log_rest: Tensor) -> Tensor:
    """Derivative of the log density in ``df`` at fixed x, less that at zero.

    By ``tanh(w)**2`` and ``log(1 - tanh(w)**2)``.
    """
    return log1p_minus(-square, log_rest, near=0.02).addcdiv(square, df).div_(2)


@sliced
def _von_mises(
    moving: bool, angle: Tensor, kappa: Tensor, half: Tensor, center: Tensor
) -> tuple[Tensor, ...]:
    """By integrals outward from the angle, or from zero if it is central.

    Args:
        moving: whether slopes and velocities are wanted.
        angle: from the mean.
        kappa: concentration.
        half: integral of ``exp(kappa (cos(t) - 1))`` over positive t.
        center: expectation of ``1 - cos(t)``.
    """
    distance = angle.abs()
    sin = (distance / 2).sin()
    fall = 2 * sin.square()  # 1 - cos(angle)
    central = (fall * (1 + 2 * kappa) < 1).to(angle.dtype)
    start = distance * (1 - central)
    end = _von_mises_end(kappa, start).lerp(distance, central)
    mass, *moments = _von_mises_integrals(moving, kappa, start, end)
    height = (kappa * fall * central).exp()
    mills = mass.lerp((half - mass) * height, central)
    log_pdf = -kappa * fall - (2 * half).log()
    lower = (angle < 0).to(angle.dtype)
    if not moving:
        return log_tails(lower, log_pdf, mills)
    (moment,) = moments
    velocity = ((center - fall) * mass - moment).lerp((moment - center * mass) * height, central)
    unit = torch.ones_like(angle)
    return tails_and_velocities(lower, log_pdf, mills, unit, velocity * angle.sign())


@torch.no_grad()
def _von_mises_center(kappa: Tensor) -> tuple[Tensor, Tensor]:
    """Integral of ``exp(kappa (cos(t) - 1))`` over positive t, and the mean of ``1 - cos(t)``."""
    (precise,) = double(kappa)
    zero = torch.zeros_like(precise)
    mass, moment = _von_mises_integrals(True, precise, zero, _von_mises_end(precise, zero))
    return mass.to(kappa.dtype), (moment / mass).to(kappa.dtype)


def _von_mises_end(kappa: Tensor, start: Tensor) -> Tensor:
    """Where the exponent of :func:`_von_mises_integrals` is the cut, or pi."""
    sin, cos = (start / 2).sin(), (start / 2).cos().clamp(min=0)
    rise = torch.minimum(CUT[kappa.dtype] / (2 * kappa), cos.square())
    root = (sin.square() + rise).sqrt() * cos + (cos.square() - rise).sqrt() * sin
    return 2 * (rise / root.clamp(min=torch.finfo(rise.dtype).tiny)).asin()


def _von_mises_integrals(moving: bool, kappa: Tensor, start: Tensor, end: Tensor) -> list[Tensor]:
    """Of ``exp(-kappa fall)``, and if moving times the fall, ``cos(start) - cos(start + s)``."""

    def integrands(s: Tensor) -> tuple[Tensor, ...]:
        s = s / 2
        fall = 2 * s.sin() * (start + s).sin()
        density = (-kappa * fall).exp()
        return (density, fall * density) if moving else (density,)

    return integrate(integrands, end, VON_MISES_RULES)
