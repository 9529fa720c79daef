"""Pyro's TransformedDistribution, with the score term of a mixture at its base."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pyro.distributions
import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import sum_rightmost
from pyro.ops.provenance import ProvenanceTensor, get_provenance, track_provenance
from torch import Tensor
from torch.distributions import Independent, Transform

from pyro_mixtures.distributions.moving import moved, moved_back, parts_of, versions
from pyro_mixtures.numerics.validation import broadcast_shapes
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

    Of its own samples a flow knows the way, so that their density takes no inverse: transforms
    that have none, such as Pyro's ``Planar``, serve for all that is learned through samples. (The
    gradient of that density runs through the draw, as with torch's cached transforms. That by the
    point alone is the one of ``log_prob(y.detach().requires_grad_())``.)

    Args:
        base_distribution: any.
        transforms: a transform or a list of them.
        validate_args: check the values of ``log_prob``'s argument.

    Raises:
        NotImplementedError: by ``log_prob``, for other points than its samples and transforms
            without an inverse; by ``rsample`` for inverses of such transforms.

    Example:
        >>> from torch.distributions.transforms import ExpTransform
        >>> from pyro_mixtures.distributions import MixtureOfDiagNormals
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> base = MixtureOfDiagNormals(torch.tensor([[0.0], [9.0]]), torch.ones(2, 1), logits)
        >>> q = TransformedDistribution(base, [ExpTransform()])
        >>> q.score_parts(q.rsample((5,))).score_function.shape
        torch.Size([5])
    """

    @property
    def _parts(self) -> list[Transform]:
        return list(parts_of(self.transforms))

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self._way(self.base_dist.sample(torch.Size(sample_shape)), sample_shape)[-1]

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        point = self.base_dist.rsample(torch.Size(sample_shape))
        *points, value = self._way(point, sample_shape)
        if points:
            if any(value is point for point in points):  # the identity may return what it is given
                value = value.view_as(value)
            remember(self, value, (tuple(points), versions(self._parts)))
        return value

    def _way(self, point: Tensor, sample_shape: Sequence[int]) -> list[Tensor]:
        """A draw of the base and what each transform makes of it."""
        points = [point]
        for transform in self._parts:
            points.append(moved(transform, points[-1]))
        expected = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        if points[-1].shape != expected:  # that of some transform was broadcast
            raise ValueError(
                f"Expected transforms that make draws of shape {tuple(expected)} of those of the"
                f" base, of shape {tuple(point.shape)}, but got {tuple(points[-1].shape)}"
            )
        return points

    def _way_to(self, value: Tensor) -> list[Tensor]:
        """A point of the base, and what each transform makes of it: at last the value."""
        known = self._known_way(value)
        if known is not None:
            return known
        if self._validate_args:
            self._validate_sample(value)
        # of the whole batch, for which conditional transforms are; and another tensor than before,
        # as some transforms keep the inverse of the last one, of whatever parameters they had then
        batch = value.shape[: value.dim() - self.event_dim]
        points = [value.expand(broadcast_shapes(batch, self.batch_shape) + self.event_shape)]
        for transform in reversed(self._parts):
            points.append(moved_back(transform, points[-1]))
        size = self.base_dist.event_shape
        if points[-1].shape[points[-1].dim() - len(size) :] != size:
            raise ValueError(
                f"Expected transforms that lead from events of shape {tuple(self.event_shape)} to"
                f" {tuple(size)}, those of the base, but got points of shape"
                f" {tuple(points[-1].shape)}"
            )
        return points[::-1]

    def _known_way(self, value: Tensor) -> list[Tensor] | None:
        """That of a sample drawn here, by transforms that did not change since."""
        if value.is_leaf and value.requires_grad:  # for a gradient that is not the draw's
            return None
        points, drawn_by = recall(self, value) or ((), None)
        if not points or drawn_by != versions(self._parts):
            return None
        if isinstance(value, ProvenanceTensor):  # where it comes from, they do
            points = track_provenance(points, get_provenance(value))
        return [*points, value]

    def _log_volume(self, points: list[Tensor]) -> tuple[Tensor | float, int]:
        """What the way of a point adds to its volume, and the dimensions of a point of the base.

        The volume is a logarithm, of shape ``(*X,)``.
        """
        total: Tensor | float = 0.0
        event_dim = self.event_dim
        ways = zip(self._parts, itertools.pairwise(points), strict=True)
        for transform, (x, y) in reversed(list(ways)):
            domain = transform.domain.event_dim
            event_dim += domain - transform.codomain.event_dim
            # of transforms with a memory some take it to be of x
            y = transform(x) if transform._cache_size else y
            log_volume = transform.log_abs_det_jacobian(x, y)
            total = total + sum_rightmost(log_volume, event_dim - domain)
        return total, event_dim

    def log_prob(self, value: Tensor) -> Tensor:
        points = self._way_to(value)
        log_volume, event_dim = self._log_volume(points)
        log_prob = self.base_dist.log_prob(points[0])
        return sum_rightmost(log_prob, event_dim - len(self.base_dist.event_shape)) - log_volume

    def score_term(self, value: Tensor) -> ScoreTerm:
        """That of the base, at the point that the sample came from."""
        points = self._known_way(value) if self.transforms else [value]
        if points is None:
            return ScoreTerm(self.log_prob(value))
        log_volume, event_dim = self._log_volume(points)
        term = base_score_term(self.base_dist, points[0])
        term = term.summed(event_dim - len(self.base_dist.event_shape))
        return term._replace(log_prob=term.log_prob - log_volume)

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
