"""What a run of guide and model adds up to: log densities with their signs, and score terms."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta, MaskedDistribution, Unit
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Independent

from pyro_mixtures.infer.objectives.common_scale import common_scale
from pyro_mixtures.infer.objectives.sticking_the_landing import detached
from pyro_mixtures.samples.pyro_context import is_masked

PARTICLES_PLATE = "num_particles_vectorized"
"""The name that Pyro's ``ELBO`` gives it."""


class Term(NamedTuple):
    """A site's part of log p - log q: ``log_prob`` counts with its ``sign``.

    Args:
        name: of the site.
        sign: 1 in the model, -1 in the guide.
        log_prob: scaled and masked.
        plates: that the site is in, by name, with their dimensions (negative, None for a loop).
    """

    name: str
    sign: int
    log_prob: Tensor
    plates: dict[str, int | None]


class Leaf(NamedTuple):
    """A sample of a guide, and the leaf of autograd's graph that stands for it.

    Args:
        name: of the site.
        sample: with its gradient.
        leaf: of the same values.
        masks: broadcastable with these.
    """

    name: str
    sample: Tensor
    leaf: Tensor
    masks: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Terms:
    """The terms of a run of guide and model.

    Args:
        model_trace: run against the guide.
        guide_trace: with score parts.
        particles_dim: the dimension of the particles' plate, or None.
        sticking_the_landing: whether the guide's parameters are held fixed in its densities.
        leaves: that stand for the guide's samples, in order.
    """

    model_trace: Trace
    guide_trace: Trace
    particles_dim: int | None
    sticking_the_landing: bool = False
    leaves: tuple[Leaf, ...] = ()

    @functools.cached_property
    def model_sites(self) -> dict[str, Any]:
        """Those where the model samples, by name."""
        return sample_sites(self.model_trace)

    @functools.cached_property
    def guide_sites(self) -> dict[str, Any]:
        """Those where the guide samples, by name."""
        return sample_sites(self.guide_trace)

    @functools.cached_property
    def all(self) -> tuple[Term, ...]:
        """All that adds up to log p - log q."""
        return (*self.of_model, *self.of_guide.values())

    def detached(self) -> tuple[Term, ...]:
        """The terms, without the graph that they come from."""
        return tuple(term._replace(log_prob=term.log_prob.detach()) for term in self.all)

    @functools.cached_property
    def of_model(self) -> tuple[Term, ...]:
        """Those of log p."""
        sites = self.model_sites.items()
        return tuple(Term(name, 1, site["log_prob"], plates(site)) for name, site in sites)

    @functools.cached_property
    def of_guide(self) -> dict[str, Term]:
        """Those of log q, by site."""
        return {
            name: Term(name, -1, self._density(site), plates(site))
            for name, site in self.guide_sites.items()
        }

    @functools.cached_property
    def scores(self) -> dict[str, Tensor]:
        """The score functions of the guide's sites that have one."""
        return {
            name: site["score_parts"].score_function
            for name, site in self.guide_sites.items()
            if not (_is_data(site) or is_identically_zero(site["score_parts"].score_function))
        }

    def weighted(self, log_prob: Tensor) -> Tensor:
        """A log density, as it counts in a sum over all draws."""
        return log_prob

    @functools.cached_property
    def value(self) -> Tensor:
        """An estimate of the ELBO, times the number of particles, without gradient."""
        with torch.no_grad():
            of_model, of_guide = (
                sum(map(self._sum, sites.values()))
                for sites in (self.model_sites, self.guide_sites)
            )
        total: Any = of_model - of_guide
        return total

    def surrogate(self) -> Tensor:
        """What has the gradient of the ELBO but for score terms.

        Entropies whose gradient has mean zero are left out where Pyro leaves them out, too.
        """
        total: Any = sum(map(self._sum, self.model_sites.values()))
        for site in self.guide_sites.values():
            # what is left out still meets the weights of components
            entropy = self._entropy(site) if self._is_pathwise(site) else site["log_prob"].detach()
            whole = entropy is site["log_prob"]
            total = total - (self._sum(site) if whole else self.weighted(entropy).sum())
        return total

    def _sum(self, site: Any) -> Tensor:
        """Of a site's log density, as it counts."""
        log_prob = site["log_prob"]
        counted = self.weighted(log_prob)
        return site["log_prob_sum"] if counted is log_prob else counted.sum()

    def costs(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The detached log p - log q that score functions are multiplied by, of sites by name.

        Sums over all that is not in the plates of the site, whatever comes before it included.
        """
        return {name: self._cost(name) for name in names}

    def common_scale(self, terms: Iterable[Term], kept: Collection[int | None]) -> float | Tensor:
        """The scale of terms that share a logarithm, a number or one for each plates' element."""
        nodes = {}
        for term in terms:
            trace, side = (
                (self.model_trace, "model") if term.sign > 0 else (self.guide_trace, "guide")
            )
            nodes[f"{term.name!r} of the {side}"] = trace.nodes[term.name]
        live = [site for site in nodes.values() if not is_masked(site)]
        live.sort(key=lambda site: site["is_observed"])  # that of a latent site, if there is one
        own = live[0]["scale"] if live else 1.0
        return common_scale(own, kept, nodes)

    def particles_first(self, x: Tensor) -> Tensor:
        """``(T, *units)``, or ``(1, *units)`` of a single particle; units from the right."""
        if self.particles_dim is None:
            return x.unsqueeze(0)
        return x.reshape(x.shape[x.dim() + self.particles_dim :]) if x.dim() else x.unsqueeze(0)

    def _cost(self, name: str) -> Tensor:
        if self.particles_dim is None and not self.guide_trace.nodes[name]["cond_indep_stack"]:
            return self.value  # all that there is
        return self._cost_of(name, self.all)

    def _cost_of(self, name: str, terms: Iterable[Term], *summed: int) -> Tensor:
        kept, total = plates(self.guide_trace.nodes[name]), torch.zeros(())
        with torch.no_grad():
            for term in terms:
                dims = {dim for plate, dim in term.plates.items() if plate not in kept}
                value = sum_over(self.weighted(term.log_prob), dims.union(summed))
                total = total + value if term.sign > 0 else total - value
        return total

    def _density(self, site: Any) -> Tensor:
        lands = self.sticking_the_landing and self._is_pathwise(site) and not _is_data(site)
        return _landing(site) if lands else site["log_prob"]

    def _entropy(self, site: Any) -> Tensor:
        if self.sticking_the_landing or _is_data(site):
            return self.of_guide[site["name"]].log_prob
        return site["score_parts"].entropy_term

    def _is_pathwise(self, site: Any) -> bool:
        """Whether a site's own density has a part in the gradient."""
        return _is_data(site) or not is_identically_zero(site["score_parts"].entropy_term)


def sample_sites(trace: Trace) -> dict[str, Any]:
    """Of a trace, by name: latent and observed ones."""
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}


