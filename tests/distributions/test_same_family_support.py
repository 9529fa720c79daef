"""The support of mixtures of any components is one that Pyro can map latent sites to."""

import pyro
import pytest
import torch
from pyro.distributions import MixtureSameFamily as PyroMixture
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.distributions import (
    Categorical,
    Gamma,
    Independent,
    Pareto,
    Uniform,
    biject_to,
    transform_to,
)

from pyro_mixtures import MixtureSameFamily
from tests.families.registry import each_components, each_same


@pytest.mark.parametrize("batch_shape", [(), (4,), (2, 3)], ids=str)
@each_components
def test_bijection(family, batch_shape):
    """From all reals into the support and back, for each mixture of a batch its own."""
    mixture = family.example(batch_shape)[1]
    assert mixture.support.event_dim == len(mixture.event_shape)
    assert not mixture.support.is_discrete
    for registry in (biject_to, transform_to):
        transform = registry(mixture.support)
        start = transform.inv(mixture.sample())
        shape = transform.forward_shape(start.shape)
        assert shape == mixture.batch_shape + mixture.event_shape
        value = transform(torch.randn((5, *start.shape), dtype=torch.float64))
        assert value.shape == (5, *shape)
        assert mixture.support.check(value).shape == (5, *batch_shape)
        assert mixture.log_prob(value).isfinite().all()
        torch.testing.assert_close(transform(transform.inv(value)), value)


@each_same
def test_is_that_of_every_component(family):
    parameters, mixture = family.example((4,))
    theirs = PyroMixture(Categorical(logits=parameters["logits"]), family.build(parameters))
    value = mixture.sample((50,))
    near = value + torch.randint(-2, 3, value.shape) * torch.rand(50, *(1,) * (value.dim() - 1))
    assert torch.equal(mixture.support.check(near), theirs.support.check(near))
    assert mixture.support.check(value).all()


def test_of_matrices_whose_bounds_differ_within_the_event():
    low = torch.arange(6.0).reshape(1, 3, 2).expand(5, 4, 3, 2)
    mixture = MixtureSameFamily(
        Categorical(logits=torch.zeros(4)), Independent(Uniform(low, low + 1), 2)
    )
    for q in (mixture, mixture.expand((2, 5))):
        value = biject_to(q.support)(torch.randn(7, *q.batch_shape, 3, 2))
        assert torch.equal(value.floor(), low[:, 0].expand(value.shape))


def gamma():
    components = Gamma(torch.tensor([2.0, 20.0]), torch.tensor([2.0, 10.0]))
    return MixtureSameFamily(Categorical(logits=torch.zeros(2)), components)


def pareto():
    components = Pareto(torch.full((3, 2), 2.0), torch.tensor([8.0, 12.0]).expand(3, 2))
    return MixtureSameFamily(Categorical(logits=torch.zeros(3, 2)), components).to_event(1)


@pytest.mark.parametrize("prior", [gamma, pareto])
def test_latent_site_under_nuts(prior):
    pyro.set_rng_seed(0)
    posterior = MCMC(
        NUTS(lambda: pyro.sample("z", prior())), 150, 100, disable_progbar=True, num_chains=1
    )
    posterior.run()
    drawn = posterior.get_samples()["z"]
    assert prior().support.check(drawn).all()
    # of 150 draws, about 50 of which are independent: six standard errors
    expected, error = (
        moment(prior()) for moment in (lambda d: d.mean, lambda d: d.variance.div(50).sqrt())
    )
    assert ((drawn.mean(0) - expected).abs() < 6 * error).all()


@pytest.mark.parametrize("prior", [gamma, pareto])
def test_latent_site_under_a_guide(prior):
    pyro.set_rng_seed(0)
    pyro.clear_param_store()

    def model():
        z = pyro.sample("z", prior())
        pyro.sample("x", pyro.distributions.Normal(z, 0.1).to_event(), obs=z.new_full((), 2.5))

    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(200):
        svi.step()
    assert (guide.median()["z"] - 2.5).abs().max() < 0.15
