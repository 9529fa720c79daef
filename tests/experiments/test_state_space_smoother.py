"""The particle filter and smoother against a filter and smoother on a dense grid."""

import math

import pytest
import torch

from experiments.state_space.model import (
    OBSERVATION_SCALE,
    STATE_SCALE,
    observation_mean,
    simulate,
    transition_mean,
)
from experiments.state_space.smoother import (
    first_with_two_modes,
    has_two_modes,
    log_likelihood,
    smooth,
)

SIDES = (3.0, 0.08), (2.5, 0.1)
CELL = 0.08 * 0.1


class Grid:
    """Sums over a grid for integrals: of smooth densities, they are exact to many digits."""

    def __init__(self, observations, points, transition):
        self.points, self.cell = points, CELL
        likelihoods = [_likelihood(points, x) for x in observations]
        forward = [_log_normal(points, STATE_SCALE).exp() * likelihoods[0]]
        for likelihood in likelihoods[1:]:
            forward.append(forward[-1] @ transition * self.cell * likelihood)
        backward = [torch.ones_like(likelihoods[0])]
        for likelihood in likelihoods[:0:-1]:
            backward.insert(0, transition @ (likelihood * backward[0]) * self.cell)
        self.log_likelihood = math.log(forward[-1].sum().item() * self.cell)
        joint = torch.stack(forward) * torch.stack(backward)
        self.marginals = joint / joint.sum(1, keepdim=True)  # (T, G)

    def expectation(self, function):
        """Of a function of the state at each time, ``(T,)``."""
        return self.marginals @ function(self.points)


def _likelihood(points, observation):
    difference = observation.double() - observation_mean(points)
    return _log_normal(difference, OBSERVATION_SCALE).exp()


def _log_normal(difference, scale):
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), scale)
    return normal.log_prob(difference).sum(-1)


@pytest.fixture(scope="module")
def observations():
    return simulate(3, seed=5)[1]


@pytest.fixture(scope="module")
def space():
    """Points of the grid, ``(G, 2)``, and densities of moves from the row to the column."""
    sides = [torch.arange(-end, end, step, dtype=torch.float64) for end, step in SIDES]
    points = torch.cartesian_prod(*sides)
    moves = points - transition_mean(points).unsqueeze(1)
    return points, _log_normal(moves, STATE_SCALE).exp()


def test_grid_knows_one_step(space):
    """Whose coordinates are independent, with x_2 ~ N(0, 1 + 1 / 16)."""
    grids = [Grid(torch.tensor([[x, 0.7]]), *space).log_likelihood for x in (0.2, 0.5)]
    z = torch.arange(-4.0, 4.0, 0.001, dtype=torch.float64)
    for x, found in zip((0.2, 0.5), grids, strict=True):
        one = torch.distributions.Normal(0.0, STATE_SCALE).log_prob(z)
        other = torch.distributions.Normal(z.square(), OBSERVATION_SCALE).log_prob(torch.tensor(x))
        exact = math.log((one + other).exp().sum().item() * 0.001)
        second = torch.distributions.Normal(0.0, math.sqrt(1 + 1 / 16)).log_prob(torch.tensor(0.7))
        assert found == pytest.approx(exact + second.item(), abs=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_log_likelihood_is_that_of_the_grid(observations, space, steps):
    """Within five standard errors over 20 filters, whose errors are small at that."""
    part = observations[:, :steps]
    exact = torch.tensor(
        [Grid(sequence, *space).log_likelihood for sequence in part], dtype=torch.float64
    )
    found = torch.stack([log_likelihood(part, 1000, seed) for seed in range(20)])
    assert (found.std(0) < 0.15).all()
    ratio = (found - exact).exp()  # of mean one: the estimate of p(x) is unbiased
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / 20**0.5).all()


def test_smoothed_moments_are_those_of_the_grid(observations, space):
    """Means, absolute values and signs at all times, within the noise of 20 smoothers."""
    sequence = observations[0]
    grid = Grid(sequence, *space)
    draws = torch.stack([smooth(sequence, 1000, 500, seed) for seed in range(20)])  # (20, M, T, 2)
    for function in (
        lambda z: z[..., 0],
        lambda z: z[..., 1],
        lambda z: z[..., 0].abs(),
        lambda z: z[..., 1].square(),
        lambda z: z[..., 0] * z[..., 1],
        lambda z: (z[..., 0] > 0.32).double(),  # half way between two points of the grid
    ):
        each = function(draws).mean(1)  # (20, T)
        error = each.std(0) / 20**0.5
        assert (error < 0.02).all()
        assert ((each.mean(0) - grid.expectation(function)).abs() < 5 * error).all()


def test_smoothed_trajectories_know_their_neighbours(observations, space):
    """The mean products of coordinates of two successive states: not only the marginals."""
    sequence = observations[1, :2]
    points, transition = space
    first = _log_normal(points, STATE_SCALE).exp() * _likelihood(points, sequence[0])
    joint = first.unsqueeze(1) * transition * _likelihood(points, sequence[1])
    exact = points.T @ joint @ points / joint.sum()  # (2, 2)
    draws = torch.stack([smooth(sequence, 1000, 1000, seed) for seed in range(20)])
    each = draws[:, :, 0].mT @ draws[:, :, 1] / 1000  # (20, 2, 2)
    error = each.std(0) / 20**0.5
    assert (error < 0.02).all()
    assert ((each.mean(0) - exact).abs() < 5 * error).all()


def test_smoother_has_a_generator_of_its_own(observations):
    before = torch.get_rng_state()
    first, again = (smooth(observations[0], 50, 70, seed=1, chunk=20) for _ in range(2))
    assert first.shape == (70, 10, 2)
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)


def test_two_modes_are_told_from_one():
    torch.manual_seed(0)
    noise = torch.randn(4000, 10, 2)
    signs = torch.randn(4000, 10, 2).sign()
    assert has_two_modes(3 * signs + noise)
    assert not has_two_modes(noise)  # one mode at zero: the signs alone do not tell
    assert not has_two_modes(3 + noise)
    mixed = 3 * signs + noise
    mixed[:, 4] = noise[:, 4]
    assert not has_two_modes(mixed)
    assert has_two_modes(mixed, times=(4, 6))


def test_first_sequence_with_two_modes():
    """Of x_1 = z_1^2 = 1 at all times the sign is not known; at zero there is one mode."""
    one, two = torch.zeros(10, 2), torch.tensor([1.0, 0.0]).expand(10, 2)
    assert first_with_two_modes(torch.stack([one, two]), 500) == 1
    with pytest.raises(ValueError, match="two modes"):
        first_with_two_modes(one.unsqueeze(0), 500)
