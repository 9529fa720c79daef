"""Many ascents of a log density at once, by L-BFGS."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_mixtures.infer.search.evaluations import Evaluations

MEMORY = 10
"""Pairs of steps and changes of the gradient from which the curvature is known."""

FIRST = 0.1
"""Length of a step along the gradient, in scales."""

SLOPE = 1e-4
"""Share of the promised gain that a step must bring (Armijo)."""

TRIALS = 12
"""Lengths of one step that are tried."""

SMALL, SMALL_STEPS = 1e-3, 3
"""Gain in nats that counts as none, and how many of those in a row make an optimum."""


@dataclass(frozen=True)
class Ascents:
    """Where ascents have ended.

    Attributes:
        points: ``(B, D)``.
        values: of the log density there, ``(B,)``; ``-inf`` for those that began without mass.
        converged: which have ended at an optimum, ``(B,)``.
    """

    points: Tensor
    values: Tensor
    converged: Tensor

    def __getitem__(self, index: Tensor) -> Ascents:
        return Ascents(self.points[index], self.values[index], self.converged[index])


def joined_ascents(*ascents: Ascents) -> Ascents:
    """One after another."""
    names = ("points", "values", "converged")
    return Ascents(*(torch.cat([getattr(each, name) for each in ascents]) for name in names))


def climb(
    evaluations: Evaluations, starts: Tensor, scale: Tensor, *, max_steps: int, max_count: int
) -> Ascents:
    """Ascents from each of the points ``starts (B, D)``.

    No step is longer than ``sqrt(D)`` scales. An ascent that has converged, or whose step brings
    no gain however short, drops out of the batch.

    Args:
        evaluations: of the log density.
        starts: ``(B, D)``.
        scale: of each coordinate, ``(D,)``.
        max_steps: of each ascent.
        max_count: of evaluations; no step begins after that many.
    """
    points, first = starts.clone(), evaluations.count
    values, gradients = evaluations.values_and_gradients(points)
    gradients = gradients * scale
    curvature = _Curvature(points)
    active, idle = values.isfinite(), torch.zeros(len(points), dtype=torch.long)
    converged = torch.zeros_like(active)
    for _ in range(max_steps):
        index = active.nonzero().squeeze(-1)
        if len(index) == 0 or evaluations.count - first >= max_count:
            break
        here = points[index], values[index], gradients[index]
        steps = _bounded(curvature.direction(index, here[2]), here[2])
        new_points, new_values, new_gradients, stuck = _searched(evaluations, here, steps, scale)
        curvature.add(index, (new_points - here[0]) / scale, here[2] - new_gradients)
        idle[index] = torch.where(new_values - here[1] < SMALL, idle[index] + 1, 0)
        points[index], values[index], gradients[index] = new_points, new_values, new_gradients
        done = stuck | (idle[index] >= SMALL_STEPS)
        converged[index[done]], active[index[done]] = True, False
    return Ascents(points, values, converged)


def _bounded(steps: Tensor, gradients: Tensor) -> Tensor:
    """Steps uphill, and not longer than the square root of their dimension, ``(B, D)``."""
    uphill = (steps * gradients).sum(-1) > 0
    lengths = gradients.norm(dim=-1).clamp(min=1e-300)
    steps = torch.where(uphill[:, None], steps, gradients * (FIRST / lengths)[:, None])
    longest = steps.shape[-1] ** 0.5
    return steps * (longest / steps.norm(dim=-1).clamp(min=longest)).unsqueeze(-1)


def _searched(
    evaluations: Evaluations, here: tuple[Tensor, Tensor, Tensor], steps: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points, values and gradients that are higher by enough, and which have found none."""
    points, values, gradients = (each.clone() for each in here)
    slopes, lengths = (steps * here[2]).sum(-1), torch.ones_like(values)
    left = torch.arange(len(points))
    for _ in range(TRIALS):
        tried = here[0][left] + lengths[left, None] * steps[left] * scale
        tried_values, tried_gradients = evaluations.values_and_gradients(tried)
        enough = tried_values >= here[1][left] + SLOPE * lengths[left] * slopes[left]
        found = left[enough]
        points[found], values[found] = tried[enough], tried_values[enough]
        gradients[found] = tried_gradients[enough] * scale
        # far outside of the support more is needed than where a step was only too long
        lengths[left] *= torch.where(tried_values.isfinite(), 0.3, 0.1)
        left = left[~enough]
        if len(left) == 0:
            break
    stuck = torch.zeros(len(points), dtype=torch.bool)
    stuck[left] = True
    return points, values, gradients, stuck


class _Curvature:
    """What each ascent knows of the Hessian: its last pairs, those without use being zero."""

    def __init__(self, points: Tensor) -> None:
        self.steps = points.new_zeros(MEMORY, *points.shape)
        self.changes = torch.zeros_like(self.steps)
        self.inverses = points.new_zeros(MEMORY, len(points))  # of the inner products
        self.scales = points.new_zeros(len(points))
        self.added = 0

    def add(self, index: Tensor, steps: Tensor, changes: Tensor) -> None:
        inner, squared = (steps * changes).sum(-1), changes.square().sum(-1)
        useful = inner > 1e-10 * steps.norm(dim=-1) * squared.sqrt()
        slot = self.added % MEMORY
        self.steps[slot, index] = torch.where(useful[:, None], steps, 0.0)
        self.changes[slot, index] = torch.where(useful[:, None], changes, 0.0)
        self.inverses[slot, index] = torch.where(useful, inner.reciprocal(), 0.0)
        self.scales[index] = torch.where(useful, inner / squared, self.scales[index])
        self.added += 1

    def direction(self, index: Tensor, gradients: Tensor) -> Tensor:
        """The two-loop recursion (Nocedal and Wright, Algorithm 7.4), ``(B, D)``."""
        newest_first = [(self.added - 1 - age) % MEMORY for age in range(min(self.added, MEMORY))]
        direction, shares = gradients, []
        for slot in newest_first:
            steps, changes = self.steps[slot, index], self.changes[slot, index]
            share = self.inverses[slot, index] * (steps * direction).sum(-1)
            direction = direction - share.unsqueeze(-1) * changes
            shares.append(share)
        plain = FIRST / gradients.norm(dim=-1).clamp(min=1e-300)
        known = self.scales[index]
        direction = direction * torch.where(known > 0, known, plain).unsqueeze(-1)
        for slot, share in zip(reversed(newest_first), reversed(shares), strict=True):
            steps, changes = self.steps[slot, index], self.changes[slot, index]
            back = self.inverses[slot, index] * (changes * direction).sum(-1)
            direction = direction + (share - back).unsqueeze(-1) * steps
        return direction
