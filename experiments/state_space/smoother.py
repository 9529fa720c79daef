"""The posterior without variational inference: a particle filter and backward simulation."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from experiments.state_space.model import OBSERVATION_SCALE, STATE_SCALE, transition_mean

PRECISION = STATE_SCALE**-2
# the second coordinates of a step are jointly Normal: x_2 = 2 z_2 + noise
PREDICTIVE_SCALE = math.hypot(2 * STATE_SCALE, OBSERVATION_SCALE)
SECOND_VARIANCE = 1 / (PRECISION + 4 * OBSERVATION_SCALE**-2)
LEAST_ROOT = OBSERVATION_SCALE / 4
"""Where z_1^2 is made linear at the least: near zero it is flat."""
PRIOR_SHARE = 0.2
"""Of the prior in the proposal, so that no weight is large."""


def log_likelihood(
    observations: Tensor, num_particles: int = 5000, seed: int = 0, chunk: int = 20
) -> Tensor:
    r"""Estimates of log p(x) for each sequence by the particle filter.

    The estimate of p(x) is unbiased; its logarithm is low by about half its variance.

    Args:
        observations: ``(N, T, 2)``.
        num_particles: P.
        seed: of the filter's own generator.
        chunk: sequences filtered at once.

    Returns:
        ``(N,)``, in double precision.

    Reference:
        Pitt and Shephard, *Filtering via Simulation: Auxiliary Particle Filters* (1999), for the
        look ahead.

    Example:
        >>> from experiments.state_space.model import simulate
        >>> _, observations = simulate(3, seed=0)
        >>> coarse, fine = (log_likelihood(observations, count) for count in (1000, 4000))
        >>> torch.allclose(coarse, fine, atol=0.2)
        True
    """
    generator = Generator().manual_seed(seed)
    found = []
    for part in observations.double().split(chunk):
        steps = _filter(part, num_particles, generator)
        found.append(torch.stack([increment for _, _, increment in steps]).sum(0))
    return torch.cat(found)


def smooth(
    observations: Tensor,
    num_particles: int = 5000,
    num_trajectories: int = 5000,
    seed: int = 0,
    chunk: int = 500,
) -> Tensor:
    r"""Trajectories from the posterior of one sequence, by backward simulation.

    Each starts from the filter's last particles and goes backwards through those of the steps
    before, with the weights :math:`w_t^i N(z_{t+1} \mid T z_t^i, \sigma_z^2)`.

    Args:
        observations: ``(T, 2)``.
        num_particles: P, of the filter.
        num_trajectories: M.
        seed: of the smoother's own generator.
        chunk: trajectories simulated at once, for arrays of ``chunk x P``.

    Returns:
        ``(M, T, 2)``, in double precision.

    Reference:
        Godsill, Doucet and West, *Monte Carlo Smoothing for Nonlinear Time Series* (2004).

    Example:
        >>> smooth(torch.zeros(10, 2), num_particles=100, num_trajectories=7).shape
        torch.Size([7, 10, 2])
    """
    generator = Generator().manual_seed(seed)
    steps = list(_filter(observations.double().unsqueeze(0), num_particles, generator))
    found = []
    for start in range(0, num_trajectories, chunk):
        count = min(chunk, num_trajectories - start)
        states: list[Tensor] = []
        for (particles,), log_weights, _ in reversed(steps):  # (P, 2), (1, P)
            logits = log_weights.expand(count, -1)
            if states:
                means = transition_mean(particles)
                # the Normal of the next state, less what all particles have in common
                cross = states[-1] @ means.mT - 0.5 * means.square().sum(-1)  # (count, P)
                logits = logits + cross * PRECISION
            states.append(particles[_categorical(logits, generator)])
        found.append(torch.stack(states[::-1], 1))
    return torch.cat(found)


def has_two_modes(trajectories: Tensor, times: tuple[int, ...] = (4, 5, 6)) -> bool:
    """Whether the states' first coordinates have two modes at all of these times (from 1 on).

    Each sign has a share of a quarter at least, and the absolute value has a mean above two of its
    standard deviations: around a single mode at zero each sign has its share, too.
    """
    first = trajectories[:, [t - 1 for t in times], 0]  # (M, len(times))
    share = (first > 0).double().mean(0)
    apart = first.abs().mean(0) > 2 * first.abs().std(0)
    return bool(((share >= 0.25) & (share <= 0.75) & apart).all())


def first_with_two_modes(observations: Tensor, num_particles: int = 2000, seed: int = 0) -> int:
    """Index of the first of the sequences ``(N, T, 2)`` that :func:`has_two_modes`.

    Raises:
        ValueError: if none has.
    """
    for index, sequence in enumerate(observations):
        if has_two_modes(smooth(sequence, num_particles, num_particles, seed)):
            return index
    raise ValueError(
        "Expected observations with a sequence whose posterior has two modes, but got none in"
        f" {len(observations)}"
    )


def _filter(
    observations: Tensor, num_particles: int, generator: Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The filter's steps: particles ``(N, P, 2)``, log weights ``(N, P)`` and log increments.

    The proposal of a step's second coordinates is exact, so that the weights come from the first
    ones alone, and what the second observation tells of the state before is known before the step:
    it is looked ahead at in the resampling. The increments ``(N,)`` add up to the estimate of
    log p(x).
    """
    means = observations.new_zeros(len(observations), num_particles, 2)
    increment = _log_normal(observations[:, 0, 1], PREDICTIVE_SCALE)  # exact for the first step
    for t, observation in enumerate(observations.unbind(1), 1):
        first, log_weights = _propose_first(means[..., 0], observation[:, :1], generator)
        second = _draw_second(means[..., 1], observation[:, 1:], generator)
        particles = torch.stack([first, second], -1)
        means, ahead = transition_mean(particles), log_weights
        if t < observations.shape[1]:
            surprise = observations[:, t, 1:] - 2 * means[..., 1]
            ahead = log_weights + _log_normal(surprise, PREDICTIVE_SCALE)
            means = _resample(means, ahead, generator)
        yield particles, log_weights, increment + ahead.logsumexp(-1) - math.log(num_particles)
        increment = torch.zeros_like(increment)


