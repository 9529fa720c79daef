"""The log density of a Pyro model for a batch of packed unconstrained vectors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from pyro_mixtures.infer.search.enumeration import enumerated
from pyro_mixtures.infer.search.model_handlers import (
    PYRO,
    AtPoints,
    FromPrior,
    LogDensityAtPoints,
    total,
)
from pyro_mixtures.infer.search.model_sites import model_sites

WAYS = ("plate", "vmap", "loop")
"""To evaluate a batch, from the fastest to the slowest."""

POINTS = 4
"""Draws of the prior at which a way is compared with single evaluations."""

TRIES = 100
"""Draws of the prior among which those are found, and for each draw with finite coordinates."""

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-7}
"""Relative difference of two ways to evaluate one density."""


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
        coordinate_names: such as ``"tau"`` and ``"theta[3]"``, one for each coordinate.
        site_slices: where each site's coordinates stand.
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
        self.model, self.args, self.kwargs = model, args, kwargs or {}
        self._parameters: dict[str, Any] = {}
        state = get_rng_state()
        try:
            self._find_sites()
            self._find_way(way)
        finally:
            set_rng_state(state)

    def _find_sites(self) -> None:
        with PYRO, FromPrior(self._parameters) as prior:
            sites = model_sites(poutine.trace(self.model).get_trace(*self.args, **self.kwargs))
        self._sites, self._by_name = sites, {site.name: site for site in sites.latent}
        self.unsampled_sites = tuple(prior.unsampled)
        self.dimension, self.dtype, self.device = sites.dimension, sites.dtype, sites.device
        self.site_slices = {site.name: slice(site.start, site.stop) for site in sites.latent}
        self.coordinate_names = [name for site in sites.latent for name in site.coordinate_names()]

    def _find_way(self, asked: str | None) -> None:
        points = self._points()
        single = [_with_gradient(self._one, point) for point in points]
        again, _ = _with_gradient(self._one, points[0])
        if not self._equal(again, single[0][0]):
            raise ValueError(
                "Expected a log density that is the same in each run of the model, but got"
                f" {single[0][0].item()} and {again.item()} at one point: draw random numbers by"
                " pyro.sample only, and switch dropout off"
            )
        self.refused: dict[str, str] = {}
        for way in WAYS if asked is None else (asked,):
            self.way = way
            reason = self._difference(points, single)
            if reason is None:
                break
            self.refused[way] = reason
        if self.way in self.refused:
            raise ValueError(
                f"Expected a model that can be evaluated with way = {self.way!r}, but got one for"
                f" which {self.refused[self.way]}"
            )
        if self.way == "loop" and asked is None:
            warnings.warn(
                "The model runs once for each point, which is slow: in an outer plate"
                f" {self.refused['plate']}; by torch.func.vmap {self.refused['vmap']}. State"
                ' way="loop" to hide this warning',
                stacklevel=3,
            )

    def _points(self) -> Tensor:
        """Points with finite log densities and gradients, ``(POINTS, D)``."""
        found: list[Tensor] = []
        reason = ""
        for _ in range(TRIES):
            point = self._prior_draw()
            try:
                value, gradient = _with_gradient(self._one, point)
            except (ValueError, RuntimeError) as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            if bool(value.isfinite()) and bool(gradient.isfinite().all()):
                found.append(point)
                if len(found) == POINTS:
                    return torch.stack(found)
            else:
                reason = f"the log density {value.item()}"
        if not found:
            raise ValueError(
                f"Expected a model with a finite log density at some draws of its prior, but got"
                f" {reason}"
            )
        few = torch.stack(found)[torch.arange(POINTS) % len(found)]
        return few + 1e-4 * torch.randn_like(few)

    def _difference(self, points: Tensor, single: list[tuple[Tensor, Tensor]]) -> str | None:
        """Why the way is wrong, or None if values and gradients are those of single points.

        Two sizes, since one may be by chance that of another dimension of the model.
        """
        for size in (len(points) - 1, len(points)):
            try:
                values, gradients = _with_gradient(self, points[:size])
            except Exception as error:
                return f"it raises {type(error).__name__}: {error}"
            if values.shape != (size,):
                return f"{size} points have log densities of the shape {tuple(values.shape)}"
            for row, (value, gradient) in enumerate(single[:size]):
                if not self._equal(values[row], value):
                    return (
                        f"a point among {size} has the log density {values[row].item()}, and"
                        f" alone {value.item()}"
                    )
                if not self._equal(gradients[row], gradient):
                    return f"a point among {size} has another gradient than alone"
        return None

    def _equal(self, first: Tensor, second: Tensor) -> bool:
        tolerance = TOLERANCE[self.dtype]
        scale = 1 + second.abs().max()
        return bool(((first - second).abs() <= tolerance * scale).all())

    def __call__(self, z: Tensor) -> Tensor:
        """Log densities ``(S,)`` of points ``(S, D)``, in their dtype, differentiable."""
        self._check(z)
        with PYRO:
            if self.way == "plate":
                return self._run(z)
            if self.way == "vmap":
                with pyro.validation_enabled(False):
                    return torch.func.vmap(self._run)(z)
            return torch.stack([self._run(point) for point in z])

    def _check(self, z: Tensor) -> None:
        if z.dim() != 2 or z.shape[1] != self.dimension:
            raise ValueError(
                f"Expected points of the shape (S, {self.dimension}), but got {tuple(z.shape)}"
            )

    def _one(self, point: Tensor) -> Tensor:
        with PYRO:
            return self._run(point)

    def _run(self, z: Tensor) -> Tensor:
        """Of points ``(S, D)`` in one run, ``(S,)``, or of one, ``(D,)``, ``()``."""
        inside = z.to(device=self.device, dtype=self.dtype)
        nesting = self._sites.nesting
        if self._sites.discrete:
            with AtPoints(self._parameters, self._by_name, inside, nesting) as handler:
                count = len(z) if z.dim() == 2 else None
                terms = enumerated(self.model, self.args, self.kwargs, nesting, count)
            terms = handler.terms + terms
        else:
            with LogDensityAtPoints(self._parameters, self._by_name, inside, nesting) as handler:
                self.model(*self.args, **self.kwargs)
            terms = handler.terms
        result = total(terms, z.dtype).to(z.device)
        return result.expand(z.shape[:-1])

    def prior_draws(self, count: int) -> Tensor:
        """Unconstrained draws of the latent sites from the prior, ``(count, D)``."""
        draws = None
        if self.way == "plate":
            try:
                draws = self._prior_draws_at_once(count)
            except (ValueError, RuntimeError):
                pass
        if draws is None:
            return torch.stack([self._prior_draw() for _ in range(count)])
        finite = draws.isfinite().all(-1)
        if not bool(finite.all()):
            again = [self._prior_draw() for _ in range(int((~finite).sum()))]
            draws[~finite] = torch.stack(again)
        return draws

    def _prior_draws_at_once(self, count: int) -> Tensor:
        shape = torch.Size((count,) + (1,) * self._sites.nesting)
        with PYRO, FromPrior(self._parameters, shape) as prior:
            self.model(*self.args, **self.kwargs)
        return self._packed(prior, count)  # (S, D)

    def _prior_draw(self) -> Tensor:
        """One draw, ``(D,)``, of finite coordinates."""
        for _ in range(TRIES):
            with PYRO, FromPrior(self._parameters) as prior:
                self.model(*self.args, **self.kwargs)
            draw = self._packed(prior, 1)[0]
            if bool(draw.isfinite().all()):
                return draw
        names = [
            name
            for name, finite in zip(self.coordinate_names, draw.isfinite().tolist(), strict=True)
            if not finite
        ]
        raise ValueError(
            "Expected draws of the prior within the supports of the sites, but got infinite"
            f" unconstrained values of {', '.join(names)}"
        )

    def _packed(self, prior: FromPrior, count: int) -> Tensor:
        parts = [prior.unconstrained[site.name].reshape(count, -1) for site in self._sites.latent]
        packed = torch.cat([part.to(self.dtype) for part in parts], -1)  # (S, D)
        if packed.shape[1] != self.dimension:
            raise ValueError(
                f"Expected latent sites of the same shapes in each run, with {self.dimension}"
                f" coordinates, but got {packed.shape[1]}"
            )
        return packed

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """The latent sites at points ``(S, D)`` in the model's own terms, ``(S, *shape)``."""
        self._check(z)
        with torch.no_grad(), PYRO:
            if self.way == "plate":
                values = self._values(z)
            elif self.way == "vmap":
                with pyro.validation_enabled(False):
                    values = torch.func.vmap(self._values)(z)
            else:
                each = [self._values(point) for point in z]
                values = {name: torch.stack([one[name] for one in each]) for name in each[0]}
        return {
            site.name: values[site.name].reshape(len(z), *site.batch_shape, *site.event_shape)
            for site in self._sites.latent
        }

    def _values(self, z: Tensor) -> dict[str, Tensor]:
        inside = z.to(device=self.device, dtype=self.dtype)
        nesting = self._sites.nesting
        with AtPoints(self._parameters, self._by_name, inside, nesting) as handler:
            self.model(*self.args, **self.kwargs)
        return handler.values


def _with_gradient(log_density: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        values = log_density(z)
        if not values.requires_grad:
            return values, torch.zeros_like(z)
        (gradient,) = torch.autograd.grad(values.sum(), z)
    return values.detach(), gradient
