"""New optima from those that ascents have found: some coordinates of one, the rest of another."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mixtures.infer.search.climbing import Ascents, climb, joined_ascents
from pyro_mixtures.infer.search.evaluations import Evaluations

SAME = 1e-2
"""Distance, in prior standard deviations, below which two ascents have found one optimum."""

MAX_STEPS = 150
"""Of an ascent."""

GENERATIONS, LEAST = 20, 10
"""Of children at most, and of optima, for them to have any."""

WORTH = 0.5
"""Share of the first children that have to be higher than the lower of their parents, as most are
where coordinates do not depend on each other."""

NEW = 0.05
"""Share of new ones among the highest optima, below which there are no further generations."""


def crossed(
    evaluations: Evaluations,
    optima: Ascents,
    scale: Tensor,
    generator: torch.Generator,
    *,
    parents: int,
    max_count: int,
) -> Ascents:
    """Optima, with those to which children of pairs of them ascend, the highest first.

    A child has each coordinate from one of its parents at random, and counts if it is higher than
    the lower of the two. Where coordinates hardly depend on each other, as those of several groups
    with two explanations each, an ascent from a draw of the prior has to be lucky in each of them,
    and few generations of children have the best of all. Elsewhere children are lower than their
    parents, which the first generation tells at the cost of one evaluation each.

    Args:
        evaluations: of the log density.
        optima: distinct ones.
        scale: of each coordinate under the prior.
        generator: of random numbers.
        parents: optima that have children, the highest ones.
        max_count: of evaluations; no generation begins after that many.
    """
    first, optima = evaluations.count, distinct(optima, scale)
    for generation in range(GENERATIONS):
        top = optima[torch.arange(len(optima.points))[:parents]]
        count = len(top.points)
        if count < LEAST or evaluations.count - first >= max_count:
            break
        one, other = (torch.randperm(count, generator=generator) for _ in range(2))
        own = torch.rand(top.points.shape, generator=generator) < 0.5
        children = torch.where(own, top.points[one], top.points[other])
        lower = torch.minimum(top.values[one], top.values[other])
        good = evaluations.values(children) > lower
        if generation == 0 and int(good.sum()) <= WORTH * count:
            break
        new = climb(evaluations, children[good], scale, max_steps=MAX_STEPS, max_count=max_count)
        optima = distinct(joined_ascents(optima, new[new.converged]), scale)
        among = torch.cdist(optima.points[:count] / scale, top.points / scale)
        if int((among.amin(-1) > SAME).sum()) <= NEW * count:
            break
    return optima


def distinct(ascents: Ascents, scale: Tensor) -> Ascents:
    """One of each optimum, the highest first."""
    order = ascents.values.argsort(descending=True, stable=True)
    ascents = ascents[order[ascents.values[order].isfinite()]]
    points = ascents.points / scale
    exact = "donot_use_mm_for_euclid_dist"  # expanded squares lose the digits far from zero
    near = torch.cdist(points, points, compute_mode=exact) < SAME
    taken, chosen = torch.zeros(len(near), dtype=torch.bool), []
    for index in range(len(near)):
        if not taken[index]:
            chosen.append(index)
            taken |= near[index]
    return ascents[torch.tensor(chosen, dtype=torch.long)]
