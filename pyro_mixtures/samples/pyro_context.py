"""What Pyro does not tell a distribution whose score parts it asks for: the site, the objective.

``Trace_ELBO`` leaves the density of an auxiliary site out of the cost of score terms, and some
objectives refuse score terms that they could do without. Only the callers know the site and the
objective: they are looked up among the objects whose methods are running.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any, NamedTuple

import torch
from pyro.distributions import MaskedDistribution
from pyro.infer.elbo import ELBO
from pyro.infer.trace_elbo import Trace_ELBO
from pyro.infer.trace_mean_field_elbo import TraceMeanField_ELBO
from pyro.infer.trace_mmd import Trace_MMD
from pyro.infer.trace_tail_adaptive_elbo import TraceTailAdaptive_ELBO
from pyro.infer.traceenum_elbo import TraceEnum_ELBO
from pyro.infer.tracetmc_elbo import TraceTMC_ELBO
from pyro.poutine import Trace
from torch import Tensor

SAMPLES_ALONE = (TraceMeanField_ELBO, TraceTailAdaptive_ELBO, TraceTMC_ELBO, Trace_MMD)
"""Objectives that multiply no score term by a cost: they refuse it, or never look at it."""

FURTHEST = 4
"""An objective is so many calls away from where the trace asks for score parts."""


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
        """Whether it multiplies score terms by their costs; one that is not known may."""
        if self.objective is None or self._counts_all:
            return True
        known = (Trace_ELBO, TraceEnum_ELBO)
        return isinstance(self.objective, known) and not isinstance(self.objective, SAMPLES_ALONE)

    @property
    def _counts_all(self) -> bool:
        """Whether the objective is of this package: its costs have every density."""
        return getattr(self.objective, "counts_auxiliary_sites", False)

    @property
    def lacks_auxiliary_densities(self) -> bool:
        """Whether costs are those of ``Trace_ELBO``, without the densities of auxiliary sites."""
        return not self._counts_all and isinstance(self.objective, Trace_ELBO)

    def check_uses_scores(self) -> None:
        """Raise an error if samples without gradient would get none."""
        if isinstance(self.objective, SAMPLES_ALONE):
            raise NotImplementedError(
                "Expected an objective with score terms, such as Trace_ELBO, for samples without"
                f" gradient (estimator 'score', has_rsample_(False)), but got"
                f" {type(self.objective).__name__}; 'pathwise' and 'clustered' have one"
            )

    def misses_costs(self, value: Tensor) -> bool:
        """Whether the costs that meet a sample's score term lack some that depend on the sample.

        Raises:
            ValueError: if the guide lacks a latent site of the model, where ``Trace_ELBO`` would
                look for it.
        """
        if self._counts_all:
            return False
        site = self._site(value)
        if site is None:
            return False
        if isinstance(self.objective, TraceEnum_ELBO):
            return self._depends_outside(site, value)
        return self.lacks_auxiliary_densities and (
            self._lacks_a_site() or self._depends_later(site, value)
        )

    def is_auxiliary(self, value: Tensor) -> bool:
        """Whether the site that has a value is none of the model's."""
        site = self._site(value)
        return site is not None and self._is_auxiliary(site)

    def followed_by_auxiliary_sites(self, value: Tensor) -> bool:
        """Whether other auxiliary sites come later in the guide."""
        site = self._site(value)
        return site is not None and any(map(self._is_auxiliary, self._later(site)))

    def _site(self, value: Tensor) -> Any:
        nodes = {} if self.guide_trace is None else self.guide_trace.nodes
        sites = (site for site in nodes.values() if site["type"] == "sample")
        return next((site for site in sites if site["value"] is value), None)

    def _is_auxiliary(self, site: Any) -> bool:
        if self.model_trace is None:
            return bool(site["infer"].get("is_auxiliary"))
        return site["name"] not in self.model_trace.nodes

    def _later(self, site: Any) -> list[Any]:
        """The latent sites that follow in the guide."""
        assert self.guide_trace is not None  # that of the site
        sites = [each for each in self.guide_trace.nodes.values() if each["type"] == "sample"]
        return [
            each
            for each in sites[1 + next(i for i, x in enumerate(sites) if x is site) :]
            if not each["is_observed"]
        ]

    def _lacks_a_site(self) -> bool:
        if self.guide_trace is None or self.model_trace is None:
            return False
        missing = {
            name: site
            for name, site in self.model_trace.nodes.items()
            if site["type"] == "sample"
            and not site["is_observed"]
            and name not in self.guide_trace.nodes
        }
        counted = sorted(name for name, site in missing.items() if not is_masked(site))
        if counted:
            raise ValueError(
                f"Expected each latent site of the model in the guide, but got none for {counted}:"
                " sample them in the guide, too, or, if they are discrete, sum over them by"
                " TraceEnum_ELBO and infer={'enumerate': 'parallel'}"
            )
        return bool(missing)

    def _depends_later(self, site: Any, value: Tensor) -> bool:
        auxiliary = filter(self._is_auxiliary, self._later(site))
        made = (x["value"] if x["value"].requires_grad else _density(x) for x in auxiliary)
        return any(_depends_on(each, value) for each in made)

    def _depends_outside(self, site: Any, value: Tensor) -> bool:
        """Whether densities do that are not in all of the site's plates."""
        plates = _plates(site)
        if not plates or self.model_trace is None:
            return False
        others = [each for each in self.model_trace.nodes.values() if each["type"] == "sample"]
        return any(
            _depends_on(_density(each), value)
            for each in (*others, *self._later(site))
            if not plates <= _plates(each)
        )


_asking: ContextVar[Asker | None] = ContextVar("asking", default=None)
"""Who has said so, in this thread."""


@contextmanager
def asked_by(asker: Asker) -> Iterator[None]:
    """Within it score parts are asked for on the behalf of an objective that says so itself."""
    if torch.compiler.is_compiling():  # where nobody asks
        yield
        return
    token = _asking.set(asker)
    try:
        yield
    finally:
        _asking.reset(token)


def asker() -> Asker:
    """Who asks; of Pyro's objectives looked up in the functions that called for score parts."""
    if torch.compiler.is_compiling():
        return Asker()
    said = _asking.get()
    if said is not None:
        return said
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not Trace.compute_score_parts.__code__:
        frame = frame.f_back
    if frame is None:
        return Asker()
    found: dict[str, Any] = {"guide_trace": frame.f_locals["self"]}
    for _ in range(FURTHEST):
        frame = frame.f_back
        if frame is None:
            break
        local = frame.f_locals  # which is made anew each time
        if isinstance(local.get("model_trace"), Trace):
            found["model_trace"] = local["model_trace"]
        if isinstance(local.get("self"), ELBO):
            return Asker(**found, objective=local["self"])
    return Asker(**found)


def is_masked(site: Any) -> bool:
    """Whether the density of a site counts nothing, whatever its value."""
    masks = [site["mask"]]
    if isinstance(site["fn"], MaskedDistribution):
        masks.append(site["fn"]._mask)
    return any(mask is not None and not bool(torch.as_tensor(mask).any()) for mask in masks)


def _density(site: Any) -> Tensor:
    if "log_prob" in site:
        return site["log_prob"]
    return site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])


def _plates(site: Any) -> frozenset[str]:
    return frozenset(frame.name for frame in site["cond_indep_stack"] if frame.vectorized)


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
