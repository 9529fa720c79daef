"""Tails and implicit velocities against quadrature with 40 digits."""

import math

import mpmath as mp
import pytest
import torch

from pyro_mixtures.numerics.symmetric import student_t_tails, von_mises_tails
from tests.numerics.test_incomplete import (
    SIZE,
    assert_exact,
    check_ends,
    check_single_precision,
    precise,
    reference,
    spread,
    tail,
    tensor,
)


def student_t_reference(df, x):
    df, x = mp.mpf(df), mp.mpf(x)
    log_norm = mp.loggamma((df + 1) / 2) - mp.loggamma(df / 2) - mp.log(mp.pi) / 2
    center = (mp.digamma((df + 1) / 2) - mp.digamma(df / 2) - 1 / df) / 2

    def score(w):
        square = mp.tanh(w) ** 2
        return center - mp.log(mp.cosh(w)) + (df + 1) / (2 * df) * square

    w = mp.asinh(x / mp.sqrt(df))
    *tails, velocity = reference(lambda w: log_norm - df * mp.log(mp.cosh(w)), [score], w, 0)
    return [*tails, mp.sqrt(df) * mp.cosh(w) * velocity]


def von_mises_reference(kappa, angle):
    kappa, angle = mp.mpf(kappa), mp.mpf(angle)
    half, (fall,) = tail(lambda t: kappa * mp.cos(t), [lambda t: 1 - mp.cos(t)], 0, 1, mp.pi)
    return reference(
        lambda t: kappa * (mp.cos(t) - 1) - mp.log(2 * half),
        [lambda t: fall / half - (1 - mp.cos(t))],
        angle,
        0,
        mp.pi - abs(angle),
    )


STUDENT_T = [(df, x) for df in [0.1, 1, 30, 1e6] for x in [1e-7, -0.99, 1.01, 5, -100, 1e10]]
VON_MISES = [(k, t) for k in [0, 1e-6, 0.7, 30, 1e5] for t in [1e-7, -2e-3, 0.6, -1.6, 3.141]]


@pytest.mark.parametrize(("df", "x"), STUDENT_T)
def test_student_t(df, x):
    assert_exact(student_t_tails(tensor(df), tensor(x)), precise(student_t_reference)(df, x))


@pytest.mark.parametrize(("kappa", "angle"), VON_MISES)
def test_von_mises(kappa, angle):
    expected = precise(von_mises_reference)(kappa, angle)
    assert_exact(von_mises_tails(tensor(kappa), tensor(angle)), expected)


@precise
def test_references():
    """Against functions of mpmath that have nothing in common with them."""
    log_cdf, _, velocity = student_t_reference(1, 3)
    assert mp.almosteq(mp.exp(log_cdf), mp.mpf(1) / 2 + mp.atan(3) / mp.pi, 1e-30)
    log_cdf, _, velocity = von_mises_reference(0, 2)
    assert mp.almosteq(mp.exp(log_cdf), mp.mpf(1) / 2 + 1 / mp.pi, 1e-30)
    assert mp.almosteq(velocity, -mp.sin(2), 1e-30)


def test_student_t_in_single_precision():
    points = torch.randn(SIZE) * spread(-3, 10) ** 0.3
    check_single_precision(student_t_tails, (spread(-1, 6), points))


@pytest.mark.parametrize("near", [False, True])
def test_von_mises_in_single_precision(near):
    kappa = spread(-4, 5)
    angle = (
        (3 * torch.randn(SIZE) / kappa.sqrt()).clamp(-3, 3) if near else torch.rand(SIZE) * 6 - 3
    )
    check_single_precision(von_mises_tails, (kappa, angle))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("parameter", [0.02, 1.0, 1e5])
def test_ends(dtype, parameter):
    points = torch.tensor([-math.inf, -1e30, -1e-30, 0.0, math.inf], dtype=dtype)
    check_ends(student_t_tails, [tensor(max(parameter, 0.1), dtype)], points)
    points = torch.tensor([-math.pi, -3.1415926, 0.0, math.pi], dtype=dtype)
    check_ends(von_mises_tails, [tensor(parameter, dtype)], points)
