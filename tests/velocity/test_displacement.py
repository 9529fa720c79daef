"""The integral over time of the displacement field."""

import functools
import math

import numpy
import pytest
import torch

from pyro_mixtures.velocity import displacement
from pyro_mixtures.velocity.displacement import moment_matched, quadrature
from tests.pairwise import in_pairs

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-11}


@functools.cache
def gauss_legendre():
    """A rule of 200 nodes on every panel of a partition that is finer towards both ends."""
    x, weight = (torch.from_numpy(a) / 2 for a in numpy.polynomial.legendre.leggauss(200))
    edges = torch.tensor([0, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 1]).double()
    width = edges.diff().unsqueeze(-1)
    time = (edges[:-1].unsqueeze(-1) + width * (x + 0.5)).flatten()
    return time, (width * weight).flatten()


def flow(path):
    """``lambda gamma`` and ``lambda`` of the path from the unit hub to a component."""
    loc, scale = path
    rate = scale.log()
    return loc * torch.where(rate == 0, 1, rate / (scale - 1)), rate


def place(time, path):
    """Mean and scale of the Normals at some times, each ``(T, D)``."""
    loc, scale = path
    time = time.unsqueeze(-1)
    scale_t = scale**time
    return loc * torch.where(scale == 1, time, (scale_t - 1) / (scale - 1)), scale_t


def integral(time, weight, z, path):
    """``int N_t(z) dt`` at samples z, the integrand written out."""
    loc_t, scale_t = place(time, path)
    standard = (z.unsqueeze(-2) - loc_t) / scale_t  # (S, T, D)
    log_density = -standard.square().sum(-1) / 2 - scale_t.log().sum(-1)
    return (log_density.exp() * weight).sum(-1)


def path_of(D, distance, ratio, shape):
    """From a unit hub to a component, ``distance`` of the narrower scale away."""
    power = {"narrower": -torch.ones(D), "wider": torch.ones(D), "both": torch.linspace(-1, 1, D)}
    scale = ratio ** power[shape].double()
    loc = torch.randn(D).double()
    return loc / loc.norm() * distance * scale.amin().clamp_max(1), scale


def rule(path, precision):
    """Times and weights, ``(T,)``."""
    alone = torch.ones(1, 1).double()
    time, log_weight, _ = quadrature(*(x.unsqueeze(0) for x in flow(path)), alone, precision)
    return time.flatten(), log_weight.exp().flatten()


@in_pairs
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", ["narrower", "wider", "both"])
@pytest.mark.parametrize("ratio", [1, 3, 25])
@pytest.mark.parametrize("distance", [0.5, 3, 12])
@pytest.mark.parametrize("D", [1, 2, 10, 40])
def test_quadrature(D, distance, ratio, shape, precision):
    """Against 2,000 nodes, at samples of the Normals along the whole path."""
    path = path_of(D, distance, ratio, shape)
    time, weight = rule(path, precision)
    assert ((time >= 0) & (time <= 1)).all()
    assert (weight > 0).all()
    loc_t, scale_t = place(torch.rand(16, dtype=torch.float64), path)
    z = loc_t + scale_t * torch.randn(16, D).double()
    exact = integral(*gauss_legendre(), z, path)
    if len(time) >= displacement.MAX_NODES:  # a random offset, tested below
        assert distance == 12 or ratio == 25
        return
    assert float(weight.sum()) == pytest.approx(1, abs=TOLERANCE[precision])
    actual = integral(time, weight, z, path)
    assert ((actual - exact) / exact).abs().max() < TOLERANCE[precision]


def test_long_paths_are_unbiased(monkeypatch):
    """The mean over all offsets of the nodes is a rule with many more nodes: exact."""
    D, offsets = 3, 64
    path = path_of(D, 200.0, 2.0, "narrower")
    loc_t, scale_t = place(torch.tensor([0.3]).double(), path)
    z = loc_t + scale_t * torch.randn(5, D).double()
    exact = integral(*gauss_legendre(), z, path)
    values = []
    for offset in range(offsets):
        monkeypatch.setattr(torch, "rand", lambda *shape, k=offset: torch.tensor(k / offsets))
        time, weight = rule(path, torch.float64)
        assert len(time) == displacement.MAX_NODES
        assert ((time >= 0) & (time <= 1)).all()
        values.append(integral(time, weight, z, path))
    values = torch.stack(values)
    assert (values.std(0) > 1e-3 * exact).all()  # one offset alone is not exact
    assert ((values.mean(0) - exact) / exact).abs().max() < 1e-9


def test_offsets_are_uniform():
    """The test above presumes it. A mean of 2,000 is within 5 standard errors of 1/2."""
    path = path_of(1, 200.0, 1.0, "narrower")
    draws = []
    for _ in range(2000):
        time, _ = rule(path, torch.float64)
        angle = time[0] * math.tau  # angle - sin(angle), the first node's
        draws.append(angle)
    offsets = torch.stack(draws)
    largest = math.tau / displacement.MAX_NODES
    assert offsets.max() <= largest - math.sin(largest) + 1e-12
    # angle - sin(angle) = angle^3 / 6 to 0.1 %
    uniform = (6 * offsets) ** (1 / 3) / largest
    assert abs(float(uniform.mean()) - 0.5) < 5 / 12**0.5 / 2000**0.5


def test_a_component_that_is_the_hub():
    """It does not move: no velocity, whatever the gradient, but a finite one."""
    locs, scales = torch.zeros(2, 3).double(), torch.ones(2, 3).double()
    z, grad = torch.randn(2, 5, 3).double()
    within = torch.full((1, 2), 0.5).double()
    log_prob = torch.zeros(5, 1).double()
    field = displacement.displacement(
        z, grad, log_prob, within, locs, scales, precision=torch.float64
    )
    assert field.abs().max() < 1e-12


@pytest.mark.parametrize("batch", [1, 300])
def test_moment_matched_of_many_mixtures(batch):
    """As of each by itself, whatever way their small products are computed."""
    locs, scales = torch.randn(batch, 3, 20).double(), torch.rand(batch, 3, 20).double() + 0.5
    within = torch.rand(batch, 1, 3).double().softmax(-1)
    together = moment_matched(within, locs, scales)
    last = moment_matched(within[-1], locs[-1], scales[-1])
    for many, one in zip(together, last, strict=True):
        torch.testing.assert_close(many[-1], one)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 0]])
def test_moment_matched(labels):
    """Mean and standard deviation of each component's group, from samples' formulas."""
    labels = torch.tensor(labels)
    locs, scales = torch.randn(3, 2).double(), torch.rand(3, 2).double() + 0.5
    weights = torch.tensor([0.2, 0.5, 0.3]).double()
    within = weights * (labels.unsqueeze(-1) == labels)
    within = within / within.sum(-1, keepdim=True)
    mean, offset, stddev = moment_matched(within, locs, scales)
    torch.testing.assert_close(offset, locs - mean)
    for j in range(3):
        member = labels == labels[j]
        share = (weights[member] / weights[member].sum()).unsqueeze(-1)
        group_mean = (share * locs[member]).sum(0)
        second = (share * (locs[member].square() + scales[member].square())).sum(0)
        torch.testing.assert_close(mean[j], group_mean)
        torch.testing.assert_close(stddev[j], (second - group_mean.square()).sqrt())
