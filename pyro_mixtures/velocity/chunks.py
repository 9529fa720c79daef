"""Work in slices when an intermediate array would exceed a memory budget."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MEMORY_BUDGET = 64 * 2**20
"""Bytes that one intermediate array may take."""


def map_chunks(
    function: Callable[..., Tensor], tensors: tuple[Tensor, ...], row_elements: int
) -> Tensor:
    """Apply a row-wise function to slices of tensors, cut along dimension -2.

    Args:
        function: maps tensors with R rows to one with R rows.
        tensors: of equal size along dimension -2.
        row_elements: elements of the largest intermediate array for each row.

    Returns:
        ``function(*tensors)``, computed so that the intermediate array stays within
        ``MEMORY_BUDGET``.
    """
    rows = max(1, MEMORY_BUDGET // max(1, row_elements * tensors[0].element_size()))
    if rows >= tensors[0].shape[-2]:
        return function(*tensors)
    slices = zip(*(tensor.split(rows, -2) for tensor in tensors), strict=True)
    return torch.cat([function(*parts) for parts in slices], -2)
