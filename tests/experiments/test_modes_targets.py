"""The targets of the experiment `modes`: densities, Pyro models, starts, modes and evidence."""

import json
import math
from dataclasses import replace

import pyro
import pytest
import torch
from pyro import poutine
from torch.distributions import MultivariateNormal, StudentT, biject_to

from experiments.lab.datasets import VARIABLE
from experiments.modes.targets import TARGETS, importance, mixtures, posteriordb, simulators, truth
from experiments.modes.targets.importance import mean_of_weights
from experiments.modes.targets.target import simplex

SCHOOLS = {"y": [28, 8, -3, 7, -1, 1, 18, 12], "sigma": [15, 10, 16, 11, 9, 11, 10, 18]}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Small data of the same form as those of posteriordb."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "posteriordb").mkdir()
    y = torch.cat([torch.linspace(-4, -2, 6), torch.linspace(1, 4, 9)]).tolist()
    for name in posteriordb.POSTERIORDB:
        content = SCHOOLS if name == "eight_schools" else {"y": y}
        (tmp_path / "posteriordb" / f"{name}.data.json").write_text(json.dumps(content))


def starts(target, count):
    return target.prior_draws(count, torch.Generator().manual_seed(0))


def model_log_density(target, z):
    """Of a model below an outer plate, whose sites take the coordinates one after another."""
    start = 0
    with pyro.plate("outer", len(z), dim=-1):
        prior = poutine.trace(target.model).get_trace()
        values, jacobian = {}, torch.zeros(len(z), dtype=z.dtype)
        for name in prior.stochastic_nodes:
            if prior.nodes[name]["type"] == "sample" and name != "outer":
                transform = biject_to(prior.nodes[name]["fn"].support)
                shape = transform.inverse_shape(prior.nodes[name]["value"].shape)
                size = shape[1:].numel()
                free = z[:, start : start + size].reshape(shape)
                values[name] = transform(free)
                log_det = transform.log_abs_det_jacobian(free, values[name])
                jacobian = jacobian + log_det.reshape(len(z), -1).sum(-1)
                start += size
        trace = poutine.trace(poutine.condition(target.model, values)).get_trace()
    trace.compute_log_prob()
    assert start == target.dimension
    terms = [site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample"]
    assert all(term.shape in ((len(z),), ()) for term in terms)
    return jacobian + sum(terms)


@pytest.mark.parametrize("name", list(TARGETS))
def test_density_and_model_agree(name):
    target = TARGETS[name]()
    assert target.name == name
    z = starts(target, 4)
    assert target.model is not None
    torch.testing.assert_close(target.log_density(z), model_log_density(target, z))


@pytest.mark.parametrize("name", list(TARGETS))
def test_contract(name):
    target = TARGETS[name]()
    z = starts(target, 50)
    assert z.shape == (50, target.dimension)
    assert z.isfinite().all()
    z.requires_grad_()
    value = target.log_density(z)
    assert value.shape == (50,)
    assert value.dtype == torch.float64
    one = target.log_density(z[7:8])
    torch.testing.assert_close(one, value[7:8])
    (grad,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), z)
    assert grad.isfinite().all()
    assert second.isfinite().all()
    modes = target.mode_of(z.detach())
    assert modes.shape == (50,)
    assert modes.dtype == torch.long
    assert modes.min() >= -1
    assert modes.max() < len(target.mode_weights)
    # what lies in rare windings of the robot's arm is in no mode
    assert target.mode_weights.sum() == pytest.approx(1, abs=2e-3)
    again = starts(target, 50)
    torch.testing.assert_close(again, z.detach(), rtol=0, atol=0)


def test_gaussian_process_on_a_grid():
    target = TARGETS["gaussian_process"]()
    value, weights = truth.on_grid(target, [(-7, 9), (-4.5, 4.5), (-10, 5.5)], 50)
    assert value == pytest.approx(target.evidence.value, abs=1e-3)
    torch.testing.assert_close(weights, target.mode_weights, rtol=0, atol=0.02)


def test_two_moons_on_a_grid():
    target = TARGETS["two_moons"]()
    value, weights = truth.on_grid(target, [(-3, 3), (-3, 3)], 700)
    assert value == pytest.approx(target.evidence.value, abs=1e-3)
    torch.testing.assert_close(weights, target.mode_weights, rtol=0, atol=1e-3)


def test_radial_velocity_and_eight_schools_in_closed_form():
    target = TARGETS["radial_velocity"]()
    value, weights = truth.radial_velocity(20_000)
    assert value == pytest.approx(target.evidence.value, abs=1e-4)
    torch.testing.assert_close(weights, target.mode_weights, rtol=0, atol=1e-4)
    for name in ("eight_schools", "eight_schools_noncentered"):
        assert truth.eight_schools(300) == pytest.approx(TARGETS[name]().evidence.value, abs=1e-4)


