"""``MarginalizedMixture_ELBO``: values against explicit formulas, and corners."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

from pyro_mixtures.estimators.strata import component_samples
from pyro_mixtures.infer import (
    AutoDiagonalNormalMixture,
    AutoMultivariateNormalMixture,
    MarginalizedMixture_ELBO,
)
from tests.pairwise import in_pairs
from tests.registry import leaves
from tests.strata import diag_normals, gradient_of, gradients, log_joint, model, parameters_of_two

PARTICLES = [
    pytest.param({}, id="one"),
    pytest.param({"num_particles": 3}, id="loop"),
    pytest.param({"num_particles": 3, "vectorize_particles": True}, id="vectorized"),
]
each_guide = pytest.mark.parametrize(
    "guide_class", [AutoDiagonalNormalMixture, AutoMultivariateNormalMixture]
)
each_landing = pytest.mark.parametrize("landing", [False, True], ids=["plain", "stl"])


def particles_of(q, num_particles=1, vectorize_particles=False):
    """The samples ``(S, K, D)`` that an objective draws."""
    if vectorize_particles:
        return component_samples(q, (num_particles,))
    return torch.stack([component_samples(q) for _ in range(num_particles)])


@pytest.fixture(autouse=True)
def _double_precision():
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kwargs", PARTICLES)
def test_loss_is_the_weighted_sum_over_the_components(kwargs):
    parameters = parameters_of_two()
    q = diag_normals(parameters)
    elbo = MarginalizedMixture_ELBO(max_plate_nesting=0, **kwargs)
    pyro.set_rng_seed(3)
    loss = elbo.loss(model, lambda: pyro.sample("z", q))
    pyro.set_rng_seed(3)
    z = particles_of(q, **kwargs)  # (S, K, 2)
    expected = (q.log_weights.exp() * (log_joint(z) - q.log_prob(z))).sum(-1).mean()
    assert loss == pytest.approx(-expected.item(), rel=1e-12)


def test_the_three_ways_to_ask_agree():
    parameters = parameters_of_two()

    class Guide(torch.nn.Module):
        def forward(self):
            return pyro.sample("z", diag_normals(parameters))

    guide, module = Guide(), torch.nn.Module()
    module.forward = model
    elbo = MarginalizedMixture_ELBO(num_particles=2)
    results = []
    for ask in (
        lambda: elbo.loss_and_grads(model, guide),
        lambda: elbo.differentiable_loss(model, guide),
        lambda: elbo(module, guide)(),
        lambda: elbo.loss(model, guide),
    ):
        elbo.max_plate_nesting = 0
        pyro.set_rng_seed(1)
        for value in parameters.values():
            value.grad = None
        loss = ask()
        if isinstance(loss, torch.Tensor):
            loss.backward()
            loss = loss.item()
        results.append((loss, parameters["locs"].grad))
    assert all(loss == pytest.approx(results[0][0]) for loss, _ in results)
    assert all(torch.allclose(grad, results[0][1]) for _, grad in results[1:3])
    assert results[3][1] is None


def two_sites():
    """A constrained site in two plates, and a vector."""
    with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
        a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", 2, dim=-1):
        total = a.sum((-2, -1), keepdim=True) + b.sum(-1)
        pyro.sample("y", dist.Normal(total, 1.0), obs=torch.tensor([1.0, 2.0]))


def two_sites_log_joint(latent):
    """The density of the unconstrained ``(log a, b)``, ``(*X, 8) -> (*X,)``."""
    a, b = latent[..., :6].exp(), latent[..., 6:]
    observed = dist.Normal((a.sum(-1) + b.sum(-1)).unsqueeze(-1), 1.0)
    prior = (dist.Gamma(2.0, 1.0).log_prob(a) + latent[..., :6]).sum(-1)
    prior = prior + dist.Normal(0.0, 1.0).log_prob(b).sum(-1)
    return prior + observed.log_prob(torch.tensor([1.0, 2.0])).sum(-1)


@in_pairs
@each_guide
@each_landing
@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
@pytest.mark.parametrize("kwargs", PARTICLES)
def test_auto_guides(guide_class, weight_gradient, kwargs, landing):
    """Loss and gradient of each draw are those of the formula, whatever the weights' gradient."""
    pyro.set_rng_seed(0)
    guide = guide_class(two_sites, 3, init_scale=0.5, weight_gradient=weight_gradient)
    guide()
    with torch.no_grad():
        guide.component_logits.copy_(torch.tensor([0.4, -0.3, 0.1]))
    elbo = MarginalizedMixture_ELBO(sticking_the_landing=landing, max_plate_nesting=2, **kwargs)
    pyro.set_rng_seed(2)
    loss = elbo.loss_and_grads(two_sites, guide)
    parameters = dict(guide.named_parameters())
    found = gradients(parameters)
    pyro.set_rng_seed(2)
    q = guide.get_posterior()
    z = particles_of(q, **kwargs)
    constant = type(q)(
        **{name: value.detach() for name, value in q.given.items()},
        component_logits=q.component_logits.detach(),
    )
    log_q = (constant if landing else q).log_prob(z)
    ratio = two_sites_log_joint(z) - log_q
    expected = -(q.log_weights.exp() * ratio).sum(-1).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-10)
    assert torch.allclose(found, gradient_of(expected, parameters), rtol=1e-8, atol=1e-10)


