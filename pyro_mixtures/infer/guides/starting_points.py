"""Where the components of a mixture guide start."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import (
    init_to_feasible,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

InitLoc = Callable[[Any], Tensor]


def init_to_prior(site: Any) -> Tensor:
    """A draw of the prior, or of the box of radius 2 where that cannot be drawn from."""
    fn = site["fn"]
    try:
        return init_to_sample(site)
    except NotImplementedError:
        transform = biject_to(fn.support)
        return transform(4 * torch.rand(transform.inverse_shape(fn.shape())) - 2)


ELEMENTWISE = (
    init_to_feasible,
    init_to_mean,
    init_to_median,
    init_to_prior,
    init_to_sample,
    init_to_uniform,
)
"""Functions that start each element of a site's batch on its own."""

FEW = 3
"""Runs of the model that cost no more than to find out how to do all in one."""

ROWS, ELEMENTS = 1000, 2**20
"""Starting points in one run at most, and elements of all of its sites."""


class StartingPoints:
    """The per-site initialization function of a guide, for one component or several at once.

    Args:
        init_loc_fn: a per-site initialization function of Pyro; by default ``init_to_median`` for
            the first component, as in Pyro's guides, and ``init_to_uniform`` for the others.
    """

    def __init__(self, init_loc_fn: InitLoc | None) -> None:
        self._is_default = init_loc_fn is None
        self._first: InitLoc = init_loc_fn or init_to_median
        self._others: InitLoc = init_loc_fn or init_to_uniform
        self._init, self._shape = self._first, torch.Size()

    def __call__(self, site: Any) -> Tensor:
        """A value of a site, ``(*shape, *batch_shape, *event_shape)`` with several points."""
        if self._shape:
            fn = site["fn"]
            shape = torch.broadcast_shapes(self._shape, fn.batch_shape)
            site = {**site, "fn": fn.expand(shape)}
        return self._init(site)

    def locs(
        self, model: Callable[[], Any], prototype: Any, count: int, scale: float | Tensor
    ) -> Tensor:
        """Starting points of all components, ``(K, D)``, unconstrained.

        All but the first come from few runs of the model with a dimension for the components to
        the left of all others, where the function and the model allow that, and else from a run
        for each.

        Args:
            model: without arguments, initialized by this object.
            prototype: its trace of latent sites, with those of the first component.
            count: K, the number of components.
            scale: of the Normal that moves components apart, one or of each coordinate, ``(D,)``.

        Raises:
            ValueError: for a model whose sites change their shapes from run to run.
        """
        first = _unconstrained(prototype, prototype)  # (1, D)
        if count == 1:
            return first
        others = self._drawn(model, prototype, count - 1)
        points = torch.cat([first, others])
        moved = points + scale * torch.randn_like(points)
        return torch.cat([points[:1], moved[1:]]) if self._is_default else moved

    def of_prior(self, model: Callable[[], Any], prototype: Any, count: int) -> Tensor:
        """Draws of the prior, ``(count, D)``, unconstrained."""
        others, self._others = self._others, init_to_prior
        try:
            return self._drawn(model, prototype, count)
        finally:
            self._others = others

    def _drawn(self, model: Callable[[], Any], prototype: Any, count: int) -> Tensor:
        found = self._at_once(model, prototype, count)
        return self._one_by_one(model, prototype, count) if found is None else found

    def _one_by_one(self, model: Callable[[], Any], prototype: Any, count: int) -> Tensor:
        points = []
        for _ in range(count):
            with self._starting(self._others):
                points.append(_unconstrained(_run(model), prototype))
        return torch.cat(points)

    def _at_once(self, model: Callable[[], Any], prototype: Any, count: int) -> Tensor | None:
        """None where the function or the model do not allow it."""
        if count <= FEW or not _is_elementwise(self._others):
            return None
        try:
            return self._in_batches(model, prototype, count)
        except Exception:  # one by one the model will tell what is wrong with it, if anything
            return None

    def _in_batches(self, model: Callable[[], Any], prototype: Any, count: int) -> Tensor | None:
        """None for a model that mixes what belongs to several points."""
        sites = [site for site in _run(model).nodes.values() if _is_sample(site)]
        nesting = max(_num_batch_dims(site) for site in sites)
        elements = sum(site["fn"].shape().numel() for site in sites)
        rows = max(1, min(ROWS, ELEMENTS // max(1, elements)))
        points = []
        for start in range(0, count, rows):
            shape = torch.Size([min(rows, count - start)] + [1] * nesting)
            with self._starting(self._others, shape):
                trace = _run(model)
            points.append(_unconstrained(trace, prototype, shape))
            if start == 0 and not self._keeps_apart(model, trace, prototype):
                return None
        return torch.cat(points)

    def _keeps_apart(self, model: Callable[[], Any], trace: Any, prototype: Any) -> bool:
        """Whether the last of several points has the densities that it has alone."""
        last = {
            name: trace.nodes[name]["value"][-1].reshape(site["value"].shape)
            for name, site in prototype.iter_stochastic_nodes()
        }
        with self._starting(init_to_value(values=last)):
            alone = _run(model)
        for name, value in last.items():
            log_prob = alone.nodes[name]["fn"].log_prob(value)
            of_several = trace.nodes[name]["fn"].log_prob(trace.nodes[name]["value"])[-1]
            if not torch.allclose(of_several.reshape(log_prob.shape), log_prob, 1e-3, 1e-3):
                return False
        return True

    @contextmanager
    def _starting(self, init: InitLoc, shape: torch.Size = torch.Size()) -> Iterator[None]:
        """Within, sites start by a function, and with a shape on the left."""
        self._init, self._shape = init, shape
        try:
            yield
        finally:
            self._init, self._shape = self._first, torch.Size()


def _is_elementwise(init: Any) -> bool:
    if isinstance(init, functools.partial):
        fallback = init.keywords.get("fallback")
        return _is_elementwise(init.func) and (fallback is None or _is_elementwise(fallback))
    return any(init is each for each in ELEMENTWISE)


def _run(model: Callable[[], Any]) -> Any:
    """A trace that handlers and objectives around the guide do not see."""
    return poutine.block(poutine.trace(model).get_trace)()


def _is_sample(site: Any) -> bool:
    return site["type"] == "sample" and not site_is_subsample(site)


def _num_batch_dims(site: Any) -> int:
    """Those of the distribution, and of plates that it is in."""
    frames = (-frame.dim for frame in site["cond_indep_stack"] if frame.vectorized)
    return max(len(site["fn"].batch_shape), *frames, 0)


def _unconstrained(trace: Any, prototype: Any, shape: torch.Size = torch.Size()) -> Tensor:
    """The points of a run, ``(rows, D)``, checked to have the shapes of a prototype's sites."""
    parts = []
    for name, first in prototype.iter_stochastic_nodes():
        kept = shape[: len(shape) - len(first["fn"].batch_shape)]
        expected = kept + first["value"].shape
        site = trace.nodes.get(name)
        if site is None or site["value"].shape != expected:
            got = "none" if site is None else tuple(site["value"].shape)
            raise ValueError(
                f"Expected latent site {name!r} to have the shape {tuple(expected)} in each run"
                f" of the model, but got {got}"
            )
        value = site["value"].detach()
        rows = shape[0] if shape else 1
        parts.append(biject_to(site["fn"].support).inv(value).reshape(rows, -1))
    return torch.cat(parts, -1)  # (rows, D)
