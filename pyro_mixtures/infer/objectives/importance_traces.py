"""The traces of a guide and of the model run against it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, zip_longest
from typing import Any

from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_if_enumerated, check_model_guide_match, check_site_shape

from pyro_mixtures.infer.objectives.missing_sites import check_complete


def importance_traces(
    max_plate_nesting: int, model: Callable, guide: Callable, args: Any, kwargs: Any
) -> tuple[Trace, Trace]:
    """Pyro's ``get_importance_trace``, for guides with dimensions to the left of all plates.

    That cuts the shapes of a site with fewer batch dimensions than ``max_plate_nesting`` in the
    midst of the event, if the event has two or more: ``(2, 3)`` becomes ``(3,)`` for one plate. A
    guide whose site has the components' dimension would not match it.

    Raises:
        ValueError: for a site that has other shapes in the guide than in the model, that the guide
            lacks, or that it should not have.
    """
    unwrapped = poutine.unwrap(guide)
    if isinstance(unwrapped, GuideMessenger):
        guide(*args, **kwargs)
        model_trace, guide_trace = unwrapped.get_traces()
    else:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    check_complete(model_trace, guide_trace)
    if is_validation_enabled():
        check_model_guide_match(model_trace, guide_trace, 0)  # the events
        _check_batch_shapes(model_trace, guide_trace, max_plate_nesting)
    guide_trace = prune_subsample_sites(guide_trace)
    model_trace = prune_subsample_sites(model_trace)
    model_trace.compute_log_prob()
    guide_trace.compute_score_parts()
    if is_validation_enabled():
        check_if_enumerated(guide_trace)
        for trace in (model_trace, guide_trace):
            for site in trace.nodes.values():
                if site["type"] == "sample":
                    check_site_shape(site, max_plate_nesting)
    return model_trace, guide_trace


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
