"""Modes of a posterior: groups of a mixture's components, with weights and locations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_mixtures.distributions import MixtureOfNormals
from pyro_mixtures.infer.search.mixture_draws import mixture_draws
from pyro_mixtures.infer.search.mode_groups import (
    NormalMixture,
    component_distances,
    normal_scales,
)

DRAWS = 1000
"""Of each mode, for its location."""

MANY = 500
"""Components beyond which distances are of modes, not of their components."""

QUANTILES = 0.1587, 0.5, 0.8413


@dataclass(frozen=True)
class Nearest:
    """The mode that is nearest to one.

    Attributes:
        index: among the modes.
        log_overlap: the largest Bhattacharyya coefficient of a component of one and one of the
            other, its logarithm: zero if they are equal.
        distance: of the means of the two modes, in standard deviations along the line between
            them (those of the mean of the two covariances).
    """

    index: int
    log_overlap: float
    distance: float


@dataclass(frozen=True)
class Mode:
    """A mode of a posterior, as the components of a mixture show it.

    Attributes:
        weight: its share of the posterior: by importance sampling where the weights can be
            trusted, else that of its components.
        weight_error: standard error of that; NaN where it is that of the components.
        location: medians, from the name of each latent site to a tensor of its shape.
        spread: half of the distance between the quantiles of 16 and 84 percent, in the same way:
            the standard deviation of a Normal.
        components: their indices in the mixture.
        nearest: of the other modes, or None if it is the only one.
    """

    weight: float
    weight_error: float
    location: dict[str, Tensor] = field(repr=False)
    spread: dict[str, Tensor] = field(repr=False)
    components: tuple[int, ...] = field(repr=False)
    nearest: Nearest | None


def modes_of(
    mixture: NormalMixture,
    groups: list[Tensor],
    constrain: Callable[[Tensor], dict[str, Tensor]],
    draws: Tensor,
    log_weights: Tensor | None,
) -> list[Mode]:
    """Modes with their figures, the heaviest first.

    Args:
        mixture: of Normals.
        groups: indices of the components of each mode.
        constrain: from vectors ``(S, D)`` to sites.
        draws: of the mixture, ``(S, D)``.
        log_weights: of these, which sum to one, ``(S,)``; None if they cannot be trusted.
    """
    weights, errors = mode_weights(mixture, groups, draws, log_weights)
    order = weights.argsort(descending=True, stable=True).tolist()
    groups = [groups[index] for index in order]
    nearest = _nearest(mixture, groups)
    modes = []
    for place, (index, group) in enumerate(zip(order, groups, strict=True)):
        location, spread = _location(mixture, group, constrain)
        modes.append(
            Mode(
                weight=float(weights[index]),
                weight_error=float(errors[index]),
                location=location,
                spread=spread,
                components=tuple(group.tolist()),
                nearest=nearest[place],
            )
        )
    return modes


def mode_weights(
    mixture: NormalMixture, groups: list[Tensor], draws: Tensor, log_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    r"""The share of each mode, and its standard error, each ``(M,)``.

    By importance sampling :math:`\hat\rho_m = \sum_s \tilde w_s r_m(z_s)` with the
    responsibilities r of the mode's components, whose mean under the mixture is known: the weight
    :math:`\pi_m` of the components. So the latter is a control variate,

    .. math::
        \hat\rho_m - \beta_m \Big( \frac1S \sum_s r_m(z_s) - \pi_m \Big), \qquad
        \beta_m = \frac{\sum_s a_s b_s}{\sum_s b_s^2}, \quad
        a_s = \tilde w_s (r_m(z_s) - \hat\rho_m), \quad b_s = \frac{r_m(z_s) - \pi_m}S,

    and the error, by the delta method, is :math:`[\sum_s (a_s - \beta_m b_s)^2]^{1/2}`: next to
    nothing where all importance weights are equal.

    Args:
        mixture: of Normals.
        groups: indices of the components of each mode.
        draws: of the mixture, ``(S, D)``.
        log_weights: of these, which sum to one, ``(S,)``; None for the shares of the components.
    """
    shares = mixture.log_weights.detach().exp()
    known = torch.stack([shares[group].sum() for group in groups])
    if log_weights is None:
        return known, torch.full_like(known, math.nan)
    inside = torch.cat([_responsibilities(mixture, groups, each) for each in draws.split(500)])
    weights = log_weights.exp().to(inside)
    mean = weights @ inside  # (M,)
    influences = weights.unsqueeze(-1) * (inside - mean)  # (S, M)
    control = (inside - known) / len(inside)
    square = control.square().sum(0)
    slope = (influences * control).sum(0) / torch.where(square > 0, square, 1.0)
    errors = (influences - slope * control).square().sum(0).sqrt()
    return (mean - slope * control.sum(0)).clamp(0, 1), errors


def _responsibilities(mixture: NormalMixture, groups: list[Tensor], z: Tensor) -> Tensor:
    """Of modes, ``(S, M)``."""
    each = (mixture.component_log_prob(z) + mixture.log_weights).detach().softmax(-1)  # (S, K)
    return torch.stack([each[:, group].sum(-1) for group in groups], -1)


def _location(
    mixture: NormalMixture, group: Tensor, constrain: Callable[[Tensor], dict[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Medians and spreads of sites within a mode."""
    draws = mixture_draws(mixture, DRAWS, torch.Generator().manual_seed(0), among=group)
    location, spread = {}, {}
    for name, values in constrain(draws).items():
        ordered = values.sort(0).values
        low, middle, high = (ordered[round(share * (DRAWS - 1))] for share in QUANTILES)
        location[name], spread[name] = middle, (high - low) / 2
    return location, spread


