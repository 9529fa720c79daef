"""Kumaraswamy sticks over all sizes of their parameters: draws, densities, expectations."""

import itertools
import math
from unittest import mock

import mpmath
import pytest
import torch
from torch.distributions import Beta, Kumaraswamy, kl_divergence

from pyro_mixtures.distributions import KumaraswamyStickBreaking, StickBreaking
from pyro_mixtures.numerics.precision import double_dtype

SIZES = (0.05, 0.2, 1.0, 5.0, 50.0, 1e3)
GRID = torch.tensor(list(itertools.product(SIZES, SIZES)), dtype=torch.float64)
QUANTILES = (1e-9, 1e-3, 0.2, 0.5, 0.9, 1 - 1e-9)
STEP = 0.02
LOGITS = torch.arange(-700.0, 700.0, STEP, dtype=torch.float64)
"""Of a trapezoidal rule: even the flattest density has vanished at its ends."""


def parameters(dtype=torch.float64):
    """Of all pairs of sizes, ``(36, 1)``: two weights each."""
    return [x.to(dtype).unsqueeze(-1).requires_grad_() for x in GRID.unbind(-1)]


def exact(u, a, b):
    """Log weights and their derivatives by a and b at a quantile, by many digits."""
    e = -mpmath.log(u)
    log_v = mpmath.log1p(-mpmath.exp(-e / b)) / a
    near_one = log_v > -1
    log_rest = mpmath.log(-mpmath.expm1(log_v)) if near_one else mpmath.log1p(-mpmath.exp(log_v))
    by_a, by_b = -log_v / a, -e / b**2 / (a * mpmath.expm1(e / b))
    other = 1 / mpmath.expm1(-log_v)  # v / (1 - v)
    return (log_v, log_rest), (by_a, -other * by_a), (by_b, -other * by_b)


def drawn_at(u, q):
    """A sample at a quantile."""
    name = "pyro_mixtures.distributions.sticks.uniform"
    at = lambda shape, like: torch.full(shape, u, dtype=double_dtype(like))  # noqa: E731
    with mock.patch(name, at):
        return q.rsample()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5)],
    ids=["double", "single"],
)
@pytest.mark.parametrize("u", QUANTILES)
def test_draws_and_gradients(u, dtype, tolerance):
    """Log weights and weights, relative to each number; torch's are 0 and 1 there."""
    a, b = parameters(dtype)
    q = KumaraswamyStickBreaking(a, b)
    weights = drawn_at(u, q)
    log_weights = q.log_weights(weights)
    with mpmath.workdps(40):
        each = [
            exact(mpmath.mpf(u), *map(mpmath.mpf, pair))
            for pair in torch.stack([a, b], -1).squeeze(-2).tolist()
        ]
        expected = torch.tensor(
            [[[float(x) for x in y] for y in z] for z in each], dtype=torch.float64
        )
    expected = expected.permute(1, 0, 2)  # log weights and by a, b; (3, 36, 2)
    assert log_weights.dtype == weights.dtype == dtype
    tiny = 1e-30 if dtype == torch.float32 else 1e-290
    close = {"rtol": tolerance, "atol": tiny}
    torch.testing.assert_close(log_weights.double(), expected[0], **close)
    torch.testing.assert_close(weights.double(), expected[0].exp(), **close)
    for k in range(2):
        slopes = torch.autograd.grad(log_weights[:, k].sum(), [a, b], retain_graph=True)
        of_weights = torch.autograd.grad(weights[:, k].sum(), [a, b], retain_graph=True)
        for by, slope, of_weight in zip(expected[1:], slopes, of_weights, strict=True):
            assert slope.isfinite().all()
            torch.testing.assert_close(slope.squeeze(-1).double(), by[:, k], **close)
            # to where float32 has digits
            of_one = by[:, k] * expected[0][:, k].exp()
            torch.testing.assert_close(of_weight.squeeze(-1).double(), of_one, **close)


LOG_V, LOG_REST = torch.nn.functional.logsigmoid(torch.stack([LOGITS, -LOGITS]))


def plain_density(a, b):
    """Of sticks, by its formula, ``(36, S)``; of one logit the mass of its cell, too."""
    log_density = (a * b).log() + (a - 1) * LOG_V + (b - 1) * (-(a * LOG_V).expm1()).log()
    return log_density, (log_density + LOG_V + LOG_REST).exp() * STEP


