"""The log density of a Pyro model for a batch of packed unconstrained vectors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pyro_mixtures.infer.search.model_batches import WAYS, ModelBatches, with_gradient
from pyro_mixtures.infer.search.model_runs import ModelRuns, random_numbers_kept
from pyro_mixtures.infer.search.model_sites import ChangingSites

POINTS = 4
"""Draws of the prior at which a way is compared with single evaluations."""

TRIES = 100
"""Draws of the prior among which those are found."""


class ModelLogDensity:
    r"""The log density of a Pyro model, for a batch of packed unconstrained vectors.

    .. math:: \log p(x(z), y) + \log |dx / dz|

    with the latent sites ``x`` as images of the vector ``z``, packed and transformed as Pyro's
    ``AutoContinuous`` does it. Discrete sites are summed out by parallel enumeration.

    A batch is evaluated in one run of the model with one more dimension on the left, as in an
    outer ``pyro.plate``, where the model allows it; else by ``torch.func.vmap``; else point by
    point. Values and gradients are compared with single evaluations at some draws of the prior,
    which finds out a model that mixes the points of a batch.

    Args:
        model: a Pyro model.
        args: its arguments.
        kwargs: its keyword arguments.
        way: "plate", "vmap" or "loop"; by default the first of these that is right.

    Attributes:
        dimension: D, the number of unconstrained coordinates.
        dtype: of the model's latent sites, in which it is evaluated.
        device: of the model's latent sites.
        way: in which batches are evaluated.
        refused: why each of the faster ways is not taken, by its name.
        batch_size: how many points at once keep the sites of the model within a memory budget.
        coordinate_names: such as ``"tau"`` and ``"theta[3]"``, one for each coordinate.
        site_slices: where each site's coordinates stand.
        flat_coordinates: names of those on which the log density does not depend at the points
            where the ways are compared: the posterior has no density there.
        unsampled_sites: names of those that have no distribution to draw from, as
            ``ImproperUniform``: ``prior_draws`` takes unconstrained values within +-2 for them.

    Raises:
        ValueError: for a model without continuous latent sites, with discrete ones that cannot be
            enumerated, with a log density that is random or nowhere finite, and for a way that
            the model does not allow.
        NotImplementedError: for plates with subsamples.

    Example:
        >>> import pyro, torch, pyro.distributions as dist, pyro_mixtures as pm
        >>> def model(y):
        ...     scale = pyro.sample("scale", dist.Exponential(1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(0.0, scale), obs=y)
        >>> log_density = pm.ModelLogDensity(model, (torch.tensor([0.3, -1.2]),))
        >>> log_density(torch.zeros(5, 1)).shape, log_density.way
        (torch.Size([5]), 'plate')
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        way: str | None = None,
    ) -> None:
        if way not in (*WAYS, None):
            raise ValueError(f"Expected way to be one of {', '.join(WAYS)} or None, but got {way}")
        with random_numbers_kept():
            self._runs = ModelRuns(model, args, kwargs or {})
        sites = self._runs.sites
        self.dimension, self.dtype, self.device = sites.dimension, sites.dtype, sites.device
        self.batch_size = sites.batch_size
        self.unsampled_sites = self._runs.unsampled
        self.site_slices = {
            name: slice(site.start, site.stop) for name, site in sites.latent.items()
        }
        self.coordinate_names = [
            name for site in sites.latent.values() for name in site.coordinate_names()
        ]
        with random_numbers_kept():
            self._batches = ModelBatches(self._runs, self._points(), way)
        self.way, self.refused = self._batches.way, self._batches.refused
        flat = self._batches.flat.nonzero()[:, 0]
        self.flat_coordinates = [self.coordinate_names[index] for index in flat]
        if self.way == "loop" and way is None:
            warnings.warn(
                "The model runs once for each point, which is slow: in a plate of points"
                f" {self.refused['plate']}; by torch.func.vmap {self.refused['vmap']}. Set way ="
                ' "loop" where that cannot be helped',
                stacklevel=2,
            )

    def _points(self) -> Tensor:
        """Draws of the prior with finite log densities and gradients, ``(POINTS, D)``."""
        found: list[Tensor] = []
        reason, cause = "none", None  # type: tuple[str, Exception | None]
        for _ in range(TRIES):
            point = self._runs.prior_draw()
            try:
                value, gradient = with_gradient(self._runs.log_density, point)
            except ChangingSites:
                raise
            except (ValueError, RuntimeError) as error:
                reason, cause = f"{type(error).__name__}: {error}", error
                continue
            if bool(value.isfinite()) and bool(gradient.isfinite().all()):
                found.append(point)
                if len(found) == POINTS:
                    return torch.stack(found)
            else:
                reason, cause = self._why_not_finite(point, value)
        if not found:
            discrete = ", ".join(self._runs.sites.discrete)
            advice = f" (the discrete sites {discrete} are enumerated)" if discrete else ""
            raise ValueError(
                f"Expected a log density that is finite at some draws of the prior{advice}, but"
                f" got {reason}"
            ) from cause
        few = torch.stack(found)[torch.arange(POINTS) % len(found)]
        return few + 1e-4 * torch.randn_like(few)

    def _why_not_finite(self, point: Tensor, value: Tensor) -> tuple[str, Exception | None]:
        """In words, with the error of validation if there is one."""
        try:
            self._runs.strict_log_density(point)
        except ValueError as error:
            return f"{type(error).__name__}: {error}", error
        told = f"the value {value.item()}"
        return (f"{told} with a gradient that is not" if value.isfinite() else told), None

    def __call__(self, z: Tensor) -> Tensor:
        """Log densities ``(S,)`` of points ``(S, D)``, in their dtype, differentiable."""
        self._check(z)
        return self._batches(z) if len(z) else z.sum(-1)

    def _check(self, z: Tensor) -> None:
        if z.dim() != 2 or z.shape[1] != self.dimension:
            raise ValueError(
                f"Expected points of the shape (S, {self.dimension}), but got {tuple(z.shape)}"
            )

    def prior_draws(self, count: int) -> Tensor:
        """Unconstrained draws of the latent sites from the prior, ``(count, D)``.

        They come from one run of the model where that is the way, else from one for each.
        """
        draws = torch.full((count, self.dimension), torch.nan)
        draws = draws.to(self.device, self.dtype)
        if self.way == "plate" and count:
            with suppress(Exception):  # one by one the model tells what is wrong, if anything
                draws = self._runs.prior_draws(count)
        for row in (~draws.isfinite().all(-1)).nonzero():
            draws[row] = self._runs.prior_draw()
        return draws

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """The latent sites at points ``(S, D)`` in the model's own terms, ``(S, *shape)``."""
        self._check(z)
        if not len(z):
            one = self.constrain(z.new_zeros(1, self.dimension))
            return {name: value[:0] for name, value in one.items()}
        with torch.no_grad():
            if self.way == "plate":
                return self._runs.values(z)
            if self.way == "vmap":
                return self._runs.mapped_values(z)
            each = [self._runs.values(point) for point in z]
        return {name: torch.stack([one[name] for one in each]) for name in each[0]}

    def supports(self, z: Tensor) -> dict[str, Any]:
        """The constraints on the whole values of the latent sites, at one point ``(D,)``."""
        self._check(z.unsqueeze(0))
        return self._runs.supports(z)
