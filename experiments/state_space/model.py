"""Data and model: a state space model whose posterior has many modes (Eq. 63 to 65)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

STEPS = 10
STATE_SCALE = 1 / 2
"""The paper's sigma_z: standard deviation of the noise of the states, and of the first one."""
OBSERVATION_SCALE = 1 / 4
"""The paper's sigma_x: standard deviation of the noise of the observations."""
ANGLE = math.pi / 4
# as printed, with a minus at the first entry: symmetric, of eigenvalues 1/2 and -1/2, so that it
# is half a reflection, not half a rotation
TRANSITION = tuple(
    tuple(0.5 * entry for entry in row)
    for row in (
        (-math.sin(ANGLE), math.cos(ANGLE)),
        (math.cos(ANGLE), math.sin(ANGLE)),
    )
)
"""The paper's matrix T."""
TRAIN, TEST, VALIDATION = 800, 200, 200


def transition_mean(states: Tensor) -> Tensor:
    """Mean of the next state, ``T z``, ``(*X, 2) -> (*X, 2)``."""
    return states @ states.new_tensor(TRANSITION).mT


def observation_mean(states: Tensor) -> Tensor:
    """Mean of the observation, ``mu(z) = (z_1^2, 2 z_2)``, ``(*X, 2) -> (*X, 2)``."""
    return torch.stack([states[..., 0].square(), 2 * states[..., 1]], -1)


def simulate(num_sequences: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sequences of states and observations from the model, ``(N, 10, 2)`` each.

    The global random state stays as it is.

    Example:
        >>> states, observations = simulate(3, seed=0)
        >>> observations.shape
        torch.Size([3, 10, 2])
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(
        (2, STEPS, num_sequences, 2), generator=generator, dtype=torch.float64, device="cpu"
    )
    states: list[Tensor] = []
    for step in STATE_SCALE * noise[0]:
        states.append(transition_mean(states[-1]) + step if states else step)
    z = torch.stack(states, 1)  # (N, 10, 2)
    x = observation_mean(z) + OBSERVATION_SCALE * noise[1].transpose(0, 1)
    dtype = torch.get_default_dtype()
    return z.to(dtype), x.to(dtype)


@dataclass(frozen=True)
class Datasets:
    """Observations ``(N, 10, 2)`` by their use, and the states behind those of the test."""

    train: Tensor
    validation: Tensor
    test: Tensor
    test_states: Tensor


def datasets() -> Datasets:
    """The paper's 800 sequences to train with and 200 to test, and 200 more for choices.

    Those of the paper are the first and last of 1000 from seed 0; the validation sequences are
    from seed 1.
    """
    states, observations = simulate(TRAIN + TEST, seed=0)
    _, validation = simulate(VALIDATION, seed=1)
    return Datasets(observations[:TRAIN], validation, observations[TRAIN:], states[TRAIN:])


def model(observations: Tensor) -> None:
    """The state space model of the observations ``(N, T, 2)``.

    z_1 ~ N(0, sigma_z^2), z_t ~ N(T z_{t-1}, sigma_z^2) and x_t ~ N(mu(z_t), sigma_x^2), with the
    sites ``z_1``, ..., ``z_T`` and ``x_1``, ..., ``x_T`` in the plate ``sequences``.
    """
    with pyro.plate("sequences", len(observations)):
        mean = observations.new_zeros(2)
        for t, observation in enumerate(observations.unbind(1), 1):
            state = pyro.sample(f"z_{t}", _normal(mean, STATE_SCALE))
            law = _normal(observation_mean(state), OBSERVATION_SCALE)
            pyro.sample(f"x_{t}", law, obs=observation)
            mean = transition_mean(state)


def log_joint(states: Tensor, observations: Tensor) -> Tensor:
    """Log density of :func:`model`, states and observations ``(*X, T, 2) -> (*X,)``."""
    means = torch.cat(
        [torch.zeros_like(states[..., :1, :]), transition_mean(states)[..., :-1, :]], -2
    )
    prior = _normal(means, STATE_SCALE).log_prob(states)  # (*X, T)
    likelihood = _normal(observation_mean(states), OBSERVATION_SCALE).log_prob(observations)
    return (prior + likelihood).sum(-1)


def _normal(mean: Tensor, scale: float) -> dist.TorchDistribution:
    return dist.Normal(mean, scale, validate_args=False).to_event(1)
