"""The first components: at the optima that ascents from prior draws find, and local fits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mixtures.infer.search.climbing import Ascents, climb, joined_ascents
from pyro_mixtures.infer.search.crossing import MAX_STEPS, crossed, distinct
from pyro_mixtures.infer.search.evaluations import Evaluations
from pyro_mixtures.infer.search.laplace import Optima, laplace
from pyro_mixtures.infer.search.natural_normals import FullNormals
from pyro_mixtures.infer.search.parts import Parts
from pyro_mixtures.infer.search.sample_store import NO_MASS

SHARE = 0.3
"""Of the budget, at most, for the ascents: in a funnel they run away and never end."""

CROSSING_SHARE = 0.05
"""Of the budget, at most, for children of optima."""

PARENTS = 100
"""Optima that have children, the highest ones."""

LOCAL_FITS, LOCAL_STEPS, LOCAL_TRUST = 60, 25, 1.0
"""Of a Normal each: half from prior draws, and half from optima without a Hessian of their own."""

LOCAL_SHARE = 0.15
"""Of the budget, at most, for the local fits."""

FEW_DIMENSIONS, APART = 20, 20.0
"""In more dimensions than the first, means of local fits of one place differ by a squared standard
deviation for each further 20. In few, all local fits are kept: a curved place needs them."""

LEAST = 0.01
"""Share of an equal weight that each first component has at least."""


class Start(NamedTuple):
    """What the starts have found.

    Args:
        parts: the first components.
        optima: with Laplace approximations.
        points: that were visited and are worth a look later, ``(N, D)``.
        values: of the log density there, ``(N,)``.
        converged: share of the ascents that have ended at an optimum.
    """

    parts: Parts
    optima: Optima
    points: Tensor
    values: Tensor
    converged: float


def started(
    evaluations: Evaluations,
    draws: Tensor,
    generator: torch.Generator,
    *,
    kind: type[FullNormals],
    wanted: int,
    max_parts: int,
    max_count: int,
) -> Start:
    """Components of a first mixture.

    Args:
        evaluations: of the log density.
        draws: from the prior, ``(B, D)``.
        generator: of random numbers.
        kind: of Normals.
        wanted: samples of a Normal in a step of a local fit.
        max_parts: the largest number of Laplace approximations.
        max_count: of all evaluations.

    Raises:
        ValueError: where the density has no mass at any of the draws.
    """
    loc, scale = draws.mean(0), prior_scale(draws)
    ascents = climb(
        evaluations, draws, scale, max_steps=MAX_STEPS, max_count=int(SHARE * max_count)
    )
    if not bool(ascents.values.isfinite().any()):
        failure = evaluations.first_failure
        raise ValueError(
            "Expected a log density with mass at one of the starts, but got none at"
            f" {len(draws)} of them" + (f"; the first failure: {failure}" if failure else "")
        )
    found = distinct(ascents, scale)
    normals, optima, rest = laplace(evaluations, found, scale, kind, max_parts)
    better = crossed(
        evaluations,
        Ascents(optima.points, optima.values, torch.ones(len(optima.points), dtype=torch.bool)),
        scale,
        generator,
        parents=PARENTS,
        max_count=int(CROSSING_SHARE * max_count),
    )
    if len(better.points) > len(optima.points):
        found = distinct(joined_ascents(found, better), scale)
        normals, optima, rest = laplace(evaluations, found, scale, kind, max_parts)
    order = torch.randperm(len(draws), generator=generator)
    fits = min(LOCAL_FITS, 2 + int(LOCAL_SHARE * max_count / (LOCAL_STEPS * wanted)))
    from_draws = fits - fits // 2
    if len(scale) > FEW_DIMENSIONS:  # they are dear, and of use where ascents run away
        from_draws = math.ceil(from_draws * len(rest) / len(found.points))
    firsts = torch.cat([rest[: fits // 2], draws[order[:from_draws]]])
    local = kind.of_stddevs(firsts, (scale / 2).expand_as(firsts))
    local, elbos, visited = _fitted(evaluations, local, wanted, generator)
    best = _best_of_each(local, elbos)
    local, elbos = local[best], elbos[best]
    wide = kind.of_stddevs(loc[None], scale[None])
    every = normals.beside(local).beside(wide)
    masses = torch.cat([optima.log_masses[: len(normals)], elbos, elbos.new_full((1,), -math.inf)])
    if not bool(masses.isfinite().any()):  # all reach to where no mass is: none is known as better
        masses = torch.zeros_like(masses)
    log_weights = masses.log_softmax(0).clamp(min=math.log(LEAST / len(every)))
    return Start(
        parts=Parts.new(every, log_weights),
        optima=optima,
        points=torch.cat([found.points, visited[0]]),
        values=torch.cat([found.values, visited[1]]),
        converged=float(ascents.converged.double().mean()),
    )


def prior_scale(draws: Tensor) -> Tensor:
    """Of each coordinate, robust against heavy tails, ``(D,)``."""
    quantiles = torch.tensor([0.1587, 0.8413], dtype=draws.dtype)
    low, high = draws.quantile(quantiles, 0)
    return torch.where(high > low, (high - low) / 2, draws.std(0).clamp(min=1e-8))


def check_starts(starts: Tensor) -> None:
    """Draws of the prior have to tell a scale for each coordinate."""
    if starts.dim() != 2 or len(starts) < 2 or not bool(starts.isfinite().all()):
        raise ValueError(
            "Expected starts of shape (B, D) with B of at least 2, all finite, but got shape"
            f" {tuple(starts.shape)}"
        )
    same = (starts == starts[0]).all(0).nonzero().squeeze(-1).tolist()
    if same or starts.shape[1] == 0:
        raise ValueError(
            "Expected starts that differ in each coordinate, since their spread is taken for its"
            f" scale, but got shape {tuple(starts.shape)} with all rows the same in {same}"
        )


def _best_of_each(normals: FullNormals, elbos: Tensor) -> Tensor:
    """Indices of the Normals that are not at the place of a better one, ``(N,)``."""
    whitened = normals.whiten(normals.locs, normals.inverse())
    noise = max(0, whitened.shape[-1] - FEW_DIMENSIONS) / APART
    near = whitened.square().sum(-1) < noise  # (point, Normal)
    chosen: list[int] = []
    for index in elbos.argsort(descending=True, stable=True).tolist():
        if not bool(near[index, chosen].any()):
            chosen.append(index)
    return torch.tensor(chosen, dtype=torch.long)


def _fitted(
    evaluations: Evaluations, normals: FullNormals, wanted: int, generator: torch.Generator
) -> tuple[FullNormals, Tensor, tuple[Tensor, Tensor]]:
    """Normals that are each a fit of its own, their ELBOs, and the points seen with values."""
    count, dimension = normals.locs.shape
    trusts = normals.locs.new_full((count,), LOCAL_TRUST)
    seen = []
    for _ in range(LOCAL_STEPS):
        half = torch.randn(
            (wanted // 2, count, dimension), generator=generator, dtype=normals.locs.dtype
        )
        noise = torch.cat([half, -half])  # (S, K, D)
        own = torch.arange(count).repeat(wanted)
        z = normals.locs[own] + normals.spread(own, noise.flatten(0, 1))
        values, gradients = evaluations.values_and_gradients(z)
        seen.append((z, values))
        with_mass = values.isfinite().view(wanted, count)
        weights = torch.full_like(noise[..., 0], 1 / wanted)
        residuals = gradients.view_as(noise) - normals.scores(noise, normals.inverse())
        residuals = torch.where(with_mass.unsqueeze(-1), residuals, 0.0)
        gains = values.view(wanted, count) - normals.log_prob(noise)
        elbos = gains.mean(0)  # minus infinity for those that reach where no mass is
        jumps = None if bool(with_mass.all()) else torch.where(with_mass, 0.0, -NO_MASS).to(z)
        normals, _ = normals.moved(noise, weights, residuals, trusts, jumps)
    points, values = (torch.cat(each) for each in zip(*seen, strict=True))
    return normals, elbos, (points, values)
