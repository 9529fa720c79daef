"""Pyro's TransformedDistribution, with the score term of a mixture at its base."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pyro.distributions
import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Independent

from pyro_mixtures.samples.remembering import recall, remember
from pyro_mixtures.samples.score_parts import (
    IndependentParts,
    ScoreTerm,
    mask_tensor,
    parts_without_gradient,
)


class TransformedDistribution(pyro.distributions.TransformedDistribution):
    r"""A distribution of points that transforms have moved: a flow, with a mixture at its base.

    .. math:: y = T(z), \qquad \log p(y) = \log q(z) - \log |\det \partial T / \partial z|

    The signature and all methods are those of ``pyro.distributions.TransformedDistribution``. That
    one, too, is right around a mixture of this package; but as it has no place for the mixture's
    score term, the weights of far components get a noisy gradient there. Here it is kept.

    Args:
        base_distribution: any.
        transforms: a transform or a list of them.
        validate_args: check the values of ``log_prob``'s argument.

    Example:
        >>> from torch.distributions.transforms import ExpTransform
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> base = MixtureOfDiagNormals(torch.tensor([[0.0], [9.0]]), torch.ones(2, 1), logits)
        >>> q = TransformedDistribution(base, [ExpTransform()])
        >>> q.score_parts(q.rsample((5,))).score_function.shape
        torch.Size([5])
    """

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        value = self.base_dist.rsample(sample_shape)
        points = []
        for transform in self.transforms:
            points.append(value)
            value = transform(value)
        if points:
            if any(value is point for point in points):  # the identity may return what it is given
                value = value.view_as(value)
            remember(self, value, tuple(points))
        return value

    def score_term(self, value: Tensor) -> ScoreTerm:
        """That of the base, at the point that the sample came from."""
        points = recall(self, value) if self.transforms else ()
        if points is None:
            return ScoreTerm(self.log_prob(value))
        points = (*points, value)
        term = base_score_term(self.base_dist, points[0])
        batch_dim = value.dim() - self.event_dim
        term = term.summed(term.log_prob.dim() - batch_dim)
        log_prob = term.log_prob
        for transform, (x, y) in zip(self.transforms, itertools.pairwise(points), strict=True):
            log_volume = transform.log_abs_det_jacobian(x, y)
            log_prob = log_prob - sum_rightmost(log_volume, log_volume.dim() - batch_dim)
        return term._replace(log_prob=log_prob)

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        if not self.has_rsample:
            return parts_without_gradient(self.log_prob(x), x)
        return self.score_term(x).parts(x)

    @property
    def device(self) -> torch.device:
        """Of the base, where it tells one."""
        return getattr(self.base_dist, "device", torch.device("cpu"))

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Any:
        event = super().to_event(reinterpreted_batch_ndims)
        return event if event is self else IndependentParts(self, event.reinterpreted_batch_ndims)

    def mask(self, mask: Tensor | bool) -> Any:
        return super().mask(mask_tensor(mask, self.batch_shape, self.device))


def base_score_term(base: Any, z: Tensor) -> ScoreTerm:
    """That of any distribution, of a sample that it drew."""
    if hasattr(base, "score_term"):
        return base.score_term(z)
    if isinstance(base, Independent):  # torch's constructor makes one of its own
        return base_score_term(base.base_dist, z).summed(base.reinterpreted_batch_ndims)
    return ScoreTerm(base.log_prob(z))
