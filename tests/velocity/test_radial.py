"""The radial current against its closed form, the incomplete gamma function."""

import math

import pytest
import torch
from torch.distributions import Normal
from torch.special import gammainc

from pyro_mixtures.velocity.pairwise import pairwise
from pyro_mixtures.velocity.radial import radial

DOUBLE = torch.float64
DIMENSIONS = [1, 2, 3, 10, 101]


def closed_form(x, grad, log_prob, hub, scales):
    r"""``-(g . x / r) Gamma(D/2) / (2 pi^(D/2)) r^(1-D) [P(D/2, r^2 / 2 lambda^2) - ...] / q``."""
    half = torch.tensor(x.shape[-1] / 2, dtype=DOUBLE)
    r = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (S, 1)
    difference = gammainc(half, r.square() / (2 * scales.square()))  # (S, K)
    difference = difference - gammainc(half, r.square() / (2 * hub.square()))
    log_sphere = math.log(2) + half * math.log(math.pi) - torch.lgamma(half)
    factor = (-log_sphere + (1 - 2 * half) * r.log() - log_prob).exp()
    return -(grad * x).sum(-1, keepdim=True) / r * factor * difference


def setting(D, count=20):
    """Samples between the scales, where the closed form does not cancel."""
    scales = torch.tensor([0.7, 1.0, 1.5], dtype=DOUBLE)
    direction = torch.nn.functional.normalize(torch.randn(count, D, dtype=DOUBLE), dim=-1)
    x = direction * torch.linspace(0.7, 1.5, count, dtype=DOUBLE).unsqueeze(-1) * D**0.5
    within = torch.tensor([[0.2, 0.5, 0.3]], dtype=DOUBLE)
    densities = Normal(0.0, scales.unsqueeze(-1)).log_prob(x.unsqueeze(-2)).sum(-1)  # (S, K)
    log_prob = (within.log() + densities).logsumexp(-1, keepdim=True)
    return x, torch.randn_like(x), log_prob, within, scales


@pytest.mark.parametrize("D", DIMENSIONS)
def test_closed_form(D):
    x, grad, log_prob, within, scales = setting(D)
    hub = (within * scales.square()).sum().sqrt()
    expected = closed_form(x, grad, log_prob, hub, scales)
    actual = radial(x, grad, log_prob, within, scales, precision=DOUBLE)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(
        actual, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())
    )


@pytest.mark.parametrize("D", DIMENSIONS)
def test_groups(D):
    """Each component goes to the root mean square of its own group's scales."""
    x, grad, log_prob, _, scales = setting(D)
    within = torch.tensor([[0.4, 0.6, 0], [0.4, 0.6, 0], [0, 0, 1]], dtype=DOUBLE)
    hub = (within @ scales.square()).sqrt()  # (K,)
    expected = closed_form(x, grad, log_prob, hub, scales)
    actual = radial(x, grad, log_prob, within, scales, precision=DOUBLE)
    torch.testing.assert_close(
        actual, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())
    )
    assert (actual[:, 2] == 0).all()


@pytest.mark.parametrize("D", DIMENSIONS)
@pytest.mark.parametrize("count", [1, 20])
def test_means(D, count):
    """About means of their own the components first change size, then move along lines."""
    x, grad, log_prob, within, scales = setting(D, count)
    means = 0.3 * torch.randn(3, D, dtype=DOUBLE)
    hub = (within * scales.square()).sum().sqrt()
    lines = pairwise(x, grad, log_prob, within, hub.expand(3), means)
    expected = torch.stack(
        [
            closed_form(x - mean, grad, log_prob, hub, scale.unsqueeze(-1)).squeeze(-1)
            for mean, scale in zip(means, scales, strict=True)
        ],
        -1,
    )
    actual = radial(x, grad, log_prob, within, scales, means, precision=DOUBLE) - lines
    torch.testing.assert_close(
        actual, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max())
    )


@pytest.mark.parametrize("D", [1, 2])
def test_singular_place(D):
    """At the common mean, where the closed form is 0 / 0, nothing flows."""
    _, grad, log_prob, within, scales = setting(D, count=2)
    x = torch.zeros(2, D, dtype=DOUBLE)
    assert (radial(x, grad, log_prob, within, scales, precision=DOUBLE) == 0).all()


@pytest.mark.parametrize("D", [10, 101, 1000])
def test_single_precision(D):
    """Nothing under- or overflows, though ``r^(1-D)`` would."""
    x, grad, log_prob, within, scales = (value.float() for value in setting(D))
    actual = radial(x, grad, log_prob, within, scales, precision=torch.float32)
    expected = radial(
        *(value.double() for value in (x, grad, log_prob, within, scales)), precision=DOUBLE
    )
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < 1e-3
