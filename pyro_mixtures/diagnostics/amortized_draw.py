"""Draws of an amortized guide, and the terms of their ELBO."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from torch import Tensor
from torch.distributions import Independent

from pyro_mixtures.diagnostics.encodings import Encodings, aggregate
from pyro_mixtures.diagnostics.sites import (
    Site,
    dim_in_plate,
    is_function_of_others,
    latent_sites,
    site_log_prob,
    sites_of,
)
from pyro_mixtures.numerics.chunks import map_chunks
from pyro_mixtures.numerics.precision import double

SAME = 1e-4
"""What single precision may change of a log density, of its size."""


@dataclass(frozen=True)
class AmortizedDraw:
    """A draw of an amortized guide for each datum, and what the model says of it.

    Args:
        encodings: posteriors of each latent site.
        values: of these, ``(N, D)`` each.
        log_likelihood: ``(N,)``.
        log_prior: of all latents, ``(N,)``.
        prior_coordinates: log densities of their marginals, ``(N, D)`` together, or None.
    """

    encodings: list[Encodings]
    values: list[Tensor]
    log_likelihood: Tensor
    log_prior: Tensor
    prior_coordinates: Tensor | None

    @classmethod
    def of(cls, model: Any, guide: Any, args: Any, kwargs: Any, plate: str) -> AmortizedDraw:
        """Run both, and check that all is in the plate and of the plain kind."""
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        names = latent_sites(model_trace, guide_trace)
        in_model, in_guide = (
            {
                name: Site(owner, name, site, dim_in_plate(owner, name, site, plate))
                for name, site in sites_of(trace)
                if not is_function_of_others(site) or name in names
            }
            for owner, trace in (("model", model_trace), ("guide", guide_trace))
        )
        others = [name for name in in_guide if name not in names]
        if others:
            raise ValueError(
                "Expected guide to sample nothing but the latent sites of the model, but got"
                f" {', '.join(others)}"
            )
        log_prob = {name: site_log_prob(site, (1,))[0] for name, site in in_model.items()}
        count = len(log_prob[names[0]])
        for name in names:
            _check_site(in_guide[name], count)
            _check_site(in_model[name], count)
            _check_same_prior(in_model[name], log_prob[name])
        marginals = [_prior_coordinates(in_model[name], count) for name in names]
        known = [each for each in marginals if each is not None]
        likelihoods = [value for name, value in log_prob.items() if name not in names]
        return cls(
            [Encodings.of(in_guide[name].site["fn"], count) for name in names],
            [_vectors(in_guide[name], count) for name in names],
            torch.stack([torch.zeros_like(log_prob[names[0]]), *likelihoods]).sum(0),
            torch.stack([log_prob[name] for name in names]).sum(0),
            torch.cat(known, -1) if len(known) == len(names) else None,
        )

    def check_encodings(self, first: list[Encodings]) -> None:
        """Raise a ``ValueError`` if the posteriors are others than those of another run."""
        if not all(one.equals(two) for one, two in zip(self.encodings, first, strict=True)):
            raise ValueError(
                "Expected posteriors that are functions of the data, but the guide's differ"
                " between runs: they depend on other latents, or modules are not in eval()"
            )

    def terms(self, index: Tensor) -> dict[str, Tensor]:
        """Means over the data by name, with q(z) by the posteriors of these data."""
        found = aggregate(self.encodings, self.values, index)
        means = {
            "elbo": self.log_likelihood + self.log_prior - found.own,
            "distortion": -self.log_likelihood,
            "rate": found.own - self.log_prior,
            "mutual_information": found.own - found.log_prob,
            "marginal_kl": found.log_prob - self.log_prior,
            "total_correlation": found.log_prob - found.coordinates.sum(-1),
            "entropy": -found.own,
            "cross_entropy": -self.log_prior,
            "log_q_bias": found.bias,
        }
        if self.prior_coordinates is not None:
            means["dimension_kl"] = found.coordinates - self.prior_coordinates
        return {name: values.mean(0) for name, values in means.items()}


def _check_site(counted: Site, count: int) -> None:
    """Raise a ``ValueError`` for a latent in other plates, or whose density counts otherwise."""
    owner, name, site, _ = counted
    if site["mask"] is not None or isinstance(site["fn"], MaskedDistribution):
        raise ValueError(f"Expected no mask at the latent site {name!r} of the {owner}")
    scale = torch.as_tensor(site["scale"])
    if not bool((scale == 1).all()):
        raise ValueError(
            f"Expected no scale at the latent site {name!r} of the {owner}, but got {scale}"
        )
    if math.prod(site["fn"].batch_shape) != count:
        raise ValueError(
            f"Expected the latent site {name!r} of the {owner} to be in the plate of the {count}"
            f" data alone, but got batch shape {tuple(site['fn'].batch_shape)}: make the rest of"
            " it an event, by to_event"
        )


def _check_same_prior(counted: Site, log_prob: Tensor) -> None:
    """Raise a ``ValueError`` for a prior of a datum that is another's no more."""
    name, site, value = counted.name, counted.site, counted.site["value"]
    moved = value.reshape(len(log_prob), -1).roll(1, 0).reshape(value.shape)
    (found,) = double(site["fn"].log_prob(moved).reshape(-1))
    expected = log_prob.roll(1)
    if not bool((found - expected).abs().le(SAME * (1 + expected.abs())).all()):
        raise ValueError(
            f"Expected the prior of {name!r} to be the same for all data, for KL(q(z) || p(z)) to"
            " be one, but it differs: it depends on data or on other latents"
        )


def _vectors(counted: Site, count: int) -> Tensor:
    """Values at a site, ``(N, D)``."""
    (value,) = double(counted.site["value"].reshape(count, -1))
    return value


def _prior_coordinates(counted: Site, count: int) -> Tensor | None:
    """Log densities of the prior's marginals, ``(N, D)``, or None where they are not known."""
    fn, value = counted.site["fn"], counted.site["value"]
    if isinstance(fn, Independent) and not fn.base_dist.event_shape:
        (found,) = double(fn.base_dist.log_prob(value))
    elif not fn.event_shape:
        (found,) = double(fn.log_prob(value))
    else:
        try:
            prior = Encodings.of(fn, count)[torch.zeros(1, dtype=torch.int64)]
        except NotImplementedError:
            return None
        points = (_vectors(counted, count),)
        found = map_chunks(prior.own_coordinates, points, prior.row_elements)
    return found.reshape(count, -1)
