"""How the evidence was had: ``python -m experiments.modes.targets.truth [NAMES]`` prints it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from experiments.modes.targets import TARGETS, importance, posteriordb, regressions, simulators
from experiments.modes.targets.importance import Kind, mean_of_weights
from experiments.modes.targets.target import Target, normal

OPTIONS: dict[str, Any] = {"dtype": torch.float64}


def axis(low: float, high: float, points: int) -> tuple[Tensor, float]:
    """Midpoints of equal cells, and the log of a cell's size."""
    size = (high - low) / points
    return low + size * (torch.arange(points, **OPTIONS) + 0.5), math.log(size)


def on_grid(
    target: Target, bounds: list[tuple[float, float]], points: int
) -> tuple[float, Tensor]:
    """The evidence and the weights of modes by the midpoint rule, one slab after another."""
    axes, sizes = zip(*(axis(low, high, points) for low, high in bounds), strict=True)
    sums = torch.full((len(target.mode_weights),), -math.inf, **OPTIONS)
    rest = torch.cartesian_prod(*axes[1:]).reshape(-1, len(axes) - 1)
    for first in axes[0]:
        z = torch.cat([first.expand(len(rest), 1), rest], -1)
        values, modes = target.log_density(z), target.mode_of(z)
        for mode in range(len(sums)):
            part = values[modes == mode].logsumexp(0)
            sums[mode] = torch.logaddexp(sums[mode], part)
    evidence = sums.logsumexp(0)
    return evidence.item() + sum(sizes), (sums - evidence).exp()


def radial_velocity(points: int) -> tuple[float, Tensor]:
    """A grid over the frequency; amplitudes and the offset in closed form."""
    frequencies, size = axis(0.02, 0.98, points)
    values = radial_velocity_log_density(frequencies) + size - math.log(0.98 - 0.02)
    modes = torch.bucketize(frequencies, regressions.RV_BOUNDS)
    parts = torch.stack([values[modes == mode].logsumexp(0) for mode in range(6)])
    evidence = parts.logsumexp(0)
    return evidence.item(), (parts - evidence).exp()


def radial_velocity_log_density(frequencies: Tensor) -> Tensor:
    """Of the velocities given the frequency, ``(N,)``."""
    angles = 2 * math.pi * frequencies.unsqueeze(-1) * regressions.RV_TIMES
    columns = torch.stack([angles.cos(), angles.sin(), torch.ones_like(angles)], -1)
    noise = 1.2**2 * torch.eye(len(regressions.RV_TIMES), **OPTIONS)
    covariance = 4.0**2 * columns @ columns.mT + noise
    observed = MultivariateNormal(torch.zeros_like(regressions.RV_TIMES), covariance)
    return observed.log_prob(regressions.RV_VALUES)


def eight_schools(points: int) -> float:
    """A grid over the mean and the logarithm of the scale; effects in closed form."""
    y = posteriordb.observations("eight_schools", "y")
    sigma = posteriordb.observations("eight_schools", "sigma")
    mu, mu_size = axis(-40, 40, points)
    log_tau, tau_size = axis(-25, 12, points)
    scale = ((2 * log_tau).exp().unsqueeze(-1) + sigma.square()).sqrt().unsqueeze(1)
    likelihood = normal(y, mu.reshape(1, -1, 1), scale).sum(-1)  # (T, M)
    prior = posteriordb.half_cauchy(log_tau, 5.0).unsqueeze(-1) + normal(mu, 0.0, 5.0)
    return (likelihood + prior).logsumexp((0, 1)).item() + mu_size + tau_size


SOLVED = 5
"""The joint of an arm whose angle follows from the others and from where the end is."""


