"""The guide of the state space model, and the bounds that judge it."""

import math

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from experiments.state_space import bounds
from experiments.state_space.guide import ESTIMATORS, MixtureGuide
from experiments.state_space.model import model, simulate
from experiments.state_space.smoother import log_likelihood
from pyro_mixtures.diagnostics import evaluate
from pyro_mixtures.infer import BaselinedTrace_ELBO
from tests.pairwise import in_pairs


@pytest.fixture
def observations():
    return simulate(6, seed=2)[1]


def gradients(guide, objective, observations):
    guide.zero_grad()
    objective.differentiable_loss(model, guide, observations).backward()
    return torch.cat([parameter.grad.flatten() for parameter in guide.parameters()])


@in_pairs
@pytest.mark.parametrize("objective", [Trace_ELBO, BaselinedTrace_ELBO])
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_parameter_is_trained(estimator, particles, objective, observations):
    """Under both objectives, with one particle and with several at once."""
    guide = MixtureGuide(2, estimator)
    several = particles > 1
    loss = objective(num_particles=particles, vectorize_particles=several, max_plate_nesting=1)
    for part in (observations, observations[:4, :3]):  # of any size and length
        found = gradients(guide, loss, part)
        assert found.isfinite().all()
        assert all(parameter.grad.abs().sum() > 0 for parameter in guide.parameters())


@pytest.mark.parametrize("estimator", ["clustered", "score"])
def test_estimators_agree_in_the_mean(estimator):
    """Means over 200 estimates have the same gradient as those of the pathwise estimator."""
    _, observations = simulate(1, seed=2)
    copies = observations[:, :2].expand(100, -1, -1)
    loss = Trace_ELBO(max_plate_nesting=1)
    start = MixtureGuide(3, rnn_size=3, hidden_size=3).state_dict()

    def moments(name):
        guide = MixtureGuide(3, name, rnn_size=3, hidden_size=3)
        guide.load_state_dict(start)
        draws = torch.stack([gradients(guide, loss, copies) for _ in range(200)])
        return draws.mean(0), draws.var(0) / len(draws)

    mean, error = moments(estimator)
    expected, expected_error = moments("pathwise")
    scores = (mean - expected) / (error + expected_error).sqrt()
    assert scores.isfinite().all()
    assert scores.abs().max() < 5  # some 100 of them


@pytest.mark.parametrize("estimator", ["pathwise", "clustered", "score"])
def test_density_of_samples_is_that_of_the_sites(estimator, observations):
    guide = MixtureGuide(2, estimator)
    states, log_density = guide.sample(observations, 5)
    assert states.shape == (5, 6, 10, 2)
    assert log_density.shape == (5, 6)
    values = {f"z_{t + 1}": states[..., t, :] for t in range(10)}
    trace = pyro.poutine.trace(pyro.condition(guide, values)).get_trace(observations)
    trace.compute_log_prob()
    total = sum(trace.nodes[name]["log_prob"] for name in values)
    assert torch.allclose(total, log_density, atol=1e-4)


@pytest.mark.parametrize("num_components", [1, 2])
def test_guide_of_the_objective_is_the_one_that_is_judged(num_components, observations):
    guide = MixtureGuide(num_components)
    loss = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
    weights = bounds.log_weights(guide, observations, 2000).sum(1)  # (S,)
    with torch.no_grad():
        objective = -loss.loss(model, guide, observations)
    error = weights.std().item() * math.sqrt(2 / 2000)
    assert weights.mean().item() == pytest.approx(objective, abs=5 * error)


def test_relaxed_guide_is_judged_as_a_mixture(observations):
    guide, relaxed = MixtureGuide(2), MixtureGuide(2, "gumbel_soft")
    relaxed.load_state_dict(guide.state_dict())
    found = []
    for each in (guide, relaxed):
        torch.manual_seed(0)
        found.append(bounds.lower_bounds(each, observations))
    assert found[0] == found[1]


def test_sites_of_a_relaxed_guide_are_mixtures_in_evaluation_mode(observations):
    guide = MixtureGuide(2, "gumbel_soft")
    classes = []
    for training in (True, False):
        trace = pyro.poutine.trace(guide.train(training)).get_trace(observations)
        classes.append(type(trace.nodes["z_1"]["fn"]).__name__)
    assert classes == ["GumbelSoftmaxMixtureOfDiagNormals", "MixtureOfDiagNormals"]


