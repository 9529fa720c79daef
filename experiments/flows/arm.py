"""An arm of two joints in the plane, whose hand is where it is with the elbow left or right."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCALES = torch.tensor([0.6, 1.2])
"""Of the angles, which are Normal: of the shoulder, and of the elbow against the upper arm."""
NOISE = 0.05
"""Of the place of the hand, in units of the upper and of the lower arm."""
SHOWN = torch.tensor([1.2, 0.5])
"""Where the hand of the figure is."""
SIDE, REACH = 201, 4.0
"""Of a grid over the angles, in units of their scales."""


def hand(angles: Tensor) -> Tensor:
    """Where the hand is, ``(*S, 2)``."""
    ends = torch.stack([angles[..., 0], angles.sum(-1)], -1)
    return torch.stack([ends.cos().sum(-1), ends.sin().sum(-1)], -1)


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Angles, and where the hand was seen, ``(count, 2)`` both."""
    angles = SCALES * torch.randn(count, 2, generator=generator)
    return angles, hand(angles) + NOISE * torch.randn(count, 2, generator=generator)


def log_joint(angles: Tensor, places: Tensor) -> Tensor:
    """Of angles and places of the hand, ``(*S)``."""
    prior = torch.distributions.Normal(0.0, SCALES).log_prob(angles).sum(-1)
    seen = torch.distributions.Normal(hand(angles), NOISE).log_prob(places).sum(-1)
    return prior + seen


def log_posterior(angles: Tensor, places: Tensor) -> Tensor:
    """Log p(angles | place), by a sum over a grid, ``(N, 2), (N, 2) -> (N,)``."""
    line = torch.linspace(-REACH, REACH, SIDE)
    grid = SCALES * torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    log_cell = 2 * math.log(float(line[1] - line[0])) + float(SCALES.log().sum())
    evidence = torch.cat([log_joint(grid, place).logsumexp(0, True) for place in places])
    return log_joint(angles, places) - evidence - log_cell
