"""The traces of a guide and of the model run against it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice, zip_longest
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.elbo import ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import site_is_subsample
from pyro.util import (
    check_if_enumerated,
    check_model_guide_match,
    check_site_shape,
    warn_if_inf,
    warn_if_nan,
)
from torch import Tensor

from pyro_mixtures.infer.objectives.missing_sites import check_complete
from pyro_mixtures.samples.pyro_context import Asker, asked_by

LOOKED_AT = ("is_auxiliary", "enumerate", "_enumerate_dim")
"""What the checks of traces read of a site's ``infer``."""


class Structures:
    """What the traces that passed the checks last looked like, to check none like them again."""

    def __init__(self) -> None:
        self._sites: list[Any] | None = None
        self._shapes: list[torch.Size] = []

    def knows_sites(self, sites: list[Any] | None) -> bool:
        """Whether traces with such sites passed; None is of none."""
        return sites is not None and sites == self._sites

    def knows(self, sites: list[Any] | None, shapes: list[torch.Size]) -> bool:
        """Whether their log densities had such shapes, too."""
        return self.knows_sites(sites) and shapes == self._shapes

    def remember(self, sites: list[Any] | None, shapes: list[torch.Size]) -> None:
        """Traces like these have passed."""
        self._sites, self._shapes = sites, shapes


def importance_traces(
    objective: ELBO,
    model: Callable,
    guide: Callable,
    args: Any,
    kwargs: Any,
    structures: Structures,
) -> tuple[Trace, Trace]:
    """Pyro's ``get_importance_trace``, for guides with dimensions to the left of all plates.

    That cuts the shapes of a site with fewer batch dimensions than ``max_plate_nesting`` in the
    midst of the event, if the event has two or more: ``(2, 3)`` becomes ``(3,)`` for one plate. A
    guide whose site has the components' dimension would not match it.

    Traces that look like those before are not checked again, and the sites are searched for what
    is not finite only if something is.

    Raises:
        ValueError: for a site that has other shapes in the guide than in the model, that the guide
            lacks, or that it should not have.
    """
    unwrapped = poutine.unwrap(guide)
    if isinstance(unwrapped, GuideMessenger):
        guide(*args, **kwargs)
        model_trace, guide_trace = unwrapped.get_traces()
    else:
        guide_trace = _trace(guide, args, kwargs)
        model_trace = _trace(poutine.replay(model, trace=guide_trace), args, kwargs)
    validates, max_plate_nesting = is_validation_enabled(), objective.max_plate_nesting
    sites = _structure(max_plate_nesting, validates, model_trace, guide_trace)
    known = structures.knows_sites(sites)
    complete = known or check_complete(model_trace, guide_trace)
    if not known:
        _check_event_shapes(model_trace, guide_trace)
    if validates and not known:
        check_model_guide_match(model_trace, guide_trace, 0)
        _check_batch_shapes(model_trace, guide_trace, max_plate_nesting)
    traces = model_trace, guide_trace
    for trace in traces:
        _remove_subsamples(trace)
    with asked_by(Asker(objective, guide_trace, model_trace)):
        _compute_densities(model_trace, guide_trace)
    shapes = [site["log_prob"].shape for trace in traces for site in _samples(trace)]
    if validates and not structures.knows(sites, shapes):
        check_if_enumerated(guide_trace)
        for trace in traces:
            for site in _samples(trace):
                check_site_shape(site, max_plate_nesting)
    structures.remember(sites if complete else None, shapes)
    return traces


def _trace(program: Callable, args: Any, kwargs: Any) -> Trace:
    """A trace of its own: Pyro's ``get_trace`` would copy it."""
    traced = poutine.trace(program)
    traced(*args, **kwargs)
    return traced.trace


def _samples(trace: Trace) -> list[Any]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def _remove_subsamples(trace: Trace) -> None:
    for name in [name for name, site in trace.nodes.items() if site_is_subsample(site)]:
        trace.remove_node(name)


