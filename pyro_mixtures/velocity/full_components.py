"""Components with covariances of their own: log densities and the velocity of Eq. 12."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_mixtures.numerics.chunks import CACHED, chunks, map_chunks
from pyro_mixtures.numerics.linkage import MANY
from pyro_mixtures.numerics.precision import in_enough_precision, records_graph


def normal_log_prob(z: Tensor, log_weights: Tensor, locs: Tensor, scale_tril: Tensor) -> Tensor:
    r"""Log densities of all components at all samples.

    .. math:: \log q_j(z) = -\tfrac12 |L_j^{-1} (z - \mu_j)|^2 - \log \det L_j
              - \tfrac D2 \log 2\pi

    Args:
        z: ``(*B, S, D)``.
        log_weights: of the components, ``(*B, K)``; where they are ``-inf`` digits may be lost.
        locs: ``(*B, K, D)``.
        scale_tril: lower triangular, with positive diagonals, ``(*B, K, D, D)``.

    Returns:
        ``(*B, S, K)``, in the dtype of ``z`` or in float64.
    """
    return in_enough_precision(_products, _differences, z, log_weights, locs, scale_tril)


def _log_volume(scale_tril: Tensor) -> Tensor:
    """``(*B, 1, K)``."""
    diagonal = scale_tril.diagonal(dim1=-2, dim2=-1)
    volume = diagonal.log().sum(-1) + diagonal.shape[-1] / 2 * math.log(2 * math.pi)
    return volume.unsqueeze(-2)


def _differences(z: Tensor, locs: Tensor, scale_tril: Tensor) -> Tensor:
    offset = z.unsqueeze(-3) - locs.unsqueeze(-2)  # (*B, K, S, D)
    standard = torch.linalg.solve_triangular(scale_tril, offset.mT, upper=False)
    return standard.square().sum(-2).mT * -0.5 - _log_volume(scale_tril)


def _products(
    z: Tensor, log_weights: Tensor, locs: Tensor, scale_tril: Tensor
) -> tuple[Tensor, Tensor]:
    """Log densities, and the sizes of the terms in their sums."""
    center = (log_weights.exp().unsqueeze(-2) @ locs).detach()  # (*B, 1, D)
    z, locs = z - center, locs - center
    inverse = triangular_inverse(scale_tril)  # (*B, K, D, D)
    means = (inverse @ locs.unsqueeze(-1)).squeeze(-1)  # (*B, K, D)

    def rows(z: Tensor) -> Tensor:
        standard = apply_each(inverse, z) - means.unsqueeze(-1)  # (*B, K, D, S)
        return standard.square().sum(-2).mT

    square = map_chunks(rows, (z,), locs.numel())  # (*B, S, K)
    with torch.no_grad():
        # a coordinate of the difference has lost this times the rounding unit
        size = inverse.square().sum(-1).amax(-1).unsqueeze(-2)  # (*B, 1, K)
        terms = 2 * (size * z.square().sum(-1, keepdim=True) * z.shape[-1]).sqrt()  # (*B, S, K)
    return square * -0.5 - _log_volume(scale_tril), terms


def cholesky(covariance: Tensor, root: Callable[[], Tensor]) -> Tensor:
    """Cholesky factors, also of matrices that are singular to rounding.

    Args:
        covariance: ``(*B, D, D)``.
        root: returns matrices M with ``M M' = covariance``, ``(*B, D, N >= D)``.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if torch.compiler.is_compiling() or not bool(failed.any()):
        return factor
    return lower_factor(root())


def lower_factor(matrix: Tensor) -> Tensor:
    """The lower triangular T of positive diagonal with ``T T' = M M'``, ``(*B, R, N >= R)``.

    By orthogonal transformations, which keep digits that the product would lose.
    """
    r = torch.linalg.qr(matrix.mT).R  # (*B, R, R)
    return (r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-1) * r).mT


def triangular_inverse(scale_tril: Tensor) -> Tensor:
    """Inverses of lower triangular matrices."""
    identity = torch.eye(scale_tril.shape[-1], dtype=scale_tril.dtype, device=scale_tril.device)
    return torch.linalg.solve_triangular(scale_tril, identity, upper=False)


