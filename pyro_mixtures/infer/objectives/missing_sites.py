"""Latent sites that a model and its guide do not share."""

from __future__ import annotations

from typing import Any

from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample

from pyro_mixtures.samples.pyro_context import is_masked


def check_complete(model_trace: Trace, guide_trace: Trace) -> bool:
    """Raise an error if the guide lacks a latent site of the model, or draws what it observes.

    A latent site that the guide lacks is drawn from the model, and its density there would count
    with nothing to be divided by; the entropy of one that the model observes would count, too.
    Neither leaves a bound. A site that is masked throughout counts nothing and may be missing.

    Returns:
        Whether none is missing, which no mask can change.

    Raises:
        ValueError: with the names of the sites.
    """
    latent, guided = _latent_sites(model_trace), _latent_sites(guide_trace)
    lacking = {name: site for name, site in latent.items() if name not in guided}
    missing = sorted(name for name, site in lacking.items() if not is_masked(site))
    if missing:
        raise ValueError(
            f"Expected each latent site of the model in the guide, but got none for {missing} in"
            f" one with the sites {sorted(guided)}: sample them in the guide, too, or, if they are"
            " discrete, sum over them by TraceEnum_ELBO and infer={'enumerate': 'parallel'}"
        )
    observed = sorted(
        name for name in guided if name not in latent and name in model_trace.observation_nodes
    )
    if observed:
        raise ValueError(
            f"Expected a guide for the latent sites of the model only, but got one that samples"
            f" {observed}, which the model observes: leave them out of the guide"
        )
    return not lacking


def _latent_sites(trace: Trace) -> dict[str, Any]:
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }
