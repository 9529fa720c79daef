"""``SIWAE_ELBO`` against explicit formulas, the evidence and finite differences."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI

from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.estimators.strata import component_samples
from pyro_mixtures.infer import (
    SIWAE_ELBO,
    AutoDiagonalNormalMixture,
    AutoMultivariateNormalMixture,
    MarginalizedMixture_ELBO,
)
from tests.registry import FAMILIES, each_family, leaves

OBSERVED = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _double_precision():
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def model():
    """Conjugate: the posterior is Normal and the evidence known."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("y", dist.Normal(z.sum(-1), 0.5), obs=torch.tensor(1.5))


def log_joint(z):
    observed = dist.Normal(z.sum(-1), 0.5).log_prob(torch.tensor(1.5))
    return observed + dist.Normal(0.0, 1.0).log_prob(z).sum(-1)


LOG_EVIDENCE = dist.Normal(0.0, 2.25**0.5).log_prob(torch.tensor(1.5)).item()


def local_model(subsample=None):
    with pyro.plate("data", 3, subsample=subsample) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("views", 2, dim=-2):  # two sites within the logarithm
            y = OBSERVED[index]
            pyro.sample("y", dist.Normal(z.sum(-1), 0.5), obs=torch.stack([y, y + 0.3]))


def local_log_joint(z, index=slice(None)):
    y = OBSERVED[index]
    observed = dist.Normal(z.sum(-1), 0.5)
    prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    return prior + observed.log_prob(y) + observed.log_prob(y + 0.3)


def local_guide(parameters):
    def guide(subsample=None):
        with pyro.plate("data", 3, subsample=subsample) as index:
            pyro.sample("z", MixtureOfDiagNormals(**{k: v[index] for k, v in parameters.items()}))

    return guide


def family_guide(family, parameters):
    return lambda: pyro.sample("z", family.build(parameters))


def bound(log_ratio, log_weights):
    """Of ``(T, K, *B)`` and ``(K, *B)``, ``(*B,)``."""
    return (log_ratio + log_weights).logsumexp((0, 1)) - math.log(len(log_ratio))


@pytest.mark.parametrize("particles", [1, 4])
def test_loss_is_the_stratified_bound(particles):
    family = FAMILIES["diag_normals"]
    parameters = family.parameters()
    q = family.build(parameters)
    pyro.set_rng_seed(0)
    elbo = SIWAE_ELBO(particles, max_plate_nesting=0)
    loss = elbo.loss(model, family_guide(family, parameters))
    pyro.set_rng_seed(0)
    z = component_samples(q, (particles,))
    expected = bound(log_joint(z) - q.log_prob(z), q.log_weights)
    assert loss == pytest.approx(-expected.item(), rel=1e-12)


@pytest.mark.parametrize("particles", [1, 3])
def test_mixtures_in_plates_have_a_logarithm_each(particles):
    parameters = FAMILIES["diag_normals"].parameters(batch_shape=(3,))
    q = MixtureOfDiagNormals(**parameters)
    pyro.set_rng_seed(0)
    elbo = SIWAE_ELBO(particles, max_plate_nesting=2)
    loss = elbo.loss(local_model, local_guide(parameters))
    pyro.set_rng_seed(0)
    z = component_samples(q, (particles,))  # (T, K, 3, 2)
    expected = bound(local_log_joint(z) - q.log_prob(z), q.log_weights.T)
    assert loss == pytest.approx(-expected.sum().item(), rel=1e-12)


@pytest.mark.parametrize("index", [[1], [0, 2]])
def test_scale_of_subsampling_is_outside_of_the_logarithm(index):
    index = torch.tensor(index)
    parameters = FAMILIES["diag_normals"].parameters(batch_shape=(3,))
    q = MixtureOfDiagNormals(**{name: value[index] for name, value in parameters.items()})
    pyro.set_rng_seed(0)
    elbo = SIWAE_ELBO(2, max_plate_nesting=2)
    loss = elbo.loss(local_model, local_guide(parameters), index)
    pyro.set_rng_seed(0)
    z = component_samples(q, (2,))
    expected = bound(local_log_joint(z, index) - q.log_prob(z), q.log_weights.T)
    assert loss == pytest.approx(-expected.sum().item() * 3 / len(index), rel=1e-12)


