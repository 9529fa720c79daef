"""Distribution functions and quantiles of the coordinates of mixtures of Normals and others."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mixtures.numerics.precision import at_least_single
from pyro_mixtures.numerics.symmetric import student_t_tails


def mixture_cdf(value: Tensor, log_weights: Tensor, locs: Tensor, stddev: Tensor) -> Tensor:
    r"""Distribution function of each coordinate, ``(*X, D) -> (*X, D)``.

    .. math:: F_i(z_i) = \sum_k \pi_k \Phi((z_i - \mu_{ki}) / \sigma_{ki})

    Args:
        value: ``(*X, D)``; X broadcasts with B.
        log_weights: normalized, ``(*B, K)``.
        locs: ``(*B, K, D)``.
        stddev: ``(*B, K, D)``.
    """
    standard = (value.unsqueeze(-2) - locs) / stddev  # (*X, K, D)
    return (log_weights.exp().unsqueeze(-1) * torch.special.ndtr(standard)).sum(-2)


@torch.no_grad()
def mixture_icdf(value: Tensor, log_weights: Tensor, locs: Tensor, stddev: Tensor) -> Tensor:
    """Quantile of each coordinate, by bisection of :func:`mixture_cdf`, without gradient.

    Args:
        value: probabilities between 0 and 1, of a shape that broadcasts with ``(*B, D)``.
        log_weights: normalized, ``(*B, K)``.
        locs: ``(*B, K, D)``.
        stddev: ``(*B, K, D)``.
    """
    dtype = locs.dtype
    value = torch.as_tensor(value, dtype=dtype, device=locs.device)
    value, log_weights, locs, stddev = at_least_single(value, log_weights, locs, stddev)
    value = value.expand(torch.broadcast_shapes(value.shape, locs[..., 0, :].shape))
    quantiles = locs + stddev * torch.special.ndtri(value).unsqueeze(-2)
    # the quantile of a mixture lies between those of its components
    dead = (log_weights == -torch.inf).unsqueeze(-1)
    lower = quantiles.masked_fill(dead, torch.inf).amin(-2)
    upper = quantiles.masked_fill(dead, -torch.inf).amax(-2)
    for _ in range(100):
        middle = (lower + upper) / 2
        above = mixture_cdf(middle, log_weights, locs, stddev) < value
        lower, upper = torch.where(above, middle, lower), torch.where(above, upper, middle)
    return ((lower + upper) / 2).to(dtype)


@torch.no_grad()
def student_t_icdf(value: Tensor, df: Tensor) -> Tensor:
    """Quantile of the standard Student t distribution, by bisection, without gradient.

    Args:
        value: probabilities between 0 and 1, of a shape that broadcasts with that of ``df``.
        df: degrees of freedom.
    """
    value, df = torch.broadcast_tensors(*at_least_single(torch.as_tensor(value), df))
    log_tail = torch.minimum(value, 1 - value).log()
    lower = torch.zeros_like(value)  # of asinh, whose steps suit the centre and the tails
    upper = torch.full_like(value, torch.finfo(value.dtype).max).asinh() / 2
    for _ in range(100):
        middle = (lower + upper) / 2
        below = student_t_tails(df, middle.sinh()).log_sf > log_tail
        lower, upper = torch.where(below, middle, lower), torch.where(below, upper, middle)
    distance = lower.sinh().masked_fill(log_tail == -torch.inf, torch.inf)
    return distance.copysign(value - 0.5)
