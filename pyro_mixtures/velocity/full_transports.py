"""Transports of components with covariances of their own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_mixtures.numerics.chunks import map_chunks
from pyro_mixtures.numerics.opaque import opaque
from pyro_mixtures.numerics.precision import double, keeps_digits
from pyro_mixtures.velocity.displacement import TINY, quadrature
from pyro_mixtures.velocity.full_components import (
    apply_each,
    cholesky,
    lower_factor,
    triangular_inverse,
)
from pyro_mixtures.velocity.telescoping import normal_factors, telescoping


@opaque
def normal_displacement(
    z: Tensor,
    grad: Tensor,
    log_prob: Tensor,
    within: Tensor,
    locs: Tensor,
    scale_tril: Tensor,
    *,
    precision: torch.dtype,
) -> Tensor:
    r"""Displacement of Normals with Cholesky factors ``(*B, K, D, D)``.

    The hub has the mean and the covariance :math:`L_h L_h^T` of the component's group. With the
    singular value decomposition :math:`L_h^{-1} L_j = U_j E_j V_j^T`, in the coordinates
    :math:`y_j = U_j^T L_h^{-1} (z - \mu_h)` the hub is the unit Normal and the component a
    diagonal one: there the flow is that of
    :func:`~pyro_mixtures.velocity.displacement.displacement`, whose arguments and result, but for
    the factors, are those of this function.
    """
    dtype, log_share = grad.dtype, within.amax(-2).log()
    within, locs, scale_tril = double(within, locs, scale_tril)
    center = within[..., :1, :] @ locs  # (*B, 1, D)
    z, locs = z - center, locs - center
    mean, offset, factor = _moment_matched(within, locs, scale_tril)
    to_hub = triangular_inverse(factor)  # (*B, K or 1, D, D)
    axes, ratio = _principal_axes(to_hub @ scale_tril)  # (*B, K, D, D), (*B, K, D)
    excess = ratio.sub_(1).add_(TINY)  # as in displacement
    rate = excess.log1p()
    turn = axes.mT @ to_hub  # (*B, K, D, D)
    drift = _each(turn, offset).div_(excess)  # (*B, K, D)
    shift = rate * drift
    nodes, log_weights, needs_double = quadrature(shift, rate, within, precision)
    volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    volume = (volume + z.shape[-1] / 2 * math.log(2 * math.pi))[..., None, None]

    # the sample in its flow back is back * y - place, (*B, K, T, D)
    change = torch.expm1(-rate.unsqueeze(-2) * nodes)
    place = -change * drift.unsqueeze(-2)
    back = change.add_(1)
    constant = place.square().sum(-1) / 2 + rate.sum(-1, keepdim=True) * nodes.flatten()
    constant = (constant - log_weights.flatten()).unsqueeze(-1) + volume  # (*B, K, T, 1)
    pull = axes.mT @ factor.mT  # of gradients into the same coordinates, (*B, K, D, D)

    if z.shape[-2] <= 1:
        dtype = z.dtype
    elif dtype != z.dtype:
        terms = back.square().amax((-2, -1)) * _largest(z, mean, to_hub)
        if needs_double or not keeps_digits(terms.unsqueeze(-2).to(dtype), log_share):
            dtype = z.dtype
    z, grad, log_prob, turn, start, linear, square, constant, pull, constant_pull = (
        x.to(dtype)
        for x in (
            z,
            grad,
            log_prob,
            turn,
            _each(turn, mean.expand_as(offset)).unsqueeze(-1),  # the hub, (*B, K, D, 1)
            back * place,
            back.square() * -0.5,
            constant,
            rate.unsqueeze(-1) * pull,
            (shift.unsqueeze(-2) @ pull).squeeze(-2),
        )
    )

    def contributions(z: Tensor, grad: Tensor, log_prob: Tensor) -> Tensor:
        y = apply_each(turn, z).sub_(start)  # (*B, K, D, S)
        speed = apply_each(pull, grad).mul_(y).sum(-2) + constant_pull @ grad.mT  # g . v
        exponent = linear @ y  # (*B, K, T, S)
        exponent += square @ y.square()
        exponent.sub_(constant).sub_(log_prob.mT.unsqueeze(-3))
        return (speed * exponent.exp_().sum(-2)).mT

    row_elements = max(4, 1 + len(nodes) // locs.shape[-1]) * locs.numel()
    return map_chunks(contributions, (z, grad, log_prob), row_elements)


def _principal_axes(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors and singular values of square matrices.

    Those of the symmetric eigenvalue problem, which is solved faster, where it keeps their digits.
    """
    square, axes = torch.linalg.eigh(ratio @ ratio.mT)
    if bool((square[..., 0] > 1e-6 * square[..., -1]).all()):
        return axes, square.sqrt_()
    axes, stretch, _ = torch.linalg.svd(ratio)
    return axes, stretch


