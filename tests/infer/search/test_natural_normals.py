"""Natural gradient steps of many Normals at once."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_mixtures.infer.search.natural_normals import DiagonalNormals, FullNormals

KINDS = (FullNormals, DiagonalNormals)


def normals(kind, count=3, dimension=4, seed=0):
    torch.manual_seed(seed)
    locs = 50 + 5 * torch.randn(count, dimension, dtype=torch.float64)
    if kind is DiagonalNormals:
        return kind(locs, torch.rand(count, dimension, dtype=torch.float64) + 0.2)
    raw = torch.randn(count, dimension, dimension, dtype=torch.float64)
    return kind(locs, torch.linalg.cholesky(raw @ raw.mT + 0.1 * torch.eye(dimension)))


def references(given):
    tril = given.factor if given.event_dim == 2 else given.factor.diag_embed()
    return MultivariateNormal(given.locs, scale_tril=tril)


@pytest.mark.parametrize("kind", KINDS)
def test_densities_and_scores_are_those_of_torch(kind):
    given = normals(kind)
    inverse = given.inverse()
    z = given.locs.mean(0) + torch.randn(7, 4, dtype=torch.float64)
    z.requires_grad_()
    whitened = given.whiten(z, inverse)
    expected = references(given).log_prob(z.unsqueeze(-2))
    torch.testing.assert_close(given.log_prob(whitened), expected, rtol=1e-10, atol=1e-10)
    shares = torch.rand(7, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((shares * expected).sum(), z)
    torch.testing.assert_close(given.score(whitened, shares, inverse), gradient)
    every = (shares.unsqueeze(-1) * given.scores(whitened, inverse)).sum(1)
    torch.testing.assert_close(every, gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_spread_noise_has_the_covariance(kind):
    given = normals(kind)
    own = torch.full((200_000,), 1)
    noise = given.spread(own, torch.randn(len(own), 4, dtype=torch.float64))
    expected = references(given).covariance_matrix[1]
    torch.testing.assert_close(noise.T.cov(), expected, atol=0.02 * float(expected.amax()), rtol=0)


def target(kind, dimension=4):
    """Of the other kind of coordinates: a precision matrix, and a mean."""
    torch.manual_seed(9)
    raw = torch.randn(dimension, dimension, dtype=torch.float64)
    precision = raw @ raw.mT + torch.eye(dimension)
    if kind is DiagonalNormals:
        precision = precision.diagonal().diag_embed()
    return 50 + torch.randn(dimension, dtype=torch.float64), precision


@pytest.mark.parametrize("own_points", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_on_a_normal_target_is_exact_whatever_the_points(kind, own_points):
    """Where the function is log p of a Normal, full steps end at it: p = 1 - a has no noise."""
    mean, precision = target(kind)
    given = normals(kind)
    trusts = torch.full((3,), 1e9, dtype=torch.float64)
    for _ in range(12):
        noise = torch.randn(400, 3, 4, dtype=torch.float64)
        own = torch.arange(3).repeat(400)
        z = given.locs[own] + given.spread(own, noise.flatten(0, 1))
        if own_points:
            whitened = noise
            gradients = (-(z - mean) @ precision).view_as(noise) - given.scores(
                noise, given.inverse()
            )
        else:  # only the points of the first, with weights that make them nobody's
            z = z.view_as(noise)[:, 0]
            whitened = given.whiten(z, given.inverse())
            gradients = -(z - mean) @ precision
            gradients = gradients.unsqueeze(1) - given.scores(whitened, given.inverse())
        weights = torch.rand(400, 3, dtype=torch.float64)
        given, _ = given.moved(whitened, weights / weights.sum(0), gradients, trusts)
    covariance = references(given).covariance_matrix
    rough = 0.15 if not own_points else 0.02  # Stein's share of the estimate, by ridge
    torch.testing.assert_close(given.locs, mean.expand(3, 4), atol=rough, rtol=0)
    expected = torch.linalg.inv(precision).expand(3, 4, 4)
    torch.testing.assert_close(covariance, expected, atol=rough * float(expected.amax()), rtol=0)


@pytest.mark.parametrize("trust", [0.01, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_stay_within_the_trust_region_and_reach_it(kind, trust):
    given = normals(kind)
    whitened = torch.randn(100, 3, 4, dtype=torch.float64)
    gradients = 30 * torch.randn(100, 3, 4, dtype=torch.float64) + 5
    weights = torch.full((100, 3), 0.01, dtype=torch.float64)
    trusts = torch.full((3,), trust, dtype=torch.float64)
    new, steps = given.moved(whitened, weights, gradients, trusts)
    divergences = kl_divergence(references(new), references(given))
    torch.testing.assert_close(divergences, steps.divergences)
    assert bool((divergences <= trust * (1 + 1e-9)).all())
    assert bool((divergences > 0.99 * trust).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_normal_that_is_far_too_wide_gets_narrow(kind):
    """By a factor of a million: the first steps are tiny, and yet each is a share of its width."""
    torch.manual_seed(0)
    locs = torch.zeros(1, 2, dtype=torch.float64)
    given = kind.of_stddevs(locs, torch.full_like(locs, 1e6))
    weights, trusts = torch.full((20, 1), 0.05).double(), torch.ones(1).double()
    for _ in range(40):
        half = torch.randn(10, 1, 2, dtype=torch.float64)
        noise = torch.cat([half, -half])
        z = given.locs + given.spread(torch.zeros(20).long(), noise.flatten(0, 1))
        gradients = -z.unsqueeze(1) - given.scores(noise, given.inverse())
        given, _ = given.moved(noise, weights, gradients, trusts)
    torch.testing.assert_close(given.stddevs, torch.ones_like(locs), atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_normal_whose_step_is_not_finite_stays(kind):
    given = normals(kind)
    whitened = torch.randn(20, 3, 4, dtype=torch.float64)
    gradients = torch.randn(20, 3, 4, dtype=torch.float64)
    gradients[:, 1] = math.inf
    weights = torch.full((20, 3), 0.05, dtype=torch.float64)
    new, _ = given.moved(whitened, weights, gradients, torch.full((3,), 0.3, dtype=torch.float64))
    assert torch.equal(new.locs[1], given.locs[1])
    assert torch.equal(new.factor[1], given.factor[1])
    assert not torch.equal(new.locs[0], given.locs[0])


@pytest.mark.parametrize("kind", KINDS)
def test_jumps_have_the_gradient_of_their_expectation(kind):
    """A step along the score function's gradient leaves the half space where a loss is."""
    given = normals(kind)
    trusts = torch.full((3,), 0.05, dtype=torch.float64)
    edge = given.locs[:, 0]  # half of each is outside
    for _ in range(40):
        noise = torch.randn(2000, 3, 4, dtype=torch.float64)
        own = torch.arange(3).repeat(2000)
        z = (given.locs[own] + given.spread(own, noise.flatten(0, 1))).view_as(noise)
        outside = z[..., 0] < edge
        weights = torch.full((2000, 3), 1 / 2000, dtype=torch.float64)
        jumps = torch.where(outside, -10.0, 0.0).double()
        given, _ = given.moved(noise, weights, torch.zeros_like(noise), trusts, jumps)
    assert bool((outside.double().mean(0) < 0.02).all())
