"""What Pyro does not tell a distribution whose score parts it asks for: the site, the objective.

``Trace_ELBO`` leaves the density of an auxiliary site out of the cost of score terms, and some
objectives refuse score terms that they could do without. Only the callers know the site and the
objective: they are looked up among the objects whose methods are running.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

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


class Asker(NamedTuple):
    """On whose behalf score parts are asked for; what is not known is None.

    Args:
        objective: of Pyro.
        guide_trace: of the site.
        model_trace: that the objective has run with it.
    """

    objective: ELBO | None = None
    guide_trace: Trace | None = None
    model_trace: Trace | None = None

    @property
    def uses_scores(self) -> bool:
        """Whether it may get score terms beside a sample's gradient.

        ``RenyiELBO`` knows one or the other.
        """
        return not isinstance(self.objective, (*SAMPLES_ALONE, RenyiELBO))

    def check_uses_scores(self, estimator: str) -> None:
        """Raise an error if samples without gradient would get none."""
        if isinstance(self.objective, SAMPLES_ALONE):
            raise NotImplementedError(
                f"Expected an objective with score terms, such as Trace_ELBO, for samples of the"
                f" estimator {estimator!r}, which have no gradient, but got"
                f" {type(self.objective).__name__}; 'pathwise' and 'clustered' have one"
            )

    def check_guide(self) -> None:
        """Raise an error if the guide lacks latent sites, where ``Trace_ELBO`` looks for them."""
        guide, model = self.guide_trace, self.model_trace
        if guide is None or model is None or not isinstance(self.objective, Trace_ELBO):
            return
        missing = sorted(
            name
            for name, site in model.nodes.items()
            if site["type"] == "sample" and not site["is_observed"] and name not in guide.nodes
        )
        if missing:
            raise ValueError(
                f"Expected each latent site of the model in the guide, but got none for {missing}:"
                " sample them in the guide, too, or, if they are discrete, sum over them by"
                " TraceEnum_ELBO and infer={'enumerate': 'parallel'}"
            )

    def auxiliary_site(self, value: Tensor) -> str | None:
        """The name of the site that has a value, if it is auxiliary.

        And if its density is left out of the cost of score terms, as ``TraceGraph_ELBO`` does not.
        """
        if self.guide_trace is None or isinstance(self.objective, TraceGraph_ELBO):
            return None
        for name, site in self.guide_trace.nodes.items():
            if site["type"] == "sample" and site["value"] is value:
                return name if is_auxiliary(site) else None
        return None

    def later_auxiliary_sites_depend_on(self, value: Tensor, name: str) -> bool:
        """Whether auxiliary sites that follow in the guide have parameters made of a value."""
        nodes = {} if self.guide_trace is None else self.guide_trace.nodes
        names = list(nodes)
        for later in names[names.index(name) + 1 :]:
            site: Any = nodes[later]
            if site["type"] == "sample" and not site["is_observed"] and is_auxiliary(site):
                made = site["value"]
                if not made.requires_grad:
                    made = site["fn"].log_prob(made, *site["args"], **site["kwargs"])
                if _depends_on(made, value):
                    return True
        return False


def asker() -> Asker:
    """Look up who asks, among the functions that are running."""
    found: dict[str, Any] = {}
    frame = None if torch.compiler.is_compiling() else sys._getframe(1)
    while frame is not None and "objective" not in found:
        variables = frame.f_locals
        owner = variables.get("self")
        if isinstance(owner, Trace):
            found.setdefault("guide_trace", owner)
        elif "guide_trace" in found:  # who asks for it is further out
            if isinstance(variables.get("model_trace"), Trace):
                found.setdefault("model_trace", variables["model_trace"])
            if isinstance(owner, ELBO):
                found["objective"] = owner
        frame = frame.f_back
    return Asker(**found)


def is_auxiliary(site: Any) -> bool:
    """Whether a guide's site is none of the model's."""
    return bool(site["infer"].get("is_auxiliary"))


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
