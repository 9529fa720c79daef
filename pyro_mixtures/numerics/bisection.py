"""Where a monotone condition begins to hold, to the last digit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
"""Those with as many bits."""


@torch.no_grad()
def smallest(holds: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """The smallest floating point numbers for which a condition holds.

    Bisection of the numbers' places in the order of all floating point numbers needs no scale:
    as many steps as these have bits find any of them.

    Args:
        holds: of numbers between ``low`` and ``high``, elementwise; once it holds it holds for all
            larger ones. The ends themselves are not asked about.
        low: where it does not hold.
        high: where it holds, of the same shape and dtype.

    Example:
        >>> smallest(lambda x: x.square() >= 2, torch.tensor(0.0), torch.tensor(torch.inf))
        tensor(1.4142)
    """
    kind = INTEGERS[low.dtype]
    below, above = (_reflected(x.contiguous().view(kind)) for x in (low, high))
    for _ in range(torch.iinfo(kind).bits):
        middle = (below & above) + ((below ^ above) >> 1)  # a sum may overflow
        found = holds(_reflected(middle).view(low.dtype)) & (middle != below)
        below, above = torch.where(found, below, middle), torch.where(found, middle, above)
    return _reflected(above).view(low.dtype)


def _reflected(bits: Tensor) -> Tensor:
    """Bits of numbers as integers of the same order, and back."""
    info = torch.iinfo(bits.dtype)
    return bits ^ ((bits >> (info.bits - 1)) & info.max)
