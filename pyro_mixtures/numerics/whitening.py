"""Whitening by a factor: standard deviations ``(*B, D)`` or a Cholesky factor ``(*B, D, D)``."""

from __future__ import annotations

import torch
from torch import Tensor


def _is_diagonal(vectors: Tensor, factor: Tensor) -> bool:
    return factor.dim() < vectors.dim()


def whiten(vectors: Tensor, factor: Tensor) -> Tensor:
    """Differences of places in units of the factor, ``(*B, M, D) -> (*B, M, D)``."""
    if _is_diagonal(vectors, factor):
        return vectors / factor.unsqueeze(-2)
    return torch.linalg.solve_triangular(factor, vectors.mT, upper=False).mT


def whitened_gradient(grad: Tensor, factor: Tensor) -> Tensor:
    """The gradient at the whitened places, ``(*B, M, D) -> (*B, M, D)``."""
    if _is_diagonal(grad, factor):
        return grad * factor.unsqueeze(-2)
    return grad @ factor


def log_volume(factor: Tensor, dim: int) -> Tensor:
    """Logarithm of the determinant of a factor, ``(*B, 1, 1)``; ``dim`` is that of its vectors."""
    if factor.dim() < dim:
        return factor.log().sum(-1)[..., None, None]
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)[..., None, None]
