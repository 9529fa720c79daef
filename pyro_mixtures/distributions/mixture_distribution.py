"""What all mixtures share: densities by components, and the weights' score function."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_mixtures.distributions.blending import Blending, Draws
from pyro_mixtures.distributions.kept_groups import KeptGroups
from pyro_mixtures.distributions.score_parts import (
    IndependentParts,
    ScoreTerm,
    mask_tensor,
    parts_without_gradient,
)
from pyro_mixtures.distributions.weights import group_sums, surely_one_group
from pyro_mixtures.velocity.clustering import (
    MANY,
    complete_linkage,
    linkage_cut,
    single_linkage,
)
from pyro_mixtures.velocity.pathwise import needs_gradient

WEIGHT_GRADIENTS = ("clustered", "pathwise", "hybrid")


class MixtureDistribution(TorchDistribution):
    r"""A mixture whose ``rsample`` carries gradients to its components and to its weights.

    .. math:: q(z) = \sum_j \pi_j q_j(z), \qquad \pi = \mathrm{softmax}(\text{logits})

    The weights' gradient is estimated as ``weight_gradient`` says, and is unbiased under every
    objective, whatever that makes of ``score_parts``:

    - ``"clustered"``: by the transport within groups of overlapping components and by the score
      function between groups. ``rsample`` carries the first part and ``score_parts`` the second,
      which ``Trace_ELBO``, ``TraceEnum_ELBO`` and ``BaselinedTrace_ELBO`` use. A loss that does
      not (a cost of your own, any other objective) makes the samples carry the whole gradient, as
      with ``"pathwise"``: the backward pass finds out which of the two it is
      (:mod:`~pyro_mixtures.velocity.score_use`). Components of which no means and standard
      deviations are known make one group.
    - ``"pathwise"``: by the transport alone. Its variance grows like exp(d^2 / 8) with the
      distance d of components in standard deviations, for the field carries mass through the gap.
    - ``"hybrid"``: by the score function alone, where it is used (the paper's hybrid estimator).

    One thing the backward pass cannot see: a loss that adds to an objective with the score term a
    term of your own of the same sample. The score function then lacks the cost of that term.

    A subclass has ``component_logits (*B, K)`` and supplies ``log_prob`` and
    ``responsibilities``, the two together in ``_log_prob_and_responsibilities``, and
    ``_component_distances()``, ``(*B, K, K)``, for the grouping.
    """

    has_rsample = True
    component_logits: Tensor
    weight_gradient: str
    _blending: Blending | None = None
    _kept_groups: KeptGroups | None = None

    def _log_prob_and_responsibilities(self, value: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _component_distances(self) -> Tensor:
        raise NotImplementedError

    @property
    def _marginals(self) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of each component's coordinates, ``(*B, K, D)``."""
        raise NotImplementedError

    @property
    def _core(self) -> MixtureDistribution:
        """This mixture before ``expand`` added dimensions on the left."""
        return self

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return self.component_logits.device

    @property
    def num_components(self) -> int:
        """K."""
        return self.component_logits.shape[-1]

    @property
    def log_weights(self) -> Tensor:
        """Normalized logarithms of the weights, ``(*B, K)``."""
        return self.component_logits.log_softmax(-1)

    def responsibilities(self, value: Tensor) -> Tensor:
        r"""Posterior probabilities :math:`\pi_j q_j(z) / q(z)` of the components, ``(*X, K)``."""
        return self._log_prob_and_responsibilities(value)[1]

    def score_parts(self, x, *args, **kwargs):
        r"""Pyro's terms of a surrogate objective.

        At a sample of this mixture whose ``weight_gradient`` is not ``"pathwise"`` the score
        function's product with the cost completes the gradient of the logits. It has the gradient
        of :math:`\sum_C r_C \log \pi_C` with :math:`r_C = \sum_{j \in C} r_j` held fixed. Any
        other value has no gradient to complete, and no score term.
        """
        if not self.has_rsample:  # set so by has_rsample_(False)
            return parts_without_gradient(self.log_prob(x), x)
        return self.score_term(x).parts(x)

    def score_term(self, value: Tensor) -> ScoreTerm:
        """The density, and the score term if the value is a sample of this mixture."""
        receipt = self._receipt(value)
        if receipt is None:
            return ScoreTerm(self.log_prob(value))
        density, responsibilities = self._log_prob_and_responsibilities(value)
        score = self._group_score(responsibilities.detach(), self._draws_of(value))
        return ScoreTerm(density, score, receipt)

    def _receipt(self, value: Tensor) -> Tensor | None:
        """That of a sample, if it was drawn to go with a score term."""
        raise NotImplementedError

    def _draws_of(self, value: Tensor) -> Draws | None:
        """What is to be told of the score function's gradient at a sample that is blended."""
        return None

    def to_event(self, reinterpreted_batch_ndims=None):
        event = super().to_event(reinterpreted_batch_ndims)
        if event is self or (self.weight_gradient == "pathwise" and self.has_rsample):
            return event
        return IndependentParts(self, event.reinterpreted_batch_ndims)

    def mask(self, mask):
        if self.weight_gradient != "pathwise":
            mask = mask_tensor(mask, self.batch_shape, self.device)
        return super().mask(mask)

    def _group_score(self, responsibilities: Tensor, draws: Draws | None = None) -> Tensor:
        r"""The score function, ``(*X, K) -> (*X,)``.

        It is :math:`\sum_j c_j \log \pi_j` with constants :math:`c_j = r_C \pi_j / \pi_C`, which
        stays finite for zero weights; blended with a transport of share a,
        :math:`c_j = a r_C \pi_j / \pi_C + (1 - a) r_j`.
        """
        core = self._core
        log_weights = core.log_weights
        responsibilities = responsibilities.to(log_weights)
        if self.weight_gradient == "hybrid":
            return _weighted_sum(responsibilities, log_weights)
        weights, groups = log_weights.detach().exp(), core._groups  # (*B, K)
        group_weight = group_sums(weights, groups).clamp_min(torch.finfo(weights.dtype).tiny)
        share = group_sums(responsibilities, groups) * (weights / group_weight)  # (*X, K)
        if core._blending is None:
            return _weighted_sum(share, log_weights)
        own = responsibilities - share
        transported = core._blending.shares(groups).to(weights)
        score = _weighted_sum(share + (1 - transported) * own, log_weights)
        if draws is not None and score.requires_grad:
            score.register_hook(lambda cost: draws.tell_score(cost.unsqueeze(-1) * own))
        return score

    @property
    def _has_score(self) -> bool:
        """Whether samples go with a score term: not for one group of components without blending.

        Not either where no weight is to be learned.
        """
        if self.num_components == 1 or not needs_gradient(self.component_logits):
            return False
        if self.weight_gradient == "clustered":
            return self._core._blending is not None or not surely_one_group(self._core._groups)
        return self.weight_gradient == "hybrid"

    @property
    def _groups(self) -> Tensor:
        """Labels of the groups of overlapping components, ``(*B, K)``.

        Any grouping is unbiased that does not depend on the sample, so one that was kept while the
        parameters moved on is, too.
        """
        if "_labels" not in self.__dict__:
            if torch.compiler.is_compiling():  # which knows no inference mode to leave
                self._labels = self._find_groups()
            else:
                with torch.inference_mode(False):
                    self._labels = self._find_groups()
        return self._labels

    def _find_groups(self) -> Tensor:
        linkage = complete_linkage if self._blending is None else single_linkage

        def find() -> Tensor:
            return linkage(self._component_distances(), linkage_cut(self.event_shape.numel()))

        with torch.no_grad():
            if self._kept_groups is None or self.num_components < MANY:
                return find()
            return self._kept_groups.labels(linkage.__name__, *self._marginals, find)


def _weighted_sum(shares: Tensor, log_weights: Tensor) -> Tensor:
    """``sum_j c_j log(pi_j)`` where zero times minus infinity is zero, ``(*X, K) -> (*X,)``."""
    return (shares * log_weights.masked_fill(shares == 0, 0)).sum(-1)
