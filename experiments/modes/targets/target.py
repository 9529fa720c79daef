"""What a target is: a density on unconstrained vectors whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions.transforms import StickBreakingTransform
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Evidence:
    """The logarithm of a density's integral.

    Args:
        value: in nats.
        error: its standard error; zero where it is exact to the digits shown.
        how: it was had.
    """

    value: float
    error: float
    how: str


@dataclass(frozen=True)
class Target:
    """A posterior or another density, over unconstrained vectors.

    Args:
        name: in :data:`~experiments.modes.targets.TARGETS`.
        dimension: D.
        log_density: ``(S, D) -> (S,)``, float64, batched and twice differentiable; parameters with
            bounds are transformed as Pyro does, and the Jacobian is part of it.
        prior_draws: ``(count, generator) -> (count, D)``, starts of a search.
        evidence: the log of the density's integral.
        mode_of: ``(S, D) -> (S,)``, the mode in whose region a point lies, or -1.
        mode_weights: the mass of each mode's region, ``(M,)``.
        model: the same as a Pyro model without arguments, which an outer plate can vectorize, with
            sites in the order of the coordinates; None for plain densities.
        plane: two coordinates in which the target can be drawn.
        floors: log densities ``(M,)`` or one for all, above which 999 of 1000 points of a mode
            lie; a point below is near to no mode, whatever region it is in.
    """

    name: str
    dimension: int
    log_density: Callable[[Tensor], Tensor]
    prior_draws: Callable[[int, torch.Generator], Tensor]
    evidence: Evidence
    mode_of: Callable[[Tensor], Tensor]
    mode_weights: Tensor
    model: Callable[[], None] | None = None
    plane: tuple[int, int] | None = None
    floors: Tensor | float = -math.inf

    def found_in(self, z: Tensor, values: Tensor) -> Tensor:
        """The mode to which points belong, -1 below the floors.

        Args:
            z: ``(S, D)``.
            values: their log densities, ``(S,)``.
        """
        modes = self.mode_of(z)
        floors = torch.as_tensor(self.floors, dtype=z.dtype).expand(len(self.mode_weights))
        return torch.where(values >= floors[modes], modes, -1)


def normal_draws(
    locs: Tensor | float, scales: Tensor | float, dimension: int
) -> Callable[[int, torch.Generator], Tensor]:
    """Draws of independent Normals, as ``prior_draws``."""

    def draws(count: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(count, dimension, generator=generator, dtype=torch.float64)
        return locs + scales * noise

    return draws


def one_mode(z: Tensor) -> Tensor:
    """The ``mode_of`` of a target with one mode."""
    return torch.zeros(len(z), dtype=torch.long)


def normal(x: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    """The log density of a Normal with a standard deviation ``scale``."""
    log_scale = torch.as_tensor(scale, dtype=x.dtype).log()
    return -0.5 * ((x - loc) / scale).square() - log_scale - 0.9189385332046727


def uniform_jacobian(z: Tensor) -> Tensor:
    """The log density of ``z`` where ``low + (high - low) sigmoid(z)`` is uniform."""
    return logsigmoid(z) + logsigmoid(-z)


def uniform_draws(count: int, dimension: int, generator: torch.Generator) -> Tensor:
    """Draws of ``z`` for parameters that are uniform, ``(count, dimension)``."""
    return torch.rand(count, dimension, generator=generator, dtype=torch.float64).logit(1e-12)


def simplex(z: Tensor) -> tuple[Tensor, Tensor]:
    """Pyro's coordinates of a simplex: the point ``(S, K)`` and the log Jacobian ``(S,)``."""
    transform = StickBreakingTransform()
    x = transform(z)
    return x, transform.log_abs_det_jacobian(z, x)
