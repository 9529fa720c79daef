"""Estimates of the logits' gradient, ``(N, K)``: one for each sample, by each estimator.

The package's own fields and groups are put together here for many samples of one mixture at
once; the estimators of the package do the same for one sample of many mixtures.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from experiments.logit_gradients.costs import Cost
from experiments.logit_gradients.draws import Draws
from pyro_mixtures import estimators
from pyro_mixtures.distributions import AVFMixtureOfDiagNormals, MixtureOfDiagNormals
from pyro_mixtures.distributions.blending import Blending
from pyro_mixtures.distributions.normal_mixture import NormalMixture
from pyro_mixtures.distributions.strata import component_samples
from pyro_mixtures.distributions.weights import group_sums, within_group

HUB_RATE = 0.1
"""Learning rate of a hub, in its standard deviations, for one dimension."""


@torch.no_grad()
def transported(draws: Draws, transport: str, groups: Tensor | None = None) -> Tensor:
    r""":math:`\pi_j (A_j - \sum_{k \in C} (\pi_k / \pi_C) A_k)`, by one group unless told."""
    mixture = draws.mixture
    within = within_group(mixture.log_weights, groups)
    contributions = type(mixture).transports[transport](
        draws.z,
        draws.grad,
        draws.log_prob,
        within,
        *mixture._components,
        precision=torch.float64,
    )
    return draws.weights * (contributions - contributions @ within.mT)


def score(draws: Draws) -> Tensor:
    r""":math:`(r_j - \pi_j) (f - b)`, for the logits that of the hybrid estimator as well."""
    return draws.advantage * (draws.responsibilities - draws.weights)


def score_between(draws: Draws, groups: Tensor) -> Tensor:
    r"""The score function between groups, :math:`\pi_j (r_C / \pi_C - 1) (f - b)`."""
    return draws.advantage * (_group_shares(draws, groups) - draws.weights)


def score_within(draws: Draws, groups: Tensor) -> Tensor:
    r"""The score function within groups, :math:`(r_j - r_C \pi_j / \pi_C) (f - b)`."""
    return draws.advantage * (draws.responsibilities - _group_shares(draws, groups))


def _group_shares(draws: Draws, groups: Tensor) -> Tensor:
    shares = draws.weights / group_sums(draws.weights, groups)
    return group_sums(draws.responsibilities, groups) * shares


def overlapping(mixture: NormalMixture) -> Tensor:
    """The groups of the package's ``clustered``, labels ``(K,)``."""
    return estimators.clustered(mixture)._groups


def chained(mixture: NormalMixture) -> Tensor:
    """The groups of the package's ``blended``, labels ``(K,)``."""
    return estimators.blended(mixture, Blending())._groups


def clustered(draws: Draws, transport: str = "displacement") -> Tensor:
    """Transport within groups, the score function between them."""
    groups = overlapping(draws.mixture)
    return transported(draws, transport, groups) + score_between(draws, groups)


def learn(pilot: Draws, transport: str = "displacement") -> Blending:
    """The shares of transport and score function that were the best for other samples."""
    groups = chained(pilot.mixture)
    blending = Blending()
    found = blending.draws()
    found.tell_transport(transported(pilot, transport, groups))
    found.tell_score(score_within(pilot, groups))
    blending.learn()
    return blending


def blended(draws: Draws, blending: Blending, transport: str = "displacement") -> Tensor:
    """Transport and score function within groups, by shares that were learned before."""
    groups = chained(draws.mixture)
    share = blending.shares(groups)
    within = share * transported(draws, transport, groups)
    within += (1 - share) * score_within(draws, groups)
    return within + score_between(draws, groups)


def stratified(mixture: NormalMixture, cost: Cost, count: int, samples: int) -> Tensor:
    """Transport of samples whose components are evenly spread, ``(N, K)`` for N = ``count``.

    Each estimate is the mean of that many ``samples``: multiply its variance to compare.
    """
    parameters: dict[str, Any] = {**mixture._given, "component_logits": mixture.component_logits}
    many = type(mixture)(
        **{name: value.expand(count, *value.shape) for name, value in parameters.items()},
        validate_args=False,
    )
    z = estimators.stratified(many).sample((samples,)).flatten(0, 1)  # (S N, D)
    draws = Draws.of(mixture, cost, z, torch.zeros(()))
    return transported(draws, "displacement").unflatten(0, (samples, count)).mean(0)


@torch.no_grad()
def marginalized(mixture: NormalMixture, cost: Cost, count: int) -> Tensor:
    """By one sample of each component: K evaluations of the cost for each estimate."""
    values = cost.value(component_samples(mixture, (count,)))  # (N, K)
    weights = mixture.log_weights.exp()
    return weights * (values - values @ weights[:, None])


def gumbel(
    mixture: MixtureOfDiagNormals, cost: Cost, count: int, temperature: float, kind: str
) -> Tensor:
    """By the package's ``gumbel_soft`` or ``gumbel_hard``, of N mixtures; biased."""
    logits = mixture.component_logits.expand(count, -1).clone().requires_grad_()
    many = MixtureOfDiagNormals(mixture.locs, mixture.coord_scale, logits, validate_args=False)
    relaxed = getattr(estimators, kind)(many, temperature)
    cost.value(relaxed.rsample()).sum().backward()
    assert logits.grad is not None
    return logits.grad


def names(mixture: NormalMixture) -> tuple[str, ...]:
    """Of the unbiased estimators with one evaluation that the mixture's family has."""
    return ("score", *type(mixture).transports, "clustered", "blended")


def estimate(name: str, draws: Draws, pilot: Draws) -> Tensor:
    """By one of :func:`names`."""
    if name == "score":
        return score(draws)
    if name == "clustered":
        return clustered(draws)
    if name == "blended":
        return blended(draws, learn(pilot))
    return transported(draws, name)


def single(draws: Draws, pilot: Draws) -> dict[str, Tensor]:
    """By all of :func:`names`."""
    return {name: estimate(name, draws, pilot) for name in names(draws.mixture)}


def learned_hub(
    mixture: MixtureOfDiagNormals, cost: Cost, steps: int, samples: int
) -> dict[str, Any]:
    """The control variable of a displacement whose hub follows the variance's gradient.

    Adam, with a learning rate that falls to zero over the second half of the steps.

    Returns:
        The arguments that make an ``AVFMixtureOfDiagNormals`` of the mixture.
    """
    control = torch.zeros(2, *mixture.locs.shape, dtype=mixture.locs.dtype, requires_grad=True)
    rate = HUB_RATE / math.sqrt(mixture.event_shape[0])
    optimizer = torch.optim.Adam([control], lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, 2 * (1 - step / steps))
    )
    arguments: dict[str, Any] = {
        **mixture._given,
        "component_logits": mixture.component_logits,
        "weight_gradient": "pathwise",
    }
    for _ in range(steps):
        optimizer.zero_grad()
        q = AVFMixtureOfDiagNormals(**arguments, control_var=control, validate_args=False)
        cost.value(q.rsample((samples,))).mean().backward()
        optimizer.step()
        schedule.step()
    return {**arguments, "control_var": control.detach()}


def by_learned_hub(draws: Draws, arguments: dict[str, Any]) -> Tensor:
    """The transport to the hub of :func:`learned_hub`."""
    mixture = AVFMixtureOfDiagNormals(**arguments, validate_args=False)
    return transported(dataclasses.replace(draws, mixture=mixture), "displacement")
