"""Components of one shape: densities, distances, and displacement in the space of the means."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_mixtures.velocity.displacement import displacement
from pyro_mixtures.velocity.full_components import bhattacharyya_normal
from pyro_mixtures.velocity.spherical import (
    shared_displacement,
    spherical_distance,
    spherical_log_prob,
)
from tests.pairwise import in_pairs

DOUBLE = torch.float64
BATCH = 2


def random_factor(kind, D):
    """L, or its diagonal, and in full."""
    if kind == "diagonal":
        factor = torch.rand(BATCH, D, dtype=DOUBLE) + 0.5
        return factor, factor.diag_embed()
    factor = torch.randn(BATCH, D, D, dtype=DOUBLE).tril(-1)
    factor = factor + (torch.rand(BATCH, D, dtype=DOUBLE) + 0.5).diag_embed()
    return factor, factor


@in_pairs
@pytest.mark.parametrize("kind", ["diagonal", "triangular"])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("S", [1, 7])
@pytest.mark.parametrize("D", [1, 3])
def test_log_prob(kind, centred, S, D):
    K = 4
    factor, full = random_factor(kind, D)
    scales = torch.rand(BATCH, K, dtype=DOUBLE) + 0.5
    locs = None if centred else torch.randn(BATCH, K, D, dtype=DOUBLE)
    z = torch.randn(BATCH, S, D, dtype=DOUBLE)
    log_weights = torch.randn(BATCH, K, dtype=DOUBLE).log_softmax(-1)
    means = torch.zeros(BATCH, K, D, dtype=DOUBLE) if centred else locs
    component = MultivariateNormal(
        means.unsqueeze(-3),
        scale_tril=(scales[..., None, None] * full.unsqueeze(-3)).unsqueeze(-4),
    )
    actual = spherical_log_prob(z, log_weights, factor, scales, locs)
    torch.testing.assert_close(actual, component.log_prob(z.unsqueeze(-2)))


@pytest.mark.parametrize("kind", ["diagonal", "triangular"])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("D", [1, 3])
def test_distance(kind, centred, D):
    """The general formula, for covariances that are multiples of one."""
    K = 4
    factor, full = random_factor(kind, D)
    scales = torch.rand(BATCH, K, dtype=DOUBLE) + 0.5
    locs = torch.randn(BATCH, K, D, dtype=DOUBLE) * (not centred)
    expected = bhattacharyya_normal(locs, scales[..., None, None] * full.unsqueeze(-3))
    actual = spherical_distance(factor, scales, None if centred else locs)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def principal_axes(within, means):
    """All D of them, as columns: eigenvectors of the (slightly evened) covariance of the means."""
    share = within.mean(-2)
    offset = means - share.unsqueeze(-2) @ means
    covariance = offset.mT @ ((share + 1e-2).unsqueeze(-1) * offset)
    return torch.linalg.eigh(covariance).eigenvectors


@pytest.mark.parametrize(("K", "D"), [(1, 3), (2, 1), (2, 5), (4, 4), (5, 2), (3, 40)])
@pytest.mark.parametrize("grouped", [False, True])
def test_projection(K, D, grouped):
    """The field of all coordinates in a basis of principal axes: those beyond the space of the
    means add nothing."""
    S = 6
    means = 2 + torch.randn(BATCH, K, D, dtype=DOUBLE)
    x = means[:, :1] + torch.randn(BATCH, S, D, dtype=DOUBLE)
    grad = torch.randn_like(x)
    log_prob = -x.new_full((BATCH, S, 1), D / 2 * math.log(2 * math.pi) + D / 2)
    within = torch.rand(BATCH, K if grouped else 1, K, dtype=DOUBLE).softmax(-1)
    if grouped:
        apart = torch.arange(K) % 2 != torch.arange(K).unsqueeze(-1) % 2
        within = within.masked_fill(apart, 0)
        within = within / within.sum(-1, keepdim=True)
    scales = torch.ones(BATCH, K, dtype=DOUBLE)
    actual = shared_displacement(x, grad, log_prob, within, scales, means, precision=DOUBLE)

    turn = principal_axes(within, means)
    turned = (x @ turn, grad @ turn, log_prob, within, means @ turn)
    ones = torch.ones_like(means)
    expected = displacement(*turned, ones, precision=DOUBLE)
    size = 1 + float(expected.abs().max())  # nothing moves where each group has one member
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9 * size)


def test_one_sample_is_not_projected():
    """It takes the field of the coordinates as they are."""
    means, scales = torch.randn(3, 4, dtype=DOUBLE), torch.ones(3, dtype=DOUBLE)
    x, grad = torch.randn(2, 1, 4, dtype=DOUBLE)
    within, log_prob = torch.full((1, 3), 1 / 3, dtype=DOUBLE), torch.zeros(1, 1, dtype=DOUBLE)
    actual = shared_displacement(x, grad, log_prob, within, scales, means, precision=DOUBLE)
    expected = displacement(
        x, grad, log_prob, within, means, torch.ones_like(means), precision=DOUBLE
    )
    assert torch.equal(actual, expected)
