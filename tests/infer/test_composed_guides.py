"""Objectives of all components with mixtures in Pyro's ways to compose a guide."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from pyro.poutine.guide import GuideMessenger

from pyro_mixtures.estimators.strata import component_samples
from pyro_mixtures.infer import SIWAE_ELBO, AutoDiagonalNormalMixture, MarginalizedMixture_ELBO
from tests.strata import diag_normals, gradient_of, gradients, parameters_of_two

DATA = torch.tensor([1.0, 2.0, 0.5])
PARTICLES = 3
each_objective = pytest.mark.parametrize("objective", [MarginalizedMixture_ELBO, SIWAE_ELBO])


@pytest.fixture(autouse=True)
def _double_precision():
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def model():
    """A vector, a positive number that may depend on it, and data in a plate."""
    z = pyro.sample("z", dist.Normal(0.3, 1.5).expand([2]).to_event(1))
    a = pyro.sample("a", dist.LogNormal(0.1 * z.sum(-1), 1.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(a * z.prod(-1), 0.8), obs=DATA)


def log_joint(z, a):
    prior = dist.Normal(0.3, 1.5).log_prob(z).sum(-1)
    prior = prior + dist.LogNormal(0.1 * z.sum(-1), 1.0).log_prob(a)
    return prior + dist.Normal((a * z.prod(-1)).unsqueeze(-1), 0.8).log_prob(DATA).sum(-1)


def check(objective, guide, parameters, draw):
    """``draw`` gives the logarithms of the ratio, ``(T, K)``, for the numbers of the seed."""
    elbo = objective(PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    pyro.set_rng_seed(1)
    loss = elbo.loss_and_grads(model, guide)
    found = gradients(parameters)
    pyro.set_rng_seed(1)
    q, ratio = draw()
    if objective is SIWAE_ELBO:
        expected = math.log(PARTICLES) - (ratio + q.log_weights).logsumexp((0, 1))
    else:
        expected = -(q.log_weights.exp() * ratio).sum(-1).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-10)
    assert torch.allclose(found, gradient_of(expected, parameters), rtol=1e-8, atol=1e-10)
    assert found.count_nonzero() > len(found) / 2


@each_objective
@pytest.mark.parametrize("part", [AutoDelta, AutoNormal])
def test_auto_guide_list(objective, part):
    pyro.set_rng_seed(0)
    guide = AutoGuideList(model)
    mixture = AutoDiagonalNormalMixture(poutine.block(model, expose=["z"]), 2, init_scale=0.5)
    guide.append(mixture)
    other = part(poutine.block(model, expose=["a"]))
    guide.append(other)
    guide()
    parameters = dict(guide.named_parameters())

    def draw():
        q = mixture.get_posterior()
        z = component_samples(q, (PARTICLES,))  # (T, K, 2)
        if part is AutoDelta:
            return q, log_joint(z, other.a) - q.log_prob(z)
        q_a = dist.LogNormal(other.locs.a, other.scales.a)
        a = q_a.expand([PARTICLES]).rsample().unsqueeze(-1)  # (T, 1)
        return q, log_joint(z, a) - q.log_prob(z) - q_a.log_prob(a)

    check(objective, guide, parameters, draw)


@each_objective
def test_group_of_an_easy_guide(objective):
    parameters = parameters_of_two(D=3)

    class Guide(EasyGuide):
        def guide(self):
            group = self.group("[za]")
            return group.sample("auxiliary", diag_normals(parameters))

    def draw():
        q = diag_normals(parameters)
        latent = component_samples(q, (PARTICLES,))  # (T, K, 3)
        z, log_a = latent[..., :2], latent[..., 2]
        return q, log_joint(z, log_a.exp()) + log_a - q.log_prob(latent)

    guide = Guide(model)
    guide()
    check(objective, guide, parameters, draw)


@each_objective
def test_guide_messenger(objective):
    """Of which the second site depends on the mixture's sample."""
    parameters = parameters_of_two()

    def given(z):
        return dist.LogNormal(0.3 * z.sum(-1) - 0.2, 0.7)

    class Guide(GuideMessenger):
        def get_posterior(self, name, prior):
            return diag_normals(parameters) if name == "z" else given(self.upstream_value("z"))

    def draw():
        q = diag_normals(parameters)
        z = component_samples(q, (PARTICLES,))
        q_a = given(z)
        # the components stand to the left of the particles
        noise = dist.Normal(0.0, 1.0).expand([2, PARTICLES]).sample().T
        a = (0.3 * z.sum(-1) - 0.2 + 0.7 * noise).exp()
        return q, log_joint(z, a) - q.log_prob(z) - q_a.log_prob(a)

    check(objective, Guide(model), parameters, draw)


@each_objective
@pytest.mark.parametrize("of_guide", [torch.float32, torch.float64])
@pytest.mark.parametrize("of_model", [torch.float32, torch.float64])
def test_precisions_of_guide_and_model(objective, of_guide, of_model):
    parameters = {
        name: value.detach().to(of_guide).requires_grad_()
        for name, value in parameters_of_two().items()
    }
    one = torch.ones((), dtype=of_model)

    def typed():
        z = pyro.sample("z", dist.Normal(0 * one, one).expand([2]).to_event(1))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(z.prod(-1), 0.8 * one), obs=DATA.to(of_model))

    elbo = objective(max_plate_nesting=1)
    pyro.set_rng_seed(0)
    loss = elbo.loss_and_grads(typed, lambda: pyro.sample("z", diag_normals(parameters)))
    pyro.set_rng_seed(0)
    q = diag_normals(parameters)
    z = component_samples(q).double()
    prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    lik = dist.Normal(z.prod(-1).unsqueeze(-1), 0.8).log_prob(DATA.double()).sum(-1)
    ratio, log_weights = prior + lik - q.log_prob(z), q.log_weights
    bound = (ratio + log_weights).logsumexp(0)
    if objective is MarginalizedMixture_ELBO:
        bound = (log_weights.exp() * ratio).sum()
    assert loss == pytest.approx(-bound.item(), rel=1e-5)
    found = gradients(parameters)
    assert found.dtype == of_guide
    assert torch.allclose(found, gradient_of(-bound, parameters), rtol=1e-3, atol=1e-4)
