"""Families on bounded intervals."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Beta, Kumaraswamy, Uniform, VonMises

from pyro_mixtures.families.interior import within_constraint
from pyro_mixtures.families.registry import (
    Affine,
    Tails,
    carried,
    register_log_density,
    register_moving_tails,
    register_tails,
    register_velocity,
)
from pyro_mixtures.numerics.incomplete import beta_tails
from pyro_mixtures.numerics.symmetric import von_mises_tails


@register_velocity(Uniform)
def _(distribution, value):
    low, high = distribution.low, distribution.high
    width = high - low
    return Affine(low, width / width.detach(), low.detach())


@register_moving_tails(Beta)
def _(distribution, value):
    a, b = distribution.concentration1, distribution.concentration0
    log_cdf, log_sf, velocities = beta_tails(a, b, value.log(), (-value).log1p())
    point = value + value * (1 - value) * carried(velocities, a, b)
    return point, Tails(log_cdf.exp(), log_sf.exp())


@register_velocity(Kumaraswamy)
def _(distribution, value):
    a, b = distribution.concentration1, distribution.concentration0
    log_sf = _kumaraswamy_log_sf(a.detach(), b.detach(), value)
    return (_log_rest(log_sf / b) / a).exp()


@register_log_density(Kumaraswamy)
def _(distribution, value):
    a, b = distribution.concentration1, distribution.concentration0
    log_value = within_constraint(value, distribution.support).log()
    return (a * b).log() + (a - 1) * log_value + (b - 1) * _log_rest(a * log_value)


@register_moving_tails(VonMises)
def _(distribution, value):
    """Of the interval from -pi to pi, wherever the mean is, with no flow through its ends."""
    loc, kappa = distribution.loc, distribution.concentration
    fixed = kappa.detach()
    angle, start = _angles(loc.detach(), value)
    here, there = von_mises_tails(kappa, angle), von_mises_tails(kappa, start)
    # of densities, at the start and here: bounded, for a responsibility of zero may come with it
    bound = math.log(torch.finfo(value.dtype).max) / 2
    ratio = (fixed * (start.cos() - angle.cos())).clamp_max(bound).exp()
    by_kappa = tuple(
        v - ratio * at_start for v, at_start in zip(here.velocities, there.velocities, strict=True)
    )
    point = value + (1 - ratio) * (loc - loc.detach()) + carried(by_kappa, kappa)
    return point, _between(angle, start, here, there)


@register_tails(Uniform)
def _(distribution, value):
    width = distribution.high - distribution.low
    below, above = value - distribution.low, distribution.high - value
    return Tails(below / width, above / width)


@register_tails(Beta)
def _(distribution, value):
    a, b = distribution.concentration1, distribution.concentration0
    tails = beta_tails(a, b, value.log(), (-value).log1p())
    return Tails(tails.log_cdf.exp(), tails.log_sf.exp())


@register_tails(Kumaraswamy)
def _(distribution, value):
    log_sf = _kumaraswamy_log_sf(distribution.concentration1, distribution.concentration0, value)
    return Tails(-log_sf.expm1(), log_sf.exp())


@register_tails(VonMises)
def _(distribution, value):
    kappa = distribution.concentration
    angle, start = _angles(distribution.loc, value)
    return _between(angle, start, von_mises_tails(kappa, angle), von_mises_tails(kappa, start))


def _between(angle: Tensor, start: Tensor, here, there) -> Tails:
    """Tails of an interval that starts elsewhere on the circle."""
    cdf, sf, start_cdf, start_sf = (x.exp() for x in (*here[:2], *there[:2]))
    # small differences are those of the smaller tails
    between = torch.where(angle + start < 0, cdf - start_cdf, start_sf - sf)
    ahead = angle >= start
    return Tails(
        torch.where(ahead, between, cdf + start_sf), torch.where(ahead, start_cdf + sf, -between)
    )


def _kumaraswamy_log_sf(a: Tensor, b: Tensor, value: Tensor) -> Tensor:
    return b * _log_rest(a * value.log())


def _log_rest(x: Tensor) -> Tensor:
    """``log(1 - exp(x))`` with all its digits, within what a floating point number holds."""
    bounds = torch.finfo(x.dtype)
    x = x.clamp(math.log(bounds.tiny), -bounds.tiny)
    near, far = (-x.clamp_min(-1).expm1()).log(), (-x.clamp_max(-0.5).exp()).log1p()
    return torch.where(x > -math.log(2), near, far)


def _angles(loc: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Of points and of the start of the interval, -pi, about the mean."""
    loc = loc.to(value.dtype)  # half precision would round the start
    return _wrapped(value - loc), _wrapped(-math.pi - loc)


def _wrapped(angle: Tensor) -> Tensor:
    """In ``[-pi, pi)``."""
    return (angle + math.pi) % math.tau - math.pi
