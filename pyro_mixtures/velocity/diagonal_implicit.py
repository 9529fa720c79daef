"""Implicit reparameterization: samples move so as to keep their conditional quantiles."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from pyro_mixtures.numerics.chunks import map_chunks
from pyro_mixtures.numerics.opaque import opaque
from pyro_mixtures.numerics.precision import double
from pyro_mixtures.velocity.telescoping import Factors, normal_factors


class Conditionals(NamedTuple):
    """Conditionals of a mixture, coordinate by coordinate, given the coordinates before.

    The mixture is that of each component's group: what belongs to it has K = 1 if there is one.
    """

    responsibility: Tensor
    r""":math:`r_j^{(i)} / p_j`, for i = D + 1 given all coordinates, ``(..., K, D + 1)``."""

    log_prob: Tensor
    """Of the mixture, of the first 0, 1, ..., D coordinates, ``(..., K or 1, D + 1)``."""

    cdf: Tensor
    """:math:`S_i` of the mixture, ``(..., K or 1, D)``."""

    excess: Tensor
    r""":math:`\partial S_i / \partial p_j = (r_j^{(i)} / p_j) (F_{ji} - S_i)`, ``(..., K, D)``."""

    response: Tensor
    """The excess divided by :math:`s_i`, ``(..., K, D)``."""


def condition(own: Factors, within: Tensor) -> Conditionals:
    r"""Conditionals of mixtures of autoregressive components, at samples.

    With :math:`q_{ki}` and :math:`F_{ki}` the densities and distribution functions of component
    k's coordinates, given those before, and weights p,

    .. math::
        r_k^{(i)} = \frac{p_k \prod_{l<i} q_{kl}}{\sum_m p_m \prod_{l<i} q_{ml}}, \qquad
        s_i = \sum_k r_k^{(i)} q_{ki}, \qquad
        S_i = \sum_k r_k^{(i)} F_{ki}

    Args:
        own: conditionals of the components, ``(..., K, D)``.
        within: weights p of k in the group of j, zero outside it, ``(..., K or 1, K)``.
    """
    before = pad(own.log_pdf, (1, 0)).cumsum(-1)  # (..., K, D + 1)
    largest = _group_max(before, within)  # (..., K or 1, D + 1)
    log_prob = (within @ _bounded_exp(before - largest)).log() + largest
    responsibility = _bounded_exp(before - log_prob)
    share = responsibility[..., :-1]
    cdf, sf = within @ (share * own.cdf), within @ (share * own.sf)
    # F - S, which keeps the digits of both tails
    difference = torch.addcmul(own.cdf * sf, own.sf, cdf, value=-1)
    response = _bounded_exp(before[..., :-1] - log_prob[..., 1:]) * difference
    return Conditionals(responsibility, log_prob, cdf, share * difference, response)


def _group_max(x: Tensor, within: Tensor) -> Tensor:
    """The largest of those members of each component's group that have weight.

    Arguments are ``(..., K, M)`` and ``(..., K or 1, K)``, and the result is ``(..., K or 1, M)``.
    """
    dead = within.amax(-2).unsqueeze(-1) == 0
    x = x.detach().masked_fill(dead, -torch.inf)
    if within.shape[-2] == 1:
        return x.amax(-2, keepdim=True)
    first = within.sign().argmax(-1, keepdim=True).expand_as(x)  # member of the group, its name
    largest = torch.full_like(x, -torch.inf).scatter_reduce(-2, first, x, "amax")
    return largest.gather(-2, first)


def _bounded_exp(x: Tensor) -> Tensor:
    """Of components without weight, and where no sample gets, it or sums of it could overflow."""
    return x.clamp_max(0.85 * math.log(torch.finfo(x.dtype).max)).exp()


def conditional_cdf(
    z: Tensor, log_weights: Tensor, locs: Tensor, scales: Tensor
) -> tuple[Tensor, Tensor]:
    r"""The distributional (Rosenblatt) transform of a mixture of diagonal Normals.

    .. math::
        S_i(z) = P(Z_i \le z_i \mid Z_{<i} = z_{<i}), \qquad
        J_{il} = \frac{\partial S_i}{\partial z_l}

    carries the mixture to the uniform distribution of the unit cube, and J is lower triangular.
    Both are differentiable functions of all arguments: when the parameters change, samples of the
    same quantiles move by :math:`-J^{-1} \partial S`.

    Args:
        z: samples, ``(*B, S, D)``.
        log_weights: of the components, ``(*B, K)``.
        locs: ``(*B, K, D)``.
        scales: ``(*B, K, D)``.

    Returns:
        ``(*B, S, D)`` and ``(*B, S, D, D)``.

    Reference:
        Figurnov, Mohamed and Mnih, *Implicit Reparameterization Gradients* (2018),
        https://arxiv.org/abs/1805.08498, Section 3.
    """
    standard, own = _standardized(z, locs, scales)
    within = log_weights.exp()[..., None, None, :]  # (*B, 1, 1, K)
    here = condition(own, within)
    excess = within.mT * here.excess  # (*B, S, K, D)
    slope = -standard / scales.unsqueeze(-3)  # of log q_kl
    density = here.log_prob.squeeze(-2).diff(dim=-1).exp()  # (*B, S, D)
    return here.cdf.squeeze(-2), (excess.mT @ slope).tril(-1) + density.diag_embed()


def _standardized(z: Tensor, locs: Tensor, scales: Tensor) -> tuple[Tensor, Factors]:
    """Samples in units of each component, ``(*B, S, K, D)``, and their distributions."""
    scales = scales.unsqueeze(-3)
    standard = (z.unsqueeze(-2) - locs.unsqueeze(-3)) / scales
    return standard, normal_factors(standard, scales)


@opaque
def implicit(
    z: Tensor,
    grad: Tensor,
    log_prob: Tensor,
    within: Tensor,
    locs: Tensor,
    scales: Tensor,
    *,
    precision: torch.dtype,
) -> Tensor:
    r"""Weight contributions :math:`A_j(z) = g \cdot w^j(z) / q(z)` of diagonal Normals.

    The velocity that keeps the conditional quantiles :math:`S_i` of a sample
    (:func:`conditional_cdf`), here those of the group :math:`q_C = \sum_k p_k q_k`, is
    :math:`-J^{-1} \partial S`, so that

    .. math::
        A_j = -\frac{q_C}{q} \sum_i \lambda_i \frac{r_j^{(i)}}{p_j} (F_{ji} - S_i), \qquad
        J^T \lambda = g, \qquad \nabla \cdot w^j = -(q_j - q_C)

    The hub is the group itself. Below its diagonal J has rank K,

    .. math::
        J_{il} = \sum_k r_k^{(i)} (F_{ki} - S_i) \frac{\partial \log q_{kl}}{\partial z_l},

    and the same factors stand in the sums over i: from the last coordinate to the first,

    .. math::
        s_l \lambda_l = g_l - \sum_k p_k \frac{\partial \log q_{kl}}{\partial z_l} T_k, \qquad
        T_j \leftarrow T_j + \lambda_l \frac{r_j^{(l)}}{p_j} (F_{jl} - S_l)

    with :math:`T = 0` to begin with ends at :math:`A_j = -(q_C / q) T_j`, without a matrix. In
    D = 1 it is the unique solution.

    Arguments and result are those of
    :func:`~pyro_mixtures.velocity.displacement.displacement`; ``precision`` has no part, for
    the field is exact. The arithmetic is in float64.

    Reference:
        Figurnov, Mohamed and Mnih, *Implicit Reparameterization Gradients* (2018),
        https://arxiv.org/abs/1805.08498, Section 3.
    """
    dtype = z.dtype
    z, grad, log_prob, within, locs, scales = double(z, grad, log_prob, within, locs, scales)

    def contributions(z: Tensor, grad: Tensor, log_prob: Tensor) -> Tensor:
        standard, own = _standardized(z, locs, scales)
        here = condition(own, within.unsqueeze(-3))
        slopes = coordinates(-standard / scales.unsqueeze(-3))
        responses = coordinates(here.response)
        total = torch.zeros_like(responses[0])  # (*B, S, K)
        for i in reversed(range(z.shape[-1])):
            rest = grad[..., i : i + 1] - (slopes[i] * total) @ within.mT  # (*B, S, K or 1)
            total = torch.addcmul(total, rest, responses[i])
        return share_of_group(here, log_prob, total)

    return map_chunks(contributions, (z, grad, log_prob), 3 * locs.numel()).to(dtype)


def coordinates(x: Tensor) -> Tensor:
    """One after the other in memory, ``(..., D) -> (D, ...)``."""
    return x.movedim(-1, 0).contiguous()


def share_of_group(group: Conditionals, log_prob: Tensor, total: Tensor) -> Tensor:
    """``-total q_C / q``, ``(*B, S, K)``; zero at samples of other groups, far away."""
    ratio = _bounded_exp(group.log_prob[..., -1] - log_prob)  # (*B, S, K or 1)
    return (-ratio * total).masked_fill(ratio == 0, 0)


def spherical_implicit(x, grad, log_prob, within, scales, means=None, *, precision):
    """Implicit reparameterization with the scales ``(*B, K)``; without means these are zero.

    Whitening by a lower triangular matrix leaves the conditional quantiles of a sample as they
    are, and with them the field.
    """
    if means is None:
        means = x.new_zeros(*scales.shape, x.shape[-1])
    scales = scales.unsqueeze(-1).expand_as(means)
    return implicit(x, grad, log_prob, within, means, scales, precision=precision)
