"""What the tests of the objectives with all components share: a model, and gradients."""

import pyro
import pyro.distributions as dist
import torch

from tests.registry import FAMILIES


def log_joint(z):
    """Normal prior, and an observation of a product that makes it two-moded, ``(*X, 2)``."""
    observed = dist.Normal(z.prod(-1), 0.8).log_prob(torch.tensor(1.5))
    return observed + dist.Normal(0.3, 1.5).log_prob(z).sum(-1)


def model():
    z = pyro.sample("z", dist.Normal(0.3, 1.5).expand([2]).to_event(1))
    pyro.sample("y", dist.Normal(z.prod(-1), 0.8), obs=torch.tensor(1.5))


def diag_normals(parameters, **options):
    return FAMILIES["diag_normals"].build(parameters, **options)


def parameters_of_two(K=2, **options):
    return FAMILIES["diag_normals"].parameters(K=K, **options)


def gradients(parameters):
    """All that a backward pass has found, flat; zero where it did not come."""
    found = [
        torch.zeros_like(value) if value.grad is None else value.grad
        for value in parameters.values()
    ]
    return torch.cat([value.flatten() for value in found])


def gradient_of(loss, parameters):
    """The same of a loss, by autograd."""
    values = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return torch.cat([value.flatten() for value in values])
