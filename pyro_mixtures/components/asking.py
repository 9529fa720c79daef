"""What is asked of torch's distributions beside their rules."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, Independent

from pyro_mixtures.numerics.precision import surely_all


def base_of(distribution: Any) -> Any:
    """A distribution without what makes vectors of independent coordinates."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def location_and_spread(component: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, or what the family has where these do not exist."""
    component = base_of(component)
    try:
        mean, stddev = component.mean, component.stddev
        if surely_all((mean + stddev).isfinite()):
            return mean, stddev
        if hasattr(component, "scale_tril"):
            return component.loc, torch.linalg.vector_norm(component.scale_tril, dim=-1)
        return component.loc, component.scale
    except AttributeError:
        raise NotImplementedError from None


def rsample(component: Distribution, count: int) -> Tensor:
    """Samples that move, or an error that tells whose ``rsample`` is missing."""
    if not component.has_rsample:
        kind: Any = component
        while hasattr(kind, "base_dist"):
            kind = kind.base_dist
        raise NotImplementedError(
            f"Expected components with reparameterized samples, but got {type(kind).__name__},"
            " which has none"
        )
    return component.rsample((count,))


def unchecked(distribution: Any) -> Any:
    """A copy that does not look at values: the mixture has, and in the precision of its users."""
    new = copy.copy(distribution)
    new.__dict__["_validate_args"] = False
    if "base_dist" in vars(new):
        new.__dict__["base_dist"] = unchecked(new.base_dist)
    return new


def expanded(distribution: Distribution, batch_shape: Size) -> Distribution:
    """A distribution of a batch shape, with an error that tells whose ``expand`` is missing."""
    if distribution.batch_shape == batch_shape:
        return distribution
    try:
        return distribution.expand(batch_shape)
    except NotImplementedError:
        raise NotImplementedError(
            f"Expected {type(distribution).__name__} of batch shape {tuple(batch_shape)}, or with"
            f" a method expand, but got {tuple(distribution.batch_shape)} and no such method"
        ) from None
