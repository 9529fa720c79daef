"""The gradient estimators that are compared, and how their control variates are trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from experiments.gradient_variance_avf.problem import Problem
from experiments.lab.full_batch import Schedule, train
from experiments.lab.run import Run
from pyro_mixtures.diagnostics import GradientVariance, gradient_variance
from pyro_mixtures.distributions import AVFMultivariateNormal, OMTMultivariateNormal

Family = Callable[..., Distribution]


REPARAMETERIZATION = "RT"
FLOOR = "AVF axes, best W"
FIXED: dict[str, Family] = {
    REPARAMETERIZATION: MultivariateNormal,
    "OMT": OMTMultivariateNormal,
}
ADAPTIVE = {f"AVF {planes}, M = {m}": (planes, m) for planes in ("axes", "rows") for m in (1, 5)}
"""The planes and the rank of each control variate that is trained, by name."""


def measure(
    family: Family, problem: Problem, cost: str, draws: int, seed: int
) -> GradientVariance:
    """Moments of the gradient of L; equal seeds give all families the same samples."""
    torch.manual_seed(seed)
    distribution = partial(family, problem.loc, validate_args=False)
    parameters = {"scale_tril": problem.scale_tril}
    found = gradient_variance(
        distribution, problem.cost(cost), parameters, num_draws=draws, chunk_size=20
    )
    return found["scale_tril"]


def mean_below_diagonal(values: Tensor) -> Tensor:
    """Mean over the entries below the diagonal, ``(*B, D, D) -> (*B)``."""
    size = values.shape[-1]
    row, column = torch.tril_indices(size, size, offset=-1)
    return values[..., row, column].mean(-1)


def trained(
    run: Run, name: str, problem: Problem, cost: str, schedule: Schedule, samples: int, seed: int
) -> Family:
    """The family of that name with its control variate trained and frozen."""
    planes, rank = ADAPTIVE[name]
    family = partial(AVFMultivariateNormal, planes=planes)
    torch.manual_seed(seed)
    loc, factor = problem.loc, problem.scale_tril
    control_var = 0.1 * torch.randn(*factor.shape[:2], 2, rank, len(loc), dtype=loc.dtype)
    control_var[..., 0, :, :] = 0  # B = 0: the plain gradient to begin with
    control_var.requires_grad_()

    def loss() -> Tensor:
        q = family(loc, factor, control_var=control_var, validate_args=False)
        return problem.cost(cost)(q.rsample((samples,))).sum()

    def evaluate() -> dict[str, Any]:
        """Ratios to the reparameterization trick by a few draws, averaged over the seeds."""
        frozen = partial(family, control_var=control_var.detach())
        ours, theirs = (
            mean_below_diagonal(measure(each, problem, cost, 20, seed).variance)
            for each in (frozen, FIXED[REPARAMETERIZATION])
        )
        ratios = (ours / theirs).mean(-1)
        return {"ratio": ratios.mean().item()}

    train(run, f"{cost}, {name}", [control_var], loss, evaluate, schedule)
    return partial(family, control_var=control_var.detach())


def best_weights(problem: Problem, cost: str, samples: int, seed: int) -> Tensor:
    r"""The W of least variance, :math:`-E[g_a \epsilon_b \xi_{ab}] / E[\xi_{ab}^2]`, by samples.

    No field that turns in the planes of two axes has a variance below it: it is that of M = D.
    """
    torch.manual_seed(seed)
    factor = problem.scale_tril
    slope = curvature = torch.zeros_like(factor)
    for chunk in torch.arange(samples).split(1000):
        shape = (*factor.shape[:2], len(chunk), factor.shape[-1])  # (R, seeds, S, D)
        white = torch.randn(shape, dtype=factor.dtype)
        z = (white @ factor.mT).requires_grad_()
        value = problem.cost(cost)(z.movedim(-2, 0)).sum()
        (grad,) = torch.autograd.grad(value, z)
        h = grad @ factor
        turn, square = h * white, white.square()
        slope = slope + (grad * h).mT @ square - (grad * white).mT @ turn
        half = h.square().mT @ square
        curvature = curvature + half + half.mT - 2 * turn.mT @ turn
    return (-slope / curvature).tril(-1)  # the diagonal has nothing to turn


def families(
    run: Run,
    problem: Problem,
    cost: str,
    schedule: Schedule,
    samples: int,
    floor_samples: int,
    seed: int,
) -> dict[str, Family]:
    """All families by name, ready to be called with a mean and a Cholesky factor."""
    found = dict(FIXED)
    for name in ADAPTIVE:
        found[name] = trained(run, name, problem, cost, schedule, samples, seed)
    compute = partial(best_weights, problem, cost, floor_samples, seed)
    weights = run.stage(f"{cost}, {FLOOR}", compute)
    identity = torch.eye(weights.shape[-1]).expand_as(weights)
    control_var = torch.stack([identity, weights], -3)  # B = 1 and C = W: rank D
    found[FLOOR] = partial(AVFMultivariateNormal, control_var=control_var)
    return found
