"""Components of one shape: once the samples are whitened, all of them are spherical."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_mixtures.numerics.precision import (
    LONGEST_SUM,
    double,
    double_dtype,
    in_enough_precision,
    keeps_digits,
)
from pyro_mixtures.numerics.whitening import log_volume, whiten, whitened_gradient
from pyro_mixtures.velocity.displacement import displacement
from pyro_mixtures.velocity.pairwise import DIRECT, pairwise
from pyro_mixtures.velocity.telescoping import diag_normal_telescoping


def spherical_log_prob(
    z: Tensor, log_weights: Tensor, factor: Tensor, scales: Tensor, locs: Tensor | None = None
) -> Tensor:
    r"""Log densities of the components :math:`N(\mu_j, \lambda_j^2 L L^T)`.

    Args:
        z: samples, ``(*B, S, D)``.
        log_weights: of the components, ``(*B, K)``; where they are ``-inf`` digits may be lost.
        factor: L, or the diagonal of a diagonal one, ``(*B, D, D)`` or ``(*B, D)``.
        scales: :math:`\lambda`, ``(*B, K)``.
        locs: ``(*B, K, D)``, or None for components that share the origin as their mean.

    Returns:
        ``(*B, S, K)``, in the dtype of ``z`` or in float64.
    """
    if locs is not None:
        components = (factor, scales, locs)
        return in_enough_precision(_products, _differences, z, log_weights, *components)
    if z.shape[-1] > LONGEST_SUM:
        z, factor, scales = double(z, factor, scales)
    square = whiten(z, factor).square().sum(-1, keepdim=True)
    return _log_density(square, z, factor, scales)


def _log_density(square_distance: Tensor, z: Tensor, factor: Tensor, scales: Tensor) -> Tensor:
    scales = scales.unsqueeze(-1)  # (*B, K, 1)
    volume = z.shape[-1] * (scales.log() + math.log(2 * math.pi) / 2) + log_volume(factor, z.dim())
    # faster to sum over K laid out like this
    return (square_distance.mT * (-0.5 / scales.square()) - volume).mT  # (*B, S, K)


def _differences(z: Tensor, factor: Tensor, scales: Tensor, locs: Tensor) -> Tensor:
    if z.shape[-2] == 1:
        square = whiten(z - locs, factor).square().sum(-1).unsqueeze(-2)  # (*B, 1, K)
    else:
        offset = z.unsqueeze(-2) - locs.unsqueeze(-3)  # (*B, S, K, D)
        square = whiten(offset.flatten(-3, -2), factor).square().sum(-1)
        square = square.unflatten(-1, offset.shape[-3:-1])
    return _log_density(square, z, factor, scales)


def _products(
    z: Tensor, log_weights: Tensor, factor: Tensor, scales: Tensor, locs: Tensor
) -> tuple[Tensor, Tensor]:
    """Log densities, and the sizes of the terms in their sums."""
    center = (log_weights.exp().unsqueeze(-2) @ locs).detach()  # (*B, 1, D)
    x, means = whiten(z - center, factor), whiten(locs - center, factor)
    squares = x.square().sum(-1, keepdim=True) + means.square().sum(-1).unsqueeze(-2)
    cross = (means @ x.mT).mT  # (*B, S, K)
    log_prob = _log_density(squares - 2 * cross, z, factor, scales)
    return log_prob, (squares / scales.unsqueeze(-2).square()).detach()


def spherical_distance(factor: Tensor, scales: Tensor, locs: Tensor | None = None) -> Tensor:
    r"""Bhattacharyya distances between all pairs of components, ``(*B, K, K)``.

    .. math::
        \frac{|L^{-1} (\mu_j - \mu_k)|^2}{4 (\lambda_j^2 + \lambda_k^2)}
        + \frac D2 \log \frac{\lambda_j^2 + \lambda_k^2}{2 \lambda_j \lambda_k}
    """
    variance = scales.square().unsqueeze(-1) + scales.square().unsqueeze(-2)
    ratio = variance / (2 * scales.unsqueeze(-1) * scales.unsqueeze(-2))
    distance = ratio.log() * (factor.shape[-1] / 2)
    if locs is None:
        return distance
    means = whiten(locs - locs.mean(-2, keepdim=True), factor)
    return distance + torch.cdist(means, means, compute_mode=DIRECT).square() / (4 * variance)


def whitened(transport):
    r"""Make a transport for spherical components one for those of a common shape.

    Args:
        transport: for the components :math:`N(m_j, \lambda_j^2 I)`, ``transport(x, grad, log_prob,
            within, scales, means, precision=...)``; ``means`` may be missing.

    Returns:
        A transport for :math:`N(\mu_j, \lambda_j^2 L L^T)`, called with ``(z, grad, log_prob,
        within, factor, scales, locs, precision=...)``.
    """

    def of_shape(z, grad, log_prob, within, factor, scales, locs=None, *, precision):
        here = log_prob + log_volume(factor, z.dim())
        slope = whitened_gradient(grad, factor)
        if locs is None:
            return transport(whiten(z, factor), slope, here, within, scales, precision=precision)
        center = within[..., :1, :] @ locs  # whitening would magnify its rounding
        x, means = whiten(z - center, factor), whiten(locs - center, factor)
        if z.shape[-2] == 1 and z.dtype != double_dtype(z):  # of several the densities told
            terms = (means / scales.unsqueeze(-1)).square().sum(-1).unsqueeze(-2)
            if not keeps_digits(terms, within.amax(-2).log()):
                tensors = double(z, grad, log_prob, within, factor, scales, locs)
                return of_shape(*tensors, precision=precision).to(z.dtype)
        return transport(x, slope, here, within, scales, means, precision=precision)

    return of_shape


def shared_displacement(
    x: Tensor,
    grad: Tensor,
    log_prob: Tensor,
    within: Tensor,
    scales: Tensor,
    means: Tensor,
    *,
    precision: torch.dtype,
) -> Tensor:
    """Displacement of components that are unit Normals once the samples are whitened.

    The components differ only in the space that their means span, so several samples of one
    mixture are first projected on the principal axes of the means: at most K coordinates, in which
    the diagonal hub has the covariances of the means as well. For a single sample that would not
    pay.

    Arguments and result are those of
    :func:`~pyro_mixtures.velocity.displacement.displacement`, but for ``scales (*B, K)``, all one.
    """
    if x.shape[-2] > 1:
        share = within.mean(-2)  # (*B, K)
        center = share.unsqueeze(-2) @ means
        means, x = means - center, x - center
        # rarer components count for more than their share, or rounding would lose them
        spread = (share + 1e-2).sqrt().unsqueeze(-1) * means
        axes = torch.linalg.svd(spread, full_matrices=False)[2].mT  # (*B, D, min(K, D))
        projected = x @ axes
        rest = (x - projected @ axes.mT).square().sum(-1, keepdim=True)
        dim = axes.shape[-2] - axes.shape[-1]  # of the rest, in which all are N(0, 1)
        log_prob = log_prob + rest / 2 + dim / 2 * math.log(2 * math.pi)
        x, grad, means = projected, grad @ axes, means @ axes
    return spherical_displacement(x, grad, log_prob, within, scales, means, precision=precision)


def spherical_displacement(x, grad, log_prob, within, scales, means, *, precision):
    """Displacement with the scales ``(*B, K)``."""
    scales = scales.unsqueeze(-1).expand_as(means)
    return displacement(x, grad, log_prob, within, means, scales, precision=precision)


def spherical_telescoping(x, grad, log_prob, within, scales, means=None, *, precision):
    """Telescoping with the scales ``(*B, K)``; without means these are zero."""
    if means is None:
        means = x.new_zeros(*scales.shape, x.shape[-1])
    scales = scales.unsqueeze(-1).expand_as(means)
    return diag_normal_telescoping(x, grad, log_prob, within, means, scales, precision=precision)


def spherical_pairwise(x, grad, log_prob, within, scales, means, *, precision):
    """Lines, which are exact: ``precision`` has no part."""
    return pairwise(x, grad, log_prob, within, scales, means).to(x.dtype)