def _each(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Each matrix to its own vector, ``(*B, K, D, D), (*B, K, D) -> (*B, K, D)``."""
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)


def _largest(z: Tensor, mean: Tensor, to_hub: Tensor) -> Tensor:
    """The largest squared distance of a sample from each hub in its units, ``(*B, K or 1)``."""
    start = _each(to_hub, mean).unsqueeze(-1)

    def rows(z: Tensor) -> Tensor:
        return (apply_each(to_hub, z) - start).square().sum(-2).mT

    return map_chunks(rows, (z,), 2 * start.numel()).amax(-2)


def _moment_matched(
    within: Tensor, locs: Tensor, scale_tril: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of each component's group, the distance from it, and the group's Cholesky factor.

    Returns:
        ``(*B, K or 1, D)``, ``(*B, K, D)`` and ``(*B, K or 1, D, D)``.
    """
    mean = within @ locs  # (*B, K or 1, D)
    offset = locs.unsqueeze(-3) - mean.unsqueeze(-2)  # of k from the mean of j's group
    weighted = within.unsqueeze(-1) * offset  # (*B, K or 1, K, D)
    covariance = scale_tril @ scale_tril.mT  # (*B, K, D, D)
    hub = (within @ covariance.flatten(-2)).unflatten(-1, covariance.shape[-2:])

    def root() -> Tensor:
        share = within.sqrt()[..., None, None] * scale_tril.unsqueeze(-4)  # (*B, J, K, D, D)
        spread = (within.sqrt().unsqueeze(-1) * offset).mT  # (*B, J, D, K)
        return torch.cat([share.movedim(-3, -2).flatten(-2), spread], -1)

    return mean, locs - mean, cholesky(hub + weighted.mT @ offset, root)


def normal_telescoping(
    z: Tensor,
    grad: Tensor,
    log_prob: Tensor,
    within: Tensor,
    locs: Tensor,
    scale_tril: Tensor,
    *,
    precision: torch.dtype,
) -> Tensor:
    """Telescoping with conditional distribution functions, for Cholesky factors ``(*B, K, D, D)``.

    The samples are whitened by the covariance of the group (or the mean of those of all groups),
    so that the hub, the product of the group's marginals there, resembles the group; both orders
    of the coordinates are averaged.

    Arguments and result are those of :func:`normal_displacement`; ``precision`` has no part,
    for the field is exact. The arithmetic is in float64.
    """
    dtype = z.dtype
    z, grad, log_prob, within, locs, scale_tril = double(
        z, grad, log_prob, within, locs, scale_tril
    )
    mean, _, factor = _moment_matched(within, locs, scale_tril)
    if within.shape[-2] > 1:  # any linear map would do
        stacked = factor.movedim(-3, -2).flatten(-2) / math.sqrt(factor.shape[-3])
        factor = lower_factor(stacked).unsqueeze(-3)
    mean = mean[..., :1, :]
    offset = locs - mean
    inverse = triangular_inverse(factor.squeeze(-3))  # (*B, D, D)
    means, scale_tril = offset @ inverse.mT, inverse.unsqueeze(-3) @ scale_tril
    log_volume = factor.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))[..., None, None]
    orders = (
        (means, scale_tril, False),
        (means.flip(-1), lower_factor(scale_tril.flip(-2)), True),
    )

    def contributions(z: Tensor, grad: Tensor, log_prob: Tensor) -> Tensor:
        x, grad = (z - mean) @ inverse.mT, grad @ factor.squeeze(-3)
        total = torch.zeros((), dtype=z.dtype, device=z.device)
        for means, scale_tril, reverse in orders:
            if reverse:
                x, grad = x.flip(-1), grad.flip(-1)
            offset = (x.unsqueeze(-2) - means.unsqueeze(-3)).movedim(-3, -1)  # (*B, K, D, S)
            standard = torch.linalg.solve_triangular(scale_tril, offset, upper=False)
            diagonal = scale_tril.diagonal(dim1=-2, dim2=-1).unsqueeze(-3)  # (*B, 1, K, D)
            own = normal_factors(standard.movedim(-1, -3), diagonal)
            stddev = torch.linalg.vector_norm(scale_tril, dim=-1).unsqueeze(-3)
            marginals = normal_factors(offset.movedim(-1, -3) / stddev, stddev)
            total = total + telescoping(grad, log_prob, own, marginals.mix(within.unsqueeze(-3)))
        return total / 2

    rows = (z, grad, log_prob + log_volume)
    return map_chunks(contributions, rows, 4 * locs.numel()).to(dtype)
