"""Components of different families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.components.asking import expanded, rsample
from pyro_mixtures.components.base import Components
from pyro_mixtures.components.family import Family
from pyro_mixtures.families.registry import log_density, moved
from pyro_mixtures.numerics.precision import at_least_single


class Several(Family):
    """Components of any families, side by side on one support.

    Args:
        distributions: K, of batch shapes ``B`` and one event shape.
    """

    transports: Any = {"telescoping": "telescoping"}

    def _set_shapes(self):
        self.num_components = len(self.distributions)
        first = self.distributions[0]
        Components.__init__(self, first.batch_shape, first.event_shape)

    def _each(self, function, *values):
        dim = len(self.batch_shape) + (1 if values else 0)
        return _stack([function(component, *values) for component in self.distributions], dim)

    def _padded(self, value):
        return value

    def _sample_each(self, count):
        samples = [component.sample((count,)) for component in self.distributions]
        return torch.stack(samples, 1 + len(self.batch_shape))

    def _rsample_each(self, count):
        samples = [rsample(component, count) for component in self.distributions]
        return torch.stack(samples, 1 + len(self.batch_shape))

    def _pick(self, index):
        return self._pick_of_all(index)

    def _motion(self, points):
        return self._each(moved, points)

    _moving_tails = None  # not of all at once

    def expand(self, batch_shape):
        return type(self)(*(expanded(each, batch_shape) for each in self.distributions))

    def log_prob_of_own(self, z):
        (z,) = at_least_single(z)
        events = self._events(z).unbind(len(self.batch_shape) + 1)
        pairs = zip(self.distributions, events, strict=True)
        return torch.stack([log_density(*pair) for pair in pairs], -1).movedim(0, -2)


def _stack(results: Sequence[Any], dim: int) -> Any:
    """Of tensors, or of tuples of them, of the same type."""
    if isinstance(results[0], Tensor):
        return torch.stack(tuple(results), dim)
    parts = [_stack(part, dim) for part in zip(*results, strict=True)]
    kind = type(results[0])
    return tuple(parts) if kind is tuple else kind(*parts)
