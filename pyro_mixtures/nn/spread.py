"""Where components start that know nothing of the data: apart from each other."""

from __future__ import annotations

import torch
from torch import Tensor

START_SCALE = 0.5
"""Of the components at first, where their means are between -1 and 1."""


def evenly(count: int) -> Tensor:
    """Numbers from -1 to 1; zero if there is one."""
    return torch.linspace(-1, 1, count) if count > 1 else torch.zeros(1)


def spread_locs(count: int, size: int) -> Tensor:
    """Means that lie evenly in each coordinate, in random order, ``(count, size)``."""
    line = evenly(count)
    orders = [torch.arange(count), *(torch.randperm(count) for _ in range(1, size))]
    return torch.stack([line[order] for order in orders], -1)  # (K, D)
