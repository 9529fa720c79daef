"""Relaxed categorical sites by noise without parameters."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_value
from pyro.infer.autoguide.initialization import InitMessenger

from pyro_mixtures.distributions import (
    ExpRelaxedCategorical,
    RelaxedCategorical,
    RelaxedCategoricalStraightThrough,
)
from pyro_mixtures.infer import GumbelSoftmaxReparam

OURS = [RelaxedCategorical, ExpRelaxedCategorical]


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def parameters(batch_shape=()):
    logits = torch.randn(*batch_shape, 3).requires_grad_()
    temperature = (0.5 + torch.rand(batch_shape)).requires_grad_()
    return temperature, logits


@pytest.mark.parametrize("cls", [*OURS, dist.RelaxedOneHotCategorical])
@pytest.mark.parametrize("batch_shape", [(), (4,)])
def test_the_law_is_the_same(cls, batch_shape):
    """Each probability of being the largest, moments of the values, and the gradients of these."""
    temperature, logits = parameters(batch_shape)
    if cls is dist.RelaxedOneHotCategorical:  # its temperatures broadcast with the categories
        temperature = torch.tensor(0.7, requires_grad=True)

    def model():
        with pyro.plate("samples", 100_000, dim=-1 - len(batch_shape)):
            q = cls(temperature, logits=logits)
            return pyro.sample("y", q.to_event(len(batch_shape)))

    found = []
    for run in (model, poutine.reparam(model, config={"y": GumbelSoftmaxReparam()})):
        y = run()
        y = y.reshape(100_000, *batch_shape, 3)
        y = y.exp() if cls is ExpRelaxedCategorical else y
        mean = y.square().mean(0)
        largest = (y == y.amax(-1, keepdim=True)).float().mean(0)
        cost = (mean * torch.arange(3)).sum()
        found.append([mean, largest, *torch.autograd.grad(cost, (temperature, logits))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.015)  # standard errors below 0.002


@pytest.mark.parametrize("cls", OURS)
def test_starting_points(cls):
    """The noise at a given value makes that value."""
    temperature, logits = parameters((4,))
    q = cls(temperature, logits=logits)
    value = q.rsample().detach()

    def model():
        return pyro.sample("y", q.to_event(1))

    reparameterized = poutine.reparam(model, config={"y": GumbelSoftmaxReparam()})
    with InitMessenger(init_to_value(values={"y": value})):
        trace = poutine.trace(reparameterized).get_trace()
    noise = trace.nodes["y_uniform"]["value"]
    again = poutine.condition(reparameterized, data={"y_uniform": noise})()
    torch.testing.assert_close(again, value, rtol=1e-4, atol=1e-4)


def test_a_fit():
    def model():
        y = pyro.sample("y", RelaxedCategorical(0.5, logits=torch.zeros(3)))
        pyro.sample("x", dist.Normal(y @ torch.arange(3.0), 0.1), obs=torch.tensor(1.9))

    model = poutine.reparam(model, config={"y": GumbelSoftmaxReparam()})
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(300):
        svi.step()
    trace = poutine.trace(poutine.replay(model, poutine.trace(guide).get_trace())).get_trace()
    assert trace.nodes["y"]["value"][2] > 0.7


@pytest.mark.parametrize(
    "other", [dist.Dirichlet(torch.ones(3)), RelaxedCategoricalStraightThrough(0.5, torch.ones(3))]
)
def test_other_sites_are_refused(other):
    model = poutine.reparam(lambda: pyro.sample("y", other), config={"y": GumbelSoftmaxReparam()})
    with pytest.raises(ValueError, match=f"at site 'y', but got {type(other).__name__}"):
        model()


def test_observed_sites_are_refused():
    y = torch.tensor([0.2, 0.3, 0.5])
    q = RelaxedCategorical(0.5, logits=torch.zeros(3))
    config = {"y": GumbelSoftmaxReparam()}
    model = poutine.reparam(lambda: pyro.sample("y", q, obs=y), config=config)
    with pytest.raises(NotImplementedError, match="'y' is observed"):
        model()