@each_family
def test_bound_lies_between_elbo_and_evidence(family):
    """Above the ELBO for every draw, and at the evidence for many."""
    parameters = family.parameters()
    guide = family_guide(family, parameters)
    for seed in range(10):
        losses = []
        for objective in (MarginalizedMixture_ELBO, SIWAE_ELBO):
            pyro.set_rng_seed(seed)
            losses.append(objective(max_plate_nesting=0).loss(model, guide))
        assert losses[1] <= losses[0]
    means = []
    for particles in (1, 10, 20_000):
        elbo = SIWAE_ELBO(particles, max_plate_nesting=0)
        repeats = 100 if particles < 100 else 1
        means.append(-sum(elbo.loss(model, guide) for _ in range(repeats)) / repeats)
    assert means[0] < means[1] < LOG_EVIDENCE + 0.1
    assert means[2] == pytest.approx(LOG_EVIDENCE, abs=0.1)


def test_one_draw_of_one_component_is_the_elbo():
    family = FAMILIES["diag_normals"]
    parameters = family.parameters(K=1)
    results = []
    for objective in (MarginalizedMixture_ELBO, SIWAE_ELBO):
        for value in parameters.values():
            value.grad = None
        pyro.set_rng_seed(0)
        loss = objective(max_plate_nesting=0).loss_and_grads(
            model, family_guide(family, parameters)
        )
        grad = torch.cat([value.grad.flatten() for value in parameters.values()])
        results.append((loss, grad))
    assert results[0][0] == pytest.approx(results[1][0])
    assert torch.allclose(results[0][1], results[1][1])


@pytest.mark.parametrize("local", [False, True], ids=["global", "local"])
def test_gradient_is_that_of_the_loss_for_fixed_random_numbers(local):
    family = FAMILIES["diag_normals"]
    parameters = family.parameters(batch_shape=(3,) if local else ())
    guide = local_guide(parameters) if local else family_guide(family, parameters)
    target = local_model if local else model
    elbo = SIWAE_ELBO(3, max_plate_nesting=2 if local else 0)

    def loss():
        pyro.set_rng_seed(7)
        return elbo.loss(target, guide)

    pyro.set_rng_seed(7)
    elbo.loss_and_grads(target, guide)
    for value in parameters.values():
        index = (0,) * value.dim()
        step = 1e-5
        with torch.no_grad():
            value[index] += step
            high = loss()
            value[index] -= 2 * step
            low = loss()
            value[index] += step
        assert value.grad[index].item() == pytest.approx((high - low) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("guide_class", [AutoDiagonalNormalMixture, AutoMultivariateNormalMixture])
@pytest.mark.parametrize("weight_gradient", ["pathwise", "clustered", "hybrid"])
def test_auto_guides(guide_class, weight_gradient):
    pyro.set_rng_seed(0)
    guide = guide_class(model, 2, init_scale=0.5, weight_gradient=weight_gradient)
    guide()
    q = guide.get_posterior()
    elbo = SIWAE_ELBO(3)
    elbo.loss(model, guide)  # which guesses the plates
    pyro.set_rng_seed(1)
    loss = elbo.loss_and_grads(model, guide)
    pyro.set_rng_seed(1)
    z = component_samples(q, (3,))
    expected = bound(log_joint(z) - q.log_prob(z), q.log_weights)
    assert loss == pytest.approx(-expected.item())
    (grad,) = torch.autograd.grad(-expected, guide.locs)
    assert torch.allclose(guide.locs.grad, grad)


def test_training_reaches_the_evidence():
    pyro.set_rng_seed(0)
    guide = AutoDiagonalNormalMixture(model, 2)
    elbo = SIWAE_ELBO(8)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), elbo)
    for _ in range(200):
        svi.step()
    with torch.no_grad():
        loss = sum(elbo.loss(model, guide) for _ in range(100)) / 100
    assert loss == pytest.approx(-LOG_EVIDENCE, abs=0.1)


