"""Means and variances of gradients over independent draws, with their standard errors."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_mixtures.numerics.chunks import MEMORY_BUDGET
from pyro_mixtures.numerics.validation import check_at_least


@dataclass(frozen=True)
class GradientVariance:
    """Mean and variance of each entry of one parameter's gradient, and their standard errors.

    All four are tensors of the parameter's shape. For heavy-tailed gradients, whose higher moments
    rare draws dominate, ``variance`` and ``variance_error`` are too small more often than not.
    """

    mean: Tensor
    mean_error: Tensor
    variance: Tensor
    variance_error: Tensor


class Moments:
    """Sums of the first four powers of gradients' distances from an origin near their mean."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0

    def add(self, gradients: Tensor) -> None:
        """Count gradients ``(draws, *shape)``."""
        bad = int((~gradients.isfinite()).reshape(len(gradients), -1).any(1).sum())
        if bad:
            raise ValueError(
                f"Expected finite gradients, but {bad} of {len(gradients)} draws gave {self.name}"
                " NaN or infinity"
            )
        gradients = gradients.detach().double()
        if self.count == 0:
            self.origin = gradients.mean(0)
            self.sums = torch.zeros_like(self.origin).expand(4, *self.origin.shape).clone()
        self.count += len(gradients)
        distance = gradients - self.origin
        power = distance
        for total in self.sums:
            total += power.sum(0)
            power = power * distance

    def result(self, dtype: torch.dtype) -> GradientVariance:
        """Moments of all gradients so far."""
        n = self.count
        shift, second, third, fourth = self.sums / n
        central = (fourth - 4 * shift * third + 6 * shift**2 * second - 3 * shift**4).clamp_min(0)
        variance = (second - shift**2).clamp_min(0) * n / (n - 1)
        spread = (central - variance**2 * (n - 3) / (n - 1)).clamp_min(0)
        return GradientVariance(
            mean=(self.origin + shift).to(dtype),
            mean_error=(variance / n).sqrt().to(dtype),
            variance=variance.to(dtype),
            variance_error=(spread / n).sqrt().to(dtype),
        )


def check_sizes(num_draws: int, chunk_size: int | None) -> None:
    """Raise a ``ValueError`` for numbers that give no variance or no draws."""
    check_at_least(2, num_draws=num_draws)
    if chunk_size is not None:
        check_at_least(1, chunk_size=chunk_size)


def check_reached(missing: Collection[str], cause: str) -> None:
    """Raise a ``ValueError`` that names the parameters without a gradient."""
    if missing:
        raise ValueError(
            f"Expected the {cause} to depend on {', '.join(missing)}, but got no gradient"
        )


def chunk_sizes(
    num_draws: int, chunk_size: int | None, parameters: Collection[Tensor]
) -> Iterator[int]:
    """Numbers of draws that add up to ``num_draws``."""
    if chunk_size is None:
        bytes_of_a_draw = max(value.numel() * value.element_size() for value in parameters)
        chunk_size = max(1, MEMORY_BUDGET // max(1, bytes_of_a_draw))
    for start in range(0, num_draws, chunk_size):
        yield min(chunk_size, num_draws - start)


def repeated(value: Tensor, batch: tuple[int, ...]) -> Tensor:
    """A leaf ``(*batch, *shape)`` that takes no memory until it has a gradient."""
    return value.detach().expand(*batch, *value.shape).requires_grad_()


def gradients_of(cause: str, total: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of a sum over draws at parameters repeated for each: the draws' own."""
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    gradients = dict(zip(leaves, found, strict=True))
    check_reached([name for name, gradient in gradients.items() if gradient is None], cause)
    return gradients
