"""Divergences of pairs of Normals, and what they tell of mixtures: bounds without samples.

The functions take Normals as ``locs (*B, K, D)`` and ``scales``: standard deviations
``(*B, K, D)`` or Cholesky factors ``(*B, K, D, D)``, where a scale that all share may have K = 1.
The batch shapes of two sets of Normals broadcast, and one set may be diagonal where the other is
not. Arrays of shape ``K x K' x D`` arise, with Cholesky factors ``K x K' x D x D``.

A Normal is degenerate if its mean or scale is not finite, or its scale not positive: it has no
density, and is far from all others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_mixtures.numerics.precision import double, is_transformed, records_graph, surely_all
from pyro_mixtures.velocity.full_components import lower_factor


def are_degenerate(locs: Tensor, scales: Tensor) -> Tensor:
    """Which Normals have no density, ``(*B, K)``."""
    diagonal = scales.diagonal(dim1=-2, dim2=-1) if _is_full(locs, scales) else scales
    return ~(_are_finite(locs, scales) & (diagonal > 0).all(-1))


def _are_finite(locs: Tensor, scales: Tensor) -> Tensor:
    lower = scales.tril().flatten(-2) if _is_full(locs, scales) else scales
    return locs.isfinite().all(-1) & lower.isfinite().all(-1)


def entropies(locs: Tensor, scales: Tensor) -> Tensor:
    r"""Of Normals, :math:`\log \det L_a + \frac D2 \log 2 \pi e`, ``(*B, K)``."""
    constant = locs.shape[-1] / 2 * math.log(2 * math.pi * math.e)
    values = _log_volume(scales, _is_full(locs, scales)) + constant  # (*B, K or 1)
    return values.where(_are_finite(locs, scales), math.nan)


def kl_divergences(
    locs: Tensor, scales: Tensor, other_locs: Tensor, other_scales: Tensor
) -> Tensor:
    r"""Kullback-Leibler divergences of all pairs, ``(*B, K, K')``.

    .. math::
        KL(f_a \| g_b) = \tfrac12 |L_b^{-1} (\mu_a - \mu_b)|^2
        + \tfrac12 |L_b^{-1} L_a|_F^2 - \tfrac D2 - \log \det L_b^{-1} L_a
    """
    offset, ratio, full = _in_units(other_locs, other_scales, locs, scales)  # (*B, K', K, ...)
    dims = (-2, -1) if full else (-1,)
    spread = (ratio.square().sum(dims) - locs.shape[-1]) / 2 - _log_volume(ratio, full)
    divergence = (offset.square().sum(-1) / 2 + spread).mT
    return _unless_degenerate(divergence, math.inf, locs, scales, other_locs, other_scales)


def bhattacharyya_distances(
    locs: Tensor, scales: Tensor, other_locs: Tensor, other_scales: Tensor
) -> Tensor:
    r"""Bhattacharyya distances of all pairs, ``(*B, K, K')``.

    .. math::
        -\log \int \sqrt{f_a g_b} = \tfrac14 |C^{-1} (\mu_a - \mu_b)|^2
        + \log \det C - \tfrac D2 \log 2 - \tfrac12 \log \det L_a L_b, \qquad
        C C^T = L_a L_a^T + L_b L_b^T
    """
    offset, ratio, full = _in_units(locs, scales, other_locs, other_scales)
    square, volume = _of_sum(offset, ratio, full)  # of C in units of L_a
    spread = volume - _log_volume(ratio, full) / 2 - locs.shape[-1] / 2 * math.log(2)
    distance = square / 4 + spread
    return _unless_degenerate(distance, math.inf, locs, scales, other_locs, other_scales)


def log_overlaps(locs: Tensor, scales: Tensor, other_locs: Tensor, other_scales: Tensor) -> Tensor:
    r"""Logarithms of the overlaps of all pairs, ``(*B, K, K')``.

    .. math::
        \log \int f_a g_b = -\tfrac12 |C^{-1} (\mu_a - \mu_b)|^2 - \log \det C
        - \tfrac D2 \log 2 \pi, \qquad C C^T = L_a L_a^T + L_b L_b^T
    """
    offset, ratio, full = _in_units(locs, scales, other_locs, other_scales)
    square, volume = _of_sum(offset, ratio, full)  # of C in units of L_a
    volume = volume + _log_volume(scales, _is_full(locs, scales)).unsqueeze(-1)
    overlap = -square / 2 - volume - locs.shape[-1] / 2 * math.log(2 * math.pi)
    return _unless_degenerate(overlap, math.nan, locs, scales, other_locs, other_scales)


def mixture_entropy_bounds(
    log_weights: Tensor, locs: Tensor, scales: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Bounds of the entropy of a mixture of Normals by the distances of its components.

    .. math::
        H_d = \sum_a \pi_a H(f_a) - \sum_a \pi_a \log \sum_b \pi_b e^{-d(f_a, f_b)}, \qquad
        H_\text{Bhattacharyya} \le H \le H_\text{KL}

    Args:
        log_weights: normalized, ``(*B, K)``.
        locs: ``(*B, K, D)``.
        scales: of the Normals, as this module describes them.

    Returns:
        The lower and the upper bound, each ``(*B,)``. They are ``-inf`` where a component with
        weight has a scale of zero, and NaN where one is not finite or has a negative scale.

    Reference:
        Kolchinsky and Tracey, *Estimating mixture entropy with pairwise distances*, Entropy
        19(7), 2017, https://arxiv.org/abs/1706.02419.
    """
    dtype = log_weights.dtype
    log_weights, locs, scales = double(log_weights, locs, scales)
    mean = _mean(log_weights, entropies(locs, scales))
    lower, upper = _spreads(log_weights, locs, scales)
    return (mean - upper).to(dtype), (mean - lower).to(dtype)


def mixture_kl_bounds(
    log_weights: Tensor,
    locs: Tensor,
    scales: Tensor,
    other_log_weights: Tensor,
    other_locs: Tensor,
    other_scales: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Bounds of the Kullback-Leibler divergence of a mixture of Normals f from another, g.

    With the components :math:`f_a, g_b`, the weights :math:`\pi_a, \omega_b` and Bhattacharyya
    distances d the upper bound is

    .. math::
        \sum_a \pi_a \Big[ \log \sum_{a'} \pi_{a'} e^{-d(f_a, f_{a'})}
        - \log \sum_b \omega_b e^{-KL(f_a \| g_b)} \Big]

    and the lower bound, if it is above zero,

    .. math::
        \sum_a \pi_a \Big[ \log \sum_{a'} \pi_{a'} e^{-KL(f_a \| f_{a'})} - H(f_a)
        - \log \sum_b \omega_b \int f_a g_b \Big].

    If g is one Normal its term is known exactly, :math:`-H(f_a) - \log \int f_a g` being replaced
    by :math:`KL(f_a \| g)`.

    Args:
        log_weights: normalized, of f, ``(*B, K)``.
        locs: of the components of f, ``(*B, K, D)``.
        scales: of the components of f, as this module describes them.
        other_log_weights: normalized, of g, ``(*B, K')``.
        other_locs: of the components of g, ``(*B, K', D)``.
        other_scales: of the components of g.

    Returns:
        The lower and the upper bound, each ``(*B,)``. Where a component with weight has no
        density, as one with a scale of zero, the lower bound is NaN, and the upper is infinite if
        that is one of f.

    References:
        Durrieu, Thiran and Kelly, *Lower and upper bounds for approximation of the
        Kullback-Leibler divergence between Gaussian mixture models* (ICASSP 2012), for the
        expectation of log g; Hershey and Olsen, *Approximating the Kullback Leibler divergence
        between Gaussian mixture models* (ICASSP 2007), for its lower bound; Kolchinsky and Tracey
        (2017) for the entropy of f.
    """
    dtype = torch.promote_types(log_weights.dtype, other_log_weights.dtype)
    log_weights, locs, scales = double(log_weights, locs, scales)
    other_log_weights, other_locs, other_scales = double(
        other_log_weights, other_locs, other_scales
    )
    pairs = (locs, scales, other_locs, other_scales)
    lower, upper = _spreads(log_weights, locs, scales)
    divergence = -kl_divergences(*pairs)
    jensen = _mean_log_sum(log_weights, other_log_weights, divergence)
    if other_locs.shape[-2] == 1:
        overlap = jensen
    else:
        overlaps = log_overlaps(*pairs) + entropies(locs, scales).unsqueeze(-1)
        overlap = _mean_log_sum(log_weights, other_log_weights, overlaps)
    return (lower - overlap).clamp_min(0).to(dtype), (upper - jensen).to(dtype)


def _spreads(log_weights: Tensor, locs: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds, below and above, of the mean entropy of the components less that of the mixture."""
    pairs = (locs, scales, locs, scales)
    itself = torch.eye(locs.shape[-2], dtype=torch.bool, device=locs.device)

    def spread(distances: Tensor) -> Tensor:
        # what rounding leaves of the distance from itself may be large if that is ill-conditioned
        return _mean_log_sum(log_weights, log_weights, -distances.masked_fill(itself, 0))

    return spread(kl_divergences(*pairs)), spread(bhattacharyya_distances(*pairs))


def _mean_log_sum(log_weights: Tensor, other_log_weights: Tensor, exponents: Tensor) -> Tensor:
    r""":math:`\sum_a \pi_a \log \sum_b \omega_b e^{x_{ab}}`, ``(*B, K, K') -> (*B,)``."""
    others = other_log_weights.unsqueeze(-2)
    weighted = others + exponents.where(others > -math.inf, 0)  # of weight zero they may be NaN
    return _mean(log_weights, weighted.logsumexp(-1))


def _mean(log_weights: Tensor, values: Tensor) -> Tensor:
    """Without those of weight zero, which may be infinite."""
    weights = log_weights.exp()
    return (weights * values.masked_fill(weights == 0, 0)).sum(-1)


def _is_full(locs: Tensor, scales: Tensor) -> bool:
    return scales.dim() > locs.dim()


def _log_volume(scales: Tensor, full: bool) -> Tensor:
    diagonal = scales.diagonal(dim1=-2, dim2=-1) if full else scales
    return diagonal.log().sum(-1)


def _in_units(
    locs: Tensor, scales: Tensor, other_locs: Tensor, other_scales: Tensor
) -> tuple[Tensor, Tensor, bool]:
    """The others in units of the first.

    Returns:
        Distances of the means ``(*B, K, K', D)`` and ratios of the scales, ``(*B, K, K', D)`` or
        triangular ``(*B, K, K', D, D)``, and whether they are the latter.
    """
    locs, scales = _made_sound(locs, scales)
    other_locs, other_scales = _made_sound(other_locs, other_scales)
    offset = other_locs.unsqueeze(-3) - locs.unsqueeze(-2)  # (*B, K, K', D)
    full, other_full = _is_full(locs, scales), _is_full(other_locs, other_scales)
    if not (full or other_full):
        scales = scales.unsqueeze(-2)  # (*B, K, 1, D)
        return offset / scales, other_scales.unsqueeze(-3) / scales, False
    scales = scales if full else scales.diag_embed()
    other_scales = other_scales.tril() if other_full else other_scales.diag_embed()
    scales = scales.unsqueeze(-3)  # (*B, K, 1, D, D)
    ratio = torch.linalg.solve_triangular(scales, other_scales.unsqueeze(-4), upper=False)
    offset = torch.linalg.solve_triangular(scales, offset.unsqueeze(-1), upper=False)
    return offset.squeeze(-1), ratio, True


def _of_sum(offset: Tensor, ratio: Tensor, full: bool) -> tuple[Tensor, Tensor]:
    """Squared distance in units of, and log volume of, the sum of a unit Normal and another."""
    if not full:
        variance = 1 + ratio.square()
        return (offset.square() / variance).sum(-1), variance.log().sum(-1) / 2
    factor = _factor_of_sum(ratio)
    square = torch.linalg.solve_triangular(factor, offset.unsqueeze(-1), upper=False)
    return square.square().sum((-2, -1)), _log_volume(factor, full)


def _factor_of_sum(ratio: Tensor) -> Tensor:
    """Cholesky factors of ``1 + R R'``, ``(..., D, D)``.

    Where R is large the sum has lost digits of the one, and may have no factor: there it is that
    of the matrix ``(1 R)``, by orthogonal transformations.
    """
    limit = torch.finfo(ratio.dtype).eps ** -0.25  # half of the digits are left
    identity = torch.eye(ratio.shape[-1], dtype=ratio.dtype, device=ratio.device)
    with torch.no_grad():
        is_large = ~(ratio.abs().amax((-2, -1)) < limit)  # also if it is NaN
    if surely_all(~is_large):
        return torch.linalg.cholesky(identity + ratio @ ratio.mT)
    root = torch.cat([identity.expand_as(ratio), ratio], -1)  # (..., D, 2 D)
    if records_graph() or is_transformed():
        return lower_factor(root)
    moderate = ratio.where(~is_large[..., None, None], 0)
    factor = torch.linalg.cholesky(identity + moderate @ moderate.mT)
    return factor.masked_scatter(is_large[..., None, None], lower_factor(root[is_large]))


def _made_sound(locs: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Unit Normals in the place of those that are degenerate."""
    degenerate = are_degenerate(locs, scales)
    if surely_all(~degenerate):
        return locs, scales
    locs = locs.masked_fill(degenerate.unsqueeze(-1), 0)
    if not _is_full(locs, scales):
        return locs, scales.masked_fill(degenerate.unsqueeze(-1), 1)
    identity = torch.eye(scales.shape[-1], dtype=scales.dtype, device=scales.device)
    return locs, scales.where(~degenerate[..., None, None], identity)


def _unless_degenerate(
    values: Tensor,
    far: float,
    locs: Tensor,
    scales: Tensor,
    other_locs: Tensor,
    other_scales: Tensor,
) -> Tensor:
    """Values of pairs ``(*B, K, K')``, but ``far`` where one has no density."""
    first = are_degenerate(locs, scales).unsqueeze(-1)
    second = are_degenerate(other_locs, other_scales).unsqueeze(-2)
    if surely_all(~first) and surely_all(~second):
        return values
    return values.masked_fill(first | second, far)
