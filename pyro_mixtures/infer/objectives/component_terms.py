"""Terms in which a guide's mixture has a draw of each component, in place of one of its own."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_mixtures.infer.objectives.terms import Terms, sample_sites
from pyro_mixtures.samples.pyro_context import is_masked


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


@dataclass(frozen=True, kw_only=True)
class ComponentTerms(Terms):
    """The terms of a run in which the mixture's site has a draw of each component.

    Args:
        site: of the mixture.
    """

    site: MixtureSite

    @functools.cached_property
    def scores(self) -> dict[str, Tensor]:
        """Those of the other sites: nothing comes from the choice of a component."""
        return {name: score for name, score in super().scores.items() if name != self.site.name}

    def weighted(self, log_prob: Tensor) -> Tensor:
        """Each component's log density by its weight."""
        if self.site.has_components(log_prob):
            return self.site.log_weights.exp() * log_prob
        return log_prob

    def _cost(self, name: str) -> Tensor:
        """Of each component's draw, if the site has one for each."""
        if not self.site.has_components(self.scores[name]):
            return self._cost_of(name, self.all, self.site.dim)
        return self._cost_of(name, [x for x in self.all if self.site.has_components(x.log_prob)])

    def _density(self, site: Any) -> Tensor:
        if site["name"] == self.site.name:
            return site["log_prob"]  # of the detached mixture, if that is asked for
        return super()._density(site)

    def _entropy(self, site: Any) -> Tensor:
        if site["name"] == self.site.name:
            return self.of_guide[self.site.name].log_prob
        return super()._entropy(site)

    def _is_pathwise(self, site: Any) -> bool:
        return site["name"] == self.site.name or super()._is_pathwise(site)

    def check_plates(self) -> None:
        """Raise an error if components and plates' elements cannot be summed over one by one."""
        count = self.site.value.shape[0]
        for term in self.all:
            shape = term.log_prob.shape
            here = shape[self.site.dim] if len(shape) >= -self.site.dim else 1
            if here not in (1, count) or shape[: self.site.dim].numel() > 1:
                raise ValueError(
                    f"Expected a log density at site {term.name!r} that has the {count} components"
                    f" at {self.site.name!r} in the dimension {self.site.dim} and nothing to the"
                    f" left of it, but got the shape {tuple(shape)}: batch dimensions lie in"
                    " plates, as for vectorize_particles=True"
                )
            missing = self.site.plates.keys() - term.plates.keys()
            if missing and self.site.has_components(term.log_prob):
                raise NotImplementedError(
                    f"Expected site {term.name!r} to lie in the plate(s) {sorted(missing)} of the"
                    f" mixtures at site {self.site.name!r}, since it depends on their samples:"
                    " to sum over the components of all mixtures jointly would take K to the power"
                    " of their number; use BaselinedTrace_ELBO"
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
        for term in self.all:
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
