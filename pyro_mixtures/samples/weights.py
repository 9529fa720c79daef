"""Weights of components: drawing by them, and their shares within groups."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mixtures.numerics.precision import surely_all


def draw_index(weights: Tensor, count: int) -> Tensor:
    """Component indices by inversion, ``(*B, K) -> (*B, count)``; never one of weight zero."""
    cdf = weights.cumsum(-1)
    cdf = cdf / cdf[..., -1:]  # exactly 1 from the last positive weight on
    uniform = torch.rand(*weights.shape[:-1], count, dtype=cdf.dtype, device=cdf.device)
    return torch.searchsorted(cdf, uniform, right=True)


def within_group(log_weights: Tensor, groups: Tensor | None = None) -> Tensor:
    r"""Weights :math:`\pi_k / \pi_C` of k within the group C of j, zero outside it.

    They have shape ``(*B, K, K)``, or ``(*B, 1, K)`` when every mixture of the batch is one group.
    In a group of zero weight all members count alike. Groups are labels ``(*B, K)``.
    """
    if groups is None or surely_one_group(groups):
        return log_weights.exp().unsqueeze(-2)
    other = groups.unsqueeze(-1) != groups.unsqueeze(-2)  # (*B, K, K)
    log_weights = log_weights.clamp_min(torch.finfo(log_weights.dtype).min).unsqueeze(-2)
    return log_weights.masked_fill(other, -torch.inf).softmax(-1)


def group_sums(x: Tensor, groups: Tensor) -> Tensor:
    """For each component the sum over its group, ``(*X, K) -> (*X, K)``.

    Args:
        x: for each component.
        groups: the number of the first one in each component's group, of a shape that broadcasts
            with ``(*X, K)``.
    """
    if groups.shape != x.shape:
        groups = groups.expand(x.shape)
    return torch.zeros_like(x).scatter_add(-1, groups, x).gather(-1, groups)


def group_shares(responsibilities: Tensor, log_weights: Tensor, groups: Tensor) -> Tensor:
    r""":math:`r_C \pi_j / \pi_C` with the responsibilities of groups, ``(*X, K) -> (*X, K)``."""
    weights = log_weights.detach().exp()
    group_weight = group_sums(weights, groups).clamp_min(torch.finfo(weights.dtype).tiny)
    return group_sums(responsibilities, groups) * (weights / group_weight)


def surely_one_group(groups: Tensor) -> bool:
    """Whether all components of each mixture have the label of the first, as far as is known."""
    return surely_all(groups == 0)
