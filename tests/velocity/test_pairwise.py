"""Currents along lines, pair by pair, and far out, where both distribution functions are 1."""

import itertools
import math

import pytest
import torch
from torch.distributions import Normal
from torch.special import erfcx, ndtr

from pyro_mixtures.velocity.pairwise import pairwise
from tests.pairwise import in_pairs

DOUBLE = torch.float64


def one_pair(x, grad, log_prob, scale, first, second):
    """``g . w^jk / q`` written out for one sample and two means."""
    length = torch.linalg.vector_norm(first - second)
    if length == 0:
        return torch.zeros((), dtype=DOUBLE)
    line = (first - second) / length
    along = (x - first) @ line / scale
    across = (x - first) / scale - along * line
    mass = ndtr(along + length / scale) - ndtr(along)
    log_density = -across.square().sum() / 2 - (len(x) - 1) * math.log(
        scale * math.sqrt(2 * math.pi)
    )
    return (grad @ line) * mass * (log_density - log_prob).exp()


@in_pairs
@pytest.mark.parametrize("K", [1, 2, 4])
@pytest.mark.parametrize("D", [1, 2, 5])
@pytest.mark.parametrize("grouped", [False, True])
def test_pair_by_pair(K, D, grouped):
    """Sums over the group's members, for a batch of mixtures two of whose means coincide."""
    B, S = 2, 6
    means = 0.5 + torch.randn(B, K, D, dtype=DOUBLE)
    means[0, -1] = means[0, 0]
    scales = torch.tensor([0.8, 1.3], dtype=DOUBLE)
    x, grad = torch.randn(2, B, S, D, dtype=DOUBLE)
    log_prob = torch.randn(B, S, 1, dtype=DOUBLE)
    within = torch.rand(B, K if grouped else 1, K, dtype=DOUBLE).softmax(-1)
    if grouped:
        apart = torch.arange(K) % 2 != torch.arange(K).unsqueeze(-1) % 2
        within = within.masked_fill(apart, 0)
    actual = pairwise(x, grad, log_prob, within, scales.unsqueeze(-1).expand(B, K), means)
    for b, s, j in itertools.product(range(B), range(S), range(K)):
        shares = within[b, j if grouped else 0]
        pairs = [
            one_pair(x[b, s], grad[b, s], log_prob[b, s, 0], scales[b], means[b, j], other)
            for other in means[b]
        ]
        torch.testing.assert_close(actual[b, s, j], shares @ torch.stack(pairs))


@pytest.mark.parametrize("distance", [1.0, 5.0, 15.0, 35.0, -35.0])
def test_far_out(distance):
    """In one dimension it is the difference of tails, here by the scaled complementary error
    function; the density that it is divided by underflows at 40."""
    n = 0.8
    means = torch.tensor(
        [[0.0], [-n]], dtype=DOUBLE
    )  # the line leads from the second to the first
    x = torch.tensor([[distance]], dtype=DOUBLE)
    log_prob = Normal(0.0, 1.0).log_prob(x)
    within = torch.tensor([[0.0, 1.0]], dtype=DOUBLE)
    actual = pairwise(x, torch.ones_like(x), log_prob, within, torch.ones(2, dtype=DOUBLE), means)[
        0, 0
    ]
    near, far = abs(distance), abs(distance) + math.copysign(n, distance)
    near_tail, far_tail = (
        erfcx(torch.tensor(a / math.sqrt(2), dtype=DOUBLE)) for a in (near, far)
    )
    # of |Phi(far) - Phi(near)| / phi(near)
    ratio = near_tail - far_tail * math.exp((near**2 - far**2) / 2)
    expected = ratio.abs() * math.sqrt(math.pi / 2)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)


def test_far_from_the_origin():
    """Only differences of places count."""
    means, (x, grad) = torch.randn(3, 4, dtype=DOUBLE), torch.randn(2, 6, 4, dtype=DOUBLE)
    log_prob, scales = torch.randn(6, 1, dtype=DOUBLE), torch.ones(3, dtype=DOUBLE)
    within = torch.full((1, 3), 1 / 3, dtype=DOUBLE)
    near = pairwise(x, grad, log_prob, within, scales, means)
    shifted = pairwise(x + 2**20, grad, log_prob, within, scales, means + 2**20)
    torch.testing.assert_close(shifted, near, rtol=1e-6, atol=1e-9)
