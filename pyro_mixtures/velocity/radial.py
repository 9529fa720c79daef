"""Radial transport: components shrink or grow about their means."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_mixtures.numerics.opaque import opaque
from pyro_mixtures.numerics.precision import double, double_dtype
from pyro_mixtures.velocity.displacement import quadrature
from pyro_mixtures.velocity.displacement_integrals import sum_over_nodes
from pyro_mixtures.velocity.pairwise import pairwise


@opaque
def radial(
    x: Tensor,
    grad: Tensor,
    log_prob: Tensor,
    within: Tensor,
    scales: Tensor,
    means: Tensor | None = None,
    *,
    precision: torch.dtype,
) -> Tensor:
    r"""Weight contributions :math:`A_j(z) = g \cdot w^j(z) / q(z)` of spherical Normals.

    Component j shrinks or grows about its mean to the scale :math:`\lambda_0`, the root mean
    square of its group. With :math:`r = |x - m_j|` and the regularized incomplete gamma function P
    the current of that is

    .. math::
        w^j = -\frac{x - m_j}{r} \frac{\Gamma(D/2)}{2 \pi^{D/2}} r^{1 - D}
              \Big[ P\Big(\frac D2, \frac{r^2}{2 \lambda_j^2}\Big)
              - P\Big(\frac D2, \frac{r^2}{2 \lambda_0^2}\Big) \Big]
            = (x - m_j) \int_{\log \lambda_0}^{\log \lambda_j} N(x; m_j, e^{2 s} I) \, ds.

    The integral is what is computed: it neither cancels nor overflows, for any D. Components with
    means of their own then move along lines, at the scale :math:`\lambda_0`.

    Args:
        x: whitened samples, ``(*B, S, D)``.
        grad: gradient at them, ``(*B, S, D)``.
        log_prob: log density of the whitened samples, ``(*B, S, 1)``.
        within: weights :math:`\pi_k / \pi_C` of k in the group C of j, zero outside it,
            ``(*B, K, K)``, or ``(*B, 1, K)`` when all components are one group.
        scales: :math:`\lambda`, ``(*B, K)``.
        means: ``(*B, K, D)``, or None for components that share the origin as their mean.
        precision: the dtype to whose rounding the integral is exact.

    Returns:
        ``(*B, S, K)``.

    Reference:
        Jankowiak and Karaletsos, Eq. 40 and 53-55.
    """
    dim = x.shape[-1]
    if means is None:
        square = x.square().sum(-1, keepdim=True)  # (*B, S, 1)
        slope = (grad * x).sum(-1, keepdim=True)
    elif x.shape[-2] == 1:
        offset = x - means  # (*B, K, D)
        square = offset.square().sum(-1).unsqueeze(-2)  # (*B, 1, K)
        slope = (grad * offset).sum(-1).unsqueeze(-2)
    else:
        center = within[..., :1, :] @ means
        y, offset = x - center, means - center
        square = y.square().sum(-1, keepdim=True) - 2 * y @ offset.mT
        square = (square + offset.square().sum(-1).unsqueeze(-2)).clamp_min(0)  # (*B, S, K)
        slope = (grad * y).sum(-1, keepdim=True) - grad @ offset.mT
    hub = (within @ scales.square().unsqueeze(-1)).squeeze(-1).sqrt()  # (*B, K or 1)
    rate = (scales / hub).log()  # (*B, K)
    path = rate.unsqueeze(-1)  # one coordinate's; the others lengthen it like a shift
    others = path * math.sqrt(2 * (dim - 1))
    nodes, log_weights, needs_double = quadrature(others, path, within, precision)
    if needs_double and x.dtype != double_dtype(x):
        tensors = double(x, grad, log_prob, within, scales)
        means = means if means is None else means.to(tensors[0])
        return radial(*tensors, means, precision=precision)

    square, offset = square.mT.unsqueeze(-3), log_prob.mT.unsqueeze(-3)  # (*B, 1, K or 1, S)

    def densities(nodes: Tensor, log_weights: Tensor) -> Tensor:
        log_scale = hub.log().unsqueeze(-2) + rate.unsqueeze(-2) * nodes  # (*B, T, K)
        constant = dim * (log_scale + math.log(2 * math.pi) / 2) - log_weights
        factor = (-2 * log_scale).exp_().mul_(-0.5)
        exponent = square * factor.unsqueeze(-1) - constant.unsqueeze(-1)  # (*B, T, K, S)
        return (exponent - offset).exp_().sum(-3)  # (*B, K, S)

    integral = sum_over_nodes(densities, nodes, log_weights, log_prob.numel() * scales.shape[-1])
    contributions = slope * (rate.unsqueeze(-1) * integral).mT
    if means is None:
        return contributions
    lines = pairwise(x, grad, log_prob, within, hub.expand_as(scales), means)
    return contributions + lines.to(x.dtype)
