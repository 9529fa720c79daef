"""Kumaraswamy distributions in logarithms: draws, densities, expectations, divergences."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions.utils import euler_constant

from pyro_mixtures.numerics.log_complements import (
    log_complement,
    loglog_complement,
    loglog_sigmoid,
)

RULES = {torch.float32: (1 / 3, -17.0, 3.2), torch.float64: (1 / 5, -31.0, 3.8)}
"""Steps and ends of the trapezoidal rule: its errors are below 5e-7 and 1e-12."""

ENDS = (1e-15, 600.0)
"""Beyond these a stick is 0, or so near to 1 that (1 - v) / (1 - v^a) is 1 / a."""


def kumaraswamy_logits(exponential: Tensor, a: Tensor, b: Tensor) -> Tensor:
    r"""The logit of :math:`v = (1 - u^{1/b})^{1/a}` of :math:`-\log u`, a standard Exponential."""
    loglog = loglog_complement(exponential / b) - a.log()
    return -loglog.exp() - log_complement(loglog)


def kumaraswamy_log_density(logits: Tensor, a: Tensor, b: Tensor) -> Tensor:
    r"""That of :math:`v`, :math:`a b v^{a-1} (1 - v^a)^{b-1}`, by the logit of v."""
    loglog = loglog_sigmoid(logits)
    log_power = log_complement(loglog + a.log())  # of 1 - v^a
    return a.log() + b.log() - (a - 1) * loglog.exp() + (b - 1) * log_power


def kumaraswamy_moment(order: int, a: Tensor, b: Tensor) -> Tensor:
    r""":math:`E v^n = b B(1 + n / a, b)`."""
    power = 1 + order / a
    return (power.lgamma() + (1 + b).lgamma() - (power + b).lgamma()).exp()


def kumaraswamy_expected_log(a: Tensor, b: Tensor) -> Tensor:
    r""":math:`E \log v = (\psi(1) - \psi(1 + b)) / a`."""
    return -((1 + b).digamma() + euler_constant) / a


def kumaraswamy_expected_log_rest(a: Tensor, b: Tensor, precision: torch.dtype) -> Tensor:
    r""":math:`E \log(1 - v) = -b \sum_{m \ge 1} B(m / a, b) / (m + a b)`, as an integral.

    Terms of the series fall off as :math:`m^{-1-b}`, for large a after many that do not: for small
    b no number of them is enough. But :math:`E \log(1 - v^a) = -1 / b`, and what is left is smooth
    in the logarithm of a standard Exponential variable, on the whole line and analytic about it.
    There the trapezoidal rule has digits in proportion to its points.

    Args:
        a: of any shape, in double precision; from 0.05 on.
        b: of the same shape.
        precision: that is asked for.
    """
    step, low, high = RULES.get(precision, RULES[torch.float32])
    at = torch.arange(low, high, step, dtype=a.dtype, device=a.device)
    size = (at.exp() / b.unsqueeze(-1)).clamp(*ENDS)  # -log(1 - v^a)
    log_v = (-(-size).exp()).log1p() / a.unsqueeze(-1)
    log_ratio = (-log_v.expm1()).log() + size  # of 1 - v to 1 - v^a
    return log_ratio @ (step * (at - at.exp()).exp()) - 1 / b
