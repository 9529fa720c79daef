"""Guides that are run as they are, with mixtures that blend transport and score function."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch.distributions import Independent

from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.distributions.transformed_distribution import TransformedDistribution
from pyro_mixtures.infer.objectives.importance_traces import importance_traces
from pyro_mixtures.infer.objectives.objective import Objective, check_decay
from pyro_mixtures.infer.objectives.terms import Terms
from pyro_mixtures.samples.blending import Blending


class SampleDraws(Objective):
    """Runs the guide as it is.

    Mixtures whose weights' gradient is ``"clustered"`` are blended: within a group of components
    the transport and the score function estimate the same gradient, and the share of each is the
    one of least variance by the moments of earlier steps
    (:class:`~pyro_mixtures.samples.blending.Blending`), whatever the current one draws.

    Args:
        num_particles: draws a step.
        blending: blend, or leave the groups to the transport alone.
        blending_decay: weight of the past in the moments, in [0, 1).
        kwargs: as for the other base.
    """

    def __init__(
        self,
        num_particles: int = 1,
        *,
        blending: bool = True,
        blending_decay: float = 0.995,
        **kwargs: Any,
    ) -> None:
        check_decay("blending_decay", blending_decay)
        super().__init__(num_particles, **kwargs)
        self.blending, self.blending_decay = blending, blending_decay
        self._blendings: dict[str, Blending] = {}

    def state_dict(self) -> dict[str, Any]:
        """Baselines and moments of blending by the sites' names, to be saved with a checkpoint."""
        blendings = {name: blending.state_dict() for name, blending in self._blendings.items()}
        return {**super().state_dict(), "blendings": blendings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        super().load_state_dict(state)
        self._blendings = {name: self._new_blending() for name in state["blendings"]}
        for name, blending in state["blendings"].items():
            self._blendings[name].load_state_dict(blending)

    def _new_blending(self) -> Blending:
        return Blending(decay=self.blending_decay)

    def _losses(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        for blending in self._blendings.values():  # by what the steps before have drawn
            blending.learn()
        yield from super()._losses(model, guide, args, kwargs)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Terms:
        if self.blending:
            guide = _Blended(self._blendings, self._new_blending)(guide)
        traces = importance_traces(self, model, guide, args, kwargs, self._structures)
        return Terms(*traces, self._particles_dim, self.sticking_the_landing)


class _Blended(Messenger):
    """Has the mixtures of a guide blend transport and score function as was learned by site."""

    def __init__(self, blendings: dict[str, Blending], new: Callable[[], Blending]) -> None:
        super().__init__()
        self.blendings, self.new = blendings, new

    def _pyro_sample(self, msg: Any) -> None:
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
