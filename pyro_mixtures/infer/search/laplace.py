"""Laplace approximations at the optima that ascents have found."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.infer.search.climbing import Ascents
from pyro_mixtures.infer.search.evaluations import Evaluations
from pyro_mixtures.infer.search.natural_normals import LOG_2PI, DiagonalNormals, FullNormals

MAX_HESSIANS = 100
"""Of optima that lie apart, the highest first."""

FLATTEST = 1e-4
"""Least curvature of an optimum, in prior precisions: flatter ones have run away."""


class Optima(NamedTuple):
    """Distinct optima with a Laplace approximation.

    Args:
        points: ``(N, D)``.
        values: of the log density, ``(N,)``.
        log_masses: of the Laplace approximations, ``(N,)``.
    """

    points: Tensor
    values: Tensor
    log_masses: Tensor


def laplace(
    evaluations: Evaluations,
    found: Ascents,
    scale: Tensor,
    kind: type[FullNormals],
    max_parts: int,
) -> tuple[FullNormals, Optima, Tensor]:
    """Normals at optima, the heaviest first.

    Args:
        evaluations: of the log density.
        found: distinct ascents, the highest first.
        scale: of each coordinate under the prior.
        kind: of Normals.
        max_parts: the largest number of them.

    Returns:
        The Normals; all optima with a Laplace approximation; points, the highest first, that have
        none and lie near to none.
    """
    if kind is DiagonalNormals:  # Hessians are too many numbers: a local fit finds the widths
        nothing = Optima(found.points[:0], found.values[:0], found.values[:0])
        return kind(found.points[:0], found.points[:0]), nothing, found.points
    points, values, widths, basis, rest = _curved(evaluations, found, scale)
    volumes = scale.log().sum() - widths.log().sum(-1) / 2
    masses = values + len(scale) / 2 * LOG_2PI + volumes
    order = masses.argsort(descending=True, stable=True)
    order = order[_apart(points[order] / scale, widths[order], basis[order])]
    optima = Optima(points[order], values[order], masses[order])
    chosen = order[:max_parts]
    covariances = (basis[chosen] / widths[chosen].unsqueeze(-2)) @ basis[chosen].mT
    factor, failed = torch.linalg.cholesky_ex(covariances)
    identity = torch.eye(len(scale)).to(factor)
    factor = torch.where((failed > 0)[:, None, None], identity, factor)
    return kind(points[chosen], factor * scale.unsqueeze(-1)), optima, rest


def _curved(
    evaluations: Evaluations, found: Ascents, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Optima with eigenvalues and eigenvectors of their precisions, and the rest.

    The rest has run away, or has not arrived. Hessians are taken in rounds, each of as many points
    as all before it and none within the ellipsoid of an optimum of those: few where all ascents
    end at few places, which are in general not those of the highest ascents only.
    """
    everywhere = torch.arange(len(found.points))
    left = everywhere[found.converged]
    is_rest = torch.ones_like(found.converged)
    widths, basis = found.points[:0], found.points[:0, :, None].expand(0, *2 * [len(scale)])
    optima, taken = left[:0], 0
    while len(left) and taken < MAX_HESSIANS:
        count = min(max(1, taken), MAX_HESSIANS - taken)
        chosen, left = left[:count], left[count:]
        taken += len(chosen)
        precisions = -evaluations.hessians(found.points[chosen]) * scale * scale.unsqueeze(-1)
        new = torch.linalg.eigh(torch.where(precisions.isfinite(), precisions, 0.0))
        proper = (new.eigenvalues > FLATTEST).all(-1)
        optima = torch.cat([optima, chosen[proper]])
        widths = torch.cat([widths, new.eigenvalues[proper]])
        basis = torch.cat([basis, new.eigenvectors[proper]])
        for own in range(len(optima) - int(proper.sum()), len(optima)):
            center = found.points[optima[own]] / scale
            is_rest &= ~_near(found.points / scale, center, widths[own], basis[own])
        left = left[is_rest[left]]
    is_rest[left] = False  # of these nothing is known
    return found.points[optima], found.values[optima], widths, basis, found.points[is_rest]


def _near(points: Tensor, center: Tensor, widths: Tensor, basis: Tensor) -> Tensor:
    """Which points lie within the ellipsoid that has nearly all of a Normal's mass, ``(N,)``."""
    radius = 2 + math.sqrt(len(center)) / 2
    return (((points - center) @ basis).square() @ widths) < radius**2


def _apart(points: Tensor, widths: Tensor, basis: Tensor) -> Tensor:
    """Indices of points outside of the ellipsoids of all that were chosen before them."""
    near = torch.zeros(len(points), dtype=torch.bool)
    chosen: list[int] = []
    for index in range(len(points)):
        if not near[index]:
            chosen.append(index)
            near |= _near(points, points[index], widths[index], basis[index])
    return torch.tensor(chosen, dtype=torch.long)
