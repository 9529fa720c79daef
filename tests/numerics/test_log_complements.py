"""Logarithms of numbers next to 0 and 1, and their slopes, against many digits."""

import mpmath
import pytest
import torch

from pyro_mixtures.numerics.log_complements import (
    log_complement,
    loglog_complement,
    loglog_sigmoid,
)

CASES = {
    log_complement: (
        lambda y: mpmath.log(-mpmath.expm1(-mpmath.exp(y))),
        [-5000.0, -800.0, -50.0, -5.0, -1e-3, 1e-3, 0.3, 2.0, 3.0],
    ),
    loglog_complement: (
        lambda y: mpmath.log(-mpmath.log1p(-mpmath.exp(-y))),
        [1e-20, 1e-5, 0.1, 0.69, 0.7, 1.0, 3.0, 40.0, 800.0, 5000.0],
    ),
    loglog_sigmoid: (
        lambda y: mpmath.log(mpmath.log1p(mpmath.exp(-y))),
        [-5000.0, -800.0, -50.0, -1.0, -1e-3, 1e-3, 0.3, 2.0, 60.0, 800.0, 5000.0],
    ),
}


@pytest.mark.parametrize("function", CASES)
def test_values_and_slopes(function):
    exact, points = CASES[function]
    at = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    values = function(at)
    (slopes,) = torch.autograd.grad(values.sum(), at)
    with mpmath.workdps(60):
        expected = [float(exact(mpmath.mpf(y))) for y in points]
        steep = [float(_slope(exact, mpmath.mpf(y))) for y in points]
    torch.testing.assert_close(values.tolist(), expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(slopes.tolist(), steep, rtol=1e-13, atol=1e-300)


def _slope(function, y):
    step = abs(y) * mpmath.mpf(10) ** -25
    return (function(y + step) - function(y - step)) / (2 * step)
