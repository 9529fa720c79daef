"""The state space model of Eq. 63 to 65."""

import math

import pyro
import pytest
import torch

from experiments.state_space.model import (
    STEPS,
    TRANSITION,
    datasets,
    log_joint,
    model,
    observation_mean,
    simulate,
    transition_mean,
)


def test_transition_is_half_a_reflection():
    matrix = torch.tensor(TRANSITION, dtype=torch.float64)
    half = 0.5 * torch.eye(2, dtype=torch.float64)
    assert torch.allclose(matrix @ matrix, 0.5 * half)
    assert torch.det(matrix).item() == pytest.approx(-0.25)
    # sin and cos of pi/4 are equal: only the sign of the first entry tells it from other readings
    entry = 0.5 * math.sqrt(0.5)
    assert torch.allclose(matrix, entry * torch.tensor([[-1.0, 1.0], [1.0, 1.0]]).double())
    assert torch.allclose(transition_mean(torch.tensor([1.0, 0.0])), matrix[:, 0].float())


def test_observation_mean():
    states = torch.tensor([[[-3.0, 0.5]], [[3.0, -1.0]]])
    expected = torch.tensor([[[9.0, 1.0]], [[9.0, -2.0]]])
    assert torch.equal(observation_mean(states), expected)


def test_simulation_follows_the_model():
    """Mean and covariance of the noises that made the states and observations."""
    states, observations = simulate(20_000, seed=3)
    steps = torch.cat([states[:, :1], states[:, 1:] - transition_mean(states[:, :-1])], 1)
    for noise, scale in ((steps, 0.5), (observations - observation_mean(states), 0.25)):
        flat = noise.double().reshape(20_000, -1) / scale  # (S, 20)
        assert (flat.mean(0).abs() < 5 / 20_000**0.5).all()
        off = torch.cov(flat.T) - torch.eye(2 * STEPS)
        assert (off.abs() < 5 * (2 / 20_000) ** 0.5).all()


def test_simulation_has_a_generator_of_its_own():
    before = torch.get_rng_state()
    first, again, other = simulate(5, seed=1), simulate(5, seed=1), simulate(5, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_datasets_are_apart():
    data = datasets()
    assert data.train.shape == (800, STEPS, 2)
    assert data.test.shape == data.test_states.shape == (200, STEPS, 2)
    assert data.validation.shape == (200, STEPS, 2)
    states, observations = simulate(1000, seed=0)
    assert torch.equal(torch.cat([data.train, data.test]), observations)
    assert torch.equal(data.test_states, states[800:])
    everything = torch.cat([data.train, data.test, data.validation])
    assert len(torch.unique(everything, dim=0)) == 1200


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("particles", [(), (5,)])
def test_log_joint_is_the_model(steps, particles):
    """Also with a batch dimension on the left, as vectorized particles have it."""
    observations = torch.randn(4, steps, 2)
    states = torch.randn(*particles, 4, steps, 2)
    values = {f"z_{t + 1}": states[..., t, :] for t in range(steps)}
    trace = pyro.poutine.trace(pyro.condition(model, values)).get_trace(observations)
    trace.compute_log_prob()
    sites = [f"{name}_{t + 1}" for t in range(steps) for name in "zx"]
    assert [name for name, node in trace.nodes.items() if node["type"] == "sample"][1:] == sites
    total = sum(trace.nodes[name]["log_prob"] for name in sites)
    assert torch.allclose(total, log_joint(states, observations), atol=1e-5)


def test_log_joint_by_hand():
    """Against the densities of Eq. 64 as they are written there."""
    states, observations = torch.randn(2, 3, 2).double()
    matrix = torch.tensor(TRANSITION, dtype=torch.float64)
    expected = 0.0
    for t in range(3):
        mean = matrix @ states[t - 1] if t else torch.zeros(2)
        x = torch.stack([states[t, 0] ** 2, 2 * states[t, 1]])
        for value, loc, scale in ((states[t], mean, 0.5), (observations[t], x, 0.25)):
            expected += torch.distributions.Normal(loc, scale).log_prob(value).sum().item()
    assert log_joint(states, observations).item() == pytest.approx(expected)