def _structure(
    max_plate_nesting: int, validates: bool, model_trace: Trace, guide_trace: Trace
) -> list[Any] | None:
    """All that the checks look at but the densities' shapes; None if it cannot be compared."""
    if torch._C._get_tracing_state():  # sizes of plates may be tensors
        return None
    structure: list[Any] = [max_plate_nesting, validates]
    for trace in (model_trace, guide_trace):
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            if site["args"] or site["kwargs"]:  # which shapes may depend on
                return None
            fn, infer = site["fn"], site["infer"]
            structure.append(
                (
                    name,
                    site["is_observed"],
                    type(fn).__name__,
                    getattr(fn, "batch_shape", None),
                    getattr(fn, "event_shape", None),
                    "has_rsample" in getattr(fn, "__dict__", ()),
                    infer and [infer.get(key) for key in LOOKED_AT],
                    [tuple(frame) for frame in site["cond_indep_stack"]],
                )
            )
        structure.append(None)
    return structure


def _compute_densities(model_trace: Trace, guide_trace: Trace) -> None:
    """What Pyro computes, with its warnings of densities that are not finite."""
    of_model, of_guide = _samples(model_trace), _samples(guide_trace)
    try:
        for site in of_model:
            if "log_prob" not in site:
                log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
                _keep(site, scale_and_mask(log_prob, site["scale"], site["mask"]))
        for site in of_guide:
            if "score_parts" not in site:
                parts = site["fn"].score_parts(site["value"], *site["args"], **site["kwargs"])
                site["score_parts"] = parts = parts.scale_and_mask(site["scale"], site["mask"])
                _keep(site, parts.log_prob)
    except ValueError:
        model_trace.compute_log_prob()  # its error names the site, with all shapes
        guide_trace.compute_score_parts()
        raise
    for site in (*of_model, *of_guide) if poutine.util.is_validation_enabled() else ():
        if not math.isfinite(site["log_prob_sum"].item()):
            total, where = site["log_prob_sum"].detach(), f"log_prob_sum at site {site['name']!r}"
            warn_if_nan(total, where)
            warn_if_inf(total, where, allow_neginf=True)


def _keep(site: Any, log_prob: Tensor) -> None:
    site["log_prob"] = log_prob
    site["log_prob_sum"] = log_prob.sum() if log_prob.dim() else log_prob


def _check_event_shapes(model_trace: Trace, guide_trace: Trace) -> None:
    """Raise an error if the events of a site of both differ.

    Without validation, too: one coordinate in the model would broadcast with all of the guide, and
    its density would count once for each.
    """
    for name, guide_site in guide_trace.nodes.items():
        model_site = model_trace.nodes.get(name)
        if guide_site["type"] != "sample" or model_site is None or model_site["is_observed"]:
            continue
        expected, given = _event_shape(model_site), _event_shape(guide_site)
        if expected != given:
            raise ValueError(
                f"Expected the event shape {expected} of the model at site {name!r}, but got"
                f" {given} in the guide: give the prior and the guide (an encoder, say) the same"
                " size, and the same to_event"
            )


def _event_shape(site: Any) -> tuple[int, ...]:
    """That of a site's samples; empty for what has no shapes, such as subsamples."""
    return tuple(getattr(site["fn"], "event_shape", ()))


def _check_batch_shapes(model_trace: Trace, guide_trace: Trace, max_plate_nesting: int) -> None:
    """Raise an error if sizes differ in the plates' dimensions of a site of both."""
    for name, guide_site in guide_trace.nodes.items():
        model_site = model_trace.nodes.get(name)
        if guide_site["type"] != "sample" or model_site is None or model_site["is_observed"]:
            continue
        expected, given = _batch_shape(model_site), _batch_shape(guide_site)
        pairs = zip_longest(reversed(expected), reversed(given), fillvalue=1)
        count = min(max_plate_nesting, max(len(expected), len(given)))
        if any(size != other for size, other in islice(pairs, count)):
            raise ValueError(
                f"Expected the batch shape {expected} of the model at site {name!r}, but got"
                f" {given} in the guide"
            )


def _batch_shape(site: Any) -> tuple[int, ...]:
    """That of a site's samples; empty for what has no shapes, such as subsamples."""
    fn = site["fn"]
    if not (hasattr(fn, "shape") and hasattr(fn, "event_dim")):
        return ()
    shape = fn.shape(*site["args"], **site["kwargs"])
    return tuple(shape[: len(shape) - fn.event_dim])
