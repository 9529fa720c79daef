"""The series of the displacement's densities against all nodes, and paths taken apart."""

import math

import pytest
import torch
from torch.distributions import Normal

from pyro_mixtures.numerics import chunks
from pyro_mixtures.velocity import displacement_integrals as integrals
from pyro_mixtures.velocity.displacement import (
    displacement,
    largest_sizes,
    path_sizes,
    quadrature_rule,
)
from tests.pairwise import in_pairs
from tests.velocity.test_displacement import TOLERANCE, flow, place
from tests.velocity.test_displacement import path_of as endpoint

LEFT_OUT = {precision: 0.3 * tolerance for precision, tolerance in TOLERANCE.items()}


@pytest.fixture
def _always(monkeypatch):
    """A series wherever there is one."""
    monkeypatch.setattr(integrals, "WORTHWHILE", -1)
    monkeypatch.setattr(integrals, "MULTIPLICATIONS", -(10**18))


def path_from_unit_hub(path):
    """The path from the unit hub to one component, as a batch ``(1, D)``."""
    shift, rate = (x.unsqueeze(0) for x in flow(path))
    rate = rate.where(rate != 0, 1e-30)
    zeros, ones = torch.zeros_like(rate), torch.ones_like(rate)
    growth = rate.sum().view(1, 1)
    return integrals.Path(zeros, ones, rate, shift / rate, shift, torch.zeros(1, 1), growth)


@in_pairs
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", ["narrower", "wider", "both"])
@pytest.mark.parametrize("ratio", [1, 1.5, 3, 7.3])
@pytest.mark.parametrize("distance", [0.01, 0.5, 3, 12])
@pytest.mark.parametrize("D", [1, 2, 10, 40])
@pytest.mark.usefixtures("_always")
def test_series(D, distance, ratio, shape, precision):
    """In float64, at samples of the Normals along the whole path."""
    end = endpoint(D, distance, ratio, shape)
    path = path_from_unit_hub(end)
    sizes = path_sizes(path.shift, path.rate, torch.ones(1, 1))
    rule = quadrature_rule(*largest_sizes(sizes), precision, path.rate)
    if rule.longest is None:
        assert distance == 12 or ratio == 7.3
        return
    loc_t, scale_t = place(torch.rand(16, dtype=torch.float64), end)
    z, log_prob = loc_t + scale_t * torch.randn(16, D).double(), torch.zeros(16, 1).double()
    single = integrals.Path(*(x.expand(16, *x.shape) for x in path))
    nodes = integrals.Rule(rule.nodes, rule.log_weights)
    exact = integrals.at_samples(path, nodes, z, path.hub_loc, log_prob).flatten()
    several = integrals.at_samples(path, rule, z, path.hub_loc, log_prob).flatten()
    one = integrals.at_one_sample(single, rule, z.unsqueeze(1), log_prob.unsqueeze(1)).flatten()
    for actual in (several, one):
        assert ((actual - exact) / exact).abs().max() < LEFT_OUT[precision]


def apart(*batch, K, D):
    """Weights, means and scales of components far apart, drawn at random."""
    weights = torch.randn(*batch, 1, K).softmax(-1)
    return weights, torch.randn(*batch, K, D), torch.rand(*batch, K, D) + 0.5


def samples_of(within, locs, scales, S):
    """Samples of the mixture, a gradient at them, and their log density."""
    batch, (K, D) = locs.shape[:-2], locs.shape[-2:]
    index = torch.randint(K, (*batch, S, 1)).expand(*batch, S, D)
    z = locs.gather(-2, index) + scales.gather(-2, index) * torch.randn(*batch, S, D)
    normal = Normal(locs.unsqueeze(-3), scales.unsqueeze(-3), validate_args=False)
    each = normal.log_prob(z.unsqueeze(-2)).sum(-1) + within[..., :1, :].log()
    return z, torch.randn_like(z), each.logsumexp(-1, keepdim=True)


def contributions(arguments, precision=torch.float32):
    """By :func:`displacement`."""
    return displacement(*arguments, precision=precision)


