"""What code that was written for Pyro's guides reads."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal
from pyro.infer.reparam import NeuTraReparam

from pyro_mixtures.infer import AutoMultivariateNormalMixture
from tests.infer.mixture_guides import NORMALS

PAIRS = [
    (
        guide,
        AutoMultivariateNormal
        if issubclass(guide, AutoMultivariateNormalMixture)
        else AutoDiagonalNormal,
    )
    for guide in NORMALS
]
each_guide = pytest.mark.parametrize(("guide_class", "of_pyro"), PAIRS)


@pytest.fixture(autouse=True)
def _clean_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def model():
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.LogNormal(x.sum(-1), 1.0))


@each_guide
def test_mean_and_standard_deviation_of_the_mixture(guide_class, of_pyro):
    guide = guide_class(model, 3, init_scale=0.5)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(5):
        svi.step()
    draws = guide.get_posterior().sample((100_000,))
    assert (guide.loc - draws.mean(0)).abs().max() < 0.03
    assert (guide.scale - draws.std(0)).abs().max() < 0.03
    for found, expected in zip(guide._loc_scale(), (guide.loc, guide.scale), strict=True):
        assert torch.equal(found, expected)


@each_guide
def test_one_component_is_the_guide_of_pyro(guide_class, of_pyro):
    guide, other = guide_class(model, 1), of_pyro(model)
    for each in (guide, other):
        pyro.set_rng_seed(1)
        each()
    for found, expected in zip(guide._loc_scale(), other._loc_scale(), strict=True):
        torch.testing.assert_close(found, expected)


@each_guide
def test_read_only_and_not_there_before_the_first_call(guide_class, of_pyro):
    guide = guide_class(model, 2)
    assert not hasattr(guide, "loc")
    guide()
    with pytest.raises(AttributeError, match="loc"):
        guide.loc = torch.zeros(3)


@each_guide
def test_no_transform(guide_class, of_pyro):
    guide = guide_class(model, 2)
    guide()
    for method in (guide.get_transform, guide.get_base_dist):
        with pytest.raises(NotImplementedError, match=f"{guide_class.__name__}.*get_posterior"):
            method()
    with pytest.raises(ValueError, match="NeuTraReparam only supports"):
        NeuTraReparam(guide).reparam(model)()
