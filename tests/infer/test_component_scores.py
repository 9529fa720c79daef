"""Score functions of other sites beside a mixture whose components are all drawn."""

import functools

import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.infer import SIWAE_ELBO, MarginalizedMixture_ELBO

OBSERVED = torch.tensor(1.0, dtype=torch.float64)
COUNT, STEPS = 400, 30


@pytest.fixture(autouse=True)
def _double_precision():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def model():
    with pyro.plate("data", COUNT):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 2.0).to_event(1)).squeeze(-1)
        u = pyro.sample("u", dist.Bernoulli(logits=z))
        pyro.sample("y", dist.Normal(z + 2 * u, 1.0), obs=OBSERVED.expand(COUNT))


def log_joint(z, u):
    prior = dist.Normal(0.0, 2.0).log_prob(z) + dist.Bernoulli(logits=z).log_prob(u)
    return prior + dist.Normal(z + 2 * u, 1.0).log_prob(OBSERVED)


def mixture(parameters):
    locs, scales, logits = parameters[:3]
    return MixtureOfDiagNormals(locs.unsqueeze(-1), scales.unsqueeze(-1), logits)


def guide(parameters, order):
    """The discrete site before the mixture, or after it and by its sample."""
    with pyro.plate("data", COUNT):
        if order == "before":
            pyro.sample("u", dist.Bernoulli(logits=parameters[3]))
        z = pyro.sample("z", mixture(parameters)).squeeze(-1)
        if order == "after":
            pyro.sample("u", dist.Bernoulli(logits=parameters[3] + 0.5 * z))


def log_ratio(parameters, z, u, order):
    slope = 0.5 if order == "after" else 0.0
    log_q = mixture(parameters).log_prob(z.unsqueeze(-1))
    log_q = log_q + dist.Bernoulli(logits=parameters[3] + slope * z).log_prob(u)
    return log_joint(z, u) - log_q


def exact(parameters, objective, order):
    """The bound of a datum, by quadrature for the noise that the components' draws share."""
    nodes, masses = (torch.as_tensor(x) for x in numpy.polynomial.hermite_e.hermegauss(80))
    masses = masses / masses.sum()
    locs, scales, logits = parameters[:3]
    one, two = (locs + scales * nodes.unsqueeze(-1)).unbind(-1)
    weights = logits.softmax(-1)
    slope = 0.5 if order == "after" else 0.0
    total = 0.0
    for u in torch.cartesian_prod(*[torch.arange(2.0)] * 2):
        if order == "before" and u[0] != u[1]:  # a single draw
            continue
        draws = [dist.Bernoulli(logits=parameters[3] + slope * each) for each in (one, two)]
        mass = draws[0].log_prob(u[0]).exp()
        if order == "after":
            mass = mass * draws[1].log_prob(u[1]).exp()
        f = [log_ratio(parameters, each, x, order) for each, x in zip((one, two), u, strict=True)]
        if objective is MarginalizedMixture_ELBO:
            bound = weights[0] * f[0] + weights[1] * f[1]
        else:
            bound = torch.logaddexp(weights[0].log() + f[0], weights[1].log() + f[1])
        total = total + (masses * mass * bound).sum()
    return total


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("objective", [MarginalizedMixture_ELBO, SIWAE_ELBO])
def test_discrete_sites_are_unbiased(objective, order, particles):
    """Against quadrature for one particle, |z| < 4.5; the ELBO of three has the same mean."""
    values = ([-1.0, 1.5], [0.7, 0.9], [0.3, -0.2], -1.0)
    parameters = [torch.tensor(value, requires_grad=True) for value in values]
    elbo = objective(particles, max_plate_nesting=1, vectorize_particles=True)
    draws, losses = [], []
    for _ in range(STEPS):
        for each in parameters:
            each.grad = None
        run = functools.partial(guide, parameters, order)
        losses.append(elbo.loss_and_grads(model, run) / COUNT)
        draws.append(torch.cat([-each.grad.reshape(-1) / COUNT for each in parameters]))
    if objective is SIWAE_ELBO and particles > 1:  # tighter, and not by chance
        assert -numpy.mean(losses) > exact(parameters, objective, order) + 0.02
        return
    bound = exact(parameters, objective, order)
    expected = torch.cat([x.reshape(-1) for x in torch.autograd.grad(bound, parameters)])
    found, spread = torch.stack(draws).mean(0), torch.stack(draws).std(0) / STEPS**0.5
    assert ((found - expected) / spread).abs().max() < 4.5
    assert (spread[-1] < expected[-1].abs() / 5).all()  # so that a bias would show
    error = numpy.std(losses) / STEPS**0.5
    assert abs(-numpy.mean(losses) - bound.item()) < 4.5 * error
