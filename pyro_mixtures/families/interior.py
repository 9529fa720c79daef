"""Numbers next to the ends of an interval: rounding leads to the ends, where densities are not."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

ROOM = 2.0**-8
"""Of the largest number: what is computed from samples may be somewhat larger than they are."""

Ends = tuple[Tensor | float, Tensor | float]


def within(value: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Points of an open interval; those on or beyond its ends become the numbers next to these."""
    numbers = torch.finfo(value.dtype)
    computed_in = torch.finfo(torch.promote_types(value.dtype, torch.float32))
    largest = min(numbers.max, ROOM * computed_in.max)
    if isinstance(low, Tensor) or low > -math.inf:
        end = torch.as_tensor(low, dtype=value.dtype, device=value.device)
        inside = torch.nextafter(end, torch.full_like(end, torch.inf))
        value = torch.maximum(value, torch.maximum(inside, end + numbers.tiny))
    if isinstance(high, Tensor) or high < math.inf:
        end = torch.as_tensor(high, dtype=value.dtype, device=value.device)
        inside = torch.nextafter(end, torch.full_like(end, -torch.inf))
        value = torch.minimum(value, torch.minimum(inside, end - numbers.tiny))
    return value.clamp(-largest, largest)


def within_constraint(value: Tensor, constraint: Constraint | None) -> Tensor:
    """Points inside of the interval of a constraint."""
    return within(value, *bounds(constraint))


def bounds(constraint: Constraint | None) -> Ends:
    """Of each coordinate's interval, infinite where a constraint has none."""
    constraint = getattr(constraint, "base_constraint", constraint)  # of independent coordinates
    low = getattr(constraint, "lower_bound", -math.inf)
    return low, getattr(constraint, "upper_bound", math.inf)
