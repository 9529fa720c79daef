"""What ``MarginalizedMixture_ELBO`` refuses."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI

from pyro_mixtures.distributions import MixtureSameFamily
from pyro_mixtures.infer import SIWAE_ELBO, MarginalizedMixture_ELBO
from tests.strata import diag_normals, model, parameters_of_two


@pytest.fixture(autouse=True)
def _double_precision():
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def refused(guide, model=model, **kwargs):
    return MarginalizedMixture_ELBO(**kwargs).loss_and_grads(model, guide)


def test_guide_needs_a_mixture():
    with pytest.raises(ValueError, match=r"mixture of this package.*\['z'\]"):
        refused(lambda: pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1)))


def test_two_mixtures_are_refused():
    def two():
        for name in ("z", "other"):
            q = diag_normals(parameters_of_two())
            pyro.sample(name, q, infer={"is_auxiliary": name == "other"})

    with pytest.raises(NotImplementedError, match="'z' and 'other'"):
        refused(two)


def test_several_mixtures_in_one_event_are_refused():
    def several():
        q = diag_normals(parameters_of_two(batch_shape=(3,)))
        pyro.sample("z", q.to_event(1))

    def wide_model():
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))

    with pytest.raises(NotImplementedError, match=r"'z'.*\(3,\).*pyro.plate"):
        refused(several, wide_model)


def test_site_that_joins_mixtures_is_refused():
    def joining():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("total", dist.Normal(z.sum((-2, -1)), 1.0), obs=torch.tensor(0.0))

    def vectorized():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        total = z.sum((-2, -1)).unsqueeze(-1)
        pyro.sample("total", dist.Normal(total, 1.0), obs=torch.tensor(0.0))

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", diag_normals(parameters_of_two()))

    with pytest.raises(NotImplementedError, match=r"'total'.*\['data'\].*'z'"):
        refused(guide, vectorized, max_plate_nesting=1)
    with pytest.raises(ValueError, match="total"):
        refused(guide, joining)


def test_site_that_loses_the_components_is_refused():
    def summing():
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match=r"'y'.*sum\(-1\), not sum\(\)"):
        refused(lambda: pyro.sample("z", diag_normals(parameters_of_two())), summing)


@pytest.mark.parametrize("objective", [MarginalizedMixture_ELBO, SIWAE_ELBO])
def test_dependence_is_checked_though_the_first_call_has_no_gradients(objective):
    def summing():
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=torch.tensor(0.0))

    parameters = parameters_of_two()

    def guide():
        pyro.sample("z", diag_normals(parameters))

    svi = SVI(summing, guide, pyro.optim.Adam({}), objective(max_plate_nesting=0))
    with pytest.raises(ValueError, match=r"'y'.*sum\(-1\), not sum\(\)"):
        svi.evaluate_loss()
    with torch.inference_mode():  # which has none at all
        svi.evaluate_loss()
    with pytest.raises(ValueError, match=r"'y'.*sum\(-1\), not sum\(\)"):
        svi.step()


@pytest.mark.parametrize("objective", [MarginalizedMixture_ELBO, SIWAE_ELBO])
@pytest.mark.parametrize("particles", [1, 3])
def test_mixtures_outside_of_plates_are_refused(objective, particles):
    """Else a site that joins them would count once for each."""

    def joining():
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(1))
        total = z.sum((-2, -1)).unsqueeze(-1)
        pyro.sample("y", dist.Normal(total, 1.0), obs=torch.tensor(0.0))

    def guide():
        pyro.sample("z", diag_normals(parameters_of_two(batch_shape=(3,))))

    elbo = objective(particles, vectorize_particles=True, max_plate_nesting=1)
    with pytest.raises(ValueError, match=r"pyro.plate for each.*3,?\) at site 'z'"):
        elbo.loss(joining, guide)


@pytest.mark.parametrize("objective", [MarginalizedMixture_ELBO, SIWAE_ELBO])
@pytest.mark.parametrize("size", [2, 3])
def test_data_outside_of_plates_are_refused(objective, size):
    """Also as many as there are components, with which they would be paired."""

    def unplated():
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=torch.zeros(size))

    def guide():
        pyro.sample("z", diag_normals(parameters_of_two()))

    with pytest.raises(ValueError, match=rf"'y'.*2 components.*-1.*shape \(2, {size}\)"):
        objective(max_plate_nesting=0).loss(unplated, guide)


@pytest.mark.parametrize("objective", [MarginalizedMixture_ELBO, SIWAE_ELBO])
def test_data_in_the_place_of_the_components_are_refused(objective):
    def model_of(observe):
        def program():
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            observe(z)

        return program

    def paired(z):
        pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=torch.zeros(2))

    def apart(z):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.zeros(2))

    def of_latent(z):  # what the latent determines has its dimension by right
        pyro.factor("f", z.sum(-1))
        pyro.deterministic("positive", z > 0, event_dim=1)
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=z.sum(-1))
        pyro.sample("event", dist.Normal(z, 1.0).to_event(1), obs=torch.zeros(2))

    parameters = parameters_of_two()

    def guide():
        pyro.sample("z", diag_normals(parameters))

    elbo = objective(max_plate_nesting=0)
    for observe in (paired, apart):
        with pytest.raises(ValueError, match=r"at most 0 batch.*'y'.*\(2,\).*pyro.plate"):
            elbo.loss(model_of(observe), guide)
    assert math.isfinite(elbo.loss(model_of(of_latent), guide))


def test_components_without_rsample_are_refused():
    def angles():
        weights, components = dist.Categorical(torch.ones(2)), dist.VonMises(torch.zeros(2), 1.0)
        pyro.sample("z", MixtureSameFamily(weights, components))

    with pytest.raises(NotImplementedError, match="VonMises"):
        refused(angles, lambda: pyro.sample("z", dist.VonMises(0.0, 1.0)))


def test_too_few_plates_are_reported():
    def plated():
        with pyro.plate("data", 3):
            model()

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", diag_normals(parameters_of_two()))

    with pytest.raises(ValueError, match="max_plate_nesting >= 1.*'z'"):
        refused(guide, plated, max_plate_nesting=0)
