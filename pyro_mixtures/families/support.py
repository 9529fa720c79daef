"""The supports of a mixture's components: checks that they are one, and points inside of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import (
    CatTransform,
    ComposeTransform,
    Distribution,
    Independent,
    StackTransform,
    Transform,
    TransformedDistribution,
    VonMises,
    constraints,
)
from torch.distributions.constraints import Constraint

from pyro_mixtures.families.composite import elementwise, parts
from pyro_mixtures.families.interior import Ends, bounds, within
from pyro_mixtures.families.registry import common_coordinates, factors, tails, velocity

ADVICE = (
    "No path for weight leads where the mixture has no density: take families of one support, or"
    " map each onto it by TransformedDistribution (a Normal beside a Gamma by ExpTransform), or"
    " take Mixture with weight_gradient='hybrid'"
)


def check_rules(distribution: Distribution) -> None:
    """Raise a ``NotImplementedError`` for a distribution that cannot move its points."""
    name = type(distribution).__name__
    if distribution.support is not None and distribution.support.is_discrete:
        raise NotImplementedError(
            f"Expected continuous components, but {name} is discrete: its samples have no"
            " gradient. Take pyro.distributions.MixtureSameFamily of one family, which has the"
            " score function of its samples under Trace_ELBO, or, of finitely many values, a"
            " Categorical of their mixed probabilities, over which TraceEnum_ELBO sums"
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
                    f" {transform}: give it a class of its own, with log_prob and rules by"
                    " register_velocity and register_tails"
                )
        check_rules(distribution.base_dist)


def check_exchange(distribution: Distribution, *others: Distribution) -> None:
    """Raise an error for components that cannot exchange weight.

    Args:
        distribution: of batch shape ``(*B, K)``, or of ``B`` and followed by others.
        others: of the same batch and event shapes.
    """
    if others:
        check_supports(distribution, *others)  # whose error no choice of the exchange avoids
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
    elif not has_tails(distribution):
        raise NotImplementedError(
            f"Expected components with a distribution function, but {name} has none: give it"
            " cdf or a rule by register_tails; weight_gradient='hybrid' asks for none"
        )


def has_tails(distribution: Distribution) -> bool:
    """Whether the distribution functions of its coordinates are known."""
    if isinstance(distribution, Independent):
        return has_tails(distribution.base_dist)
    if _is_transformed(distribution):
        alone = all(map(elementwise, parts(distribution.transforms)))
        return alone and has_tails(distribution.base_dist)
    own = type(distribution).cdf is not Distribution.cdf
    return not distribution.event_shape and (
        own or tails.of(type(distribution)) is not tails.default
    )


def check_supports(*components: Distribution) -> None:
    """Raise a ``ValueError`` for components that do not share their support.

    No path for the weight leads where the mixture has no density.
    """
    intervals = [_interval(component) for component in components]
    known = [interval for interval in intervals if interval is not None]
    kinds = {type(component.support) for component in components}
    named = type(components[0]).__name__
    if len(components) > 1:
        named = ", ".join(f"{type(each).__name__} on {each.support}" for each in components)
    if known and len(known) < len(components) or not known and len(kinds) > 1:
        raise ValueError(f"Expected components of the same support, but got {named}. {ADVICE}")
    for name, each in zip(("lower", "upper"), zip(*known, strict=True), strict=False):
        stacked = _stacked(each, *components)
        if not isinstance(stacked, Tensor):
            continue
        first = stacked[:1].expand_as(stacked)
        differ = ~stacked.isclose(first)
        if differ.any():
            values = f"{first[differ][0].item():.6g} and {stacked[differ][0].item():.6g}"
            raise ValueError(
                f"Expected components of the same support, but got {name} ends {values} ({named})."
                f" {ADVICE}"
            )


def is_atom(distribution: Any) -> bool:
    """Whether it is a point with a probability."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return isinstance(distribution, Delta)


def share_support(*components: Distribution) -> bool:
    """Whether they do, as far as is known."""
    try:
        check_supports(*components)
    except ValueError:
        return False
    except RuntimeError as error:  # vmap hides values
        if "vmap" not in str(error):
            raise
    return True


def check_intervals(*components: Distribution) -> None:
    """Raise a ``ValueError`` for components whose coordinates do not lie in intervals."""
    for component in components:
        if _interval(component) is None:
            raise ValueError(
                "Expected components of the same support, or of coordinates in intervals, but got"
                f" {type(component).__name__} on {component.support}. {ADVICE}"
            )


def holds(distribution: Any, value: Tensor) -> Tensor:
    """Whether points are of its support, ``(*X, *B, *E) -> (*X, *B)``."""
    low, high = ends(distribution, value.dtype)
    if is_atom(distribution):
        value = as_precise_as(distribution, value)
    each = (value >= low) & (value <= high)
    count = len(distribution.event_shape)
    return each.flatten(each.dim() - count).all(-1) if count else each


