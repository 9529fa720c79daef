"""``Trace_ELBO`` with a baseline for the score function terms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer import Trace_ELBO
from pyro.infer.trace_elbo import _compute_log_r
from pyro.infer.util import torch_item
from pyro.poutine import Trace
from pyro.util import warn_if_nan
from torch import Tensor


class BaselinedTrace_ELBO(Trace_ELBO):
    r"""``Trace_ELBO`` that subtracts a baseline b from the cost of each score function term.

    The score term of a site is :math:`(f - b) \nabla S`, :math:`f = \log p - \log q`. With several
    particles b is the mean of the *other* particles' f (leave-one-out); with one particle it is a
    decaying average of f over earlier steps, which starts from an independent evaluation. Neither
    depends on the particle it is applied to, so the gradient stays unbiased. A drop-in for
    ``Trace_ELBO``; sites without a score term are untouched.

    Args:
        num_particles: particles a step.
        baseline_decay: weight of the past in the decaying average, in [0, 1).
        kwargs: as for ``Trace_ELBO``.

    Raises:
        ValueError: for a ``baseline_decay`` outside [0, 1).

    Reference:
        Mnih and Rezende, *Variational Inference for Monte Carlo Objectives* (2016), section 2.5,
        for the leave-one-out baseline.

    Example:
        >>> elbo = BaselinedTrace_ELBO(num_particles=8, vectorize_particles=True)
    """

    def __init__(self, num_particles: int = 1, *, baseline_decay: float = 0.9, **kwargs) -> None:
        if not 0 <= baseline_decay < 1:
            raise ValueError(f"Expected 0 <= baseline_decay < 1, but got {baseline_decay}")
        super().__init__(num_particles=num_particles, **kwargs)
        self.baseline_decay = baseline_decay
        self._averages: dict[str, Tensor] = {}

    def _particle_losses(self, model, guide, args, kwargs) -> Iterator[tuple[float, Tensor]]:
        """The loss of each particle and the surrogate whose gradient is the estimate."""
        traces = list(self._get_traces(model, guide, args, kwargs))
        costs = [_costs(*pair) for pair in traces]
        if self.num_particles == 1 and not costs[0].keys() <= self._averages.keys():
            with torch.no_grad():
                self._averages = _costs(*next(iter(self._get_traces(model, guide, args, kwargs))))
        for index, (model_trace, guide_trace) in enumerate(traces):
            elbo = model_trace.log_prob_sum() - guide_trace.log_prob_sum()
            surrogate = sum(site["log_prob_sum"] for site in _sample_sites(model_trace).values())
            for name, site in _sample_sites(guide_trace).items():
                _, score, entropy_term = site["score_parts"]
                if not is_identically_zero(entropy_term):
                    surrogate = surrogate - entropy_term.sum()
                if name in costs[index]:
                    advantage = costs[index][name] - self._baseline(name, index, costs)
                    surrogate = surrogate + (advantage * score).sum()
            yield -torch_item(elbo) / self.num_particles, -surrogate / self.num_particles
        if self.num_particles == 1:
            self._update_averages(costs[0])

    def _baseline(self, name: str, index: int, costs: list[dict[str, Tensor]]) -> Tensor | float:
        cost = costs[index][name]
        if self.num_particles == 1:
            return _like(self._averages.get(name, cost.new_zeros(())), cost)
        if self.vectorize_particles:
            dim = -self.max_plate_nesting  # of the particles' plate
            return (cost.sum(dim, keepdim=True) - cost) / (self.num_particles - 1)
        others = [other[name] for i, other in enumerate(costs) if i != index and name in other]
        return sum(_like(other, cost) for other in others) / max(1, len(others))

    def _update_averages(self, costs: dict[str, Tensor]) -> None:
        for name, cost in costs.items():
            past = _like(self._averages.get(name, cost), cost)
            self._averages[name] = self.baseline_decay * past + (1 - self.baseline_decay) * cost

    def differentiable_loss(self, model, guide, *args, **kwargs):
        losses, surrogates = zip(*self._particle_losses(model, guide, args, kwargs), strict=True)
        surrogate = sum(surrogates)
        warn_if_nan(surrogate, "loss")
        return sum(losses) + (surrogate - torch_item(surrogate))

    def loss_and_grads(self, model, guide, *args, **kwargs):
        losses, surrogates = zip(*self._particle_losses(model, guide, args, kwargs), strict=True)
        surrogate = sum(surrogates)
        if getattr(surrogate, "requires_grad", False):
            surrogate.backward(retain_graph=self.retain_graph)
        loss = sum(losses)
        warn_if_nan(loss, "loss")
        return loss


def _costs(model_trace: Trace, guide_trace: Trace) -> dict[str, Tensor]:
    """The cost f of each site of the guide that has a score function, as ``Trace_ELBO`` has it."""
    names = [
        name
        for name, site in _sample_sites(guide_trace).items()
        if not is_identically_zero(site["score_parts"].score_function)
    ]
    if not names:
        return {}
    log_r = _compute_log_r(model_trace, guide_trace)
    return {name: log_r.sum_to(guide_trace.nodes[name]["cond_indep_stack"]) for name in names}


def _like(value: Tensor, cost: Tensor) -> Tensor:
    """A baseline for each element of a cost; its mean where a plate changed its size."""
    return value if value.shape == cost.shape else value.mean()


def _sample_sites(trace: Trace) -> dict[str, Any]:
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