SIZES = {"many mixtures": ((256,), 1, 3, 50), "many samples": ((), 1000, 10, 50)}


@pytest.mark.parametrize("size", SIZES)
def test_single_precision(size, monkeypatch):
    """Where series are taken unasked; the largest error beside the largest value."""
    batch, S, K, D = SIZES[size]
    arguments = apart(*batch, K=K, D=D)
    arguments = (*samples_of(*arguments, S), *arguments)
    actual = contributions(arguments)
    assert actual.dtype == torch.float32
    exact = contributions([x.double() for x in arguments], torch.float64)
    assert ((actual - exact) / exact.abs().max()).abs().max() < 2e-5
    called = []
    for name in ("_by_power_series", "interpolation"):
        function = getattr(integrals, name)
        monkeypatch.setattr(
            integrals, name, lambda *x, f=function, n=name: (called.append(n), f(*x))[1]
        )
    monkeypatch.setattr(integrals, "CACHED", 2**12)  # in slices
    torch.testing.assert_close(contributions(arguments), actual, rtol=1e-4, atol=1e-4)
    assert called == ["_by_power_series" if S == 1 else "interpolation"]


def test_large_tables_stay_within_the_budget(monkeypatch):
    """Then the nodes are taken a few at a time."""
    arguments = apart(K=10, D=50)
    arguments = (*samples_of(*arguments, 1000), *arguments)
    expected = contributions(arguments)
    monkeypatch.setattr(chunks, "MEMORY_BUDGET", 5 * 10**4)
    monkeypatch.setattr(integrals, "interpolation", None)
    torch.testing.assert_close(contributions(arguments), expected, rtol=1e-4, atol=1e-4)


def test_mixtures_do_not_pay_for_others():
    """Their contributions are what they are without the others, in single precision."""
    within, locs, scales = apart(40, K=3, D=20)
    locs[-3] *= 40  # long paths
    scales[-2, 0, 0] *= 1e3  # fast ones
    locs[-1] = math.nan
    arguments = (*samples_of(within, locs, scales, 1), within, locs, scales)
    actual = contributions(arguments)
    assert actual.shape == (40, 1, 3)
    alone = contributions([x[:-3] for x in arguments])
    torch.testing.assert_close(actual[:-3].float(), alone, rtol=1e-4, atol=1e-5)
    assert actual[-3].isfinite().all()  # its nodes have a random offset
    exact = contributions([x[-2].double() for x in arguments], torch.float64)
    torch.testing.assert_close(actual[-2], exact, rtol=1e-5, atol=1e-7)
    assert actual[-1].isnan().all()


@pytest.mark.parametrize("S", [1, 30])
def test_components_do_not_pay_for_others(S, monkeypatch):
    """A group of which one is far away, and the other groups, as each by themselves."""
    weights, locs, scales = apart(K=40, D=30)
    locs[37] *= 1e3
    labels = torch.tensor([0] * 20 + [1] * 16 + [2] * 4)
    within = weights * (labels == labels.unsqueeze(-1))
    within = within / within.sum(-1, keepdim=True)
    samples = samples_of(weights, locs, scales, S)
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.tensor(0.3))
    actual = contributions((*samples, within, locs, scales))
    assert actual.dtype == torch.float64
    for part in (slice(36), slice(36, 40)):
        alone = (*samples, within[part, part], locs[part], scales[part])
        expected = contributions(alone)
        scale = float(expected.abs().max())
        torch.testing.assert_close(
            actual[:, part].float(), expected.float(), rtol=1e-4, atol=1e-5 * scale
        )


def test_the_least_exponent():
    """Of what would be zero, or a number without all digits: as good as zero."""
    x = torch.tensor([-1e30, -100.0, -79.0, 0.0, math.nan])
    for dtype in (torch.float32, torch.float64):
        least = torch.finfo(dtype).tiny
        actual = integrals.exp_(x.to(dtype, copy=True))
        assert ((actual >= least) | actual.isnan()).all()
        assert (actual[:-1] <= x[:-1].to(dtype).exp() + 1e4 * least).all()
        torch.testing.assert_close(actual[2:], x[2:].to(dtype).exp(), equal_nan=True)
