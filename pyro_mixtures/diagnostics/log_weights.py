"""Draws of a guide and their weights as draws of the posterior, at once or in turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from pyro import plate, poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mixtures.numerics.chunks import MEMORY_BUDGET
from pyro_mixtures.numerics.precision import double

Samples = dict[str, Tensor]


class Draws:
    """Where draws come from.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        args: arguments of both.
        kwargs: keyword arguments of both.
        vectorize: as one batch, instead of one after another.
        within: name of a plate whose elements get weights of their own.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        vectorize: bool,
        within: str | None = None,
    ) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self.vectorize, self.within = vectorize, within

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
            found = _latent_sites(*traces)
            if draw and found != names:
                raise ValueError(
                    f"Expected the same latent sites in each run, but got {', '.join(names)} and"
                    f" then {', '.join(found)}"
                )
            names = found
            samples = {name: _value(traces[0], name).unsqueeze(0) for name in names}
            yield self._log_weights(*traces, (1,)), samples, traces[0]
            subsamples = subsamples if subsamples.nodes else _subsamples(*traces)

    def _at_once(
        self, count: int, chunk_size: int | None
    ) -> Iterator[tuple[Tensor, Samples, Trace]]:
        single = self._traces((self.model, self.guide), Trace())  # also sets up a guide
        sites = [site for trace in single for _, site in _sites(trace)]
        dims = [f.dim for site in sites for f in site["cond_indep_stack"] if f.vectorized]
        ones = (1,) * max((-dim for dim in dims), default=0)
        if chunk_size is None:
            chunk_size = max(1, MEMORY_BUDGET // max(1, sum(map(_bytes, sites))))
        subsamples = Trace()
        for start in range(0, count, chunk_size):
            size = min(chunk_size, count - start)
            in_plate = plate("_samples", size, dim=-len(ones) - 1)
            traces = self._traces((in_plate(self.model), in_plate(self.guide)), subsamples)
            samples = {}
            for name in _latent_sites(*traces):
                value, shape = _value(traces[0], name), _value(single[0], name).shape
                _check_vectorized(name, value.numel() == size * shape.numel(), value.shape)
                samples[name] = value.reshape(size, *shape)
            yield self._log_weights(*traces, (size, *ones)), samples, traces[0]
            subsamples = subsamples if subsamples.nodes else _subsamples(*traces)

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
        log_p = [_log_prob(site, batch) for site in self._counted("model", model_trace)]
        log_q = [_log_prob(site, batch) for site in self._counted("guide", guide_trace)]
        return torch.stack(log_p).sum(0) - torch.stack(log_q).sum(0)

    def _counted(self, owner: str, trace: Trace) -> list[_Site]:
        sites = _sites(trace)
        if self.within is None:
            return [_Site(owner, name, site, None) for name, site in sites]
        return [
            _Site(owner, name, site, _dim_in_plate(owner, name, site, self.within))
            for name, site in sites
            if not site["infer"].get("_deterministic")  # has no density
        ]


class _Site(NamedTuple):
    owner: str
    name: str
    site: Any
    dim: int | None
    """Of the plate whose elements have weights of their own."""


def _dim_in_plate(owner: str, name: str, site: Any, within: str) -> int:
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


def _bytes(site: Any) -> int:
    """Of the value and the log density of one draw at a site."""
    value = site["value"]
    return value.numel() * value.element_size() + 8 * site["fn"].batch_shape.numel()


def _subsamples(*traces: Trace) -> Trace:
    found = Trace()
    for trace in traces:
        found.nodes.update(
            {name: site for name, site in trace.nodes.items() if site_is_subsample(site)}
        )
    return found


def _value(trace: Trace, name: str) -> Tensor:
    value: Any = trace.nodes[name]["value"]
    return value


def _counts(site: Any) -> bool:
    return site["type"] == "sample" and not site_is_subsample(site)


def _latent_sites(model_trace: Trace, guide_trace: Trace) -> list[str]:
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
        _check_shape(name, in_model[name])
    return latent


def _check_shape(name: str, site: Any) -> None:
    """Raise a ``ValueError`` for a guide's sample that only broadcasts with the model's site."""
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


def _sites(trace: Trace) -> list[tuple[str, Any]]:
    return [(name, site) for name, site in trace.nodes.items() if _counts(site)]


def _log_prob(counted: _Site, batch: tuple[int, ...]) -> Tensor:
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
        _check_vectorized(name, as_a_batch, log_prob.shape)
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


def _check_vectorized(name: str, fits: bool, shape: torch.Size) -> None:
    if not fits:
        raise ValueError(
            "Expected model and guide to allow vectorize = True, with each batch dimension in a"
            f" plate and one more on the left, but got shape {tuple(shape)} at site {name!r}"
        )
