"""The score function for all parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor

from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.estimators.estimated_mixture import EstimatedMixture
from pyro_mixtures.samples.score_parts import (
    IndependentParts,
    mask_tensor,
    parts_without_gradient,
)


class ScoreMixture(EstimatedMixture):
    """Samples without gradient; Pyro takes the whole density for the score function."""

    has_rsample = False

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.sample(sample_shape)

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        return parts_without_gradient(self.log_prob(x), x)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Any:
        event = super().to_event(reinterpreted_batch_ndims)
        return event if event is self else IndependentParts(self, event.reinterpreted_batch_ndims)

    def mask(self, mask: Tensor | bool) -> Any:
        return super().mask(mask_tensor(mask, self.batch_shape, self.device))


def score(mixture: MixtureDistribution) -> ScoreMixture:
    r"""Samples without gradient; a score term for all parameters.

    .. math:: \nabla_\theta E_q[f] = E_q[f(z) \nabla_\theta \log q(z)]

    Unbiased, with one evaluation of the cost for each sample; the cost need not be
    differentiable. Its variance is the highest of all, of the components' parameters above all,
    and grows with the dimension: where the cost has a gradient, use any other.

    Args:
        mixture: of any class.

    Returns:
        A distribution that is equal to the mixture, with ``has_rsample = False``.

    Raises:
        ValueError: for what is no mixture of this package.

    Reference:
        Williams, *Simple statistical gradient-following algorithms for connectionist reinforcement
        learning*, Machine Learning 8, 1992.

    Example:
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> locs = torch.zeros(2, 1, requires_grad=True)
        >>> q = score(MixtureOfDiagNormals(locs, torch.ones(2, 1), torch.zeros(2)))
        >>> z = q.rsample()
        >>> z.requires_grad, q.score_parts(z).score_function.requires_grad
        (False, True)
    """
    return ScoreMixture(mixture)