class UnionConstraint(Constraint):
    """Values of the support of any of several distributions."""

    def __init__(self, *components: Distribution) -> None:
        self.components, self.event_dim = components, len(components[0].event_shape)
        super().__init__()

    def __repr__(self) -> str:
        return f"UnionConstraint({', '.join(type(each).__name__ for each in self.components)})"

    def check(self, value: Tensor) -> Tensor:
        """Whether each is."""
        return torch.stack([holds(each, value) for each in self.components]).any(0)


def as_precise_as(atom: Any, value: Tensor) -> Tensor:
    """Points rounded to an atom's dtype: 0.1 of double precision is on the 0.1 of single."""
    while isinstance(atom, Independent):
        atom = atom.base_dist
    return value.to(atom.v.dtype).to(value.dtype)


def ends(distribution: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of the interval of each coordinate, of the batch's and the event's shape."""
    if is_atom(distribution):
        while isinstance(distribution, Independent):
            distribution = distribution.base_dist
        return distribution.v.to(dtype), distribution.v.to(dtype)
    interval = _interval(distribution) or (-math.inf, math.inf)
    shape = distribution.batch_shape + distribution.event_shape
    low, high = (torch.as_tensor(end, dtype=dtype).expand(shape) for end in interval)
    return low, high


def inside_support(value: Tensor, *components: Distribution) -> Tensor:
    """Samples moved off the ends of their support and off infinity, where rounding put them.

    The numbers next to the ends take their place, whose density is not zero, infinite or NaN.

    Args:
        value: samples of the mixture, ``(*X, *B, *E)``.
        components: several of batch shape ``B``, or one of batch shape ``(*B, K)``.
    """
    lows, highs = zip(*(_ends(each, value.dtype) for each in components), strict=True)
    low, high = _stacked(lows, *components), _stacked(highs, *components)
    return within(
        value,
        low.amin(0) if isinstance(low, Tensor) else low,
        high.amax(0) if isinstance(high, Tensor) else high,
    )


def _ends(distribution: Distribution, dtype: torch.dtype) -> Ends:
    """Of the support in each coordinate, infinite where it has none: on a circle, for one."""
    if isinstance(distribution, Independent):
        return _ends(distribution.base_dist, dtype)
    if not _has_support_of_transforms(distribution):
        return bounds(distribution.support)
    image = _ends(distribution.base_dist, dtype)
    for part in parts(distribution.transforms):
        image = _image(part, image, dtype) if elementwise(part) else bounds(part.codomain)
    return image


def _stacked(ends: Sequence[Tensor | float], *components: Distribution) -> Tensor | float:
    """Ends of all components, ``(K, *B, *E)``, or the number that they all are."""
    if all(isinstance(end, float) and end == ends[0] for end in ends):
        return ends[0]
    like = next((end for end in ends if isinstance(end, Tensor)), torch.zeros(()))
    shape = components[0].batch_shape + components[0].event_shape
    each = [torch.as_tensor(end).to(like).expand(shape) for end in ends]
    if len(each) > 1:
        return torch.stack(each)
    return each[0].movedim(len(components[0].batch_shape) - 1, 0)


def first_component(support: Constraint, event_dims: int) -> Constraint:
    """The support of the first of several components, which all share it.

    Args:
        support: of components of batch shape ``(*B, K)``, whose tensors, if it has any, may have
            that shape followed by the event's.
        event_dims: dimensions of an event.

    Returns:
        The support without the dimension K.
    """
    first = copy.copy(support)
    for name, value in vars(support).items():
        if isinstance(value, Constraint):
            setattr(first, name, first_component(value, event_dims))
        elif isinstance(value, Tensor) and value.dim() > event_dims:
            setattr(first, name, value.select(-1 - event_dims, 0))
    return first


def _interval(distribution: Distribution) -> Ends | None:
    """Ends of the support in each coordinate, where it is an interval."""
    if isinstance(distribution, Independent):
        return _interval(distribution.base_dist)
    if isinstance(distribution, VonMises):
        return -math.pi, math.pi
    if _has_support_of_transforms(distribution):
        ends = _interval(distribution.base_dist)
        for part in parts(distribution.transforms):
            if ends is None:
                return None
            if not elementwise(part):
                whole = all(isinstance(end, float) and math.isinf(end) for end in ends)
                # else from here on all components share the map
                return _of_constraint(distribution.support) if whole else ends
            ends = _image(part, ends)
        return ends
    return _of_constraint(distribution.support)


def _of_constraint(constraint: constraints.Constraint | None) -> Ends | None:
    if isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint  # of vectors of numbers
    return None if constraint is None or constraint.event_dim > 0 else bounds(constraint)


def _image(transform: Transform, interval: Ends, dtype: torch.dtype | None = None) -> Ends:
    """Ends of an interval after an elementwise map."""
    if all(isinstance(end, float) for end in interval) and interval == bounds(transform.domain):
        return bounds(transform.codomain)  # torch's sigmoid of infinity is short of one
    images = [transform(torch.as_tensor(end, dtype=dtype)) for end in interval]
    return torch.minimum(*images), torch.maximum(*images)


def _has_support_of_transforms(
    distribution: Distribution,
) -> TypeGuard[TransformedDistribution]:
    """Whether it is not of a class that knows better."""
    return (
        getattr(type(distribution), "support", None) is TransformedDistribution.__dict__["support"]
    )
