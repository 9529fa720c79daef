"""``Trace_ELBO`` for score function terms: a baseline, and blending with transport."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.infer.util import MultiFrameTensor, torch_item
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.util import warn_if_nan
from torch import Tensor
from torch.distributions import Independent

from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.distributions.transformed_distribution import TransformedDistribution
from pyro_mixtures.infer.objectives.missing_sites import check_complete
from pyro_mixtures.infer.objectives.sticking_the_landing import detached
from pyro_mixtures.samples.blending import Blending


class BaselinedTrace_ELBO(Trace_ELBO):
    r"""``Trace_ELBO`` that subtracts a baseline b from the cost of each score function term.

    The score term of a site is :math:`(f - b) \nabla S`, :math:`f = \log p - \log q`. With several
    particles b is the mean of the *other* particles' f (leave-one-out); with one particle it is a
    decaying average of f over earlier steps, which starts from an independent evaluation. Neither
    depends on the particle it is applied to, so the gradient stays unbiased. A drop-in for
    ``Trace_ELBO``; sites without a score term are untouched.

    Mixtures whose weights' gradient is ``"clustered"`` are blended: within a group of components
    the transport and the score function estimate the same gradient, and the share of each is the
    one of least variance by the moments of earlier steps
    (:class:`~pyro_mixtures.samples.blending.Blending`), whatever the current one draws. As
    the score function takes over where the transport's variance is large, a group may be a chain
    of components that overlap.

    Args:
        num_particles: particles a step.
        baseline_decay: weight of the past in the decaying average, in [0, 1).
        blending: blend, or leave the groups to the transport alone.
        blending_decay: weight of the past in the moments, in [0, 1).
        sticking_the_landing: evaluate the guide's density with its parameters detached
            (:func:`~pyro_mixtures.infer.detached`): unbiased, and without variance where the guide
            meets the posterior.
        kwargs: as for ``Trace_ELBO``.

    Raises:
        ValueError: for a decay outside [0, 1), and for a guide that lacks a latent site of the
            model.

    Reference:
        Mnih and Rezende, *Variational Inference for Monte Carlo Objectives* (2016), section 2.5,
        for the leave-one-out baseline.

    Example:
        >>> elbo = BaselinedTrace_ELBO(num_particles=8, vectorize_particles=True)
        >>> checkpoint = elbo.state_dict()  # the averages and moments learned so far
        >>> elbo.load_state_dict(checkpoint)
    """

    counts_auxiliary_sites = True
    """In costs, where ``Trace_ELBO`` leaves their densities out."""

    def __init__(
        self,
        num_particles: int = 1,
        *,
        baseline_decay: float = 0.9,
        blending: bool = True,
        blending_decay: float = 0.995,
        sticking_the_landing: bool = False,
        **kwargs,
    ) -> None:
        for name, decay in (("baseline", baseline_decay), ("blending", blending_decay)):
            if not 0 <= decay < 1:
                raise ValueError(f"Expected 0 <= {name}_decay < 1, but got {decay}")
        super().__init__(num_particles=num_particles, **kwargs)
        self.baseline_decay, self.blending_decay = baseline_decay, blending_decay
        self.blending, self.sticking_the_landing = blending, sticking_the_landing
        self._averages: dict[str, Tensor] = {}
        self._blendings: dict[str, Blending] = {}

    def state_dict(self) -> dict[str, Any]:
        """Baselines and moments of blending by the sites' names, to be saved with a checkpoint."""
        blendings = {name: blending.state_dict() for name, blending in self._blendings.items()}
        return {"averages": dict(self._averages), "blendings": blendings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        self._averages = dict(state["averages"])
        self._blendings = {name: self._new_blending() for name in state["blendings"]}
        for name, blending in state["blendings"].items():
            self._blendings[name].load_state_dict(blending)

    def _new_blending(self) -> Blending:
        return Blending(decay=self.blending_decay)

    def _get_trace(self, model, guide, args, kwargs):
        blended = _Blended(self._blendings, self._new_blending)(guide) if self.blending else guide
        model_trace, guide_trace = super()._get_trace(model, blended, args, kwargs)
        check_complete(model_trace, guide_trace)
        return model_trace, guide_trace

    def _particle_losses(self, model, guide, args, kwargs) -> Iterator[tuple[float, Tensor]]:
        """The loss of each particle and the surrogate whose gradient is the estimate."""
        for blending in self._blendings.values():  # by what the steps before have drawn
            blending.learn()
        traces = list(self._get_traces(model, guide, args, kwargs))
        costs = [_costs(*pair) for pair in traces]
        if self.num_particles == 1 and not costs[0].keys() <= self._averages.keys():
            with torch.no_grad():
                model_trace, guide_trace = next(iter(self._get_traces(model, guide, args, kwargs)))
                first = _costs(model_trace, guide_trace, tuple(costs[0]))
            self._averages = {**first, **self._averages}
        for index, (model_trace, guide_trace) in enumerate(traces):
            elbo = model_trace.log_prob_sum() - guide_trace.log_prob_sum()
            surrogate = sum(site["log_prob_sum"] for site in sample_sites(model_trace).values())
            for name, site in sample_sites(guide_trace).items():
                entropy_term = self._entropy_term(site)
                if not is_identically_zero(entropy_term):
                    surrogate = surrogate - entropy_term.sum()
                if name in costs[index]:
                    advantage = costs[index][name] - self._baseline(name, index, costs)
                    surrogate = surrogate + (advantage * site["score_parts"].score_function).sum()
            yield -torch_item(elbo) / self.num_particles, -surrogate / self.num_particles
        if self.num_particles == 1:
            self._update_averages(costs[0])

    def _entropy_term(self, site: Any) -> Any:
        """What the surrogate of a site's entropy is the sum of."""
        fn, entropy_term = site["fn"], site["score_parts"].entropy_term
        if not self.sticking_the_landing or is_identically_zero(entropy_term):
            return entropy_term
        density = detached(fn).log_prob(site["value"])
        return scale_and_mask(density, site["scale"], site["mask"])

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


class _Blended(Messenger):
    """Has the mixtures of a guide blend transport and score function as was learned by site."""

    def __init__(self, blendings: dict[str, Blending], new: Callable[[], Blending]) -> None:
        super().__init__()
        self.blendings, self.new = blendings, new

    def _pyro_sample(self, msg) -> None:
        msg["fn"] = self._blended(msg["name"], msg["fn"])

    def _blended(self, name: str, fn: Any) -> Any:
        """Copies, for other sites may have the same mixture."""
        if isinstance(fn, (Independent, MaskedDistribution, TransformedDistribution)):
            base = self._blended(name, fn.base_dist)
            if base is not fn.base_dist:
                fn = copy.copy(fn)
                fn.base_dist = base
            return fn
        if not isinstance(fn, MixtureDistribution) or fn.weight_gradient != "clustered":
            return fn
        if fn.blending is not None:  # the user's own
            return fn
        if name not in self.blendings:
            self.blendings[name] = self.new()
        return fn.blended(self.blendings[name])


def _costs(
    model_trace: Trace, guide_trace: Trace, names: tuple[str, ...] | None = None
) -> dict[str, Tensor]:
    """The cost f of each site of the guide that has a score function, or of those named.

    As ``Trace_ELBO`` has it, but with the densities of auxiliary sites.
    """
    if names is None:
        names = tuple(
            name
            for name, site in sample_sites(guide_trace).items()
            if not is_identically_zero(site["score_parts"].score_function)
        )
    if not names:
        return {}
    log_ratio = MultiFrameTensor()
    for sign, trace in ((1, model_trace), (-1, guide_trace)):
        for site in sample_sites(trace).values():
            log_ratio.add((site["cond_indep_stack"], sign * site["log_prob"].detach()))
    return {name: log_ratio.sum_to(guide_trace.nodes[name]["cond_indep_stack"]) for name in names}


def _like(value: Tensor, cost: Tensor) -> Tensor:
    """A baseline for each element of a cost; its mean where a plate changed its size."""
    return (value if value.shape == cost.shape else value.mean()).to(cost)


def sample_sites(trace: Trace) -> dict[str, Any]:
    """Of a trace, by name: latent and observed ones."""
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
