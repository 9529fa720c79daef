"""What importance sampling of guides refuses."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormalMessenger

from pyro_mixtures.diagnostics import psis

each_way = pytest.mark.parametrize("vectorize", [False, True, None])


def normal_model():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(2.0))


def normal_guide(loc=1.0, scale=0.5**0.5):
    pyro.sample("x", dist.Normal(loc, scale))


def test_nan_names_the_site():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        broken = dist.Normal(x * math.nan, 1.0, validate_args=False)
        pyro.sample("broken", broken, obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match="log_prob = nan at site 'broken' of the model"):
        psis(model, normal_guide)

    def infinite():
        pyro.sample("x", dist.Normal(1.0, 1.0))
        pyro.factor("broken", torch.tensor(-math.inf), has_rsample=True)

    with pytest.raises(ValueError, match="log_prob = -inf at site 'broken' of the guide"):
        psis(normal_model, infinite)


def test_a_value_outside_the_support_names_the_site():
    def model():
        pyro.sample("x", dist.Uniform(0.0, 1.0))

    with pytest.raises(ValueError, match="'x' of the model.*support"):
        psis(model, normal_guide)


def test_weights_that_are_all_zero():
    def model():
        pyro.sample("x", dist.Uniform(50.0, 51.0, validate_args=False))

    with pytest.raises(ValueError, match="all 100 weights are zero"):
        psis(model, normal_guide, num_samples=100)


def test_sites_must_match():
    def other():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def more():
        normal_guide()
        other()

    with pytest.raises(ValueError, match="does not sample x"):
        psis(normal_model, other)
    with pytest.raises(ValueError, match="but got z"):
        psis(normal_model, more)
    with pytest.raises(ValueError, match="GuideMessenger.* but got y"):
        psis(normal_model, AutoNormalMessenger(normal_model))


def test_sites_that_come_and_go():
    def model():
        if pyro.sample("coin", dist.Bernoulli(0.5)):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="same latent sites in each run"):
        psis(model, model, vectorize=False)


@each_way
def test_a_point_is_no_density(vectorize):
    with pytest.raises(ValueError, match="all its draws of x are the same"):
        psis(normal_model, AutoDelta(normal_model), vectorize=vectorize)


@each_way
def test_discrete_sites_may_always_be_the_same(vectorize):
    def model():
        on = pyro.sample("on", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(5 * on, 1.0), obs=torch.tensor(5.0))

    def guide():
        pyro.sample("on", dist.Bernoulli(1 - 1e-5))

    found = psis(model, guide, num_samples=100, vectorize=vectorize)
    assert found.log_evidence == pytest.approx(-0.919 - 0.693, abs=1e-3)


def test_models_that_do_not_vectorize():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x * torch.ones(1, 1), 1.0), obs=torch.ones(1, 1))

    found = psis(model, normal_guide, num_samples=30, vectorize=False)
    assert found.log_weights.shape == (30,)
    with pytest.raises(ValueError, match="allow vectorize = True.* at site 'y'"):
        psis(model, normal_guide, num_samples=30, vectorize=True)


def test_models_that_do_not_vectorize_are_drawn_one_by_one_and_it_is_said():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(2.0 if x > 1 else 1.0, 1.0), obs=torch.tensor(2.0))

    told = "one by one, which is slow, for as a batch they raise RuntimeError: Boolean value"
    pyro.set_rng_seed(0)
    with pytest.warns(UserWarning, match=told) as caught:
        found = psis(model, normal_guide, num_samples=30)
    assert caught[0].filename == __file__
    pyro.set_rng_seed(0)
    expected = psis(model, normal_guide, num_samples=30, vectorize=False)
    assert found.log_evidence == expected.log_evidence


def test_errors_without_a_message_are_named():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if x.dim():
            raise RuntimeError

    with pytest.warns(UserWarning, match="as a batch they raise RuntimeError: ;"):
        psis(model, normal_guide, num_samples=30)


@each_way
def test_mistakes_are_raised_before_batches_are_tried(vectorize):
    """Without a warning that draws are made one by one."""

    def nan():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        broken = dist.Normal(x * math.nan, 1.0, validate_args=False)
        pyro.sample("broken", broken, obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match="log_prob = nan at site 'broken' of the model"):
        psis(nan, normal_guide, vectorize=vectorize)


@pytest.mark.parametrize("count", [0, 24])
def test_numbers_of_samples(count):
    with pytest.raises(ValueError, match=f"num_samples to be an integer >= 25, but got {count}"):
        psis(normal_model, normal_guide, num_samples=count)
    found = psis(normal_model, normal_guide, num_samples=25)
    with pytest.raises(ValueError, match="num_samples to be an integer >= 1, but got 0"):
        found.resample(0)
