"""Guides that are run with a draw of each component of their mixture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution

from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.estimators import EstimatedMixture
from pyro_mixtures.estimators.strata import weighty_samples
from pyro_mixtures.infer.free_bits import COMPONENT_LOG_WEIGHTS
from pyro_mixtures.infer.objectives.component_terms import ComponentTerms, MixtureSite
from pyro_mixtures.infer.objectives.importance_traces import importance_traces
from pyro_mixtures.infer.objectives.objective import Objective
from pyro_mixtures.infer.objectives.sticking_the_landing import detached
from pyro_mixtures.infer.objectives.terms import PARTICLES_PLATE


class ComponentDraws(Objective):
    """Runs the guide with a draw of each component of its mixture in place of one of its own.

    The components stand in a dimension of their own, to the left of all plates. A site has it if
    it depends on the mixture's sample; all others are evaluated once.

    Args:
        num_particles: draws of each component.
        sticking_the_landing: evaluate the guide's densities with their parameters detached.
        kwargs: as for the other base.
    """

    def __init__(
        self, num_particles: int = 1, *, sticking_the_landing: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(num_particles, **kwargs)
        self.sticking_the_landing = sticking_the_landing
        self._checked: tuple[int, int] | None = None

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> ComponentTerms:
        messenger = _ComponentsMessenger(-1 - self.max_plate_nesting, self.sticking_the_landing)
        traces = importance_traces(self, model, messenger(guide), args, kwargs, self._structures)
        if messenger.site is None:
            raise ValueError(
                f"Expected a guide with a site that is a mixture of this package, but got one with"
                f" the sites {sorted(traces[1].stochastic_nodes)}; use Trace_ELBO for it"
            )
        terms = ComponentTerms(
            *traces, self._particles_dim, self.sticking_the_landing, site=messenger.site
        )
        terms.check_plates()
        return terms

    def _get_traces(
        self, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> Iterator[ComponentTerms]:
        if self.max_plate_nesting == float("inf"):
            self._guess_max_plate_nesting(model, guide, args, kwargs)
        traces = super()._get_traces(model, guide, args, kwargs)
        if is_validation_enabled() and self._checked != (id(model), id(guide)):
            with torch.enable_grad():  # an evaluation has no gradients to tell by
                first = next(traces)
                first.check_dependence()
            if first.site.value.requires_grad:
                first.check_data()
                self._checked = id(model), id(guide)
            yield first
        yield from traces


class _ComponentsMessenger(Messenger):
    """Puts a draw of each component in place of the mixture's sample in a guide.

    It is to be entered outside of all plates, so that distributions arrive expanded.
    """

    def __init__(self, dim: int, sticking_the_landing: bool) -> None:
        super().__init__()
        self.dim, self.sticking_the_landing = dim, sticking_the_landing
        self.site: MixtureSite | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        mixture = _mixture(msg["fn"])
        if mixture is None:
            return
        if self.site is not None:
            raise NotImplementedError(
                f"Expected one mixture in the guide, but got {self.site.name!r} and"
                f" {msg['name']!r}: to sum over the components of both would take the product of"
                " their numbers of evaluations; use BaselinedTrace_ELBO"
            )
        self.site = self._draw(msg, mixture)
        msg["value"], msg["done"] = self.site.value, True
        msg["infer"] = {**msg["infer"], COMPONENT_LOG_WEIGHTS: self.site.log_weights.detach()}
        if self.sticking_the_landing:  # here, so that the density is evaluated once
            msg["fn"] = detached(msg["fn"])

    def _draw(self, msg: Any, mixture: MixtureDistribution) -> MixtureSite:
        fn, name = msg["fn"], msg["name"]
        if msg["value"] is not None:
            raise ValueError(f"Expected to draw the mixture at site {name!r}, but it has a value")
        if mixture.batch_shape.numel() != fn.batch_shape.numel():
            raise NotImplementedError(
                f"Expected one mixture in each event at site {name!r}, but got mixtures of batch"
                f" shape {tuple(mixture.batch_shape)} for {tuple(fn.batch_shape)}: jointly, those"
                " in one event have K to the power of their number of components. Use pyro.plate"
                " instead of to_event, or BaselinedTrace_ELBO"
            )
        padding = (1,) * (-1 - self.dim - len(fn.batch_shape))
        if len(padding) + len(fn.batch_shape) != -1 - self.dim:
            raise ValueError(
                f"Expected max_plate_nesting >= {len(fn.batch_shape)}, the number of batch"
                f" dimensions at site {name!r}, but got {-1 - self.dim}"
            )
        plates = {frame.dim for frame in msg["cond_indep_stack"]}
        dims = range(-len(fn.batch_shape), 0)
        if any(fn.batch_shape[dim] > 1 and dim not in plates for dim in dims):
            raise ValueError(
                f"Expected mixtures in a pyro.plate for each of their batch dimensions, but got"
                f" the batch shape {tuple(fn.batch_shape)} at site {name!r} with plates in the"
                f" dimensions {sorted(dim for dim in plates if dim is not None)}"
            )
        count = mixture.num_components
        value = _draws(fn).reshape(count, *padding, *fn.shape())
        log_weights = mixture.log_weights.movedim(-1, 0).reshape(count, *padding, *fn.batch_shape)
        frames = [each for each in msg["cond_indep_stack"] if each.name != PARTICLES_PLATE]
        return MixtureSite(
            name=name,
            fn=fn,
            value=value.contiguous(),
            log_weights=log_weights,
            plates={frame.name: frame.dim for frame in frames},
            dim=self.dim,
        )


def _mixture(fn: Any) -> MixtureDistribution | None:
    """The mixture in a distribution, however wrapped."""
    while isinstance(fn, (Independent, MaskedDistribution, TransformedDistribution)):
        fn = fn.base_dist
    if isinstance(fn, EstimatedMixture):
        fn = fn.mixture
    return fn if isinstance(fn, MixtureDistribution) else None


def _draws(fn: Any) -> Tensor:
    """A draw of each component, ``(K, *batch_shape, *event_shape)``."""
    if isinstance(fn, EstimatedMixture):
        fn = fn.mixture
    if isinstance(fn, MixtureDistribution):
        return weighty_samples(fn)
    z = _draws(fn.base_dist)
    if isinstance(fn, TransformedDistribution):
        for transform in fn.transforms:
            z = transform(z)
    return z
