"""The precision of the arithmetic: as low as the digits of the result allow."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_TERM = {torch.float32: 1.7e3, torch.float64: 1e9}
"""Expanded squares lose about their largest term times the rounding unit: with these sizes 1e-4
of a log density in float32 and 1e-7 in float64."""

LONGEST_SUM = 1000
"""Terms of the order of one that float32 may sum: more, and the sum itself has lost digits."""


def at_least_single(*tensors: Tensor) -> list[Tensor]:
    """Tensors in their common dtype, or in float32 if that is narrower."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def double_dtype(tensor: Tensor) -> torch.dtype:
    """float64, or float32 on a device that has no more."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def double(*tensors: Tensor) -> list[Tensor]:
    """Tensors in :func:`double_dtype`."""
    return [tensor.to(double_dtype(tensor)) for tensor in tensors]


def keeps_digits(terms: Tensor, log_weights: Tensor) -> bool:
    """Whether sums with terms of these sizes are exact enough in their dtype.

    Args:
        terms: ``(*B, S, K)``.
        log_weights: ``(*B, K)``; components without weight are of no account.

    ``torch.func.vmap`` does not let us look at values: there float64 has to do.
    """
    if terms.numel() == 0:
        return True
    alive = (log_weights.detach() > -torch.inf).unsqueeze(-2)
    try:
        return float((terms * alive).amax()) < LARGEST_TERM[terms.dtype]
    except RuntimeError:
        return terms.dtype == torch.float64
