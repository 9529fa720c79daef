"""Families of vectors with dependent coordinates."""

from __future__ import annotations

import math

import torch
from pyro.distributions import MultivariateStudentT
from pyro.distributions.transforms import LowerCholeskyAffine
from torch import Tensor
from torch.distributions import (
    Dirichlet,
    LowRankMultivariateNormal,
    MultivariateNormal,
    StickBreakingTransform,
)
from torch.nn.functional import logsigmoid, pad

from pyro_mixtures.families.registry import (
    carried,
    register_coordinates,
    register_factors,
    register_log_density,
    register_velocity,
)
from pyro_mixtures.numerics.incomplete import beta_tails
from pyro_mixtures.numerics.precision import double
from pyro_mixtures.numerics.symmetric import student_t_log_pdf, student_t_tails
from pyro_mixtures.velocity.full_components import cholesky, triangular_inverse
from pyro_mixtures.velocity.telescoping import Factors, normal_factors


@register_velocity(MultivariateNormal)
def _(distribution, value):
    noise = _noise(distribution, value)
    return distribution.loc + _apply(distribution.scale_tril.tril(), noise)


@register_velocity(LowRankMultivariateNormal)
def _(distribution, value):
    """With the noises of factor and diagonal that are expected at the point."""
    factor, variance = distribution.cov_factor, distribution.cov_diag
    fixed, fixed_variance = factor.detach(), variance.detach()
    scaled = (value - distribution.loc.detach()) / fixed_variance
    capacitance = triangular_inverse(distribution._capacitance_tril.detach())
    noise = _apply(fixed.mT, scaled)  # (*X, *B, K, R)
    noise = _apply(capacitance.mT, _apply(capacitance, noise))
    diagonal_noise = (scaled - _apply(fixed, noise) / fixed_variance) * fixed_variance.sqrt()
    return distribution.loc + _apply(factor, noise) + variance.sqrt() * diagonal_noise


@register_velocity(MultivariateStudentT)
def _(distribution, value):
    """The degrees of freedom move a point on the ray from the mean.

    The squared radius of the noise over df is the odds of a Beta variable.
    """
    df, noise = distribution.df, _noise(distribution, value)
    fixed = df.detach()
    log_odds = (noise.square().sum(-1) / fixed).log()
    half = torch.full_like(fixed, noise.shape[-1] / 2)
    tails = beta_tails(half, df / 2, logsigmoid(log_odds), logsigmoid(-log_odds))
    by_df = tuple((1 / fixed + by_b / 2).unsqueeze(-1) / 2 for by_b in tails.velocities[1:])
    noise = noise * (1 + carried(by_df, df.unsqueeze(-1)))
    return distribution.loc + _apply(distribution.scale_tril.tril(), noise)


@register_log_density(MultivariateStudentT)
def _(distribution, value):
    offset = (value - distribution.loc).unsqueeze(-1)
    noise = torch.linalg.solve_triangular(distribution.scale_tril, offset, upper=False)
    log_volume = distribution.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return student_t_log_pdf(distribution.df, noise.squeeze(-1)) - log_volume


@register_coordinates(MultivariateNormal)
@register_coordinates(LowRankMultivariateNormal)
@register_coordinates(MultivariateStudentT)
def _(distribution, *others):
    """Whitened by the mean of the components' scale matrices and the spread of their means."""
    locs, scale_tril = distribution.loc, distribution.scale_tril
    if others:
        locs = torch.stack([locs, *(other.loc for other in others)], -2)
        scale_tril = torch.stack([scale_tril, *(other.scale_tril for other in others)], -3)
    locs, scale_tril = double(locs.detach(), scale_tril.detach())
    center = locs.mean(-2, keepdim=True)  # (*B, 1, D)
    offset = locs - center
    between = (offset.mT @ offset / locs.shape[-2]).unsqueeze(-3)
    covariance = (scale_tril @ scale_tril.mT).mean(-3, keepdim=True) + between

    def root() -> Tensor:
        parts = torch.cat([scale_tril.movedim(-3, -2).flatten(-2), offset.mT], -1)
        return parts.unsqueeze(-3) / math.sqrt(locs.shape[-2])  # (*B, 1, D, K D + K)

    factor = cholesky(covariance, root)  # (*B, 1, D, D)
    if others:
        center, factor = center.squeeze(-2), factor.squeeze(-3)
    return LowerCholeskyAffine(center.to(distribution.loc), factor.to(distribution.loc))


