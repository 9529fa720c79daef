"""Runs of a Pyro model: on its prior, and at points of the unconstrained space."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import is_validation_enabled
from pyro.poutine.util import site_is_subsample
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from pyro_mixtures.infer.search.enumeration import enumerated
from pyro_mixtures.infer.search.factorizations import NanForSingular
from pyro_mixtures.infer.search.model_handlers import (
    AtPoints,
    Checks,
    FromPrior,
    LogDensityAtPoints,
)
from pyro_mixtures.infer.search.model_sites import ChangingSites, ModelSites, model_sites

LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]

PYRO = threading.RLock()
"""Held while a model runs: all threads share Pyro's stack of handlers and its validation."""

PRIOR_RUNS = 100
"""For one that does not raise and has finite coordinates."""


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Within, random numbers are drawn that come again afterwards."""
    state = get_rng_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            set_rng_state(state)


@contextmanager
def lenient() -> Iterator[None]:
    """Within, a model runs without validation, and with NaN for matrices without a factor."""
    with PYRO, pyro.validation_enabled(False), NanForSingular():
        yield


class ModelRuns:
    """Runs of a model, each for one packed vector ``(D,)`` or for several at once, ``(S, D)``.

    Those for several give them a dimension to the left of all others, which not all models allow.
    Handlers outside see no messages, and Pyro's parameter store stays.

    Args:
        model: a Pyro model.
        args: its arguments.
        kwargs: its keyword arguments.
        subsamples: whether plates may subsample; all runs have the subsamples of the first one.

    Attributes:
        sites: of the model.
        unsampled: names of the sites without a distribution to draw from.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        subsamples: bool = False,
    ) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self._parameters: dict[str, Any] = {}
        prior, trace = self._first_run()
        self.sites: ModelSites = model_sites(trace, prior.drawn, subsamples=subsamples)
        self.unsampled = tuple(prior.unsampled)
        if subsamples:
            for name, site in list(trace.nodes.items()):
                if not site_is_subsample(site):
                    trace.remove_node(name)
            self.model = poutine.replay(model, trace=trace)

    def __getstate__(self) -> dict[str, Any]:
        """With parameters as they are now in Pyro's store, which other processes do not have."""
        store = pyro.get_param_store()
        stored = {name: store[name].detach() for name in self.sites.parameters if name in store}
        return {**vars(self), "_parameters": {**self._parameters, **stored}}

    def _first_run(self) -> tuple[FromPrior, Any]:
        """The handler after a run on the prior, and its trace."""
        try:
            with PYRO:
                return self._traced()
        except (ValueError, RuntimeError) as error:
            first = error
        for _ in range(PRIOR_RUNS):  # the prior may be wider than what the model can evaluate
            with suppress(ValueError, RuntimeError), lenient():
                return self._traced()
        raise first

    def _traced(self) -> tuple[FromPrior, Any]:
        with FromPrior(self._parameters, torch.Size()) as prior:
            trace = poutine.trace(self.model).get_trace(*self.args, **self.kwargs)
        return prior, trace

    def strict_log_density(self, z: Tensor) -> Tensor:
        """Of points ``(S, D)``, ``(S,)``, or of one, ``(D,)``, ``()``; raises what a run does."""
        with PYRO:
            return self._log_density(z, None)

    def log_density(self, z: Tensor) -> Tensor:
        """``strict_log_density``, in which a point that is refused harms no others.

        Outside of a support the log density is ``-inf``, and NaN with invalid parameters, where
        validation is on, and where a matrix has no factor.
        """
        with PYRO:  # which also keeps validation as it is
            try:
                return self.strict_log_density(z)
            except (ValueError, LinAlgError):
                checked = is_validation_enabled()
                with lenient():
                    return self._log_density(z, self._checks(z) if checked else None)

    def mapped_log_density(self, z: Tensor) -> Tensor:
        """``log_density`` of points ``(S, D)`` by ``torch.func.vmap``, which cannot validate."""
        with PYRO:
            checked = is_validation_enabled()

            def of_one(point: Tensor) -> Tensor:
                return self._log_density(point, self._checks(point) if checked else None)

            with lenient():
                result: Tensor = torch.func.vmap(of_one)(z)
                return result

    def _checks(self, z: Tensor) -> Checks:
        return Checks(self.sites.nesting, z.dim() == 2)

    def _log_density(self, z: Tensor, checks: Checks | None) -> Tensor:
        handler = AtPoints if self.sites.discrete else LogDensityAtPoints
        terms = self._at(z, handler, checks or nullcontext()).terms
        total = torch.zeros(z.shape[:-1], dtype=z.dtype, device=self.sites.device)
        for term in terms:
            total = total + term.to(z.dtype)
        return (total if checks is None else checks.applied(total)).to(z.device)

    def values(self, z: Tensor) -> dict[str, Tensor]:
        """The latent sites at points ``(S, D)``, ``(S, *shape)``, or at one, ``(D,)``."""
        with lenient():
            values = self._at(z, AtPoints, nullcontext()).values
        many = z.shape[:-1]
        return {
            name: values[name].reshape(many + site.batch_shape + site.event_shape)
            for name, site in self.sites.latent.items()
        }

    def supports(self, z: Tensor) -> dict[str, Any]:
        """Those of the latent sites at a point ``(D,)``."""
        with lenient():
            return self._at(z, AtPoints, nullcontext()).supports

    def mapped_values(self, z: Tensor) -> dict[str, Tensor]:
        """``values`` at points ``(S, D)`` by ``torch.func.vmap``."""
        result: dict[str, Tensor] = torch.func.vmap(self.values)(z)
        return result

    def _at(
        self, z: Tensor, handler: type[AtPoints], inside: AbstractContextManager[Any]
    ) -> AtPoints:
        """The handler after a run."""
        z = z.to(self.sites.device, self.sites.dtype)
        with handler(self._parameters, self.sites, z) as points, inside:
            if self.sites.discrete:
                count = len(z) if z.dim() == 2 else None
                nesting = self.sites.nesting
                points.terms += enumerated(self.model, self.args, self.kwargs, nesting, count)
            else:
                self.model(*self.args, **self.kwargs)
        self._check_names(points.values)
        return points

    def _check_names(self, found: dict[str, Tensor]) -> None:
        if found.keys() != self.sites.latent.keys():
            raise ChangingSites(
                "Expected the same continuous latent sites in each run of the model, but got"
                f" {', '.join(self.sites.latent)} and then {', '.join(found)}"
            )

    def prior_draws(self, count: int) -> Tensor:
        """Unconstrained draws ``(S, D)`` of the prior, many in one run; may be infinite."""
        ones = (1,) * self.sites.nesting
        sizes = [len(part) for part in torch.empty(count).split(self.sites.batch_size)]
        return torch.cat([self._drawn(torch.Size((size, *ones))) for size in sizes])

    def prior_draw(self) -> Tensor:
        """One draw, ``(D,)``, of finite coordinates, at which the model runs.

        Raises:
            ValueError: where there is none among many.
        """
        cause: Exception | None = None
        for _ in range(PRIOR_RUNS):
            try:
                draw = self._drawn(torch.Size())
            except ChangingSites:
                raise
            except (ValueError, RuntimeError) as error:
                reason, cause = f"{type(error).__name__}: {error}", error
                continue
            finite = draw.isfinite()
            if bool(finite.all()):
                return draw
            names = [
                name
                for name, site in self.sites.latent.items()
                if not bool(finite[site.start : site.stop].all())
            ]
            reason = f"infinite unconstrained values of {', '.join(names)}"
        raise ValueError(
            f"Expected some of {PRIOR_RUNS} draws of the prior to be points at which the model"
            f" runs, but got {reason}"
        ) from cause

    def _drawn(self, shape: torch.Size) -> Tensor:
        # what the model does with a draw may be wrong, which is a draw none the less
        with lenient(), FromPrior(self._parameters, shape) as prior:
            self.model(*self.args, **self.kwargs)
        self._check_names(prior.unconstrained)
        rows = shape[:1]
        parts = [prior.unconstrained[name].reshape(*rows, -1) for name in self.sites.latent]
        packed = torch.cat(
            [part.to(self.sites.device, self.sites.dtype) for part in parts], -1
        )  # (S, D) or (D,)
        if packed.shape[-1] != self.sites.dimension:
            raise ValueError(
                "Expected latent sites of the same shapes in each run of the model, with"
                f" {self.sites.dimension} coordinates, but got {packed.shape[-1]}"
            )
        return packed
