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
    ImportanceWeighted_ELBO,
    MarginalizedMixture_ELBO,
    annealing_weight,
)
from pyro_mixtures.nn import ConditionalMixture, MixturePrior

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


# ------------------------------------------------- amortized guides, priors with parameters


class Autoencoder(torch.nn.Module):
    """A mixture for each datum in a plate, and a mixture with parameters as the prior."""

    def __init__(self):
        super().__init__()
        self.encoder, self.prior = ConditionalMixture(1, 1, 2), MixturePrior(1, 3)
        self.decoder = torch.nn.Linear(1, 1)

    def model(self):
        pyro.module("autoencoder", self)
        with pyro.plate("data", 3):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(self.decoder(z).squeeze(-1), 0.5), obs=DATA)

    def guide(self):
        pyro.module("autoencoder", self)
        with pyro.plate("data", 3):
            pyro.sample("z", self.encoder(DATA.unsqueeze(-1)))


@pytest.mark.parametrize(
    "make",
    [
        Trace_ELBO,
        TraceGraph_ELBO,
        TraceMeanField_ELBO,
        BaselinedTrace_ELBO,
        partial(BaselinedTrace_ELBO, 3, vectorize_particles=True),
        partial(BaselinedTrace_ELBO, 2),
        MarginalizedMixture_ELBO,
        partial(MarginalizedMixture_ELBO, sticking_the_landing=True),
    ],
)
def test_losses_and_gradients_of_amortized_mixtures_are_linear(make):
    """In the weight; those of encoder, decoder and prior, whose density has it, too."""
    pyro.set_rng_seed(0)
    autoencoder = Autoencoder()

    def found(weight):
        pyro.set_rng_seed(1)
        autoencoder.zero_grad()
        with Annealing(weight):
            loss = make(max_plate_nesting=1).loss_and_grads(autoencoder.model, autoencoder.guide)
        grads = ((p, p.grad) for p in autoencoder.parameters())
        return loss, [torch.zeros_like(p) if g is None else g.clone() for p, g in grads]

    (none, at_none), (some, at_some), (whole, at_whole) = map(found, (0.0, 0.25, 1.0))
    assert some == pytest.approx(0.75 * none + 0.25 * whole, rel=1e-5)
    for one, two, three in zip(at_none, at_some, at_whole, strict=True):
        torch.testing.assert_close(two, 0.75 * one + 0.25 * three, rtol=1e-4, atol=1e-4)
    names = [name for name, _ in autoencoder.named_parameters()]
    for name, one, three in zip(names, at_none, at_whole, strict=True):
        assert (one == 0).all() == name.startswith("prior")
        assert name.startswith("decoder") or not torch.allclose(one, three)


@pytest.mark.parametrize("make", [SIWAE_ELBO, ImportanceWeighted_ELBO])
@pytest.mark.parametrize("particles", [1, 2])
def test_amortized_mixtures_within_a_logarithm_refuse_a_weight(make, particles):
    autoencoder = Autoencoder()
    elbo = make(particles, vectorize_particles=True, max_plate_nesting=1)
    with Annealing(0.5), pytest.raises(ValueError, match="0.5 at 'z' of the model, 1 at 'x' of"):
        elbo.loss_and_grads(autoencoder.model, autoencoder.guide)
    with Annealing(1.0):
        assert math.isfinite(elbo.loss_and_grads(autoencoder.model, autoencoder.guide))
