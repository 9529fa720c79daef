"""Mixtures whose weights are latent: the bound, by quadrature, and what estimates it."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch.distributions import kl_divergence

from pyro_mixtures.distributions import (
    KumaraswamyStickBreaking,
    MixtureOfDiagNormals,
    StickBreaking,
)
from pyro_mixtures.infer import (
    SIWAE_ELBO,
    BaselinedTrace_ELBO,
    ImportanceWeighted_ELBO,
    MarginalizedMixture_ELBO,
)
from tests.registry import leaves
from tests.strata import gradient_of, gradients

PRIOR_LOCS, PRIOR_SCALES = torch.tensor([[[-1.5], [1.0]], [[1.0], [0.5]]]).double()
STEP, CELL = 0.2, 0.05
LOGITS = torch.arange(-40.0, 40.0, STEP, dtype=torch.float64)
Z = torch.arange(-9.0, 9.0, CELL, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _double_precision():
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def parameters():
    """Of two data, ``(2, ...)``."""
    return leaves(
        {
            "a": torch.tensor([[0.8], [2.0]]),
            "b": torch.tensor([[1.7], [0.6]]),
            "locs": torch.tensor([[[-0.9], [0.6]], [[-1.2], [1.3]]]),
            "scales": torch.tensor([[[0.5], [0.7]], [[0.4], [0.9]]]),
        }
    )


def likelihood(z):
    """Of a datum, with two modes in z, ``(*X, 1) -> (*X)``."""
    return dist.Normal(z.squeeze(-1).square(), 0.7).log_prob(torch.tensor(1.2))


def prior():
    return StickBreaking.gem(1.5, 2)


def model():
    with pyro.plate("data", 2):
        weights = pyro.sample("weights", prior())
        logits = prior().log_weights(weights)
        z = pyro.sample("z", MixtureOfDiagNormals(PRIOR_LOCS, PRIOR_SCALES, logits))
        pyro.factor("x", likelihood(z))


def guide_of(given):
    def guide():
        q = KumaraswamyStickBreaking(given["a"], given["b"])
        with pyro.plate("data", 2):
            logits = q.log_weights(pyro.sample("weights", q))
            pyro.sample("z", MixtureOfDiagNormals(given["locs"], given["scales"], logits))

    return guide


class Quadrature:
    """Integrals over the stick and z of one datum."""

    def __init__(self, a, b, locs, scales):
        log_v, log_rest = torch.nn.functional.logsigmoid(torch.stack([LOGITS, -LOGITS]))
        self.log_weights = torch.stack([log_v, log_rest], -1)  # (V, 2)
        volume = log_v + log_rest + math.log(STEP)
        log_q = (a * b).log() + (a - 1) * log_v + (b - 1) * (-(a * log_v).expm1()).log()
        log_p = math.log(1.5) + 0.5 * log_rest
        self.mass, self.prior_mass = (log_q + volume).exp(), (log_p + volume).exp()
        self.divergence = (self.mass * (log_q - log_p)).sum()
        self.mean = self.mass @ self.log_weights.exp()
        self.own = dist.Normal(locs, scales).log_prob(Z).mT  # (Z, 2)
        self.of_prior = dist.Normal(PRIOR_LOCS, PRIOR_SCALES).log_prob(Z).mT

    def mixed(self, components):
        """Log densities for each stick, ``(V, Z)``."""
        return (self.log_weights.unsqueeze(1) + components).logsumexp(-1)

    def evidence(self, log_likelihood):
        joint = self.mixed(self.of_prior) + log_likelihood
        return ((joint.exp().sum(-1) * CELL) @ self.prior_mass).log()

    def bound(self, log_likelihood):
        log_q, log_p = self.mixed(self.own), self.mixed(self.of_prior)
        inner = (log_q.exp() * (log_likelihood + log_p - log_q)).sum(-1) * CELL
        return (self.mass * inner).sum() - self.divergence

    def bound_with_mean_weights(self, log_likelihood):
        """What it is not: in all terms, where the first alone may have them."""
        log_q, log_p = ((self.mean.log() + x).logsumexp(-1) for x in (self.own, self.of_prior))
        return (log_q.exp() * (log_likelihood + log_p - log_q)).sum() * CELL - self.divergence

    def bound_of_text(self, log_likelihood):
        """Equation 1: each component with its own in the prior, and for the mixture's entropy a
        logarithm of a sum in which each component has a draw of its own."""
        each = self.own.exp() * CELL  # (Z, 2)
        cross = (each * (log_likelihood.unsqueeze(-1) + self.of_prior)).sum(0)
        first, second = self.own.unbind(-1)
        masses, entropy = each[:, :1] * each[:, 1], torch.zeros(())
        for mass, log_weights in zip(self.mass, self.log_weights, strict=True):
            logs = (log_weights[0] + first).unsqueeze(-1), log_weights[1] + second
            entropy = entropy - mass * (masses * torch.logaddexp(*logs)).sum()
        return self.mean @ cross + entropy - self.divergence


def each_datum(given):
    return [Quadrature(*values) for values in zip(*given.values(), strict=True)]


def test_the_bound():
    """Ours is below the evidence, and that of the text below ours."""
    given = parameters()
    log_likelihood = likelihood(Z.unsqueeze(-1))
    q = KumaraswamyStickBreaking(given["a"], given["b"])
    divergences = kl_divergence(q, prior())
    for exact, divergence in zip(each_datum(given), divergences, strict=True):
        torch.testing.assert_close(divergence, exact.divergence, rtol=1e-8, atol=1e-8)
        bound, evidence = exact.bound(log_likelihood), exact.evidence(log_likelihood)
        assert bound < evidence - 0.1
        assert exact.bound_of_text(log_likelihood) < bound - 0.1


def test_at_the_posterior():
    """Of data that tell nothing: there ours is the evidence, and its gradient vanishes. That of
    the text is neither tight nor at its maximum, for its logarithm is no entropy."""
    given = leaves(
        {
            "a": torch.ones(1),
            "b": torch.full((1,), 1.5),
            "locs": PRIOR_LOCS,
            "scales": PRIOR_SCALES,
        }
    )
    nothing = torch.zeros(len(Z))
    exact = Quadrature(*given.values())
    bound, zero = exact.bound(nothing), torch.zeros(())
    torch.testing.assert_close(exact.evidence(nothing), zero, rtol=0, atol=1e-9)
    torch.testing.assert_close(bound, zero, rtol=0, atol=1e-9)
    assert gradient_of(bound, given).abs().max() < 1e-8
    of_text = Quadrature(*given.values()).bound_of_text(nothing)
    assert of_text < -0.1
    assert gradient_of(of_text, given).abs().max() > 0.1


def test_mean_weights_in_all_terms_make_no_bound():
    """The prior of z is concave in the weights: a datum that names its component shows it."""
    log_likelihood = dist.Normal(Z, 0.3).log_prob(torch.tensor(-2.5))
    precision = 1 + 1 / 0.3**2  # of the posterior, given the first component
    locs = torch.full((2, 1), (-1.5 - 2.5 / 0.3**2) / precision)
    exact = Quadrature(torch.tensor(1.5), torch.tensor(1.2), locs, torch.tensor(precision**-0.5))
    evidence = exact.evidence(log_likelihood)
    assert exact.bound(log_likelihood) < evidence
    assert exact.bound_with_mean_weights(log_likelihood) > evidence + 0.01


OBJECTIVES = {
    "marginalized": MarginalizedMixture_ELBO,
    "landing": functools.partial(MarginalizedMixture_ELBO, sticking_the_landing=True),
    "baselined": BaselinedTrace_ELBO,
    "trace": Trace_ELBO,
    "graph": TraceGraph_ELBO,
    "mean_field": TraceMeanField_ELBO,
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_values_and_gradients(name):
    """Of the bound, for sticks, locations and scales, with all components or a sample of them.

    13 numbers beyond 4.6 standard errors (t with 59 degrees of freedom): a false alarm in some
    4,000 runs.
    """
    given = parameters()
    bound = sum(exact.bound(likelihood(Z.unsqueeze(-1))) for exact in each_datum(given))
    expected = torch.cat([-bound.detach().reshape(1), -gradient_of(bound, given)])
    elbo = OBJECTIVES[name](num_particles=1000, vectorize_particles=True, max_plate_nesting=1)
    draws = []
    for _ in range(60):
        for value in given.values():
            value.grad = None
        if name in ("trace", "mean_field"):  # whose other method looks for sites of parameters
            loss = elbo.differentiable_loss(model, guide_of(given))
            loss.backward()
        else:
            loss = elbo.loss_and_grads(model, guide_of(given))
        draws.append(torch.cat([torch.as_tensor(loss).detach().reshape(1), gradients(given)]))
    draws = torch.stack(draws)
    error = draws.std(0) / 60**0.5
    assert ((draws.mean(0) - expected) / error).abs().max() < 4.6
    sizes = [x.numel() for x in given.values()]
    for wide, exact in zip(error[1:].split(sizes), expected[1:].split(sizes), strict=True):
        assert wide.max() < 0.15 * exact.abs().max()  # it can see a bias


@pytest.mark.parametrize("objective", [SIWAE_ELBO, ImportanceWeighted_ELBO])
def test_tighter_bounds(objective):
    """Lie between it and the evidence, to five standard errors: a false alarm in 10^6 runs."""
    given = parameters()
    each, log_likelihood = each_datum(given), likelihood(Z.unsqueeze(-1))
    bound = sum(float(exact.bound(log_likelihood).detach()) for exact in each)
    evidence = sum(float(exact.evidence(log_likelihood)) for exact in each)
    elbo = objective(num_particles=2, max_plate_nesting=1, vectorize_particles=True)
    draws = torch.tensor([-elbo.loss(model, guide_of(given)) for _ in range(300)])
    error = float(draws.std() / 300**0.5)
    assert bound < float(draws.mean()) + 5 * error
    assert float(draws.mean()) < evidence + 5 * error
