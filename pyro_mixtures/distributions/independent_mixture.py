"""Wrappers of mixtures that keep the score term."""

from __future__ import annotations

import torch
from pyro.distributions import Independent
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import sum_rightmost
from torch import Size, Tensor


class IndependentMixture(Independent):
    """``to_event`` of a mixture with a score term, which Pyro's own would drop."""

    def to_event(self, reinterpreted_batch_ndims=None):
        more = reinterpreted_batch_ndims
        more = len(self.batch_shape) if more is None else more
        return self.base_dist.to_event(self.reinterpreted_batch_ndims + more)

    def mask(self, mask):
        return super().mask(mask_tensor(mask, self.batch_shape, self.base_dist.component_logits))

    def score_parts(self, x, *args, **kwargs):
        count = self.reinterpreted_batch_ndims
        parts = self.base_dist.score_parts(x)
        parts = (p if isinstance(p, int) else sum_rightmost(p, count) for p in parts)
        return ScoreParts(*parts)


def mask_tensor(mask: Tensor | bool, batch_shape: Size, like: Tensor) -> Tensor:
    """A mask as a tensor, on the device of another: with a bool Pyro would drop the score term."""
    if isinstance(mask, bool):
        return torch.tensor(mask, device=like.device).expand(batch_shape)
    return mask
