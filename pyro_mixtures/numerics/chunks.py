"""Work in slices when an intermediate array would exceed a memory budget."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MEMORY_BUDGET = 64 * 2**20
"""Bytes that one intermediate array may take."""

CACHED = 2**21
"""Bytes of an intermediate array that stays in the processor's cache: to work in such slices is
several times as fast where arithmetic is cheap."""


def chunks(
    tensors: tuple[Tensor, ...], row_elements: int, budget: float = math.inf
) -> Iterator[tuple[Tensor, ...]]:
    """Slices of tensors along dimension -2.

    Args:
        tensors: of equal size along dimension -2.
        row_elements: elements of the largest intermediate array for each row.
        budget: bytes of that array, where less than ``MEMORY_BUDGET`` serves better.

    Yields:
        Slices of all tensors, so long that the intermediate array stays within both budgets.
    """
    rows = max(1, min(budget, MEMORY_BUDGET) // max(1, row_elements * tensors[0].element_size()))
    if rows >= tensors[0].shape[-2]:
        yield tensors
    else:
        yield from zip(*(tensor.split(rows, -2) for tensor in tensors), strict=True)


def map_chunks(
    function: Callable[..., Any],
    tensors: tuple[Tensor, ...],
    row_elements: int,
    budget: float = math.inf,
) -> Any:
    """Apply a row-wise function to slices of tensors, cut along dimension -2.

    Arguments are those of :func:`chunks`; ``function`` maps tensors with R rows to one with R, or
    to a tuple of such.
    Intermediate arrays of several slices are not kept for the backward pass but computed anew.
    """
    slices = list(chunks(tensors, row_elements, budget))
    if len(slices) == 1:
        return function(*tensors)
    if torch.is_grad_enabled():
        function = functools.partial(
            checkpoint, function, use_reentrant=False, preserve_rng_state=False
        )
    results = [function(*parts) for parts in slices]
    if isinstance(results[0], tuple):
        return tuple(torch.cat(parts, -2) for parts in zip(*results, strict=True))
    return torch.cat(results, -2)
