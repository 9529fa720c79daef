"""Telescoping: exchange one coordinate's factor at a time for that of a product hub."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.special import log_ndtr

from pyro_mixtures.velocity.chunks import map_chunks


def telescoping(
    grad: Tensor,
    log_prob: Tensor,
    within: Tensor,
    log_pdf: Tensor,
    log_cdf: Tensor,
    log_sf: Tensor,
) -> Tensor:
    r"""Weight contributions :math:`A_j(z) = g \cdot w^j(z) / q(z)` of product components.

    The hub is the product of the group's own marginals, :math:`h_i = \sum_k (\pi_k/\pi_C) q_{ki}`
    with distribution function :math:`H_i`, and

    .. math::
        w^j_i = -[F_{ji}(z_i) - H_i(z_i)] \prod_{l<i} q_{jl}(z_l) \prod_{l>i} h_l(z_l),

    averaged over this and the reversed order of coordinates. It has
    :math:`\nabla \cdot w^j = -(q_j - h)` for any univariate factors; in D = 1 it is the unique
    solution. Everything stays in log space, and the difference is taken of the smaller tails.

    Args:
        grad: gradient g at the samples, ``(*B, S, D)``.
        log_prob: :math:`\log q(z)`, ``(*B, S, 1)``.
        within: weights :math:`\pi_k / \pi_C` of k in the group C of j, zero outside it,
            ``(*B, K, K)``, or ``(*B, 1, K)`` when all components are one group.
        log_pdf: :math:`\log q_{ji}(z_i)`, ``(*B, S, K, D)``.
        log_cdf: :math:`\log F_{ji}(z_i)`, ``(*B, S, K, D)``.
        log_sf: :math:`\log (1 - F_{ji}(z_i))`, ``(*B, S, K, D)``.

    Returns:
        ``(*B, S, K)``.

    Reference:
        Jankowiak and Karaletsos, Eq. 50, whose printed form uses one mean where a common one and
        the component's own are needed.
    """
    within = within.unsqueeze(-3)  # (*B, 1, K or 1, K)
    log_hub, log_hub_cdf, log_hub_sf = (
        _log_matmul(within, x) for x in (log_pdf, log_cdf, log_sf)
    )  # (*B, S, K or 1, D)
    lower = log_hub_cdf < log_hub_sf
    log_tail = torch.where(lower, log_cdf, log_sf)  # (*B, S, K, D)
    log_hub_tail = torch.where(lower, log_hub_cdf, log_hub_sf)
    current = torch.zeros((), dtype=grad.dtype, device=grad.device)
    for log_other in _other_factors(log_pdf, log_hub):
        log_other = log_other - log_prob.unsqueeze(-1)
        current = current + (log_hub_tail + log_other).exp() - (log_tail + log_other).exp()
    current = torch.where(lower, current, -current) / 2  # w / q, (*B, S, K, D)
    return (current @ grad.unsqueeze(-1)).squeeze(-1)


def diag_normal_telescoping(
    z: Tensor,
    grad: Tensor,
    log_prob: Tensor,
    within: Tensor,
    locs: Tensor,
    scales: Tensor,
    *,
    precision: torch.dtype,
) -> Tensor:
    """Telescoping for diagonal Normals.

    Arguments and result are those of
    :func:`~pyro_mixtures.velocity.displacement.displacement`; ``precision`` is of no account, for
    the field is exact.
    """
    locs, scales = locs.unsqueeze(-3), scales.unsqueeze(-3)  # (*B, 1, K, D)

    def contributions(z: Tensor, grad: Tensor, log_prob: Tensor) -> Tensor:
        standard = (z.unsqueeze(-2) - locs) / scales  # (*B, S, K, D)
        log_pdf = -standard.square() / 2 - scales.log() - math.log(2 * math.pi) / 2
        log_cdf, log_sf = log_ndtr(standard), log_ndtr(-standard)
        return telescoping(grad, log_prob, within, log_pdf, log_cdf, log_sf)

    return map_chunks(contributions, (z, grad, log_prob), locs.numel())


def _other_factors(log_pdf: Tensor, log_hub: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the other coordinates' factors: own below i and the hub's above, and reversed."""
    own_below, own_above = _below(log_pdf), _below(log_pdf.flip(-1)).flip(-1)
    hub_below, hub_above = _below(log_hub), _below(log_hub.flip(-1)).flip(-1)
    return own_below + hub_above, own_above + hub_below


def _below(x: Tensor) -> Tensor:
    """Sums over the coordinates before each one."""
    return pad(x[..., :-1].cumsum(-1), (1, 0))


def _log_matmul(weights: Tensor, x: Tensor) -> Tensor:
    """``log(weights @ exp(x))`` without overflow, ``(*B, S, K or 1, D)``."""
    largest = x.amax(-2, keepdim=True)
    return (weights @ (x - largest).exp()).log() + largest
