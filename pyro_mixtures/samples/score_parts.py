"""Score terms on their way to Pyro's objectives, also through wrappers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro.distributions import Independent
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import sum_rightmost
from torch import Size, Tensor

from pyro_mixtures.numerics.score_use import completed, marked
from pyro_mixtures.samples.pyro_context import asker


class ScoreTerm(NamedTuple):
    """The density at a sample and the score term that goes with the sample, if there is one.

    Args:
        log_prob: of the sample.
        score: has the gradient that, times the cost, completes that of the sample.
        receipt: of the sample (:mod:`~pyro_mixtures.numerics.score_use`).
    """

    log_prob: Tensor
    score: Tensor | None = None
    receipt: Tensor | None = None

    def summed(self, count: int) -> ScoreTerm:
        """With the last ``count`` dimensions of the batch in the event."""
        score = None if self.score is None else sum_rightmost(self.score, count)
        return ScoreTerm(sum_rightmost(self.log_prob, count), score, self.receipt)

    def parts(self, value: Tensor) -> ScoreParts:
        r"""Pyro's terms of a surrogate objective.

        ``Trace_ELBO`` leaves the density of an auxiliary site out of the cost that it multiplies
        the score by. There the entropy term supplies :math:`- \log q\, \nabla S`: a term with the
        gradient of :math:`S \log q`, :math:`\log q` held fixed, which passes only if S itself is
        used, since for all others it would be wrong.
        """
        log_prob, score, receipt = self
        alone = ScoreParts(log_prob, 0, log_prob)  # type: ignore[arg-type]
        if score is None or receipt is None:
            return alone
        asking = asker()
        if not asking.uses_scores or asking.misses_costs(value):
            return alone
        if asking.lacks_auxiliary_densities and asking.is_auxiliary(value):
            score, completion = completed(score, receipt, log_prob.detach())
            return ScoreParts(log_prob, score, log_prob + completion)
        return ScoreParts(log_prob, marked(score, receipt), log_prob)


def parts_without_gradient(log_prob: Tensor, value: Tensor) -> ScoreParts:
    """Pyro's terms for a sample that has no gradient: the score function is the whole density.

    Raises:
        NotImplementedError: for an objective that would leave the parameters untrained, and if
            auxiliary sites that ``Trace_ELBO`` leaves out of the cost may depend on the sample.
    """
    asking = asker()
    asking.check_uses_scores()
    if not (asking.lacks_auxiliary_densities and asking.is_auxiliary(value)):
        return ScoreParts(log_prob, log_prob, 0)  # type: ignore[arg-type]
    if asking.followed_by_auxiliary_sites(value):
        raise NotImplementedError(
            "Expected no auxiliary sites after one whose samples have no gradient, for Trace_ELBO"
            " leaves their densities out of the cost of its score term: use BaselinedTrace_ELBO"
        )
    score, completion = completed(log_prob, log_prob.new_zeros(()), log_prob.detach())
    return ScoreParts(log_prob, score, completion)


class IndependentParts(Independent):
    """``to_event`` of a distribution that has ``score_parts`` of its own."""

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Any:
        more = reinterpreted_batch_ndims
        more = len(self.batch_shape) if more is None else more
        return self.base_dist.to_event(self.reinterpreted_batch_ndims + more)

    def mask(self, mask: Tensor | bool) -> Any:
        return super().mask(mask_tensor(mask, self.batch_shape, self.base_dist.device))

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return self.base_dist.device

    def score_term(self, value: Tensor) -> ScoreTerm:
        """That of the distribution in it, summed."""
        return self.base_dist.score_term(value).summed(self.reinterpreted_batch_ndims)

    def score_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        count = self.reinterpreted_batch_ndims
        parts = self.base_dist.score_parts(x)
        parts = (p if isinstance(p, int) else sum_rightmost(p, count) for p in parts)
        return ScoreParts(*parts)


def mask_tensor(mask: Tensor | bool, batch_shape: Size, device: torch.device) -> Tensor:
    """A mask as a tensor: with a bool Pyro would ask for ``log_prob`` alone."""
    if isinstance(mask, bool):
        return torch.tensor(mask, device=device).expand(batch_shape)
    return mask
