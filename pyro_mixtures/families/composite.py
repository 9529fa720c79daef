"""Distributions made of others: independent coordinates and transformed ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from pyro.distributions.transforms import LowerCholeskyAffine
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Independent,
    IndependentTransform,
    PowerTransform,
    SigmoidTransform,
    TanhTransform,
    Transform,
    TransformedDistribution,
)
from torch.nn.functional import logsigmoid

from pyro_mixtures.families.interior import bounds, within_constraint
from pyro_mixtures.families.registry import (
    Tails,
    coordinates,
    factor,
    factors,
    log_density,
    moved,
    register_coordinates,
    register_factors,
    register_log_density,
    register_tails,
    register_velocity,
    tails,
    velocity,
)
from pyro_mixtures.velocity.telescoping import Factors


@register_velocity(Independent)
def _(distribution, value):
    return velocity(distribution.base_dist, value)


@register_coordinates(Independent)
def _(distribution, *others):
    shared = coordinates(distribution.base_dist, *(other.base_dist for other in others))
    if distribution.reinterpreted_batch_ndims and isinstance(shared, LowerCholeskyAffine):
        raise NotImplementedError(
            "Expected vectors of dependent coordinates to be one event, but got Independent of"
            f" {type(distribution.base_dist).__name__}: take one with a block-diagonal scale_tril,"
            " or weight_gradient='hybrid'"
        )
    return shared


@register_factors(Independent)
def _(distribution, value, shared):
    first = -1 - distribution.reinterpreted_batch_ndims
    own, marginal = factors(distribution.base_dist, value, shared)
    own = Factors(*(x.flatten(first) for x in own))
    return own, own if marginal is own else Factors(*(x.flatten(first) for x in marginal))


@register_log_density(Independent)
def _(distribution, value):
    return _sum_last(
        log_density(distribution.base_dist, value), distribution.reinterpreted_batch_ndims
    )


@register_tails(Independent)
def _(distribution, value):
    return tails(distribution.base_dist, value)


@register_velocity(TransformedDistribution)
def _(distribution, value):
    steps = parts(distribution.transforms)
    for step in reversed(steps):
        value = _before(step, value)
    value = within_constraint(value, distribution.base_dist.support)
    value = moved(distribution.base_dist, value.detach())
    for step in steps:
        value = _after(step, value)
    return value


@register_log_density(TransformedDistribution)
def _(distribution, value):
    """As torch's, but finite wherever the density is."""
    base, event_dim = distribution.base_dist, len(distribution.event_shape)
    log_slopes: Tensor | float = 0.0
    for step in reversed(parts(distribution.transforms)):
        before = _before(step, value)
        event_dim += step.domain.event_dim - step.codomain.event_dim
        log_slope = _log_slope(step, before, value)
        log_slopes = log_slopes + _sum_last(log_slope, event_dim - step.domain.event_dim)
        value = before
    value = within_constraint(value, base.support)
    return _sum_last(log_density(base, value), event_dim - len(base.event_shape)) - log_slopes


@register_tails(TransformedDistribution)
def _(distribution, value):
    value, sign, log_slope = _pulled_back(parts(distribution.transforms), value)
    base = distribution.base_dist
    while isinstance(base, Independent):  # the density of each coordinate
        base = base.base_dist
    own = factor(base, value, tails(base, value))
    cdf, sf = _turned(sign, own.cdf, own.sf)
    return Tails(cdf, sf, own.log_pdf - log_slope)


@register_coordinates(TransformedDistribution)
def _(distribution, *others):
    bases = (d.base_dist for d in (distribution, *others))
    shared = coordinates(*bases)
    steps = parts(distribution.transforms)
    if any(other.transforms != distribution.transforms for other in others):
        raise NotImplementedError(
            "Expected components that share their transforms, but got"
            f" {', '.join(str(d.transforms) for d in (distribution, *others))}"
        )
    if shared is not None:
        return ComposeTransform([shared, *steps])
    joint = [not elementwise(step) for step in steps]
    return ComposeTransform(steps[joint.index(True) :]) if any(joint) else None


