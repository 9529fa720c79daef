"""Sites of guides that are not drawn: what they observe, ``pyro.factor``, ``Delta``."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_mixtures.distributions import MixtureSameFamily
from pyro_mixtures.infer import (
    SIWAE_ELBO,
    BaselinedTrace_ELBO,
    ImportanceWeighted_ELBO,
    MarginalizedMixture_ELBO,
)


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


OBJECTIVES = [
    (BaselinedTrace_ELBO, {}),
    (BaselinedTrace_ELBO, {"num_particles": 2}),
    (BaselinedTrace_ELBO, {"num_particles": 2, "sticking_the_landing": True}),
    (ImportanceWeighted_ELBO, {}),
    (ImportanceWeighted_ELBO, {"num_particles": 3}),
    (ImportanceWeighted_ELBO, {"num_particles": 3, "doubly_reparameterized": True}),
    (MarginalizedMixture_ELBO, {"sticking_the_landing": True}),
    (SIWAE_ELBO, {"num_particles": 2}),
    (SIWAE_ELBO, {"num_particles": 2, "sticking_the_landing": True}),
]


def model():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(2.0))


def latent():
    weights = dist.Categorical(logits=pyro.param("logits", torch.zeros(2)))
    return MixtureSameFamily(weights, dist.Normal(torch.tensor([-1.0, 1.0]), 1.0))


def gradient(elbo, guide, name):
    elbo.loss_and_grads(model, guide)
    return pyro.get_param_store()._params[name].grad


@pytest.mark.parametrize(("kind", "options"), OBJECTIVES)
@pytest.mark.parametrize("discrete", [True, False])
def test_what_a_guide_observes_counts_with_its_whole_gradient(kind, options, discrete):
    """Its density has no sample, and so neither a score function nor a mean of zero."""

    def guide():
        pyro.sample("z", latent())
        p = pyro.param("p", torch.tensor(0.3))
        fn = dist.Bernoulli(p) if discrete else dist.Normal(p, 1.0)
        pyro.sample("o", fn, obs=torch.tensor(1.0), infer={"is_auxiliary": True})

    expected = 1 / 0.3 if discrete else 1 - 0.3
    assert gradient(kind(**options), guide, "p").item() == pytest.approx(expected)


@pytest.mark.parametrize("masked", [True, False])
def test_a_factor_keeps_its_gradient_under_sticking_the_landing(masked):
    """It is the density of a sample drawn elsewhere, as that of ``Delta``."""

    def guide():
        scale = pyro.param("scale", torch.tensor(0.7))
        with poutine.block():
            z = pyro.sample("inner", dist.Normal(0.5, scale))
        density = dist.Normal(0.5, scale).log_prob(z)
        if masked:
            fn = dist.Unit(density, has_rsample=True).mask(torch.tensor(True))
            pyro.sample("factor", fn, obs=torch.empty(0), infer={"is_auxiliary": True})
        else:
            pyro.factor("factor", density, has_rsample=True)
        pyro.sample("z", dist.Delta(z))

    found = []
    for landing in (True, False):
        pyro.set_rng_seed(1)
        pyro.clear_param_store()
        elbo = BaselinedTrace_ELBO(num_particles=2, sticking_the_landing=landing)
        found.append(gradient(elbo, guide, "scale"))
    assert torch.equal(*found)


@pytest.mark.parametrize("vectorized", [True, False])
def test_doubly_reparameterized_deltas_move_by_the_weights_themselves(vectorized):
    """No score function has to be replaced where nothing is drawn: squares would be wrong."""

    def guide():
        place, gain = pyro.param("place", torch.tensor(0.2)), pyro.param("gain", torch.tensor(0.6))
        pyro.sample("a", dist.Delta(place.expand(2), event_dim=1).mask(torch.tensor(True)))
        z = pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0))
        pyro.sample("b", dist.Delta(gain * z, log_density=-gain.log()))

    def observed():
        a = pyro.sample("a", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(z, 1.0))
        pyro.sample("y", dist.Normal(a.sum(-1) * b, 1.0), obs=torch.tensor(1.5))

    found = []
    for doubly in (True, False):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        options = {"doubly_reparameterized": doubly, "vectorize_particles": vectorized}
        ImportanceWeighted_ELBO(5, max_plate_nesting=0, **options).loss_and_grads(observed, guide)
        found.append([pyro.param(name).grad for name in ("place", "gain")])
    torch.testing.assert_close(*found)
