"""Families on the positive half-line; others are transformed ones of these."""

from __future__ import annotations

import math

import torch
from torch.distributions import Exponential, Gamma, HalfCauchy, HalfNormal

from pyro_mixtures.families.registry import (
    Affine,
    Tails,
    carried,
    register_moving_tails,
    register_tails,
    register_velocity,
)
from pyro_mixtures.numerics.incomplete import gamma_tails
from pyro_mixtures.velocity.telescoping import normal_cdf


@register_velocity(HalfNormal)
@register_velocity(HalfCauchy)
def _(distribution, value):
    scale = distribution.scale
    return Affine(torch.zeros_like(scale), scale / scale.detach(), torch.zeros_like(scale))


@register_velocity(Exponential)
def _(distribution, value):
    rate = distribution.rate
    return Affine(torch.zeros_like(rate), rate.detach() / rate, torch.zeros_like(rate))


@register_moving_tails(Gamma)
def _(distribution, value):
    concentration, rate = distribution.concentration, distribution.rate
    standard = rate.detach() * value
    log_cdf, log_sf, velocities = gamma_tails(concentration, standard)
    point = (standard + carried(velocities, concentration)) / rate
    return point, Tails(log_cdf.exp(), log_sf.exp())


@register_tails(HalfNormal)
def _(distribution, value):
    standard = value / distribution.scale
    return Tails((standard / math.sqrt(2)).erf(), 2 * normal_cdf(-standard))


@register_tails(HalfCauchy)
def _(distribution, value):
    standard = value / distribution.scale
    angle = torch.atan2(torch.ones_like(standard), standard)  # from there to pi / 2
    return Tails(standard.atan() * (2 / math.pi), angle * (2 / math.pi))


@register_tails(Exponential)
def _(distribution, value):
    log_sf = -distribution.rate * value
    return Tails(-log_sf.expm1(), log_sf.exp())


@register_tails(Gamma)
def _(distribution, value):
    tails = gamma_tails(distribution.concentration, distribution.rate * value)
    return Tails(tails.log_cdf.exp(), tails.log_sf.exp())
