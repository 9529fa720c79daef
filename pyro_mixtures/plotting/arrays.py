"""What users hand to the figures, as numpy arrays."""

from __future__ import annotations

import numpy
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array = NDArray[numpy.float64]


def as_array(values: ArrayLike | Tensor) -> Array:
    """Numbers in float64; tensors may have a gradient and lie on any device."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return numpy.asarray(values, dtype=numpy.float64)


def resampled(points: Array, weights: ArrayLike | Tensor | None) -> Array:
    """Points ``(N, d)`` that are drawn by weights ``(N,)``: as many, always the same, in order.

    Each is drawn its share of N times, rounded up or down.
    """
    if weights is None:
        return points
    shares = as_array(weights)
    if shares.shape != points.shape[:1]:
        raise ValueError(
            f"Expected weights of shape ({len(points)},), one of each draw, but got {shares.shape}"
        )
    if not (numpy.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
        raise ValueError(
            "Expected weights that are finite and not negative, of a sum above zero, but got"
            f" values from {shares.min()} to {shares.max()}"
        )
    ends = numpy.cumsum(shares / shares.sum())
    places = (numpy.arange(len(points)) + 0.5) / len(points) * ends[-1]
    return points[numpy.searchsorted(ends, places)]
