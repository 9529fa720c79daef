"""Mixtures of any components learn what users have asked for."""

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import (
    Beta,
    Categorical,
    Exponential,
    Gamma,
    Independent,
    Normal,
    Poisson,
)

from pyro_mixtures import MixtureSameFamily
from tests.registry import gradients, leaves, randn


def test_training_through_rsample():
    """Issue 39178 of PyTorch: a mixture of Normals learns means, scales and weights by Adam."""
    locs = torch.tensor([-1.0, 0.5], requires_grad=True)
    log_scales = torch.zeros(2, requires_grad=True)
    logits = torch.zeros(2, requires_grad=True)
    target = torch.distributions.MixtureSameFamily(
        Categorical(torch.tensor([0.3, 0.7])),
        Normal(torch.tensor([-1.5, 1.5]), torch.tensor([0.5, 0.8])),
    )
    optimizer = torch.optim.Adam([locs, log_scales, logits], lr=0.03)
    for step in range(600):
        if step == 400:
            optimizer.param_groups[0]["lr"] = 0.005
        q = MixtureSameFamily(Categorical(logits=logits), Normal(locs, log_scales.exp()))
        z = q.rsample((200,))
        optimizer.zero_grad()
        (q.log_prob(z) - target.log_prob(z)).mean().backward()
        optimizer.step()
    torch.testing.assert_close(logits.softmax(-1), torch.tensor([0.3, 0.7]), rtol=0, atol=0.02)
    torch.testing.assert_close(locs, torch.tensor([-1.5, 1.5]), rtol=0, atol=0.05)
    torch.testing.assert_close(log_scales.exp(), torch.tensor([0.5, 0.8]), rtol=0, atol=0.05)


def test_training_to_samples():
    """The same by a distance between samples, where the density does not enter."""
    data = torch.distributions.MixtureSameFamily(
        Categorical(torch.tensor([0.2, 0.8])), Normal(torch.tensor([-1.5, 1.5]), 0.5)
    ).sample((1000,))
    logits = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    quantiles = data.sort().values[5::10]
    for _ in range(150):
        q = MixtureSameFamily(Categorical(logits=logits), Normal(torch.tensor([-1.5, 1.5]), 0.5))
        z = q.rsample((100,))
        optimizer.zero_grad()
        (z.sort().values - quantiles).square().mean().backward()  # Wasserstein
        optimizer.step()
    share = (data > 0).float().mean()
    assert logits.softmax(-1)[1].item() == pytest.approx(share.item(), abs=0.05)


@pytest.mark.parametrize("transport", ["displacement", "telescoping"])
def test_vectors(transport):
    """Issue 1548 of TensorFlow Probability: events of more than one dimension.

    Gradients of E[sum_i a_i z_i^2 + z_1 z_2] within five standard errors.
    """
    parameters = leaves(
        {"loc": randn(3, 4), "scale": (0.3 * randn(3, 4)).exp(), "logits": 0.5 * randn(3)}
    )
    loc, scale, logits = parameters.values()
    a = torch.tensor([1.0, -0.5, 2.0, 0.3], dtype=torch.float64)
    repeats, count = 40, 500
    each = []
    for _ in range(repeats):
        q = MixtureSameFamily(
            Categorical(logits=logits), Independent(Normal(loc, scale), 1), transport=transport
        )
        z = q.rsample((count,))
        values = (z.square() @ a + z[:, 0] * z[:, 1]).mean()
        each.append(gradients(values, parameters))
    expected = (loc.square() + scale.square()) @ a + loc[:, 0] * loc[:, 1]
    exact = gradients((logits.softmax(-1) * expected).sum(), parameters)
    for name, value in exact.items():
        samples = torch.stack([gradient[name] for gradient in each])
        error = samples.std(0) / repeats**0.5
        assert ((samples.mean(0) - value).abs() < 5 * error).all(), name
        assert value.abs().max() > 5 * error.max(), name


def fit(model, guide, steps, lr=0.03):
    pyro.clear_param_store()
    optimizer = pyro.optim.ClippedAdam({"lr": lr, "lrd": 0.1 ** (1 / steps)})
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=20, vectorize_particles=True))
    for _ in range(steps):
        svi.step()