def apply_each(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Each matrix to each vector, ``(*B, K, D, D), (*B, S, D) -> (*B, K, D, S)``, at once."""
    stacked = matrices.flatten(-3, -2) @ vectors.mT  # (*B, K D, S)
    return stacked.unflatten(-2, matrices.shape[-3:-1])


def normal_vjp(
    z: Tensor, grad: Tensor, responsibilities: Tensor, locs: Tensor, scale_tril: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Gradients of means and Cholesky factors: every sample teaches every component.

    .. math:: \nabla \mu_j = \sum_s r_{sj} g_s, \qquad
              \nabla L_j = \mathrm{tril} \sum_s r_{sj} g_s (L_j^{-1} (z_s - \mu_j))^T

    Arguments are those of
    :func:`~pyro_mixtures.velocity.diagonal_components.location_scale_vjp`, but for
    ``scale_tril (*B, K, D, D)``.

    Reference:
        Jankowiak and Karaletsos, Eq. 12.
    """
    center = z if z.shape[-2] == 1 else locs.mean(-2, keepdim=True)
    z, locs = z - center, locs - center
    weights = responsibilities.mT  # (*B, K, S)
    grad_locs = weights @ grad  # (*B, K, D)
    moment = -grad_locs.unsqueeze(-1) * locs.unsqueeze(-2)  # of the gradient and the distance
    for place, slope, share in chunks((z, grad, responsibilities), locs.numel()):
        weighted = share.mT.unsqueeze(-2) * slope.mT.unsqueeze(-3)  # (*B, K, D, S)
        moment += (weighted.flatten(-3, -2) @ place).unflatten(-2, moment.shape[-3:-1])
    return grad_locs, torch.linalg.solve_triangular(scale_tril, moment.mT, upper=False).mT.tril()


def bhattacharyya_normal(locs: Tensor, scale_tril: Tensor, cut: float = math.inf) -> Tensor:
    r"""Bhattacharyya distances between all pairs of components, ``(*B, K, K)``.

    .. math::
        \tfrac18 (\mu_j - \mu_k)^T \Sigma^{-1} (\mu_j - \mu_k)
        + \tfrac12 \log \frac{\det \Sigma}{\det L_j \det L_k}, \qquad
        \Sigma = \tfrac12 (L_j L_j^T + L_k L_k^T)

    Of many components, pairs that are surely as far as ``cut`` get a lower bound in place of their
    distance, that is not below the cut.
    """
    covariance = scale_tril @ scale_tril.mT  # (*B, K, D, D)
    volume = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (*B, K)
    count = locs.shape[-2]
    if count < MANY or cut == math.inf or records_graph():
        distance = locs.new_zeros(*volume.shape, count)
        pairs = torch.triu_indices(count, count, 1, device=locs.device)
    else:
        distance = _farthest_coordinate(locs, torch.linalg.vector_norm(scale_tril, dim=-1))
        near = (distance < cut).reshape(-1, count, count).any(0)
        pairs = near.triu(1).nonzero().mT
    size = covariance[..., 0, :, :].numel()
    for first, second in chunks(tuple(pairs.unsqueeze(-1)), size, CACHED):
        j, k = first.squeeze(-1), second.squeeze(-1)
        factors = scale_tril[..., j, :, :], scale_tril[..., k, :, :]
        root = functools.partial(torch.cat, [factor / math.sqrt(2) for factor in factors], -1)
        factor = cholesky((covariance[..., j, :, :] + covariance[..., k, :, :]) / 2, root)
        offset = (locs[..., j, :] - locs[..., k, :]).unsqueeze(-1)  # (*B, P, D, 1)
        offset = torch.linalg.solve_triangular(factor, offset, upper=False)
        spread = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        spread = spread - (volume[..., j] + volume[..., k]) / 2
        apart = offset.square().sum((-2, -1)) / 8 + spread
        distance[..., j, k] = distance[..., k, j] = apart
    return distance


def _farthest_coordinate(locs: Tensor, stddev: Tensor) -> Tensor:
    """For all pairs a lower bound of their distance, ``(*B, K, K)``.

    It is the largest distance of a coordinate, without the part of the scales.
    """
    variance = stddev.square()
    other_locs, other_variance = locs.unsqueeze(-3), variance.unsqueeze(-3)  # (*B, 1, K, D)

    def rows(loc: Tensor, variance: Tensor) -> Tensor:
        square = (loc.unsqueeze(-2) - other_locs).square()  # (*B, R, K, D)
        return (square / (variance.unsqueeze(-2) + other_variance)).amax(-1) / 4

    return map_chunks(rows, (locs, variance), locs.numel(), CACHED)
