r"""Logarithms of numbers next to 0 and next to 1, with all their digits.

A number x in (0, 1) stands for its logarithm's, :math:`\log(-\log x)`: what underflows, or rounds
to one, is an ordinary number there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_complement(loglog: Tensor) -> Tensor:
    r""":math:`\log(1 - x)` of :math:`\log(-\log x)`."""
    size = loglog.exp()  # -log x
    tiny = torch.finfo(size.dtype).tiny
    near = size.clamp(tiny, 1)
    return torch.where(
        loglog < 0,
        loglog + (-(-near).expm1() / near).log(),
        (-(-size.clamp_min(0.5)).exp()).log1p(),
    )


def loglog_complement(size: Tensor) -> Tensor:
    r""":math:`\log(-\log(1 - x))` of :math:`-\log x`."""
    tiny = torch.finfo(size.dtype).tiny
    x = (-size).exp().clamp(tiny, 0.75)
    return torch.where(
        size > math.log(2),
        (-(-x).log1p() / x).log() - size,
        (-(-(-size.clamp(tiny, 1)).expm1()).log()).log(),
    )


def loglog_sigmoid(logits: Tensor) -> Tensor:
    r""":math:`\log(-\log x)` of :math:`\log x - \log(1 - x)`."""
    tiny = torch.finfo(logits.dtype).tiny
    odds = (-logits.clamp_min(-1)).exp().clamp_min(tiny)  # of 1 - x
    return torch.where(
        logits > 0,
        (odds.log1p() / odds).log() - logits,
        (logits.clamp_max(1).exp().log1p() - logits.clamp_max(1)).log(),
    )
