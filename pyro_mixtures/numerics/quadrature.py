r"""Tails and implicit velocities by quadrature: what the distributions have in common.

In a suitable coordinate y each density f falls off log-concavely, or nearly, from its mode, and

.. math::
    \frac{1}{f(y)} \int_y^\infty f(t) dt = \int_0^\infty e^{-\varphi(s)} ds,
    \qquad \varphi(s) = \log f(y) - \log f(y + s),

however far out y is. Where :math:`\varphi` has grown so much that the integrand no longer counts
is known in closed form or after one Newton step. A Gauss-Legendre rule up to there gives the tail,
and with a moment its derivative in a parameter, with hardly a digit lost. Integration by parts
raises small shape parameters first, whose densities decay too slowly for few nodes. Parameters'
normalizing constants come from Stirling's series, or from the same quadrature at the mode.

The velocity of a parameter :math:`\theta` is that of a point where the distribution function F
keeps its value, :math:`dx / d\theta = -(\partial F / \partial \theta) / f`. It is computed only if
an argument may need a gradient ("moving"), for it costs as much as the tails.

All functions are elementwise on float32 or float64 of shapes that broadcast. Autograd
differentiates the log tails once, in the point and the parameters, but not the velocities.

Measured against quadrature with 40 digits, for shapes from 0.02 to 1e5, degrees of freedom from
0.1 to 1e6 and concentrations up to 1e5, the smaller tail and the velocities have relative errors
below 1e-12 in float64, as far as a tail's logarithm has these digits itself. In float32, against
float64, log tails have errors below 3e-5 or 1e-5 of their value, velocities 1e-4 of theirs.

Reference:
    Figurnov, Mohamed and Mnih, Implicit Reparameterization Gradients, 2018.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SLICE = 2**16
"""Elements at a time on a CPU, for the arrays of the quadrature to stay in its cache.

It also stalls in ``torch.where`` if it cannot predict the mask; hence ``lerp`` by ones and zeros.
"""

CUT = {torch.float32: 16.0, torch.float64: 37.0}
"""Integrands count until they are ``exp(-cut)``."""

Rule = list[tuple[float, float]]


class LogTails(NamedTuple):
    """Both tails of a distribution at a point, and the point's velocities."""

    log_cdf: Tensor
    log_sf: Tensor
    """Logarithm of one minus the distribution function."""
    velocities: tuple[Tensor, ...]
    """For each parameter, without a gradient; none where no argument needs one."""


def gauss_legendre(size: int, bend: float = 0.0) -> Rule:
    r"""Nodes and weights for (0, 1), in which the integrand need not be smooth itself.

    It is smooth as a function of u, :math:`s = u / (1 + b - b u)`: the more b bends, the closer
    to zero nodes stand, where the integrand is large, and the farther away are its poles.
    """
    nodes, weights = np.polynomial.legendre.leggauss(size)
    u = (1 + nodes) / 2
    rest = 1 + bend * (1 - u)
    weights = weights / 2 * (1 + bend) / rest**2
    return list(zip((u / rest).tolist(), weights.tolist(), strict=True))


def with_slopes(values: tuple[Tensor, ...], x: Tensor, *parameters: Tensor) -> LogTails:
    """Tails that autograd can differentiate, although their values were computed without it."""
    log_cdf, log_sf, *slopes = values
    if not slopes:
        return LogTails(log_cdf, log_sf, ())
    cdf_slope, sf_slope, *velocities = slopes
    step = x - x.detach()  # zero, as are those of the parameters
    for parameter, velocity in zip(parameters, velocities, strict=True):
        step = step - velocity * (parameter - parameter.detach())
    return LogTails(log_cdf + cdf_slope * step, log_sf + sf_slope * step, tuple(velocities))


def sliced(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """An elementwise function without autograd, applied to slices of its arguments."""

    @functools.wraps(function)
    @torch.no_grad()
    def apply(moving: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        # torch.jit.trace records detach(), not no_grad()
        tensors = torch.broadcast_tensors(*(tensor.detach() for tensor in tensors))
        if tensors[0].numel() <= SLICE or tensors[0].device.type != "cpu":
            return function(moving, *tensors)
        slices = zip(*(tensor.reshape(-1).split(SLICE) for tensor in tensors), strict=True)
        results = zip(*(function(moving, *parts) for parts in slices), strict=True)
        return tuple(torch.cat(parts).reshape(tensors[0].shape) for parts in results)

    return apply


def integrate(
    integrands: Callable[[Tensor], tuple[Tensor, ...]],
    end: Tensor,
    rules: dict[torch.dtype, Rule],
) -> list[Tensor]:
    """Integrals of several functions from zero to the end."""
    (node, weight), *rest = rules[end.dtype]
    totals = [value * weight for value in integrands(end * node)]
    for node, weight in rest:
        for total, value in zip(totals, integrands(end * node), strict=True):
            total.add_(value, alpha=weight)
    return [total * end for total in totals]


def tails_and_velocities(
    lower: Tensor, log_pdf: Tensor, mills: Tensor, unit: Tensor, *velocities: Tensor
) -> tuple[Tensor, ...]:
    """Log tails, their derivatives in x, and velocities of x.

    Args:
        lower: as for :func:`log_tails`.
        log_pdf: as for :func:`log_tails`.
        mills: as for :func:`log_tails`.
        unit: dx / dy, negative where y is that of a mirror image.
        velocities: of y.
    """
    bounds = torch.finfo(mills.dtype)
    log_cdf, log_sf = log_tails(lower, log_pdf, mills)
    log_other = log_sf.lerp(log_cdf, 1 - lower)
    slope, other_slope = 1 / mills.clamp(min=bounds.tiny), (log_pdf - log_other).exp()
    cdf_slope, sf_slope = swap(slope, other_slope, lower)
    slopes = [(s / unit.abs()).clamp(bounds.min, bounds.max) for s in (cdf_slope, -sf_slope)]
    velocities = tuple((v * unit).clamp(bounds.min, bounds.max) for v in velocities)
    return log_cdf, log_sf, *slopes, *velocities


def log_tails(lower: Tensor, log_pdf: Tensor, mills: Tensor) -> tuple[Tensor, Tensor]:
    """Log tails.

    Args:
        lower: one where ``mills`` is of the lower tail, zero where it is of the upper one.
        log_pdf: density in the coordinate of the quadrature.
        mills: the tail divided by this density.
    """
    log_tail = log_pdf + mills.clamp(min=torch.finfo(mills.dtype).tiny).log()
    return swap(log_tail, (-log_tail.exp()).log1p(), lower)


def swap(first: Tensor, second: Tensor, straight: Tensor) -> tuple[Tensor, Tensor]:
    """The two, in this order where ``straight`` is one and exchanged where it is zero."""
    return second.lerp(first, straight), first.lerp(second, straight)


def log1p_minus(d: Tensor, log1p: Tensor, near: float = 0.5) -> Tensor:
    """``log(1 + d) - d``, by a series near zero and by the given ``log(1 + d)`` elsewhere."""
    q = d / (d + 2)  # log(1 + d) = 2 atanh(q)
    square = q.square()
    terms = int(math.log(torch.finfo(d.dtype).eps, near / 2) / 2)
    series = square * (2 / (2 * terms + 1))
    for power in range(2 * terms - 1, 1, -2):
        series.add_(2 / power).mul_(square)
    series.sub_(d).mul_(q)
    return series.lerp(log1p - d, d.abs().mul_(2 / near).sub_(1).clamp(0, 1))
