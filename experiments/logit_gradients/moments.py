"""What is told of an estimator: its variance, and whether that can be believed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from experiments.logit_gradients.costs import Exact

THRESHOLD = 3.0
"""Largest root mean square of the z-scores of a mean that is called reliable."""

OFTEN = 50
"""Samples that a component should have for a z-score of its logit."""


@dataclass(frozen=True)
class Moments:
    """Of estimates of a gradient of K logits.

    Args:
        variance: summed over the logits.
        error: its standard error.
        square_bias: squared distance of the mean from the exact gradient, less what noise adds.
        rms_z: root mean square of the z-scores of the mean, over the logits of components that
            are seen ``OFTEN`` enough.
    """

    variance: float
    error: float
    square_bias: float
    rms_z: float

    @property
    def reliable(self) -> bool:
        """Whether the mean is the exact gradient.

        Far-apart components exchange mass by rare and enormous samples. Without one of them in
        the run the mean is wrong and the variance is small.
        """
        return self.rms_z <= THRESHOLD

    def times(self, factor: float) -> Moments:
        """With the variance multiplied, as by the number of samples whose mean the estimate is."""
        return replace(self, variance=self.variance * factor, error=self.error * factor)


torch.serialization.add_safe_globals([Moments])  # numbers, which checkpoints may hold


def moments(estimates: Tensor, exact: Exact) -> Moments:
    """Of ``(N, K)`` estimates, beside the exact gradient."""
    count = len(estimates)
    square = (estimates - estimates.mean(0)).square()  # (N, K)
    variance = square.sum(0) / (count - 1)
    noise = variance / count + exact.error.square()
    bias = (estimates.mean(0) - exact.gradient).square()
    often = exact.weights * count >= OFTEN
    if not bool(often.any()):
        often = torch.ones_like(often)
    # of logits that the estimator gives nothing at all, none is expected
    floor = 1e-20 * (exact.gradient.square().sum() + variance.sum())
    return Moments(
        variance=variance.sum().item(),
        error=square.sum(-1).std().item() / math.sqrt(count),
        square_bias=(bias - noise).sum().item(),
        rms_z=(bias / (noise + floor))[often].mean().sqrt().item(),
    )


def best(found: Mapping[str, Moments], tolerance: float = 1.0) -> str:
    """The first of the reliable whose variance is within a factor of the least.

    Where none is reliable, the first of all.
    """
    reliable = {name: each.variance for name, each in found.items() if each.reliable}
    if not reliable:
        return next(iter(found))
    least = min(reliable.values())
    return next(name for name, variance in reliable.items() if variance <= tolerance * least)