@pytest.mark.parametrize("name", ["ten_normals_2", "ten_normals_2_near", "forty_normals"])
def test_masses_of_regions_in_the_plane(name):
    target = TARGETS[name]()
    edge = 2.0 * starts(target, 1000).std().item()
    line = torch.linspace(-edge, edge, 500, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    values = torch.cat([target.log_density(part) for part in z.split(20_000)])
    modes = torch.cat([target.mode_of(part) for part in z.split(20_000)])
    masses = torch.zeros_like(target.mode_weights).index_add(0, modes, values.softmax(0))
    torch.testing.assert_close(masses, target.mode_weights, rtol=0, atol=2e-3)


def test_normals_against_torch():
    target = mixtures.normal_mixture(
        "two",
        torch.tensor([0.3, 0.7], dtype=torch.float64),
        torch.tensor([[0.0, 0.0], [3.0, 1.0]], dtype=torch.float64),
        torch.tensor([[[2.0, 0.5], [0.5, 1.0]], [[1.0, -0.3], [-0.3, 0.5]]], dtype=torch.float64),
        spread=3.0,
    )
    z = starts(target, 10)
    first = MultivariateNormal(
        torch.zeros(2, dtype=torch.float64),
        torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64),
    )
    second = MultivariateNormal(
        torch.tensor([3.0, 1.0], dtype=torch.float64),
        torch.tensor([[1.0, -0.3], [-0.3, 0.5]], dtype=torch.float64),
    )
    expected = torch.logaddexp(
        first.log_prob(z) + math.log(0.3), second.log_prob(z) + math.log(0.7)
    )
    torch.testing.assert_close(target.log_density(z), expected)


def test_student_and_its_mixture():
    x = torch.linspace(-5, 5, 11, dtype=torch.float64)
    torch.testing.assert_close(mixtures.student(x, 4.0), StudentT(4.0).log_prob(x))
    one = mixtures.student_mixture(1, 3, 20.0)
    grid, size = truth.axis(-1e4, 1e4, 400_000)
    total = one.log_density(grid.unsqueeze(-1)).logsumexp(0) + size
    assert total.item() == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("name", ["star", "funnel", "forty_normals", "ten_normals_2_near"])
def test_evidence_of_what_is_normalized(name):
    """Importance sampling from wide Student t; four standard errors."""
    target = TARGETS[name]()
    torch.manual_seed(0)
    scale = starts(target, 2000).std(0)
    if name == "funnel":  # the tails need draws of the same form
        x = 3.6 * torch.randn(60_000, 1, dtype=torch.float64)
        noise = 1.2 * torch.randn(60_000, 9, dtype=torch.float64)
        z = torch.cat([x, (x / 2).exp() * noise], -1)
        log_q = mixtures.normal(x[:, 0], 0.0, 3.6) + mixtures.normal(
            z[:, 1:], 0.0, 1.2 * (x / 2).exp()
        ).sum(-1)
    else:
        wide = StudentT(torch.full_like(scale, 3.0), torch.zeros_like(scale), scale)
        z = wide.sample((60_000,))
        log_q = wide.log_prob(z).sum(-1)
    value, error = mean_of_weights(target.log_density(z) - log_q)
    assert error < 0.05
    assert value == pytest.approx(0.0, abs=4 * error)


def test_slcp_against_torch():
    theta = 6 * torch.rand(20, 5, dtype=torch.float64) - 3
    first, second, rho = theta[:, 2].square(), theta[:, 3].square(), theta[:, 4].tanh()
    off = rho * first * second
    covariance = torch.stack([first.square(), off, off, second.square()], -1).reshape(20, 2, 2)
    covariance = covariance + 1e-6 * torch.eye(2, dtype=torch.float64)
    points = MultivariateNormal(theta[:, :2], covariance)
    expected = sum(points.log_prob(point) for point in simulators.SLCP_POINTS)
    torch.testing.assert_close(simulators.slcp_log_likelihood(theta), expected, rtol=1e-6, atol=0)


def test_arms_in_the_mirror():
    """An arm and its image reach goals that are images; sides are exchanged."""
    target = TARGETS["robot_4"]()
    theta = starts(target, 200)
    torch.testing.assert_close(target.log_density(-theta), target.log_density(theta))
    images = torch.tensor([1, 0, 3, 2, 7, 6, 5, 4, -1])
    torch.testing.assert_close(target.mode_of(-theta), images[target.mode_of(theta)])
    torch.testing.assert_close(target.mode_weights[images[:8]], target.mode_weights)
    end = simulators.joints(theta)[:, -1]
    angles = theta.cumsum(-1)
    torch.testing.assert_close(end[:, 0], angles.cos().sum(-1))


