"""Distribution functions and quantiles of the coordinates of mixtures."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mixtures.components.base import Components
from pyro_mixtures.numerics.bisection import smallest
from pyro_mixtures.numerics.precision import at_least_single


def mixture_tails(components: Components, log_weights: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    r"""Distribution functions of each coordinate and one minus them, ``(*B, S, D)``.

    .. math:: F_i(z_i) = \sum_k \pi_k F_{ki}(z_i)

    Args:
        components: K that have tails.
        log_weights: normalized, ``(*B, K)``.
        z: ``(*B, S, D)``.
    """
    cdf, sf, weights = at_least_single(*components.tails(z), log_weights.exp())
    weights = weights[..., None, None, :]
    return (weights @ cdf).squeeze(-2), (weights @ sf).squeeze(-2)


@torch.no_grad()
def mixture_icdf(components: Components, log_weights: Tensor, value: Tensor) -> Tensor:
    """Quantiles of each coordinate, without gradient: NaN for what is no probability.

    They are the smallest numbers whose distribution function reaches the probability; that of the
    smaller tail is compared, which has its digits.

    Args:
        components: K that have tails.
        log_weights: normalized, ``(*B, K)``.
        value: probabilities, ``(*B, S, D)``.
    """
    value, log_weights = at_least_single(value, log_weights)
    dead = (log_weights == -torch.inf).unsqueeze(-1)
    low, high = (end.to(value) for end in components.ends(value.dtype))  # (*B, K, D)
    low = low.masked_fill(dead, torch.inf).amin(-2, keepdim=True).expand_as(value)
    high = high.masked_fill(dead, -torch.inf).amax(-2, keepdim=True).expand_as(value)

    def reached(z: Tensor) -> Tensor:
        cdf, sf = mixture_tails(components, log_weights, z)
        return torch.where(value < 0.5, cdf >= value, sf <= 1 - value)

    before = low.nextafter(torch.full_like(low, -torch.inf))  # an atom may be there
    quantile = smallest(reached, before, high)
    quantile = torch.where(value == 0, low, torch.where(value == 1, high, quantile))
    quantile = quantile + 0.0  # of both zeros the usual one
    return quantile.masked_fill(~((value >= 0) & (value <= 1)), torch.nan)
