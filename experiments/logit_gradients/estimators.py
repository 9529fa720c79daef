"""Estimates of the logits' gradient, ``(N, K)``: one for each sample, by each estimator.

The package's own fields and groups are put together here for many samples of one mixture at
once; the estimators of the package do the same for one sample of many mixtures.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import torch
from torch import Tensor

from experiments.logit_gradients.costs import Cost, of_components
from experiments.logit_gradients.draws import Draws
from pyro_mixtures import estimators
from pyro_mixtures.distributions import AVFMixtureOfDiagNormals, MixtureOfDiagNormals
from pyro_mixtures.distributions.parametric_mixture import ParametricMixture
from pyro_mixtures.estimators.strata import component_samples
from pyro_mixtures.samples.blending import Blending
from pyro_mixtures.samples.weights import within_group

HUB_RATE = 0.1
"""Learning rate of a hub, in its standard deviations, for one dimension."""


def transported(draws: Draws, transport: str, groups: Tensor | None = None) -> Tensor:
    """The transport's part, of one group unless told."""
    record = draws.record
    contributions = draws.mixture.transports[transport](
        record.z,
        draws.grad,
        record.log_prob,
        within_group(record.log_weights, groups),
        *record.components.parameters,
        precision=torch.float64,
    )
    return record.transported(contributions, groups)


def scored(draws: Draws, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The score function between groups and within them."""
    between, within = draws.record.scored(groups)
    return draws.advantage * between, draws.advantage * within


def score(draws: Draws) -> Tensor:
    r""":math:`(r_j - \pi_j) (f - b)`, for the logits that of the hybrid estimator as well."""
    record = draws.record
    return draws.advantage * (record.responsibilities - record.log_weights.exp())


def clustered(draws: Draws) -> Tensor:
    """Transport within groups, the score function between them."""
    groups = draws.mixture.groups
    between, _ = scored(draws, groups)
    return transported(draws, "displacement", groups) + between


def chained(mixture: ParametricMixture) -> Tensor:
    """The groups of the package's ``blended``, labels ``(K,)``."""
    return mixture.blended(Blending()).groups


def learn(pilot: Draws) -> Blending:
    """The shares of transport and score function that were the best for other samples."""
    groups = chained(pilot.mixture)
    blending = Blending()
    found = blending.draws()
    found.tell_transport(transported(pilot, "displacement", groups))
    found.tell_score(scored(pilot, groups)[1])
    blending.learn()
    return blending


def blended(draws: Draws, blending: Blending) -> Tensor:
    """Transport and score function within groups, by shares that were learned before."""
    groups = chained(draws.mixture)
    between, within = scored(draws, groups)
    share = blending.shares(groups)
    return share * transported(draws, "displacement", groups) + (1 - share) * within + between


def stratified(mixture: ParametricMixture, cost: Cost, count: int, samples: int) -> Tensor:
    """Transport of samples whose components are evenly spread, ``(N, K)`` for N = ``count``.

    Each estimate is the mean of that many ``samples``: multiply its variance to compare.
    """
    z = estimators.stratified(mixture.expand((count,))).sample((samples,))  # (S, N, D)
    draws = Draws.of(mixture, cost, z.flatten(0, 1), torch.zeros(()))
    return transported(draws, "displacement").unflatten(0, (samples, count)).mean(0)


@torch.no_grad()
def marginalized(mixture: ParametricMixture, cost: Cost, count: int) -> Tensor:
    """By one sample of each component: K evaluations of the cost for each estimate."""
    return of_components(mixture, cost.value(component_samples(mixture, (count,))))


def gumbel(
    mixture: MixtureOfDiagNormals, cost: Cost, count: int, temperature: float, kind: str
) -> Tensor:
    """By the package's ``gumbel_soft`` or ``gumbel_hard``, of N mixtures; biased."""
    logits = mixture.component_logits.expand(count, -1).clone().requires_grad_()
    many = MixtureOfDiagNormals(mixture.locs, mixture.coord_scale, logits, validate_args=False)
    relaxed = getattr(estimators, kind)(many, temperature=temperature)
    cost.value(relaxed.rsample()).sum().backward()
    assert logits.grad is not None
    return logits.grad


def names(mixture: ParametricMixture) -> tuple[str, ...]:
    """Of the unbiased estimators with one evaluation that the mixture's family has."""
    return ("score", *mixture.transports, "clustered", "blended")


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
) -> AVFMixtureOfDiagNormals:
    """The mixture with a displacement whose hub has followed the variance's gradient.

    Adam, with a learning rate that falls to zero over the second half of the steps.
    """
    given = (mixture.locs, mixture.coord_scale, mixture.component_logits)
    hub = partial(AVFMixtureOfDiagNormals, *given, weight_gradient="pathwise", validate_args=False)
    control = torch.zeros(2, *mixture.locs.shape, dtype=mixture.locs.dtype, requires_grad=True)
    rate = HUB_RATE / math.sqrt(mixture.event_shape[0])
    optimizer = torch.optim.Adam([control], lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, 2 * (1 - step / steps))
    )
    for _ in range(steps):
        optimizer.zero_grad()
        cost.value(hub(control_var=control).rsample((samples,))).mean().backward()
        optimizer.step()
        schedule.step()
    return hub(control_var=control.detach())


def by_learned_hub(draws: Draws, hub: AVFMixtureOfDiagNormals) -> Tensor:
    """The transport to the hub of :func:`learned_hub`."""
    record = hub.record(draws.record.z)
    return transported(dataclasses.replace(draws, mixture=hub, record=record), "displacement")