def test_steps_see_the_observations_from_them_on(observations):
    guide = MixtureGuide(2)
    changed = observations.clone()
    changed[:, 3] += 1
    pairs = zip(guide._contexts(observations), guide._contexts(changed), strict=True)
    same = [torch.equal(*pair) for pair in pairs]
    assert same == [t > 3 for t in range(10)]


def test_states_depend_on_the_state_before(observations):
    guide = MixtureGuide(2)
    context = next(guide._contexts(observations))
    previous = torch.randn(5, 6, 2)
    locs = guide.conditional(context, previous).locs
    assert locs.shape == (5, 6, 2, 2)
    assert (locs.std(0) > 0).all()


def test_network_runs_once_for_all_particles(observations):
    guide = MixtureGuide(2)
    calls = []
    guide.rnn.register_forward_hook(lambda *args: calls.append(args[1][0].shape))
    loss = Trace_ELBO(num_particles=7, vectorize_particles=True, max_plate_nesting=1)
    loss.loss(model, guide, observations)
    assert calls == [(6, 10, 2)]


@pytest.mark.parametrize("num_components", [1, 2, 3])
def test_components_start_apart(num_components):
    guide = MixtureGuide(num_components)
    with torch.no_grad():  # what the biases alone make
        guide.output.weight.zero_()
    mixture = guide.conditional(torch.zeros(4, 32), torch.zeros(4, 2))
    starts = {1: [0.0], 2: [-0.5, 0.5], 3: [-0.5, 0.0, 0.5]}[num_components]
    assert mixture.locs[0, :, 0].tolist() == starts
    assert (mixture.locs[..., 1] == 0).all()
    assert torch.allclose(mixture.coord_scale, torch.tensor(0.25))
    assert (mixture.component_logits == 0).all()


def test_bad_arguments_are_told(observations):
    with pytest.raises(ValueError, match="num_components >= 1, but got 0"):
        MixtureGuide(0)
    with pytest.raises(ValueError, match="estimator"):
        MixtureGuide(2, "magic")
    with pytest.raises(ValueError, match="num_samples to be an integer >= 25, but got 1"):
        bounds.lower_bounds(MixtureGuide(1), observations, 1)


def wide_guide():
    """Not trained, and wider than the posterior: no weights without variance."""
    guide = MixtureGuide(2)
    with torch.no_grad():
        guide._split(guide.output.bias)[1].fill_(0.6)
    return guide


def test_bounds_are_below_the_likelihood(observations):
    """The second rises to it with the particles."""
    part, guide = observations[:, :1], wide_guide()
    few, many = (bounds.lower_bounds(guide, part, count) for count in (200, 20_000))
    exact = log_likelihood(part).mean().item()
    assert few["elbo"] < few["iw_bound"] < exact + 3 * few["iw_bound_se"]
    assert many["iw_bound"] == pytest.approx(exact, abs=0.02)
    assert few["elbo"] == pytest.approx(many["elbo"], abs=5 * few["elbo_se"])


def test_bounds_are_those_of_the_model_and_the_guide(observations):
    """Drawn by Pyro, one mixture after another in its plates."""
    guide, part = wide_guide().eval(), observations[:, :2]
    expected = bounds.lower_bounds(guide, part, 2000)
    found = evaluate(
        model, guide, part, num_samples=2000, plate="sequences", vectorize=True, chunk_size=500
    )
    for name, value, error in (
        ("elbo", found.elbo, found.elbo_error),
        ("iw_bound", found.iw_bound, found.iw_bound_error),
    ):
        spread = math.hypot(expected[f"{name}_se"], error.norm().item() / len(part))
        assert abs(value.mean().item() - expected[name]) < 4.5 * spread


def test_errors_of_the_bounds_are_those_of_other_particles(observations):
    guide, part = wide_guide(), observations[:, :1]
    found = [bounds.lower_bounds(guide, part, 200) for _ in range(200)]
    for name in ("elbo", "iw_bound"):
        spread = torch.tensor([each[name] for each in found]).std().item()
        claimed = torch.tensor([each[f"{name}_se"] for each in found]).mean().item()
        assert claimed == pytest.approx(spread, rel=0.3)