def test_one_component_is_an_ordinary_guide():
    parameters = parameters_of_two(K=1)
    elbo = MarginalizedMixture_ELBO(max_plate_nesting=0)
    pyro.set_rng_seed(0)
    loss = elbo.loss_and_grads(model, lambda: pyro.sample("z", diag_normals(parameters)))
    found = gradients(parameters)
    normal = dist.Normal(parameters["locs"][0], parameters["coord_scale"][0]).to_event(1)
    for value in parameters.values():
        value.grad = None
    pyro.set_rng_seed(0)
    expected = TraceMeanField_ELBO().loss_and_grads(model, lambda: pyro.sample("z", normal))
    # (that takes the divergence from the Normal prior in closed form)
    assert loss != pytest.approx(expected)
    pyro.set_rng_seed(0)
    z = component_samples(diag_normals(parameters))
    ratio = (diag_normals(parameters).log_prob(z) - log_joint(z)).sum()
    assert loss == pytest.approx(ratio.item())
    assert torch.allclose(found[:4], gradient_of(ratio, parameters)[:4])
    assert found[4] == 0


@pytest.mark.parametrize("bad", [-math.inf, math.nan])
@each_landing
def test_component_without_weight_is_without_influence(bad, landing):
    """Though the model is not finite, or not differentiable, where that component is."""
    parameters = parameters_of_two(K=3)
    with torch.no_grad():
        parameters["locs"][1] = 1e3
        parameters["component_logits"][1] = -math.inf
    offset = torch.tensor(0.5, requires_grad=True)

    def broken_model():
        z = pyro.sample("z", dist.Normal(0.3, 1.5).expand([2]).to_event(1))
        far = (offset + 100 - z.sum(-1)).sqrt()  # NaN there
        pyro.factor("f", far if math.isnan(bad) else torch.where(z[..., 0] > 100, bad, far))

    elbo = MarginalizedMixture_ELBO(max_plate_nesting=0, sticking_the_landing=landing)
    loss = elbo.loss_and_grads(broken_model, lambda: pyro.sample("z", diag_normals(parameters)))
    assert math.isfinite(loss)
    assert offset.grad.isfinite()
    assert offset.grad != 0
    assert gradients(parameters).isfinite().all()
    assert parameters["component_logits"].grad[1] == 0
    assert (parameters["locs"].grad[1] == 0).all()


def test_masks_and_scales():
    parameters = leaves(
        {name: torch.stack([value] * 3) for name, value in parameters_of_two().items()}
    )
    mask = torch.tensor([True, False, True])

    def masked_model():
        with pyro.plate("data", 3), pyro.poutine.mask(mask=mask), pyro.poutine.scale(scale=2.0):
            model()

    def masked_guide():
        with pyro.plate("data", 3), pyro.poutine.scale(scale=2.0):
            q = diag_normals(parameters, weight_gradient="hybrid")
            pyro.sample("z", q.to_event(0).mask(mask))

    pyro.set_rng_seed(0)
    loss = MarginalizedMixture_ELBO().loss(masked_model, masked_guide)
    q = diag_normals(parameters)
    pyro.set_rng_seed(0)
    with torch.no_grad():  # to guess the number of plates, the guide and the model ran once
        pyro.poutine.trace(masked_guide).get_trace()
    z = component_samples(q)  # (K, 3, 2)
    ratio = q.log_weights.exp().T * (log_joint(z) - q.log_prob(z)) * mask
    assert loss == pytest.approx(-2 * ratio.sum().item())


def test_to_event_of_one_mixture():
    parameters = parameters_of_two(K=3)
    expanded = {name: value.unsqueeze(0) for name, value in parameters.items()}
    losses = []
    for given, count in ((parameters, 0), (expanded, 1)):

        def reshaped_model(count=count):
            shape = [1] * count + [2]
            z = pyro.sample("z", dist.Normal(0.3, 1.5).expand(shape).to_event(1 + count))
            pyro.factor("f", z.flatten(z.dim() - 1 - count).prod(-1).sin())

        def guide(given=given, count=count):
            pyro.sample("z", diag_normals(given, weight_gradient="hybrid").to_event(count))

        pyro.set_rng_seed(0)
        elbo = MarginalizedMixture_ELBO(max_plate_nesting=0)
        losses.append(elbo.loss(reshaped_model, guide))
    assert losses[0] == pytest.approx(losses[1])
