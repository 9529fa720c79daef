"""Estimators in a guide written by hand, under ``Trace_ELBO`` with plates."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from tests.estimators.registry import each, estimated
from tests.estimators.test_unbiased_monte_carlo import assert_mean, replicas_of
from tests.registry import FAMILIES, gradients, grid

REPLICAS = 2000
PARTICLES = 3


def log_joint(z):
    return -z.square().sum(-1) / 2 + 2 * z.sum(-1).cos()


def model(*_):
    with pyro.plate("replicas", REPLICAS, dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
        pyro.factor("target", log_joint(z) - prior)


def guide(name, family, parameters):
    with pyro.plate("replicas", REPLICAS, dim=-1):
        pyro.sample("z", estimated(name, family.build(parameters)))


def sampled_gradients(name, family, replicas):
    """Of minus the ELBO, of each replica, for particles that are dimensions of a plate."""
    elbo = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    loss = elbo.differentiable_loss(model, guide, name, family, replicas)
    return gradients(loss, replicas)


@each(unbiased=True)
def test_gradient_of_the_elbo(name, family):
    parameters = family.parameters(K=3, D=2, scales=(0.6, 1.2), seed=4)
    points, cell = grid(family.reference(parameters), refinement=2)
    log_density = family.reference(parameters).log_prob(points)
    integrand = log_density.exp() * (log_joint(points) - log_density)
    exact = gradients(-(integrand.sum() * cell), parameters)
    sampled = sampled_gradients(name, family, replicas_of(parameters, REPLICAS))
    assert_mean(sampled, exact)


@pytest.mark.parametrize("name", ["gumbel_soft", "gumbel_hard"])
def test_relaxed_ones_run(name):
    family = FAMILIES["diag_normals"]
    replicas = replicas_of(family.parameters(K=3, D=2), REPLICAS)
    for value in sampled_gradients(name, family, replicas).values():
        assert value.isfinite().all()


def test_mean_field_elbo_refuses_samples_without_gradient():
    family = FAMILIES["diag_normals"]
    replicas = replicas_of(family.parameters(K=3, D=2), REPLICAS)
    elbo = TraceMeanField_ELBO()
    with pytest.raises(NotImplementedError, match="score terms.*TraceMeanField_ELBO"):
        elbo.differentiable_loss(model, guide, "score", family, replicas)
