"""Toy densities in the plane, in units of their standard deviations."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy
import torch
from sklearn.datasets import make_circles, make_moons, make_swiss_roll
from torch import Tensor

GRID = 3
"""Normals in each row of the grid."""
RING = 8
"""Normals of the ring."""


def grid(count: int, seed: int) -> numpy.ndarray:
    """Nine Normals in a square."""
    rng = numpy.random.default_rng(seed)
    return rng.integers(0, GRID, (count, 2)) + 0.1 * rng.standard_normal((count, 2))


def ring(count: int, seed: int) -> numpy.ndarray:
    """Eight Normals in a circle."""
    rng = numpy.random.default_rng(seed)
    angle = 2 * math.pi * rng.integers(0, RING, count) / RING
    centre = numpy.stack([numpy.cos(angle), numpy.sin(angle)], -1)
    return centre + 0.1 * rng.standard_normal((count, 2))


def two_moons(count: int, seed: int) -> numpy.ndarray:
    """Two half circles, each around an end of the other."""
    return make_moons(count, noise=0.07, random_state=seed)[0]


def two_circles(count: int, seed: int) -> numpy.ndarray:
    """A circle in a circle."""
    return make_circles(count, noise=0.05, factor=0.5, random_state=seed)[0]


def spiral(count: int, seed: int) -> numpy.ndarray:
    """One arm: a Swiss roll from its side."""
    return make_swiss_roll(count, noise=0.4, random_state=seed)[0][:, [0, 2]]


def many_moons(count: int, seed: int) -> numpy.ndarray:
    """Two by two pairs of moons."""
    rng = numpy.random.default_rng(seed)
    moons = make_moons(count, noise=0.07, random_state=seed)[0]
    return moons + numpy.array([3.5, 2.5]) * rng.integers(0, 2, (count, 2))


DENSITIES: dict[str, Callable[[int, int], numpy.ndarray]] = {
    "grid": grid,
    "ring": ring,
    "two moons": two_moons,
    "two circles": two_circles,
    "spiral": spiral,
    "many moons": many_moons,
}
"""By name, functions of a count and a seed."""


def data(name: str, count: int) -> tuple[Tensor, Tensor]:
    """Points to train with and as many to test, ``(count, 2)`` both."""
    train, test = (DENSITIES[name](count, seed) for seed in (0, 1))
    loc, scale = train.mean(0), train.std(0)
    first, second = (torch.tensor((each - loc) / scale).float() for each in (train, test))
    return first, second
