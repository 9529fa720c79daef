"""Factorizations of a batch of matrices, of which one without a factor harms no others."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

SILENT = {
    torch.linalg.cholesky: torch.linalg.cholesky_ex,
    torch.linalg.inv: torch.linalg.inv_ex,
    torch.linalg.solve: torch.linalg.solve_ex,
    torch.inverse: torch.linalg.inv_ex,
    torch.Tensor.inverse: torch.linalg.inv_ex,
}
"""Functions that raise for a batch, and those that tell for which matrices they would."""


class NanForSingular(TorchFunctionMode):
    """Within, functions of matrices return NaN for those for which they would raise.

    Example:
        >>> with NanForSingular():
        ...     torch.linalg.cholesky(torch.tensor([[[4.0]], [[-1.0]]])).flatten()
        tensor([2., nan])
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called by torch instead of its functions."""
        silent = SILENT.get(func)
        if silent is None:
            return func(*args, **(kwargs or {}))
        result, info = silent(*args, **(kwargs or {}))
        failed = info != 0
        failed = failed[(...,) + (None,) * (result.dim() - failed.dim())]
        return torch.where(failed, torch.nan, result)