def test_robots_evidence():
    value, error = truth.robot(torch.tensor([7.0, 0.0], dtype=torch.float64), 100_000)
    target = TARGETS["robot_1"]()
    assert error < 0.01
    assert value + math.log(2) == pytest.approx(target.evidence.value, abs=4 * error)


def test_labels_of_five_normals():
    target = TARGETS["normal_5"]()
    known = posteriordb.NORMAL_5
    found = []
    for permutation in posteriordb.PERMUTATIONS:
        loc, scale = known[permutation].unbind(-1)
        z = torch.cat([torch.zeros(4, dtype=torch.float64), loc, (scale / 10).logit()])
        found.append(target.mode_of(z.unsqueeze(0)).item())
    assert found == list(range(120))


def test_simplex_is_uniform():
    """A grid over the free coordinates of three shares has the area of the triangle."""
    axis, size = truth.axis(-18, 18, 300)
    z = torch.cartesian_prod(axis, axis)
    points, jacobian = simplex(z)
    torch.testing.assert_close(points.sum(-1), torch.ones(len(z), dtype=torch.float64))
    assert (jacobian.logsumexp(0) + 2 * size).item() == pytest.approx(math.log(0.5), abs=1e-4)


def test_sorted_normals():
    pair = posteriordb.Sorted(torch.tensor(2.0, dtype=torch.float64))
    draws = pair.sample((50,))
    assert (draws[:, 1] >= draws[:, 0]).all()
    assert pair.expand((3,)).sample().shape == (3, 2)
    axis, size = truth.axis(-12, 12, 400)
    plane = torch.cartesian_prod(axis, axis)
    inside = plane[plane[:, 1] > plane[:, 0]]
    total = pair.log_prob(inside).logsumexp(0) + 2 * size
    assert total.item() == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("sample", [importance.by_importance, importance.by_chains])
def test_evidence_by_importance(sample):
    target = TARGETS["ten_normals_2_near"]()
    torch.manual_seed(0)
    proposal = importance.Proposal.fitted(starts(target, 500), 1, widen=1.0)
    value, error = sample(target.log_density, proposal, 12, count=2000, final=10_000)
    assert error < 0.05
    assert value == pytest.approx(0.0, abs=4 * error)


def test_evidence_by_annealing():
    """Of a Normal, of which each draw tells it, and of Gumbel's density."""
    normal = mixtures.normal_mixture(
        "normal",
        torch.ones(1, dtype=torch.float64),
        torch.ones(1, 3, dtype=torch.float64),
        2 * torch.eye(3, dtype=torch.float64).unsqueeze(0),
        spread=1.0,
    )
    torch.manual_seed(0)
    value, error = importance.by_annealing(normal, count=20, steps=5)
    assert (value, error) == pytest.approx((0.0, 0.0), abs=1e-9)
    gumbel = replace(normal, log_density=lambda z: -(z + (-z).exp()).sum(-1))
    value, error = importance.by_annealing(gumbel, count=500, steps=40)
    assert error < 0.05
    assert value == pytest.approx(0.0, abs=4 * error)


def test_evidence_of_copies():
    """Of two label modes one is sampled; draws of the prior tell the same of few data."""
    target = TARGETS["low_dim_gauss_mix_collapse"]()
    torch.manual_seed(0)
    kind = importance.Kind(copies=2, components=3)
    value, error = importance.evidence(target, kind, starts=4, count=1000, final=4000)
    z = starts(target, 200_000)
    mu, log_sigma, logit = z[:, :2], z[:, 2:4], z[:, 4]
    y = posteriordb.observations("low_dim_gauss_mix_collapse", "y")
    likelihood = posteriordb.two_normals_likelihood(y, mu, log_sigma.exp(), logit.sigmoid())
    expected, other = mean_of_weights(likelihood)
    assert error + other < 0.1
    assert value == pytest.approx(expected, abs=4 * math.hypot(error, other))


def test_points_of_a_mode_are_above_its_floor():
    """A point in a thousand is below, and is near to no mode."""
    target = TARGETS["ten_normals_10"]()
    z = starts(target, 1000)
    assert target.found_in(z, target.log_density(z)).max() == -1
    count = 20_000
    one = mixtures.normal_mixture(
        "one",
        torch.ones(1, dtype=torch.float64),
        torch.zeros(1, 3, dtype=torch.float64),
        torch.eye(3, dtype=torch.float64).unsqueeze(0),
        spread=1.0,
    )
    z = torch.randn(count, 3, dtype=torch.float64)
    outside = (one.found_in(z, one.log_density(z)) == -1).sum().item()
    assert abs(outside - count / 1000) < 4 * math.sqrt(count / 1000)


def test_missing_data(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ValueError, match=rf"eight_schools.data.json in a folder.*{VARIABLE}"):
        TARGETS["eight_schools"]()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"no such file"):
        TARGETS["normal_5"]()
