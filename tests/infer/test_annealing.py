"""The weight of the divergence: losses are linear in it, for all objectives and guides."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_mixtures import (
    SIWAE_ELBO,
    Annealing,
    AutoDiagonalNormalMixture,
    BaselinedTrace_ELBO,
    MarginalizedMixture_ELBO,
    annealing_weight,
)

DATA = torch.tensor([0.5, -1.0, 2.0])


def model():
    """A latent with a Jacobian in automatic guides, and a subsample with a scale."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", 3, subsample_size=2, subsample=torch.tensor([0, 2])) as index:
        pyro.sample("x", dist.Normal(rate, 1.0), obs=DATA[index])


def normal_model():
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=DATA)


def normal_guide():
    with pyro.plate("data", 3):
        pyro.sample("z", dist.Normal(pyro.param("loc", lambda: DATA / 3), 0.7))


def loss(elbo, model, guide, weight):
    pyro.set_rng_seed(0)
    with Annealing(weight):
        return elbo.loss(model, guide)


def expected_terms(model, guide):
    """The mean over draws of minus the likelihood and of the divergence, by hand."""
    pyro.set_rng_seed(0)
    guide_trace = poutine.trace(guide).get_trace()
    trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace()
    trace.compute_log_prob()
    likelihood = trace.nodes["x"]["log_prob_sum"].item()
    return -likelihood, (guide_trace.log_prob_sum() - trace.log_prob_sum()).item() + likelihood


@pytest.fixture(autouse=True)
def _no_parameters():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0, 3.0])
@pytest.mark.parametrize("objective", [Trace_ELBO, TraceGraph_ELBO, BaselinedTrace_ELBO])
@pytest.mark.parametrize(
    "autoguide", [AutoNormal, partial(AutoDiagonalNormalMixture, num_components=2)]
)
def test_latent_terms_are_weighed_and_those_of_the_data_are_not(objective, autoguide, weight):
    pyro.set_rng_seed(1)
    guide = autoguide(model)
    guide()
    likelihood, divergence = expected_terms(model, guide)
    found = loss(objective(), model, guide, weight)
    assert found == pytest.approx(likelihood + weight * divergence, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.25, 3.0])
def test_a_divergence_in_closed_form_is_weighed(weight):
    """The same draws: what differs is the divergence, which is exact."""
    q = dist.Normal(DATA / 3, 0.7)
    divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum()
    plain = loss(TraceMeanField_ELBO(), normal_model, normal_guide, 1.0)
    found = loss(TraceMeanField_ELBO(), normal_model, normal_guide, weight)
    assert found - plain == pytest.approx((weight - 1) * divergence.item(), abs=1e-5)


def test_a_sum_over_components_is_weighed():
    pyro.set_rng_seed(1)
    guide = AutoDiagonalNormalMixture(model, 2)
    guide()
    elbo = MarginalizedMixture_ELBO(max_plate_nesting=1)
    losses = [loss(elbo, model, guide, weight) for weight in (0.0, 0.25, 1.0)]
    assert losses[0] != pytest.approx(losses[2], rel=0.01)
    assert losses[1] == pytest.approx(0.75 * losses[0] + 0.25 * losses[2], rel=1e-5)


def test_scales_multiply():
    pyro.set_rng_seed(1)
    scaled_model, scaled_guide = (
        poutine.scale(f, scale=2.0) for f in (normal_model, normal_guide)
    )
    found = loss(Trace_ELBO(), scaled_model, scaled_guide, 0.5)
    plain = loss(Trace_ELBO(), normal_model, normal_guide, 0.5)
    assert found == pytest.approx(2 * plain)


def test_a_logarithm_over_samples_refuses_scales_that_differ():
    guide = AutoDiagonalNormalMixture(model, 2)
    with Annealing(0.5), pytest.raises(ValueError, match="scale"):
        SIWAE_ELBO().loss(model, guide)


def test_gradients_are_weighed():
    def gradient(weight):
        pyro.set_rng_seed(0)
        guide = pyro.nn.PyroModule("guide")
        guide.loc = torch.nn.Parameter(torch.tensor(0.5))

        def at_loc():
            with pyro.plate("data", 3):
                pyro.sample("z", dist.Normal(guide.loc, 0.7))

        with Annealing(weight):
            Trace_ELBO().differentiable_loss(normal_model, at_loc).backward()
        return guide.loc.grad

    none, half, whole = (gradient(weight) for weight in (0.0, 0.5, 1.0))
    assert whole - none != 0
    assert half == pytest.approx(((none + whole) / 2).item(), rel=1e-5)


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_bad_weights(weight):
    with pytest.raises(ValueError, match=f"Expected a finite weight >= 0, but got {weight}"):
        Annealing(weight)


def test_a_weight_grows_linearly_and_stays():
    weights = [annealing_weight(step, 4) for step in range(7)]
    assert weights == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert annealing_weight(1, 2, start=0.5) == 0.75
    assert annealing_weight(0, 0) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"step": -1, "num_steps": 5}, "Expected step >= 0, but got -1"),
        ({"step": 1, "num_steps": -5}, "Expected num_steps >= 0, but got -5"),
        ({"step": 1, "num_steps": 5, "start": 1.5}, r"Expected start in \[0, 1\], but got 1.5"),
    ],
)
def test_bad_schedules(arguments, told):
    with pytest.raises(ValueError, match=told):
        annealing_weight(**arguments)
