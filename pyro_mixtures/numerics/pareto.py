"""Pareto smoothing: the largest importance weights give way to quantiles of a fitted tail."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_mixtures.numerics.precision import double

FEWEST_SAMPLES = 25
"""With fewer the largest fifth has less than the five weights that a Pareto tail is fitted to."""

FEWEST_TAIL = 5
"""With fewer large weights no tail is fitted."""

SAME = 1e-5, 1e-2
"""Logarithms that differ by less than the first are equal, and up to the second by what single
precision leaves of their size: what rounding makes of equal weights has no tail."""

NEGLIGIBLE = 0.01
"""The share of the sum of all weights that does not matter: so many nats of the log evidence."""

FURTHER = 19.0
"""The largest excess of as many draws again is below so many times this one, at 95 percent."""


def largest_khat(num_samples: int) -> float:
    r"""The largest :math:`\hat k` that S draws can bear, ``min(1 - 1 / log10(S), 0.7)``."""
    return min(1 - 1 / math.log10(num_samples), 0.7)


def tail_length(num_samples: int) -> int:
    """How many weights of S are smoothed."""
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def pareto_smoothed(log_weights: Tensor) -> tuple[Tensor, float]:
    r"""Smooth the largest importance weights, and estimate the shape of their tail.

    A generalized Pareto distribution is fitted to what the :math:`M = \lceil \min(S / 5,
    3 \sqrt S) \rceil` largest weights exceed the next one by. The i-th smallest of them becomes
    its quantile at :math:`(i - 1/2) / M`, but no larger than the largest of all. Weights that are
    tied with the next one, or so small that their ratio to the largest is zero, are left out.

    The fit knows no scale: of weights that are 1, but for few that are 1.3, as those of a guide
    that is all but exact, it may say :math:`\hat k = 2`. But as weights have a mean, the shape of
    their tail is at most 1 in the end. For a tail of shape k the largest excess m' of S more
    draws is above c times the largest m of these with a probability of

    .. math:: P(m' > c m) = \frac{1}{1 + c^{1/k}} \le \frac{1}{1 + c}, \qquad k \le 1,

    which is 0.05 for c = 19. So a tail cannot matter where 19 m is no more than 0.01 of the sum of
    all weights: with 95 percent S more draws have no weight that would move the log evidence by
    more than 0.01. A fit above what S draws can bear is no alarm then. (What no draw shows, as
    far modes or tails that are farther out, may still be missing.)

    Args:
        log_weights: logarithms of weights that need not be normalized, ``(S,)``; some may be
            ``-inf``, not all.

    Returns:
        Logarithms of the smoothed weights, ``(S,)``, in the given order and not normalized, and
        :math:`\hat k`. It is ``-inf`` where the largest weights are all equal but for rounding, or
        so small in excess that their tail cannot matter, and ``inf`` where too few are large for
        a fit; nothing is smoothed then.

    Raises:
        ValueError: for another shape or type, NaN or infinity, or weights that are all zero.

    Reference:
        Vehtari, Simpson, Gelman, Yao and Gabry, *Pareto smoothed importance sampling*, JMLR
        25(72), 2024, https://arxiv.org/abs/1507.02646, Algorithm 1.

    Example:
        >>> import torch
        >>> share = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
        >>> _, khat = pareto_smoothed(-0.7 * torch.log1p(-share))  # a Pareto tail of shape 0.7
        >>> round(khat, 1)
        0.7
    """
    check_log_weights(log_weights)
    if log_weights.dim() != 1:
        raise ValueError(
            f"Expected log_weights of shape (S,), but got {tuple(log_weights.shape)}; for more of"
            " them there is Evaluation.from_log_weights"
        )
    if not bool((log_weights > -math.inf).any()):
        raise ValueError(
            "Expected a guide with draws where the model has a positive density, but all"
            f" {len(log_weights)} weights are zero"
        )
    (precise,) = double(log_weights)
    ordered, order = precise.sort()  # ascending, (S,)
    count = tail_length(len(ordered))
    if _are_equal(ordered[-count - 1 :]):
        return log_weights, -math.inf
    relative = (ordered - ordered[-1]).exp()
    cutoff = relative[-count - 1].clamp_min(torch.finfo(relative.dtype).tiny)
    excess = relative[relative > cutoff] - cutoff  # (M,)
    can_matter = bool((FURTHER * excess > NEGLIGIBLE * relative.sum()).any())
    if len(excess) < FEWEST_TAIL:
        return log_weights, math.inf if can_matter else -math.inf
    shape, scale = fitted(excess)
    if shape > largest_khat(len(ordered)) and not can_matter:
        return log_weights, -math.inf
    share = (torch.arange(len(excess)).to(excess) + 0.5) / len(excess)
    smoothed = (cutoff + _quantiles(share, shape, scale)).clamp_max(1).log() + ordered[-1]
    result = log_weights.clone()
    result[order[-len(excess) :]] = smoothed.to(result)
    return result, shape.item()


def check_log_weights(log_weights: Tensor) -> None:
    """Raise a ``ValueError`` for what are no logarithms of weights."""
    if not isinstance(log_weights, Tensor):
        raise ValueError(
            f"Expected log_weights to be a tensor, but got {type(log_weights).__name__}"
        )
    if not log_weights.is_floating_point():
        raise ValueError(
            f"Expected log_weights of a floating point dtype, but got {log_weights.dtype}"
        )
    if not bool((log_weights < math.inf).all()):
        raise ValueError("Expected log_weights that are finite or -inf, but got NaN or inf")


def _are_equal(ordered: Tensor) -> bool:
    """Whether ascending logarithms differ by no more than rounding."""
    rounding = 16 * torch.finfo(torch.float32).eps * ordered[-1].abs()
    return bool(ordered[-1] - ordered[0] <= rounding.clamp(*SAME))


def fitted(excess: Tensor) -> tuple[Tensor, Tensor]:
    r"""Shape and scale of a generalized Pareto distribution, of ascending values ``(M,)``.

    The mean of :math:`b = -k / \sigma` under the profile likelihood on a grid (Zhang and Stephens,
    *A new and efficient estimation method for the generalized Pareto distribution*, Technometrics
    51, 2009), and for the shape a prior that counts as ten values with k = 1/2.
    """
    size = len(excess)
    points = 30 + math.isqrt(size)
    steps = 1 - (points / (torch.arange(points).to(excess) + 0.5)).sqrt()  # (G,)
    quartile = excess[int(size / 4 + 0.5) - 1]
    grid = 1 / excess[-1] + steps / (3 * quartile)  # (G,)
    shapes = torch.log1p(-grid.unsqueeze(-1) * excess).mean(-1)  # (G,)
    profile = size * ((-grid / shapes).log() - shapes - 1)
    mean = profile.nan_to_num(nan=-math.inf).softmax(0) @ grid
    shape = torch.log1p(-mean * excess).mean()
    return (size * shape + 5) / (size + 10), -shape / mean


def _quantiles(share: Tensor, shape: Tensor, scale: Tensor) -> Tensor:
    """Of the generalized Pareto distribution."""
    exponential = -torch.log1p(-share)
    if shape.abs() < torch.finfo(shape.dtype).eps:
        return scale * exponential
    return scale * torch.expm1(shape * exponential) / shape