@register_factors(TransformedDistribution)
def _(distribution, value, shared):
    if not distribution.event_shape:
        return factors.default(distribution, value, shared)
    steps, outer = parts(distribution.transforms), shared.parts if shared else []
    inner = steps[: max(0, len(steps) - len(outer))]
    base, outer = (outer[0], outer[1:]) if len(outer) > len(steps) else (None, outer)
    for step in reversed(outer):
        value = _before(step, value)
    value, sign, log_slope = _pulled_back(inner, value)
    own, marginal = factors(distribution.base_dist, value, base)
    if not inner:
        return own, marginal
    first = -len(distribution.event_shape)
    sign, log_slope = sign.flatten(first), log_slope.flatten(first)
    own, marginal = (
        Factors(x.log_pdf - log_slope, *_turned(sign, x.cdf, x.sf)) for x in (own, marginal)
    )
    return own, marginal


def parts(transforms: Iterable[Transform]) -> list[Transform]:
    """One after the other, and as many as can be elementwise."""
    steps: list[Transform] = []
    for transform in transforms:
        if isinstance(transform, ComposeTransform):
            steps += parts(transform.parts)
        elif isinstance(transform, IndependentTransform):
            within = parts([transform.base_transform])
            steps += within if all(map(elementwise, within)) else [transform]
        elif isinstance(transform, AffineTransform):
            steps.append(AffineTransform(transform.loc, transform.scale))
        else:
            steps.append(transform)
    return steps


def elementwise(transform: Transform) -> bool:
    """Whether it maps each coordinate alone."""
    return transform.domain.event_dim == 0 == transform.codomain.event_dim


def _before(transform: Transform, value: Tensor) -> Tensor:
    """Inverse of a transform; samples rounded to an end of its range come from next to it."""
    value = transform.inv(within_constraint(value, transform.codomain))
    return within_constraint(value, transform.domain)


def _after(transform: Transform, value: Tensor) -> Tensor:
    """A transform whose slopes are finite and have their digits wherever its values are."""
    if isinstance(transform, PowerTransform):
        return (transform.exponent * value.log()).exp()
    if isinstance(transform, SigmoidTransform):
        return logsigmoid(value).exp()
    if isinstance(transform, TanhTransform):
        return 2 * logsigmoid(2 * value).exp() - 1
    return transform(value)


def _log_slope(transform: Transform, before: Tensor, value: Tensor) -> Tensor:
    """The logarithm of the slope, which may be more than a number holds."""
    if isinstance(transform, PowerTransform):
        exponent = torch.as_tensor(transform.exponent)
        log_value = within_constraint(value, transform.codomain).log()
        return exponent.abs().log() + (1 - 1 / exponent) * log_value
    return transform.log_abs_det_jacobian(before, value)


def _sum_last(value: Tensor, count: int) -> Tensor:
    """Over the last dimensions, which may be empty."""
    return value.flatten(-count).sum(-1) if count else value


def _pulled_back(transforms: Sequence[Transform], value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Before elementwise transforms, with the sign and the logarithm of their slope."""
    sign, log_slope = torch.ones_like(value), torch.zeros_like(value)
    for transform in reversed(transforms):
        before = _before(transform, value)
        sign = sign * _sign(transform, value)
        log_slope = log_slope + _log_slope(transform, before, value)
        value = before
    return value, sign, log_slope


@torch.no_grad()
def _sign(transform: Transform, value: Tensor) -> Tensor | int:
    """Of the slope, also of those that do not tell: Pyro's splines, for one."""
    try:
        return transform.sign
    except NotImplementedError:
        low, high = bounds(transform.domain)
        if not (isinstance(low, float) and isinstance(high, float) and low <= 0 < 1 <= high):
            raise NotImplementedError(
                f"Expected transforms of numbers to tell the sign of their slope, but {transform}"
                " does not: give its class an attribute sign"
            ) from None
        images = transform(torch.zeros_like(value)), transform(torch.ones_like(value))
        return (images[1] - images[0]).sign()


def _turned(sign: Tensor, cdf: Tensor, sf: Tensor) -> tuple[Tensor, Tensor]:
    """Tails after a transform with slopes of a sign."""
    rising = sign > 0
    return torch.where(rising, cdf, sf), torch.where(rising, sf, cdf)
