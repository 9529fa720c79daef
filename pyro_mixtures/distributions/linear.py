"""Checks of what marginals, conditionals and linear images are asked for."""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import Size, Tensor

from pyro_mixtures.numerics.precision import at_least_single
from pyro_mixtures.numerics.validation import broadcast_shapes


def checked_dims(dims: int | Iterable[int], size: int) -> list[int]:
    """Coordinates as numbers between 0 and ``size``, in the order given.

    Raises:
        ValueError: for none, for one twice, and for what is no coordinate.
    """
    try:
        indices = [operator.index(dim) for dim in (dims if isinstance(dims, Iterable) else [dims])]
    except TypeError:
        raise ValueError(f"Expected dims to be integers, but got {dims!r}") from None
    if not indices or not all(-size <= index < size for index in indices):
        raise ValueError(f"Expected dims to be some of the {size} coordinates, but got {dims!r}")
    indices = [index % size for index in indices]
    if len(set(indices)) < len(indices):
        raise ValueError(f"Expected dims to name each coordinate once, but got {dims!r}")
    return indices


def check_vectors(name: str, value: Tensor, size: int, batch_shape: Size) -> None:
    """Raise a ``ValueError`` for what is no tensor of shape ``(*X, size)``, X as the batch."""
    expected = (
        f"Expected {name} of shape (*X, {size}) where X broadcasts with {tuple(batch_shape)}"
    )
    if not isinstance(value, Tensor):
        raise ValueError(f"{expected}, but got {type(value).__name__}")
    try:
        fits = value.shape[-1:] == (size,) and broadcast_shapes(value.shape[:-1], batch_shape)
    except RuntimeError:
        fits = False
    if fits is False:
        raise ValueError(f"{expected}, but got shape {tuple(value.shape)}")


def check_matrix(matrix: Tensor, size: int) -> None:
    """Raise a ``ValueError`` for a shape other than ``(size,)`` and ``(<= size, size)``."""
    if not isinstance(matrix, Tensor):
        raise ValueError(f"Expected matrix to be a tensor, but got {type(matrix).__name__}")
    wide = matrix.dim() == 1 or (matrix.dim() == 2 and 1 <= matrix.shape[0] <= size)
    if not wide or matrix.shape[-1] != size:
        raise ValueError(
            f"Expected matrix of shape ({size},), or (D', {size}) with 1 <= D' <= {size}, but got"
            f" {tuple(matrix.shape)}"
        )


def check_rank(matrix: Tensor) -> None:
    """Raise a ``ValueError`` for scales of zero and matrices that lack full rank."""
    if matrix.dim() == 1:
        if not bool((matrix != 0).all()):
            raise ValueError(f"Expected a matrix of shape (D,) without zeros, but got {matrix}")
    elif int(torch.linalg.matrix_rank(*at_least_single(matrix.detach()))) < matrix.shape[0]:
        raise ValueError(f"Expected a matrix of full rank, but got {matrix}")
