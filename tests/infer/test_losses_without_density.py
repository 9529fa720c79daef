"""Losses that are not finite, and what they leave, are named."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_mixtures.infer import SIWAE_ELBO, AutoDiagonalNormalMixture, ImportanceWeighted_ELBO
from tests.infer.mixture_guides import MIXTURES
from tests.infer.own_objectives import OBJECTIVES


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def model():
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Uniform(0.0, 1.0), obs=torch.tensor(0.5))
    pyro.factor("likelihood", (x[..., 0] - 9).clamp(min=0).log())


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_site_of_an_infinite_loss_is_named(objective, vectorized):
    guide = AutoDiagonalNormalMixture(model, 3)
    elbo = objective(2, vectorize_particles=vectorized, max_plate_nesting=0)
    told = "The loss is inf, for site 'likelihood' of the model has a log density of -inf in"
    for method in (elbo.loss, elbo.loss_and_grads, elbo.differentiable_loss):
        with warnings.catch_warnings(record=True) as caught:  # Pyro's, of NaN, among them
            warnings.simplefilter("always")
            assert float(method(model, guide)) in (math.inf, pytest.approx(math.nan, nan_ok=True))
        assert [str(each.message) for each in caught if told in str(each.message)]


@pytest.mark.parametrize("objective", [SIWAE_ELBO, ImportanceWeighted_ELBO])
def test_a_finite_loss_of_some_particles_without_density_is_none(objective):
    def half():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("half", torch.where(x[..., 0] > 0, 0.0, -torch.inf))

    guide = AutoDiagonalNormalMixture(half, 2, init_scale=1.0)
    elbo = objective(30, vectorize_particles=True, max_plate_nesting=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isfinite(elbo.loss(half, guide))


def test_parameters_that_it_made_nan_are_told():
    """With Pyro's own objectives, which are silent."""
    guide = AutoDiagonalNormalMixture(model, 3)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert svi.step() == math.inf
    with pytest.raises(ValueError, match=r"got NaN in 3 of 3 elements of component_logits: the"):
        svi.step()


@pytest.mark.parametrize("guide_class", MIXTURES)
def test_nan_is_told_by_every_guide(guide_class):
    guide = guide_class(model, 3)
    guide()
    with torch.no_grad():
        guide.component_logits[1] = math.nan
    for method in (guide, guide.get_posterior, guide.median):
        with pytest.raises(ValueError, match=r"got NaN in 1 of 3 elements of component_logits:"):
            method()


def test_other_errors_stay_what_they_are():
    guide = AutoDiagonalNormalMixture(model, 3)
    guide()
    with torch.no_grad():
        guide.component_logits[0] = math.inf
    with pytest.raises(ValueError, match="component_logits"):
        guide()
