"""Lines: mass moves from component to component, straight from mean to mean."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.special import log_ndtr

from pyro_mixtures.numerics.chunks import map_chunks
from pyro_mixtures.numerics.precision import double

DIRECT = "donot_use_mm_for_euclid_dist"
"""For ``torch.cdist``: expanded squares would lose digits."""


def pairwise(
    x: Tensor, grad: Tensor, log_prob: Tensor, within: Tensor, scales: Tensor, means: Tensor
) -> Tensor:
    r"""Weight contributions :math:`A_j(z) = g \cdot w^j(z) / q(z)` of equally scaled Normals.

    Between two components :math:`N(m_j, \lambda^2 I)`, with :math:`n = |m_j - m_k| / \lambda`,
    :math:`u = (m_j - m_k) / (\lambda n)`, :math:`a = (x - m_j) \cdot u / \lambda` and p the
    distance of x from the line through the two means in units of :math:`\lambda`, the current

    .. math::
        w^{jk} = \lambda^{1 - D} u [\Phi(a + n) - \Phi(a)] (2 \pi)^{(1 - D) / 2} e^{-p^2 / 2}

    has :math:`\nabla \cdot w^{jk} = -(q_j - q_k)`, and :math:`w^j = \sum_k (\pi_k / \pi_C) w^{jk}`
    the mixture of the group as its hub. All of it comes from inner products; the largest array is
    ``S x K x K``.

    Args:
        x: whitened samples, ``(*B, S, D)``.
        grad: gradient at them, ``(*B, S, D)``.
        log_prob: log density of the whitened samples, ``(*B, S, 1)``.
        within: weights :math:`\pi_k / \pi_C` of k in the group C of j, zero outside it,
            ``(*B, K, K)``, or ``(*B, 1, K)`` when all components are one group.
        scales: :math:`\lambda`, ``(*B, K)``, equal within a group.
        means: ``(*B, K, D)``.

    Returns:
        ``(*B, S, K)``, in float64.

    Reference:
        Jankowiak and Karaletsos, Eq. 15, whose printed form measures the distance from a line
        through the origin.
    """
    x, grad, log_prob, within, scales, means = double(x, grad, log_prob, within, scales, means)
    center = within[..., :1, :] @ means
    x, means = x - center, means - center
    dim = x.shape[-1]
    scale = scales.unsqueeze(-1)  # (*B, K, 1)
    gram = means @ means.mT  # (*B, K, K)
    own = gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)  # |m_j|^2, (*B, K, 1)
    separation = torch.cdist(means, means, compute_mode=DIRECT)
    length = torch.where(separation > 0, separation, 1)  # of coinciding ones any will do

    def contributions(x: Tensor, grad: Tensor, log_prob: Tensor) -> Tensor:
        cross = x @ means.mT  # (*B, S, K)
        square = x.square().sum(-1, keepdim=True) - 2 * cross + own.mT  # |x - m_j|^2
        along = (_differences(cross) - (own - gram).unsqueeze(-3)) / (length * scale).unsqueeze(
            -3
        )  # a, (*B, S, K, K)
        slope = _differences(grad @ means.mT) / length.unsqueeze(-3)  # g . u
        log_density = (
            -square / (2 * scale.mT.square())
            - (dim - 1) * (scale.mT.log() + math.log(2 * math.pi) / 2)
            - log_prob
        ).unsqueeze(-1)  # without the factor of the line, (*B, S, K, 1)
        mass = _log_interval(along, (length / scale).unsqueeze(-3))
        # the distance along the line is no part of p
        field = slope * (log_density + along.square() / 2 + mass).exp()  # (*B, S, K, K)
        # to one without weight, which may be far enough for an overflow, nothing moves
        share = within.unsqueeze(-3)
        return (field.masked_fill(share == 0, 0) * share).sum(-1)

    return map_chunks(contributions, (x, grad, log_prob), 4 * gram.numel())


def _differences(x: Tensor) -> Tensor:
    """``x_j - x_k``, ``(*B, S, K) -> (*B, S, K, K)``."""
    return x.unsqueeze(-1) - x.unsqueeze(-2)


def _log_interval(start: Tensor, length: Tensor) -> Tensor:
    r""":math:`\log [\Phi(a + n) - \Phi(a)]`, by the smaller tails."""
    end = start + length
    flip = start > 0
    low, high = torch.where(flip, -end, start), torch.where(flip, -start, end)
    log_high = log_ndtr(high)
    return log_high + torch.log1p(-(log_ndtr(low) - log_high).exp())
