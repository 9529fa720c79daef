"""New components where the mixture lacks mass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_mixtures.infer.search.climbing import climb
from pyro_mixtures.infer.search.evaluations import Evaluations
from pyro_mixtures.infer.search.natural_normals import FullNormals
from pyro_mixtures.infer.search.parts import Parts

WEIGHT = 1e-3
"""Of a new component, against one for all others."""

DEPTHS = (1000.0, 50.0, 20.0, 10.0, 5.0)
"""How far below the mixture's largest log density a point may lie before it is no candidate.

The deep ones find modes, the others mend the shape of those that are known.
"""

SHALLOW = 15.0
"""Below this depth a new component takes the shape of the one that it stands beside."""

CLIMBING_STEPS = 10

CANDIDATES, BATCHES = 4000, 40
"""Points at most among which to choose, and batches of them that are remembered."""


class Candidates:
    """Points seen so far, with the log density there.

    Args:
        points: those that stay, ``(N, D)``.
        values: ``(N,)``.
    """

    def __init__(self, points: Tensor, values: Tensor) -> None:
        self.first = points, values
        self.batches: list[tuple[Tensor, Tensor]] = []

    def add(self, points: Tensor, values: Tensor) -> None:
        """A batch of points ``(S, D)`` and of values ``(S,)``; the oldest one goes."""
        self.batches = [*self.batches[-(BATCHES - 1) :], (points, values)]

    def some(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Points and values, all or a random choice."""
        points, values = (torch.cat(x) for x in zip(self.first, *self.batches, strict=True))
        if len(points) > CANDIDATES:
            order = torch.randperm(len(points), generator=generator)[:CANDIDATES]
            points, values = points[order], values[order]
        return points, values


def grown(
    parts: Parts,
    candidates: Candidates,
    evaluations: Evaluations,
    scale: Tensor,
    generator: torch.Generator,
    *,
    count: int,
    depth: float,
    climbing: bool,
) -> Parts:
    r"""A mixture with further components, at the candidates where it lacks most.

    These have the largest :math:`\log p(x) - \max(\log q(x), \max_x \log q(x) - c)` for a depth
    c, one after another, each as if the ones before had been added already.

    Args:
        parts: the mixture.
        candidates: points seen so far; those seen here are added.
        evaluations: of the log density.
        scale: of each coordinate under the prior.
        generator: of random numbers.
        count: new components.
        depth: c.
        climbing: let each candidate ascend a little, and take its width from the Hessian there.

    Reference:
        Arenz, Zhong and Neumann, *Trust-region variational inference with Gaussian mixture
        models* (JMLR 2020), https://arxiv.org/abs/1907.04710, Section 4.2.
    """
    points, values = candidates.some(generator)
    log_q = parts.log_prob(points)
    chosen: list[int] = []
    stddevs = _average_stddev(parts, scale)
    for _ in range(count):
        lack = values - torch.maximum(log_q, log_q.amax() - depth)
        best = int(lack.argmax())
        if not bool(lack[best].isfinite()):
            break
        chosen.append(best)
        added = type(parts.normals).of_stddevs(points[best : best + 1], stddevs[None])
        here = added.log_prob(added.whiten(points, added.inverse())).squeeze(-1)
        log_q = torch.logaddexp(log_q, here + math.log(WEIGHT))
    if not chosen:
        return parts
    new = points[torch.tensor(chosen)]
    if climbing:
        ascents = climb(evaluations, new, scale, max_steps=CLIMBING_STEPS, max_count=10**9)
        candidates.add(ascents.points, ascents.values)
        normals = _by_hessian(type(parts.normals), evaluations, ascents.points, scale)
    elif depth < SHALLOW:
        shares = parts.component_log_prob(new) + parts.log_weights
        normals = type(parts.normals)(new, parts.normals.factor[shares.argmax(-1)])
    else:
        normals = type(parts.normals).of_stddevs(new, stddevs.expand_as(new))
    return parts.joined(normals, WEIGHT)


def _average_stddev(parts: Parts, scale: Tensor) -> Tensor:
    """Standard deviations, in proportion to the prior's, of the components' mean entropy."""
    volumes = parts.normals.log_volumes - scale.log().sum()
    mean = (parts.log_weights.exp() * volumes).sum() / len(scale)
    return scale * mean.exp()


def _by_hessian(
    kind: type[FullNormals], evaluations: Evaluations, points: Tensor, scale: Tensor
) -> FullNormals:
    """Normals as wide as the log density is curved, and at most as the prior."""
    if kind.event_dim == 1:
        return kind.of_stddevs(points, (scale / 2).expand_as(points))
    hessians = evaluations.hessians(points) * scale * scale.unsqueeze(-1)
    hessians = torch.where(hessians.isfinite(), hessians, 0.0)
    widths, basis = torch.linalg.eigh(-hessians)
    widths = widths.abs().clamp(min=1)
    root = basis / widths.sqrt().unsqueeze(-2)  # of the covariance
    factor = torch.linalg.qr(root.mT).R.mT
    factor = factor * factor.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return kind(points, factor * scale.unsqueeze(-1))
