"""Samples of one mixture, with all that an estimator of the logits' gradient asks for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.logit_gradients.costs import Cost
from pyro_mixtures.distributions.normal_mixture import NormalMixture


@dataclass(frozen=True)
class Draws:
    """N samples.

    Args:
        mixture: of double precision, without batch shape.
        z: samples, ``(N, D)``.
        values: their costs f, ``(N,)``.
        grad: the costs' gradients, ``(N, D)``.
        log_prob: log densities, ``(N, 1)``.
        responsibilities: ``(N, K)``.
        baseline: mean cost of other samples.
    """

    mixture: NormalMixture
    z: Tensor
    values: Tensor
    grad: Tensor
    log_prob: Tensor
    responsibilities: Tensor
    baseline: Tensor

    @classmethod
    def of(cls, mixture: NormalMixture, cost: Cost, z: Tensor, baseline: Tensor) -> Draws:
        """Look at samples drawn elsewhere."""
        z = z.detach().requires_grad_()
        values = cost.value(z)
        (grad,) = torch.autograd.grad(values.sum(), z)
        z = z.detach()
        with torch.no_grad():
            log_prob, responsibilities = mixture._log_prob_and_responsibilities(z)
        return cls(
            mixture, z, values.detach(), grad, log_prob[:, None], responsibilities, baseline
        )

    @classmethod
    def draw(cls, mixture: NormalMixture, cost: Cost, count: int, baseline: Tensor) -> Draws:
        """Draw N = ``count`` samples."""
        return cls.of(mixture, cost, mixture.sample((count,)), baseline)

    @property
    def weights(self) -> Tensor:
        """Of the components, ``(K,)``."""
        return self.mixture.log_weights.exp()

    @property
    def advantage(self) -> Tensor:
        """Costs less the baseline, ``(N, 1)``."""
        return (self.values - self.baseline)[:, None]


@torch.no_grad()
def mean_cost(mixture: NormalMixture, cost: Cost, count: int) -> Tensor:
    """A baseline, of samples of its own."""
    return cost.value(mixture.sample((count,))).mean()
