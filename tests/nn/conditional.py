"""What both kinds of conditional mixtures are checked by."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.conditional import ConditionalDistribution
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_

from tests.registry import randn

SHAPES = [(), (4,), (2, 3)]


def directional(function, module):
    """Derivatives along a random direction of a module's parameters: by backward, and central.

    The module's dtype has to be float64.
    """
    parameters = list(module.parameters())
    direction = [randn(*value.shape) for value in parameters]
    gradients = torch.autograd.grad(function(), parameters)
    exact = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))

    @torch.no_grad()
    def moved(step):
        for value, d in zip(parameters, direction, strict=True):
            value.add_(step * d)
        result = function()
        for value, d in zip(parameters, direction, strict=True):
            value.sub_(step * d)
        return result

    return exact, (moved(1e-5) - moved(-1e-5)) / 2e-5


def assert_reparameterized(module, context, cost):
    """The gradient of samples' costs is that of the exact expectation, by z-scores.

    ``cost(q)`` is the expectation of the sum of squares.
    """
    parameters = list(module.parameters())
    expected = torch.cat(
        [g.flatten() for g in torch.autograd.grad(cost(module(context)), parameters)]
    )
    draws = []
    for _ in range(60):
        z = module(context).rsample((500,))
        loss = z.square().sum() / 500
        draws.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    draws = torch.stack(draws)
    error = draws.std(0) / len(draws) ** 0.5
    assert expected.abs().max() > 1e-2
    # of t with 59 degrees of freedom, and at most 100 entries: false alarm 1e-4
    scores = (draws.mean(0) - expected) / (error + 1e-9)
    assert scores.abs().max() < 5.3


def assert_survives(module, context, value):
    """Copies, pickles, state dicts and conversions give the same densities."""
    expected = module(context).log_prob(value)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(context).log_prob(value), expected)
    double = copy.deepcopy(module).to(torch.float64)
    found = double(context.double()).log_prob(value.double())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-3)
    # contexts become the parameters' type
    assert torch.equal(double(context).log_prob(value.double()), found)


def assert_compiles(module, context, value):
    """A step, as one graph."""

    def loss():
        return -module(context).log_prob(value).mean()

    parameters = list(module.parameters())
    torch._dynamo.reset()
    expected = torch.autograd.grad(loss(), parameters)
    actual = torch.autograd.grad(
        torch.compile(loss, fullgraph=True, backend="eager")(), parameters
    )
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def assert_transforms(module, context, value):
    """Each context alone, and gradients for each, as those of a batch."""

    def log_prob(parameters, context, value):
        return torch.func.functional_call(module, parameters, (context,)).log_prob(value)

    parameters = dict(module.named_parameters())
    found = torch.func.vmap(log_prob, (None, 0, 0))(parameters, context, value)
    torch.testing.assert_close(found, module(context).log_prob(value))
    each = torch.func.vmap(torch.func.grad(log_prob), (None, 0, 0))(parameters, context, value)
    sums = torch.autograd.grad(module(context).log_prob(value).sum(), list(parameters.values()))
    for name, total in zip(parameters, sums, strict=True):
        torch.testing.assert_close(each[name].sum(0), total, rtol=1e-4, atol=1e-5)


def assert_pyro(module, context):
    """Pyro takes it for a conditional distribution, and for a module whose weights are latent."""
    assert isinstance(module, ConditionalDistribution)
    expected, stddev = module(context).mean, module(context).stddev
    guide = PyroModule()
    guide.network = module
    to_pyro_module_(guide)
    assert isinstance(guide.network, ConditionalDistribution)
    assert torch.equal(guide.network.condition(context).mean, expected)
    layer = guide.network.network.output
    layer.bias = PyroSample(dist.Normal(torch.zeros_like(layer.bias), 1.0).to_event(1))
    trace = pyro.poutine.trace(lambda: guide.network(context)).get_trace()
    assert "network.network.output.bias" in trace.nodes
    assert not torch.allclose(trace.nodes["_RETURN"]["value"].stddev, stddev)
