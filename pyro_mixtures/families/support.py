"""Checks that distributions can be the components of one mixture."""

from __future__ import annotations

import math
from typing import TypeGuard

import torch
from torch import Tensor
from torch.distributions import (
    CatTransform,
    ComposeTransform,
    Distribution,
    Independent,
    StackTransform,
    TransformedDistribution,
    VonMises,
)

from pyro_mixtures.families.composite import elementwise, parts
from pyro_mixtures.families.registry import common_coordinates, factors, tails, velocity

Ends = tuple[Tensor | float, Tensor | float]


def check_rules(distribution: Distribution) -> None:
    """Raise a ``NotImplementedError`` for a distribution that cannot move its points."""
    name = type(distribution).__name__
    if distribution.support is not None and distribution.support.is_discrete:
        raise NotImplementedError(
            f"Expected continuous components, but {name} is discrete: its samples have no"
            " gradient. Sum over its values (Pyro's TraceEnum_ELBO), take the score function of"
            " torch's MixtureSameFamily, or relax it (RelaxedOneHotCategorical)"
        )
    rule = velocity.of(type(distribution))
    if rule is velocity.default:
        rule(distribution, torch.zeros(()))  # its error says what to do
    if isinstance(distribution, Independent):
        check_rules(distribution.base_dist)
    elif _is_transformed(distribution):
        for transform in distribution.transforms:
            if isinstance(transform, (CatTransform, StackTransform)) or not transform.bijective:
                raise NotImplementedError(
                    f"Expected components with invertible transforms, but {name} has"
                    f" {transform}: give a class of its own a rule by register_velocity"
                )
        check_rules(distribution.base_dist)


def check_exchange(distribution: Distribution, *others: Distribution) -> None:
    """Raise an error for components that cannot exchange weight.

    Args:
        distribution: of batch shape ``(*B, K)``, or of ``B`` and followed by others.
        others: of the same batch and event shapes.
    """
    for component in (distribution, *others):
        _check_factors(component)
    shared = common_coordinates(distribution, *others)
    if not isinstance(shared, ComposeTransform) or others:
        return  # of a rule, which sees to that itself
    last = len(distribution.batch_shape) - 1
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        value = distribution.sample().narrow(last, 0, 1)
    if shared.inv(value).shape[last] > 1:
        raise NotImplementedError(
            "Expected components that share their transforms of vectors, but got"
            f" {shared} with parameters for each: weight_gradient='hybrid' asks for none"
        )


def _is_transformed(distribution: Distribution) -> TypeGuard[TransformedDistribution]:
    """Whether the rules are those of its transforms, not of its class."""
    return velocity.of(type(distribution)) is velocity.of(TransformedDistribution)


def _check_factors(distribution: Distribution) -> None:
    name = type(distribution).__name__
    if isinstance(distribution, Independent) or _is_transformed(distribution):
        _check_factors(distribution.base_dist)
    elif distribution.event_shape:
        if factors.of(type(distribution)) is factors.default:
            factors(distribution, torch.zeros(()), None)  # its error says what to do
    elif tails.of(type(distribution)) is tails.default:
        if type(distribution).cdf is Distribution.cdf:
            raise NotImplementedError(
                f"Expected components with a distribution function, but {name} has none: give it"
                " cdf or a rule by register_tails; weight_gradient='hybrid' asks for none"
            )


def check_supports(*components: Distribution) -> None:
    """Raise a ``ValueError`` for components that do not share their support.

    No path for the weight leads where the mixture has no density.
    """
    shape = components[0].batch_shape + components[0].event_shape
    intervals = [_interval(component) for component in components]
    known = [interval for interval in intervals if interval is not None]
    kinds = {type(component.support) for component in components}
    if known and len(known) < len(components) or not known and len(kinds) > 1:
        raise ValueError(
            "Expected components of the same support, but got"
            f" {', '.join(str(component.support) for component in components)}"
        )
    for name, ends in zip(("lower", "upper"), zip(*known, strict=True), strict=False):
        if all(isinstance(end, float) and end == ends[0] for end in ends):
            continue
        like = next((end for end in ends if isinstance(end, Tensor)), torch.zeros(()))
        each = [torch.as_tensor(end).to(like).expand(shape) for end in ends]
        dim = len(components[0].batch_shape) - 1 if len(each) == 1 else 0
        stacked = each[0] if len(each) == 1 else torch.stack(each)
        first = stacked.narrow(dim, 0, 1).expand_as(stacked)
        differ = ~stacked.isclose(first)
        if differ.any():
            raise ValueError(
                f"Expected components of the same support, but got {name} ends"
                f" {first[differ][0].item():.6g} and {stacked[differ][0].item():.6g}: no path for"
                " weight leads where the mixture has no density. Transform them to one support;"
                " torch's MixtureSameFamily takes them, without rsample"
            )


def _interval(distribution: Distribution) -> Ends | None:
    """Ends of the support in each coordinate, where it is an interval."""
    if isinstance(distribution, Independent):
        return _interval(distribution.base_dist)
    if isinstance(distribution, VonMises):
        return -math.pi, math.pi
    if _has_support_of_transforms(distribution):
        ends = _interval(distribution.base_dist)
        for part in parts(distribution.transforms):
            if ends is None or not elementwise(part):
                return ends  # from here on all components share the map
            images = [part(torch.as_tensor(end)) for end in ends]
            ends = torch.minimum(*images), torch.maximum(*images)
        return ends
    support = distribution.support
    if support is None or support.event_dim > 0:
        return None
    return getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)


def _has_support_of_transforms(
    distribution: Distribution,
) -> TypeGuard[TransformedDistribution]:
    """Whether it is not of a class that knows better."""
    return (
        getattr(type(distribution), "support", None) is TransformedDistribution.__dict__["support"]
    )
