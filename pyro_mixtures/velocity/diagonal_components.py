"""Component parameters: log densities of the components and the velocity of Eq. 12."""

from __future__ import annotations

import math

from torch import Tensor

from pyro_mixtures.numerics.precision import in_enough_precision


def diag_normal_log_prob(z: Tensor, log_weights: Tensor, locs: Tensor, scales: Tensor) -> Tensor:
    r"""Log densities of all components at all samples.

    .. math:: \log q_j(z) = -\tfrac12 \sum_i \frac{(z_i - \mu_{ji})^2}{\sigma_{ji}^2}
              - \sum_i \log \sigma_{ji} - \tfrac D2 \log 2\pi

    Args:
        z: ``(*B, S, D)``.
        log_weights: of the components, ``(*B, K)``; where they are ``-inf`` digits may be lost.
        locs: ``(*B, K, D)``.
        scales: ``(*B, K, D)``, positive.

    Returns:
        ``(*B, S, K)``, in the dtype of ``z`` or in float64.
    """
    return in_enough_precision(_products, _differences, z, log_weights, locs, scales)


def _differences(z: Tensor, locs: Tensor, scales: Tensor) -> Tensor:
    standard = (z.unsqueeze(-2) - locs.unsqueeze(-3)) / scales.unsqueeze(-3)  # (*B, S, K, D)
    return standard.square().sum(-1) * -0.5 - _log_volume(scales)


def _products(
    z: Tensor, log_weights: Tensor, locs: Tensor, scales: Tensor
) -> tuple[Tensor, Tensor]:
    """Log densities, and the sizes of the terms in their sums."""
    center = (log_weights.exp().unsqueeze(-2) @ locs).detach()  # (*B, 1, D)
    z, locs = z - center, locs - center
    precision = scales.reciprocal().square()  # (*B, K, D)
    scaled = locs * precision
    squares = (precision @ z.square().mT).mT  # (*B, S, K), faster to sum over K laid out like this
    constant = (locs * scaled).sum(-1).unsqueeze(-2)  # (*B, 1, K)
    cross = (scaled @ z.mT).mT
    log_prob = cross - squares / 2 - (constant / 2 + _log_volume(scales))
    return log_prob, squares.detach() + constant.detach()


def _log_volume(scales: Tensor) -> Tensor:
    """Of the unit of measure ``(2 pi)^(D/2) prod(scales)``, ``(*B, 1, K)``."""
    volume = scales.log().sum(-1) + scales.shape[-1] / 2 * math.log(2 * math.pi)
    return volume.unsqueeze(-2)


def location_scale_vjp(
    z: Tensor, grad: Tensor, responsibilities: Tensor, locs: Tensor, scales: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Gradients of diagonal location-scale components: every sample teaches every component.

    .. math::
        v^{\theta_j} = \frac{\pi_j q_j}{q} v_\text{single}^{\theta_j}, \qquad
        \nabla \mu_j = \sum_s r_{sj} g_s, \qquad
        \nabla \sigma_j = \sum_s r_{sj} g_s \frac{z_s - \mu_j}{\sigma_j}

    Args:
        z: samples, ``(*B, S, D)``.
        grad: gradient at the samples, ``(*B, S, D)``.
        responsibilities: :math:`r_{sj} = \pi_j q_j(z_s) / q(z_s)`, ``(*B, S, K)``.
        locs: ``(*B, K, D)``.
        scales: ``(*B, K, D)``.

    Returns:
        Gradients of ``locs`` and ``scales``, each ``(*B, K, D)``.

    Reference:
        Jankowiak and Karaletsos, Eq. 12.
    """
    weights = responsibilities.mT  # (*B, K, S)
    if z.shape[-2] == 1:
        grad_locs = weights * grad  # (*B, K, D)
        return grad_locs, (z - locs).mul_(grad_locs).div_(scales)
    center = locs.mean(-2, keepdim=True)  # (*B, 1, D)
    grad_locs = weights @ grad
    moment = weights @ (grad * (z - center))
    return grad_locs, (moment - (locs - center) * grad_locs) / scales
