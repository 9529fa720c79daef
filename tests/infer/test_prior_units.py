"""Guides that measure in standard deviations of the prior."""

import copy
import io
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import init_to_mean

from pyro_mixtures.distributions import MixtureOfDiagNormals
from pyro_mixtures.infer import AutoDiagonalNormalMixture, AutoGaussianScaleMixture
from pyro_mixtures.infer.guides.prior_units import spread
from tests.infer.mixture_guides import MIXTURES

SCALES = torch.tensor([100.0, 0.01, 3.0])
each_guide = pytest.mark.parametrize("guide_class", MIXTURES)


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def model():
    x = pyro.sample("x", dist.Normal(torch.tensor([500.0, 0.0]), SCALES[:2]).to_event(1))
    pyro.sample("y", dist.LogNormal(0.0, SCALES[2]))
    pyro.factor("f", -x.abs().sum(-1) / 1000)


@each_guide
def test_starts_and_steps_are_in_units_of_the_prior(guide_class):
    guide = guide_class(model, 50, init_scale=0.2, init="prior")
    guide()
    torch.testing.assert_close(guide.prior_units, SCALES, rtol=0.35, atol=0)
    scale = torch.atleast_2d(guide.coord_scale)[0]
    torch.testing.assert_close(scale, 0.2 * guide.prior_units)
    if guide_class is not AutoGaussianScaleMixture:  # of one location
        torch.testing.assert_close(guide.locs.std(0), SCALES, rtol=0.35, atol=0)
        assert abs(guide.locs[:, 0].mean().item() - 500) < 70
    before = guide.locs.detach().clone()
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(num_particles=10)).step()
    steps = (guide.locs - before).abs().amax(0)  # the first step of Adam is the learning rate
    torch.testing.assert_close(steps, 0.01 * guide.prior_units, rtol=1e-2, atol=2e-4)
    change = torch.atleast_2d(guide.coord_scale / scale).log().abs()
    assert change.max().item() == pytest.approx(0.01, rel=1e-2)


def test_places_may_be_others():
    guide = AutoDiagonalNormalMixture(model, 50, init_to_mean, init="prior")
    guide()
    torch.testing.assert_close(guide.locs.std(0), 0.1 * guide.prior_units, rtol=0.4, atol=0)


def test_spread():
    draws = torch.randn(10_000, 4) * torch.tensor([1.0, 5.0, 0.0, 1.0])
    draws[:, 3] = torch.inf
    expected = torch.tensor([1.0, 5.0, 1.0, 1.0])
    torch.testing.assert_close(spread(draws), expected, rtol=0.05, atol=0)


def test_improper_priors_start_as_by_default():
    def improper():
        real = dist.constraints.real
        pyro.sample("x", dist.ImproperUniform(real, torch.Size(), torch.Size()))
        pyro.sample("y", dist.Normal(0.0, 50.0))

    guide = AutoDiagonalNormalMixture(improper, 30, init="prior")
    guide()
    assert guide.locs[:, 0].abs().max() < 3
    assert 0.5 < guide.prior_units[0] < 2
    assert guide.prior_units[1] > 25


@each_guide
def test_copies_files_and_dtypes(guide_class):
    """Units go with the parameters: those of another guide are other ones."""
    guide = guide_class(model, 3, init="prior")
    guide()
    z = guide.get_posterior().sample((20,))
    expected = guide.get_posterior().log_prob(z).detach()
    file = io.BytesIO()
    torch.save(pyro.get_param_store().get_state(), file)
    pyro.clear_param_store()
    other = guide_class(model, 3, init="prior")
    other()
    assert not torch.equal(other.prior_units, guide.prior_units)
    other.load_state_dict(guide.state_dict())
    pyro.clear_param_store()
    file.seek(0)
    pyro.get_param_store().set_state(torch.load(file, weights_only=False))
    stored = guide_class(model, 3, init="prior")
    stored()
    for each in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide)), other, stored):
        torch.testing.assert_close(each.get_posterior().log_prob(z), expected)
    double = copy.deepcopy(guide).double()
    found = double.get_posterior().log_prob(z.double())
    torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-3)
    double.prior_units *= 2
    with torch.no_grad():
        torch.testing.assert_close(double.locs, 2 * guide.locs.double())


def test_given_mixtures():
    q = MixtureOfDiagNormals(torch.randn(4, 3), torch.ones(4, 3), torch.zeros(4))
    for called in (False, True):
        pyro.clear_param_store()
        guide = AutoDiagonalNormalMixture(model, 2, init="prior")
        if called:
            guide()
        guide.set_posterior(q)
        guide()
        torch.testing.assert_close(guide.locs, q.locs)
        torch.testing.assert_close(guide.coord_scale, q.coord_scale)
        torch.testing.assert_close(guide.locs_unconstrained, q.locs / guide.prior_units)
    guide.prune()
    guide.refit_weights(num_samples=5)


def test_a_store_with_other_units_is_refused():
    AutoDiagonalNormalMixture(model, 3)()
    with pytest.raises(ValueError, match="to be of a guide with init='prior'"):
        AutoDiagonalNormalMixture(model, 3, init="prior")()


def test_mistakes():
    with pytest.raises(ValueError, match="init.*'posterior'"):
        AutoDiagonalNormalMixture(model, 3, init="posterior")