def posterior(log_joint, z):
    """Mean and standard deviation, by quadrature."""
    log_joint = log_joint - log_joint.max()
    weights = log_joint.exp() / torch.trapezoid(log_joint.exp(), z)
    mean = torch.trapezoid(weights * z, z)
    return mean.item(), torch.trapezoid(weights * (z - mean).square(), z).sqrt().item()


@pytest.mark.parametrize("weight_gradient", ["pathwise", "hybrid"])
def test_gamma_guide(weight_gradient):
    """For the rate of counts, with a prior of two modes: mean and spread of the posterior."""
    counts = torch.tensor([4.0])
    prior = pyro.distributions.MixtureSameFamily(
        Categorical(torch.tensor([0.5, 0.5])),
        Gamma(torch.tensor([8.0, 10.0]), torch.tensor([4.0, 1.5])),
    )

    def model():
        rate = pyro.sample("rate", prior)
        with pyro.plate("data", 1):
            pyro.sample("counts", Poisson(rate), obs=counts)

    def guide():
        positive = torch.distributions.constraints.positive
        shape = pyro.param("shape", torch.tensor([10.0, 10.0]), constraint=positive)
        mean = pyro.param("mean", torch.tensor([2.0, 6.0]), constraint=positive)
        logits = pyro.param("logits", torch.tensor([1.0, -1.0]))
        components = Gamma(shape, shape / mean)
        q = MixtureSameFamily(
            Categorical(logits=logits), components, weight_gradient=weight_gradient
        )
        pyro.sample("rate", q)

    fit(model, guide, 300, lr=0.05)
    z = torch.linspace(0.01, 20, 2000)
    log_joint = prior.log_prob(z) + Poisson(z.unsqueeze(-1)).log_prob(counts).sum(-1)
    mean, stddev = posterior(log_joint, z)
    shape, means, logits = (pyro.param(name).detach() for name in ("shape", "mean", "logits"))
    q = MixtureSameFamily(Categorical(logits=logits), Gamma(shape, shape / means))
    assert q.mean.item() == pytest.approx(mean, abs=0.3)
    assert q.stddev.item() == pytest.approx(stddev, rel=0.2)


def test_beta_guide():
    """For a probability of which only the distance from one half is known well."""
    prior = Beta(torch.tensor(3.0), torch.tensor(2.0))
    observed = Normal(torch.tensor(0.09), 0.03)

    def model():
        p = pyro.sample("p", prior)
        pyro.factor("distance", observed.log_prob((p - 0.5).square()))

    def guide():
        positive = torch.distributions.constraints.positive
        a = pyro.param("a", torch.tensor([4.0, 6.0]), constraint=positive)
        b = pyro.param("b", torch.tensor([6.0, 4.0]), constraint=positive)
        logits = pyro.param("logits", torch.zeros(2))
        weights = Categorical(logits=logits)
        # far from each other
        pyro.sample("p", MixtureSameFamily(weights, Beta(a, b), weight_gradient="clustered"))

    fit(model, guide, 250, lr=0.1)
    z = torch.linspace(1e-4, 1 - 1e-4, 5000)
    mean, stddev = posterior(prior.log_prob(z) + observed.log_prob((z - 0.5).square()), z)
    a, b, logits = (pyro.param(name).detach() for name in ("a", "b", "logits"))
    q = MixtureSameFamily(Categorical(logits=logits), Beta(a, b))
    assert q.mean.item() == pytest.approx(mean, abs=0.03)
    assert q.stddev.item() == pytest.approx(stddev, rel=0.1)


def test_latent_of_an_autoencoder_is_amortized():
    """Each row of a batch has a mixture of its own, of parameters that a network gives."""
    network = torch.nn.Linear(1, 6)
    inputs = torch.tensor([[-1.0], [1.0]])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for _ in range(150):
        rates, logits, shapes = network(inputs).split(2, -1)
        components = Gamma(1 + shapes.exp(), rates.exp())
        q = MixtureSameFamily(Categorical(logits=logits), components)
        z = q.rsample((50,))  # (50, 2)
        target = Exponential(torch.tensor([0.5, 2.0]))
        optimizer.zero_grad()
        (q.log_prob(z) - target.log_prob(z)).mean().backward()
        optimizer.step()
    torch.testing.assert_close(q.mean, target.mean, rtol=0.25, atol=0)
