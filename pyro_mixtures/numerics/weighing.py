"""What importance weights tell of the evidence, and in words how far to trust them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pyro_mixtures.numerics.pareto import largest_khat, pareto_smoothed
from pyro_mixtures.numerics.precision import double

GOOD_KHAT = 0.5
"""Up to this the weights have a variance, and weighted means the errors of means."""

CONSTANT = 0.99
"""Weights whose draws are worth this share of their number are all but equal."""

FEW = 50
"""Means over fewer effective draws are rough."""

UNSEEN = "it cannot see modes that no draw has visited"


@dataclass(frozen=True)
class Weighing:
    r"""Figures of importance weights :math:`w_s = p(z_s, y) / q(z_s)` of S draws of q.

    Attributes:
        khat: of :func:`~pyro_mixtures.numerics.pareto.pareto_smoothed`.
        effective_sample_size: :math:`1 / \sum_s \tilde w_s^2` of smoothed weights of sum one.
        elbo: :math:`\frac1S \sum_s \log w_s`, of the weights as they are.
        elbo_error: its standard error, that of a mean; NaN where a weight is zero.
        log_evidence: :math:`\log \frac1S \sum_s \tilde w_s` of the smoothed weights.
        log_evidence_error: its standard error, by the delta method.
        log_weights: logarithms of the smoothed weights, which sum to one, ``(S,)``.
    """

    khat: float
    effective_sample_size: float
    elbo: float
    elbo_error: float
    log_evidence: float
    log_evidence_error: float
    log_weights: Tensor


def weigh(log_weights: Tensor) -> Weighing:
    r"""Smooth importance weights, and what they tell of the evidence.

    Args:
        log_weights: :math:`\log p(z_s, y) - \log q(z_s)` of independent draws, ``(S,)``.

    Raises:
        ValueError: as :func:`~pyro_mixtures.numerics.pareto.pareto_smoothed`.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> found = weigh(0.3 * torch.randn(4000))  # whose weights have the mean exp(0.045)
        >>> abs(found.elbo) < 4 * found.elbo_error
        True
        >>> abs(found.log_evidence - 0.045) < 4 * found.log_evidence_error
        True
    """
    smoothed, khat = pareto_smoothed(log_weights)
    precise, smoothed = double(log_weights, smoothed)
    count, total = len(smoothed), smoothed.logsumexp(0)
    normalized = smoothed - total
    return Weighing(
        khat=khat,
        effective_sample_size=float((-(2 * normalized).logsumexp(0)).exp()),
        elbo=float(precise.mean()),
        elbo_error=float(mean_error(precise)),
        log_evidence=float(total) - math.log(count),
        log_evidence_error=float(mean_error(normalized.exp() * count)),
        log_weights=normalized,
    )


def mean_error(values: Tensor) -> Tensor:
    """Standard error of the mean over the first dimension."""
    return values.std(0) / math.sqrt(len(values))


def verdict(khat: float, effective_sample_size: float, num_samples: int) -> str:
    r"""How far importance weights can be trusted, in words.

    What draws do not show no weights can tell: next to each good :math:`\hat k` stands that.

    Args:
        khat: :math:`\hat k`.
        effective_sample_size: of the smoothed weights.
        num_samples: S, the number of draws.

    Example:
        >>> verdict(0.45, 3120.0, 4000)
        'k-hat 0.45: importance weights mend it; it cannot see modes that no draw has visited'
        >>> verdict(1.3, 17.0, 4000)
        'k-hat 1.30 is above 0.70: neither the draws nor their weights are to be trusted'
    """
    threshold = largest_khat(num_samples)
    if khat == math.inf:
        return f"k-hat inf: all but a few of {num_samples} draws have no weight, they say nothing"
    if not khat <= threshold:
        shown = math.ceil(khat * 100) / 100 if math.isfinite(khat) else khat
        return (
            f"k-hat {shown:.2f} is above {threshold:.2f}: neither the draws nor their weights are"
            " to be trusted"
        )
    if khat == -math.inf and effective_sample_size > CONSTANT * num_samples:
        told = "weights are nearly constant, there is next to nothing to mend"
    elif khat <= GOOD_KHAT:
        told = "importance weights mend it"
    else:
        told = "importance weights mend it, but slowly as draws grow in number"
    if effective_sample_size < FEW:
        told += f", with more draws: these are worth only {effective_sample_size:.0f}"
    return f"k-hat {khat:.2f}: {told}; {UNSEEN}"
