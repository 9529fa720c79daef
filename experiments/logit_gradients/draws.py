"""Samples of one mixture, with all that an estimator of the logits' gradient asks for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.logit_gradients.costs import Cost
from pyro_mixtures.distributions.parametric_mixture import ParametricMixture
from pyro_mixtures.samples.record import SampleRecord


@dataclass(frozen=True)
class Draws:
    """N samples.

    Args:
        mixture: of double precision, without batch shape and gradients.
        record: what it says of the samples z, ``(N, D)``.
        values: their costs f, ``(N,)``.
        grad: the costs' gradients, ``(N, D)``.
        baseline: mean cost of other samples.
    """

    mixture: ParametricMixture
    record: SampleRecord
    values: Tensor
    grad: Tensor
    baseline: Tensor

    @classmethod
    def of(cls, mixture: ParametricMixture, cost: Cost, z: Tensor, baseline: Tensor) -> Draws:
        """Look at samples drawn elsewhere."""
        z = z.detach().requires_grad_()
        values = cost.value(z)
        (grad,) = torch.autograd.grad(values.sum(), z)
        return cls(mixture, mixture.record(z.detach()), values.detach(), grad, baseline)

    @classmethod
    def draw(cls, mixture: ParametricMixture, cost: Cost, count: int, baseline: Tensor) -> Draws:
        """Draw N = ``count`` samples."""
        return cls.of(mixture, cost, mixture.sample((count,)), baseline)

    @property
    def advantage(self) -> Tensor:
        """Costs less the baseline, ``(N, 1)``."""
        return (self.values - self.baseline)[:, None]


@torch.no_grad()
def mean_cost(mixture: ParametricMixture, cost: Cost, count: int) -> Tensor:
    """A baseline, of samples of its own."""
    return cost.value(mixture.sample((count,))).mean()
