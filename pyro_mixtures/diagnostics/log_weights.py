"""Draws of a guide and their weights as draws of the posterior, at once or in turn."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import plate, poutine
from pyro.poutine import Trace
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from pyro_mixtures.diagnostics.sites import (
    Site,
    bytes_of_draw,
    check_vectorized,
    dim_in_plate,
    is_function_of_others,
    latent_sites,
    log_ratio,
    site_log_prob,
    sites_of,
    subsamples_of,
    value_at,
)
from pyro_mixtures.numerics.chunks import MEMORY_BUDGET

Samples = dict[str, Tensor]

PROBES = 3
"""Draws that are weighed as a batch and one by one."""

ROUNDING = 1e-5
"""What single precision may change of log densities by another order of sums, of their size."""

UNMIXED = 1e-3
"""What ill-conditioned factors may change, of the differences of draws; to mix them does more."""


class Draws:
    """Where draws come from.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        args: arguments of both.
        kwargs: keyword arguments of both.
        vectorize: as one batch, instead of one after another; None for as a batch where that gives
            the weights of single draws, and with a warning where not.
        within: name of a plate whose elements get weights of their own.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        vectorize: bool | None,
        within: str | None = None,
    ) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self.within = within
        refusal = self._refusal() if vectorize is None else None
        self.vectorize = refusal is None if vectorize is None else vectorize
        if refusal is not None:
            warnings.warn(
                f"Draws are made one by one, which is slow, for as a batch {refusal};"
                " vectorize=False does so without this warning",
                stacklevel=4,  # where psis or evaluate is called
            )

    def chunks(self, count: int, chunk_size: int | None) -> Iterator[tuple[Tensor, Samples]]:
        """Log weights ``(S,)``, or ``(S, N)`` of a plate, and samples ``(S, *shape)`` by name.

        The sizes S add up to ``count``; that of a batch is ``chunk_size``, or by default what the
        memory budget allows. All see the same subsamples.
        """
        found = self._at_once(count, chunk_size) if self.vectorize else self._in_turn(count)
        first: Samples = {}
        points: set[str] = set()
        for log_weights, samples, model_trace in found:
            if not first:
                first = {name: value[0] for name, value in samples.items()}
                sites: Any = model_trace.nodes
                points = {name for name in first if not sites[name]["fn"].support.is_discrete}
            points = {name for name in points if bool((samples[name] == first[name]).all())}
            yield log_weights, samples
        if points:
            raise ValueError(
                "Expected a guide with a density, but all its draws of"
                f" {', '.join(sorted(points))} are the same point"
            )

    def _in_turn(self, count: int) -> Iterator[tuple[Tensor, Samples, Trace]]:
        subsamples = Trace()
        names: list[str] = []
        for draw in range(count):
            traces = self._traces((self.model, self.guide), subsamples)
            found = latent_sites(*traces)
            if draw and found != names:
                raise ValueError(
                    f"Expected the same latent sites in each run, but got {', '.join(names)} and"
                    f" then {', '.join(found)}"
                )
            names = found
            samples = {name: value_at(traces[0], name).unsqueeze(0) for name in names}
            yield self._log_weights(*traces, (1,)), samples, traces[0]
            subsamples = subsamples if subsamples.nodes else subsamples_of(*traces)

    def _at_once(
        self, count: int, chunk_size: int | None
    ) -> Iterator[tuple[Tensor, Samples, Trace]]:
        single = self._traces((self.model, self.guide), Trace())  # also sets up a guide
        ones = self._ones(single)
        if chunk_size is None:
            sites = [site for trace in single for _, site in sites_of(trace)]
            chunk_size = max(1, MEMORY_BUDGET // max(1, sum(map(bytes_of_draw, sites))))
        subsamples = Trace()
        for start in range(0, count, chunk_size):
            size = min(chunk_size, count - start)
            in_plate = plate("_samples", size, dim=-len(ones) - 1)
            traces = self._traces((in_plate(self.model), in_plate(self.guide)), subsamples)
            samples = {}
            for name in latent_sites(*traces):
                value, shape = value_at(traces[0], name), value_at(single[0], name).shape
                check_vectorized(name, value.numel() == size * shape.numel(), value.shape)
                samples[name] = value.reshape(size, *shape)
            yield self._log_weights(*traces, (size, *ones)), samples, traces[0]
            subsamples = subsamples if subsamples.nodes else subsamples_of(*traces)

    def _refusal(self) -> str | None:
        """Why draws as a batch are not those one by one, or None; random numbers are given back.

        A few draws are weighed both ways: a model may have the shapes of a batch and mix it.
        """
        before = get_rng_state()
        try:
            single = self._traces((self.model, self.guide), Trace())
            latent_sites(*single)
            self._log_densities(*single, (1,))  # mistakes that have nothing to do with batches
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return self._difference(single)
            except Exception as error:  # a model that knows no batches may fail in any way
                first_line, *_ = str(error).split("\n")
                return f"they raise {type(error).__name__}: {first_line}"
        finally:
            set_rng_state(before)

    def difference(self) -> str | None:
        """How log densities of a few draws as a batch differ from those one by one, or None."""
        before = get_rng_state()
        try:
            return self._difference(self._traces((self.model, self.guide), Trace()))
        finally:
            set_rng_state(before)

    def _difference(self, single: tuple[Trace, Trace]) -> str | None:
        """Whether the weights of the same draws as a batch and one by one differ."""
        ones = self._ones(single)
        in_plate = plate("_samples", PROBES, dim=-len(ones) - 1)
        functions = in_plate(self.model), in_plate(self.guide)
        subsamples = subsamples_of(*single)
        drawn = self._traces(functions, subsamples)
        in_guide = drawn[1].nodes.keys()  # what is a function of others there, is in the model too
        probes = {
            name: (site, value_at(one, name).shape)
            for one, several in zip(single, drawn, strict=True)
            for name, site in sites_of(several)
            if several is drawn[1] or name not in in_guide
            if not (site["is_observed"] or is_function_of_others(site))
        }

        def fixed(index: int | None) -> Trace:
            """All draws, or one; of another identity than what was drawn."""
            trace = Trace()
            nodes: Any = trace.nodes
            nodes.update(subsamples.nodes)
            for name, (site, shape) in probes.items():
                value = site["value"]
                value = value if index is None else value.reshape(PROBES, *shape)[index]
                nodes[name] = {**site, "value": value.clone()}
            return trace

        batch = self._log_densities(*self._traces(functions, fixed(None)), (PROBES, *ones))
        each = [
            self._log_densities(*self._traces((self.model, self.guide), fixed(index)), (1,))
            for index in range(PROBES)
        ]
        log_p, log_q = (torch.cat(parts, 1) for parts in zip(*each, strict=True))  # (sites, P)
        weights, expected = log_ratio(*batch), log_ratio(log_p, log_q)
        seen = expected[expected > -math.inf]
        spread = seen.amax() - seen.amin() if seen.numel() else 0.0
        allowed = ROUNDING * (1 + log_p.abs().sum(0) + log_q.abs().sum(0)) + UNMIXED * spread
        close = expected.isfinite() & ((weights - expected).abs() <= allowed)
        if bool((close | (weights == expected)).all()):
            return None
        return (
            "model and guide have other log densities than one by one: they mix the draws, or are"
            " random beside their sites"
        )

    def _ones(self, single: tuple[Trace, Trace]) -> tuple[int, ...]:
        """The dimensions of plates, which a batch stands before."""
        sites = [site for trace in single for _, site in sites_of(trace)]
        dims = [f.dim for site in sites for f in site["cond_indep_stack"] if f.vectorized]
        return (1,) * max((-dim for dim in dims), default=0)

    def _traces(self, functions: tuple[Any, Any], fixed: Trace) -> tuple[Trace, Trace]:
        """Of the model, run on a draw of the guide, and of the guide; ``fixed`` sites stay."""
        model, guide = functions
        guide = poutine.trace(poutine.replay(guide, trace=fixed))
        guide_trace = guide.get_trace(*self.args, **self.kwargs)
        replayed = poutine.replay(poutine.replay(model, trace=fixed), trace=guide_trace)
        return poutine.trace(replayed).get_trace(*self.args, **self.kwargs), guide_trace

    def _log_weights(
        self, model_trace: Trace, guide_trace: Trace, batch: tuple[int, ...]
    ) -> Tensor:
        """``log p(z, y) - log q(z)``, ``(S,)`` or ``(S, N)``; dims begin with the samples."""
        return log_ratio(*self._log_densities(model_trace, guide_trace, batch))

    def _log_densities(
        self, model_trace: Trace, guide_trace: Trace, batch: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Of the sites of model and guide, each ``(sites, S)`` or ``(sites, S, N)``."""
        log_p = [site_log_prob(site, batch) for site in self._counted("model", model_trace)]
        log_q = [site_log_prob(site, batch) for site in self._counted("guide", guide_trace)]
        return torch.stack(log_p), torch.stack(log_q)

    def _counted(self, owner: str, trace: Trace) -> list[Site]:
        sites = sites_of(trace)
        if self.within is None:
            return [Site(owner, name, site, None) for name, site in sites]
        return [
            Site(owner, name, site, dim_in_plate(owner, name, site, self.within))
            for name, site in sites
            if not site["infer"].get("_deterministic")  # has no density
        ]
