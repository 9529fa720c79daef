"""Runs of a Pyro model: on its prior, and at points of the unconstrained space."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import is_validation_enabled
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from pyro_mixtures.infer.search.enumeration import enumerated
from pyro_mixtures.infer.search.model_handlers import (
    AtPoints,
    Checks,
    FromPrior,
    LogDensityAtPoints,
)
from pyro_mixtures.infer.search.model_sites import ModelSites, model_sites

PYRO = threading.RLock()
"""Held while a model runs: all threads share Pyro's stack of handlers and its validation."""

FIRST_RUNS = 10
"""On the prior, for one that does not raise."""

PRIOR_RUNS = 100
"""For a draw of finite coordinates."""


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


class ModelRuns:
    """Runs of a model, each for one packed vector ``(D,)`` or for several at once, ``(S, D)``.

    Those for several give them a dimension to the left of all others, which not all models allow.
    Handlers outside see no messages, and Pyro's parameter store stays.

    Args:
        model: a Pyro model.
        args: its arguments.
        kwargs: its keyword arguments.

    Attributes:
        sites: of the model.
        unsampled: names of the sites without a distribution to draw from.
    """

    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self._parameters: dict[str, Any] = {}
        for run in range(FIRST_RUNS):
            try:
                with PYRO, FromPrior(self._parameters, torch.Size()) as prior:
                    trace = poutine.trace(model).get_trace(*args, **kwargs)
                break
            except (ValueError, RuntimeError):
                if run == FIRST_RUNS - 1:
                    raise
        self.sites: ModelSites = model_sites(trace)
        self.unsampled = tuple(prior.unsampled)

    def log_density(self, z: Tensor) -> Tensor:
        """Of points ``(S, D)``, ``(S,)``, or of one, ``(D,)``, ``()``.

        Where validation is on and refuses them, the points are checked one by one: outside of a
        support the log density is ``-inf``, and with invalid parameters NaN.
        """
        with PYRO:
            try:
                return self._log_density(z, None)
            except ValueError:
                if not is_validation_enabled():
                    raise
            with pyro.validation_enabled(False):
                return self._log_density(z, self._checks(z))

    def mapped_log_density(self, z: Tensor) -> Tensor:
        """``log_density`` of points ``(S, D)`` by ``torch.func.vmap``, which cannot validate."""
        with PYRO:
            checked = is_validation_enabled()

            def of_one(point: Tensor) -> Tensor:
                return self._log_density(point, self._checks(point) if checked else None)

            with pyro.validation_enabled(False):
                result: Tensor = torch.func.vmap(of_one)(z)
                return result

    def _checks(self, z: Tensor) -> Checks:
        return Checks(self.sites.nesting, z.dim() == 2)

    def _log_density(self, z: Tensor, checks: Checks | None) -> Tensor:
        with checks or nullcontext():
            terms = self._at(z, scored=True).terms
        total = torch.zeros(z.shape[:-1], dtype=z.dtype, device=z.device)
        for term in terms:
            total = total + term.to(z.device, z.dtype)
        return total if checks is None else checks.applied(total)

    def values(self, z: Tensor) -> dict[str, Tensor]:
        """The latent sites at points ``(S, D)``, ``(S, *shape)``, or at one, ``(D,)``."""
        with PYRO:
            values = self._at(z, scored=False).values
        many = z.shape[:-1]
        return {
            name: values[name].reshape(many + site.batch_shape + site.event_shape)
            for name, site in self.sites.latent.items()
        }

    def mapped_values(self, z: Tensor) -> dict[str, Tensor]:
        """``values`` at points ``(S, D)`` by ``torch.func.vmap``."""
        with PYRO, pyro.validation_enabled(False):
            result: dict[str, Tensor] = torch.func.vmap(self.values)(z)
            return result

    def _at(self, z: Tensor, *, scored: bool) -> AtPoints:
        """The handler after a run."""
        z = z.to(self.sites.device, self.sites.dtype)
        handler = LogDensityAtPoints if scored and not self.sites.discrete else AtPoints
        with handler(self._parameters, self.sites, z) as points:
            if self.sites.discrete:
                count = len(z) if z.dim() == 2 else None
                nesting = self.sites.nesting
                points.terms += enumerated(self.model, self.args, self.kwargs, nesting, count)
            else:
                self.model(*self.args, **self.kwargs)
        return points

    def prior_draws(self, count: int) -> Tensor:
        """Unconstrained draws ``(S, D)`` of the prior, in one run; may be infinite."""
        return self._drawn(torch.Size((count,) + (1,) * self.sites.nesting)).reshape(count, -1)

    def prior_draw(self) -> Tensor:
        """One draw, ``(D,)``, of finite coordinates.

        Raises:
            ValueError: where all of many draws have infinite ones.
        """
        for _ in range(PRIOR_RUNS):
            draw = self._drawn(torch.Size())
            finite = draw.isfinite()
            if bool(finite.all()):
                return draw
        names = [
            name
            for name, site in self.sites.latent.items()
            if not bool(finite[site.start : site.stop].all())
        ]
        raise ValueError(
            "Expected draws of the prior with finite unconstrained values, but got infinite ones"
            f" in each of {PRIOR_RUNS} runs for {', '.join(names)}"
        )

    def _drawn(self, shape: torch.Size) -> Tensor:
        with PYRO, FromPrior(self._parameters, shape) as prior:
            self.model(*self.args, **self.kwargs)
        rows = shape[:1]
        parts = [prior.unconstrained[name].reshape(*rows, -1) for name in self.sites.latent]
        packed = torch.cat([part.to(self.sites.dtype) for part in parts], -1)  # (S, D) or (D,)
        if packed.shape[-1] != self.sites.dimension:
            raise ValueError(
                "Expected latent sites of the same shapes in each run of the model, with"
                f" {self.sites.dimension} coordinates, but got {packed.shape[-1]}"
            )
        return packed
