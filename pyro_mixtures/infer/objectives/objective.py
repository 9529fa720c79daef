"""The base of the objectives: a bound of terms, and score terms less a baseline."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from pyro.infer.elbo import ELBO
from pyro.infer.util import torch_item
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_mixtures.infer.objectives.importance_traces import Structures
from pyro_mixtures.infer.objectives.terms import Term, Terms

NEXT_TO_NOTHING = 1e-30


class Loss(NamedTuple):
    """A part of a loss, and the surrogate whose gradient is the estimate of its gradient."""

    value: Tensor
    surrogate: Tensor


class Objective(ELBO):
    """A bound of terms, with a baseline for the score functions of the guide's sites.

    An objective is made of two bases. One runs guide and model (``_get_trace``, which returns
    :class:`~pyro_mixtures.infer.objectives.terms.Terms`): with draws of the guide
    (:class:`~pyro_mixtures.infer.objectives.sample_draws.SampleDraws`), or with a draw of each
    component of its mixture
    (:class:`~pyro_mixtures.infer.objectives.component_draws.ComponentDraws`). The other is the
    bound of these terms (``_bound`` and ``_losses``):
    :class:`~pyro_mixtures.infer.objectives.evidence_bound.EvidenceBound` or
    :class:`~pyro_mixtures.infer.objectives.importance_bound.ImportanceBound`.

    Args:
        num_particles: draws a step.
        baseline_decay: weight of the past in the baselines of a single particle, in [0, 1).
        kwargs: as for ``Trace_ELBO``.

    Raises:
        ValueError: for a decay outside [0, 1).
    """

    counts_auxiliary_sites = True
    """In costs, where ``Trace_ELBO`` leaves their densities out."""

    sticking_the_landing = False
    """Whether the guide's parameters are held fixed in its densities."""

    def __init__(
        self, num_particles: int = 1, *, baseline_decay: float = 0.9, **kwargs: Any
    ) -> None:
        check_decay("baseline_decay", baseline_decay)
        super().__init__(num_particles=num_particles, **kwargs)
        self.baseline_decay = baseline_decay
        self._averages: dict[str, Tensor] = {}
        self._runs: list[Terms | tuple[Term, ...]] = []
        self._structures = Structures()

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[Any]:
        self._runs = []  # of this step, for a warning that names a site
        several = self.num_particles > 1 and not self.vectorize_particles
        for terms in super()._get_traces(model, guide, args, kwargs):
            self._runs.append(terms.detached() if several else terms)  # not to keep many graphs
            yield terms

    def _tell(self, loss: Any) -> None:
        """Warn of a loss that is not finite, with the site that it comes from."""
        runs, self._runs = self._runs, []
        warn_if_nan(loss, "loss")
        if not math.isinf(loss):
            return
        terms = [run.all if isinstance(run, Terms) else run for run in runs]
        for name, sign, log_prob, _ in itertools.chain(*terms):
            bad = log_prob[~log_prob.isfinite()]
            if bad.numel():
                side = "model" if sign > 0 else "guide"
                warnings.warn(
                    f"The loss is {loss}, for site {name!r} of the {side} has a log density of"
                    f" {bad[0].item()} in {bad.numel()} of {log_prob.numel()} elements. A step"
                    " from here can make all parameters NaN: start where there is a density"
                    " (init_loc_fn, init_scale), or make the model's finite everywhere",
                    stacklevel=4,
                )
                return

    def _bound(self, terms: Sequence[Terms]) -> Tensor:
        """The estimate of the bound by the terms of a step."""
        raise NotImplementedError

    def _losses(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[Loss]:
        """Parts that add up to the loss of a step."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What was learned from step to step, to be saved with a checkpoint."""
        return {"averages": dict(self._averages)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        self._averages = dict(state["averages"])

    @torch.no_grad()
    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss, from which nothing is learned."""
        loss: Any = -torch_item(self._bound(list(self._get_traces(model, guide, args, kwargs))))
        self._tell(loss)
        return loss

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """An estimate of the loss whose gradient is an estimate of the loss's gradient.

        Without gradients (``torch.no_grad``) it is that of :meth:`loss`, which learns nothing.
        """
        if not torch.is_grad_enabled():
            loss, self._runs = -self._bound(list(self._get_traces(model, guide, args, kwargs))), []
            return loss
        losses = list(self._losses(model, guide, args, kwargs))
        surrogate: Any = sum(each.surrogate for each in losses)
        warn_if_nan(surrogate, "loss")
        value: Any = sum(each.value.detach() for each in losses)
        self._tell(torch_item(value))
        return value + (surrogate - surrogate.detach())

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss; the gradients are added to those of the parameters."""
        loss: Any = 0.0
        for each in self._losses(model, guide, args, kwargs):
            loss += torch_item(each.value)
            if getattr(each.surrogate, "requires_grad", False):
                each.surrogate.backward(retain_graph=self.retain_graph)
        self._tell(loss)
        return loss

    @property
    def _particles_dim(self) -> int | None:
        """Of the particles' plate, if there is one."""
        there = self.vectorize_particles and self.num_particles > 1
        return -self.max_plate_nesting if there else None

    def _average(self, name: str, cost: Tensor) -> Tensor:
        """The decaying average of a cost, as the steps before have left it."""
        known = self._averages.get(name)
        return torch.zeros_like(cost) if known is None else like(known, cost)

    def _start_averages(self, first: dict[str, Tensor]) -> None:
        """Begin with an independent evaluation of the costs that have no average yet."""
        self._averages = {**{name: finite(cost) for name, cost in first.items()}, **self._averages}

    def _update_averages(self, costs: dict[str, Tensor]) -> None:
        for name, cost in costs.items():
            known = self._averages.get(name)
            past = finite(cost) if known is None else like(known, cost)
            new = self.baseline_decay * past + (1 - self.baseline_decay) * cost
            # an infinite cost would stay for all steps to come
            self._averages[name] = torch.where(cost.isfinite(), new, past)


def check_decay(name: str, decay: float) -> None:
    """Raise a ``ValueError`` for a decay outside [0, 1)."""
    if not 0 <= decay < 1:
        raise ValueError(f"Expected 0 <= {name} < 1, but got {decay}")


def felt(credit: Tensor) -> Tensor:
    """What a score function is multiplied by, with next to nothing in place of zero.

    The backward pass takes a score term that meets nothing but zeros for one that is left out
    (:mod:`~pyro_mixtures.numerics.score_use`). Particles on the same atom have such credits.
    """
    return credit.masked_fill(credit == 0, NEXT_TO_NOTHING)


def finite(cost: Tensor) -> Tensor:
    """With zeros in place of what is infinite or NaN."""
    return cost.masked_fill(~cost.isfinite(), 0)


def like(value: Tensor, cost: Tensor) -> Tensor:
    """A baseline for each element of a cost; its mean where a plate changed its size."""
    return (value if value.shape == cost.shape else value.mean()).to(cost)
