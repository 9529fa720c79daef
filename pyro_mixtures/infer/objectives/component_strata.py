"""A guide run with a draw of each component of its mixture, in place of one of the mixture."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import MaskedDistribution, Unit
from pyro.infer.elbo import ELBO
from pyro.infer.util import is_validation_enabled, torch_item
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.util import warn_if_nan
from torch import Tensor
from torch.distributions import Distribution, Independent, TransformedDistribution

from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.estimators import EstimatedMixture
from pyro_mixtures.estimators.strata import weighty_samples
from pyro_mixtures.infer.objectives.baselined_trace_elbo import sample_sites
from pyro_mixtures.infer.objectives.common_scale import common_scale
from pyro_mixtures.infer.objectives.importance_traces import importance_traces
from pyro_mixtures.infer.objectives.sticking_the_landing import detached
from pyro_mixtures.samples.pyro_context import is_masked


class StrataELBO(ELBO):
    """Base of the objectives that evaluate the model at a draw of each component.

    The components stand in a dimension of their own, to the left of all plates. A site has it if
    it depends on the mixture's sample; all others are evaluated once. A subclass supplies
    ``_losses``, which yields tensors whose sum is the loss and whose gradients are the estimate.
    """

    def __init__(
        self, num_particles: int = 1, *, sticking_the_landing: bool = False, **kwargs
    ) -> None:
        super().__init__(num_particles=num_particles, **kwargs)
        self.sticking_the_landing = sticking_the_landing
        self._checked: tuple[int, int] | None = None

    def _losses(self, strata: Iterator[Strata]) -> Iterator[Tensor]:
        raise NotImplementedError

    def _get_trace(self, model, guide, args, kwargs) -> Strata:
        """The traces of the guide and of the model, run with all components."""
        messenger = _ComponentsMessenger(-1 - self.max_plate_nesting, self.sticking_the_landing)
        model_trace, guide_trace = importance_traces(
            self.max_plate_nesting, model, messenger(guide), args, kwargs
        )
        if messenger.site is None:
            raise ValueError(
                f"Expected a guide with a site that is a mixture of this package, but got one with"
                f" the sites {sorted(guide_trace.stochastic_nodes)}; use Trace_ELBO for it"
            )
        particles = -self.max_plate_nesting if self._has_particles_plate else None
        strata = Strata(model_trace, guide_trace, messenger.site, particles)
        strata.check_plates()
        return strata

    @property
    def _has_particles_plate(self) -> bool:
        return self.vectorize_particles and self.num_particles > 1

    def _get_traces(self, model, guide, args, kwargs):
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

    def loss(self, model, guide, *args, **kwargs) -> float:
        """An estimate of the loss, without gradients."""
        losses = self._losses(self._get_traces(model, guide, args, kwargs))
        loss: Any = sum(torch_item(each) for each in losses)
        warn_if_nan(loss, "loss")
        return loss

    def differentiable_loss(self, model, guide, *args, **kwargs) -> Tensor:
        """An estimate of the loss whose gradient is an estimate of the loss's gradient."""
        losses = self._losses(self._get_traces(model, guide, args, kwargs))
        loss = torch.stack(list(losses)).sum()
        warn_if_nan(loss, "loss")
        return loss

    def loss_and_grads(self, model, guide, *args, **kwargs) -> float:
        """An estimate of the loss; the gradients are added to those of the parameters."""
        loss: Any = 0.0
        for each in self._losses(self._get_traces(model, guide, args, kwargs)):
            loss += torch_item(each)
            if each.requires_grad:
                each.backward(retain_graph=self.retain_graph)
        warn_if_nan(loss, "loss")
        return loss


@dataclass(frozen=True)
class MixtureSite:
    """The mixture's site in a guide.

    Args:
        name: of the site.
        fn: what is sampled there, before it was detached.
        value: draws of the components, ``(K, *batch, *event)``, K at ``dim`` of the batch.
        log_weights: of the components, ``(K, *batch)`` or broadcastable with that.
        plates: the names of the plates that hold mixtures, with their dimensions.
        dim: of the components, negative.
    """

    name: str
    fn: Distribution
    value: Tensor
    log_weights: Tensor
    plates: dict[str, int | None]
    dim: int

    def has_components(self, log_prob: Tensor) -> bool:
        """Whether a site's log density differs between the components."""
        return log_prob.dim() >= -self.dim and log_prob.shape[self.dim] > 1


@dataclass(frozen=True)
class Term:
    """A site's part of the log density ratio: ``log_prob`` counts with its ``sign``."""

    name: str
    sign: int
    log_prob: Tensor
    plates: frozenset[str]