def with_common_site(parameters):
    """Of mixtures in a plate whose elements share a latent number."""

    def common_model():
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            loc = w.unsqueeze(-1).expand(w.shape + (2,)) if w.dim() else w.expand(2)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    def common_guide():
        pyro.sample("w", dist.Normal(0.3, 0.8))
        local_guide(parameters)()

    return common_model, common_guide


def test_common_site_is_outside_of_the_logarithms():
    parameters = FAMILIES["diag_normals"].parameters(batch_shape=(3,))
    q = MixtureOfDiagNormals(**parameters)
    pyro.set_rng_seed(0)
    loss = SIWAE_ELBO(max_plate_nesting=1).loss(*with_common_site(parameters))
    pyro.set_rng_seed(0)
    w = dist.Normal(0.3, 0.8).sample()
    z = component_samples(q).unsqueeze(0)
    log_ratio = dist.Normal(w, 1.0).log_prob(z).sum(-1) - q.log_prob(z)
    expected = bound(log_ratio, q.log_weights.T).sum()
    expected = expected + dist.Normal(0.0, 1.0).log_prob(w) - dist.Normal(0.3, 0.8).log_prob(w)
    assert loss == pytest.approx(-expected.item())


def test_common_site_of_several_particles_is_refused():
    parameters = FAMILIES["diag_normals"].parameters(batch_shape=(3,))
    with pytest.raises(
        NotImplementedError, match=r"'w' to depend on no.*\['data'\].*num_particles=1"
    ):
        SIWAE_ELBO(2, max_plate_nesting=1).loss(*with_common_site(parameters))


def test_site_that_joins_mixtures_of_one_component_is_refused_for_several_particles():
    parameters = FAMILIES["diag_normals"].parameters(K=1, batch_shape=(3,))

    def joining():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        total = z.sum((-2, -1)).unsqueeze(-1) if z.dim() > 2 else z.sum()
        pyro.sample("total", dist.Normal(total, 1.0), obs=torch.tensor(0.0))

    assert math.isfinite(SIWAE_ELBO(1, max_plate_nesting=1).loss(joining, local_guide(parameters)))
    with pytest.raises(NotImplementedError, match=r"'total' to depend on no sample.*\['data'\]"):
        SIWAE_ELBO(2, max_plate_nesting=1).loss(joining, local_guide(parameters))


@pytest.mark.parametrize("landing", [False, True])
def test_component_without_weight_is_without_influence(landing):
    parameters = leaves(
        {
            "locs": torch.tensor([[0.0, 0.0], [1e3, 0.0]]),
            "coord_scale": torch.ones(2, 2),
            "component_logits": torch.tensor([0.0, -math.inf]),
        }
    )

    def broken_model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.factor("f", (100 - z.sum(-1)).sqrt())  # NaN there

    def guide():
        pyro.sample("z", MixtureOfDiagNormals(**parameters))

    elbo = SIWAE_ELBO(2, max_plate_nesting=0, sticking_the_landing=landing)
    assert math.isfinite(elbo.loss_and_grads(broken_model, guide))
    assert all(value.grad.isfinite().all() for value in parameters.values())
    for name in ("locs", "coord_scale", "component_logits"):
        assert not parameters[name].grad[1].any()


def test_particles_one_after_the_other():
    """The same logarithm, of draws in the same order."""
    parameters = FAMILIES["diag_normals"].parameters(batch_shape=(3,))
    q = MixtureOfDiagNormals(**parameters)
    pyro.set_rng_seed(0)
    elbo = SIWAE_ELBO(3, max_plate_nesting=2, vectorize_particles=False)
    loss = elbo.loss(local_model, local_guide(parameters))
    pyro.set_rng_seed(0)
    z = torch.stack([component_samples(q) for _ in range(3)])  # (T, K, 3, 2)
    expected = bound(local_log_joint(z) - q.log_prob(z), q.log_weights.T)
    assert loss == pytest.approx(-expected.sum().item(), rel=1e-12)
