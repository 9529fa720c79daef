"""Networks that make flows on mixtures: shapes, gradients, copies, and what they refuse."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as flows
import pytest
import torch
from pyro import poutine
from pyro.distributions.conditional import ConditionalDistribution
from pyro.infer import SVI
from torch import nn
from torch.distributions import AffineTransform, Gamma

from pyro_mixtures.distributions import MixtureFlow, MixtureOfDiagNormals
from pyro_mixtures.infer import BaselinedTrace_ELBO
from pyro_mixtures.nn import (
    ConditionalMixture,
    ConditionalMixtureFlow,
    ConditionalMixtureSameFamily,
)
from tests.nn.conditional import SHAPES, directional

CONDITIONAL = {
    "affine coupling": lambda: flows.conditional_affine_coupling(2, 3, hidden_dims=[8]),
    "spline": lambda: flows.conditional_spline(2, 3, hidden_dims=[8], count_bins=4),
    "spline autoregressive": lambda: flows.conditional_spline_autoregressive(2, 3, [8], 4),
    "affine autoregressive": lambda: flows.conditional_affine_autoregressive(2, 3, [8]),
    "several": lambda: [
        flows.conditional_affine_coupling(2, 3, hidden_dims=[8]),
        flows.Permute(torch.tensor([1, 0])),
        flows.conditional_affine_coupling(2, 3, hidden_dims=[8]),
        flows.Spline(2, count_bins=4),
    ],
    "an inverse": lambda: flows.Spline(2, count_bins=4).inv,
    "the same for all": lambda: flows.affine_coupling(2, [8]),
}


def network(name="affine coupling", **options):
    torch.manual_seed(0)
    base = ConditionalMixture(3, event_size=2, num_components=4, hidden=(8,), **options)
    return ConditionalMixtureFlow(base, CONDITIONAL[name]())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CONDITIONAL)
def test_shapes_and_rows(name, shape):
    """Each context has the flow that it has alone."""
    module = network(name)
    context = torch.randn(*shape, 3)
    q = module(context)
    assert (q.batch_shape, q.event_shape, q.num_components) == (shape, (2,), 4)
    y = q.sample((5,))
    assert y.shape == (5, *shape, 2)
    found = q.component_log_prob(y)
    assert found.shape == (5, *shape, 4)
    assert q.component_log_prob(torch.zeros(2)).shape == (*shape, 4)
    if shape:
        alone = module(context[0]).component_log_prob(y[:, 0])
        torch.testing.assert_close(found[:, 0], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(module.condition(context).log_prob(y), q.log_prob(y))


@pytest.mark.parametrize(
    ("name", "modules"), [("affine coupling", 1), ("several", 3), ("an inverse", 1)]
)
def test_gradients(name, modules):
    module = network(name).double()
    assert len(module.transform_modules) == modules  # a permutation is none
    context, y = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    exact, central = directional(lambda: module(context).log_prob(y).sum(), module)
    torch.testing.assert_close(exact, central, rtol=1e-4, atol=1e-6)
    z = module(context).rsample((3,))
    z.square().sum().backward()
    assert all(value.grad is not None for value in module.parameters())


def test_a_mixture_that_is_the_same_for_all_contexts():
    logits = torch.zeros(2, requires_grad=True)
    base = MixtureOfDiagNormals(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), torch.ones(2, 2), logits)
    module = ConditionalMixtureFlow(base, CONDITIONAL["affine coupling"]())
    q = module(torch.randn(6, 3))
    assert q.batch_shape == (6,)
    q.rsample((4,)).sum().backward()
    assert logits.grad.any()
    rates = ConditionalMixtureSameFamily(3, Gamma(torch.ones(2), torch.ones(2)))
    scaled = ConditionalMixtureFlow(rates, AffineTransform(0.0, 2.0), validate_args=True)
    assert scaled(torch.randn(6, 3)).component_log_prob(torch.ones(6)).shape == (6, 2)
    with pytest.raises(ValueError, match="within the support"):
        scaled(torch.randn(6, 3)).log_prob(-torch.ones(6))


def test_it_learns_bent_components():
    """Two arcs, by their densities."""
    torch.manual_seed(0)
    angle, sign = 1.5 * torch.randn(400), torch.randint(2, (400,)) * 2.0 - 1
    data = torch.stack([sign * (3 + angle.cos()), angle], -1) + 0.1 * torch.randn(400, 2)
    context = torch.ones(400, 1)
    losses = {}
    for made in ([], [flows.conditional_affine_coupling(2, 1, hidden_dims=[16])]):
        torch.manual_seed(1)
        base = ConditionalMixture(1, event_size=2, num_components=2).init_from(data)
        module = ConditionalMixtureFlow(base, [each.inv for each in made])
        optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
        for _ in range(150):
            loss = -module(context).log_prob(data).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[len(made)] = loss.item()
    assert losses[1] < losses[0] - 0.05


def test_as_a_guide_in_a_plate():
    x = torch.randn(20, 3)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x[:, :1])

    module = network()

    def guide(x):
        pyro.module("flow", module)
        with pyro.plate("data", len(x)):
            pyro.sample("z", module(x))

    pyro.clear_param_store()
    before = [value.clone() for value in module.parameters()]
    elbo = BaselinedTrace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    for _ in range(3):
        svi.step(x)
    assert not any(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert poutine.trace(guide).get_trace(x).nodes["z"]["fn"].batch_shape == (20,)


def test_copies():
    module = network("several")
    context, y = torch.randn(4, 3), torch.randn(4, 2)
    expected = module(context).log_prob(y)
    other = network("several")
    for value in other.parameters():
        nn.init.normal_(value)
    other.load_state_dict(module.state_dict())
    module(context).rsample().sum().backward()  # what transforms remember has a graph
    for each in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), other):
        assert torch.equal(each(context).log_prob(y), expected)
        assert len(list(each.parameters())) == len(list(module.parameters()))
        with torch.no_grad():
            next(each.parameters()).add_(1)
        assert isinstance(each(context), MixtureFlow)
    assert torch.equal(module(context).log_prob(y), expected)
    assert isinstance(module, ConditionalDistribution)


@pytest.mark.parametrize("base", [None, dist.Normal(0.0, 1.0), nn.Linear(3, 2)])
def test_bases_that_make_no_mixture(base):
    with pytest.raises(ValueError, match="base to make mixtures of contexts"):
        ConditionalMixtureFlow(base, [])


def test_other_mistakes():
    base = ConditionalMixture(3, event_size=2, num_components=2)
    batch = base(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="without batch shape"):
        ConditionalMixtureFlow(batch, [])
    with pytest.raises(ValueError, match="transforms of torch or Pyro.*got Linear"):
        ConditionalMixtureFlow(base, [nn.Linear(2, 2)])
    normal = dist.conditional.ConditionalTransformedDistribution(dist.Normal(0.0, 1.0), [])
    with pytest.raises(ValueError, match="base_mixture to be a mixture"):
        ConditionalMixtureFlow(normal, [])(torch.zeros(3))
    larger = ConditionalMixtureFlow(base, flows.conditional_spline(4, 3))
    with pytest.raises(ValueError, match=r"(?s)Expected transforms .*\(2,\).*but"):
        larger(torch.zeros(3)).rsample()
