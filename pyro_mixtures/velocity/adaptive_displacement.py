"""How the variance of a displacement's weight gradients changes with the hub."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.numerics.precision import double, records_graph
from pyro_mixtures.velocity.displacement import (
    FARTHEST,
    TINY,
    departed,
    moment_matched,
    quadrature,
    shrinkage,
)
from pyro_mixtures.velocity.displacement_integrals import (
    exp_,
    standardization,
    sum_over_nodes,
)

CAUTION = 2.0
"""Price of a departure: a squared length of 1 has to lower the variance by a factor exp(2).
Without it few draws, of which none shows the tails, lead the hub astray."""

SMALL_RATE = 0.02
"""Below this, differences of hyperbolic functions lose more digits than their series."""


class Transported(NamedTuple):
    """Samples, the components that exchange weight, and what their displacement is.

    Args:
        z: ``(*B, S, D)``, as are the others up to ``control_var`` those of
            :func:`~pyro_mixtures.velocity.displacement.displacement`.
        grad: ``(*B, S, D)``.
        log_prob: ``(*B, S, 1)``.
        within: ``(*B, K or 1, K)``.
        locs: ``(*B, K, D)``.
        scales: ``(*B, K, D)``.
        control_var: ``(*B, 2, K, D)``.
        contributions: A, ``(*B, S, K)``.
        weights: of the components, ``(*B, 1, K)``.
    """

    z: Tensor
    grad: Tensor
    log_prob: Tensor
    within: Tensor
    locs: Tensor
    scales: Tensor
    control_var: Tensor
    contributions: Tensor
    weights: Tensor


def variance_gradient(here: Transported, *, precision: torch.dtype) -> Tensor:
    r"""Direction in which ``control_var`` lowers the variance of the weights' gradient.

    Of the contributions A of :func:`~pyro_mixtures.velocity.displacement.displacement`,

    .. math:: P_{sj} = \pi_j \left(A_{sj} - \sum_{k \in C} \frac{\pi_k}{\pi_C} A_{sk}\right)

    is the gradient of logit j within its group C that comes with sample s. The result is an
    unbiased estimate of what is proportional, for each group with its departure a
    (:func:`~pyro_mixtures.velocity.displacement.departed`), to the gradient of

    .. math:: \log V + \kappa |a|^2, \qquad V = E \sum_{j \in C} P_j^2,

    where the mean of P, and so its part in V, is the same for every hub:

    .. math:: \nabla \tfrac12 \sum_{s, j \in C} P_{sj}^2
              + \tfrac{\kappa}2 \Big(\sum_{s, j \in C} P_{sj}^2\Big) \nabla |a|^2

    Single samples are squared, not their sum: that has less noise.

    Args:
        here: the samples, with A and :math:`\pi`.
        precision: the dtype to whose rounding the integral is exact.

    Returns:
        ``(*B, 2, K, D)``; zero where it is not finite.

    Reference:
        Jankowiak and Karaletsos, *Pathwise Derivatives for Multivariate Distributions*, section 3
        and appendix D.7, for velocity fields that learn in this way.
    """
    if records_graph():
        return _opaque_gradient(*here, precision=precision)
    return _variance_gradient(here, precision)


def _variance_gradient(here: Transported, precision: torch.dtype) -> Tensor:
    dtype = here.control_var.dtype
    if here.z.shape[-2] == 1:  # densities there are not checked for digits lost by products
        here = Transported(*double(*here))
    _, _, _, within, locs, scales, control, contributions, weights = here
    dead = weights == 0
    contributions = contributions.masked_fill(dead, 0)
    gradients = weights * (contributions - contributions @ within.mT)  # P, (*B, S, K)
    matched = moment_matched(within, locs, scales)
    hub = departed(*matched, within, control)
    slope = contribution_slope(gradients, within, weights)
    by_hub = hub_slopes(here, hub, slope, precision)
    place, scale = by_hub.masked_fill(dead.mT.unsqueeze(-3), 0).unbind(-3)
    by_hub = torch.stack([place * matched[2], scale], -3)  # (*B, 2, K, D)
    squares = gradients.square().sum(-2).unsqueeze(-1).unsqueeze(-3)  # (*B, 1, K, 1)
    if within.shape[-2] == 1:
        by_hub, squares = by_hub.sum(-2, keepdim=True), squares.sum(-2, keepdim=True)
    departure = within.unsqueeze(-3) @ control
    shrunk = shrinkage(departure)
    radial = (by_hub * departure).sum((-3, -1), keepdim=True) * shrunk**3 / FARTHEST**2
    by_departure = shrunk * by_hub + (CAUTION * squares - radial) * departure
    gradient = within.mT.unsqueeze(-3) @ by_departure
    return gradient.nan_to_num(0.0, 0.0, 0.0).to(dtype)


_opaque_gradient = torch.library.custom_op(
    "pyro_mixtures::displacement_variance_gradient",
    lambda *tensors, precision: _variance_gradient(Transported(*tensors), precision).contiguous(),
    mutates_args=(),
    schema="(Tensor z, Tensor grad, Tensor log_prob, Tensor within, Tensor locs, Tensor scales,"
    " Tensor control_var, Tensor contributions, Tensor weights, *, ScalarType precision)"
    " -> Tensor",
)


@_opaque_gradient.register_fake
def _(*tensors, precision):
    control_var = Transported(*tensors).control_var
    return control_var.new_empty(control_var.shape)


def contribution_slope(gradients: Tensor, within: Tensor, weights: Tensor) -> Tensor:
    """Derivatives of the half sum of squares of P in the contributions, ``(*B, S, K)``."""
    scaled = weights * gradients
    rows = scaled if within.shape[-2] > 1 else scaled.sum(-1, keepdim=True)
    return scaled - rows @ within


def hub_slopes(
    here: Transported,
    hub: tuple[Tensor, Tensor, Tensor],
    slope: Tensor,
    precision: torch.dtype,
) -> Tensor:
    r"""Derivatives in the mean and the logarithm of the scale of each component's hub.

    On the path of a component to a hub of mean m and scale s lie the Normals of the scales
    :math:`s^{1 - t} \sigma_j^t` and the means :math:`m + \alpha_t (\mu_j - m)`, where
    :math:`\alpha_t = (e^{\lambda t} - 1) / (e^\lambda - 1)`. The chain rule through these and
    through the velocity takes two more matrix products at each node.

    Args:
        here: the samples and components.
        hub: its mean, the components' offsets from that, and its scale.
        slope: derivatives in the contributions, ``(*B, S, K)``.
        precision: the dtype to whose rounding the integral is exact.

    Returns:
        ``(*B, 2, K, D)``.
    """
    z, grad, log_prob, within, _, scales, *_ = here
    hub_loc, offset, hub_scale = hub
    center, dim = hub_loc[..., :1, :], z.shape[-1]
    z, hub_loc = z - center, hub_loc - center
    excess = (scales - hub_scale) / hub_scale + TINY  # (*B, K, D)
    rate = excess.log1p()
    ratio = rate / excess
    drift = offset / (excess * hub_scale)
    nodes, log_weights, _ = quadrature(rate * drift, rate, within, precision)
    moments = torch.cat([grad * z, grad], -1)  # (*B, S, 2 D)
    speed = torch.cat([rate, ratio * offset - rate * hub_loc], -1) @ moments.mT  # (*B, K, S)
    upstream = (slope.mT * speed).unsqueeze(-3)
    features = torch.cat([z, z.square(), torch.ones_like(log_prob)], -1)
    volume = hub_scale.log().sum(-1) + dim / 2 * math.log(2 * math.pi)
    constant = volume.unsqueeze(-2).unsqueeze(-1) + log_prob.mT.unsqueeze(-3)  # (*B, 1, K, S)
    growth = rate.sum(-1, keepdim=True).unsqueeze(-3)  # (*B, 1, K, 1)

    def at_nodes(nodes: Tensor, log_weights: Tensor) -> Tensor:
        factor, place = standardization(nodes, rate, drift, hub_loc, hub_scale)  # (*B, T, K, D)
        nodes, log_weights = nodes.unsqueeze(-1), log_weights.unsqueeze(-1)  # (T, 1, 1)
        squares = place.square()
        terms = [place * factor, factor.square() * -0.5, squares.sum(-1, keepdim=True) * -0.5]
        exponent = torch.cat(terms, -1).flatten(-3, -2) @ features.mT
        exponent = exponent.unflatten(-2, factor.shape[-3:-1])  # (*B, T, K, S)
        density = exp_(exponent.sub_(constant).sub_(growth * nodes - log_weights))
        integral = density.sum(-3)
        sums = density.mul_(upstream).flatten(-3, -2) @ features
        sums = sums.unflatten(-2, factor.shape[-3:-1])
        first, second, mass = sums.split([dim, dim, 1], -1)  # (*B, T, K, D or 1)
        by_mean = factor * (factor * first - place * mass)
        by_scale = factor * (factor * second - 2 * place * first) + (squares - 1) * mass
        share = (rate.unsqueeze(-3) * nodes).expm1() / excess.unsqueeze(-3)
        moved = share * log_share_slope(rate.unsqueeze(-3), nodes) * offset.unsqueeze(-3)
        by_loc = ((1 - share) * by_mean).sum(-3)
        by_scale = ((1 - nodes) * by_scale - moved * by_mean).sum(-3)
        return torch.cat([by_loc, by_scale, integral], -1)

    rows = max(z.shape[-2], 8 * dim)
    sums = sum_over_nodes(at_nodes, nodes, log_weights, rate[..., 0].numel() * rows)
    by_loc, by_scale, integral = sums.split([dim, dim, z.shape[-2]], -1)
    by_product, by_grad = ((slope.mT * integral) @ moments).split(dim, -1)  # (*B, K, D)
    moved = ratio * log_share_slope(rate, torch.zeros_like(rate)) * offset
    by_loc = by_loc - (rate + ratio) * by_grad
    by_scale = by_scale - by_product + (hub_loc - moved) * by_grad
    return torch.stack([by_loc, by_scale], -3)


def log_share_slope(rate: Tensor, nodes: Tensor) -> Tensor:
    r""":math:`d \log \alpha_t / d \lambda`, finite for :math:`\lambda = 0`.

    .. math:: \frac{t - 1}{2} + \frac{h(\lambda t / 2) - h(\lambda / 2)}{\lambda},
              \qquad h(x) = x \coth x
    """
    small = rate.abs() < SMALL_RATE
    half = rate.masked_fill(small, 1) / 2
    part = half * nodes
    own = torch.where(part == 0, 1, part / part.tanh())
    difference = (own - half / half.tanh()) / (2 * half)
    return (nodes - 1) / 2 + torch.where(small, rate * (nodes.square() - 1) / 12, difference)
