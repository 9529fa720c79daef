"""What Pyro does not tell a distribution whose score parts it asks for: the site, the objective.

``Trace_ELBO`` leaves the density of an auxiliary site out of the cost of score terms, and some
objectives refuse score terms that they could do without. Only the callers know the site and the
objective: they are looked up among the objects whose methods are running.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from pyro.infer.elbo import ELBO
from pyro.infer.renyi_elbo import RenyiELBO
from pyro.infer.trace_elbo import Trace_ELBO
from pyro.infer.trace_mean_field_elbo import TraceMeanField_ELBO
from pyro.infer.trace_mmd import Trace_MMD
from pyro.infer.trace_tail_adaptive_elbo import TraceTailAdaptive_ELBO
from pyro.infer.tracegraph_elbo import TraceGraph_ELBO
from pyro.poutine import Trace
from torch import Tensor

SAMPLES_ALONE = (TraceMeanField_ELBO, TraceTailAdaptive_ELBO, Trace_MMD)
"""Objectives that know no score terms: they refuse them, or never look at them."""


def uses_scores() -> bool:
    """Whether the objective that asks for score parts may get some beside a sample's gradient.

    ``RenyiELBO`` knows one or the other.
    """
    return not isinstance(_running(ELBO), (*SAMPLES_ALONE, RenyiELBO))


def check_uses_scores(estimator: str) -> None:
    """Raise an error if an objective would leave samples without gradient without any."""
    objective = _running(ELBO)
    if isinstance(objective, SAMPLES_ALONE):
        raise NotImplementedError(
            f"Expected an objective with score terms, such as Trace_ELBO, for samples of the"
            f" estimator {estimator!r}, which have no gradient, but got"
            f" {type(objective).__name__}; 'pathwise' and 'clustered' have one"
        )


def auxiliary_site(value: Tensor) -> tuple[Trace, str] | None:
    """The trace that asks for score parts at a value and the site's name, if it is auxiliary.

    And if its density is left out of the cost of score terms, as ``TraceGraph_ELBO`` does not.
    """
    trace = _running(Trace)
    if trace is None or isinstance(_running(ELBO), TraceGraph_ELBO):
        return None
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and site["value"] is value:
            return (trace, name) if is_auxiliary(site) else None
    return None


def check_guide() -> None:
    """Raise an error if a guide lacks latent sites, where ``Trace_ELBO`` would look for them."""
    guide_trace, model_trace = _running(Trace), _local("model_trace")
    if not (isinstance(_running(ELBO), Trace_ELBO) and isinstance(model_trace, Trace)):
        return
    missing = sorted(
        name
        for name, site in model_trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and name not in guide_trace.nodes
    )
    if missing:
        raise ValueError(
            f"Expected each latent site of the model in the guide, but got none for {missing}:"
            " sample them in the guide, too, or, if they are discrete, sum over them by"
            " TraceEnum_ELBO and infer={'enumerate': 'parallel'}"
        )


def is_auxiliary(site: Any) -> bool:
    """Whether a guide's site is none of the model's."""
    return bool(site["infer"].get("is_auxiliary"))


def later_auxiliary_sites_depend_on(value: Tensor, trace: Trace, name: str) -> bool:
    """Whether auxiliary sites that follow in a guide have parameters made of a site's value."""
    names = list(trace.nodes)
    for later in names[names.index(name) + 1 :]:
        site: Any = trace.nodes[later]
        if site["type"] == "sample" and not site["is_observed"] and is_auxiliary(site):
            made = site["value"]
            if not made.requires_grad:
                made = site["fn"].log_prob(made, *site["args"], **site["kwargs"])
            if _depends_on(made, value):
                return True
    return False


def _depends_on(result: Tensor, value: Tensor) -> bool:
    """Whether autograd's graph leads from a result to the node that made a value."""
    target, open_nodes, seen = value.grad_fn, [result.grad_fn], set()
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        if node is target:
            return True
        seen.add(node)
        open_nodes.extend(parent for parent, _ in node.next_functions)
    return False


def _running(kind: Any) -> Any:
    """The nearest object of a class among those whose methods are running."""
    return next((owner for owner in _locals("self") if isinstance(owner, kind)), None)


def _local(name: str) -> Any:
    return next(_locals(name), None)


def _locals(name: str) -> Iterator[Any]:
    """The variables of a name in the functions that are running, from the innermost on."""
    frame = None if torch.compiler.is_compiling() else sys._getframe(1)
    while frame is not None:
        if name in frame.f_locals:
            yield frame.f_locals[name]
        frame = frame.f_back