def _propose_first(mean: Tensor, x: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """First coordinates for their means under the prior and x_1, and log weights, ``(N, P)``.

    The proposal is a mixture of the prior and, for each sign, of the Normal that the posterior
    would be if z_1^2 were linear around the root of x_1. The weight is the density of z_1 and x_1
    over the proposal's.
    """
    root = x.clamp_min(LEAST_ROOT).sqrt()  # (N, 1)
    slope = (2 * root / OBSERVATION_SCALE).square()  # precision of the linear likelihood
    ends = torch.stack([root, -root])  # (2, N, 1)
    evidence = _log_normal(ends - mean, (STATE_SCALE**2 + 1 / slope).sqrt()).softmax(0)
    shares = torch.cat([torch.full_like(mean[None], PRIOR_SHARE), (1 - PRIOR_SHARE) * evidence])
    locs = torch.cat([mean[None], (PRECISION * mean + slope * ends) / (PRECISION + slope)])
    narrow = (PRECISION + slope).rsqrt()
    scales = torch.stack([torch.full_like(root, STATE_SCALE), narrow, narrow]).expand_as(locs)

    uniform = torch.rand(mean.shape, generator=generator, dtype=mean.dtype)
    chosen = (uniform > shares.cumsum(0)[:-1]).sum(0, keepdim=True)  # (1, N, P)
    loc, scale = (values.gather(0, chosen).squeeze(0) for values in (locs, scales))
    first = loc + scale * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
    proposal = (shares.log() + _log_normal(first - locs, scales)).logsumexp(0)
    prior = _log_normal(first - mean, STATE_SCALE)
    return first, prior + _log_normal(x - first.square(), OBSERVATION_SCALE) - proposal


def _draw_second(mean: Tensor, x: Tensor, generator: Generator) -> Tensor:
    """Second coordinates from their posterior for means under the prior and x_2, ``(N, P)``."""
    centre = SECOND_VARIANCE * (PRECISION * mean + 2 * OBSERVATION_SCALE**-2 * x)
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
    return centre + math.sqrt(SECOND_VARIANCE) * noise


def _resample(values: Tensor, log_weights: Tensor, generator: Generator) -> Tensor:
    """Systematic resampling in each row, ``(N, P, 2)`` and ``(N, P) -> (N, P, 2)``."""
    rows, count = log_weights.shape
    cumulative = log_weights.softmax(-1).cumsum(-1)
    shift = torch.rand((rows, 1), generator=generator, dtype=values.dtype)
    places = (shift + torch.arange(count)) / count  # (N, P)
    index = torch.searchsorted(cumulative, places).clamp_max(count - 1)
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, 2))


def _categorical(logits: Tensor, generator: Generator) -> Tensor:
    """An index for each row, ``(M, P) -> (M,)``."""
    cumulative = (logits - logits.amax(-1, keepdim=True)).exp().cumsum(-1)
    shape = (len(logits), 1)
    places = cumulative[:, -1:] * torch.rand(shape, generator=generator, dtype=logits.dtype)
    index = torch.searchsorted(cumulative, places).squeeze(-1)
    return index.clamp_max(logits.shape[-1] - 1)


def _log_normal(difference: Tensor, scale: Tensor | float) -> Tensor:
    log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
    return -0.5 * (difference / scale).square() - log_scale - 0.5 * math.log(2 * math.pi)
