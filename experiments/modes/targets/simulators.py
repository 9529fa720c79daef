"""Benchmarks of simulation-based inference with known likelihoods, and robot arms."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from experiments.modes.targets.target import (
    Evidence,
    Target,
    normal,
    normal_draws,
    uniform_draws,
    uniform_jacobian,
)

MOONS = (-0.6396706, 0.16234657)


def moons_log_likelihood(theta: Tensor) -> Tensor:
    """Of the first observation of sbibm, with a soft edge, ``(*S, 2) -> (*S,)``."""
    first, second = theta.unbind(-1)
    u = MOONS[0] + ((first + second) / math.sqrt(2)).abs() - 0.25
    v = MOONS[1] - (second - first) / math.sqrt(2)
    radius = (u.square() + v.square()).sqrt()
    return normal(radius, 0.1, 0.01) - 0.5 * (u.clamp(max=0) / 0.01).square()


def two_moons() -> Target:
    """Two crescents."""

    def log_density(z: Tensor) -> Tensor:
        return uniform_jacobian(z).sum(-1) + moons_log_likelihood(2 * z.sigmoid() - 1)

    def model() -> None:
        one = torch.ones(2, dtype=torch.float64)
        theta: Any = pyro.sample("theta", dist.Uniform(-one, one).to_event(1))
        pyro.factor("likelihood", moons_log_likelihood(theta))

    return Target(
        "two_moons",
        2,
        log_density,
        lambda count, generator: uniform_draws(count, 2, generator),
        Evidence(-1.773846, 0.0, "grid"),
        mode_of=lambda z: ((2 * z.sigmoid() - 1).sum(-1) > 0).long(),
        mode_weights=torch.tensor([0.5, 0.5], dtype=torch.float64),
        model=model,
        plane=(0, 1),
        floors=-6.1,
    )


SLCP_POINTS = torch.tensor(
    [
        [2.3718784, 0.49947417],
        [9.931435, 1.7136912],
        [-10.436423, -1.9067793],
        [-1.2343777, -0.09735],
    ],
    dtype=torch.float64,
)


def slcp_log_likelihood(theta: Tensor) -> Tensor:
    """Of four points in the plane, ``(*S, 5) -> (*S,)``."""
    mean, first, second, correlation = theta[..., :2], *theta[..., 2:].unbind(-1)
    off = correlation.tanh() * first.square() * second.square()
    xx, yy = first.pow(4) + 1e-6, second.pow(4) + 1e-6
    # xx yy - off^2 would lose digits where the correlation is nearly one
    shrink = correlation.cosh().pow(-2)  # 1 - tanh^2
    determinant = (first * second).pow(4) * shrink + 1e-6 * (first.pow(4) + second.pow(4)) + 1e-12
    x, y = (SLCP_POINTS - mean.unsqueeze(-2)).unbind(-1)  # (*S, 4)
    xx, yy, off = xx.unsqueeze(-1), yy.unsqueeze(-1), off.unsqueeze(-1)
    quadratic = (yy * x.square() - 2 * off * x * y + xx * y.square()).sum(-1) / determinant
    points = len(SLCP_POINTS)
    return -0.5 * quadratic - 0.5 * points * determinant.log() - points * math.log(2 * math.pi)


def slcp() -> Target:
    """A simple likelihood, a complex posterior: two parameters enter by their squares."""

    def log_density(z: Tensor) -> Tensor:
        return uniform_jacobian(z).sum(-1) + slcp_log_likelihood(6 * z.sigmoid() - 3)

    def model() -> None:
        three = torch.full((5,), 3.0, dtype=torch.float64)
        theta: Any = pyro.sample("theta", dist.Uniform(-three, three).to_event(1))
        pyro.factor("likelihood", slcp_log_likelihood(theta))

    return Target(
        "slcp",
        5,
        log_density,
        lambda count, generator: uniform_draws(count, 5, generator),
        Evidence(-20.826, 0.001, "importance sampling"),
        mode_of=lambda z: 2 * (z[:, 2] > 0).long() + (z[:, 3] > 0).long(),
        mode_weights=torch.full((4,), 0.25, dtype=torch.float64),
        model=model,
        plane=(2, 3),
        floors=-33.9,
    )


ROBOT_SCALES = torch.tensor([1.0] + 9 * [0.2], dtype=torch.float64)
GOALS = torch.tensor([[7.0, 0.0], [-7.0, 0.0], [0.0, 7.0], [0.0, -7.0]], dtype=torch.float64)
GOAL_SCALE = 0.01
FIRST_ANGLES = torch.tensor(
    [[1.1, -1.1], [-2.04, 2.04], [2.67, 0.47], [-0.47, -2.67]], dtype=torch.float64
)
"""Of the usual winding, by goals and by arms that bend to the right or to the left."""
ROBOT_FLOORS = torch.tensor(
    [-10.7, -10.7, -12.5, -12.5, -13.9, -10.2, -10.2, -13.9], dtype=torch.float64
)
ROBOT_WEIGHTS = {
    1: torch.tensor([0.5, 0.5], dtype=torch.float64),
    4: torch.tensor(
        [0.1721, 0.1721, 0.0420, 0.0420, 0.0104, 0.2747, 0.2747, 0.0104], dtype=torch.float64
    ),
}


def joints(theta: Tensor) -> Tensor:
    """Ends of the ten links of length one, ``(*S, 10) -> (*S, 10, 2)``."""
    angles = theta.cumsum(-1)
    return torch.stack([angles.cos(), angles.sin()], -1).cumsum(-2)


def robot(goals: int) -> Target:
    """Ten joints of an arm in the plane whose end is at one of the goals."""
    places = GOALS[:goals]

    def log_likelihood(theta: Tensor) -> Tensor:
        angles = theta.cumsum(-1)
        end = torch.stack([angles.cos().sum(-1), angles.sin().sum(-1)], -1).unsqueeze(-2)
        return normal(end, places, GOAL_SCALE).sum(-1).amax(-1)

    def log_density(theta: Tensor) -> Tensor:
        return normal(theta, 0.0, ROBOT_SCALES).sum(-1) + log_likelihood(theta)

    def mode_of(theta: Tensor) -> Tensor:
        """The nearest goal times the side to which the arm bends; -1 for rare windings."""
        end = joints(theta)[:, -1]
        goal = (end.unsqueeze(1) - places).square().sum(-1).argmin(-1)  # (S,)
        left = (theta[:, 1:].sum(-1) > 0).long()
        usual = (theta[:, 0] - FIRST_ANGLES[goal, left]).abs() < math.pi
        return torch.where(usual, 2 * goal + left, -1)

    def model() -> None:
        zeros = torch.zeros(10, dtype=torch.float64)
        theta: Any = pyro.sample("theta", dist.Normal(zeros, ROBOT_SCALES).to_event(1))
        pyro.factor("likelihood", log_likelihood(theta))

    return Target(
        f"robot_{goals}",
        10,
        log_density,
        normal_draws(0.0, ROBOT_SCALES, 10),
        Evidence(
            -11.6796 if goals == 1 else -10.6133,
            0.0004,
            "importance sampling, two angles exactly",
        ),
        mode_of=mode_of,
        mode_weights=ROBOT_WEIGHTS[goals],
        model=model,
        floors=ROBOT_FLOORS[: 2 * goals],
    )
