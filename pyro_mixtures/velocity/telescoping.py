"""Telescoping: exchange one coordinate's factor at a time for that of a product hub."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_mixtures.numerics.chunks import map_chunks
from pyro_mixtures.numerics.precision import LEAST_EXPONENT


class Factors(NamedTuple):
    """Univariate distributions of the coordinates at samples, each ``(..., K or 1, D)``.

    A sample is no farther out than its mixture's tails reach, so that these need no logarithms.
    """

    log_pdf: Tensor
    cdf: Tensor
    sf: Tensor
    """One minus the distribution function."""

    def flip(self) -> Factors:
        """The coordinates in reversed order."""
        return Factors(*(x.flip(-1) for x in self))

    def to(self, dtype: torch.dtype) -> Factors:
        """In another precision."""
        return Factors(*(x.to(dtype) for x in self))

    def mix(self, weights: Tensor) -> Factors:
        """Mixtures with weights ``(..., K or 1, K)`` of the factors of each coordinate."""
        return Factors(_log_matmul(weights, self.log_pdf), weights @ self.cdf, weights @ self.sf)


def normal_factors(standard: Tensor, scales: Tensor) -> Factors:
    """Of Normals, by standardized samples ``(*B, S, K, D)`` and scales that broadcast."""
    log_pdf = -standard.square() / 2 - scales.log() - math.log(2 * math.pi) / 2
    return Factors(log_pdf, normal_cdf(standard), normal_cdf(-standard))


def normal_cdf(x: Tensor) -> Tensor:
    """With the digits of the lower tail, which ``torch.special.ndtr`` does not have."""
    return torch.special.erfc(x * -math.sqrt(0.5)) / 2


def telescoping(grad: Tensor, log_prob: Tensor, own: Factors, hub: Factors) -> Tensor:
    r"""Weight contributions :math:`A_j(z) = g \cdot w^j(z) / q(z)` by :func:`exchange`.

    Args:
        grad: gradient g at the samples, ``(*B, S, D)``.
        log_prob: :math:`\log q(z)`, ``(*B, S, 1)``.
        own: conditionals of the components, ``(*B, S, K, D)``.
        hub: marginals of the hub of each component's group, ``(*B, S, K or 1, D)``.

    Returns:
        ``(*B, S, K)``.
    """
    return (exchange(log_prob, own, hub) @ grad.unsqueeze(-1)).squeeze(-1)


def exchange(log_prob: Tensor, own: Factors, hub: Factors) -> Tensor:
    r"""Currents :math:`w^j(z) / q(z)` of autoregressive components.

    A component is a product of univariate conditionals :math:`q_{ji}(z_i \mid z_{<i})` with
    distribution functions :math:`F_{ji}`, the hub a product of univariate :math:`h_i(z_i)` with
    distribution functions :math:`H_i`, and

    .. math::
        w^j_i = -[F_{ji}(z_i \mid z_{<i}) - H_i(z_i)]
                \prod_{l<i} q_{jl}(z_l \mid z_{<l}) \prod_{l>i} h_l(z_l)

    has :math:`\nabla \cdot w^j = -(q_j - h)` for any factors; in D = 1 it is the unique solution.
    The products stay in log space, and :math:`F - H = F (1 - H) - (1 - F) H` keeps the digits of
    both tails.

    Args:
        log_prob: :math:`\log q(z)`, ``(..., K or 1)``.
        own: conditionals of the components, ``(..., K, D)``.
        hub: marginals of the hub of each component's group, ``(..., K or 1, D)``.

    Returns:
        ``(..., K, D)``.

    Reference:
        Jankowiak and Karaletsos, Eq. 50, whose printed form uses one mean where a common one and
        the component's own are needed.
    """
    start = -log_prob.unsqueeze(-1).expand_as(own.log_pdf[..., :1])
    log_before = torch.cat([start, own.log_pdf[..., :-1]], -1).cumsum_(-1)  # (..., K, D)
    log_after = pad(hub.log_pdf[..., 1:].flip(-1).cumsum(-1), (1, 0)).flip(-1)
    # a bound for points where no sample gets: there a tail may be zero
    bound = math.log(torch.finfo(log_after.dtype).max) - 3
    others = log_before.add_(log_after).clamp_(LEAST_EXPONENT[log_after.dtype], bound).exp_()
    return torch.addcmul(own.sf * hub.cdf, own.cdf, hub.sf, value=-1) * others


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
    r"""Telescoping for diagonal Normals, averaged over this and the reversed order of coordinates.

    The hub is the product of the group's own marginals,
    :math:`h_i = \sum_k (\pi_k / \pi_C) q_{ki}`.

    Arguments and result are those of
    :func:`~pyro_mixtures.velocity.displacement.displacement`; ``precision`` has no part, for
    the field is exact.
    """
    locs, scales = locs.unsqueeze(-3), scales.unsqueeze(-3)  # (*B, 1, K, D)

    def contributions(z: Tensor, grad: Tensor, log_prob: Tensor) -> Tensor:
        own = normal_factors((z.unsqueeze(-2) - locs) / scales, scales)
        hub = own.mix(within.unsqueeze(-3))
        forward = telescoping(grad, log_prob, own, hub)
        return (forward + telescoping(grad.flip(-1), log_prob, own.flip(), hub.flip())) / 2

    return map_chunks(contributions, (z, grad, log_prob), locs.numel())


def _log_matmul(weights: Tensor, x: Tensor) -> Tensor:
    """``log(weights @ exp(x))`` without overflow, ``(*B, S, K or 1, D)``."""
    largest = x.amax(-2, keepdim=True).clamp_min(torch.finfo(x.dtype).min)
    return (weights @ (x - largest).exp_()).log() + largest
