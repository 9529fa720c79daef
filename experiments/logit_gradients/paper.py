"""The paper's own velocity fields (Table 3), with the slips of its formulas mended."""

from __future__ import annotations

import math

import torch

from pyro_mixtures.distributions import (
    GaussianScaleMixture,
    MixtureOfDiagNormals,
    MixtureOfDiagNormalsSharedCovariance,
)
from pyro_mixtures.velocity.spherical import spherical_pairwise, whitened
from pyro_mixtures.velocity.telescoping import exchange, normal_factors

_lines = whitened(spherical_pairwise)


def diagonal(z, grad, log_prob, within, locs, scales, *, precision):
    r"""Weight contributions by Eq. 49-52, for diagonal Normals.

    Telescoping (Eq. 50) exchanges the scales of component j for the common
    :math:`\sigma_{0i} = \min_k \sigma_{ki}`, at its own mean; lines (Eq. 15) then join the means
    at the scale :math:`\sigma_0`. Arguments and result are those of
    :func:`~pyro_mixtures.velocity.displacement.displacement`.
    """
    smallest = scales.amin(-2, keepdim=True)  # (*B, 1, D)
    offset = z.unsqueeze(-2) - locs.unsqueeze(-3)  # (*B, S, K, D)
    own, narrow = (
        normal_factors(offset / each.unsqueeze(-3), each.unsqueeze(-3))
        for each in (scales, smallest.expand_as(scales))
    )
    legs = (exchange(log_prob, own, narrow) @ grad.unsqueeze(-1)).squeeze(-1)
    unit = torch.ones_like(locs[..., 0])
    components = (smallest.squeeze(-2), unit, locs)
    return legs + _lines(z, grad, log_prob, within, *components, precision=precision)


def _radial_legs(x, grad, log_prob, within, scales, means, *, precision):
    """Whitened components shrink about their means to the smallest scale, which lines then join.

    In the closed form of Eq. 40, with the smaller tails of the gamma law: nothing cancels.
    """
    dim = x.shape[-1]
    smallest = scales.amin(-1, keepdim=True)
    offset = x.unsqueeze(-2) - means.unsqueeze(-3)  # (*B, S, K, D)
    square = offset.square().sum(-1)
    half = torch.full_like(square, dim / 2)
    own, narrow = (square / (2 * each.square()).unsqueeze(-2) for each in (scales, smallest))
    inner = torch.special.gammainc(half, own) - torch.special.gammainc(half, narrow)
    outer = torch.special.gammaincc(half, narrow) - torch.special.gammaincc(half, own)
    mass = torch.where(narrow < dim / 2, inner, outer)
    constant = math.lgamma(dim / 2) - math.log(2) - dim / 2 * math.log(math.pi)
    log_factor = constant - dim / 2 * square.log() - log_prob
    legs = -(offset @ grad.unsqueeze(-1)).squeeze(-1) * mass * log_factor.exp()
    common = smallest.expand_as(scales)
    lines = spherical_pairwise(x, grad, log_prob, within, common, means, precision=precision)
    return legs + lines


_with_means = whitened(_radial_legs)


def scale_mixture(z, grad, log_prob, within, coord_scale, scales, locs=None, *, precision):
    """Weight contributions by Eq. 40, and with means by Eq. 53-55: radial legs, then lines."""
    components = (coord_scale, scales)
    if locs is None:
        radial = GaussianScaleMixture.transports["radial"]
        return radial(z, grad, log_prob, within, *components, precision=precision)
    return _with_means(z, grad, log_prob, within, *components, locs, precision=precision)


class PaperMixtureOfDiagNormals(MixtureOfDiagNormals):
    """With the transport ``"paper"``."""

    transports = {**MixtureOfDiagNormals.transports, "paper": diagonal}


class PaperGaussianScaleMixture(GaussianScaleMixture):
    """With the transport ``"paper"``."""

    transports = {**GaussianScaleMixture.transports, "paper": scale_mixture}


class PaperSharedCovariance(MixtureOfDiagNormalsSharedCovariance):
    """With the transport ``"paper"``, which is that of lines."""

    transports = {
        **MixtureOfDiagNormalsSharedCovariance.transports,
        "paper": MixtureOfDiagNormalsSharedCovariance.transports["pairwise"],
    }
