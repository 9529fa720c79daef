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