@register_factors(MultivariateNormal)
@register_factors(LowRankMultivariateNormal)
def _(distribution, value, shared):
    loc, factor, whitened = _whitened(distribution, value, shared)
    scale = factor.diagonal(dim1=-2, dim2=-1)
    own = normal_factors(_noise(distribution, value), scale)
    spread = torch.linalg.vector_norm(factor, dim=-1)
    return own, normal_factors((whitened - loc) / spread, spread)


@register_factors(MultivariateStudentT)
def _(distribution, value, shared):
    """Given those before it, each coordinate is a t with one more degree of freedom."""
    loc, factor, whitened = _whitened(distribution, value, shared)
    df, noise = distribution.df.unsqueeze(-1), _noise(distribution, value)
    before = pad(noise.square()[..., :-1].cumsum(-1), (1, 0))
    more = df + torch.arange(noise.shape[-1], dtype=df.dtype, device=df.device)
    widening = ((df + before) / more).sqrt()
    scale = factor.diagonal(dim1=-2, dim2=-1) * widening
    own = _student_t_factors(more, noise / widening, scale)
    spread = torch.linalg.vector_norm(factor, dim=-1)
    return own, _student_t_factors(df, (whitened - loc) / spread, spread)


@register_velocity(Dirichlet)
def _(distribution, value):
    """The sticks are independent Beta variables."""
    a, b = _stick_parameters(distribution.concentration)
    tails = beta_tails(a, b, *_log_sticks(value))
    transform = StickBreakingTransform()
    return transform(transform.inv(value) + carried(tails.velocities, a, b))


@register_coordinates(Dirichlet)
def _(distribution, *others):
    return StickBreakingTransform()


@register_factors(Dirichlet)
def _(distribution, value, shared):
    a, b = _stick_parameters(distribution.concentration)
    log_stick, log_rest = _log_sticks(value)
    log_pdf = a * log_stick + b * log_rest + (a + b).lgamma() - a.lgamma() - b.lgamma()
    log_cdf, log_sf, _ = beta_tails(a, b, log_stick, log_rest)
    own = Factors(log_pdf, log_cdf.exp(), log_sf.exp())
    return own, own


def _stick_parameters(concentration: Tensor) -> tuple[Tensor, Tensor]:
    """Of the Beta distributions of the sticks, ``(..., D - 1)``."""
    after = concentration.flip(-1).cumsum(-1).flip(-1)[..., 1:]
    return concentration[..., :-1], after


def _log_sticks(value: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the shares of what is left, and of one minus them; both keep their digits."""
    left = value.flip(-1).cumsum(-1).flip(-1).log()
    return value[..., :-1].log() - left[..., :-1], left[..., 1:] - left[..., :-1]


def _noise(distribution, value: Tensor) -> Tensor:
    """Whitened by the fixed factor, ``(*X, *B, K, D)``."""
    to_noise = triangular_inverse(distribution.scale_tril.detach())
    return _apply(to_noise, value - distribution.loc.detach())


def _whitened(distribution, value: Tensor, shared) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, factor and points in the shared coordinates."""
    to_shared = triangular_inverse(shared.scale_tril)
    loc = _apply(to_shared, distribution.loc - shared.loc)
    return loc, to_shared @ distribution.scale_tril, _apply(to_shared, value - shared.loc)


def _student_t_factors(df: Tensor, standard: Tensor, scale: Tensor) -> Factors:
    log_pdf = student_t_log_pdf(df, standard.unsqueeze(-1)) - scale.log()
    log_cdf, log_sf, _ = student_t_tails(df, standard)
    return Factors(log_pdf, log_cdf.exp(), log_sf.exp())


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Products without a copy of the matrices for each sample."""
    return torch.einsum("...ij,...j->...i", matrix, vector)
