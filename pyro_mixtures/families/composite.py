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
    Transform,
    TransformedDistribution,
)

from pyro_mixtures.families.registry import (
    Tails,
    coordinates,
    factor,
    factors,
    moved,
    register_coordinates,
    register_factors,
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


@register_tails(Independent)
def _(distribution, value):
    return tails(distribution.base_dist, value)


@register_velocity(TransformedDistribution)
def _(distribution, value):
    for transform in reversed(distribution.transforms):
        value = _before(transform, value)
    value = moved(distribution.base_dist, value.detach())
    for transform in distribution.transforms:
        value = transform(value)
    return value


@register_tails(TransformedDistribution)
def _(distribution, value):
    value, sign, log_slope = _pulled_back(parts(distribution.transforms), value)
    own = factor(distribution.base_dist, value, tails(distribution.base_dist, value))
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
    low, high = (getattr(transform.codomain, f"{side}_bound", None) for side in ("lower", "upper"))
    bounds = torch.finfo(value.dtype)
    if isinstance(low, (int, float)):
        value = value.clamp_min(low + max(abs(low) * bounds.eps, bounds.tiny))
    if isinstance(high, (int, float)):
        value = value.clamp_max(high - max(abs(high) * bounds.eps, bounds.tiny))
    return transform.inv(value)


def _pulled_back(transforms: Sequence[Transform], value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Before elementwise transforms, with the sign and the logarithm of their slope."""
    sign, log_slope = torch.ones_like(value), torch.zeros_like(value)
    for transform in reversed(transforms):
        before = _before(transform, value)
        sign = sign * transform.sign
        log_slope = log_slope + transform.log_abs_det_jacobian(before, value)
        value = before
    return value, sign, log_slope


def _turned(sign: Tensor, cdf: Tensor, sf: Tensor) -> tuple[Tensor, Tensor]:
    """Tails after a transform with slopes of a sign."""
    rising = sign > 0
    return torch.where(rising, cdf, sf), torch.where(rising, sf, cdf)
