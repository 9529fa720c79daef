"""Tails and implicit velocities against quadrature with 40 digits."""

import math

import mpmath as mp
import pytest
import torch
from torch.nn.functional import logsigmoid

from pyro_mixtures.numerics.incomplete import beta_tails, gamma_tails

DIGITS = 40
SIZE = 50_000
SHAPES = [0.02, 0.3, 1.0, 7.5, 120.0, 1e5]
STEPS = [-30.0, -3.0, -0.4, 0.2, 1.5, 12.0]
"""Distances from the mode, in standard deviations of the coordinate of the quadrature."""


def tail(log_density, scores, y, sign, limit=mp.inf):
    """Integrals of the density and of its products with scores outward from y, by that at y."""

    def ratio(s):
        return mp.exp(log_density(y + sign * s) - log_density(y))

    end = mp.mpf(10) ** -12
    while end < limit and ratio(end) > mp.mpf(10) ** -(DIGITS - 5):
        end *= 2
    panels = [0] + [min(end, limit) * mp.mpf(2) ** -k for k in range(8, -1, -1)]

    def integral(score):
        return mp.quad(lambda s: score(y + sign * s) * ratio(s), panels, method="gauss-legendre")

    return integral(lambda y: mp.mpf(1)), [integral(score) for score in scores]


def reference(log_density, scores, y, mode, limit=mp.inf):
    """Logarithms of the two tails and the velocities of y; ``limit`` is the length of a tail."""
    sign = 1 if y >= mode else -1
    mass, moments = tail(log_density, scores, y, sign, limit)
    small = log_density(y) + mp.log(mass)
    large = mp.log1p(-mp.exp(small))
    log_cdf, log_sf = (large, small) if sign == 1 else (small, large)
    return [log_cdf, log_sf, *(sign * moment for moment in moments)]


def gamma_reference(a, x):
    a, x = mp.mpf(a), mp.mpf(x)
    log_gamma, digamma = mp.loggamma(a), mp.digamma(a)
    *tails, velocity = reference(
        lambda y: a * y - mp.exp(y) - log_gamma, [lambda y: y - digamma], mp.log(x), mp.log(a)
    )
    return [*tails, x * velocity]


def beta_reference(a, b, log_x):
    a, b, log_x = mp.mpf(a), mp.mpf(b), mp.mpf(log_x)
    log_beta = mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)
    a_digamma, b_digamma = (mp.digamma(t) - mp.digamma(a + b) for t in (a, b))

    def softplus(y):
        return mp.log1p(mp.exp(y)) if y < 0 else y + mp.log1p(mp.exp(-y))

    return reference(
        lambda y: -a * softplus(-y) - b * softplus(y) - log_beta,
        [lambda y: -softplus(-y) - a_digamma, lambda y: -softplus(y) - b_digamma],
        log_x - mp.log(-mp.expm1(log_x)),
        mp.log(a / b),
    )


def tensor(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype, requires_grad=True)


def logs(logit):
    """Of x and 1 - x."""
    return logsigmoid(logit), logsigmoid(-logit)


def beta_tails_at(a, b, logit):
    return beta_tails(a, b, *logs(logit))


def gamma_points(a):
    points = [max(a + step * a**0.5, a * math.exp(step)) for step in STEPS]
    return [1e-300, *points, a + 1e4]


def beta_points(a, b):
    scale = (1 / a + 1 / b) ** 0.5
    return [math.log(a / b) + step * scale for step in STEPS]


GAMMA = [(a, x) for a in SHAPES for x in gamma_points(a)]
BETA = [(a, b, y) for a in SHAPES[::2] for b in SHAPES for y in beta_points(a, b)[a > b :: 3]]


def precise(function):
    """At the digits of the references."""

    def at_digits(*arguments):
        with mp.workdps(DIGITS):
            return function(*arguments)

    return at_digits


@precise
def assert_exact(tails, expected, tolerance=1e-11):
    """Relative errors of the smaller tail and the velocities; of the other tail at 1e-13.

    Of a tail smaller than exp(-1000) the logarithm has no more digits than float64 gives.
    """
    got = [value.item() for value in (tails.log_cdf, tails.log_sf, *tails.velocities)]
    small = 0 if expected[0] < expected[1] else 1
    error = abs(mp.expm1(got[small] - expected[small]))
    assert error < tolerance * max(1, -float(expected[small]) / 1e3)
    assert abs(mp.exp(got[1 - small]) - mp.exp(expected[1 - small])) < tolerance
    for velocity, value in zip(got[2:], expected[2:], strict=True):
        assert abs(velocity - value) <= tolerance * abs(value)


