"""Component parameters: log densities of the components and the velocity of Eq. 12."""

from __future__ import annotations

import math

from torch import Tensor


def diag_normal_log_prob(z: Tensor, logits: Tensor, locs: Tensor, scales: Tensor) -> Tensor:
    r"""Log densities of all components at all samples, by matrix products.

    .. math:: \log q_j(z) = -\tfrac12 \sum_i \frac{(z_i - \mu_{ji})^2}{\sigma_{ji}^2}
              - \sum_i \log \sigma_{ji} - \tfrac D2 \log 2\pi

    For several samples the square is expanded about the mean of the mixture. That loses about
    ``eps * (distance / scale)**2``, so callers hand in float64 (see ``distributions/mixture.py``).

    Args:
        z: ``(*B, S, D)``.
        logits: of the components, ``(*B, K)``; only to find the mean.
        locs: ``(*B, K, D)``.
        scales: ``(*B, K, D)``, positive.

    Returns:
        ``(*B, S, K)``.
    """
    constant = scales.log().sum(-1) + locs.shape[-1] / 2 * math.log(2 * math.pi)  # (*B, K)
    if z.shape[-2] == 1:
        quadratic = ((z - locs) / scales).square().sum(-1).unsqueeze(-2)  # (*B, 1, K)
        return -quadratic / 2 - constant.unsqueeze(-2)
    center = (logits.softmax(-1).unsqueeze(-2) @ locs).detach()  # (*B, 1, D)
    z, locs = z - center, locs - center
    precision = scales.reciprocal().square()  # (*B, K, D)
    scaled = locs * precision
    constant = constant + (locs * scaled).sum(-1) / 2
    return z @ scaled.mT - z.square() @ precision.mT / 2 - constant.unsqueeze(-2)  # (*B, S, K)


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
    center = locs.mean(-2, keepdim=True)  # (*B, 1, D)
    weights = responsibilities.mT  # (*B, K, S)
    grad_locs = weights @ grad  # (*B, K, D)
    moment = weights @ (grad * (z - center))  # (*B, K, D)
    return grad_locs, (moment - (locs - center) * grad_locs) / scales