def is_drawn(site: Any) -> bool:
    """Whether a site of the guide has a sample that its distribution draws at random.

    What it observes, ``pyro.factor`` and ``Delta`` do not: the gradients of their densities do not
    have mean zero.
    """
    return not (site["is_observed"] or isinstance(_unwrapped(site["fn"]), Delta))


def _is_data(site: Any) -> bool:
    """Observed, and no ``pyro.factor``, which may be the density of a sample drawn elsewhere."""
    return bool(site["is_observed"]) and not isinstance(_unwrapped(site["fn"]), Unit)


def _unwrapped(fn: Any) -> Any:
    while isinstance(fn, (Independent, MaskedDistribution)):
        fn = fn.base_dist
    return fn


def plates(site: Any) -> dict[str, int | None]:
    """Names and dimensions of a site's plates, that of the particles left out."""
    frames = site["cond_indep_stack"]
    return {frame.name: frame.dim for frame in frames if frame.name != PARTICLES_PLATE}


def sum_over(log_prob: Tensor, dims: Iterable[int | None]) -> Tensor:
    """The sum over some dimensions, counted from the right, which stay in place with size one."""
    there = [dim for dim in dims if dim is not None and log_prob.dim() >= -dim]
    return log_prob.sum(there, keepdim=True) if there else log_prob


def sum_but(log_prob: Tensor, kept: Collection[int | None]) -> Tensor:
    """The sum over all but some dimensions, counted from the right, which stay in place."""
    return sum_over(log_prob, set(range(-log_prob.dim(), 0)).difference(kept))


def _landing(site: Any) -> Tensor:
    """The log density of a guide's site with its parameters held fixed."""
    density = detached(site["fn"]).log_prob(site["value"])
    return scale_and_mask(density, site["scale"], site["mask"])
