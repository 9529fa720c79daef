"""Sites of the traces of a model and its guide: which count, and their log densities."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta, ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent

from pyro_mixtures.numerics.precision import double


class Site(NamedTuple):
    """One that counts, of the model or of the guide."""

    owner: str
    name: str
    site: Any
    dim: int | None
    """Of the plate whose elements have weights of their own."""


def log_ratio(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Of the sums over sites, ``(sites, S, ...) -> (S, ...)``."""
    return log_p.sum(0) - log_q.sum(0)


def is_function_of_others(site: Any) -> bool:
    """Whether it is a point, as the sites of an autoguide are of its latent one."""
    distribution = site["fn"]
    while isinstance(distribution, (MaskedDistribution, ExpandedDistribution, Independent)):
        distribution = distribution.base_dist
    return isinstance(distribution, Delta) or bool(site["infer"].get("_deterministic"))


def dim_in_plate(owner: str, name: str, site: Any, within: str) -> int:
    """The dimension of a plate at a site, with a check that its elements may have weights."""
    for frame in site["cond_indep_stack"]:
        if frame.name != within:
            continue
        if not frame.vectorized:
            raise ValueError(f"Expected plate {within!r} to be vectorized, but got a loop over it")
        if frame.full_size not in (None, frame.size):
            raise ValueError(
                f"Expected plate {within!r} without a subsample, but got {frame.size} of"
                f" {frame.full_size}: hand over a batch as if it were all data"
            )
        dim: int = frame.dim
        return dim
    raise ValueError(
        f"Expected all sites in plate {within!r}, for its elements to have weights of their own,"
        f" but got site {name!r} of the {owner} outside of it"
    )


def bytes_of_draw(site: Any) -> int:
    """Of the value and the log density of one draw at a site."""
    value, batch_shape = site["value"], site["fn"].batch_shape  # a tuple, if Pyro has expanded fn
    return value.numel() * value.element_size() + 8 * math.prod(batch_shape)


def subsamples_of(*traces: Trace) -> Trace:
    """What plates have drawn."""
    found = Trace()
    for trace in traces:
        found.nodes.update(
            {name: site for name, site in trace.nodes.items() if site_is_subsample(site)}
        )
    return found


def value_at(trace: Trace, name: str) -> Tensor:
    """Of a site."""
    value: Any = trace.nodes[name]["value"]
    return value


def _counts(site: Any) -> bool:
    return site["type"] == "sample" and not site_is_subsample(site)


def latent_sites(model_trace: Trace, guide_trace: Trace) -> list[str]:
    """Names of the model's latent sites, with a check that the guide samples just those."""
    in_model, in_guide = (
        {name: site for name, site in trace.nodes.items() if _counts(site)}
        for trace in (model_trace, guide_trace)
    )
    latent = [name for name, site in in_model.items() if not site["is_observed"]]
    if not latent:
        raise ValueError("Expected a model with latent sites, but got one without any")
    missing = [name for name in latent if name not in in_guide]
    if missing:
        raise ValueError(
            "Expected guide to sample each latent site of the model, but it does not sample"
            f" {', '.join(missing)}"
        )
    foreign = [name for name, site in in_guide.items() if _is_foreign(site, in_model.get(name))]
    if foreign:
        raise ValueError(
            "Expected guide to sample latent sites of the model and auxiliary ones (and not to be"
            f" a GuideMessenger, which runs the whole model), but got {', '.join(foreign)}"
        )
    for name in latent:
        _check_shape(name, in_model[name], in_guide[name])
    return latent


def _check_shape(name: str, site: Any, of_the_guide: Any) -> None:
    """Raise a ``ValueError`` for a guide's sample that only broadcasts with the model's site."""
    events = [tuple(each["fn"].event_shape) for each in (site, of_the_guide)]
    if events[0] != events[1]:
        raise ValueError(
            f"Expected guide to sample {name} of event shape {events[0]}, but got {events[1]}:"
            " give the prior and the guide (an encoder, say) the same size, and the same to_event"
        )
    expected = (*site["fn"].batch_shape, *site["fn"].event_shape)
    if site["value"].shape != expected:
        raise ValueError(
            f"Expected guide to sample {name} of shape {expected}, but got"
            f" {tuple(site['value'].shape)}: the model has it in other plates"
        )


def _is_foreign(site: Any, of_the_model: Any | None) -> bool:
    """Whether the density of a guide's site has no place in the weights."""
    if of_the_model is None:
        return not (site["is_observed"] or site["infer"].get("is_auxiliary"))
    return of_the_model["is_observed"]


def sites_of(trace: Trace) -> list[tuple[str, Any]]:
    """Those that count, by name."""
    return [(name, site) for name, site in trace.nodes.items() if _counts(site)]


def site_log_prob(counted: Site, batch: tuple[int, ...]) -> Tensor:
    """Of one site, summed over its plates, ``(S,)``, or over all but one, ``(S, N)``."""
    owner, name, site, dim = counted
    try:
        log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except ValueError as error:
        raise ValueError(f"No log_prob at site {name!r} of the {owner}: {error}") from error
    log_prob = torch.as_tensor(scale_and_mask(log_prob, site["scale"], site["mask"]))
    (log_prob,) = double(log_prob)
    if batch[0] > 1:
        as_a_batch = len(log_prob.shape) == len(batch) and log_prob.shape[0] == batch[0]
        check_vectorized(name, as_a_batch, log_prob.shape)
    if dim is None:
        total = log_prob.reshape(batch[0], -1).sum(-1)
    else:
        moved = log_prob.movedim(dim, -1)  # (S, ..., N)
        total = moved.reshape(batch[0], -1, moved.shape[-1]).sum(1)
    allowed = total < math.inf if owner == "model" else total.isfinite()
    if not bool(allowed.all()):
        value = total[~allowed][0].item()
        raise ValueError(
            f"Expected finite log densities, but got log_prob = {value} at site {name!r} of the"
            f" {owner}"
        )
    return total


def check_vectorized(name: str, fits: bool, shape: torch.Size) -> None:
    """Raise a ``ValueError`` for a shape at a site that is none of a batch."""
    if not fits:
        raise ValueError(
            "Expected model and guide to allow vectorize = True, with each batch dimension in a"
            f" plate and one more on the left, but got shape {tuple(shape)} at site {name!r}"
        )
