"""What objectives learn from step to step: baselines, by costs that may be infinite."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_mixtures.infer import BaselinedTrace_ELBO, ImportanceWeighted_ELBO


@pytest.fixture(autouse=True)
def _seed():
    pyro.set_rng_seed(0)


@pytest.mark.filterwarnings("ignore:The loss is inf")
@pytest.mark.parametrize("kind", [ImportanceWeighted_ELBO, BaselinedTrace_ELBO])
def test_an_infinite_cost_is_forgotten(kind):
    """A step that was skipped for it leaves the baselines as they were."""
    p = torch.tensor(0.4, requires_grad=True)

    def model(factor):
        pyro.sample("z", dist.Bernoulli(0.5))
        pyro.factor("factor", torch.tensor(factor))

    def guide(factor):
        pyro.sample("z", dist.Bernoulli(p))

    for start in (-math.inf, 0.0):
        elbo = kind(max_plate_nesting=0)
        elbo.loss_and_grads(model, guide, start)
        before = dict(elbo.state_dict()["averages"])
        assert elbo.loss_and_grads(model, guide, -math.inf) == math.inf
        assert before
        assert before == elbo.state_dict()["averages"]
        assert all(math.isfinite(value) for value in before.values())


def test_a_guide_that_chooses_its_sites():
    """The independent evaluation that starts a baseline may lack a site."""
    p = torch.tensor(0.5, requires_grad=True)

    def run(probability):
        if pyro.sample("first", dist.Bernoulli(probability)):
            pyro.sample("second", dist.Bernoulli(probability))

    for _ in range(20):
        elbo = BaselinedTrace_ELBO(max_plate_nesting=0)
        elbo.loss_and_grads(lambda: run(0.5), lambda: run(p))
        assert "first" in elbo.state_dict()["averages"]


@pytest.mark.parametrize("kind", [ImportanceWeighted_ELBO, BaselinedTrace_ELBO])
def test_evaluation_without_gradients_learns_nothing(kind):
    p = torch.tensor(0.4, requires_grad=True)

    def run(probability):
        pyro.sample("z", dist.Bernoulli(probability))

    elbo = kind(max_plate_nesting=0)
    module = elbo(lambda: run(0.5), lambda: run(p))
    with torch.no_grad():
        module()
    assert not elbo.state_dict()["averages"]
    module().backward()
    before = dict(elbo.state_dict()["averages"])
    with torch.no_grad():
        pyro.set_rng_seed(3)
        loss = module()
    assert before == elbo.state_dict()["averages"]
    pyro.set_rng_seed(3)
    assert loss.item() == elbo.loss(lambda: run(0.5), lambda: run(p))