def check_single_precision(function, arguments):
    """Exponents of shapes of 1e5 lose digits: 3e-5 of log tails, 1e-4 of velocities may go."""
    arguments = [argument.requires_grad_() for argument in arguments]
    single = function(*arguments)
    double = function(*(argument.double() for argument in arguments))
    for got, expected in zip(single[:2], double[:2], strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=3e-5)
    for got, expected in zip(single.velocities, double.velocities, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-36)


def spread(low, high, size=SIZE):
    """Random numbers of all magnitudes between powers of ten."""
    return 10 ** torch.empty(size).uniform_(low, high)


def check_ends(function, parameters, points):
    """Nothing is NaN there, and velocities and gradients are finite."""
    points.requires_grad_()
    tails = function(*parameters, points)
    assert not tails.log_cdf.isnan().any()
    assert not tails.log_sf.isnan().any()
    assert all(velocity.isfinite().all() for velocity in tails.velocities)
    assert (tails.log_cdf.diff() >= -1e-6).all()
    assert (tails.log_sf.diff() <= 1e-6).all()
    assert tails.log_cdf[-1].item() == pytest.approx(0, abs=1e-3)
    total = tails.log_cdf.clamp(min=-1e30).sum() + tails.log_sf.clamp(min=-1e30).sum()
    for gradient in torch.autograd.grad(total, parameters):
        assert gradient.isfinite()


@pytest.mark.parametrize(("a", "x"), GAMMA)
def test_gamma(a, x):
    assert_exact(gamma_tails(tensor(a), tensor(x)), precise(gamma_reference)(a, x))


@pytest.mark.parametrize(("a", "b", "logit"), [*BETA, (3.0, 0.5, -2000.0), (0.02, 1e5, -2000.0)])
def test_beta(a, b, logit):
    log_x, log_complement = logs(tensor(logit))
    if log_x <= log_complement:
        expected = precise(beta_reference)(a, b, log_x.item())
    else:
        log_sf, log_cdf, dy_db, dy_da = precise(beta_reference)(b, a, log_complement.item())
        expected = [log_cdf, log_sf, -dy_da, -dy_db]
    assert_exact(beta_tails(tensor(a), tensor(b), log_x, log_complement), expected)


@precise
def test_references():
    """Against functions of mpmath that have nothing in common with them."""
    log_cdf, log_sf, _ = gamma_reference(2.5, 4)
    assert mp.almosteq(mp.exp(log_cdf), mp.gammainc(2.5, 0, 4, regularized=True), 1e-30)
    assert mp.almosteq(mp.exp(log_sf), mp.gammainc(2.5, 4, mp.inf, regularized=True), 1e-30)
    log_cdf, *_ = beta_reference(2.5, 0.75, mp.log(mp.mpf(0.25)))
    assert mp.almosteq(mp.exp(log_cdf), mp.betainc(2.5, 0.75, 0, 0.25, regularized=True), 1e-30)


@pytest.mark.parametrize("far", [False, True])
def test_gamma_in_single_precision(far):
    a = spread(-1.7, 5)
    near = (a + 3 * a.sqrt() * torch.randn(SIZE)).clamp(min=1e-30)
    halves = torch.where(torch.rand(SIZE) < 0.5, near, a * spread(-3, 1))
    check_single_precision(gamma_tails, (a, spread(-37, 10) if far else halves))


@pytest.mark.parametrize("symmetric", [False, True])
def test_beta_in_single_precision(symmetric):
    a = spread(-1.7, 5)
    b = a.clone() if symmetric else spread(-1.7, 5)
    logit = (a / b).log() + 3 * torch.randn(SIZE) * (1 / a + 1 / b).sqrt()
    check_single_precision(beta_tails, (a, b, *logs(logit)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("parameter", [0.02, 1.0, 1e5])
def test_ends(dtype, parameter):
    points = torch.tensor([0.0, 1e-300, 1e18, math.inf], dtype=dtype)
    check_ends(gamma_tails, [tensor(parameter, dtype)], points)
    for other in (0.02, 1.0, 1e5):
        logit = torch.tensor([-math.inf, -2000.0, 2000.0, math.inf], dtype=dtype)
        check_ends(beta_tails_at, [tensor(parameter, dtype), tensor(other, dtype)], logit)