@dataclass(frozen=True)
class Strata:
    """Traces of a model and its guide in which the mixture's site has a draw of each component.

    ``particles_dim`` is the dimension of the particles' plate, if there is one.
    """

    model_trace: Trace
    guide_trace: Trace
    site: MixtureSite
    particles_dim: int | None

    @functools.cached_property
    def terms(self) -> tuple[Term, ...]:
        """All that adds up to log p - log q."""
        return tuple(
            Term(name, sign, site["log_prob"], _plates(site))
            for sign, trace in ((1, self.model_trace), (-1, self.guide_trace))
            for name, site in sample_sites(trace).items()
        )

    def common_scale(self, terms: Iterable[Term]) -> float | Tensor:
        """The scale of terms that share a logarithm, a number or one for each of the mixtures."""
        sides = {1: "the model", -1: "the guide"}
        nodes = {f"{term.name!r} of {sides[term.sign]}": self._node(term) for term in terms}
        own = self.guide_trace.nodes[self.site.name]["scale"]
        return common_scale(own, self.site.plates.values(), nodes)

    def _node(self, term: Term) -> Any:
        of_model = term.sign > 0 and term.name in self.model_trace
        return (self.model_trace if of_model else self.guide_trace).nodes[term.name]

    def check_plates(self) -> None:
        """Raise an error if components and plates' elements cannot be summed over one by one."""
        count = self.site.value.shape[0]
        for term in self.terms:
            shape = term.log_prob.shape
            here = shape[self.site.dim] if len(shape) >= -self.site.dim else 1
            if here not in (1, count) or shape[: self.site.dim].numel() > 1:
                raise ValueError(
                    f"Expected a log density at site {term.name!r} that has the {count} components"
                    f" at {self.site.name!r} in the dimension {self.site.dim} and nothing to the"
                    f" left of it, but got the shape {tuple(shape)}: batch dimensions lie in"
                    " plates, as for vectorize_particles=True"
                )
            missing = self.site.plates.keys() - term.plates
            if missing and self.site.has_components(term.log_prob):
                raise NotImplementedError(
                    f"Expected site {term.name!r} to lie in the plate(s) {sorted(missing)} of the"
                    f" mixtures at site {self.site.name!r}, since it depends on their samples:"
                    " to sum over the components of all mixtures jointly would take K to the power"
                    " of their number; use BaselinedTrace_ELBO"
                )

    def check_particles(self) -> None:
        """Raise an error if particles differ outside of the mixtures' plates."""
        advice = (
            f" the plate(s) {sorted(self.site.plates)} of the mixtures at site {self.site.name!r}:"
            " with several particles its values would mix within the logarithms; use"
            " num_particles=1 or MarginalizedMixture_ELBO"
        )
        for name, site in sample_sites(self.guide_trace).items():
            if not (site["is_observed"] or self.site.plates.keys() <= _plates(site)):
                raise NotImplementedError(
                    f"Expected no latent site like {name!r} outside of" + advice
                )
        for term in self.terms:
            if not self.site.plates.keys() <= term.plates and self.particles_dim is not None:
                low, high = term.log_prob.aminmax(dim=self.particles_dim)
                if bool((low != high).any()):
                    raise NotImplementedError(
                        f"Expected site {term.name!r} to depend on no sample, outside of" + advice
                    )

    def check_data(self) -> None:
        """Raise an error if data, that depend on no component, have the components' dimension."""
        for name, node in sample_sites(self.model_trace).items():
            data = node["value"]
            if not node["is_observed"] or data.requires_grad or is_masked(node):
                continue
            shape = data.shape[: data.dim() - node["fn"].event_dim]
            if data.numel() and len(shape) >= -self.site.dim and shape[self.site.dim] > 1:
                raise ValueError(
                    f"Expected data in at most {-1 - self.site.dim} batch dimensions (particles"
                    f" included) at site {name!r}, but got the batch shape {tuple(shape)}: batch"
                    " dimensions lie in a pyro.plate each, counted by max_plate_nesting"
                )

    def check_dependence(self) -> None:
        """Raise an error if a site depends on the components without having their dimension."""
        value = self.site.value
        for term in self.terms:
            if self.site.has_components(term.log_prob) or value.shape[0] == 1:
                continue
            if not (value.requires_grad and term.log_prob.requires_grad):
                continue
            total = term.log_prob.sum()
            (grad,) = torch.autograd.grad(total, value, retain_graph=True, allow_unused=True)
            if grad is not None:
                raise ValueError(
                    f"Expected site {term.name!r}, which depends on the sample at"
                    f" {self.site.name!r}, to keep the dimension of its components on the left,"
                    f" but got a log density of shape {tuple(term.log_prob.shape)}: the model and"
                    " guide must be written as for vectorize_particles=True, with sums over named"
                    " dimensions (sum(-1), not sum())"
                )


class _ComponentsMessenger(Messenger):
    """Puts a draw of each component in place of the mixture's sample in a guide.

    It is to be entered outside of all plates, so that distributions arrive expanded.
    """

    particles_plate = "num_particles_vectorized"  # as ELBO names it

    def __init__(self, dim: int, sticking_the_landing: bool) -> None:
        super().__init__()
        self.dim = dim
        self.sticking_the_landing = sticking_the_landing
        self.site: MixtureSite | None = None

    def _pyro_sample(self, msg: Any) -> None:
        fn, name = msg["fn"], msg["name"]
        if isinstance(fn, Unit) and not vars(fn).get("has_rsample", True):
            raise NotImplementedError(
                f"Expected factors with has_rsample=True in the guide, but got {name!r}, which"
                " needs a score function: use BaselinedTrace_ELBO"
            )
        if msg["is_observed"] or type(fn).__name__ == "_Subsample":
            return
        mixture = _mixture(fn)
        if mixture is not None:
            if self.site is not None:
                raise NotImplementedError(
                    f"Expected one mixture in the guide, but got {self.site.name!r} and {name!r}:"
                    " to sum over the components of both would take the product of their numbers"
                    " of evaluations; use BaselinedTrace_ELBO"
                )
            self.site = self._draw(msg, mixture)
            msg["value"], msg["done"] = self.site.value, True
        elif not fn.has_rsample:
            raise NotImplementedError(
                f"Expected reparameterized sites in the guide, but got {type(fn).__name__} at"
                f" {name!r}, which needs a score function: use BaselinedTrace_ELBO"
            )
        if self.sticking_the_landing:
            if msg["value"] is None:
                msg["value"], msg["done"] = fn(*msg["args"], **msg["kwargs"]), True
            msg["fn"] = detached(fn)

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
        frames = [each for each in msg["cond_indep_stack"] if each.name != self.particles_plate]
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


def _plates(site: Any) -> frozenset[str]:
    return frozenset(frame.name for frame in site["cond_indep_stack"])