def robot(goal: Tensor, count: int) -> tuple[float, float]:
    """Arms that bend to the left: eight angles are drawn, two follow from where the end is.

    The end is drawn from the likelihood, and the proposal is fitted to the weights in eight
    rounds. Every winding of the first angle counts.
    """
    loc, root = torch.full((8,), 0.3, **OPTIONS), 0.25 * torch.eye(8, **OPTIONS)
    for _ in range(8):
        weights, angles = _arms(goal, count // 4, loc, root)
        flat = weights.flatten()
        shares = (flat - flat.logsumexp(0)).exp().clamp(max=0.002)
        shares = (shares / shares.sum()).unsqueeze(-1)
        rest = torch.cat([angles[..., 1:SOLVED], angles[..., SOLVED + 1 :]], -1).reshape(-1, 8)
        loc = (shares * rest).sum(0)
        covariance = (rest - loc).mT @ (shares * (rest - loc))
        root = torch.linalg.cholesky(1.3 * covariance + 1e-4 * torch.eye(8, **OPTIONS))
    return mean_of_weights(_arms(goal, count, loc, root)[0].logsumexp(0))


def _arms(goal: Tensor, count: int, loc: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """Log weights ``(solutions, count)`` and angles of arms whose end is near to the goal."""
    white = torch.randn(count, 8, **OPTIONS)
    rest = loc + white @ root.mT
    proposal = normal(white, 0.0, 1.0).sum(-1) - root.diagonal().log().sum()
    common = normal(rest, 0.0, 0.2).sum(-1) - proposal
    end = goal + simulators.GOAL_SCALE * torch.randn(count, 2, **OPTIONS)
    # both halves of the arm in their own frames, as complex numbers
    zero = torch.zeros(count, 1, **OPTIONS)
    before = torch.cat([zero, rest[:, : SOLVED - 1]], -1).cumsum(-1)
    after = torch.cat([zero, rest[:, SOLVED - 1 :]], -1).cumsum(-1)
    first = torch.polar(torch.ones_like(before), before).sum(-1)
    second = torch.polar(torch.ones_like(after), after).sum(-1)
    place = torch.complex(end[:, 0], end[:, 1])
    product = first.abs() * second.abs()
    cosine = place.abs().square() - first.abs().square() - second.abs().square()
    cosine = cosine / (2 * product)
    bend = cosine.clamp(-1, 1).acos()
    weights, angles = [], []
    for side in (1, -1):
        solved = side * bend + first.angle() - before[:, -1] - second.angle()
        solved = torch.remainder(solved + math.pi, 2 * math.pi) - math.pi
        whole = first + torch.polar(torch.ones_like(solved), before[:, -1] + solved) * second
        for winding in (-2, -1, 0, 1, 2):
            start = place.angle() - whole.angle()
            start = torch.remainder(start + math.pi, 2 * math.pi) - math.pi + 2 * math.pi * winding
            arm = [start.unsqueeze(-1), rest[:, : SOLVED - 1], solved.unsqueeze(-1)]
            theta = torch.cat([*arm, rest[:, SOLVED - 1 :]], -1)
            weight = common + normal(start, 0.0, 1.0) + normal(solved, 0.0, 0.2)
            weight = weight - (product * bend.sin()).log()  # the Jacobian of the end
            possible = (cosine.abs() < 1) & (theta[:, 1:].sum(-1) > 0)
            weights.append(torch.where(possible, weight, -math.inf))
            angles.append(theta)
    return torch.stack(weights), torch.stack(angles)


def robots(goals: int) -> tuple[float, float]:
    """All goals and sides: an arm to the right is the image of one to the left."""
    parts = [robot(goal, 1_000_000) for goal in simulators.GOALS[:goals]]
    values, errors = torch.tensor(parts, **OPTIONS).unbind(-1)
    total = values.logsumexp(0)
    error = ((values - total).exp() * errors).norm()
    return total.item() + math.log(2), error.item()


def gaussian_process() -> tuple[float, float]:
    """Two grids, whose difference is the error."""
    bounds = [(-7.0, 9.0), (-4.5, 4.5), (-10.0, 5.5)]
    values = [on_grid(TARGETS["gaussian_process"](), bounds, n)[0] for n in (120, 180)]
    return values[1], abs(values[1] - values[0])


TRUTHS: dict[str, Callable[[], tuple[float, float]]] = {
    "gaussian_process": gaussian_process,
    "two_moons": lambda: (on_grid(TARGETS["two_moons"](), [(-5, 5), (-5, 5)], 4000)[0], 0.0),
    "radial_velocity": lambda: (radial_velocity(100_000)[0], 0.0),
    "eight_schools": lambda: (eight_schools(1000), 0.0),
    "robot_1": lambda: robots(1),
    "robot_4": lambda: robots(4),
    "slcp": lambda: importance.evidence(TARGETS["slcp"](), Kind(copies=4, components=20)),
    "normal_2": lambda: importance.evidence(TARGETS["normal_2"](), Kind(copies=2, components=3)),
    "low_dim_gauss_mix": lambda: importance.evidence(
        TARGETS["low_dim_gauss_mix"](), Kind(components=5)
    ),
    "low_dim_gauss_mix_collapse": lambda: importance.evidence(
        TARGETS["low_dim_gauss_mix_collapse"](), Kind(copies=2, components=5)
    ),
    "normal_5": lambda: importance.evidence(
        TARGETS["normal_5"](), Kind(copies=120, components=60, by_chains=True)
    ),
    "breast_cancer": lambda: importance.evidence(TARGETS["breast_cancer"](), Kind(components=2)),
    "logistic_regression": lambda: importance.by_annealing(
        TARGETS["logistic_regression"](), count=1000, steps=150
    ),
}
"""How the evidence and its standard error are had again, by names."""


def main(names: list[str]) -> None:
    """Print evidence as stored and as computed."""
    for name in names or list(TRUTHS):
        torch.manual_seed(0)
        stored = TARGETS[name]().evidence
        value, error = TRUTHS[name]()
        told = f"{stored.value:.5f} +- {stored.error:.5f} stored ({stored.how})"
        print(f"{name}: {value:.5f} +- {error:.5f} computed, {told}")


if __name__ == "__main__":
    main(sys.argv[1:])
