"""A mixture's distribution of one or two coordinates: what there is to draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_mixtures.components import Normals
from pyro_mixtures.distributions.linear import checked_dims
from pyro_mixtures.distributions.mixture_distribution import MixtureDistribution
from pyro_mixtures.plotting.arrays import Array, as_array, resampled

SAMPLES = 4000
"""To find levels and limits by."""

ROWS = 1000
"""Points at once, of which the densities by component stay in the processor's cache."""


class Marginal:
    """One or two coordinates of a mixture without batch, in numpy's terms.

    Args:
        mixture: any of this package.
        dims: one or two coordinates; by default the first two, or the only one.
        names: of all coordinates.

    Raises:
        ValueError: for a mixture with a batch or of matrices, coordinates that do not fit, or
            another number of names.
        NotImplementedError: for a marginal of components that are not Normal.
    """

    def __init__(
        self,
        mixture: MixtureDistribution,
        dims: int | Sequence[int] | None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.size = _number_of_coordinates(mixture)
        self.dims = checked_dims(range(min(self.size, 2)) if dims is None else dims, self.size)
        if len(self.dims) > 2:
            raise ValueError(f"Expected dims to name one or two coordinates, but got {dims!r}")
        if names is not None and len(names) != self.size:
            raise ValueError(
                f"Expected names of all {self.size} coordinates, but got {len(names)}"
            )
        self.labels = [f"coordinate {dim}" if names is None else names[dim] for dim in self.dims]
        self._law: Any = mixture
        self._order = self.dims
        if isinstance(mixture.components, Normals) and mixture.event_shape:
            self._law, self._order = mixture.marginal(self.dims), list(range(len(self.dims)))
        elif len(self.dims) < self.size:
            raise NotImplementedError(
                f"Expected dims to name all {self.size} coordinates, for marginals are known of"
                f" Normal components only, but got {dims!r} of a {type(mixture).__name__}"
            )

    def column(self, reference: ArrayLike, weights: ArrayLike | None = None) -> Array:
        """These coordinates of a sample of all, drawn by its weights, ``(N, d)``."""
        points = as_array(reference)
        if points.ndim == 1 and self.size == 1:
            points = points[:, None]
        if points.ndim != 2 or points.shape[1] != self.size or len(points) == 0:
            raise ValueError(
                f"Expected reference of shape (N, {self.size}), but got {points.shape}"
            )
        if not numpy.isfinite(points).all():
            raise ValueError("Expected reference to be finite, but got NaN or infinity")
        return resampled(points[:, self.dims], weights)

    @property
    def weights(self) -> Array:
        """``(K,)``."""
        return self._law.log_weights.detach().exp().cpu().double().numpy()

    @torch.no_grad()
    def component_log_prob(self, points: Array) -> Array:
        """Log densities, ``(N, d) -> (N, K)``, ``-inf`` where they are not finite."""
        z = self._event(torch.as_tensor(points).to(self._law.device))
        inside = self._law.support.check(z)
        some = z[inside]
        result = z.new_full((len(z), self._law.num_components), -torch.inf)
        if len(some):
            result[inside] = self._law.component_log_prob(some).to(result)
        return torch.where(result < torch.inf, result, -torch.inf).cpu().numpy()

    @torch.no_grad()
    def own_log_prob(self, points: Array) -> Array:
        """Log density of each component at points of its own.

        ``(N, K, d) -> (N, K)``, ``-inf`` where it is not finite. Of all K components at all of
        these points there would be K times as many.
        """
        z = self._event(torch.as_tensor(points).to(self._law.device))
        inside = self._law.support.check(z)  # (N, K)
        some = self._event(torch.as_tensor(self.draws[0]).to(z))
        z = torch.where(inside[(..., *(None for _ in self._law.event_shape))], z, some)
        z = z if self._law.event_shape else z.unsqueeze(-1)
        result = self._law.components.log_prob_of_own(z).masked_fill(~inside, -torch.inf)
        return torch.where(result < torch.inf, result, -torch.inf).cpu().double().numpy()

    def log_prob(self, points: Array) -> Array:
        """Log density, ``(N, d) -> (N,)``."""
        log_weights = torch.as_tensor(self.weights).log()
        heights = [
            (torch.as_tensor(self.component_log_prob(part)) + log_weights).logsumexp(-1)
            for part in numpy.array_split(points, -(-len(points) // ROWS) or 1)
        ]
        return torch.cat(heights).double().numpy()

    @cached_property
    @torch.no_grad()
    def draws(self) -> Array:
        """Always the same ones, ``(S, d)``, without those rounded to an end of the support."""
        with _own_random_numbers(self._law.device):
            points = self._points(self._law.sample((SAMPLES,)))
        return points[numpy.isfinite(self.log_prob(points))]

    @cached_property
    @torch.no_grad()
    def component_draws(self) -> Array:
        """Of each component, ``(S, K, d)``."""
        with _own_random_numbers(self._law.device):
            z = self._law.components.sample(SAMPLES)  # (S, K, D)
            return self._points(z if self._law.event_shape else z.squeeze(-1))

    def _points(self, z: Tensor) -> Array:
        z = z if self._law.event_shape else z.unsqueeze(-1)
        return z[..., self._order].cpu().double().numpy()

    def _event(self, points: Tensor) -> Tensor:
        if not self._law.event_shape:
            return points.squeeze(-1)
        return points[..., self._order]  # an exchange of two is its own inverse


@contextmanager
def _own_random_numbers(device: torch.device) -> Iterator[None]:
    """The same numbers for each figure, and all of the caller's generators as they were."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would set every device's
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        yield


def _number_of_coordinates(mixture: Any) -> int:
    if not isinstance(mixture, MixtureDistribution):
        raise ValueError(
            "Expected mixture to be one of pyro_mixtures.distributions, but got"
            f" {type(mixture).__name__}"
        )
    if mixture.batch_shape:
        raise ValueError(
            f"Expected mixture without batch, but got batch shape {tuple(mixture.batch_shape)}"
        )
    if len(mixture.event_shape) > 1:
        raise ValueError(
            f"Expected mixture of numbers or vectors, but got event shape"
            f" {tuple(mixture.event_shape)}"
        )
    return mixture.event_shape.numel()
