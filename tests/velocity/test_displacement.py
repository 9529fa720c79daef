"""The integral over time of the displacement field."""

import functools
import math

import numpy
import pytest
import torch

from pyro_mixtures.velocity import displacement
from pyro_mixtures.velocity.displacement import moment_matched, quadrature

ALIVE = torch.tensor([True])
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-11}


@functools.cache
def gauss_legendre():
    """A rule of 200 nodes on every panel of a partition that is finer towards both ends."""
    x, weight = (torch.from_numpy(a) / 2 for a in numpy.polynomial.legendre.leggauss(200))
    edges = torch.tensor([0, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 1]).double()
    width = edges.diff().unsqueeze(-1)
    time = (edges[:-1].unsqueeze(-1) + width * (x + 0.5)).flatten()
    return time, (width * weight).flatten()


def integral(time, weight, z, path):
    """``w . 1`` and ``|w|`` at samples z, the integrand written out."""
    hub_loc, hub_scale, loc, scale = path
    t = time.unsqueeze(-1)
    loc_t, scale_t = (1 - t) * hub_loc + t * loc, (1 - t) * hub_scale + t * scale  # (T, D)
    standard = (z.unsqueeze(-2) - loc_t) / scale_t  # (S, T, D)
    log_density = -standard.square().sum(-1) / 2 - scale_t.log().sum(-1)
    velocity = (loc - hub_loc) + (scale - hub_scale) * standard
    integrand = log_density.exp().unsqueeze(-1) * velocity
    return (integrand.sum(-1) * weight).sum(-1), (integrand.norm(dim=-1) * weight).sum(-1)


def path_of(D, distance, ratio, shape):
    """From a unit hub to a component, ``distance`` of the narrower scale away."""
    hub_loc, hub_scale = torch.zeros(D).double(), torch.ones(D).double()
    power = {"narrower": -torch.ones(D), "wider": torch.ones(D), "both": torch.linspace(-1, 1, D)}
    scale = ratio ** power[shape].double()
    loc = torch.randn(D).double()
    return hub_loc, hub_scale, loc / loc.norm() * distance * scale.amin().clamp_max(1), scale


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", ["narrower", "wider", "both"])
@pytest.mark.parametrize("ratio", [1, 3, 25])
@pytest.mark.parametrize("distance", [0.5, 3, 12])
@pytest.mark.parametrize("D", [1, 2, 10, 40])
def test_quadrature(D, distance, ratio, shape, precision):
    """Against 2,000 nodes, at samples of the Normals along the whole path."""
    path = path_of(D, distance, ratio, shape)
    hub_loc, hub_scale, loc, scale = path
    time, weight = (
        x.squeeze(-1) for x in quadrature(*(x.unsqueeze(0) for x in path), ALIVE, precision)
    )
    assert ((time >= 0) & (time <= 1)).all()
    assert (weight > 0).all()
    t = torch.rand(16, 1, dtype=torch.float64)
    z = torch.lerp(hub_loc, loc, t) + torch.lerp(hub_scale, scale, t) * torch.randn(16, D).double()
    exact, size = integral(*gauss_legendre(), z, path)
    if len(time) >= displacement.MAX_NODES:  # a random offset, tested below
        assert distance == 12 or ratio == 25
        return
    assert float(weight.sum()) == pytest.approx(1, abs=TOLERANCE[precision])
    actual, _ = integral(time, weight, z, path)
    assert ((actual - exact).abs() / size).max() < TOLERANCE[precision]


def test_long_paths_are_unbiased(monkeypatch):
    """The mean over all offsets of the nodes is a rule with many more nodes: exact."""
    D, offsets = 3, 64
    path = path_of(D, 200.0, 2.0, "narrower")
    z = torch.lerp(path[0], path[2], 0.3) + 0.1 * torch.randn(5, D).double()
    exact, size = integral(*gauss_legendre(), z, path)
    values = []
    for offset in range(offsets):
        monkeypatch.setattr(torch, "rand", lambda *shape, k=offset: torch.tensor(k / offsets))
        time, weight = quadrature(*(x.unsqueeze(0) for x in path), ALIVE, torch.float64)
        assert len(time) == displacement.MAX_NODES
        assert ((time >= 0) & (time <= 1)).all()
        values.append(integral(time.squeeze(-1), weight.squeeze(-1), z, path)[0])
    values = torch.stack(values)
    assert (values.std(0) > 1e-3 * size).all()  # one offset alone is not exact
    assert ((values.mean(0) - exact).abs() / size).max() < 1e-9


def test_offsets_are_uniform():
    """The test above presumes it. A mean of 2,000 is within 5 standard errors of 1/2."""
    path = path_of(1, 200.0, 1.0, "narrower")
    draws = []
    for _ in range(2000):
        time, _ = quadrature(*(x.unsqueeze(0) for x in path), ALIVE, torch.float64)
        angle = time.squeeze(-1)[0] * math.tau  # angle - sin(angle), the first node's
        draws.append(angle)
    offsets = torch.stack(draws)
    largest = math.tau / displacement.MAX_NODES
    assert offsets.max() <= largest - math.sin(largest) + 1e-12
    # angle - sin(angle) = angle^3 / 6 to 0.1 %
    uniform = (6 * offsets) ** (1 / 3) / largest
    assert abs(float(uniform.mean()) - 0.5) < 5 / 12**0.5 / 2000**0.5


def test_paths_at_rest():
    """A component that coincides with the hub, beside one that does not: finite."""
    hub_loc, hub_scale = torch.zeros(2, 1).double(), torch.ones(2, 1).double()
    locs = torch.tensor([[0.0], [1.0]]).double()
    time, weight = quadrature(
        hub_loc, hub_scale, locs, torch.ones(2, 1).double(), ALIVE, torch.float64
    )
    torch.testing.assert_close(weight.sum(0), torch.ones(2).double())
    assert ((time >= 0) & (time <= 1)).all()


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 0]])
def test_moment_matched(labels):
    """Mean and standard deviation of each component's group, from samples' formulas."""
    labels = torch.tensor(labels)
    locs, scales = torch.randn(3, 2).double(), torch.rand(3, 2).double() + 0.5
    weights = torch.tensor([0.2, 0.5, 0.3]).double()
    within = weights * (labels.unsqueeze(-1) == labels)
    within = within / within.sum(-1, keepdim=True)
    mean, stddev = moment_matched(within, locs, scales)
    for j in range(3):
        member = labels == labels[j]
        share = (weights[member] / weights[member].sum()).unsqueeze(-1)
        group_mean = (share * locs[member]).sum(0)
        second = (share * (locs[member].square() + scales[member].square())).sum(0)
        torch.testing.assert_close(mean[j], group_mean)
        torch.testing.assert_close(stddev[j], (second - group_mean.square()).sqrt())
