"""Wrappers that keep the ``score_parts`` of a distribution, which Pyro's own would drop."""

from __future__ import annotations

import torch
from pyro.distributions import Independent
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import sum_rightmost
from torch import Size, Tensor


class IndependentParts(Independent):
    """``to_event`` of a distribution that has ``score_parts`` of its own."""

    def to_event(self, reinterpreted_batch_ndims=None):
        more = reinterpreted_batch_ndims
        more = len(self.batch_shape) if more is None else more
        return self.base_dist.to_event(self.reinterpreted_batch_ndims + more)

    def mask(self, mask):
        return super().mask(mask_tensor(mask, self.batch_shape, self.base_dist.device))

    def score_parts(self, x, *args, **kwargs):
        count = self.reinterpreted_batch_ndims
        parts = self.base_dist.score_parts(x)
        parts = (p if isinstance(p, int) else sum_rightmost(p, count) for p in parts)
        return ScoreParts(*parts)


def mask_tensor(mask: Tensor | bool, batch_shape: Size, device: torch.device) -> Tensor:
    """A mask as a tensor: with a bool Pyro would ask for ``log_prob`` alone."""
    if isinstance(mask, bool):
        return torch.tensor(mask, device=device).expand(batch_shape)
    return mask
