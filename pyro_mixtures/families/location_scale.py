"""Families on the real line."""

from __future__ import annotations

import math

import torch
from pyro.distributions import Logistic
from torch import Tensor
from torch.distributions import Cauchy, Gumbel, Laplace, Normal, StudentT

from pyro_mixtures.families.registry import (
    Affine,
    Tails,
    carried,
    register_log_density,
    register_moving_tails,
    register_tails,
    register_velocity,
)
from pyro_mixtures.numerics.symmetric import student_t_log_pdf, student_t_tails
from pyro_mixtures.velocity.telescoping import normal_cdf

SMOOTH = (Logistic, Gumbel, Cauchy)
"""Families that displacement takes beside the Normal; the Laplace density has a kink."""


@register_velocity(Normal)
@register_velocity(Laplace)
@register_velocity(Logistic)
@register_velocity(Gumbel)
@register_velocity(Cauchy)
def _(distribution, value):
    loc, scale = distribution.loc, distribution.scale
    return Affine(loc, scale / scale.detach(), loc.detach())


@register_moving_tails(StudentT)
def _(distribution, value):
    df, loc, scale = distribution.df, distribution.loc, distribution.scale
    standard = (value - loc.detach()) / scale.detach()
    log_cdf, log_sf, velocities = student_t_tails(df, standard)
    point = torch.addcmul(loc, scale, standard + carried(velocities, df))
    return point, Tails(log_cdf.exp(), log_sf.exp())


@register_log_density(StudentT)
def _(distribution, value):
    standard = _standardized(distribution, value).unsqueeze(-1)
    return student_t_log_pdf(distribution.df, standard) - distribution.scale.log()


@register_tails(Normal)
def _(distribution, value):
    standard = _standardized(distribution, value)
    return Tails(normal_cdf(standard), normal_cdf(-standard))


@register_tails(Laplace)
def _(distribution, value):
    standard = _standardized(distribution, value)
    exponent = standard.abs().neg_()
    smaller = exponent.exp() / 2
    larger, upper = 1 - smaller, (standard > 0).to(standard)
    log_pdf = exponent - (2 * distribution.scale).log()
    return Tails(smaller.lerp(larger, upper), larger.lerp(smaller, upper), log_pdf)


@register_tails(Logistic)
def _(distribution, value):
    standard = _standardized(distribution, value)
    return Tails(standard.sigmoid(), (-standard).sigmoid())


@register_tails(Gumbel)
def _(distribution, value):
    standard = _standardized(distribution, value)
    log_cdf = standard.neg().exp_().neg()
    log_pdf = (log_cdf - standard).sub_(distribution.scale.log())
    return Tails(log_cdf.exp(), log_cdf.expm1().neg(), log_pdf)


@register_tails(Cauchy)
def _(distribution, value):
    standard = _standardized(distribution, value)
    one = torch.ones_like(standard)  # angles keep the digits of both ends
    return Tails(torch.atan2(one, -standard) / math.pi, torch.atan2(one, standard) / math.pi)


@register_tails(StudentT)
def _(distribution, value):
    tails = student_t_tails(distribution.df, _standardized(distribution, value))
    return Tails(tails.log_cdf.exp(), tails.log_sf.exp())


def _standardized(distribution, value: Tensor) -> Tensor:
    return (value - distribution.loc) / distribution.scale
