"""The ELBO: the mean of log p - log q over all draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.infer.objectives.objective import Loss, Objective, felt, like
from pyro_mixtures.infer.objectives.terms import Terms


class EvidenceBound(Objective):
    r"""The mean of :math:`f = \log p - \log q` over particles.

    Score functions S of sites get :math:`(f - b) \nabla S`. With several particles the baseline b
    is the mean of the *other* particles' f, with one a decaying average over earlier steps.
    """

    def _bound(self, terms: Sequence[Terms]) -> Tensor:
        total: Any = sum(each.value for each in terms)
        return total / self.num_particles

    def _losses(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[Loss]:
        scored = []
        for each in self._get_traces(model, guide, args, kwargs):
            if each.scores:
                scored.append(each)
            else:
                yield self._loss(each, each.surrogate())
        costs = [each.costs(each.scores) for each in scored]
        if self.num_particles == 1 and costs and not costs[0].keys() <= self._averages.keys():
            with torch.no_grad():
                again: Terms = next(iter(self._get_traces(model, guide, args, kwargs)))
                found = costs[0].keys() & again.guide_trace.nodes  # a guide may choose its sites
                self._start_averages(again.costs(found))
        for index, each in enumerate(scored):
            surrogate = each.surrogate()
            for name, score in each.scores.items():
                advantage = costs[index][name] - self._baseline(name, index, costs)
                surrogate = surrogate + (felt(advantage) * score).sum()
            yield self._loss(each, surrogate)
        if self.num_particles == 1 and costs:
            self._update_averages(costs[0])

    def _loss(self, terms: Terms, surrogate: Tensor) -> Loss:
        return Loss(-terms.value / self.num_particles, surrogate / -self.num_particles)

    def _baseline(self, name: str, index: int, costs: list[dict[str, Tensor]]) -> Any:
        cost = costs[index][name]
        if self.num_particles == 1:
            return self._average(name, cost)
        dim = self._particles_dim
        if dim is not None:
            return (cost.sum(dim, keepdim=True) - cost) / (self.num_particles - 1)
        others = [other[name] for i, other in enumerate(costs) if i != index and name in other]
        return sum(like(other, cost) for other in others) / max(1, len(others))