def _nearest(mixture: NormalMixture, groups: list[Tensor]) -> list[Nearest | None]:
    if len(groups) == 1:
        return [None]
    locs, scales = mixture.locs.detach(), normal_scales(mixture)
    weights = mixture.log_weights.detach().exp()
    moments = [_moments(locs, scales, weights, group) for group in groups]
    if len(locs) > MANY:  # each mode as one Normal
        means = torch.stack([mean for mean, _ in moments])
        factors = torch.stack([torch.linalg.qr(root.mT).R.mT for _, root in moments])
        signs = factors.diagonal(dim1=-2, dim2=-1).sign()
        between = component_distances(
            MixtureOfNormals(means, factors * signs.unsqueeze(-2), means[:, 0])
        )
        between.fill_diagonal_(math.inf)
    else:
        distances = component_distances(mixture)
        between = distances.new_full((len(groups), len(groups)), math.inf)
        for one, first in enumerate(groups):
            for other, second in enumerate(groups[:one]):
                least = distances[first][:, second].amin()
                between[one, other] = between[other, one] = least
    found: list[Nearest | None] = []
    for one, row in enumerate(between):
        index = int(row.argmin())
        distance = _distance(moments[one], moments[index])
        found.append(Nearest(index, -float(row[index]), distance))
    return found


def _moments(
    locs: Tensor, scales: Tensor, weights: Tensor, group: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean ``(D,)`` and factors of the covariance, whose squares are summed, ``(D, ...)``."""
    shares = (weights[group] / weights[group].sum()).unsqueeze(-1)
    mean = (shares * locs[group]).sum(0)
    around = shares.sqrt() * (locs[group] - mean)  # (K_m, D)
    if scales.dim() == locs.dim():
        inner = (shares * scales[group].square()).sum(0).sqrt().diag_embed()
    else:
        inner = (shares.sqrt().unsqueeze(-1) * scales[group]).movedim(0, 1).flatten(1)
    return mean, torch.cat([inner, around.mT], 1)


def _distance(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """Of two means along the line between them."""
    offset = second[0] - first[0]
    length = offset.norm()
    if length == 0:
        return 0.0
    variances = [(offset / length @ root).square().sum() for _, root in (first, second)]
    return float(length / (sum(variances) / 2).sqrt())