PRIORS = [(1.0, 1.0), (1.0, 5.0), (0.1, 0.3), (3.0, 0.5), (20.0, 100.0)]


@pytest.mark.parametrize("prior", PRIORS)
def test_divergence(prior):
    """Values and gradients of all sizes, against quadrature; that of torch's own class, too."""
    a, b = parameters()
    beta = Beta(*(torch.tensor([x], dtype=torch.float64) for x in prior))
    actual = kl_divergence(KumaraswamyStickBreaking(a, b), StickBreaking(beta))
    log_density, mass = plain_density(a, b)
    of_prior = (prior[0] - 1) * LOG_V + (prior[1] - 1) * LOG_REST
    constant = sum(map(math.lgamma, prior)) - math.lgamma(sum(prior))
    expected = (mass * (log_density - of_prior)).sum(-1) + constant
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-8)
    slopes = torch.autograd.grad(actual.sum(), [a, b])
    exact = torch.autograd.grad(expected.sum(), [a, b])
    torch.testing.assert_close(slopes, exact, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(kl_divergence(Kumaraswamy(a, b), beta).squeeze(-1), actual)


def test_density_and_moments():
    """The density integrates to one; mean and variance are those of the first weight."""
    a, b = (x.detach() for x in parameters())
    _, mass = plain_density(a, b)
    torch.testing.assert_close(mass.sum(-1), torch.ones(36).double(), rtol=1e-9, atol=0)
    q = KumaraswamyStickBreaking(a, b)
    weights = torch.stack([LOG_V, LOG_REST], -1).exp()
    density = q.expand((len(LOGITS), 36)).log_prob(weights.unsqueeze(-2).expand(-1, 36, -1))
    cells = (density.mT + LOG_V + LOG_REST).exp() * STEP
    torch.testing.assert_close(cells, mass, rtol=1e-8, atol=1e-13)
    mean = mass @ weights
    torch.testing.assert_close(q.mean, mean, rtol=0, atol=1e-8)
    spread = mass @ weights.square() - mean.square()
    torch.testing.assert_close(q.variance, spread, rtol=0, atol=1e-8)


def test_entropy():
    a, b = parameters()
    log_density, mass = plain_density(a, b)
    actual, expected = KumaraswamyStickBreaking(a, b).entropy(), -(mass * log_density).sum(-1)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-8)
    slopes, exact = (torch.autograd.grad(x.sum(), [a, b]) for x in (actual, expected))
    torch.testing.assert_close(slopes, exact, rtol=1e-7, atol=1e-8)


def test_single_precision():
    """Expectations, divergences and densities of samples, each with its gradients."""
    low = parameters(torch.float32)
    high = [x.detach().double().requires_grad_() for x in low]
    for function in (
        lambda q: q.mean,
        lambda q: q.variance,
        lambda q: q.entropy(),
        lambda q: kl_divergence(q, StickBreaking.gem(q.a.new_tensor(3.0), 2)),
        lambda q: q.log_prob(drawn_at(0.3, q)),
        lambda q: q.log_prob(drawn_at(1 - 1e-6, q)),
    ):
        actual, exact = (function(KumaraswamyStickBreaking(*given)) for given in (low, high))
        assert actual.dtype == torch.float32
        close = {"rtol": 1e-4, "atol": 1e-6}
        torch.testing.assert_close(actual.double(), exact, **close)
        slopes = torch.autograd.grad(actual.sum(), low)
        expected = torch.autograd.grad(exact.sum(), high)
        for slope, other in zip(slopes, expected, strict=True):
            torch.testing.assert_close(slope.double(), other, **close)


@pytest.mark.parametrize(("a", "b"), [(0.05, 0.05), (0.3, 20.0), (7.0, 0.4), (1e3, 1e3)])
def test_samples_have_the_distribution(a, b):
    """Kolmogorov and Smirnov: beyond 2.3 in one of 20,000 runs."""
    given = torch.tensor([a]).double(), torch.tensor([b]).double()
    q = KumaraswamyStickBreaking(*given)
    log_v = q.log_weights(q.sample((10_000,)))[:, 0]
    cdf = -(b * (-(a * log_v).expm1()).log()).expm1()
    assert kolmogorov_smirnov(cdf) < 2.3


def kolmogorov_smirnov(cdf):
    ordered, count = cdf.sort().values, len(cdf)
    steps = torch.arange(count + 1) / count
    distance = torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).max()
    return float(distance) * count**0.5
