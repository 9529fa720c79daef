"""The costs of samples, and the surrogate whose gradient estimates that of their expectation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Size, Tensor


def checked_costs(cost: Callable[[Tensor], Tensor], z: Tensor, batch_shape: Size) -> Tensor:
    """Costs ``(N, *B)`` of samples ``(N, *B, *E)``.

    Raises:
        ValueError: for a cost of another shape.
    """
    costs = cost(z)
    expected = (len(z), *batch_shape)
    found = tuple(costs.shape) if isinstance(costs, Tensor) else type(costs).__name__
    if found != expected:
        raise ValueError(
            f"Expected cost to return one value for each sample, shape {expected} (samples,"
            f" *batch_shape), but got {found}"
        )
    return costs


def sampled_expectation(
    distribution: Any,
    cost: Callable[[Tensor], Tensor],
    num_samples: int,
    baseline: Tensor | float | None = None,
) -> Tensor:
    r"""The mean cost of samples, with the gradient by ``rsample`` and ``score_parts``.

    .. math:: \frac{1}{S} \sum_s f(z_s) + \mathrm{sg}(f(z_s) - b_s) \, [l_s - \mathrm{sg}(l_s)]

    with the score function terms l, the baseline b and stopped gradients sg.

    Args:
        distribution: any of torch or Pyro; those without ``score_parts`` count as pathwise.
        cost: maps samples ``(S, *B, *E)`` to ``(S, *B)``.
        num_samples: S, the number of draws.
        baseline: b, which broadcasts with ``(S, *B)`` and does not depend on the samples; None
            for the mean of the other samples' costs, or zero for a single one.

    Returns:
        ``(*B,)``.
    """
    draw = distribution.rsample if distribution.has_rsample else distribution.sample
    z = draw((num_samples,))
    costs = checked_costs(cost, z, distribution.batch_shape)
    parts = distribution.score_parts(z) if hasattr(distribution, "score_parts") else None
    if parts is None or not isinstance(parts.score_function, Tensor):  # zero
        return costs.mean(0)
    with torch.no_grad():
        baseline = (
            _leave_one_out(costs) if baseline is None else torch.as_tensor(baseline).to(costs)
        )
        advantage = costs - _checked_baseline(baseline, costs.shape)
    score = parts.score_function
    return (costs + advantage * (score - score.detach())).mean(0)


def _checked_baseline(baseline: Tensor, shape: Size) -> Tensor:
    try:
        return baseline.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"Expected a baseline that broadcasts with the costs, shape {tuple(shape)} (samples,"
            f" *batch_shape), but got {tuple(baseline.shape)}"
        ) from None


def _leave_one_out(costs: Tensor) -> Tensor:
    """Means of the other samples' costs; zero where there are none."""
    others = len(costs) - 1
    return (costs.sum(0) - costs) / others if others else torch.zeros_like(costs)
