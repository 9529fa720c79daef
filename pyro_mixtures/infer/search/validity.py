"""Which elements of a batch a distribution refuses, where its validation refuses all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import lazy_property


def valid_parameters(fn: Any) -> Iterator[Tensor]:
    """What ``validate_args`` checks at construction, each to be broadcast to the batch shape."""
    own, in_event = fn, 0
    while own is not None:
        for name, constraint in own.arg_constraints.items():
            if not (constraints.is_dependent(constraint) or _follows(own, name, constraint)):
                yield _of_batch(constraint.check(getattr(own, name)), fn, in_event)
        in_event += getattr(own, "reinterpreted_batch_ndims", 0)
        own = getattr(own, "base_dist", None)


def valid_values(fn: Any, value: Tensor) -> Iterator[Tensor]:
    """What ``validate_args`` checks in ``log_prob``, to be broadcast to the batch shape."""
    try:
        support = fn.support
    except NotImplementedError:
        return
    valid = support.check(torch.as_tensor(value))
    within = len(fn.event_shape) - support.event_dim  # of Unit one, of no elements
    yield valid.flatten(-within).all(-1) if within > 0 else valid


def _follows(own: Any, name: str, constraint: Any) -> bool:
    """Whether a parameter follows from another one, or is checked where it gets its factor."""
    if isinstance(constraint, type(constraints.symmetric)):
        return True
    return name not in vars(own) and isinstance(getattr(type(own), name, None), lazy_property)


def _of_batch(valid: Tensor, fn: Any, in_event: int) -> Tensor:
    """Without the dimensions on the right that belong to one event of the distribution."""
    surplus = min(max(in_event, valid.dim() - len(fn.batch_shape)), valid.dim())
    return valid.flatten(-surplus).all(-1) if surplus else valid
